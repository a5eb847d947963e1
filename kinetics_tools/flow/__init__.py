"""Optical flow of grey frames.

    import numpy as np
    from kinetics_tools import flow

    frames = np.zeros((10, 256, 340), np.uint8)   # grey, (T, H, W)
    fields = flow.compute(frames)                 # float32 (9, 256, 340, 2), pixels per frame
    codes = flow.quantise(fields)                 # uint8, as shards store them

`stream` does the same for an iterator of frames. METHODS and CODECS are the methods and the storage
formats by name; `quantise` and `dequantise` turn flow into stored codes and back; a FlowRecipe is
every parameter that changes a stored value. Names that are not in `__all__` are private. Importing
this package imports neither NumPy nor torch.
"""

from kinetics_tools.flow.codecs import CODECS, Codec
from kinetics_tools.flow.methods import (
    BOUND_PX,
    METHODS,
    FlowMethod,
    FlowRecipe,
    compute,
    dequantise,
    find_devices,
    make_method,
    quantise,
    stream,
)

__all__ = [
    "BOUND_PX",
    "CODECS",
    "METHODS",
    "Codec",
    "FlowMethod",
    "FlowRecipe",
    "compute",
    "dequantise",
    "find_devices",
    "make_method",
    "quantise",
    "stream",
]
