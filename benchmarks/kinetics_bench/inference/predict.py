"""The classes of any video file, predicted by trained networks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from kinetics_bench.data.loader import Reader
from kinetics_bench.data.views import View, eval_view
from kinetics_bench.device import Machine
from kinetics_bench.evaluation.evaluate import extents_of, logits_of
from kinetics_bench.inference.videos import Span, VideoClip, Videos, require_finite
from kinetics_bench.protocols import PROTOCOLS
from kinetics_bench.training.checkpoint import Checkpoint
from kinetics_tools.core.errors import lookup

logger = logging.getLogger(__name__)


class Predictor:
    """Predicts the class of videos, by one network or by the sum of the logits of several."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        machine: Machine,
        scratch: Path,
        *,
        protocol: str | None = None,
    ) -> None:
        """Prepare the networks.

        Args:
            checkpoints: the networks of one run, or given weights.
            machine: where to compute.
            scratch: folder for scratch files.
            protocol: a name in PROTOCOLS; None: that of the networks' recipe.
        """
        self.checkpoints = checkpoints
        name = protocol or checkpoints[0].recipe.protocol
        self.protocol = lookup("protocol", name, PROTOCOLS)
        self.machine = machine
        self.videos = Videos(checkpoints[-1], machine, scratch)
        self.nets = [machine.place(each.network()) for each in checkpoints]

    def predict(self, video: Path, span: Span) -> list[tuple[str, float]]:
        """All class names with their probabilities, the highest first.

        A video that is shorter than the network's input is looped, and the log says so.

        Raises:
            MediaError: the video is damaged, or ends before the span does.
            EvaluationError: the logits are not finite.
        """
        with self.videos.clip(video, span) as clip:
            views = [
                eval_view(len(clip.frames), extents_of(checkpoint, self.protocol))
                for checkpoint in self.checkpoints
            ]
            if any(view.is_looped for view in views):
                words = "%s: %d frames, looped as in the paper to fill the network's input"
                logger.info(words, video, len(clip.frames))
            each = [self._logits(number, clip, view) for number, view in enumerate(views)]
        for checkpoint, logits in zip(self.checkpoints, each, strict=True):
            require_finite(video, logits.numpy(), checkpoint)
        probabilities = torch.softmax(torch.stack(each).sum(dim=0), dim=0).tolist()
        named = zip(self.checkpoints[0].labels, probabilities, strict=True)
        return sorted(named, key=lambda pair: (-pair[1], pair[0]))

    def _logits(self, number: int, clip: VideoClip, view: View) -> torch.Tensor:
        checkpoint = self.checkpoints[number]
        reader = Reader(checkpoint.recipe, checkpoint.data.bound)
        return logits_of(self.nets[number], reader.clips(clip, view), self.machine)
