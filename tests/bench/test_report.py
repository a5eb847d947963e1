"""The report: one page, complete, escaped, the same bytes for the same results."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kinetics_bench.archs.registry import STREAMS
from kinetics_bench.evaluation.report import find_rows, softmax, write_report
from kinetics_bench.evaluation.results import (
    Cost,
    DataRecord,
    Predictions,
    Result,
    cells,
    find_origin,
    score,
)
from kinetics_bench.protocols import PROTOCOLS, Extent
from kinetics_bench.recipes import RECIPES
from kinetics_bench.training.checkpoint import EpochRecord, InitRecord
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.shards.records import StreamRecipe

FAILED = {"gone_clip": "rgb-000000.tar, sample gone_clip: <b>damaged</b>"}


def row(stream: str, labels: list[str], num_clips: int = 12) -> tuple[Result, Predictions]:
    random = np.random.default_rng(0)
    rows = {
        f"clip_{at:02d}": (at % len(labels), random.normal(size=len(labels)).astype(np.float32))
        for at in range(num_clips)
    }
    predictions = Predictions.of(rows, FAILED)
    recipe = RECIPES["small"]["i3d"]["rgb"]
    history = [
        EpochRecord(
            epoch=at,
            step=at,
            loss=1 / at,
            top1=0.5,
            lr=1e-3,
            clips=60,
            failed=1,
            seconds=2.0,
            waiting=0,
        )
        for at in (1, 2, 3)
    ]
    streams = ("rgb", "flow") if stream == "joint" else (stream,)
    result = Result(
        arch="i3d",
        stream=stream,
        protocol=PROTOCOLS["whole"],
        extents={"rgb": Extent(stride=2, num=None, least=16)},
        score=score(predictions),
        training=dict.fromkeys(streams, recipe),
        recipes={"rgb": StreamRecipe.of({"fps": 25})},
        data=DataRecord(
            folder="some/shards",
            identity="0",
            labels=tuple(labels),
            flow="tvl1",
            train_split="train",
            num_train=60,
            failed_train={"bad": "damaged"},
            missing_train={"lost": "missing", "other": "not in the shards"},
            test_split="val",
            init=InitRecord(source="weights.pt", sha256="0123456789abcdef", finetune="last"),
        ),
        cost=Cost(
            parameters=12_689_984,
            flops=10**11,
            flops_shape=((3, 64, 224, 224),),
            device="cpu",
            num_threads=2,
            num_processes=1,
            precision="bfloat16",
            seconds_training=400.0,
            seconds_evaluation=3.0,
        ),
        origin=find_origin(),
        failed=FAILED,
        history={} if stream == "joint" else {stream: history},
    )
    return result, predictions


def make_run(folder: Path, labels: list[str], streams: tuple[str, ...] = STREAMS) -> Path:
    for stream in streams:
        result, predictions = row(stream, labels)
        (folder / stream).mkdir(parents=True)
        result.write(folder / stream, predictions)
    return folder


def test_a_page_tells_everything_and_needs_no_other_file(tmp_path: Path) -> None:
    labels = ["walk", r"run $\frac$", "<script>alert(1)</script>"]
    page = write_report([make_run(tmp_path / "a-run", labels)], tmp_path / "r.html").read_text()
    for words in ("a-run", "Two-Stream I3D", "12 / 13", "gone_clip", "12,689,984", "bfloat16"):
        assert words in page
    assert "train: 59 / 62 clips (1 could not be decoded, 2 not in the shards)" in page
    assert "weights.pt (0123456789ab); last layer trained" in page
    assert page.count("<img ") == 4  # two curves, confusion matrix, accuracy by class
    assert set(re.findall(r'src="([^;]*);', page)) == {"data:image/svg+xml"}
    assert not re.search(r'(href|src)="(?!data:)', page)
    assert "<script>" not in page
    assert "<b>damaged" not in page


def test_clips_that_were_trained_on_mark_the_row_the_table_and_the_page(tmp_path: Path) -> None:
    result, predictions = row("rgb", ["a", "b"])
    for num_overlap in (0, 7):
        data = replace(result.data, num_overlap=num_overlap)
        marked = replace(result, data=data)
        marked.write(tmp_path / "run" / "rgb", predictions)
        assert Result.read(tmp_path / "run" / "rgb").data == data
        assert ("TRAINED ON" in cells(marked)["evaluated / in the list"]) == bool(num_overlap)
        page = write_report([tmp_path / "run"], tmp_path / "r.html").read_text()
        assert ("The weights were trained on 7 of these clips" in page) == bool(num_overlap)
        assert page.count("7 TRAINED ON") == page.count("(7 clips TRAINED ON)") == bool(num_overlap)
    assert cells(marked)["evaluated / in the list"] == "12 / 13, 7 TRAINED ON"


def test_the_interval_of_all_clips_right_is_on_the_page(tmp_path: Path) -> None:
    result, _ = row("rgb", ["a", "b"])
    right = Predictions.of({f"k{at}": (0, np.array([1, 0], np.float32)) for at in range(5)}, {})
    folder = tmp_path / "run" / "rgb"
    replace(result, score=score(right), failed={}).write(folder, right)
    page = write_report([tmp_path / "run"], tmp_path / "r.html").read_text()
    assert page.count("56.6 to 100.0") == 2
    assert "±" not in page
    values = json.loads((folder / "result.json").read_text())["score"]
    assert values["interval"] == [pytest.approx(0.565518, abs=1e-6), 1.0]
    assert "standard_error" not in values


def test_a_result_without_training_or_word_of_its_start_has_a_page(tmp_path: Path) -> None:
    result, predictions = row("rgb", ["a", "b"])
    data = replace(result.data, train_split=None)
    folder = tmp_path / "run" / "rgb"
    replace(result, data=data, history={"rgb": []}).write(folder, predictions)
    values = json.loads((folder / "result.json").read_text())
    del values["data"]["init"]  # as the first versions wrote it
    (folder / "result.json").write_text(json.dumps(values))
    page = write_report([tmp_path / "run"], tmp_path / "r.html").read_text()
    assert "not trained here" in page
    assert ">scratch<" in page
    assert "<h3>Training</h3>" not in page


def test_the_same_results_give_the_same_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["a", "b"])
    first = write_report([run], tmp_path / "1.html").read_bytes()
    assert write_report([run], tmp_path / "2.html").read_bytes() == first


def test_many_classes_have_bars_and_no_matrix(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [f"class {at}" for at in range(60)], ("rgb",))
    page = write_report([run], tmp_path / "r.html").read_text()
    assert page.count("<img ") == 3
    assert "Confusion" not in page


def test_several_runs_share_a_page_and_evaluations_stand_beside(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", ["a", "b"])
    make_run(one / "evaluate-12345678", ["a", "b"], ("rgb",))
    two = make_run(tmp_path / "two", ["a", "b"], ("flow",))
    rows = find_rows([one, two, tmp_path / "empty"])
    assert [[row.result.stream for row in each] for each in rows.values()] == [
        ["joint", "rgb", "flow"],
        ["rgb"],
        ["flow"],
    ]
    page = write_report([one, two], tmp_path / "r.html").read_text()
    assert page.count("<section>") == 3


def test_no_result_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        EvaluationError, match=r"no result in .*; train a network with: run-benchmark"
    ):
        write_report([tmp_path], tmp_path / "r.html")
    result, predictions = row("rgb", ["a", "b"])
    result.write(tmp_path / "rgb", predictions)
    (tmp_path / "rgb" / "result.json").write_text("{}")
    with pytest.raises(EvaluationError, match="evaluate again"):
        write_report([tmp_path], tmp_path / "r.html")


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    result, predictions = row("rgb", ["a", "b"])
    result.write(tmp_path, predictions)
    assert Result.read(tmp_path) == replace(result, recipes=Result.read(tmp_path).recipes)


def test_softmax_sums_to_one_for_large_logits() -> None:
    shares = softmax(np.array([[1000, 1000, -1000]], np.float32))
    assert shares.tolist() == [[0.5, 0.5, 0.0]]
