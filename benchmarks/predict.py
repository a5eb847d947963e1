"""Class names for any video file, by the networks of a finished run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.benchmark import read_checkpoints, read_request
from benchmarks.evaluate import extents_of, logits_of
from benchmarks.loader import Reader
from benchmarks.machine import Machine
from benchmarks.protocols import PROTOCOLS, EvalProtocol
from benchmarks.recipes import Recipe
from benchmarks.train import Checkpoint
from benchmarks.videos import Span, VideoClip, Videos
from benchmarks.views import eval_view
from kinetics_tools.errors import EvaluationError, lookup


def networks_of_run(work_dir: Path, stream: str | None) -> list[Checkpoint]:
    """The trained networks of a run; `stream`: of several one alone.

    Raises:
        KineticsError: the run is not finished, or did not train that stream.
    """
    request = read_request(work_dir)
    asked = replace(request, stream=stream or request.stream)
    if not set(asked.streams) <= set(request.streams):
        raise EvaluationError(f"{work_dir} trained {request.stream}, so not {stream}")
    return read_checkpoints(work_dir, asked.streams)


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
        self.videos = Videos(checkpoints[-1], machine, scratch)
        self.nets = [machine.place(each.network()) for each in checkpoints]

    @classmethod
    def of_run(
        cls, work_dir: Path, machine: Machine, *, stream: str | None = None, tmp_dir: Path | None
    ) -> "Predictor":
        """The predictor of a run.

        Args:
            work_dir: the run's.
            machine: where to compute.
            stream: of a run of several networks, that of one alone; None: all.
            tmp_dir: where scratch files go; None: into `work_dir`.

        Raises:
            KineticsError: the run is not finished, or did not train that stream.
        """
        checkpoints = networks_of_run(work_dir, stream)
        name = read_request(work_dir).protocol or checkpoints[0].recipe["protocol"]
        protocol = lookup("protocol", name, PROTOCOLS)
        return cls(checkpoints, protocol, machine, tmp_dir or work_dir)

    def predict(self, video: Path, span: Span) -> list[tuple[str, float]]:
        """All class names with their probabilities, the highest first.

        Raises:
            MediaError: the video is damaged, or ends before the span does.
        """
        with self.videos.clip(video, span) as clip:
            each = [self._logits(number, clip) for number in range(len(self.nets))]
        shares = torch.softmax(torch.stack(each).sum(dim=0), dim=0).tolist()
        named = zip(self.checkpoints[0].labels, shares, strict=True)
        return sorted(named, key=lambda pair: (-pair[1], pair[0]))

    def _logits(self, number: int, clip: VideoClip) -> torch.Tensor:
        checkpoint = self.checkpoints[number]
        reader = Reader(Recipe.from_json(checkpoint.recipe), checkpoint.data["bound"])
        view = eval_view(len(clip.frames), extents_of(checkpoint, self.protocol))
        return logits_of(self.nets[number], reader.clips(clip, view), self.machine)
