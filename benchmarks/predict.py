"""Class names for any video file: a clip's whole way, in memory and one scratch folder."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.benchmark import read_checkpoints, read_request
from benchmarks.evaluate import logits_of
from benchmarks.loader import Reader
from benchmarks.machine import Machine
from benchmarks.protocols import PROTOCOLS, EvalProtocol
from benchmarks.recipes import Recipe
from benchmarks.train import Checkpoint
from benchmarks.views import eval_view
from kinetics_tools import flow, media, opencv
from kinetics_tools.errors import EvaluationError, MediaError, Reason, lookup
from kinetics_tools.files import scratch_folder
from kinetics_tools.media import ClipRecipe

logger = logging.getLogger(__name__)
DEFAULT_S: Final = 10.0  # as long as a Kinetics clip: networks have not seen longer ones


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a video, seconds from its start; no duration: 10 s, or to its end if sooner."""

    start_s: float = 0.0
    duration_s: float | None = None


class VideoClip:
    """A video's frames and flow, made as the training's shards were, for `Reader`."""

    def __init__(self, frames: npt.NDArray[np.uint8], recipe: dict[str, Any], device: str) -> None:
        self.frames = frames
        self.recipe = recipe
        self.device = device

    def rgb(self, indices: Sequence[int] | None = None) -> npt.NDArray[np.uint8]:
        """Frames by number, or all: uint8 (T, H, W, 3)."""
        return self.frames if indices is None else self.frames[list(indices)]

    def flow(self, indices: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        """Fields by number, or all: float32 (T-1, H, W, 2), as shards keep them."""
        method = flow.make_method(self.recipe["method"])
        if method.as_json() != self.recipe["parameters"]:
            logger.warning("this version computes flow otherwise than the one that made the shards")
        grey = (opencv.gray(frame) for frame in self.frames)
        fields = list(flow.stream(grey, self.recipe["method"], self.device))
        bound = self.recipe["bound"]
        stored = flow.dequantise(flow.quantise(np.stack(fields), bound=bound), bound=bound)
        return stored if indices is None else stored[list(indices)]


class Predictor:
    """The networks of a finished run, ready for videos."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        protocol: EvalProtocol,
        machine: Machine,
        scratch: Path,
    ) -> None:
        self.checkpoints = checkpoints
        self.protocol = protocol
        self.machine = machine
        self.scratch = scratch
        self.binary = media.find_ffmpeg()
        self.nets: list[nn.Module] = [machine.place(each.network()) for each in checkpoints]

    @classmethod
    def of_run(
        cls, work_dir: Path, machine: Machine, *, stream: str | None = None, tmp_dir: Path | None
    ) -> "Predictor":
        """The predictor of a run.

        Args:
            work_dir: the run's.
            machine: where to compute.
            stream: of a joint run, `rgb` or `flow` alone; None: what it trained.
            tmp_dir: where scratch files go; None: into `work_dir`.

        Raises:
            KineticsError: the run is not finished, or did not train that stream.
        """
        request = read_request(work_dir)
        asked = replace(request, stream=stream or request.stream)
        if not set(asked.streams) <= set(request.streams):
            raise EvaluationError(f"{work_dir} trained {request.stream}, so not {stream}")
        checkpoints = read_checkpoints(work_dir, asked.streams)
        name = request.protocol or checkpoints[0].recipe["protocol"]
        protocol = lookup("protocol", name, PROTOCOLS)
        return cls(checkpoints, protocol, machine, tmp_dir or work_dir)

    def predict(self, video: Path, span: Span) -> list[tuple[str, float]]:
        """All class names with their probabilities, the highest first.

        Raises:
            MediaError: the video is damaged, or ends before the span does.
        """
        frames = self._frames(video, span)
        logits = torch.stack(
            [
                self._logits(checkpoint, net, frames)
                for checkpoint, net in zip(self.checkpoints, self.nets, strict=True)
            ]
        ).sum(dim=0)
        shares = torch.softmax(logits, dim=0).tolist()
        named = zip(self.checkpoints[0].labels, shares, strict=True)
        return sorted(named, key=lambda pair: (-pair[1], pair[0]))

    def _frames(self, video: Path, span: Span) -> npt.NDArray[np.uint8]:
        """uint8 (T, H, W, 3): the span at the rate and size of the training's clips."""
        if not video.is_file():
            raise MediaError(video, "no such file")
        recipe = self._clip_recipe()
        start_s = Fraction(span.start_s).limit_denominator(1000)
        end_s = start_s + Fraction(span.duration_s or DEFAULT_S).limit_denominator(1000)
        skipped = 0
        with scratch_folder(self.scratch) as folder:
            clip = folder / "clip.mp4"
            try:
                media.cut(
                    video, clip, start_s=start_s, end_s=end_s, recipe=recipe, binary=self.binary
                )
            except MediaError as error:
                if span.duration_s is not None or error.reason != Reason.TOO_SHORT:
                    raise
                media.conform(video, clip, recipe=recipe, binary=self.binary)
                skipped = math.ceil(start_s * recipe.fps)
            frames = list(media.frames(clip))[skipped:]
        if len(frames) < 2:
            raise MediaError(
                video, f"has {len(frames)} frames from {span.start_s:g} s on; at least 2 are needed"
            )
        return np.stack(frames)

    def _clip_recipe(self) -> ClipRecipe:
        data = self.checkpoints[0].data["recipes"]["rgb"]
        recipe = ClipRecipe(**{name: value for name, value in data.items() if name != "hash"})
        if recipe.short_side is None:
            # The training's clips kept their size, and the network saw them at this one.
            return replace(recipe, short_side=self.checkpoints[0].recipe["short_side"])
        return recipe

    def _logits(
        self, checkpoint: Checkpoint, net: nn.Module, frames: npt.NDArray[np.uint8]
    ) -> torch.Tensor:
        recipe = Recipe.from_json(checkpoint.recipe)
        reader = Reader(checkpoint.stream, recipe, checkpoint.data["bound"])
        flow_recipe = checkpoint.data["recipes"].get(f"flow-{checkpoint.data['flow']}", {})
        clip = VideoClip(frames, flow_recipe, self._flow_device())
        view = eval_view(len(frames), checkpoint.stream, recipe, self.protocol)
        numbers, places = np.unique(view.indices, return_inverse=True)
        tensor = reader.clip(reader.decode(clip, numbers.tolist())[places], view)
        return logits_of(net, tensor[None], self.machine)[0]

    def _flow_device(self) -> str:
        # Some methods have no GPU version; `auto` takes a GPU where method and machine have one.
        return "cpu" if self.machine.device.type == "cpu" else "auto"
