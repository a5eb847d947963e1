"""Scores: what is counted, and what each number covers."""

import errno
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_bench.data.splits import select
from kinetics_bench.device import Machine
from kinetics_bench.evaluation import evaluate as evaluation
from kinetics_bench.evaluation.evaluate import Test as Asked
from kinetics_bench.evaluation.evaluate import evaluate
from kinetics_bench.evaluation.fusion import add_predictions
from kinetics_bench.evaluation.intervals import of_share, wilson
from kinetics_bench.evaluation.results import (
    PREDICTIONS,
    PREDICTIONS_CSV,
    Overlap,
    Predictions,
    Result,
    interval_text,
    ranks,
    scope_notes,
    score,
)
from kinetics_bench.protocols import PROTOCOLS
from kinetics_bench.training.checkpoint import CHECKPOINT, Checkpoint
from kinetics_bench.training.trainer import train
from kinetics_tools.core.console import text_table
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.shards.reader import ShardFolder
from results import row
from support import tree
from tiny import tiny_shards
from trainings import CPU, in_processes, job


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


def test_a_full_disk_takes_no_result_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, made = row("rgb", ["a", "b", "c"])
    result.write(tmp_path, made)
    made.write_csv(tmp_path / PREDICTIONS_CSV, ["a", "b", "c"])
    before = tree(tmp_path)
    written: list[Path] = []

    def stop(_: object, path: Path) -> None:
        written.append(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as caught:
        patch.setattr("pyarrow.parquet.write_table", stop)
        replace(result, seed=3).write(tmp_path, made)
    assert written
    assert PREDICTIONS in str(caught.value)
    assert tree(tmp_path) == before
    replace(result, seed=3).write(tmp_path, made)
    assert Result.read(tmp_path).seed == 3
    assert not (tmp_path / PREDICTIONS_CSV).exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint."""
    folder = tmp_path_factory.mktemp("training")
    train(job(folder, arch="two-stream", stream="rgb"), CPU)
    return folder / CHECKPOINT


def evaluated(path: Path, folder: Path, machine: Machine, **changes: Any) -> Result:
    """An evaluation of a checkpoint on its own clips; `changes` are of its fields."""
    checkpoint = replace(Checkpoint.read(path), **changes)
    data = ShardFolder(tiny_shards())
    chosen = select(data, "all", role="test", streams=("rgb",), flow="opencv-tvl1")
    protocol = PROTOCOLS["whole"]
    asked = Asked(data=data, selection=chosen, flow="", protocol=protocol, num_workers=0)
    return evaluate(checkpoint, asked, folder, machine)


def test_another_coverage_leaves_the_predictions_alone(trained: Path, tmp_path: Path) -> None:
    first = evaluated(trained, tmp_path, CPU)
    assert first.data.num_overlap == 8
    first.predictions(tmp_path).write_csv(tmp_path / PREDICTIONS_CSV, first.data.labels)
    before = {name: (tmp_path / name).stat() for name in (PREDICTIONS, PREDICTIONS_CSV)}
    second = evaluated(trained, tmp_path, CPU, trained_on=None)
    assert second.data.num_overlap == 0
    assert Result.read(tmp_path) == second
    assert {name: (tmp_path / name).stat() for name in before} == before


def evaluate_apart(path: Path, folder: Path, machine: Machine) -> None:
    """Evaluate again in one of two processes; the second one sees no result."""
    with pytest.MonkeyPatch.context() as patch:
        if not machine.is_main:
            patch.setattr(evaluation, "find_result", lambda _: None)
        found = evaluated(path, folder, machine, trained_on=None)
    assert found.cost.num_processes == 1  # that of the first evaluation
    assert found == Result.read(folder)


def test_one_of_several_processes_decides_whether_a_result_is_reused(
    trained: Path, tmp_path: Path
) -> None:
    evaluated(trained, tmp_path, CPU)
    in_processes(partial(evaluate_apart, trained, tmp_path), 2)


def test_a_list_that_names_no_test_clip_is_told() -> None:
    """Else a check that found nothing looks like none."""
    result, _ = row("rgb", ["a", "b"])
    checked = Overlap(source="seen.txt", num_listed=9, num_videos=0, num_clips=0)
    data = replace(result.data, overlaps=(checked,))
    assert scope_notes(replace(result, data=data)) == ["0 of videos in seen.txt"]
    assert scope_notes(result) == []
