"""What an accuracy covers of the clips that its split lists, as pure functions of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


def bounds(num_right: int, num_scored: int, num_expected: int) -> tuple[float, float]:
    """Top-1 if all clips without a prediction were wrong, and if all were right.

    Args:
        num_right: evaluated clips that are right.
        num_scored: evaluated clips.
        num_expected: clips of the split.
    """
    num_missing = num_expected - num_scored
    return num_right / num_expected, (num_right + num_missing) / num_expected


@dataclass(frozen=True, slots=True)
class Reweighted:
    """Top-1 with each class counted as often as the split lists it.

    Attributes:
        top1: the mean of the classes' top-1, weighted by the listed clips of each; None: the class
            of a clip without a prediction is not known.
        num_classes: classes that are listed and have no evaluated clip. They cannot be weighted,
            so they are left out.
        num_clips: listed clips of these.
    """

    top1: float | None
    num_classes: int = 0
    num_clips: int = 0


def reweighted(
    right: npt.NDArray[np.bool_], label_ids: npt.NDArray[np.int64], missing: Sequence[int | None]
) -> Reweighted:
    """Top-1 with each class's share of the listed clips.

    Where classes lose different shares of their clips, the plain top-1 counts the classes that lost
    few for more than the list does.

    Args:
        right: bool (N,), whether an evaluated clip is right.
        label_ids: int64 (N,), its class.
        missing: the class of each clip without a prediction; None where it is not known.
    """
    known = np.array([each for each in missing if each is not None], np.int64)
    if len(known) < len(missing):
        return Reweighted(None)
    num = int(max(label_ids.max(), known.max(initial=0))) + 1
    scored = np.bincount(label_ids, minlength=num)
    listed = scored + np.bincount(known, minlength=num)
    hits = np.bincount(label_ids[right], minlength=num)
    has, lacks = scored > 0, (scored == 0) & (listed > 0)
    # In this order it is exactly the plain top-1 where nothing is missing.
    top1 = (listed[has] * hits[has] / scored[has]).sum() / listed[has].sum()
    return Reweighted(min(float(top1), 1.0), int(lacks.sum()), int(listed[lacks].sum()))
