"""Scores: what is counted, and what each number covers."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_bench.evaluation.fusion import add_predictions
from kinetics_bench.evaluation.intervals import of_share, wilson
from kinetics_bench.evaluation.results import (
    Predictions,
    interval_text,
    ranks,
    score,
)
from kinetics_tools.core.console import text_table
from kinetics_tools.core.errors import EvaluationError


def predictions(
    logits: Sequence[Sequence[float]], labels: list[int], failed: dict[str, str] | None = None
) -> Predictions:
    rows = {
        f"k{at}": (label, np.array(values, np.float32))
        for at, (values, label) in enumerate(zip(logits, labels, strict=True))
    }
    return Predictions.of(rows, failed or {})


def test_failed_clips_are_expected_but_in_no_share() -> None:
    found = score(predictions([[2, 1], [2, 1], [1, 2]], [0, 1, 1], {"gone": "damaged"}))
    assert (found.num_expected, found.num_scored, found.num_failed) == (4, 3, 1)
    assert found.top1 == pytest.approx(2 / 3)
    assert found.mean_class == pytest.approx((1 + 0.5) / 2)
    assert found.interval == pytest.approx((0.207660, 0.938508), abs=1e-6)
    assert found.top5 is None  # of two classes
    assert found.keys_sha256 == hashlib.sha256(b"k0\nk1\nk2").hexdigest()


def test_an_interval_is_wilsons_also_where_all_or_none_are_right() -> None:
    assert wilson(5, 5) == pytest.approx((0.565518, 1), abs=1e-6)
    assert wilson(0, 5) == pytest.approx((0, 0.434482), abs=1e-6)
    assert wilson(1, 1) == pytest.approx((0.206549, 1), abs=1e-6)
    assert (wilson(14, 14)[1], wilson(14, 14)[0] < 1, wilson(0, 14)[0]) == (1.0, True, 0.0)
    assert wilson(28, 30) == pytest.approx((0.786765, 0.981523), abs=1e-6)
    found = score(predictions([[2, 1]] * 5, [0] * 5))
    assert interval_text(found) == "56.6 to 100.0"


@given(st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_the_share_and_has_a_width(counts: tuple[int, int]) -> None:
    num_right, num = counts
    low, high = wilson(num_right, num)
    assert 0 <= low <= num_right / num <= high <= 1
    assert high - low > 0
    # The ends solve |share - p| = 1.96 standard deviations of p.
    for p in {low, high} - {0.0, 1.0}:
        deviation = 1.959964 * (p * (1 - p) / num) ** 0.5
        assert abs(num_right / num - p) == pytest.approx(deviation, rel=1e-6, abs=1e-9)


def test_clips_of_a_video_count_as_less_than_so_many() -> None:
    """95 % of intervals hold the true share; by clip far fewer do."""
    random = np.random.default_rng(0)
    num_videos, size, num_sets, true = 60, 6, 150, 0.8
    videos = np.arange(num_videos).repeat(size)
    held = {"by video": 0, "by clip": 0}
    for _ in range(num_sets):
        # Beta shares of videos: two clips of one are alike with a correlation of 1/3.
        of_video = random.beta(2 * true, 2 * (1 - true), num_videos).repeat(size)
        right = random.random(len(videos)) < of_video
        for unit, groups in (("by video", videos), ("by clip", np.arange(len(videos)))):
            (low, high), _ = of_share(right, groups)
            held[unit] += low <= true <= high
    assert held["by video"] / num_sets > 0.88
    assert held["by clip"] / num_sets < 0.85


def test_copies_of_clips_change_no_interval_and_no_error() -> None:
    right = np.random.default_rng(1).random(300) < 0.7
    (low, high), error = of_share(right, np.arange(300))
    (low_, high_), error_ = of_share(right.repeat(9), np.arange(300).repeat(9))
    assert (low_, high_) == pytest.approx((low, high), abs=0.01)
    assert error_ == pytest.approx(error, rel=0.05)
    # A bootstrap says nothing where all are right, and one video says little.
    assert of_share(np.ones(45, np.bool_), np.arange(5).repeat(9)) == (wilson(5, 5), None)
    assert of_share(np.zeros(45, np.bool_), np.arange(5).repeat(9)) == (wilson(0, 5), None)
    assert of_share(np.arange(9) < 5, np.zeros(9, np.int64)) == ((0.0, 1.0), None)
    # The same share in each: as wide as of independent clips.
    assert of_share(np.arange(40) % 2 == 0, np.arange(20).repeat(2))[0] == wilson(20, 40)


def test_a_score_knows_the_videos_of_its_clips() -> None:
    rows = {
        f"v_A_g{at // 5:02d}_c{at % 5:02d}": (0, np.array([at < 40, at >= 40], np.float32))
        for at in range(100)
    }
    found = score(Predictions.of(rows, {}))
    assert (found.num_videos, found.num_scored) == (20, 100)
    alone = score(predictions([[at < 40, at >= 40] for at in range(100)], [0] * 100))
    assert alone.num_videos == 100
    assert alone.standard_error == pytest.approx((0.4 * 0.6 / 100) ** 0.5)
    assert found.standard_error == pytest.approx((0.4 * 0.6 / 20) ** 0.5, rel=0.05)
    assert found.interval[0] < alone.interval[0]
    assert found.interval[1] > alone.interval[1]


def test_top_five_and_ties() -> None:
    logits = [[0, 0, 0, 0, 0, 0], [6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1]]
    labels = [1, 4, 5]
    assert ranks(predictions(logits, labels)).tolist() == [1, 4, 5]  # of equals the lower is first
    assert score(predictions(logits, labels)).top5 == pytest.approx(2 / 3)


def test_no_clip_is_no_number() -> None:
    with pytest.raises(EvaluationError, match="no clip could be evaluated"):
        predictions([], [], {"gone": "damaged"})
    with pytest.raises(EvaluationError, match="k1 are not finite"):
        predictions([[0, 1], [float("nan"), 0]], [0, 0])


def test_joint_adds_logits_of_the_clips_that_both_scored() -> None:
    rgb = predictions([[2, 0], [0, 1], [1, 0]], [0, 0, 1])
    flow = predictions([[0, 1], [3, 0]], [0, 0], {"k2": "damaged"})
    joint = add_predictions({"rgb": rgb, "flow": flow})
    assert joint.keys == ("k0", "k1")
    assert joint.logits.tolist() == [[2, 1], [3, 1]]
    assert score(joint).top1 == 1
    assert joint.failed == {"k2": "damaged"}


def test_softmax_sums_to_one_for_large_logits() -> None:
    assert predictions([[1000, 1000, -1000]], [0]).softmax().tolist() == [[0.5, 0.5, 0.0]]


def test_predictions_survive_the_file(tmp_path: Path) -> None:
    before = predictions([[2, 1, 0], [0, 1, 2]], [0, 1], {"gone": "damaged"})
    before.write(tmp_path / "predictions.parquet")
    after = Predictions.read(tmp_path / "predictions.parquet", before.failed)
    assert after.keys == before.keys
    assert np.array_equal(after.logits, before.logits)
    assert np.array_equal(after.label_ids, before.label_ids)
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(EvaluationError, match="evaluate again"):
        Predictions.read(tmp_path / "predictions.parquet", {})


def test_a_csv_has_labels_and_probabilities_under_the_names_of_the_classes(tmp_path: Path) -> None:
    labels = ['say "hi", wave', "run,\twalk", "=1+1", "ünï"]
    made = predictions([[3, 1, 0, -2], [0, 1, 2, 80]], [1, 3], {"gone": "damaged"})
    made.write_csv(tmp_path / "predictions.csv", labels)
    table = pd.read_csv(tmp_path / "predictions.csv", index_col="key")
    assert list(table.columns) == ["label", "prediction", *labels]
    assert table["label"].tolist() == [labels[1], labels[3]]
    assert table["prediction"].tolist() == [labels[0], labels[3]]
    assert table.index.tolist() == ["k0", "k1"]
    shares = table[labels].to_numpy()
    assert shares == pytest.approx(made.softmax(), rel=1e-8)
    assert shares.sum(axis=1) == pytest.approx([1, 1])


def test_predictions_whose_keys_are_not_sorted_are_refused(tmp_path: Path) -> None:
    made = predictions([[2, 1], [0, 1]], [0, 1])
    for keys in (("k1", "k0"), ("k0", "k0")):
        Predictions(keys, made.label_ids, made.logits, {}).write(tmp_path / "predictions.parquet")
        with pytest.raises(EvaluationError, match="its keys are not sorted, each once"):
            Predictions.read(tmp_path / "predictions.parquet", {})


def test_a_part_of_predictions_is_theirs() -> None:
    made = predictions([[2, 1], [0, 1], [5, 4]], [0, 1, 1], {"gone": "damaged", "lost": "torn"})
    part = made.subset({"k2", "k0", "lost", "other"})
    assert part.keys == ("k0", "k2")
    assert part.label_ids.tolist() == [0, 1]
    assert part.logits.tolist() == [[2, 1], [5, 4]]
    assert part.failed == {"lost": "torn"}


def test_tables_are_aligned() -> None:
    table = text_table(
        [{"stream": "rgb", "top-1 %": "5.0"}, {"stream": "joint", "top-1 %": "83.3"}]
    )
    assert table.splitlines() == ["stream  top-1 %", "rgb         5.0", "joint      83.3"]
