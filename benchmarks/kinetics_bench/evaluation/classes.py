"""Numbers per class: accuracies, what is taken for what, and the gain of a row over another."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kinetics_bench.evaluation.results import Predictions, ranks

Shares = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pair:
    """Clips of a class that were taken for another one.

    Attributes:
        true, predicted: label ids.
        num: how many clips.
        share: of the clips of the true class.
    """

    true: int
    predicted: int
    num: int
    share: float


def class_counts(predictions: Predictions) -> npt.NDArray[np.int64]:
    """Number of evaluated clips per class, int64 (K,)."""
    return np.bincount(predictions.label_ids, minlength=predictions.logits.shape[1])


def class_shares(predictions: Predictions) -> Shares:
    """Top-1 per class, float64 (K,); NaN for classes without an evaluated clip."""
    right = ranks(predictions) == 0
    of_class = class_counts(predictions).astype(float)
    hits = np.bincount(predictions.label_ids, weights=right, minlength=len(of_class))
    of_class[of_class == 0] = np.nan
    shares: Shares = hits / of_class
    return shares


def gains(over: Predictions, of: Predictions) -> Shares:
    """Top-1 per class of `of` minus that of `over`, on the clips that both have; NaN as above."""
    shared = set(over.keys) & set(of.keys)
    change: Shares = class_shares(of.subset(shared)) - class_shares(over.subset(shared))
    return change


def confused(predictions: Predictions) -> list[Pair]:
    """Every pair of classes with a mistake, by the number of clips; then by share, then by id."""
    found = predictions.logits.argmax(axis=1)
    wrong = found != predictions.label_ids
    counts = Counter(zip(predictions.label_ids[wrong].tolist(), found[wrong].tolist(), strict=True))
    of_class = class_counts(predictions)
    pairs = [
        Pair(true, predicted, num, num / int(of_class[true]))
        for (true, predicted), num in counts.items()
    ]
    return sorted(pairs, key=lambda each: (-each.num, -each.share, each.true, each.predicted))
