"""Evaluated clips of videos that weights were trained on, and the accuracy on the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import replace

import numpy as np

from kinetics_bench.data.video_lists import VideoList
from kinetics_bench.evaluation.results import TRAINING, Overlap, Predictions, score
from kinetics_tools.core.keys import source_video


def overlaps(
    predictions: Predictions,
    label_ids: Mapping[str, int],
    trained_on: Collection[str],
    lists: Collection[VideoList],
) -> tuple[Overlap, ...]:
    """What evaluated clips share with the training, if anything, and with each list of videos.

    Args:
        predictions: of the evaluated clips.
        label_ids: as for `score`.
        trained_on: keys of the clips that the weights were trained on.
        lists: of videos that they may have been trained on elsewhere.
    """
    trained = VideoList(TRAINING, frozenset(map(source_video, trained_on)))
    found = [_overlap(each, predictions, label_ids) for each in (trained, *lists)]
    return tuple(found if found[0].num_clips else found[1:])


def _overlap(seen: VideoList, predictions: Predictions, label_ids: Mapping[str, int]) -> Overlap:
    shared = {key: video for key in predictions.keys if (video := source_video(key)) in seen.videos}
    others = _without(predictions, seen.videos) if shared else None
    return Overlap(
        source=seen.name,
        num_listed=len(seen.videos),
        num_videos=len({*shared.values()}),
        num_clips=len(shared),
        without=None if others is None else score(others, label_ids),
    )


def _without(predictions: Predictions, videos: Set[str]) -> Predictions | None:
    """The clips of other videos; None if none of them has a prediction."""
    kept = np.array([source_video(key) not in videos for key in predictions.keys])
    if not kept.any():
        return None
    return replace(
        predictions,
        keys=tuple(key for key, is_kept in zip(predictions.keys, kept, strict=True) if is_kept),
        label_ids=predictions.label_ids[kept],
        logits=predictions.logits[kept],
        failed={k: why for k, why in predictions.failed.items() if source_video(k) not in videos},
    )
