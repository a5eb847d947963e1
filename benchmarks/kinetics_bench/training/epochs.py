"""The counters of one epoch of a training."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kinetics_bench.training.checkpoint import BegunEpoch, EpochRecord


@dataclass(slots=True)
class Epoch:
    """Counters of one epoch. Number -1: no epoch has begun."""

    number: int = -1
    began_s: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    sums: Tensor | None = None
    lr: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    skipped: str = ""  # why a micro-batch of one clip was left out

    @classmethod
    def begun(cls, number: int, before: BegunEpoch) -> Epoch:
        """An epoch that another process began."""
        return cls(
            number,
            time.monotonic() - before.seconds,
            before.waited_s,
            torch.tensor([before.loss, before.correct, before.clips]),
            skipped=before.skipped,
        )

    def progress(self) -> BegunEpoch:
        """What the process that continues it needs."""
        loss, correct, clips = (0.0, 0.0, 0.0) if self.sums is None else self.sums.tolist()
        return BegunEpoch(
            loss=loss,
            correct=int(correct),
            clips=int(clips),
            seconds=time.monotonic() - self.began_s,
            waited_s=self.waited_s,
            skipped=self.skipped,
        )

    @property
    def num_clips(self) -> int:
        """Clips that were trained on so far."""
        return 0 if self.sums is None else int(self.sums[2])

    def add(self, sums: Tensor, lr: float) -> None:
        """Count a step: its sums of the loss, of correct predictions, of clips, and its rate."""
        self.sums = sums if self.sums is None else self.sums.to(sums) + sums
        self.lr = lr

    def record(self, step: int, num_failed: int) -> EpochRecord:
        """What the log says of it, after optimizer step `step` of the training."""
        assert self.sums is not None
        loss, correct, num_clips = self.sums.tolist()
        seconds = time.monotonic() - self.began_s
        return EpochRecord(
            epoch=self.number + 1,
            step=step,
            loss=loss / max(num_clips, 1),
            top1=correct / max(num_clips, 1),
            lr=self.lr,
            clips=int(num_clips),
            failed=num_failed,
            seconds=seconds,
            waiting=self.waited_s / seconds,
        )
