"""The classes of any video file, predicted by trained networks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from kinetics_bench.device import Machine
from kinetics_bench.evaluation.evaluate import Viewing
from kinetics_bench.inference.videos import Span, Videos, require_finite
from kinetics_bench.protocols import protocol_named
from kinetics_bench.training.checkpoint import Checkpoint

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
            protocol: its name; None: that of the networks' recipe.
        """
        self.checkpoints = checkpoints
        name = protocol or checkpoints[0].recipe.protocol
        self.viewings = [Viewing.of(each, protocol_named(name)) for each in checkpoints]
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
        machine = self.machine
        with self.videos.clip(video, span) as clip:
            num_frames = len(clip.frames)
            if any(view.is_looped for each in self.viewings for view in each.views(num_frames)):
                words = "%s: %d frames, looped as in the paper to fill the network's input"
                logger.info(words, video, len(clip.frames))
            each = [
                viewing.logits(
                    net, viewing.reader.clips(clip, viewing.read(num_frames)), num_frames, machine
                )
                for net, viewing in zip(self.nets, self.viewings, strict=True)
            ]
        for checkpoint, logits in zip(self.checkpoints, each, strict=True):
            require_finite(video, logits.numpy(), checkpoint)
        probabilities = torch.softmax(torch.stack(each).sum(dim=0), dim=0).tolist()
        named = zip(self.checkpoints[0].labels, probabilities, strict=True)
        return sorted(named, key=lambda pair: (-pair[1], pair[0]))
