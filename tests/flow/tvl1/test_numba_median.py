"""The median filter of the Numba backend gives what the readable one and OpenCV's give."""

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from kinetics_tools.flow.tvl1 import torch_reference
from kinetics_tools.flow.tvl1.numba_median import SCRATCH_ROWS, median_5x5
from kinetics_tools.flow.tvl1.numba_simd import LANES

Floats = npt.NDArray[np.float32]
PLANES = 3  # that lie row by row beside each other; the second one is filtered
VALUES = {
    "random": np.random.default_rng(0).standard_normal(4096),
    "ties": np.array([-3, -2, -1, 0, 1, 2]),
    "zeros of both signs": np.array([0.0, -0.0]),
    "denormals": np.array([0.0, -0.0, 1e-45, -1e-45, 1e-40, -1e-40]),
    "extremes": np.array([-np.inf, -3.4e38, -1, 0, 1, 3.4e38, np.inf]),
}


def filtered(image: Floats) -> Floats:
    """The median by Numba of an image (H, W), whose memory around it holds other numbers."""
    height, width = image.shape
    stride = -(-width // LANES) * LANES + 2 * LANES
    rows = np.full((height + SCRATCH_ROWS + 2, PLANES, stride), 7, np.float32)
    rows[:height, 1, LANES : LANES + width] = image
    memory, place = rows.reshape(-1), stride + LANES
    scratch = height * PLANES * stride + LANES

    median_5x5(memory, place, (height, width), (PLANES * stride, stride), scratch)

    assert (rows[:height, ::2] == 7).all()  # the other planes
    return rows[:height, 1, LANES : LANES + width].copy()


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 9), (9, 1), (2, 3), (3, 2), (4, 17), (5, 70), (16, 16), (17, 33), (24, 48)]
)
def test_the_median_is_that_of_the_readable_backend_and_of_opencv(
    size: tuple[int, int], values: str
) -> None:
    image = np.random.default_rng(1).choice(VALUES[values], size).astype(np.float32)

    found = filtered(image)

    readable = torch_reference._median_5x5(torch.from_numpy(image)[None, None])[0, 0]
    assert np.array_equal(found, readable.numpy())
    assert np.array_equal(found, cv2.medianBlur(image, 5))
