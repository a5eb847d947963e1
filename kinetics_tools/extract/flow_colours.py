"""Flow as colours: the Middlebury wheel, and a ramp for how far two flows differ.

Source of the wheel: Baker, Scharstein, Lewis, Roth, Black and Szeliski, "A Database and Evaluation
Methodology for Optical Flow", ICCV 2007, and the program that they publish with it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps

Array = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

UNKNOWN_PX = 1e9  # Middlebury's files mark unknown flow by values above this
_SMOOTH = 4  # samples along each axis of a pixel at the wheel's edge


def _hues() -> npt.NDArray[np.float64]:
    """The wheel: (55, 3) in 0..255. There are more steps where the eye sees more hues."""
    red, yellow, green, cyan, blue, magenta = np.array(
        [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]]
    )
    corners = [red, yellow, green, cyan, blue, magenta, red]
    steps = []
    for number, num in enumerate((15, 6, 4, 11, 13, 6)):
        share = 255 * np.arange(num) // num
        change = corners[number + 1] - corners[number]
        steps.append(255 * corners[number] + change * share[:, None])
    return np.concatenate(steps).astype(np.float64)


HUES = _hues()


def colours(flow: Array, *, full_px: float) -> Pixels:
    """Flow as colours: the hue is the direction, the saturation the speed.

    No motion is white, right is red, down is yellow, left is blue-green, up is violet. Motion
    faster than `full_px` has its hue at three quarters of the brightness; unknown motion (NaN, or
    above 1e9) is black.

    Args:
        flow: float32 (..., 2), pixels per frame, x then y, +x right, +y down.
        full_px: speed of full saturation, above 0.

    Returns:
        uint8 (..., 3), RGB, equal to Middlebury's program.

    Raises:
        ValueError: `full_px` is not above 0.
    """
    if not full_px > 0:
        raise ValueError(f"the speed of full colour must be above 0, not {full_px}")
    known = (abs(flow) <= UNKNOWN_PX).all(axis=-1, keepdims=True)
    x, y = np.moveaxis(np.where(known, flow, 0) / np.float64(full_px), -1, 0)
    speed = np.hypot(x, y)[..., None]
    at = (np.arctan2(-y, -x) / np.pi + 1) / 2 * (len(HUES) - 1)
    low = at.astype(np.intp)
    share = (at - low)[..., None]
    hue = ((1 - share) * HUES[low] + share * HUES[(low + 1) % len(HUES)]) / 255
    shade = np.where(speed <= 1, 1 - speed * (1 - hue), 0.75 * hue)
    found: Pixels = (255 * shade * known).astype(np.uint8)
    return found


def wheel(diameter: int) -> Pixels:
    """The key to `colours`: a disc on white with full saturation at its edge.

    Motion to the right has the colour at the right of the centre, and so on.

    Args:
        diameter: pixels.

    Returns:
        uint8 (diameter, diameter, 3), RGB.
    """
    along = ((np.arange(diameter * _SMOOTH) + 0.5) * 2 / (diameter * _SMOOTH) - 1).astype(
        np.float32
    )
    x, y = np.meshgrid(along, along)
    fine = colours(np.stack([x, y], -1), full_px=1.0)
    fine[np.hypot(x, y) > 1] = 255
    shape = (diameter, _SMOOTH, diameter, _SMOOTH, 3)
    disc: Pixels = fine.reshape(shape).mean(axis=(1, 3)).round().astype(np.uint8)
    return disc


def ramp(values: Array, *, full: float) -> Pixels:
    """Values as colours from white (0) to almost black (`full` and above).

    Args:
        values: float32 (...), from 0.
        full: value of the last colour, above 0.

    Returns:
        uint8 (..., 3), RGB.
    """
    shares = np.linspace(0, 1, 256)
    white = (1 - shares[:, None]) ** 4  # the map begins with yellow, but no difference is white
    steps = white + (1 - white) * colormaps["magma_r"](shares)[:, :3]
    pixels: Pixels = (steps * 255).round().astype(np.uint8)
    return pixels[(values * (255 / full)).clip(0, 255).round().astype(np.intp)]
