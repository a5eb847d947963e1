"""Features of any video files: what a trained network's last layer sees, a row a time step.

NAME.npy    float32 (T', F), one row a time step
NAME.json   the time of each row, the network, and everything by which it was made;
            of a video that failed: why
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from kinetics_bench.archs.network import Network
from kinetics_bench.data.loader import Reader
from kinetics_bench.data.views import View, whole_view
from kinetics_bench.device import Machine
from kinetics_bench.evaluation.evaluate import extents_of
from kinetics_bench.inference.videos import Span, VideoClip, Videos, reading, refuse_not_finite
from kinetics_bench.protocols import PROTOCOLS
from kinetics_bench.recipes import Recipe
from kinetics_bench.training.checkpoint import Checkpoint
from kinetics_bench.weights.files import Weights
from kinetics_bench.weights.naming import COUNT
from kinetics_tools.core.errors import EvaluationError, KineticsError, MediaError
from kinetics_tools.core.files import digest, file_digest, publish, read_json, write_json
from kinetics_tools.core.keys import file_keys

AT_ONCE: Final = 256  # frames or fields whose features are made in one pass, besides their context
logger = logging.getLogger(__name__)
Rows = npt.NDArray[np.float32]


def keys_of(videos: Sequence[Path]) -> dict[Path, str]:
    """The name of each video's files: its stem where that is a key and no other video has it."""
    keys = file_keys(dict.fromkeys(PurePosixPath(video) for video in videos))
    return {Path(path): key for path, key in keys.items()}


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a view: frames of each of its clips, and which of their time steps count."""

    frames: tuple[slice, ...]
    steps: slice


def pieces(net: Network, num_frames: Sequence[int]) -> Iterator[Piece]:
    """Cut a view into pieces whose features, side by side, are those of the whole view.

    A piece has around it what its steps depend on. SAME padding goes by the length of a clip, so
    every piece leaves the rest that the whole clip leaves when it is cut into periods.

    Args:
        net: in evaluation mode. Of one whose steps depend on all before there is one piece.
        num_frames: of each clip of the view.
    """
    num_steps = len(net.step_frames(*num_frames))
    if net.receptive_steps is None:
        yield Piece(tuple(slice(0, num) for num in num_frames), slice(0, num_steps))
        return
    at_once = max(AT_ONCE // net.temporal_strides[-1], 1)
    num_periods = num_frames[-1] // net.temporal_strides[-1]
    for first in range(0, num_steps, at_once):
        last = min(first + at_once, num_steps)
        begin = max(first - net.receptive_steps, 0)
        end = min(last + net.receptive_steps, num_periods)
        frames = tuple(
            slice(period * begin, period * end + num % period)
            for period, num in zip(net.temporal_strides, num_frames, strict=True)
        )
        yield Piece(frames, slice(first - begin, last - begin))


class _Model:
    """One trained network, ready for videos."""

    def __init__(self, checkpoint: Checkpoint, machine: Machine) -> None:
        self.checkpoint = checkpoint
        self.machine = machine
        self.recipe = Recipe.from_json(checkpoint.recipe)
        self.reader = Reader(self.recipe, checkpoint.data["bound"])
        self.net = checkpoint.network()
        lasts = tuple(f"{layer}." for layer in self.net.last_layers)
        state = {
            name: tensor
            for name, tensor in checkpoint.net.items()
            if not name.endswith(COUNT) and not name.startswith(lasts)
        }
        self.sha256 = Weights(state=state, source=checkpoint.stream).sha256
        machine.place(self.net)

    def made_by(self) -> dict[str, Any]:
        """What decides the features of a clip; of the weights, all but the last layer's."""
        recipes = self.checkpoint.data["recipes"]
        return {
            "arch": self.checkpoint.arch,
            "stream": self.checkpoint.stream,
            "weights_sha256": self.sha256,
            "recipes": {
                "training": self.recipe.hash,
                **{name: recipe["hash"] for name, recipe in recipes.items()},
            },
            "sampling": self.checkpoint.recipe["sampling"],
            "short_side": self.recipe.short_side,
            "crop_px": self.recipe.crop_px,
            "precision": self.machine.precision,
        }

    def view(self, video: Path, clip: VideoClip) -> View:
        """All of a clip at the training's stride, not looped.

        A last step that lacks a frame or a field is left out: 250 frames have 249 fields, of which
        a network that takes ten at once has 24 steps.

        Raises:
            MediaError: it is too short for one time step.
        """
        extents = extents_of(self.checkpoint, PROTOCOLS["whole"])
        num_frames = len(clip.frames)
        strides = {stream: extent.stride for stream, extent in extents.items()}
        least = max(
            need.multiple * strides[need.stream]
            if need.multiple > 1
            else (need.min_frames - 1) * strides[need.stream] + 1
            for need in self.net.input_specs
        ) + ("flow" in extents)
        if num_frames < least:
            raise MediaError(
                video,
                f"has {num_frames} frames at 25 a second from {clip.start_s:g} s on; "
                f"{self.net.title} needs {least}",
            )
        return whole_view(num_frames, extents)

    def features(self, clip: VideoClip, view: View) -> Rows:
        """The features of a view of a clip, piece by piece."""
        found = []
        for piece in pieces(self.net, self._lengths(view)):
            cut = zip(self.reader.streams, piece.frames, strict=True)
            part = View({stream: view.indices[stream][frames] for stream, frames in cut})
            clips = [each[None] for each in self.reader.clips(clip, part)]
            with torch.inference_mode(), self.machine.autocast():
                values = self.net.features(*self.machine.place_clips(clips))
            found.append(values[0, :, piece.steps].T.float().cpu().numpy())
        return np.concatenate(found)

    def times(self, clip: VideoClip, view: View, fps: int) -> dict[str, list[float]]:
        """Start and end of each row, seconds from the video's start."""
        stride = self.recipe.sampling[self.reader.streams[-1]].stride
        end_s = len(clip.frames) / fps
        steps = self.net.step_frames(*self._lengths(view))
        return {
            "start_s": [round(clip.start_s + at * stride / fps, 6) for at, _ in steps],
            "end_s": [round(clip.start_s + min(at * stride / fps, end_s), 6) for _, at in steps],
        }

    def _lengths(self, view: View) -> list[int]:
        return [len(view.indices[stream]) for stream in self.reader.streams]


class Extractor:
    """Networks which make features of videos."""

    def __init__(self, checkpoints: Sequence[Checkpoint], machine: Machine, scratch: Path) -> None:
        """Ready the networks; scratch files go into the folder `scratch`."""
        self.models = [_Model(each, machine) for each in checkpoints]
        self.videos = Videos(checkpoints[-1], machine, scratch)

    def write(self, video: Path, span: Span, name: Path, *, force: bool = False) -> list[Path]:
        """Write a video's features, a pair of files for each network; return the arrays' paths.

        What is there already, of the same stretch by the same networks, is reused; of a video that
        changed since then it is made anew.

        Args:
            video: any video file.
            span: the stretch of it; without a duration to its end.
            name: path of the files without their suffix. Of several networks each adds its stream.
            force: make anew what is there, whatever it is of.

        Raises:
            MediaError: the video is damaged, too short or cannot be read, as its json says too.
            EvaluationError: the files of that name are of another video, stretch or network; or
                the features are not finite, which the json says too.
        """
        files = [_Files.of(name, model, alone=len(self.models) == 1) for model in self.models]
        if not force:
            for each in files:
                each.refuse_other(video, span)
        # Where the video is not there any more, what was made of it stays.
        todo = [each for each in files if not each.array.exists()]
        try:
            with reading(video):
                sha256 = file_digest(video)
            made_from = {"video_sha256": sha256} | _told(span)
            todo = [each for each in files if force or not each.are_by(made_from)]
            if todo:
                self._write(video, span, todo, made_from)
            else:
                logger.info("%s: reused, made already", video)
        except KineticsError as error:
            for each in todo:
                each.tell_failure(video, str(error))
            raise
        return [each.array for each in files]

    def _write(
        self, video: Path, span: Span, todo: "list[_Files]", made_from: Mapping[str, Any]
    ) -> None:
        """Write each of `todo`, and take from it what is written: a failure is none of its."""
        with self.videos.clip(video, span, whole=True) as clip:
            views = [each.model.view(video, clip) for each in todo]
            for view in views:
                each = todo[0]
                rows = each.model.features(clip, view)
                refuse_not_finite(video, rows, each.model.checkpoint)
                told: dict[str, Any] = {"frames": len(clip.frames), "fps": self.videos.recipe.fps}
                told |= each.model.times(clip, view, self.videos.recipe.fps)
                each.write(video, rows, made_from, told)
                todo.remove(each)


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of one video by one network."""

    model: _Model
    array: Path
    record: Path

    @classmethod
    def of(cls, name: Path, model: _Model, *, alone: bool) -> "_Files":
        stem = name.name if alone else f"{name.name}.{model.checkpoint.stream}"
        return cls(model, name.with_name(f"{stem}.npy"), name.with_name(f"{stem}.json"))

    def refuse_other(self, video: Path, span: Span) -> None:
        """Raise EvaluationError where they are of another video, stretch or network."""
        if not self.record.exists():
            return
        there = read_json(self.record)
        what = there.get("video")
        if what == str(video.absolute()):
            asked = _told(span) | self.model.made_by()
            other = [name for name, value in asked.items() if there.get(name) != value]
            if "error" in there or not other:
                return
            what = f"this video with another {', '.join(other)}"
        raise EvaluationError(
            f"{video}: {self.record} is of {what}; choose another --out, or give --force"
        )

    def are_by(self, made_from: Mapping[str, Any]) -> bool:
        """Whether they are there, made from this by this network as it is."""
        if not (self.record.exists() and self.array.exists()):
            return False
        identity: bool = read_json(self.record).get("identity") == self._identity(made_from)
        return identity

    def write(
        self, video: Path, rows: Rows, made_from: Mapping[str, Any], told: Mapping[str, Any]
    ) -> None:
        """Write both, the record last: where it is, the array is whole and its own."""
        self.record.unlink(missing_ok=True)
        with publish(self.array) as scratch:
            np.save(scratch, rows)
        record = {
            "video": str(video.absolute()),
            "identity": self._identity(made_from),
            "rows": rows.shape[0],
            "features": rows.shape[1],
            "sha256": file_digest(self.array),
        }
        write_json(self.record, record | dict(made_from) | self.model.made_by() | dict(told))

    def tell_failure(self, video: Path, why: str) -> None:
        """Leave a record of the failure, and no array beside it."""
        self.array.unlink(missing_ok=True)
        write_json(self.record, {"video": str(video.absolute()), "error": why})

    def _identity(self, made_from: Mapping[str, Any]) -> str:
        return digest([dict(made_from), self.model.made_by()])


def _told(span: Span) -> dict[str, Any]:
    """The stretch, as records tell it."""
    return {"from_s": span.start_s, "duration_s": span.duration_s}
