"""Write tests/golden/flow.json: flow of a fixed texture by every method.

    PYTHONPATH=. python tests/golden/make_flow.py

Run it again only for a change that is meant to change flow, and say old and new values then.
"""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kinetics_tools.flow import methods

PATH = Path(__file__).with_name("flow.json")
SHAPE = (48, 64)
PIXELS = ((8, 8), (24, 32), (40, 50))
PACKAGES = ("numpy", "opencv-contrib-python-headless", "torch")


def texture(shift_x: float, shift_y: float) -> npt.NDArray[np.uint8]:
    """A smooth texture, uint8 (48, 64), moved right and down by some pixels."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(np.float64)
    x, y = x - shift_x, y - shift_y
    waves = np.sin(0.31 * x + 0.2 * y) + np.sin(0.17 * x - 0.41 * y + 1) + np.sin(0.53 * x + 2)
    return np.asarray((127.5 + 40 * waves).round(), np.uint8)


def frames() -> npt.NDArray[np.uint8]:
    """Four frames: the texture goes 1.5 px right and 0.5 px up each time."""
    return np.stack([texture(1.5 * t, -0.5 * t) for t in range(4)])


def quartiles(method: str) -> list[list[float]]:
    """The quartiles of x and of y flow in the last field.

    Single pixels are no golden values of a whole run: at the border and on other processors
    rounding alone moves some of them by pixels.
    """
    last = methods.compute(frames(), method)[-1]
    return _rounded(np.percentile(last, (25, 50, 75), axis=(0, 1)))


def first_warp() -> list[list[float]]:
    """The flow of tvl1 at some pixels after one warp on one scale: there, rounding is small."""
    last = methods.compute(frames(), "tvl1", num_scales=1, num_warps=1)[-1]
    return _rounded(np.stack([last[row, column] for row, column in PIXELS]))


def _rounded(values: npt.NDArray[np.floating]) -> list[list[float]]:
    return [[round(float(value), 5) for value in row] for row in values]


def main() -> None:
    """Write the file."""
    golden = {
        "made_by": "PYTHONPATH=. python tests/golden/make_flow.py",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "quartiles": {name: quartiles(name) for name in methods.METHODS},
        "quartiles_tolerance_px": 0.02,
        "first_warp": first_warp(),
        "first_warp_tolerance_px": 0.001,
    }
    PATH.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
