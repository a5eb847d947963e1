"""The report: one page, complete, escaped, the same bytes for the same results."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kinetics_bench.commands.repeat import asked_of
from kinetics_bench.commands.work_dir import print_means
from kinetics_bench.evaluation import figures
from kinetics_bench.evaluation.fusion import fuse, joint_row
from kinetics_bench.evaluation.groups import Group, groups
from kinetics_bench.evaluation.page_tables import Asked, Run, paper_table
from kinetics_bench.evaluation.report import write_report
from kinetics_bench.evaluation.results import (
    Predictions,
    Result,
    cells,
    score,
)
from kinetics_bench.evaluation.rows import Row, find_rows, read_row
from kinetics_bench.inference.networks import read_request
from kinetics_bench.training.checkpoint import InitRecord
from kinetics_tools.core.errors import EvaluationError, KineticsError
from results import make_run, row
from tiny import LABELS, SUBJECTS, tiny_shards


def test_a_page_tells_everything_and_needs_no_other_file(tmp_path: Path) -> None:
    labels = ["walk", r"run $\frac$", "<script>alert(1)</script>"]
    page = write_report([make_run(tmp_path / "a-run", labels)], tmp_path / "r.html").read_text()
    for words in ("a-run", "Two-Stream I3D", "12 / 13", "gone_clip", "12,689,984", "bfloat16"):
        assert words in page
    assert "train: 59 / 62 clips (1 could not be decoded, 2 not in the shards)" in page
    assert "weights.pt (0123456789ab); last layer trained" in page
    assert page.count("<img ") == 4  # curves, confusion matrix, accuracy by class, gain of flow
    assert set(re.findall(r'src="([^;]*);', page)) == {"data:image/svg+xml"}
    assert all(re.findall(r'<img alt="([^"]*)"', page))
    assert set(re.findall(r'(?:href|src)="(?!data:)([^"]*)', page)) == {"#run-1"}
    assert page.count("<script>") == 1  # ours
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>damaged" not in page
    assert "No frames are shown: some/shards holds no finished shards" in page
    levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


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
        assert page.count("7 TRAINED ON") == 2 * bool(num_overlap)  # with the row, and in detail
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
    assert (values["standard_error"], values["num_videos"]) == (None, 5)


def test_an_older_row_has_the_interval_of_its_videos(tmp_path: Path) -> None:
    clips = {
        f"v_A_g{at:02d}_c{clip:02d}": (0, np.array([at < 5, at >= 5], np.float32))
        for at in range(10)
        for clip in range(1, 11)
    }
    predictions = Predictions.of(clips, {})
    result = replace(row("rgb", ["a", "b"])[0], score=score(predictions), failed={})
    result.write(tmp_path / "rgb", predictions)
    path = tmp_path / "rgb" / "result.json"
    text = json.loads(path.read_text())
    assert text["score"].pop("num_videos") == 10
    text["score"]["interval"] = [0.4, 0.6]
    path.write_text(json.dumps(text))
    assert Result.read(tmp_path / "rgb").score.interval == pytest.approx((0.404, 0.596), abs=1e-3)
    assert read_row(tmp_path / "rgb").result == result


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


def test_of_many_classes_the_most_confused_are_drawn(tmp_path: Path) -> None:
    labels = [f"class {at:02d}" for at in range(60)]
    run = make_run(tmp_path / "run", labels, ("rgb",))
    page = write_report([run], tmp_path / "r.html").read_text()
    assert page.count("<img ") == 3  # curves, heat map, bars
    assert "The most confused classes, rgb" in page
    assert "Numbers of the 60 classes" in page
    assert page.count("<td>class 59</td>") >= 1
    _, predictions = row("rgb", labels)
    assert len(figures.most_confused(predictions)) == 20
    right = replace(predictions, logits=np.eye(60, dtype=np.float32)[predictions.label_ids])
    assert figures.confusion(right, labels) is None


def test_a_class_is_a_row_with_its_numbers(tmp_path: Path) -> None:
    """Two classes: rgb has 1 of 2 and 2 of 2 right, flow 2 of 2 and 1 of 2."""
    logits = {
        "rgb": [[1, 0], [0, 1], [0, 1], [0, 1]],
        "flow": [[1, 0], [1, 0], [0, 1], [1, 0]],
    }
    for stream, values in logits.items():
        result, _ = row(stream, ["a", "b"])
        clips = {f"k{at}": (at // 2, np.array(own, np.float32)) for at, own in enumerate(values)}
        predictions = Predictions.of(clips, {})
        folder = tmp_path / "run" / stream
        replace(result, score=score(predictions), failed={}).write(folder, predictions)
    page = write_report([tmp_path / "run"], tmp_path / "r.html").read_text()
    text = re.sub(r"<[^>]*>", "|", page)
    cells = [re.sub(r"\|+", "|", line) for line in text.splitlines()]
    assert "|a|2|50.0|100.0|+50.0|b (1)|" in cells
    assert "|b|2|100.0|50.0|-50.0|-|" in cells
    assert "Gain of flow over rgb per class: 1 classes gain, 1 lose" in page


def test_a_curve_of_one_epoch_and_held_out_clips_are_drawn() -> None:
    result, _ = row("rgb", ["a", "b"])
    one = result.history["rgb"][:1]
    axes = figures.curves({"rgb": one}).axes
    assert [[line.get_marker() for line in each.lines] for each in axes] == [["o"]] * 3
    held_out = [replace(each, val_loss=2.0, val_top1=0.25) for each in [*one, *one]]
    loss, top1, rate = figures.curves({"rgb": held_out}).axes
    assert [np.array(line.get_ydata()).tolist() for line in top1.lines] == [[50, 50], [25, 25]]
    assert [line.get_linestyle() for line in loss.lines] == ["-", "--"]
    assert len(rate.lines) == 1


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
    assert page.count("<section ") == 3


def test_an_evaluation_of_before_a_training_was_made_longer_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "run", list(LABELS), ("rgb",))
    for name in ("evaluate-5x3", "evaluate-best"):
        make_run(run / name, list(LABELS), ("rgb",))
    assert len(find_rows([run])) == 3
    result, predictions = row("rgb", list(LABELS))
    longer = {
        name: replace(each, name=f"{each.name}+extended-at-9")
        for name, each in result.training.items()
    }
    replace(result, training=longer).write(run / "rgb", predictions)
    assert [*find_rows([run])] == [run, run / "evaluate-best"]
    told = "after it had followed a shorter schedule (rgb at step 9)."
    pages = [
        write_report([run], run / "r.html"),
        write_report([run / "evaluate-best"], run / "b.html"),
    ]
    assert [told in " ".join(page.read_text().split()) for page in pages] == [True, False]
    assert f"{run / 'evaluate-5x3'} is left out: the training of {run} went on since" in caplog.text
    assert [*find_rows([run / "evaluate-5x3"])] == [run / "evaluate-5x3"]  # asked for by its name


def test_an_evaluation_of_before_a_training_was_done_again_is_left_out(tmp_path: Path) -> None:
    """Its recipe has the same name and hash: the seed, the clips or the initial weights differ."""
    run = make_run(tmp_path / "run", list(LABELS), ("rgb",))
    make_run(run / "evaluate-5x3", list(LABELS), ("rgb",))
    result, predictions = row("rgb", list(LABELS))
    for folder, weights, num in ((run, "1", 2), (run / "evaluate-5x3", "1", 2), (run, "2", 1)):
        data = replace(result.data, identity={"weights": weights})
        replace(result, data=data).write(folder / "rgb", predictions)
        if folder != run or num == 1:
            assert len(find_rows([run])) == num


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


def with_seeds(tmp_path: Path, changes: dict[str, dict[str, Any]]) -> list[Path]:
    """Runs of the same training but for what changes, each right on so many of ten clips."""
    runs = []
    for name, change in changes.items():
        result, _ = row("rgb", ["a", "b"])
        hits = change.pop("hits")
        more = [0] * (len(change.get("data", {}).get("labels", "ab")) - 2)
        clips = {
            f"k{at}": (0, np.array([at < hits, at >= hits, *more], np.float32)) for at in range(10)
        }
        predictions = Predictions.of(clips, {})
        data = replace(result.data, **change.pop("data", {}))
        whole = replace(result, score=score(predictions), failed={}, data=data, **change)
        whole.write(tmp_path / name / "rgb", predictions)
        runs.append(tmp_path / name)
    return runs


def assert_mean(group: Group, mean: float, deviation: float) -> None:
    found = group.mean("top1")
    assert found is not None
    np.testing.assert_allclose(found, (mean, deviation))


def test_seeds_are_a_mean_with_its_deviation(tmp_path: Path) -> None:
    runs = with_seeds(
        tmp_path,
        {
            **{f"seed-{at}": {"seed": at, "hits": 8 + at} for at in range(3)},
            "other-arch": {"seed": 5, "hits": 2, "arch": "c3d"},
            "other-split": {"seed": 6, "hits": 2, "data": {"train_split": "half"}},
            "no-seed": {"hits": 2},
        },
    )
    rows = [each for own in find_rows(runs).values() for each in own]
    (group,) = groups(rows)
    assert group.what == "3 seeds"
    assert_mean(group, 0.9, 0.1)  # of 0.8, 0.9 and 1
    assert group.mean("top5") is None  # of two classes
    page = write_report(runs, tmp_path / "r.html").read_text()
    assert "<td>3 seeds</td>" in page
    assert "90.0 ± 10.0" in page
    assert page.count(">seed-1</a>") == 1


def test_seeds_that_hold_out_whole_videos_are_a_mean(tmp_path: Path) -> None:
    """The number of clips in these depends on the seed; that of both together does not."""
    held = {at: {"num_train": 60 - at, "num_held_out": 6 + at} for at in range(3)}
    runs = with_seeds(
        tmp_path,
        {
            f"{name}-{at}": {"seed": at, "hits": 7, "data": {**data, "val_split": split}}
            for name, split in (("own", "held out of train"), ("other", "other.txt"))
            for at, data in held.items()
        },
    )
    rows = [each for own in find_rows(runs).values() for each in own]
    (group,) = groups(rows)
    assert group.what == "3 seeds"
    assert all(each.folder.parent.name.startswith("own") for each in rows_of(group))


def rows_of(group: Group) -> list[Row]:
    return [row for own in group.rows.values() for row in own.values()]


def test_what_is_in_no_mean_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {f"seed-{at}": {"seed": at, "hits": 8 + at} for at in range(2)}
    other = {"seed": 2, "hits": 2, "data": {"train_split": "half"}}
    runs = with_seeds(tmp_path, {**changes, "other": other})
    print_means(runs)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "mean and standard deviation:"
    assert told[2].split()[:3] == ["rgb", "2", "seeds"]
    assert told[3].startswith(f"in no mean: {tmp_path}/other/rgb: its clips, weights, recipe")
    assert len(told) == 4
    print_means(runs[1:])
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "no mean: no two rows are alike"
    assert [line.split(": ")[1] for line in told[1:]] == [f"{run}/rgb" for run in runs[1:]]


def test_rows_of_the_best_checkpoint_are_a_mean_of_their_own(tmp_path: Path) -> None:
    runs = with_seeds(
        tmp_path,
        {
            **{f"run-{at}": {"seed": at, "hits": 5} for at in range(2)},
            **{f"run-{at}/evaluate-best": {"seed": at, "hits": 8, "best": True} for at in range(2)},
            # As version 0.1 wrote them.
            "old/evaluate-best": {"seed": 2, "hits": 8},
        },
    )
    rows = [each for own in find_rows(runs).values() for each in own]
    last, best = groups(rows)
    assert (last.what, sorted(last.rows)) == ("2 seeds", [0, 1])
    assert (best.what, sorted(best.rows)) == ("3 seeds, best.pt", [0, 1, 2])
    assert_mean(best, 0.8, 0)
    assert groups([rows[0], next(row for row in rows if row.is_best and row.result.seed)]) == []


def joint(rgb: InitRecord, flow: InitRecord) -> InitRecord:
    """The initial weights of the joint row of two networks."""
    result, predictions = row("rgb", ["a", "b"])
    parts = [
        replace(result, stream=stream, data=replace(result.data, init=init))
        for stream, init in (("rgb", rgb), ("flow", flow))
    ]
    return joint_row(parts[0], parts[1], predictions).data.init


def test_only_rows_of_the_same_weights_and_clips_are_a_mean(tmp_path: Path) -> None:
    scratch = InitRecord()
    tuned = joint(InitRecord(source="a/rgb", sha256="1"), InitRecord(source="a/flow", sha256="2"))
    again = joint(InitRecord(source="a/rgb", sha256="3"), InitRecord(source="a/flow", sha256="2"))
    assert joint(scratch, scratch) == scratch
    assert tuned.source == again.source == "its two streams"
    runs = with_seeds(
        tmp_path,
        {
            "first": {"seed": 0, "hits": 8, "data": {"init": scratch}},
            "other-weights": {"seed": 1, "hits": 2, "data": {"init": tuned}},
            "other-bytes-of-weights": {"seed": 2, "hits": 2, "data": {"init": again}},
            "fewer-trained-on": {"seed": 3, "hits": 2, "data": {"init": scratch, "num_train": 3}},
            "second": {"seed": 4, "hits": 9, "data": {"init": scratch}},
        },
    )
    rows = [each for own in find_rows(runs).values() for each in own]
    (group,) = groups(rows)
    assert list(group.rows) == [0, 4]
    assert ">scratch</td>" in write_report(runs, tmp_path / "r.html").read_text()


def test_one_split_with_other_clips_is_not_averaged(tmp_path: Path) -> None:
    data = {"test_split": "ucf101/1", "train_split": "ucf101/1"}
    runs = with_seeds(
        tmp_path, {f"seed-{at}": {"seed": at, "hits": 4, "data": data} for at in range(3)}
    )
    rows = [each for own in find_rows(runs).values() for each in own]
    assert [each.what for each in groups(rows)] == ["3 seeds"]
    score = replace(rows[1].result.score, keys_sha256="of other clips")
    rows[1] = replace(rows[1], result=replace(rows[1].result, score=score))
    (group,) = groups(rows)
    assert list(group.rows) == [0, 2]


def test_older_joint_rows_have_the_initial_weights_of_the_rows_beside_them(tmp_path: Path) -> None:
    rows = []
    for seed, source in enumerate(("scratch", "other.pt", "scratch")):
        own = InitRecord(source=source, sha256="" if source == "scratch" else "1")
        old = InitRecord(source="its two streams")
        for stream, init in (("rgb", own), ("joint", old)):
            result, predictions = row(stream, ["a", "b"])
            data = replace(result.data, init=init)
            result = replace(result, seed=seed, data=data)
            rows.append(Row(tmp_path / str(seed) / stream, result, predictions))
    assert [list(each.rows) for each in groups(rows)] == [[0, 2], [0, 2]]


def test_splits_are_a_mean_for_each_seed(tmp_path: Path) -> None:
    def run(split: int, seed: int, hits: int) -> dict[str, Any]:
        data = {"test_split": f"ucf101/{split}", "train_split": f"ucf101/{split}"}
        return {"seed": seed, "hits": hits, "data": data}

    # Means of the seeds 0.5 and 0.7: their deviation is 0.2 / sqrt(2).
    hits = {(1, 0): 4, (2, 0): 5, (3, 0): 6, (1, 1): 6, (2, 1): 7, (3, 1): 8}
    runs = with_seeds(
        tmp_path, {f"{split}-{seed}": run(split, seed, n) for (split, seed), n in hits.items()}
    )
    rows = [each for own in find_rows(runs).values() for each in own]
    (group,) = groups(rows)
    assert group.what == "3 splits x 2 seeds"
    assert_mean(group, 0.6, 0.2 / 2**0.5)
    # Without one of the six, each split is alone: a seed's mean would be of other splits.
    fewer = [each for each in rows if each.folder.parent.name != "3-1"]
    assert [(each.what, each.splits) for each in groups(fewer)] == [
        ("2 seeds", (1,)),
        ("2 seeds", (2,)),
    ]
    one_seed = [each for each in rows if each.result.seed == 0]
    (group,) = groups(one_seed)
    assert group.what == "3 splits"
    assert_mean(group, 0.5, 0.1)


def test_each_run_stands_beside_the_first_with_the_paired_test(tmp_path: Path) -> None:
    runs = with_seeds(tmp_path, {"first": {"hits": 4}, "second": {"hits": 10}})
    runs.append(make_run(tmp_path / "other", ["b", "c"], ("rgb",)))
    page = write_report(runs, tmp_path / "r.html").read_text()
    # Six clips are right in one of them only: 2 * 0.5 ** 6.
    for text in ("second, rgb", "small", "10 of 10 videos", "+60.0", "6, the first 0", "0.031"):
        assert f">{text}</td>" in page, text
    assert "<li>other: cannot be compared with first: " in page
    assert "<li>second: 10 videos are few" in page
    assert "Run against run" not in write_report(runs[:1], tmp_path / "r.html").read_text()


def test_a_fused_row_has_a_page_of_its_own(tmp_path: Path) -> None:
    runs = with_seeds(tmp_path, {"a": {"hits": 4, "seed": 1}, "b": {"hits": 10, "seed": 1}})
    rows = [each for own in find_rows(runs).values() for each in own]
    result, predictions = fuse(rows, (1, 2))
    result.write(tmp_path / "fused", predictions)
    page = write_report([tmp_path / "fused", *runs], tmp_path / "r.html", asked_of).read_text()
    with pytest.raises(KineticsError, match="fused holds files and no run; give the --work-dir"):
        read_request(tmp_path / "fused")
    assert f"run-benchmark fuse {rows[0].folder} {rows[1].folder} --weights 1,2" in page
    assert page.count("<section ") == 3
    assert "2 seeds" not in page


def classes(num: int) -> tuple[str, ...]:
    return tuple(f"class {at}" for at in range(num))


def asked(init: str, finetune: str = "all") -> Asked:
    return Asked(commands=("run-benchmark --arch i3d",), seed=4, init=init, finetune=finetune)


@pytest.mark.parametrize(
    ("init", "finetune", "split", "beside"),
    [
        ("imagenet", "all", 1, [("2, ucf101, imagenet, original", "84.5", "-34.5")]),
        ("kinetics", "last", 1, []),  # the paper has it for joint only
        ("scratch", "all", 1, []),
        ("imagenet", "all", 2, []),  # the paper has no number of split 2 alone
        ("some/weights.pt", "all", 1, []),
    ],
)
def test_a_row_stands_beside_the_papers_number(
    init: str, finetune: str, split: int, beside: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    data = {"test_split": f"ucf101/{split}", "labels": classes(101)}
    runs = with_seeds(tmp_path, {"run": {"hits": 5, "data": data}})
    page = write_report(runs, tmp_path / "r.html", lambda _: asked(init, finetune)).read_text()
    assert ("Against the paper" in page) == bool(beside)
    for cells_ in beside:
        assert all(f">{text}</td>" in page for text in cells_)
    assert "run-benchmark --arch i3d</pre>" in page
    assert "; seed 4." in page  # of the request: the result does not have it


def test_a_part_of_a_data_set_has_no_difference_to_the_paper(tmp_path: Path) -> None:
    missing = {"out_of_scope": {"Archery": 41}}
    data = {"test_split": "ucf101/1", "labels": classes(101), **missing}
    (run,) = with_seeds(tmp_path, {"run": {"hits": 5, "data": data}})
    of_run = Run(folder=run, rows=find_rows([run])[run], asked=asked("imagenet"))
    (told,) = paper_table([of_run], [])
    assert (told["paper's top-1 %"], told["ours"], told["difference"]) == ("84.5", "50.0", "-")
    assert told["we tested on"] == "ucf101/1: 10 of 10 clips, 41 of 1 classes out of scope"
    splits = {
        f"run-{at}": {
            "seed": 0,
            "hits": 6,
            "data": {"test_split": f"hmdb51/{at}", "train_split": f"hmdb51/{at}", **missing},
        }
        for at in (1, 2, 3)
    }
    found = find_rows(with_seeds(tmp_path / "splits", splits))
    runs = [Run(folder=each, rows=rows, asked=asked("kinetics")) for each, rows in found.items()]
    together = groups([row for rows in found.values() for row in rows])
    (told,) = paper_table(runs, together)
    assert (told["run"], told["difference"]) == ("mean of 3 splits", "-")
    assert told["we tested on"] == "splits 1 to 3, 41 of 1 classes out of scope"


def test_the_mean_of_three_splits_stands_beside_table_5(tmp_path: Path) -> None:
    names = {at: f"hmdb51/{at}" for at in (1, 2, 3)}
    splits = {
        f"run-{at}": {
            "seed": 0,
            "hits": 6 + at,
            "data": {"test_split": name, "train_split": name, "labels": classes(51)},
        }
        for at, name in names.items()
    }
    runs = with_seeds(tmp_path, splits)
    page = write_report(runs, tmp_path / "r.html", lambda _: asked("kinetics")).read_text()
    for text in ("mean of 3 splits", "5, hmdb51, imagenet, full-ft", "74.8", "80.0", "+5.2"):
        assert f"{text}</td>" in page


def test_a_number_of_the_paper_that_is_not_confirmed_is_not_printed(tmp_path: Path) -> None:
    splits = {"run": {"hits": 5, "arch": "convnet-lstm", "data": {"test_split": "ucf101/1"}}}
    runs = with_seeds(tmp_path, splits)
    page = write_report(runs, tmp_path / "r.html", lambda _: asked("scratch")).read_text()
    assert "4, ucf101, scratch, original</td>" in page
    assert "not confirmed</td>" in page


def test_the_seed_is_in_the_file_and_an_older_file_stays_as_it_was(tmp_path: Path) -> None:
    result, predictions = row("rgb", ["a", "b"])
    result.write(tmp_path / "old", predictions)
    assert "seed" not in json.loads((tmp_path / "old" / "result.json").read_text())
    replace(result, seed=3).write(tmp_path / "new", predictions)
    assert Result.read(tmp_path / "new").seed == 3
    assert cells(Result.read(tmp_path / "new"))["seed"] == "3"


def test_a_page_about_many_runs_is_not_too_large(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result, _ = row("rgb", ["left", "right"])
    clips = {
        f"{subject}_{label}": (at, np.array([1, 0], np.float32))
        for subject in SUBJECTS
        for at, label in enumerate(LABELS)
    }
    predictions = Predictions.of(clips, {})
    data = replace(result.data, folder=str(tiny_shards()), flow="opencv-tvl1")
    whole = replace(result, data=data, score=score(predictions), failed={})
    whole.write(run / "rgb", predictions)
    page = write_report([run], tmp_path / "r.html").read_text()
    assert page.count("data:image/jpeg") == 5  # four mistakes, and one class has hits
    assert "full colour is" in page
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr("kinetics_bench.evaluation.report.MAX_PAGE", 1)
    page = write_report([run], tmp_path / "r.html").read_text()
    monkeypatch.undo()
    assert "data:image/jpeg" not in page
    assert "report this run alone" in page


@pytest.mark.parametrize(
    ("val_split", "words"),
    [
        (
            "held out of train",
            "train: 59 / 68 clips (1 could not be decoded, 2 not in the shards, ",
        ),
        ("other.txt", "train: 59 / 62 clips (1 could not be decoded, 2 not in the shards)"),
    ],
)
def test_clips_that_were_held_out_are_told(tmp_path: Path, val_split: str, words: str) -> None:
    result, predictions = row("rgb", ["a", "b"])
    data = replace(result.data, num_held_out=6, val_split=val_split)
    replace(result, data=data).write(tmp_path / "run" / "rgb", predictions)
    page = write_report([tmp_path / "run"], tmp_path / "r.html").read_text()
    assert words in page
    assert f"{val_split}: 6 clips" in page
