"""Optical flow of grey frames: the methods by name, the recipe, and flow stored as bytes.

Flow is float32 (H, W, 2), pixels from frame t to t+1, x then y, +x right, +y down: T frames have
T-1 fields. NumPy is only named here, in types: command lines read METHODS before anything heavy is
imported.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from kinetics_tools.core.errors import KineticsError, lookup
from kinetics_tools.core.files import digest
from kinetics_tools.flow.codecs import CODECS, DEFAULT_CODEC

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Gray = npt.NDArray[np.uint8]
    Flow = npt.NDArray[np.float32]
    Codes = npt.NDArray[np.uint8]

BOUND_PX = 20.0


class FlowMethod(Protocol):
    """A way to compute flow, with its dials set."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Kinds of device that it runs on: "cpu", "cuda"."""

    def as_json(self) -> dict[str, Any]:
        """Everything that decides the flow, as plain JSON values."""

    def prepare(self, device: str) -> None:
        """Do what is done once on a machine, so that processes started later need not."""

    def flows(self, frames: "Iterator[Gray]", device: str, threads: int) -> "Iterator[Flow]":
        """Yield the flow from each frame to the next; the frames are of one size.

        How many `threads` may work on a CPU changes nothing but the time.
        """


def _tvl1(**options: Any) -> FlowMethod:
    from kinetics_tools.flow.tvl1.method import TVL1

    return TVL1(**options)


def _opencv_tvl1(**options: Any) -> FlowMethod:
    from kinetics_tools.media.opencv import OpenCVTVL1

    return OpenCVTVL1(**options)


METHODS: Mapping[str, Callable[..., FlowMethod]] = {"tvl1": _tvl1, "opencv-tvl1": _opencv_tvl1}


def make_method(name: str, **options: Any) -> FlowMethod:
    """Return the method `name` with the dials `options`.

    Raises:
        UnknownNameError: no such method.
        ValueError: it has no such dial, or the value cannot be.
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
        name: "cpu"; "cuda", all GPUs; "cuda:0,1", some; "auto", all GPUs or else the CPU.
        method: what is to run there.

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
        raise KineticsError(f"device {name!r} is none of auto, cpu, cuda, cuda:0, cuda:0,1")
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
            f"no device {name!r} here; there is {', '.join(there)}; take {there[-1]!r}"
        )
    return wanted


def stream(
    frames: "Iterable[Gray]",
    method: str = "tvl1",
    device: str = "cpu",
    *,
    threads: int = 1,
    **options: Any,
) -> "Iterator[Flow]":
    """Yield the flow from each frame to the next, reading a few frames ahead.

    Memory does not grow with the number of frames: held are the frames read ahead and what the
    method needs for the pairs that it computes together, nothing of what was yielded before. By
    the bodies of tvl1 this is:

        numba, the default on a CPU   80 bytes a pixel for each thread, and `threads` + 2 frames
                                      and fields (8K frames, 7680x4320, one thread: 3.0 GiB)
        torch                         some 500 bytes a pixel; on a CPU 2**16 pixels of frames at
                                      once, one pair at least (8K frames: 15 GiB)
        triton, the default on CUDA   some 100 bytes a pixel on the device, of as many pairs as
                                      its free memory holds, up to the bounds that `tvl1.cuda` says

    Args:
        frames: uint8 (H, W), all of one size. One frame, or none, has no flow.
        method: a name in METHODS.
        device: as in `find_devices`; the first of several.
        threads: that may work on a CPU; the flow does not depend on it.
        options: the method's dials, for tvl1 those of `tvl1.TVL1`.

    Returns:
        Iterator of float32 (H, W, 2), pixels per frame, x then y, +x right, +y down.

    Raises:
        UnknownNameError: no such method.
        KineticsError: no such device here.
        ValueError: no such dial, or no such number of threads; or, while reading, a frame that is
            not as said above.
    """
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be a whole number above 0, not {threads!r}")
    chosen = make_method(method, **options)
    return chosen.flows(_checked(frames), find_devices(device, chosen)[0], threads)


def compute(
    frames: "Gray",
    method: str = "tvl1",
    device: str = "cpu",
    *,
    threads: int = 1,
    **options: Any,
) -> "Flow":
    """Return the flow of uint8 frames (T, H, W), T from 1: float32 (T-1, H, W, 2). See `stream`."""
    import numpy as np

    if frames.ndim != 3 or not len(frames):
        raise ValueError(f"grey frames (T, H, W) are needed, T from 1, not {frames.shape}")
    fields = list(stream(frames, method, device, threads=threads, **options))
    return np.stack(fields) if fields else np.zeros((0, *frames.shape[1:], 2), np.float32)


def _checked(frames: "Iterable[Gray]") -> "Iterator[Gray]":
    size = None
    for number, frame in enumerate(frames):
        if frame.ndim != 2 or frame.dtype != "uint8" or not frame.size:
            raise ValueError(f"frame {number} is {frame.dtype} {frame.shape}, not uint8 (H, W)")
        size = size or frame.shape
        if frame.shape != size:
            raise ValueError(f"frame {number} is {frame.shape}, the first one is {size}")
        yield frame


def quantise(flow: "Flow", *, bound: float = BOUND_PX) -> "Codes":
    """Store flow in bytes: floor(255 (v + bound) / (2 bound)), values beyond the bound clamped.

    Args:
        flow: float32 (..., 2), pixels per frame.
        bound: pixels, above 0. A step of the code is 2 bound / 255 pixels.

    Returns:
        uint8, the same shape.

    Raises:
        ValueError: `flow` holds NaN, or `bound` is not above 0.

    Source: the preprocessing published with I3D (truncate to [-20, 20], 8 bits).
    """
    if not bound > 0:
        raise ValueError(f"the bound must be above 0, not {bound}")
    if (flow != flow).any():
        raise ValueError("flow holds NaN")
    return ((flow.clip(-bound, bound) + bound) * (255 / (2 * bound))).astype("uint8")


def dequantise(codes: "Codes", *, bound: float = BOUND_PX) -> "Flow":
    """Read what `quantise` stored: float32 (code / 255 - 0.5) 2 bound, pixels per frame."""
    flow: Flow = codes.astype("float32")
    flow /= 255
    flow -= 0.5
    flow *= 2 * bound
    return flow


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRecipe:
    """Every parameter that changes a stored flow value, besides the frames themselves.

    Attributes:
        method: a name in METHODS.
        parameters: the method's, as its `as_json` gives them.
        bound: pixels; values beyond it are clamped.
        codec: a name in `codecs.CODECS`.
        codec_parameters: the codec's, as its `as_json` gives them; left out, those of this machine.
        grey: how grey values come from RGB.
    """

    method: str
    parameters: Mapping[str, Any]
    bound: float = BOUND_PX
    codec: str = DEFAULT_CODEC
    codec_parameters: Mapping[str, Any] = field(default_factory=dict)
    grey: str = "opencv-rgb2gray"

    def __post_init__(self) -> None:
        if not self.codec_parameters:
            here = lookup("flow codec", self.codec, CODECS).as_json()
            object.__setattr__(self, "codec_parameters", here)  # the dataclass is frozen

    def as_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
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
        """SHA-256, in hex, of the recipe."""
        return digest(self.as_json())
