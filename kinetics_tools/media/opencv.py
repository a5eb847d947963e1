"""OpenCV: grey values, JPEG, and its TV-L1 as the reference method. The only importer of cv2."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt

VERSION: str = cv2.__version__
MIN_SIDE_PX = 3  # on smaller frames OpenCV's TV-L1 reads outside its memory


def gray(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Convert RGB to grey by OpenCV's RGB2GRAY: uint8 (..., H, W, 3) to (..., H, W)."""
    *lead, width, _ = rgb.shape
    rows = np.ascontiguousarray(rgb).reshape(-1, width, 3)
    converted = np.asarray(cv2.cvtColor(rows, cv2.COLOR_RGB2GRAY), np.uint8)
    return converted.reshape(*lead, width)


def encode_jpeg(picture: npt.NDArray[np.uint8], *, quality: int) -> bytes:
    """Encode uint8 (H, W), grey, or (H, W, 3), RGB, as JPEG with OpenCV's other defaults."""
    if picture.ndim == 3:
        picture = np.ascontiguousarray(picture[..., ::-1])
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def decode_jpeg(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode a JPEG to uint8 (H, W), grey, or (H, W, 3), RGB.

    Raises:
        ValueError: not a picture.
    """
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if picture is None:
        raise ValueError("not a picture")
    return np.asarray(picture[..., ::-1] if picture.ndim == 3 else picture, np.uint8)


Solve = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


def make_solver(name: str = "tvl1") -> Solve:
    """Make a function from two uint8 (H, W) frames to float32 (H, W, 2), on one thread.

    Each thread and each clip needs its own: it keeps buffers, and OpenCV's TV-L1 keeps the number
    of pyramid levels of the smallest frame that it has seen.

    Args:
        name: "tvl1", DualTVL1OpticalFlow with its defaults; "dis", DIS with its preset medium.
    """
    cv2.setNumThreads(1)
    solver: Any = (
        cv2.optflow.DualTVL1OpticalFlow.create()
        if name == "tvl1"
        else cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    )

    def solve(
        before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.float32]:
        flow = np.zeros((*before.shape, 2), np.float32)
        return np.asarray(solver.calc(before, after, flow), np.float32)

    return solve


@dataclass(frozen=True, slots=True)
class OpenCVTVL1:
    """OpenCV's DualTVL1OpticalFlow with its defaults, on one thread."""

    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def as_json(self) -> dict[str, Any]:
        """The parameters, and OpenCV's version: its releases differ by about 0.01 px."""
        solver = cv2.optflow.DualTVL1OpticalFlow.create()
        return {
            "opencv": VERSION,
            "tau": solver.getTau(),
            "lambda_": solver.getLambda(),
            "theta": solver.getTheta(),
            "num_scales": solver.getScalesNumber(),
            "scale_step": solver.getScaleStep(),
            "num_warps": solver.getWarpingsNumber(),
            "epsilon": solver.getEpsilon(),
            "inner_iterations": solver.getInnerIterations(),
            "outer_iterations": solver.getOuterIterations(),
            "median_px": solver.getMedianFiltering(),
        }

    def prepare(self, device: str) -> None:
        """Does nothing, as there is nothing to compile."""

    def flows(
        self,
        frames: Iterator[npt.NDArray[np.uint8]],
        device: str,  # noqa: ARG002 - every method takes it; this one has only the CPU
        threads: int,  # noqa: ARG002 - and one thread
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the flow from each frame to the next: float32 (H, W, 2).

        Args:
            frames: uint8 (H, W), all of one size.
            device: "cpu".
            threads: not used.

        Raises:
            ValueError: a frame is less than 3 pixels high or wide.
        """
        solve = make_solver()
        before = next(frames, None)
        if before is not None and min(before.shape) < MIN_SIDE_PX:
            raise ValueError(f"OpenCV's TV-L1 needs at least 3x3 pixels, not {before.shape}")
        for after in frames:
            assert before is not None
            yield solve(before, after)
            before = after
