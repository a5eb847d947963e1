"""Clips on a page: which are chosen, and what their strips show."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kinetics_bench.evaluation.results import DataRecord, Predictions, Result
from kinetics_bench.evaluation.rows import Row
from kinetics_bench.evaluation.strips import hits, mistakes, read_strips
from kinetics_tools.core.errors import ShardError
from kinetics_tools.extract.flow_colours import colours
from kinetics_tools.media.opencv import decode_jpeg
from kinetics_tools.shards import read_samples
from results import row
from tiny import LABELS, copy_of_shards, tiny_shards

CLIPS = {"ann_left": (0, 1, 2.0), "ben_left": (0, 0, 1.0), "ann_right": (1, 0, 3.0)}


def made(folder: Path | str, *, flow: str = "opencv-tvl1", split: str = "test.txt") -> Row:
    """A row of key -> true class, predicted class, how much its logit is above the other."""
    result: Result
    result, _ = row("rgb", list(LABELS))
    clips = {
        key: (true, np.array([above * (found == at) for at in (0, 1)], np.float32))
        for key, (true, found, above) in CLIPS.items()
    }
    data: DataRecord = replace(result.data, folder=str(folder), flow=flow, test_split=split)
    return Row(Path("run"), replace(result, data=data), Predictions.of(clips, {}))


def test_mistakes_and_hits_are_sorted_by_confidence() -> None:
    here = made("shards")
    assert [each.key for each in mistakes(here, 9)] == ["ann_right", "ann_left"]
    assert [each.key for each in mistakes(here, 1)] == ["ann_right"]
    (hit,) = hits(here, 9)
    assert (hit.key, hit.true, hit.predicted) == ("ben_left", "left", "left")
    assert hit.p_true == hit.p_predicted == pytest.approx(1 / (1 + np.exp(-1)))
    worst = mistakes(here, 1)[0]
    assert (worst.p_true, worst.p_predicted) == pytest.approx((0.0474259, 0.9525741))


@pytest.mark.parametrize("split", ["test.txt", "all"])
def test_a_strip_has_frames_and_the_flow_of_each_below(split: str) -> None:
    strips = read_strips(made(tiny_shards(), split=split), ["ann_left", "ann_right"])
    assert strips.flow == "opencv-tvl1"
    sample = next(
        each
        for each in read_samples(tiny_shards(), "all", flow="opencv-tvl1")
        if each.key == "ann_left"
    )
    picture = decode_jpeg(strips.pictures["ann_left"]).astype(float)
    assert picture.shape == (2 * (40 + 3), 5 * (48 + 3), 3)  # no enlargement
    moments = [1, 3, 6, 9, 11]  # the middles of five shares of 13 fields
    frames, fields = sample.rgb(moments), sample.flow(moments)
    for at in range(5):
        left = at * (48 + 3)
        # A JPEG of small squares has their greys; their colours run into each other.
        grey = picture[:40, left : left + 48].mean(axis=-1)
        errors = abs(grey - frames.mean(axis=-1)).mean(axis=(1, 2))
        assert errors.argmin() == at
        shown = picture[43 : 43 + 40, left : left + 48]
        assert abs(shown - colours(fields[at], full_px=strips.full_px)).mean() < 20


def test_a_network_without_flow_has_the_flow_of_the_shards_beside_it() -> None:
    assert read_strips(made(tiny_shards(), flow=""), ["ann_left"]).flow == "opencv-tvl1"


def test_a_network_of_some_classes_has_strips_of_their_clips() -> None:
    result, _ = row("rgb", ["right"])
    data = replace(result.data, folder=str(tiny_shards()), flow="opencv-tvl1", test_split="all")
    predictions = Predictions.of({"ann_right": (0, np.ones(1, np.float32))}, {})
    here = Row(Path("run"), replace(result, data=data), predictions)
    assert read_strips(here, ["ann_right", "ann_left"]).pictures.keys() == {"ann_right"}


def test_clips_that_are_not_there_now_are_one_line(tmp_path: Path) -> None:
    for folder, why in (
        (tmp_path / "gone", "holds no finished shards"),
        ("https://example.org/shards", "is not on this machine"),
        ("nul\0", "is not a dataset"),
        ("x" * 5000, "cannot be read"),
    ):
        with pytest.raises(ShardError, match=why):
            read_strips(made(folder), ["ann_left"])
    with pytest.raises(ShardError, match="does not have these clips any more"):
        read_strips(made(tiny_shards()), ["zoe_left"])
    others = made(tiny_shards())
    data = replace(others.result.data, labels=("up", "down"))
    with pytest.raises(ShardError, match="has other labels now"):
        read_strips(replace(others, result=replace(others.result, data=data)), ["ann_left"])
    shards = copy_of_shards(tmp_path)
    shutil.rmtree(shards / "all")
    with pytest.raises(ShardError, match="is missing"):
        read_strips(made(shards), ["ann_left"])
