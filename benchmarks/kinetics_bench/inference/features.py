"""Features of any video files: the input of a trained network's last layer, per time step.

NAME.npy     float32 (T', F), one row per time step
NAME.json    FeatureRecord: the time of each row, the video and the network;
             FailureRecord: why a video has no features
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import Sampling
from kinetics_bench.data.inputs import network_inputs
from kinetics_bench.data.loader import Reader
from kinetics_bench.data.views import View, whole_view
from kinetics_bench.device import Machine
from kinetics_bench.evaluation.evaluate import extents_of
from kinetics_bench.inference.videos import Span, VideoClip, Videos, reading, require_finite
from kinetics_bench.protocols import PROTOCOLS
from kinetics_bench.training.checkpoint import Checkpoint
from kinetics_bench.training.features import frozen_sha256
from kinetics_tools.core import schema
from kinetics_tools.core.errors import EvaluationError, KineticsError, MediaError, OutError
from kinetics_tools.core.files import digest, file_digest, publish, read_json, write_json
from kinetics_tools.core.keys import file_keys

AT_ONCE: Final = 256  # frames or fields per forward pass, besides those that its ends depend on
logger = logging.getLogger(__name__)
Rows = npt.NDArray[np.float32]


def keys_of(videos: Sequence[Path]) -> dict[Path, str]:
    """Name of the files of each video: its stem, if that is a key and no other video has it."""
    keys = file_keys(dict.fromkeys(PurePosixPath(video) for video in videos))
    return {Path(path): key for path, key in keys.items()}


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a view: frames of each clip, and which of the resulting time steps are used."""

    frames: tuple[slice, ...]
    steps: slice


def pieces(net: Network, num_frames: Sequence[int]) -> Iterator[Piece]:
    """Cut a view into pieces whose concatenated features are those of the whole view.

    A piece includes the frames that its time steps depend on. SAME padding depends on the length
    of a clip, so the length of each piece has the same remainder, modulo the stride, as the clip.

    Args:
        net: in evaluation mode. If its time steps depend on all earlier ones there is one piece.
        num_frames: of each clip of the view.
    """
    num_steps = len(net.step_frames(*num_frames))
    if net.receptive_steps is None:
        yield Piece(tuple(slice(0, num) for num in num_frames), slice(0, num_steps))
        return
    at_once = max(AT_ONCE // net.temporal_strides[-1], 1)
    num_strides = num_frames[-1] // net.temporal_strides[-1]
    for first in range(0, num_steps, at_once):
        last = min(first + at_once, num_steps)
        begin = max(first - net.receptive_steps, 0)
        end = min(last + net.receptive_steps, num_strides)
        frames = tuple(
            slice(stride * begin, stride * end + num % stride)
            for stride, num in zip(net.temporal_strides, num_frames, strict=True)
        )
        yield Piece(frames, slice(first - begin, last - begin))


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRecord:
    """What decides the features of a clip.

    Attributes:
        arch: a name in ARCHS.
        stream: `rgb`, `flow` or `joint`.
        weights_sha256: of all weights except the last layer's.
        recipes: hashes of the recipes of the `training` and of its shards, by stream.
        sampling: frames or fields and stride of the training, by stream.
        short_side: pixels of the resized frame's shorter side.
        crop_px: height and width of the network's input.
        precision: of the convolutions: `float32` or `bfloat16`.
    """

    arch: str
    stream: str
    weights_sha256: str
    recipes: Mapping[str, str]
    sampling: Mapping[str, Sampling]
    short_side: int
    crop_px: int
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRecord:
    """What NAME.npy holds. In NAME.json the fields of `network` stand beside the others.

    Attributes:
        video: absolute path.
        video_sha256: of the file.
        from_s: where the features begin, in seconds from the video's start.
        duration_s: seconds of the video; None: to its end.
        identity: hash of the video, the span and the network.
        rows: T', the number of time steps.
        features: F, the number of features.
        sha256: of NAME.npy.
        frames: number of frames.
        fps: of these frames.
        start_s: start of each row, in seconds from the video's start.
        end_s: end of each row, likewise.
        network: that made the features.
    """

    video: str
    video_sha256: str
    from_s: float
    duration_s: float | None
    identity: str
    rows: int
    features: int
    sha256: str
    frames: int
    fps: int
    start_s: Sequence[float]
    end_s: Sequence[float]
    network: NetworkRecord

    def write(self, path: Path) -> None:
        """Write NAME.json."""
        values = asdict(self)
        write_json(path, values | values.pop("network"))

    def differing(self, span: Span, network: NetworkRecord) -> list[str]:
        """Names of the fields that differ from those of a span and a network."""
        there = {"from_s": self.from_s, "duration_s": self.duration_s} | asdict(self.network)
        asked = {"from_s": span.start_s, "duration_s": span.duration_s} | asdict(network)
        return [name for name, value in asked.items() if there[name] != value]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRecord:
    """Why a video has no features.

    Attributes:
        video: absolute path.
        error: in one line.
    """

    video: str
    error: str


def read_record(path: Path) -> FeatureRecord | FailureRecord | None:
    """Read NAME.json; None if there is none.

    Raises:
        EvaluationError: it is not a record of this version.
    """
    if not path.exists():
        return None
    advice = "choose another --out, or give --force"
    values = read_json(path, advice)
    try:
        values = schema.parse(values, dict[str, Any])
        if "error" in values:
            return schema.parse(values, FailureRecord)
        network = schema.parse(values, NetworkRecord)
        return schema.parse({**values, "network": network}, FeatureRecord)
    except ValueError as error:
        raise EvaluationError(f"{path} is not a record of features ({error}); {advice}") from error


class _Model:
    """A trained network, prepared for videos."""

    def __init__(self, checkpoint: Checkpoint, machine: Machine) -> None:
        self.checkpoint = checkpoint
        self.machine = machine
        self.recipe = checkpoint.recipe
        self.reader = Reader(self.recipe, checkpoint.data.bound)
        self.net = checkpoint.network()
        data_recipes = checkpoint.data.recipes
        self.record = NetworkRecord(
            arch=checkpoint.arch,
            stream=checkpoint.stream,
            weights_sha256=frozen_sha256(checkpoint.net, self.net),
            recipes={
                "training": self.recipe.hash,
                **{stream: recipe.hash for stream, recipe in data_recipes.items()},
            },
            sampling=self.recipe.sampling,
            short_side=self.recipe.short_side,
            crop_px=self.recipe.crop_px,
            precision=machine.precision,
        )
        machine.place(self.net)

    def view(self, video: Path, clip: VideoClip) -> View:
        """All frames of a clip at the training's stride, not looped.

        An incomplete last step is left out: 250 frames have 249 fields, and a network that takes
        stacks of ten fields makes 24 steps of them.

        Raises:
            MediaError: the clip is too short for one time step.
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
                f"has {num_frames} frames at 25 fps from {clip.start_s:g} s on; "
                f"{self.net.title} needs {least}",
            )
        return whole_view(num_frames, extents)

    def features(self, clip: VideoClip, view: View) -> Rows:
        """Features of a view of a clip, float32 (T', F), computed piece by piece."""
        found = []
        for piece in pieces(self.net, self._lengths(view)):
            cut = zip(self.reader.streams, piece.frames, strict=True)
            part = View({stream: view.indices[stream][frames] for stream, frames in cut})
            crops = self.reader.clips(clip, part)
            with torch.inference_mode(), self.machine.autocast():
                values = self.net.features(*network_inputs(crops, self.machine.device))
            found.append(values[0, :, piece.steps].T.float().cpu().numpy())
        return np.concatenate(found)

    def times(self, clip: VideoClip, view: View, fps: int) -> tuple[list[float], list[float]]:
        """Start and end of each row, in seconds from the video's start."""
        stride = self.recipe.sampling[self.reader.streams[-1]].stride
        end_s = len(clip.frames) / fps
        steps = self.net.step_frames(*self._lengths(view))
        starts = [round(clip.start_s + first * stride / fps, 6) for first, _ in steps]
        ends = [round(clip.start_s + min(end * stride / fps, end_s), 6) for _, end in steps]
        return starts, ends

    def _lengths(self, view: View) -> list[int]:
        return [len(view.indices[stream]) for stream in self.reader.streams]


class Extractor:
    """Writes the features of videos, by one network or by several."""

    def __init__(self, checkpoints: Sequence[Checkpoint], machine: Machine, scratch: Path) -> None:
        """Prepare the networks; `scratch`: folder for scratch files."""
        self.models = [_Model(each, machine) for each in checkpoints]
        self.videos = Videos(checkpoints[-1], machine, scratch)

    def write(self, video: Path, span: Span, name: Path, *, force: bool = False) -> list[Path]:
        """Write the features of a video, two files per network; return the paths of the arrays.

        Features of the same span by the same networks are reused. If the video has changed since
        then, they are computed again.

        Args:
            video: any video file.
            span: the part of it; without a duration: to its end.
            name: path of the files without suffix. Each of several networks adds its stream.
            force: compute them again, and replace files of another video.

        Raises:
            MediaError: the video is damaged, too short or not readable; the json says so, too.
            EvaluationError: the files of that name belong to another video, span or network; or the
                features are not finite, and the json says so, too.
        """
        files = [_Files.of(name, model, alone=len(self.models) == 1) for model in self.models]
        if not force:
            for each in files:
                each.require_same(video, span)
        # If the video is missing now, features that were made of it stay.
        todo = [each for each in files if not each.array.exists()]
        try:
            with reading(video):
                sha256 = file_digest(video)
            todo = [each for each in files if force or not each.are_current(sha256, span)]
            if todo:
                self._write(video, sha256, span, todo)
            else:
                logger.info("%s: reused, computed already", video)
        except OutError:
            raise  # the video is not the cause
        except KineticsError as error:
            for each in todo:
                each.write_failure(video, str(error))
            raise
        return [each.array for each in files]

    def _write(self, video: Path, sha256: str, span: Span, todo: list[_Files]) -> None:
        """Write each of `todo`, and remove from it what is written: the rest has failed."""
        fps = self.videos.recipe.fps
        with self.videos.clip(video, span, whole=True) as clip:
            views = [each.model.view(video, clip) for each in todo]
            for view in views:
                each = todo[0]
                rows = each.model.features(clip, view)
                require_finite(video, rows, each.model.checkpoint)
                starts, ends = each.model.times(clip, view, fps)
                each.write_array(rows)
                FeatureRecord(
                    video=str(video.absolute()),
                    video_sha256=sha256,
                    from_s=span.start_s,
                    duration_s=span.duration_s,
                    identity=each.identity(sha256, span),
                    rows=rows.shape[0],
                    features=rows.shape[1],
                    sha256=file_digest(each.array),
                    frames=len(clip.frames),
                    fps=fps,
                    start_s=starts,
                    end_s=ends,
                    network=each.model.record,
                ).write(each.record)
                todo.remove(each)


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of one video and one network."""

    model: _Model
    array: Path
    record: Path

    @classmethod
    def of(cls, name: Path, model: _Model, *, alone: bool) -> _Files:
        stem = name.name if alone else f"{name.name}.{model.checkpoint.stream}"
        return cls(model, name.with_name(f"{stem}.npy"), name.with_name(f"{stem}.json"))

    def require_same(self, video: Path, span: Span) -> None:
        """Raise EvaluationError if the files belong to another video, span or network."""
        there = read_record(self.record)
        if there is None:
            return
        what = there.video
        if there.video == str(video.absolute()):
            if isinstance(there, FailureRecord):
                return
            differing = there.differing(span, self.model.record)
            if not differing:
                return
            what = f"this video with another {', '.join(differing)}"
        raise EvaluationError(
            f"{video}: {self.record} belongs to {what}; choose another --out, or give --force"
        )

    def are_current(self, video_sha256: str, span: Span) -> bool:
        """Whether the files are there, of this video as it is now and by this network."""
        there = read_record(self.record) if self.array.exists() else None
        if not isinstance(there, FeatureRecord):
            return False
        return there.identity == self.identity(video_sha256, span)

    def identity(self, video_sha256: str, span: Span) -> str:
        """Hash of everything that decides the features."""
        source = {
            "video_sha256": video_sha256,
            "from_s": span.start_s,
            "duration_s": span.duration_s,
        }
        return digest([source, asdict(self.model.record)])

    def write_array(self, rows: Rows) -> None:
        """Write the array. The record is written after it: an array with a record is complete."""
        self.record.unlink(missing_ok=True)
        with publish(self.array) as scratch:
            np.save(scratch, rows)

    def write_failure(self, video: Path, why: str) -> None:
        """Leave a record of the failure, and no array."""
        self.array.unlink(missing_ok=True)
        write_json(self.record, asdict(FailureRecord(video=str(video.absolute()), error=why)))
