"""Optical flow of grey frames: the methods by name, the recipe, and flow quantised to bytes.

A flow field is float32 (H, W, 2), pixels from frame t to t+1, x then y, +x right, +y down: T frames
have T-1 fields. NumPy is imported for types only: command lines read METHODS before anything heavy
is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from kinetics_tools.core.errors import KineticsError, lookup
from kinetics_tools.core.files import digest
from kinetics_tools.core.schema import Bound, parse_exactly
from kinetics_tools.flow.codecs import CODECS, DEFAULT_CODEC

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Gray = npt.NDArray[np.uint8]
    Flow = npt.NDArray[np.float32]
    Codes = npt.NDArray[np.uint8]

BOUND_PX = 20.0  # of stored flow, as I3D's authors choose it


class FlowMethod(Protocol):
    """A way to compute flow, with its parameters set."""

    @property
    def devices(self) -> tuple[str, ...]:
        """The kinds of device that it runs on: "cpu", "cuda"."""

    def as_json(self) -> dict[str, Any]:
        """Return everything that decides the flow, as plain JSON values."""

    def prepare(self, device: str) -> None:
        """Compile what can be compiled and stored for processes that start later.

        Args:
            device: torch's name of it.
        """

    def flows(self, frames: Iterator[Gray], device: str, threads: int) -> Iterator[Flow]:
        """Yield the flow from each frame to the next: float32 (H, W, 2).

        Args:
            frames: uint8 (H, W), all of one size.
            device: torch's name of it.
            threads: how many may work on a CPU; the flow does not depend on it.
        """


def _tvl1(**options: Any) -> FlowMethod:
    from kinetics_tools.flow.tvl1.method import TVL1

    return TVL1(**options)


def _opencv_tvl1(**options: Any) -> FlowMethod:
    from kinetics_tools.media.opencv import OpenCVTVL1

    return OpenCVTVL1(**options)


METHODS: Mapping[str, Callable[..., FlowMethod]] = {"tvl1": _tvl1, "opencv-tvl1": _opencv_tvl1}


def make_method(name: str, **options: Any) -> FlowMethod:
    """Return the method `name` with the parameters `options`.

    Raises:
        UnknownNameError: METHODS has no such name.
        ValueError: the method has no such parameter, or refuses its value.
    """
    factory = lookup("flow method", name, METHODS)
    try:
        return factory(**options)
    except TypeError as error:
        raise ValueError(
            f"flow method {name!r} cannot be made with {', '.join(sorted(options))}: {error}"
        ) from error


def find_devices(name: str, method: FlowMethod) -> tuple[str, ...]:
    """Return the devices, as torch names them, that `name` stands for.

    Args:
        name: "cpu"; "cuda" for all GPUs; "cuda:0,1" for some; "auto" for all GPUs, or for the CPU
            where there is no GPU or the method cannot use one.
        method: the method that will run there.

    Raises:
        KineticsError: this machine has no such device, or the method cannot use it.
    """
    kind, _, numbers = name.partition(":")
    if kind == "auto" and "cuda" not in method.devices:
        return ("cpu",)
    if name == "cpu":
        return ("cpu",)
    if kind not in ("auto", "cuda") or not all(
        n.isdecimal() for n in numbers.split(",") if numbers
    ):
        raise KineticsError(f"device {name!r} is not one of auto, cpu, cuda, cuda:0, cuda:0,1")
    if "cuda" not in method.devices:
        raise KineticsError(
            f"device {name!r}: this method runs on {', '.join(method.devices)} only"
        )
    import torch

    present = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
    if kind == "auto":
        return present or ("cpu",)
    wanted = tuple(f"cuda:{int(n)}" for n in numbers.split(",")) if numbers else present
    if not wanted or not set(wanted) <= set(present):
        there = ("cpu", *present)
        raise KineticsError(
            f"no device {name!r} here; there is {', '.join(there)}; use {there[-1]!r}"
        )
    return wanted


def stream(
    frames: Iterable[Gray],
    method: str = "tvl1",
    device: str = "cpu",
    *,
    threads: int = 1,
    **options: Any,
) -> Iterator[Flow]:
    """Yield the flow from each frame to the next, reading a few frames ahead.

    Memory does not grow with the number of frames: the frames that were read ahead are in memory,
    and what the method needs for the pairs that it computes together. For each backend of tvl1:

        numba, the default on a CPU   80 bytes per pixel and thread, and `threads` + 2 frames and
                                      fields (8K frames, 7680x4320, one thread: 3.0 GiB)
        torch                         about 500 bytes per pixel; on a CPU 2**16 pixels of frames at
                                      once, at least one pair (8K frames: 15 GiB)
        triton, the default on CUDA   about 100 bytes per pixel on the device, for as many pairs as
                                      its free memory holds (at most 2**25 pixels, 1024 pairs)

    Args:
        frames: uint8 (H, W), all of one size. One frame, or none, has no flow.
        method: a name in METHODS.
        device: a name for `find_devices`; the first of several devices is used.
        threads: how many may work on a CPU, from 1; the flow does not depend on it.
        options: the method's parameters. tvl1 has those of OpenCV's `DualTVL1OpticalFlow` (tau,
            lambda_, theta, num_scales, scale_step, num_warps, epsilon, inner_iterations,
            outer_iterations), and `backend`: "numba", "triton" or "torch".

    Returns:
        Iterator of float32 (H, W, 2), pixels per frame, x then y, +x right, +y down.

    Raises:
        UnknownNameError: METHODS has no such method, or tvl1 no such backend.
        KineticsError: this machine has no such device, or the method cannot use it.
        ValueError: an option or the number of threads is wrong; or, while the iterator is read, a
            frame has another type or size.
    """
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be a whole number above 0, not {threads!r}")
    chosen = make_method(method, **options)
    return chosen.flows(_checked(frames), find_devices(device, chosen)[0], threads)


def compute(
    frames: Gray,
    method: str = "tvl1",
    device: str = "cpu",
    *,
    threads: int = 1,
    **options: Any,
) -> Flow:
    """Return the flow of all frames at once.

    Args:
        frames: uint8 (T, H, W), T from 1.
        method: a name in METHODS.
        device: a name for `find_devices`; the first of several devices is used.
        threads: how many may work on a CPU, from 1; the flow does not depend on it.
        options: the method's parameters, as `stream` takes them.

    Returns:
        float32 (T-1, H, W, 2), pixels per frame, x then y, +x right, +y down.

    Raises:
        UnknownNameError: METHODS has no such method, or tvl1 no such backend.
        KineticsError: this machine has no such device, or the method cannot use it.
        ValueError: `frames` are not these, or an option is wrong.
    """
    import numpy as np

    if frames.ndim != 3 or not len(frames):
        raise ValueError(f"grey frames (T, H, W) are needed, T from 1, not {frames.shape}")
    fields = list(stream(frames, method, device, threads=threads, **options))
    return np.stack(fields) if fields else np.zeros((0, *frames.shape[1:], 2), np.float32)


def _checked(frames: Iterable[Gray]) -> Iterator[Gray]:
    size = None
    for number, frame in enumerate(frames):
        if frame.ndim != 2 or frame.dtype != "uint8" or not frame.size:
            raise ValueError(f"frame {number} is {frame.dtype} {frame.shape}, not uint8 (H, W)")
        size = size or frame.shape
        if frame.shape != size:
            raise ValueError(f"frame {number} is {frame.shape}, the first one is {size}")
        yield frame


def quantise(flow: Flow, *, bound: float = BOUND_PX) -> Codes:
    """Quantise flow to bytes: floor(255 (v + bound) / (2 bound)), values beyond the bound clamped.

    Args:
        flow: float32 (..., 2), pixels per frame.
        bound: pixels, above 0. A step of the code is 2 bound / 255 pixels.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: `flow` contains NaN, or `bound` is not above 0.

    Source: the preprocessing published with I3D (truncate to [-20, 20], 8 bits).
    """
    if not bound > 0:
        raise ValueError(f"the bound must be above 0, not {bound}")
    if (flow != flow).any():
        raise ValueError("flow contains NaN")
    return ((flow.clip(-bound, bound) + bound) * (255 / (2 * bound))).astype("uint8")


def dequantise(codes: Codes, *, bound: float = BOUND_PX) -> Flow:
    """Return the flow that codes stand for: (code / 255 - 0.5) 2 bound.

    Args:
        codes: uint8 (..., 2), as `quantise` returns them.
        bound: pixels, the one that they were quantised with.

    Returns:
        float32 of the same shape, pixels per frame.
    """
    flow: Flow = codes.astype("float32")
    flow /= 255
    flow -= 0.5
    flow *= 2 * bound
    return flow


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRecipe:
    """Every parameter that changes a stored flow value, apart from the frames.

    Attributes:
        method: a name in METHODS.
        parameters: the method's, as its `as_json` returns them.
        bound: pixels; values beyond it are clamped.
        codec: a name in CODECS.
        codec_parameters: the codec's, as its `as_json` returns them; by default those of the
            installed version.
        grey: how grey values come from RGB.
    """

    method: str
    parameters: Mapping[str, Any]
    bound: Bound = BOUND_PX
    codec: str = DEFAULT_CODEC
    codec_parameters: Mapping[str, Any] = field(default_factory=dict)
    grey: str = "opencv-rgb2gray"

    def __post_init__(self) -> None:
        if not self.codec_parameters:
            here = lookup("flow codec", self.codec, CODECS).as_json()
            object.__setattr__(self, "codec_parameters", here)  # the dataclass is frozen

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> FlowRecipe:
        """The recipe of which `as_json` gave these values.

        Raises:
            ValueError: a field is missing, unknown, or is not what it may be.
            UnknownNameError: so is the codec, and its parameters are missing.
        """
        return parse_exactly(values, FlowRecipe)

    def as_json(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values."""
        return {
            "method": self.method,
            "parameters": dict(self.parameters),
            "bound": self.bound,
            "codec": self.codec,
            "codec_parameters": dict(self.codec_parameters),
            "grey": self.grey,
        }

    @property
    def hash(self) -> str:
        """SHA-256 of the recipe, in hex."""
        return digest(self.as_json())
