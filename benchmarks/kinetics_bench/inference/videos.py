"""Any video as a run's clips were: its frames at their rate and size, its flow by their recipe."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kinetics_bench.device import Machine
from kinetics_bench.training.checkpoint import Checkpoint
from kinetics_tools.core.errors import EvaluationError, MediaError, Reason
from kinetics_tools.core.files import scratch_folder
from kinetics_tools.flow import methods
from kinetics_tools.media import decode, encode, opencv
from kinetics_tools.media.cut import ClipRecipe, conform, cut

logger = logging.getLogger(__name__)
DEFAULT_S: Final = 10.0  # as long as a Kinetics clip: networks have not seen longer ones


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a video, seconds from its start; no duration: as far as its user goes."""

    start_s: float = 0.0
    duration_s: float | None = None


def refuse_not_finite(video: Path, values: npt.NDArray[np.float32], checkpoint: Checkpoint) -> None:
    """Raise EvaluationError where values that a network gives for `video` are not finite."""
    if not np.isfinite(values).all():
        raise EvaluationError(
            f"{video}: {checkpoint.arch} {checkpoint.stream} gives values that are not finite; "
            "its weights are of no use: name others, or train anew"
        )


class VideoClip:
    """A video's frames and flow, made as the training's shards were, for `Reader`.

    Attributes:
        frames: uint8 (T, H, W, 3).
        start_s: the time of the first one, seconds from the video's start.
    """

    def __init__(
        self,
        frames: npt.NDArray[np.uint8],
        recipe: Mapping[str, Any],
        device: str,
        *,
        folder: Path | None = None,
        start_s: float = 0.0,
    ) -> None:
        """Keep what is needed; flow is computed when it is first asked for.

        Args:
            frames: uint8 (T, H, W, 3).
            recipe: of the flow; unused where nobody asks for it.
            device: on which flow is computed.
            folder: where flow is kept; None: in memory.
            start_s: as above.
        """
        self.frames = frames
        self.start_s = start_s
        self._recipe = recipe
        self._device = device
        self._folder = folder
        self._codes: npt.NDArray[np.uint8] | None = None

    def rgb(self, indices: Sequence[int] | None = None) -> npt.NDArray[np.uint8]:
        """Frames by number, or all: uint8 (T, H, W, 3)."""
        return np.asarray(self.frames if indices is None else self.frames[list(indices)])

    def flow(self, indices: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        """Fields by number, or all: float32 (T-1, H, W, 2), as shards keep them."""
        if self._codes is None:
            self._codes = self._computed()
        codes = self._codes if indices is None else self._codes[list(indices)]
        return methods.dequantise(np.asarray(codes), bound=self._recipe["bound"])

    def _computed(self) -> npt.NDArray[np.uint8]:
        method = methods.make_method(self._recipe["method"])
        if method.as_json() != self._recipe["parameters"]:
            logger.warning("this version computes flow otherwise than the one that made the shards")
        grey = (opencv.gray(np.asarray(frame)) for frame in self.frames)
        fields = methods.stream(grey, self._recipe["method"], self._device)
        shape = (len(self.frames) - 1, *self.frames.shape[1:3], 2)
        codes = _array(self._folder, "flow.npy", shape)
        for number, field in enumerate(fields):
            codes[number] = methods.quantise(field, bound=self._recipe["bound"])
        return codes


@contextmanager
def reading(video: Path) -> Iterator[None]:
    """Make a MediaError of what keeps the file `video` from being read: it costs that video alone.

    Errors of other files have no place in the block.
    """
    try:
        decode.require_regular_file(video)
        yield
    except OSError as error:
        raise MediaError(video, f"cannot be read: {error.strerror}") from error


class Videos:
    """How videos become clips like a network's own. Memory does not grow with their length."""

    def __init__(self, checkpoint: Checkpoint, machine: Machine, scratch: Path) -> None:
        """Take the recipes of the checkpoint's data; scratch files go into the folder `scratch`.

        A video's frames and flow lie there while it is read: 24 and 16 GB an hour at 256 pixels.
        """
        self.scratch = scratch
        self.binary = encode.find_ffmpeg()
        self.recipe = _clip_recipe(checkpoint)
        self._flow = checkpoint.data["recipes"].get(f"flow-{checkpoint.data['flow']}", {})
        # Some methods have no GPU version; `auto` takes a GPU where method and machine have one.
        self._device = "cpu" if machine.device.type == "cpu" else "auto"

    @contextmanager
    def clip(self, video: Path, span: Span, *, whole: bool = False) -> Iterator[VideoClip]:
        """The clip of a stretch of `video`. It lies on disk and is gone after the block.

        Args:
            video: any video file.
            span: the stretch. Without a duration: 10 s, or to the video's end if that is sooner.
            whole: without a duration, to the video's end.

        Raises:
            MediaError: the video is damaged, not there or closed to this user, ends before the
                span does, or has less than two frames in it.
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
        """Write the span's clip: the time of its first frame, and how many frames it has."""
        start_s = Fraction(span.start_s).limit_denominator(1000)
        duration_s = DEFAULT_S if span.duration_s is None else span.duration_s
        length_s = Fraction(duration_s).limit_denominator(1000)
        ways: dict[str, Any] = {"recipe": self.recipe, "binary": self.binary}
        if span.duration_s is not None or not whole:
            try:
                done = cut(video, clip, start_s=start_s, end_s=start_s + length_s, **ways)
            except MediaError as error:
                if span.duration_s is not None or error.reason != Reason.TOO_SHORT:
                    raise
            else:
                return float(start_s), done.num_frames
        # To the video's end, from the first frame that is not before the start.
        first = math.ceil(start_s * self.recipe.fps)
        done = conform(video, clip, start=first, **ways)
        return first / self.recipe.fps, done.num_frames


def _frames(clip: Path, num_frames: int) -> npt.NDArray[np.uint8]:
    """All frames of a clip, uint8 (T, H, W, 3), in a file beside it."""
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
    data = checkpoint.data["recipes"]["rgb"]
    recipe = ClipRecipe(**{name: value for name, value in data.items() if name != "hash"})
    if recipe.short_side is None:
        # The training's clips kept their size, and the network saw them at this one.
        return replace(recipe, short_side=checkpoint.recipe["short_side"])
    return recipe
