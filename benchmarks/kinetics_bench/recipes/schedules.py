"""Schedules: the learning rate of each step, and how many steps there are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from kinetics_tools.core import schema

Losses = Sequence[float]


class Schedule(ABC):
    """Learning rates and the length of a training.

    Attributes:
        unit: what its length is counted in: `epochs` or `steps`.
    """

    __slots__ = ()
    unit: ClassVar[str]

    @property
    @abstractmethod
    def base_lr(self) -> float:
        """The highest learning rate, to which the others are in proportion."""

    @abstractmethod
    def with_base_lr(self, lr: float) -> Schedule:
        """The same schedule with all rates in proportion to another highest one."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Its length, in `unit`."""

    @abstractmethod
    def with_length(self, length: int) -> Schedule:
        """The same schedule with another length, in `unit`.

        Raises:
            ValueError: it is too short.
        """

    def differs_only_in_length(self, other: Schedule) -> bool:
        """Whether `other` is this schedule with another length."""
        return type(self) is type(other) and self.with_length(other.length) == other

    @abstractmethod
    def num_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole training, at most."""

    @abstractmethod
    def lr(self, step: int, num_steps: int, losses: Losses = ()) -> float:
        """Learning rate of a step.

        Args:
            step: its number, from 0.
            num_steps: of the whole training.
            losses: of the held-out clips, at each check before this step.
        """

    def is_over(self, losses: Losses) -> bool:  # noqa: ARG002 - most do not look at them
        """Whether the training ends before `num_steps`, after these checks."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class OneCycle(Schedule):
    """Cosine warm-up to `peak_lr`, then cosine decay, once per training.

    It is torch's OneCycleLR with its defaults and `cycle_momentum=False`: the learning rate begins
    at `peak_lr` / 25 and ends at `peak_lr` / 250,000.

    Attributes:
        epochs: length of the training.
        peak_lr: the highest learning rate.
        warmup: share of all steps before it, from 0 to 1.
    """

    unit: ClassVar[str] = "epochs"
    epochs: schema.Positive
    peak_lr: schema.Amount
    warmup: schema.Share = 0.3

    @property
    def base_lr(self) -> float:
        """The peak."""
        return self.peak_lr

    def with_base_lr(self, lr: float) -> OneCycle:
        """With another peak."""
        return replace(self, peak_lr=lr)

    @property
    def length(self) -> int:
        """Its epochs."""
        return self.epochs

    def with_length(self, length: int) -> OneCycle:
        """With so many epochs."""
        return replace(self, epochs=length)

    def num_steps(self, steps_per_epoch: int) -> int:
        """As `epochs` says."""
        return self.epochs * steps_per_epoch

    def lr(self, step: int, num_steps: int, losses: Losses = ()) -> float:  # noqa: ARG002
        """On the cosine."""
        top = self.warmup * num_steps - 1
        first, last = self.peak_lr / 25, self.peak_lr / 250_000
        if step < top:
            return _cosine(first, self.peak_lr, step / top)
        return _cosine(self.peak_lr, last, (step - top) / max(num_steps - 1 - top, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiStep(Schedule):
    """Step decay: the learning rate is constant between milestones, as in torch's MultiStepLR.

    MultiStepLR multiplies by one factor at each milestone. Here each milestone comes with the rate
    before it, so that a rate may rise again, and the last milestone ends the training.

    Attributes:
        milestones: (optimizer step, learning rate until that step), in order.
    """

    unit: ClassVar[str] = "steps"
    milestones: tuple[tuple[schema.Count, schema.Amount], ...]

    @property
    def base_lr(self) -> float:
        """The highest of the milestones."""
        return max(lr for _, lr in self.milestones)

    def with_base_lr(self, lr: float) -> MultiStep:
        """With all rates in proportion."""
        base = self.base_lr
        scaled = ((step, in_proportion(rate / base, lr)) for step, rate in self.milestones)
        return replace(self, milestones=tuple(scaled))

    @property
    def length(self) -> int:
        """The last milestone."""
        return self.milestones[-1][0]

    def differs_only_in_length(self, other: Schedule) -> bool:
        """Whether `other` has the same rates; milestones in proportion are rounded to steps."""
        if not isinstance(other, MultiStep):
            return False
        return [lr for _, lr in self.milestones] == [lr for _, lr in other.milestones]

    def with_length(self, length: int) -> MultiStep:
        """With all milestones in proportion."""
        steps = [round(step * length / self.length) for step, _ in self.milestones]
        if steps[0] < 1 or len(set(steps)) < len(steps):
            raise ValueError(f"{length} steps are too few for {len(steps)} milestones")
        rates = (rate for _, rate in self.milestones)
        return replace(self, milestones=tuple(zip(steps, rates, strict=True)))

    def num_steps(self, steps_per_epoch: int) -> int:  # noqa: ARG002 - milestones are steps
        """The last milestone."""
        return self.length

    def lr(self, step: int, num_steps: int, losses: Losses = ()) -> float:  # noqa: ARG002
        """Constant until the next milestone."""
        return next(lr for milestone, lr in self.milestones if step < milestone)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plateau(Schedule):
    """The rate is divided when the loss of held-out clips saturates, as by ReduceLROnPlateau.

    The loss is checked at the end of each epoch. It improves if it falls below the lowest one so
    far by the share `min_change` of it. After `patience` checks in a row that do not improve the
    rate is multiplied by `factor`; where that would happen once more than `drops` times, the
    training ends.

    Attributes:
        steps: optimizer steps of the training, at most.
        start_lr: the learning rate before the first drop.
        factor: of each drop.
        drops: how many there are.
        patience: checks without improvement before each.
        min_change: the smallest improvement, as a share of the lowest loss.
    """

    unit: ClassVar[str] = "steps"
    steps: schema.Positive
    start_lr: schema.Amount
    factor: schema.Share = 0.1
    drops: schema.Count = 2
    patience: schema.Positive = 5
    min_change: schema.Share = 0.01

    @property
    def base_lr(self) -> float:
        """The rate before the first drop."""
        return self.start_lr

    def with_base_lr(self, lr: float) -> Plateau:
        """With another first rate."""
        return replace(self, start_lr=lr)

    @property
    def length(self) -> int:
        """Its steps, at most."""
        return self.steps

    def with_length(self, length: int) -> Plateau:
        """With at most so many steps."""
        return replace(self, steps=length)

    def num_steps(self, steps_per_epoch: int) -> int:  # noqa: ARG002 - it counts steps
        """At most so many."""
        return self.steps

    def lr(self, step: int, num_steps: int, losses: Losses = ()) -> float:  # noqa: ARG002
        """The first rate, times `factor` for each drop so far."""
        return in_proportion(self.factor ** min(self._num_drops(losses), self.drops), self.start_lr)

    def is_over(self, losses: Losses) -> bool:
        """Whether the loss has saturated at the last rate too."""
        return self._num_drops(losses) > self.drops

    def _num_drops(self, losses: Losses) -> int:
        lowest, waited, num = math.inf, 0, 0
        for loss in losses:
            if loss < lowest * (1 - self.min_change):
                lowest, waited = loss, 0
                continue
            waited += 1
            if waited == self.patience:
                waited, num = 0, num + 1
        return num


SCHEDULES: Final[Mapping[str, type[OneCycle | MultiStep | Plateau]]] = {
    "one-cycle": OneCycle,
    "multi-step": MultiStep,
    "plateau": Plateau,
}


def in_proportion(factor: float, lr: float) -> float:
    """A learning rate times a factor; a tenth of 0.1 is 0.01, and not 0.010000000000000002."""
    return float(f"{factor * lr:.12g}")


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
