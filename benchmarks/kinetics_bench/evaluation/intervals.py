"""How far an accuracy may be from that of other such clips: intervals and standard errors.

Clips of one video are alike, and count as less than so many clips. Where clips share a video, a
percentile bootstrap resamples videos: it draws as many as there are, with replacement, each with
all its clips (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8;
Field and Welsh, Bootstrapping clustered data, J. R. Statist. Soc. B 69, 2007).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import stats

RESAMPLES: Final = 9999
LEVEL: Final = 0.05
_BATCH: Final = 2**22  # drawn videos that are in memory at once
Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]


def wilson(num_right: int, num: int) -> Interval:
    """Wilson's 95 % interval of a share, from and to.

    It says something where all clips are right, or none, and the standard error is 0: that of 5 of
    5 begins at 56.6 %.
    """
    share = num_right / num
    ends = stats.binomtest(num_right, num).proportion_ci(1 - LEVEL, method="wilson")
    # Rounding: the exact ends are 0 and 1 where none and all are right.
    return max(min(float(ends.low), share), 0.0), min(max(float(ends.high), share), 1.0)


def binomial_error(num_right: int, num: int) -> float | None:
    """The standard error of a share of independent clips; None where all or none are right."""
    share = num_right / num
    return math.sqrt(share * (1 - share) / num) if 0 < num_right < num else None


def of_share(
    right: npt.NDArray[np.bool_], videos: npt.NDArray[np.int64]
) -> tuple[Interval, float | None]:
    """The 95 % interval of the share of right clips, and its standard error.

    Clips of videos of their own have Wilson's interval. Others have that of a bootstrap, widened to
    Wilson's; where all or none are right, which a bootstrap has nothing to say of, Wilson's of so
    many videos.

    Args:
        right: bool (N,), N at least 1.
        videos: (N,), the video of each clip, from 0 to V - 1, each at least once.

    Returns:
        From and to, 0 to 1; and the standard error, None where it would be 0 or is not known.
    """
    num, num_right, num_videos = len(right), int(right.sum()), int(videos.max()) + 1
    least, error = wilson(num_right, num), binomial_error(num_right, num)
    if num_videos == num:
        return least, error
    if error is None:
        return wilson(num_videos if num_right else 0, num_videos), None
    if num_videos == 1:
        return (0.0, 1.0), None
    hits, clips = (
        np.bincount(videos, weights=each, minlength=num_videos)
        for each in (right.astype(np.float64), np.ones(num))
    )
    drawn = bootstrap(num_videos, lambda times: (times @ hits / (times @ clips))[None])
    (low,), (high,) = drawn.confidence_interval
    interval = min(least[0], float(low)), max(least[1], float(high))
    return interval, max(error, float(drawn.standard_error[0]))


def bootstrap(
    num_videos: int,
    metrics: Callable[[Floats], Floats],
    *,
    seed: int = 0,
    num_resamples: int = RESAMPLES,
) -> Any:
    """scipy's result of a bootstrap of videos: its arrays have a place for each metric.

    Args:
        num_videos: V, at least 2.
        metrics: takes how often each video is in each of R samples, float64 (R, V), and returns M
            metrics of each sample, float64 (M, R).
        seed: of the samples.
        num_resamples: how many there are.
    """

    def statistic(drawn: npt.NDArray[np.int64], axis: int) -> Floats:
        assert axis == -1
        rows = np.arange(len(drawn))[:, None] * num_videos
        times = np.bincount((rows + drawn).ravel(), minlength=drawn.size)
        return metrics(times.reshape(drawn.shape).astype(np.float64))

    return stats.bootstrap(
        (np.arange(num_videos),),
        statistic,
        n_resamples=num_resamples,
        batch=max(1, _BATCH // num_videos),
        vectorized=True,
        axis=-1,
        confidence_level=1 - LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed % 2**64),  # it may be negative
    )
