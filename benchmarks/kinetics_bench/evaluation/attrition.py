"""How top-1 moves when evaluated clips are lost: for a ledger's real reasons, and at random.

The ledger is of another copy of the data than the evaluated one, which still has these clips. A
random loss takes clips without replacement, each as likely as the others: the number of right ones
among them is hypergeometric, and is drawn from that distribution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from kinetics_bench.data.views import seeded_rng
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.dataset import ledger
from kinetics_tools.dataset.layout import read_out

NUM_DRAWS: Final = 1000
STEP: Final = 0.05  # of the curve: a share of the evaluated clips
ALL: Final = "all"  # reason of all losses together
Right = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Range:
    """Top-1 of what random losses leave: the mean of all draws, and the middle 95 % of them."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> Range:
        """The range of draws."""
        low, high = np.quantile(values, (0.025, 0.975))
        return cls(float(values.mean()), float(low), float(high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What is lost for one reason.

    Attributes:
        reason: a word of the ledger, or ALL.
        num_lost: clips that the ledger lost for it.
        num_scored: of these, evaluated ones.
        top1: of the evaluated clips that are left; None if none is.
        random: the same after as many random losses; None if no clip is left.
        p_value: how often a random loss moves top-1 as far or farther, of all draws and this one.
    """

    reason: str
    num_lost: int
    num_scored: int
    top1: float | None
    random: Range | None
    p_value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A point of the curve.

    Attributes:
        share: of the evaluated clips that are lost.
        num: of these clips.
        random: top-1 if any of the evaluated clips are lost.
        real: top-1 if as many of the really lost ones are lost; None if there are not so many. The
            ledger does not say when a video was lost, so which ones go first is drawn.
    """

    share: float
    num: int
    random: Range
    real: Range | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attrition:
    """How top-1 moves when evaluated clips are lost.

    Attributes:
        num_scored: evaluated clips.
        top1: of all of them.
        num_unknown: evaluated clips that the ledger has neither as there nor as lost.
        losses: by reason, the one with most evaluated clips first; the last is ALL.
        curve: in steps of STEP, and the point where all really lost clips are lost.
    """

    num_scored: int
    top1: float
    num_unknown: int
    losses: tuple[Loss, ...]
    curve: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the ledger of a folder of clips says of them; whether files are there is not asked.

    Attributes:
        out: the folder, that kinetics-download filled.
        lost: key -> the reason why it was lost.
        there: keys of clips that were made.
    """

    out: Path
    lost: Mapping[str, str]
    there: frozenset[str]

    @classmethod
    def read(cls, out: Path) -> Ledger:
        """Read manifest and ledgers.

        Raises:
            ManifestError: it is not such a folder.
            OutError: a ledger is damaged.
        """
        manifest, _ = read_out(out)
        histories = ledger.read(out)
        known = {s.key: histories[s.key] for s in manifest.segments if s.key in histories}
        return cls(
            out,
            {key: str(each.main_reason) for key, each in known.items() if each.done is None},
            frozenset(key for key, each in known.items() if each.done is not None),
        )


def attrition(right: Mapping[str, bool], clips: Ledger, *, seed: int = 0) -> Attrition:
    """How the top-1 of evaluated clips moves when a ledger's losses, or random clips, are lost.

    Args:
        right: key -> whether the prediction is right, of the evaluated clips.
        clips: says which were lost elsewhere.
        seed: of the draws.

    Raises:
        EvaluationError: none of the evaluated clips was lost.
    """
    keys = list(right)
    if not clips.lost.keys() & right.keys():
        raise EvaluationError(
            f"none of the {len(clips.lost):,} clips that the ledger of {clips.out} lost was "
            f"scored, so nothing can be thinned: {_why(clips, right)}"
        )
    hits = np.array([right[key] for key in keys])
    why = np.array([clips.lost.get(key, "") for key in keys])
    sizes = Counter(clips.lost.values())
    scored = Counter(why[why != ""].tolist())
    in_order = sorted(sizes, key=lambda reason: (-scored[reason], -sizes[reason], reason))
    losses = [_loss(reason, sizes[reason], hits, why == reason, seed) for reason in in_order]
    return Attrition(
        num_scored=len(hits),
        top1=float(hits.mean()),
        num_unknown=len(right.keys() - clips.lost.keys() - clips.there),
        losses=(*losses, _loss(ALL, len(clips.lost), hits, why != "", seed)),
        curve=_curve(hits, why != "", seed),
    )


def _why(clips: Ledger, right: Mapping[str, bool]) -> str:
    if not clips.lost:
        return "it lost none"
    if not clips.there & right.keys():
        return "its keys are not those of the run"
    return "the run's shards are of these clips; give the ledger of another copy of the data"


def _loss(reason: str, num_lost: int, hits: Right, lost: Right, seed: int) -> Loss:
    num, left = int(lost.sum()), hits[~lost]
    if len(left) == 0:
        top1, drawn = None, None
    else:
        top1 = float(left.mean())
        drawn = _draws(hits, hits, num, seed, f"random losses, {reason}")
    p_value = None
    if drawn is not None and top1 is not None and num:
        whole = hits.mean()
        is_as_far = np.abs(drawn - whole) >= abs(top1 - whole) - 1e-12  # equal but for rounding
        p_value = float((is_as_far.sum() + 1) / (NUM_DRAWS + 1))
    return Loss(
        reason=reason,
        num_lost=num_lost,
        num_scored=num,
        top1=top1,
        random=None if drawn is None else Range.of(drawn),
        p_value=p_value,
    )


def _draws(hits: Right, among: Right, num: int, seed: int, what: str) -> npt.NDArray[np.float64]:
    """Top-1 of the rest, float64 (NUM_DRAWS,), after `num` losses among some of the clips.

    Args:
        hits: of all clips.
        among: of those that may be lost.
        num: fewer than all clips, at most as many as may be lost.
        seed: of the draws.
        what: they are of: draws of other things are independent.
    """
    rng = seeded_rng(seed, 0, what)
    num_right = int(among.sum())
    gone = rng.hypergeometric(num_right, len(among) - num_right, num, size=NUM_DRAWS)
    left: npt.NDArray[np.float64] = (int(hits.sum()) - gone) / (len(hits) - num)
    return left


def _curve(hits: Right, lost: Right, seed: int) -> tuple[Step, ...]:
    num_clips, num_lost = len(hits), int(lost.sum())
    steps = {round(num_clips * STEP * number) for number in range(1, round(1 / STEP))}
    return tuple(
        Step(
            share=num / num_clips,
            num=num,
            random=Range.of(_draws(hits, hits, num, seed, f"curve, random {num}")),
            real=Range.of(_draws(hits, hits[lost], num, seed, f"curve, real {num}"))
            if num <= num_lost
            else None,
        )
        for num in sorted(steps | {num_lost})
        if 0 < num < num_clips
    )
