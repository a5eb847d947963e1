"""The paper's tables as experiments: what a cell needs, the runs, and what is printed of them."""

import csv
import json
import re
import shlex
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from kinetics_bench import cli
from kinetics_bench.archs.registry import ARCHS
from kinetics_bench.evaluation import paper
from kinetics_bench.evaluation.intervals import binomial_error
from kinetics_bench.evaluation.results import Result, Score
from kinetics_bench.inference.networks import Request
from kinetics_bench.recipes import RecipeChoice
from kinetics_bench.tables import page
from kinetics_bench.tables.plan import (
    SETS,
    Choices,
    DataSet,
    PlannedCell,
    TablePlan,
    plan_table,
)
from kinetics_bench.tables.run import Forecast, Setting
from kinetics_bench.training.estimate import TrainingPlan
from kinetics_tools.core.cli import Exit
from kinetics_tools.core.units import Part
from kinetics_tools.dataset.labels import known_labels
from results import row
from support import ROOT, run_command, tree, unpack_written_by_0_1
from tiny import LABELS, copy_of_shards, key_file, tiny_shards

EVERY = Choices(
    sets={name: DataSet(data=f"/{name}") for name in SETS}, recipe=RecipeChoice(name="paper")
)


def only(*archs: str, streams: Sequence[str] | None = None) -> Choices:
    """All data sets, some cells."""
    return replace(EVERY, archs=archs, streams=streams)


# The plan


@pytest.mark.parametrize(("number", "num_cells"), [(2, 31), (3, 17), (4, 54), (5, 12)])
def test_the_cells_of_a_table_are_those_of_the_paper(number: int, num_cells: int) -> None:
    plan = plan_table(number, EVERY)
    assert len(plan.cells) == num_cells
    assert all(each.trainings and not each.lacking for each in plan.cells)
    assert {each.cell.table for each in plan.cells} == {number}


def test_a_transfer_is_trained_on_kinetics_first_and_then_as_its_name_says() -> None:
    plan = plan_table(4, only("i3d"))
    (cell,) = (
        each
        for each in plan.cells
        if (each.cell.data, each.cell.init, each.cell.transfer) == ("hmdb51", "imagenet", "fixed")
    )
    training = plan.trainings[cell.trainings[0]]
    before = plan.trainings[training.parent]
    assert (training.data, training.recipe.name, training.test_split) == (
        *("hmdb51", "fixed", "hmdb51/1"),
    )
    assert training.networks == ("rgb", "flow")
    told = (before.data, before.init, before.recipe.name, before.train_split, before.test_split)
    assert told == ("kinetics", "imagenet", "paper", "train", "val")
    assert before.parent == ""
    recipes = {each.transfer: each.recipe.name for each in plan.trainings.values() if each.parent}
    assert recipes.keys() == {"fixed", "full-ft"}
    assert recipes["full-ft"] in ("ucf101", "hmdb51")


def test_a_chain_is_what_starts_from_one_training_and_each_training_is_in_one() -> None:
    plan = plan_table(4, only("i3d"))
    assert [len(chain) for chain in plan.chains] == [1, 5, 1, 5, 1, 1]
    for chain in plan.chains:
        assert chain[0].parent == ""
        assert {each.parent for each in chain[1:]} <= {chain[0].name}
    names = [each.name for chain in plan.chains for each in chain]
    assert sorted(names) == sorted(plan.trainings)
    parts = [Part(at, 4).of(plan.chains) for at in range(4)]
    assert sorted(each.name for part in parts for chain in part for each in chain) == sorted(names)


def test_tables_share_trainings() -> None:
    names = {number: set(plan_table(number, only("i3d")).trainings) for number in (2, 3, 4, 5)}
    assert "i3d+ucf101-1+imagenet+original+ucf101" in names[2] & names[4]
    assert "i3d+kinetics+imagenet+original+paper" in names[2] & names[3] & names[4] & names[5]
    assert "i3d+hmdb51-1+scratch+full-ft+hmdb51" in names[4] & names[5]
    # One for each split, besides those on Kinetics.
    assert len(names[5]) == 2 + 2 * 2 * 3


def test_the_mean_of_table_5_is_of_three_splits() -> None:
    plan = plan_table(5, EVERY)
    for each in plan.cells:
        splits = [plan.trainings[name].test_split for name in each.trainings]
        assert splits == [f"{each.cell.data}/{at}" for at in (1, 2, 3)]
        assert splits == [plan.trainings[name].train_split for name in each.trainings]


def test_networks_that_are_trained_together_have_a_folder_of_their_own() -> None:
    i3d = plan_table(3, only("i3d", streams=("rgb", "joint"))).trainings.values()
    assert [each.streams for each in i3d] == [("joint", "rgb")] * 2
    two = plan_table(3, only("two-stream")).trainings
    assert {(each.streams, each.networks) for each in two.values()} == {
        ((stream,), (stream,)) for stream in ARCHS["two-stream"].streams
    }


def test_what_is_asked_for_is_in_the_name_of_the_folder() -> None:
    usual = set(plan_table(5, EVERY).trainings)
    kinetics = EVERY.sets["kinetics"]
    changes: list[dict[str, Any]] = [
        *({"train_split": "a"}, {"train_split": "b"}, {"test_split": "c"}, {"classes": ("d",)})
    ]
    others = [
        replace(EVERY, seed=1),
        replace(EVERY, recipe=RecipeChoice(name="small"), is_recipe_given=True),
        replace(EVERY, recipe=RecipeChoice(name="paper", overrides={"batch_size": 4})),
        *(
            replace(EVERY, sets={**EVERY.sets, "kinetics": replace(kinetics, **change)})
            for change in changes
        ),
    ]
    names = [usual, *(set(plan_table(5, other).trainings) for other in others)]
    assert all(len(each) == 14 for each in names)
    assert len(set.union(*names)) == 14 * len(names)


def test_recipes_that_differ_in_what_a_name_cuts_off_have_folders_of_their_own() -> None:
    def name(**overrides: Any) -> str:
        recipe = RecipeChoice(name="paper", overrides=overrides)
        (found,) = plan_table(3, replace(EVERY, recipe=recipe, archs=("c3d",))).trainings
        return found

    ends = (115_000, 120_000)
    stones = [[[97_000, 1.0], [108_000, 0.1], [end, 0.01]] for end in ends]
    assert len({name(**{"schedule.milestones": each}) for each in stones}) == 2
    rates = (0.0123456781, 0.0123456782)
    assert len({name(**{"optimizer.lr": each}) for each in rates}) == 2
    assert name(batch_size=4, **{"optimizer.lr": 5e-4}).endswith("+paper+batch-4+lr-0.0005")


def test_data_that_is_not_given_is_told_at_once() -> None:
    few = replace(EVERY, sets={"ucf101": EVERY.sets["ucf101"]})
    cells = {(each.cell.data, each.cell.transfer): each for each in plan_table(4, few).cells}
    assert cells["ucf101", "original"].lacking == ()
    assert cells["ucf101", "fixed"].lacking == ("kinetics",)
    assert cells["hmdb51", "fixed"].lacking == ("hmdb51", "kinetics")
    assert cells["hmdb51", "fixed"].trainings == ()


# What is told


WHOLE = {"test_split": "ucf101/1", "labels": tuple(f"class {at}" for at in range(101))}
KINETICS = {"test_split": "val", "labels": known_labels("kinetics400")}


def outcome(
    *shares: tuple[float, int],
    top1: float | None = 80.0,
    data: str = "ucf101",
    of: Mapping[str, Any] = WHOLE,
) -> page.Outcome:
    """Our number from accuracies of so many independent clips of the data set `of`."""
    cell = paper.Cell(
        table=5, arch="i3d", stream="rgb", data=data, init="scratch", top1=top1, top5=None
    )
    result, _ = row("rgb", list(LABELS))
    result = replace(result, data=replace(result.data, **of))

    def score(share: float, num: int) -> Score:
        error = binomial_error(round(share * num), num)
        found = replace(result.score, top1=share, standard_error=error)
        return replace(found, num_scored=num, num_expected=num + 1)

    results = tuple(replace(result, score=score(*each)) for each in shares)
    return page.Outcome(planned=PlannedCell(cell=cell), results=results)


def test_the_standard_error_is_that_of_the_mean_of_the_splits() -> None:
    one = outcome((0.8, 100))
    assert (one.top1, one.difference, one.coverage) == (80.0, 0.0, (100, 101))
    assert one.standard_error == pytest.approx(4.0)
    three = outcome((0.8, 100), (0.8, 100), (0.8, 100))
    assert three.standard_error == pytest.approx(4.0 / 3**0.5)
    assert three.coverage == (300, 303)
    assert outcome((0.6, 10), (0.9, 10)).top1 == pytest.approx(75.0)


def test_where_all_or_none_are_right_there_is_no_standard_error() -> None:
    for shares in ([(1.0, 100)], [(0.0, 100)], [(0.8, 100), (1.0, 100)]):
        one = outcome(*shares)
        assert one.standard_error is None
        assert page.table_rows([one])[0][0]["std. error"] == "-"
        assert page.csv_rows(5, [one])[0]["standard_error"] is None


@pytest.mark.parametrize(
    ("data", "of", "num", "is_comparable"),
    [
        ("ucf101", WHOLE, 100, True),
        ("ucf101", {**WHOLE, "test_split": "ucf101/2"}, 100, True),
        ("ucf101", {**WHOLE, "train_split": "some.txt"}, 100, True),
        ("ucf101", {**WHOLE, "test_split": "some.txt"}, 100, False),
        ("ucf101", {**WHOLE, "test_split": "test"}, 100, False),
        ("ucf101", {**WHOLE, "classes": ("class 1",)}, 100, False),
        ("ucf101", {**WHOLE, "out_of_scope": {"Archery": 41}}, 100, False),
        ("ucf101", {**WHOLE, "labels": ("left", "right")}, 100, False),
        ("ucf101", {**WHOLE, "labels": known_labels("kinetics400")}, 100, False),
        ("hmdb51", WHOLE, 100, False),
        ("kinetics400", KINETICS, 19_404, True),
        ("kinetics400", {**KINETICS, "test_split": "test"}, 38_685, True),
        ("kinetics400", KINETICS, 100, False),
        ("kinetics400", {**KINETICS, "test_split": "some.txt"}, 19_404, False),
        ("kinetics400", {**KINETICS, "labels": ("left", "right")}, 19_404, False),
    ],
)
def test_a_test_on_other_clips_or_classes_has_no_difference(
    data: str, of: Mapping[str, Any], num: int, is_comparable: bool
) -> None:
    one = outcome((0.7, num), data=data, of=of)
    assert one.difference == (pytest.approx(-10.0) if is_comparable else None)
    (told,), _ = page.table_rows([one])
    assert told["difference"] == ("-10.0" if is_comparable else "-")


def test_clips_out_of_scope_are_told_beside_a_number() -> None:
    part = outcome((0.7, 100), of={**WHOLE, "out_of_scope": {"Archery": 41, "Diving": 45}})
    told, _ = page.table_rows([part, outcome((0.7, 100))])
    assert [each["to be known"] for each in told] == ["86 of 2 classes out of scope", "-"]
    whole = [outcome((0.7, 100))]
    assert "to be known" not in page.table_rows(whole)[0][0]
    notes = [each["to_be_known"] for each in page.csv_rows(4, [part, *whole])]
    assert notes == ["86 of 2 classes out of scope", ""]


def stored(out: Path, *, flow: str | None = None, **changes: Any) -> tuple[TablePlan, Setting]:
    """Table 3 of I3D's flow, of which `out` has the run from scratch, asked for with `changes`."""
    plan = plan_table(3, only("i3d", streams=("flow",)))
    setting = Setting(choices=EVERY, out=out, flow=flow)
    training = next(each for each in plan.trainings.values() if each.init == "scratch")
    asked_for = {"data": "/kinetics", "train_split": "train", "test_split": "val", **changes}
    request = Request(arch="i3d", stream="flow", recipe="paper", **asked_for)
    result, predictions = row("flow", list(LABELS))
    folder = setting.folder(training.name)
    (folder / "flow").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(request.as_json()))
    recipe = training.recipe.recipe("i3d", "flow")
    replace(result, training={"flow": recipe}).write(folder / "flow", predictions)
    return plan, setting


@pytest.mark.parametrize(
    ("changes", "flow", "said"),
    [
        ({}, None, ""),
        ({}, "tvl1", ""),
        ({"data": "/others"}, None, "data /others there, /kinetics now"),
        ({"train_split": "some"}, None, "train split some there, train now"),
        ({"test_split": "test"}, None, "test split test there, val now"),
        ({}, "nosuch", "flow tvl1 there, nosuch now"),
    ],
)
def test_a_row_of_another_request_is_not_ours(
    changes: dict[str, Any], flow: str | None, said: str, tmp_path: Path
) -> None:
    plan, setting = stored(tmp_path, flow=flow, **changes)
    (scratch,) = (each for each in plan.trainings if "+scratch+" in each)
    of_other_task, _ = page.find_outcomes(plan, setting, {}, {}, set())
    assert (of_other_task.top1 is None) == bool(said)
    where = setting.folder(scratch)
    reason = f"{where} is of another request ({said}); give another --out" if said else ""
    assert (of_other_task.gap, of_other_task.reason) == ("part" if said else "", reason)
    # What cannot be run here is told first, and a row that is ours stays one.
    problems = {(scratch, "flow"): "unknown flow 'nosuch'"}
    impossible, _ = page.find_outcomes(plan, setting, problems, {}, {scratch})
    assert (impossible.top1 is None) == bool(said)
    assert impossible.reason == ("unknown flow 'nosuch'" if said else "")
    # What ran just now was compared in full.
    done, _ = page.find_outcomes(plan, setting, {}, {}, {scratch})
    assert done.top1 is not None


def test_a_row_of_another_recipe_is_not_ours(tmp_path: Path) -> None:
    plan, setting = stored(tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    result = Result.read(folder / "flow")
    other = {"flow": replace(result.training["flow"], batch_size=3, micro_batch_size=3)}
    replace(result, training=other).write(folder / "flow", result.predictions(folder / "flow"))
    found, _ = page.find_outcomes(plan, setting, {}, {}, set())
    assert found.top1 is None
    assert "is of another request (recipe of flow paper" in found.reason


def test_a_number_that_is_not_confirmed_has_no_difference() -> None:
    rows, reasons = page.table_rows([outcome((0.8, 100), top1=None), outcome()])
    assert rows[0]["paper %"] == "not confirmed"
    assert rows[0]["difference"] == "-"
    assert rows[1]["ours %"] == "-"
    assert reasons == []


def test_table_1_is_the_papers_and_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["table", "1", "--out", str(tmp_path)]) == Exit.COMPLETE
    told = capsys.readouterr().out.splitlines()
    assert told[-2:] == [f"csv: {tmp_path}/table-1.csv", f"page: {tmp_path}/table-1.html"]
    rows = {each["architecture"]: each for each in read_csv(tmp_path / "table-1.csv")}
    assert set(rows) == set(ARCHS)
    assert rows["c3d"]["paper: parameters"] == "79 M"
    assert rows["c3d"]["ours"] == "79.63 M"
    assert rows["i3d"]["paper: test input"] == "250 rgb + 250 flow, 10 s"
    assert rows["i3d"]["our test input"] == "250 rgb + 249 flow, 10 s"
    for name, each in rows.items():
        assert each["paper: training input"] == each["our training input"], name
        if name != "i3d":
            assert each["paper: test input"] == each["our test input"], name
    assert "79.63 M" in (tmp_path / "table-1.html").read_text()


# Runs


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Iterator[None]:
    """No weights can be downloaded, wherever this runs: nothing listens on that port."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy"):
            patch.setenv(name, "http://127.0.0.1:9")
        patch.setattr(urllib.request, "_opener", None)  # one of before would know other proxies
        yield


FAST = ("--recipe", "small", "--epochs", 1, "--set", "crop_px=32", "--set", "short_side=36")
ON_CPU = ("--device", "cpu", "--amp", "none", "--workers", 0)


def words(folder: Path, *names: str) -> tuple[object, ...]:
    """The options that make data sets of parts of the tiny shards."""
    train = {"kinetics": ("ann_*",), "ucf101": ("ben_*", "cyd_*"), "hmdb51": ("ben_*",)}
    test = key_file(folder, "test.txt", "dan_*")
    found: list[object] = ["--data", ",".join(f"{name}={tiny_shards()}" for name in names)]
    for name in names:
        split = key_file(folder, f"{name}.txt", *train[name])
        found += ["--train-split", f"{name}={split}", "--test-split", f"{name}={test}"]
    return (*found, *FAST, *ON_CPU, "--out", folder / "out", "--cache-dir", folder / "cache")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(*arguments: object) -> CompletedProcess[str]:
    return run_command("run-benchmark", "table", *arguments)


def steps_trained(done: CompletedProcess[str]) -> int:
    return len(re.findall(r"steps of \d+ clips", done.stderr))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sequence[object], str]:
    """Table 3 of I3D's rgb stream on tiny shards: its folder, its words, what it printed."""
    folder = tmp_path_factory.mktemp("table")
    given = (3, "--archs", "i3d", "--streams", "rgb", *words(folder, "kinetics"))
    done = table(*given)
    assert done.returncode == Exit.PERMANENT_GAPS, done.stderr
    assert steps_trained(done) == 1
    return folder, given, done.stdout


def test_a_table_tells_ours_beside_the_papers(trained: tuple[Path, object, str]) -> None:
    folder, _, told = trained
    lines = told.splitlines()
    assert re.split(r"\s{2,}", lines[0])[5:] == [
        *("paper %", "ours %", "difference", "std. error", "scored / expected"),
        *("paper top-5", "our top-5"),
    ]
    scratch, imagenet = lines[1:3]
    assert re.search(r"scratch +original +68\.4 +\d+\.0 +- .* 2 / 2 ", scratch)
    assert re.search(r"imagenet +original +71\.1 +not run \[1\]", imagenet)
    assert lines[4].startswith("[1] imagenet weights: cannot download")
    assert "give --init" not in told  # there is none here
    assert lines[-2:] == [f"csv: {folder}/out/table-3.csv", f"page: {folder}/out/table-3.html"]


def test_the_files_have_what_is_printed(trained: tuple[Path, object, str]) -> None:
    folder, _, _ = trained
    scratch, imagenet = read_csv(folder / "out" / "table-3.csv")
    assert (scratch["paper_top1"], scratch["paper_top5"]) == ("68.4", "88.0")
    share = float(scratch["top1"]) / 100
    error = 100 * (share * (1 - share) / 2) ** 0.5
    assert float(scratch["standard_error"] or 0) == pytest.approx(error, abs=1e-3)
    assert scratch["difference"] == ""  # of clips of ours
    assert (scratch["scored"], scratch["expected"], scratch["tested_on"]) == ("2", "2", "test.txt")
    assert scratch["not_run"] == ""
    assert imagenet["top1"] == ""
    assert "cannot download" in imagenet["not_run"]
    html = (folder / "out" / "table-3.html").read_text()
    assert "68.4" in html
    assert "cannot download" in html
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", html)


def test_a_run_of_a_table_is_an_ordinary_run(trained: tuple[Path, object, str]) -> None:
    folder, _, _ = trained
    name = read_csv(folder / "out" / "table-3.csv")[0]["runs"]
    run = folder / "out" / "runs" / name
    request = json.loads((run / "run.json").read_text())
    assert (request["arch"], request["stream"], request["init"]) == ("i3d", "rgb", "scratch")
    assert cli.run(["report", str(run), "--out", str(folder / "report.html")]) == Exit.COMPLETE
    assert (folder / "report.html").exists()


def test_again_nothing_is_trained(trained: tuple[Path, Sequence[object], str]) -> None:
    folder, given, told = trained
    before = tree(folder / "out")
    again = table(*given)
    assert again.stdout == told
    assert steps_trained(again) == 0
    assert tree(folder / "out") == before


def test_a_training_that_ended_before_its_last_step_is_finished_in_a_dry_run() -> None:
    plan = plan_table(2, replace(only("c3d"), sets={"ucf101": DataSet(data="/ucf101")}))
    (name,) = plan.trainings
    (cell,) = (each for each in plan.cells if each.trainings)
    ahead = TrainingPlan(
        stream="rgb",
        recipe="ucf101 01234567",
        num_clips=9,
        num_held_out=1,
        num_steps=40,
        steps_done=8,
        num_epochs=20,
    )
    for finished, state, text in (
        (True, "finished", "to train: 0 networks, 0 steps"),
        (False, "to continue", "to train: 1 networks, 32 steps, about 0 hours on this cpu"),
    ):
        found = {(name, "rgb"): Forecast(replace(ahead, finished=finished), is_timed=True)}
        rows, _ = page.forecast_rows(plan, found, {})
        row_of = rows[plan.cells.index(cell)]
        assert (row_of["done"], row_of["state"]) == ("8", state)
        assert page.total_text(found, "cpu").startswith(text)


def test_another_task_does_not_show_a_row_of_other_data(
    trained: tuple[Path, Sequence[object], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, given, _ = trained
    kept = {name: (folder / "out" / f"table-3.{name}").read_bytes() for name in ("csv", "html")}
    shards = f"kinetics={copy_of_shards(tmp_path)}"
    words_ = [
        shards
        if str(each).startswith("kinetics=/") and not str(each).endswith(".txt")
        else str(each)
        for each in given
    ]
    cli.run(["table", *words_, "--task", "1/2"])
    (scratch,) = (line for line in capsys.readouterr().out.splitlines() if " scratch " in line)
    for name, text in kept.items():
        (folder / "out" / f"table-3.{name}").write_bytes(text)
    assert "not run [1]" in scratch


def test_a_dry_run_leaves_nothing_and_says_what_is_done(
    trained: tuple[Path, Sequence[object], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["table", *map(str, trained[1]), "--dry-run"]
    assert cli.run(given) == Exit.COMPLETE
    there = capsys.readouterr().out
    assert re.search(r"scratch +original +2 +1 +1 +0 +finished\n", there)
    assert "to train: 0 networks" in there
    assert cli.run([*given, "--out", str(tmp_path / "new")]) == Exit.COMPLETE
    new = capsys.readouterr().out
    assert re.search(r"scratch +original +2 +1 +0 +\S+ +to train\n", new)
    assert re.search(r"to train: 1 networks, 1 steps, about \S+ hours on this cpu at the rate", new)
    assert "not run [1]" in new
    assert list(tmp_path.iterdir()) == []
    assert cli.run([*given, "--force"]) == Exit.COMPLETE
    assert re.search(r"scratch +original +2 +1 +0 +\S+ +to train\n", capsys.readouterr().out)


def test_a_run_that_fails_is_told(trained: tuple[Path, Sequence[object], str]) -> None:
    """Kinetics has other clips now: the training that is there is not that one."""
    folder, given, told = trained
    split = folder / "kinetics.txt"
    text = split.read_text()
    split.write_text("ben_*\n")
    try:
        failed = table(*given)
    finally:
        split.write_text(text)
    assert failed.returncode == Exit.RETRYABLE_GAPS
    assert "holds another training" in failed.stdout
    assert "choose another --out" in failed.stdout
    assert "--work-dir" not in failed.stdout
    again = table(*given)
    assert again.returncode == Exit.PERMANENT_GAPS
    assert again.stdout == told


def test_shards_without_flow_give_rgb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = copy_of_shards(tmp_path)
    path = shards / "dataset.json"
    text = json.loads(path.read_text())
    for split in text["splits"].values():
        split["present"] = {name: num for name, num in split["present"].items() if name == "rgb"}
    path.write_text(json.dumps(text))
    given = words(tmp_path, "kinetics")
    given = (3, "--archs", "i3d", "--data", f"kinetics={shards}", *given[2:], "--dry-run")
    assert cli.run(["table", *map(str, given)]) == Exit.COMPLETE
    rows = [line for line in capsys.readouterr().out.splitlines() if " scratch " in line]
    assert [line.split()[1] for line in rows] == ["rgb", "flow", "joint"]
    assert rows[0].endswith("to train")
    assert "not run [" in rows[1]
    assert rows[1].split()[-1] == rows[2].split()[-1]


@pytest.mark.full
def test_table_4_trains_on_kinetics_and_then_on_the_small_sets(tmp_path: Path) -> None:
    given = (4, "--archs", "i3d", *words(tmp_path, "kinetics", "ucf101"))
    planned = table(*given, "--dry-run")
    assert planned.returncode == Exit.COMPLETE, planned.stderr
    states = [
        line for line in planned.stdout.splitlines() if re.search("scratch .*to train$", line)
    ]
    assert ["not known" in line for line in states] == [False, True, False, False]
    assert not (tmp_path / "out").exists()
    whole = table(*given)
    assert whole.returncode == Exit.PERMANENT_GAPS, whole.stderr
    assert steps_trained(whole) == 4 * 2
    rows = read_csv(tmp_path / "out" / "table-4.csv")
    ours = {(each["data"], each["init"], each["transfer"]): each for each in rows if each["top1"]}
    assert ours.keys() == {("ucf101", "scratch", each) for each in paper.TRANSFERS}
    folder = tmp_path / "out" / "runs" / ours["ucf101", "scratch", "fixed"]["runs"]
    request = json.loads((folder / "run.json").read_text())
    assert request["finetune"] == "last"
    assert Path(request["init"]).name.startswith("i3d+kinetics+scratch+original")
    reasons = {each["not_run"] for each in rows}
    assert any(why == "not given: --data hmdb51=DIR" for why in reasons)
    # A part that stopped is all that is trained again.
    (folder / "rgb" / "checkpoint.pt").unlink()
    (folder / "rgb" / "result.json").unlink()
    again = table(*given)
    assert steps_trained(again) == 1
    assert again.stdout == whole.stdout
    # --force trains all again, the joint rows too.
    before = (folder / "joint" / "result.json").stat().st_mtime_ns
    forced = table(*given, "--force")
    assert steps_trained(forced) == 4 * 2
    assert forced.stdout == whole.stdout
    assert (folder / "joint" / "result.json").stat().st_mtime_ns > before
    # Two tasks, and two processes, give the same.
    for more in (("--task", "0/2"), ("--task", "1/2"), ("--jobs", 2)):
        out = tmp_path / ("jobs" if "--jobs" in more else "tasks")
        done = table(*given, *more, "--out", out)
        assert done.returncode == Exit.PERMANENT_GAPS, done.stderr
        if more == ("--task", "0/2"):
            assert "not yet: it is of another task" in done.stdout
        else:
            assert done.stdout == whole.stdout.replace(str(tmp_path / "out"), str(out))
    assert read_csv(tmp_path / "tasks" / "table-4.csv") == rows


@pytest.mark.full
def test_a_network_that_fails_leaves_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what starts from its weights fails with it. Here its flow was trained on other clips."""
    given = ("table", *map(str, (5, "--archs", "i3d", *words(tmp_path, "kinetics", "ucf101"))))
    split = tmp_path / "kinetics.txt"
    text = split.read_text()
    split.write_text("ann_left\nann_right\nben_*\n")
    kinetics = ("table", "3", "--streams", "flow", *given[2:])
    assert cli.run(kinetics) == Exit.PERMANENT_GAPS
    split.write_text(text)
    (tmp_path / "out" / "table-3.csv").unlink()
    capsys.readouterr()
    assert cli.run(given) == Exit.RETRYABLE_GAPS
    rows = [
        each for each in read_csv(tmp_path / "out" / "table-5.csv") if each["init"] == "scratch"
    ]
    ours = {each["stream"]: each for each in rows if each["data"] == "ucf101"}
    assert ours["rgb"]["top1"] != ""
    for stream in ("flow", "joint"):
        assert ours[stream]["top1"] == ""
        assert "flow holds another training" in ours[stream]["not_run"]


@pytest.mark.full
def test_table_5_is_the_mean_of_official_splits(tmp_path: Path) -> None:
    lists = tmp_path / "lists" / "ucf101"
    lists.mkdir(parents=True)
    for at, (train, test) in enumerate((("ben", "cyd"), ("cyd", "dan"), ("dan", "ben")), 1):
        for role, subject in (("train", train), ("test", test)):
            lines = (f"{label}/{subject}_{label}.avi 1\n" for label in LABELS)
            (lists / f"{role}list{at:02d}.txt").write_text("".join(lines))
    _, _, *others = words(tmp_path, "kinetics")
    data = ",".join(f"{name}={tiny_shards()}" for name in ("kinetics", "ucf101"))
    given = (5, "--archs", "i3d", "--streams", "rgb", "--data", data, *others)
    given = (*given, "--splits", tmp_path / "lists")
    done = table(*given)
    assert done.returncode == Exit.PERMANENT_GAPS, done.stderr
    (ours,) = (each for each in read_csv(tmp_path / "out" / "table-5.csv") if each["top1"])
    assert ours["tested_on"] == "ucf101/1, ucf101/2, ucf101/3"
    assert (ours["scored"], ours["expected"]) == ("6", "6")
    assert len(ours["runs"].split()) == 3


@pytest.mark.full
def test_the_commands_of_the_docs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the shards that version 0.1 wrote, for all data sets, without a training."""
    unpack_written_by_0_1(tmp_path)
    for name in ("ucf101-shards", "hmdb51-shards"):
        (tmp_path / name).symlink_to("shards")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "run-benchmark.md").read_text(encoding="utf-8")
    lines = [shlex.split(line) for line in re.findall("^run-benchmark (table .*)", text, re.M)]
    assert [line[1] for line in lines] == ["1", "3", "4"]
    for line in lines:
        given = line if line[1] == "1" or "--dry-run" in line else [*line, "--dry-run"]
        assert cli.run([*given, "--cache-dir", "cache"]) == Exit.COMPLETE
        printed = capsys.readouterr().out
        assert "i3d" in printed
        titles = printed.splitlines()[0].split()[:2]
        assert titles == ["architecture", "stream"]
    shown = re.search(r"^    (architecture +stream.*)$", text, re.M)
    assert shown is not None
    assert re.split(r"\s{2,}", shown[1]) == list(page.table_rows([outcome()])[0][0])


# Bad input


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("6",), "unknown table '6'. Known: 1, 2, 3, 4, 5"),
        (("2", "--data", "kinetcs=x"), "unknown data set 'kinetcs'. Did you mean 'kinetics'?"),
        (("2", "--data", "shards"), "'shards' is not NAME=VALUE, such as ucf101=shards"),
        (("2", "--data", "ucf101="), "'ucf101=' is not NAME=VALUE"),
        (("2", "--data", ","), "no data set is named there"),
        (("2", "--data", "ucf101=a,ucf101=b"), "--data ucf101=... is given twice"),
        (("2", "--data", "ucf101=a", "--data", "ucf101=b"), "--data ucf101=... is given twice"),
        (("2",), "give --data kinetics=DIR,ucf101=DIR,hmdb51=DIR"),
        (("3", "--data", "ucf101=a"), "no cell of table 3 can be run: give --data kinetics=DIR"),
        (("2", "--data", "ucf101=nowhere"), "(or give --data ucf101=DIR)"),
        (("2", "--data", "ucf101=a", "--classes", "hmdb51=x"), "--data hmdb51=DIR"),
        (("2", "--data", "ucf101=a", "--archs", "i4d"), "Did you mean 'i3d'?"),
        (("5", "--data", "ucf101=a", "--archs", "c3d"), "table 5 has no such cell"),
        (("2", "--data", "ucf101=a", "--recipe", "smal"), "Did you mean 'small'?"),
        (("2", "--data", "ucf101=a", "--task", "2/2"), "is not I/N with I from 0 to N-1"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    done = run_command("run-benchmark", "table", *arguments, cwd=tmp_path)
    assert done.returncode == Exit.UNUSABLE
    (line,) = done.stderr.splitlines()
    assert told in line
    assert list(tmp_path.iterdir()) == []
