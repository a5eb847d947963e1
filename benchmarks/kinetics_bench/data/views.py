"""Views: what a network sees of a sample. Pure functions of numbers, then resizing and crops.

Shapes: T frames, H height, W width, C channels; (h, w) after the crop. A clip of T frames has T-1
flow fields; field t is the flow from frame t to frame t+1. A view of both streams takes its indices
from the T-1 fields: rgb and flow then show the same moments, also where a short clip is looped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from kinetics_bench.archs.registry import Sampling
from kinetics_bench.protocols import Extent, Extents

IndexArray = npt.NDArray[np.int64]


class Framing(Protocol):
    """What of a clip a network sees; a Recipe says it among other things."""

    @property
    def streams(self) -> tuple[str, ...]:
        """The network's inputs, in order: `rgb`, `flow` or both."""

    @property
    def sampling(self) -> Mapping[str, Sampling]:
        """Stream -> number and stride of the frames or fields of a view."""

    @property
    def short_side(self) -> int:
        """The shorter side of the frame after resizing, pixels."""

    @property
    def crop_px(self) -> int:
        """Height and width of the crop, pixels."""

    @property
    def flip(self) -> float:
        """Probability of a horizontal flip in training."""


@dataclass(frozen=True, slots=True)
class View:
    """Frames, crop and flip of one clip.

    Attributes:
        indices: stream (rgb, flow) -> numbers of its frames or fields, int64 (T,).
        top, left: place of the crop, from 0 (at the top or left edge) to 1 (bottom or right).
        flip: whether the clip is flipped horizontally.
        along: place of the crop along the longer side, in the middle of the other, in place of
            `top` and `left`.
        is_cropped: else the whole frame is taken.
    """

    indices: Mapping[str, IndexArray]
    top: float = 0.5
    left: float = 0.5
    flip: bool = False
    along: float | None = None
    is_cropped: bool = True

    @property
    def is_looped(self) -> bool:
        """Whether the clip was too short: more is repeated than the one field of `_in_steps`."""
        for each in self.indices.values():
            restarts = np.flatnonzero(np.diff(each) <= 0)  # the clip starts over after these
            if len(restarts) and len(each) - 1 - restarts[0] > 1:
                return True
        return False


def seeded_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """A generator seeded by these three alone, so not by workers, order or a resumed run."""
    name = f"{seed}/{epoch}/{key}".encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:8], "big"))


def looped(start: int, num: int, *, stride: int, length: int) -> IndexArray:
    """`num` frame numbers from `start` on, every `stride`-th, of a clip of `length` that loops."""
    indices: IndexArray = (start + stride * np.arange(num, dtype=np.int64)) % length
    return indices


def train_view(num_frames: int, framing: Framing, rng: np.random.Generator) -> View:
    """A random view of a clip of `num_frames` RGB frames: start, crop and flip are drawn.

    The start leaves room for all frames of the view. A clip that is too short is looped, and the
    start is any of its frames.
    """
    length, room = _room(num_frames, framing)
    start = int(rng.integers(room + 1 if room >= 0 else length))
    top, left, flip = rng.random(3)
    indices = _indices(framing, start, length)
    return View(indices, float(top), float(left), bool(flip < framing.flip))


def middle_view(num_frames: int, framing: Framing) -> View:
    """The middle of a clip of `num_frames` RGB frames: centre crop, no flip.

    It has as many frames as a training view. A clip that is too short is looped from its start.
    """
    length, room = _room(num_frames, framing)
    return View(_indices(framing, max(room, 0) // 2, length))


def several_views(num_frames: int, framing: Framing, clips: int, crops: int) -> list[View]:
    """Views uniform in time, of each several crops along the longer side, from edge to edge.

    They have as many frames as a training view. Views that would start at the same frame are one: a
    short clip has fewer, and none counts twice. One clip is the middle one, and so is one crop.

    Args:
        num_frames: RGB frames of the clip.
        framing: gives sampling; the crops are as large as it says.
        clips: how many in time.
        crops: how many of each.
    """
    length, room = _room(num_frames, framing)
    room = max(room, 0)
    starts = [room // 2] if clips == 1 else [round(room * n / (clips - 1)) for n in range(clips)]
    places = [0.5] if crops == 1 else [n / (crops - 1) for n in range(crops)]
    return [
        View(_indices(framing, start, length), along=place)
        for start in dict.fromkeys(starts)
        for place in places
    ]


def all_of(views: Sequence[View]) -> View:
    """The whole frames of all that views see, in their order; none is there twice."""
    streams = views[0].indices
    numbers = {s: np.unique(np.concatenate([v.indices[s] for v in views])) for s in streams}
    return View(numbers, is_cropped=False)


def _room(num_frames: int, framing: Framing) -> tuple[int, int]:
    """Frames, or fields, of a clip, and how many of them a view leaves; below 0: it is looped."""
    length = max(num_frames - 1, 1) if "flow" in framing.sampling else num_frames
    return length, length - max((s.num - 1) * s.stride + 1 for s in framing.sampling.values())


def _indices(framing: Framing, start: int, length: int) -> dict[str, IndexArray]:
    return {
        stream: looped(start, each.num, stride=each.stride, length=length)
        for stream, each in framing.sampling.items()
    }


def eval_view(num_frames: int, extents: Extents) -> View:
    """The evaluation view of a clip of `num_frames` RGB frames: centre crop, no flip.

    Args:
        num_frames: of the clip; it has one flow field less.
        extents: stream -> how many frames or fields of which stride.
    """
    length = max(num_frames - 1, 1) if "flow" in extents else num_frames
    in_steps = any(extent.multiple > 1 for extent in extents.values())
    indices = {}
    for stream, extent in extents.items():
        num = extent.num
        end = length
        if num is not None:
            end = min(length, num * extent.stride)
        elif in_steps:
            num = _in_steps(num_frames, extent)
        else:
            num = max(-(-length // extent.stride), extent.least)
        indices[stream] = looped(0, num, stride=extent.stride, length=end)
    return View(indices)


def whole_view(num_frames: int, extents: Extents) -> View:
    """All of a clip of `num_frames` RGB frames, nothing looped; centre crop, no flip.

    A network whose time steps have several frames or fields gets whole steps: an incomplete last
    step is left out, in both streams, so that they have the same steps.
    """
    length = num_frames - 1 if "flow" in extents else num_frames
    in_steps = any(extent.multiple > 1 for extent in extents.values())
    indices = {}
    for stream, extent in extents.items():
        step = extent.multiple * extent.stride if in_steps else 1
        indices[stream] = np.arange(0, length // step * step, extent.stride, dtype=np.int64)
    return View(indices)


def _in_steps(num_frames: int, extent: Extent) -> int:
    """Number of frames or fields of all whole time steps of a clip, equal for both streams.

    Steps are counted in frames, as in the paper: 250 frames give 25 stacks of ten fields, although
    there are 249 fields. The last field is then the first one, looped.
    """
    num_steps = num_frames // (extent.multiple * extent.stride)
    return extent.multiple * max(num_steps, -(-extent.least // extent.multiple))


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width after resizing the shorter side to `short_side`, aspect ratio kept."""
    scale = short_side / min(height, width)
    return max(round(height * scale), short_side), max(round(width * scale), short_side)


def resize_rgb(frames: npt.NDArray[np.uint8], short_side: int) -> npt.NDArray[np.uint8]:
    """Resize uint8 (T, H, W, 3) to the short side: bilinear, antialiased where it shrinks."""
    height, width = frames.shape[1:3]
    size = resized_size(height, width, short_side)
    if size == (height, width):
        return frames
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    return np.asarray(_interpolated(images, size).permute(0, 2, 3, 1))


def resize_codes(codes: npt.NDArray[np.uint8], short_side: int) -> npt.NDArray[np.uint8]:
    """Resize codes of flow, uint8 (T, H, W, 2), as `resize_rgb`, each to its nearest code.

    A code between two stands for the vector between theirs. That vectors shrink with the picture is
    up to the caller.
    """
    height, width = codes.shape[1:3]
    size = resized_size(height, width, short_side)
    if size == (height, width):
        return codes
    resized = np.empty((len(codes), 2, *size), np.uint8)
    for number, field in enumerate(codes):  # one by one: floats of all would be much memory
        image = torch.from_numpy(field).permute(2, 0, 1)[None].float()
        resized[number] = _interpolated(image, size)[0].round()
    return resized.transpose(0, 2, 3, 1)


def _interpolated(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (N, C, H, W) of another size; of uint8 they are rounded in between."""
    shrinks = min(size) < min(images.shape[2:])
    return functional.interpolate(images, size=size, mode="bilinear", antialias=shrinks)


def crop_of(view: View, height: int, width: int, crop_px: int) -> tuple[slice, slice]:
    """The rows and columns of a view's crop in pictures of this size."""
    if not view.is_cropped:
        return slice(0, height), slice(0, width)
    shares = (view.top, view.left)
    if view.along is not None:
        shares = (view.along, 0.5) if height > width else (0.5, view.along)
    top, left = (
        min(int(share * (size - crop_px + 1)), size - crop_px)
        for share, size in zip(shares, (height, width), strict=True)
    )
    return slice(top, top + crop_px), slice(left, left + crop_px)
