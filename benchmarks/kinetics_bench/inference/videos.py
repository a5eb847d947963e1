"""Any video as a clip of a network's training data: the same rate and size, the same flow."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from kinetics_bench.device import Machine
from kinetics_bench.training.checkpoint import Checkpoint
from kinetics_tools.core.errors import EvaluationError, MediaError, Reason
from kinetics_tools.core.files import scratch_folder
from kinetics_tools.flow import methods
from kinetics_tools.flow.methods import FlowRecipe
from kinetics_tools.media import decode, encode, opencv
from kinetics_tools.media.clips import conform, cut
from kinetics_tools.media.decode import Window
from kinetics_tools.media.recipe import ClipRecipe

logger = logging.getLogger(__name__)
DEFAULT_S: Final = 10.0  # the length of a Kinetics clip: networks were not trained on longer ones


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a video.

    Attributes:
        start_s: seconds from the video's start.
        duration_s: seconds; None: the default of the command.
    """

    start_s: float = 0.0
    duration_s: float | None = None


def require_finite(video: Path, values: npt.NDArray[np.float32], checkpoint: Checkpoint) -> None:
    """Raise EvaluationError if the output of a network for `video` is not finite."""
    if not np.isfinite(values).all():
        raise EvaluationError(
            f"{video}: {checkpoint.arch} {checkpoint.stream} gives values that are not finite; "
            "its weights are not usable: give other weights, or train again"
        )


class VideoClip:
    """Frames and flow of a video, as in the shards of the training; read like a sample.

    Attributes:
        frames: uint8 (T, H, W, 3).
        start_s: time of the first frame, in seconds from the video's start.
    """

    def __init__(
        self,
        frames: npt.NDArray[np.uint8],
        recipe: FlowRecipe | None,
        device: str,
        *,
        folder: Path | None = None,
        start_s: float = 0.0,
    ) -> None:
        """Keep the frames; flow is computed at the first call of `flow`.

        Args:
            frames: uint8 (T, H, W, 3).
            recipe: of the flow; None if `flow` is not called.
            device: that computes the flow.
            folder: for the flow; None: in memory.
            start_s: see above.
        """
        self.frames = frames
        self.start_s = start_s
        self._recipe = recipe
        self._device = device
        self._folder = folder
        self._codes: npt.NDArray[np.uint8] | None = None

    @property
    def bound(self) -> float:
        """Flow is clamped to +- so many pixels per frame, as in shards; 0 without flow."""
        return 0.0 if self._recipe is None else self._recipe.bound

    def rgb(
        self, indices: Sequence[int] | None = None, window: Window | None = None
    ) -> npt.NDArray[np.uint8]:
        """Frames by number, or all, or a part of each: uint8 (T, H, W, 3)."""
        return _chosen(self.frames, indices, window)

    def codes(
        self, indices: Sequence[int] | None = None, window: Window | None = None
    ) -> npt.NDArray[np.uint8]:
        """Codes of the fields, in the same way: uint8 (T-1, H, W, 2), as in shards."""
        assert self._recipe is not None, "the network has no flow recipe"
        if self._codes is None:
            self._codes = self._computed(self._recipe)
        return _chosen(self._codes, indices, window)

    def _computed(self, recipe: FlowRecipe) -> npt.NDArray[np.uint8]:
        method = methods.make_method(recipe.method)
        if method.as_json() != recipe.parameters:
            logger.warning("this version computes flow differently from the version of the shards")
        grey = (opencv.gray(np.asarray(frame)) for frame in self.frames)
        fields = methods.stream(grey, recipe.method, self._device)
        shape = (len(self.frames) - 1, *self.frames.shape[1:3], 2)
        codes = _array(self._folder, "flow.npy", shape)
        for number, field in enumerate(fields):
            codes[number] = methods.quantise(field, bound=recipe.bound)
        return codes


def _chosen(
    pictures: npt.NDArray[np.uint8], indices: Sequence[int] | None, window: Window | None
) -> npt.NDArray[np.uint8]:
    rows, columns = (slice(None), slice(None)) if window is None else window(*pictures.shape[1:3])
    numbers = slice(None) if indices is None else np.asarray(indices, np.int64)
    return np.asarray(pictures[:, rows, columns][numbers])


@contextmanager
def reading(video: Path) -> Iterator[None]:
    """In this block an OSError becomes a MediaError of `video`: only this video is lost.

    The block must not touch other files.
    """
    try:
        decode.require_regular_file(video)
        yield
    except OSError as error:
        raise MediaError(video, f"cannot be read: {error.strerror}") from error


class Videos:
    """Makes clips of videos, as those of a network's training data, in constant memory."""

    def __init__(self, checkpoint: Checkpoint, machine: Machine, scratch: Path) -> None:
        """Use the recipes of the checkpoint's data; `scratch`: folder for scratch files.

        Frames and flow of a video are stored there while it is read: 24 and 16 GB per hour of video
        at a height of 256 pixels.
        """
        self.scratch = scratch
        self.binary = encode.find_ffmpeg()
        self.recipe = _clip_recipe(checkpoint)
        self._flow = checkpoint.data.flow_recipe
        # Not every method runs on a GPU; `auto` uses one if method and machine can.
        self._device = "cpu" if machine.device.type == "cpu" else "auto"

    @contextmanager
    def clip(self, video: Path, span: Span, *, whole: bool = False) -> Iterator[VideoClip]:
        """The clip of a part of `video`. It is on disk, and is removed after the block.

        Args:
            video: any video file.
            span: the part. Without a duration: 10 s, or to the video's end if that comes first.
            whole: without a duration, to the video's end.

        Raises:
            MediaError: the video is damaged, missing or not readable, ends before the span does, or
                has fewer than two frames in it.
        """
        with reading(video):
            video.open("rb").close()
        with scratch_folder(self.scratch) as folder:
            path = folder / "clip.mp4"
            start_s, num_frames = self._write(video, path, span, whole=whole)
            if num_frames < 2:
                raise MediaError(
                    video, f"has 1 frame from {span.start_s:g} s on; at least 2 are needed"
                )
            yield VideoClip(
                _frames(path, num_frames), self._flow, self._device, folder=folder, start_s=start_s
            )

    def _write(self, video: Path, clip: Path, span: Span, *, whole: bool) -> tuple[float, int]:
        """Write the clip of the span; return its first frame's time and its number of frames."""
        start_s = Fraction(span.start_s).limit_denominator(1000)
        duration_s = DEFAULT_S if span.duration_s is None else span.duration_s
        length_s = Fraction(duration_s).limit_denominator(1000)
        if span.duration_s is not None or not whole:
            try:
                done = cut(
                    video,
                    clip,
                    start_s=start_s,
                    end_s=start_s + length_s,
                    recipe=self.recipe,
                    binary=self.binary,
                )
            except MediaError as error:
                if span.duration_s is not None or error.reason != Reason.TOO_SHORT:
                    raise
            else:
                return float(start_s), done.num_frames
        # To the video's end, from the first frame at or after the start.
        first = math.ceil(start_s * self.recipe.fps)
        done = conform(video, clip, recipe=self.recipe, binary=self.binary, start=first)
        return first / self.recipe.fps, done.num_frames


def _frames(clip: Path, num_frames: int) -> npt.NDArray[np.uint8]:
    """All frames of a clip, uint8 (T, H, W, 3), in a file next to it."""
    video = decode.probe(clip)
    frames = _array(clip.parent, "frames.npy", (num_frames, video.height, video.width, 3))
    for number, frame in enumerate(decode.frames(clip)):
        frames[number] = frame
    return frames


def _array(folder: Path | None, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """An array of bytes: in a file of a folder, or in memory."""
    if folder is None:
        return np.zeros(shape, np.uint8)
    array: npt.NDArray[np.uint8] = np.lib.format.open_memmap(
        folder / name, mode="w+", dtype=np.uint8, shape=shape
    )
    return array


def _clip_recipe(checkpoint: Checkpoint) -> ClipRecipe:
    recipe = checkpoint.data.clip_recipe
    if recipe.short_side is None:
        # The clips of the training had their own size; the network saw them resized to this one.
        return replace(recipe, short_side=checkpoint.recipe.short_side)
    return recipe
