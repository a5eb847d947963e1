"""Synthetic frames with known motion."""

import cv2
import numpy as np
import numpy.typing as npt

Gray = npt.NDArray[np.uint8]


def texture(num: int, height: int, width: int, step: tuple[float, float], seed: int = 0) -> Gray:
    """A smooth random texture that moves by `step` (x, y) pixels per frame: (T, H, W)."""
    margin = 32
    noise = np.random.default_rng(seed).random((height + 2 * margin, width + 2 * margin))
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255
    shifts = [(step[0] * t - margin, step[1] * t - margin) for t in range(num)]
    moved = [
        cv2.warpAffine(smooth, np.array([[1, 0, x], [0, 1, y]], np.float64), (width, height))
        for x, y in shifts
    ]
    return np.stack(moved).round().astype(np.uint8)
