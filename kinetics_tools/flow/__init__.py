"""Optical flow of grey frames.

`stream` and `compute` give flow; METHODS and CODECS say which methods and storage formats there
are; `quantise` and `dequantise` turn flow into stored codes and back. Names that are not in
`__all__` are private. Importing this package imports neither NumPy nor torch.
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
