"""Trainings that go on: after a stop, to a greater length, with several seeds; and their plans."""

import html
import json
import logging
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kinetics_bench import cli
from kinetics_bench.commands.repeat import asked_of
from kinetics_bench.evaluation.groups import groups
from kinetics_bench.evaluation.rows import find_row, find_rows
from kinetics_bench.recipes import MultiStep, OneCycle
from kinetics_bench.training import trainer
from kinetics_bench.training.checkpoint import BEST, CHECKPOINT, Checkpoint, Look
from kinetics_bench.training.log import LOG
from kinetics_bench.training.trainer import plan_training, train
from kinetics_tools.core.errors import EvaluationError, KineticsError
from support import tree
from tiny import key_file, tiny_shards
from trainings import CPU, RECIPE, assert_same, job

Call = Callable[..., str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process: its stdout."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert cli.run([str(word) for word in words]) == 0
        return capsys.readouterr().out

    return run


def asked(folder: Path, *more: object, **fields: object) -> tuple[object, ...]:
    """A training of one epoch on small frames; `fields` of its recipe are others."""
    chosen = {"short_side": 36, "crop_px": 32, "held_out": 0.4, **fields}
    small = [f"--set={name}={value}" for name, value in chosen.items()]
    return (
        *("--arch", "two-stream", "--stream", "rgb", "--recipe", "small", "--epochs", 1, *small),
        *("--data", tiny_shards(), "--amp", "none", "--batch-size", 2, "--eval-every", 1),
        *("--train-split", key_file(folder, "train.txt", "ann_*", "ben_*", "cyd_*")),
        *("--test-split", key_file(folder, "test.txt", "dan_*"), *more),
    )


def test_a_finished_training_is_made_longer(tmp_path: Path) -> None:
    short = job(tmp_path, replace(RECIPE, schedule=OneCycle(epochs=1, peak_lr=1e-3)))
    done = train(short, CPU)
    longer = replace(short, recipe=RECIPE)
    with pytest.raises(EvaluationError, match=r"not the same recipe \(epochs 1 there, 3 now\)"):
        train(longer, CPU, resume=True)
    grown = train(longer, CPU, extend=True)
    assert (grown.epoch, grown.finished, len(grown.history)) == (3, True, 3)
    assert grown.history[0] == done.history[0]
    (extension,) = Checkpoint.read(tmp_path / "checkpoint.pt").extended
    assert (extension.epoch, extension.recipe) == (1, short.recipe)
    assert train(longer, CPU).step == grown.step  # reused
    assert (grown.recipe.hash, grown.recipe.name) == (longer.recipe.hash, "tiny+extended-at-2")
    with pytest.raises(EvaluationError, match="3 epochs, which is longer than 1"):
        train(short, CPU, extend=True)
    other = replace(longer, recipe=replace(RECIPE, dropout=0.1))
    with pytest.raises(EvaluationError, match="not the same recipe"):
        train(other, CPU, extend=True)


@pytest.mark.full
def test_a_training_that_ended_within_an_epoch_is_made_longer(tmp_path: Path) -> None:
    recipe = replace(RECIPE, batch_size=4, micro_batch_size=2)  # two steps per epoch
    stones = MultiStep(milestones=((2, 1e-3), (3, 1e-4)))
    short = job(tmp_path, replace(recipe, schedule=stones))
    assert train(short, CPU).epoch == 2
    longer = replace(short, recipe=replace(recipe, schedule=stones.with_length(5)))
    grown = train(longer, CPU, extend=True)
    assert (grown.step, grown.epoch, grown.finished) == (5, 3, True)
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [(line["epoch"], line["step"], line["clips"]) for line in lines] == [
        *((1, 2, 8), (2, 4, 8), (3, 5, 4))
    ]
    for each in (short, longer):  # the plan of what is finished, within an epoch too
        folder = tmp_path / f"{each.recipe.schedule.length}"
        train(replace(each, folder=folder), CPU)
        plan = plan_training(replace(each, folder=folder), CPU)
        assert (plan.steps_done, plan.seconds) == (plan.num_steps, 0.0)


def test_the_best_look_stays_the_best_when_its_epoch_is_reopened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two steps per epoch the looks are at steps 2 and 3, and, made longer, at 4 and 6."""
    looks = iter([(1.0, 0.5), (0.9, 0.75), (5.0, 0.625), (2.0, 0.75)])
    monkeypatch.setattr(trainer._Training, "_check", lambda _: next(looks))
    stones = MultiStep(milestones=((2, 1e-3), (3, 1e-4)))
    recipe = replace(RECIPE, batch_size=2, micro_batch_size=2, schedule=stones)
    whole = job(tmp_path, recipe, check_every=1)
    parts = [
        replace(whole.train, samples=whole.train.samples[part])
        for part in (slice(4), slice(4, None))
    ]
    short = replace(whole, train=parts[0], held_out=parts[1])
    assert train(short, CPU).best == Look(step=3, loss=0.9, top1=0.75)
    before = (tmp_path / BEST).read_bytes()
    longer = replace(short, recipe=replace(recipe, schedule=stones.with_length(6)))
    grown = train(longer, CPU, extend=True)
    assert [each.val_top1 for each in grown.history] == [0.5, 0.625, 0.75]
    assert grown.best == Checkpoint.read(tmp_path / CHECKPOINT).best
    assert grown.best == Look(step=3, loss=0.9, top1=0.75)
    assert (tmp_path / BEST).read_bytes() == before


@pytest.mark.full
def test_a_run_is_resumed_by_its_name_and_made_longer(
    tmp_path: Path, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kinetics_bench")
    work_dir = tmp_path / "run"
    told = call(*asked(tmp_path, "--sync-bn", "--work-dir", work_dir))
    assert call("resume", work_dir) == told  # without --sync-bn it would be another training
    assert "--sync-bn changes nothing: this is one process" in caplog.text
    with pytest.raises(KineticsError, match="was begun with --seed 0 and goes on with it: leave"):
        call("resume", work_dir, "--seed", 1)
    assert call("resume", work_dir, "--seed", 0) == told
    call("resume", work_dir, "--epochs", 2)
    grown = Checkpoint.read(work_dir / "rgb" / CHECKPOINT)
    assert (grown.epoch, len(grown.extended), grown.num_held_out) == (2, 1, 2)
    row = find_row(work_dir, "rgb")
    result = row.result
    assert [each.name for each in result.training.values()] == [grown.recipe.name]
    fresh = {name: replace(each, name="small") for name, each in result.training.items()}
    as_fresh = replace(result, training=fresh, seed=7)
    assert groups([row, replace(row, result=as_fresh)]) == []
    others = [replace(row, result=replace(as_fresh, seed=seed)) for seed in (7, 8)]
    assert len(groups([row, *others])) == 1
    overrides = json.loads((work_dir / "run.json").read_text())["overrides"]
    assert overrides["schedule.epochs"] == 2
    # A run that stopped between run.json and its first step: run.json says where it goes.
    whole = call(*asked(tmp_path, "--work-dir", tmp_path / "other"))
    assert whole
    request = json.loads((tmp_path / "other" / "run.json").read_text())
    request["overrides"]["schedule.epochs"] = 2
    (tmp_path / "other" / "run.json").write_text(json.dumps(request))
    call("resume", tmp_path / "other")
    again = Checkpoint.read(tmp_path / "other" / "rgb" / CHECKPOINT)
    assert_same(again.net, grown.net)


def test_the_commands_of_a_page_repeat_a_training_that_was_made_longer(
    tmp_path: Path, call: Call
) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    call(*asked(tmp_path, "--work-dir", run))
    for length in (2, 4):
        call("resume", run, "--epochs", length)
    told = asked_of(run)
    assert told is not None
    commands = [shlex.split(each.replace(str(run), str(again))) for each in told.commands]
    assert [each[1:] for each in commands[1:]] == [
        ["resume", str(again), "--epochs", "2"],
        ["resume", str(again), "--epochs", "4"],
    ]
    for words in commands:
        call(*words[1:])
    one, other = (Checkpoint.read(each / "rgb" / CHECKPOINT) for each in (run, again))
    assert_same(one.net, other.net)
    assert (one.recipe, one.identity) == (other.recipe, other.identity)
    page = (run / "report.html").read_text()
    assert all(html.escape(each) in page for each in told.commands)
    # A training that was stopped and then made longer cannot be told exactly, and that is told.
    first, *_ = one.extended
    other.extended = [replace(first, epoch=0, step=1), *one.extended[1:]]
    other.write(again / "rgb" / CHECKPOINT)
    told = asked_of(again)
    assert told is not None
    assert told.commands[1].endswith(" --epochs 2  # rgb went on from step 1, before its end")
    (again / "rgb" / CHECKPOINT).unlink()
    told = asked_of(again)
    assert told is not None
    assert len(told.commands) == 1


def test_the_best_checkpoint_is_evaluated_apart(tmp_path: Path, call: Call) -> None:
    work_dir = tmp_path / "run"
    call(*asked(tmp_path, "--work-dir", work_dir))
    for more, done in (((), "2"), (("--force",), "0")):
        told = call(*asked(tmp_path, "--work-dir", work_dir, "--dry-run", *more)).splitlines()
        titles, plan = (re.split(r"\s{2,}", line.strip()) for line in told[:2])
        assert plan[titles.index("done")] == done
    (rgb := work_dir / "rgb").joinpath(BEST).rename(rgb / "away")
    with pytest.raises(EvaluationError, match=r"has no best\.pt: train with --eval-every"):
        call("evaluate", work_dir, "--best")
    (rgb / "away").rename(rgb / BEST)
    before = (rgb / "result.json").read_bytes()
    call("evaluate", work_dir, "--best")
    assert (rgb / "result.json").read_bytes() == before
    evaluation = work_dir / "evaluate-best"
    files = sorted(evaluation.rglob("*"))
    with pytest.raises(KineticsError, match=f"is an evaluation of the run {work_dir}; give "):
        call("resume", evaluation)
    assert sorted(evaluation.rglob("*")) == files
    other = work_dir / "evaluate-best" / "rgb" / "result.json"
    there, here = (json.loads(path.read_text()) for path in (other, rgb / "result.json"))
    assert there["score"] == here["score"]  # of one epoch, which is the best one
    assert (there["best"], "best" in here) == (True, False)
    assert [*find_rows([work_dir])] == [work_dir, evaluation]
    again = Checkpoint.read(rgb / BEST)
    kept = (rgb / BEST).read_bytes()
    next(iter(again.net.values())).add_(1)
    again.write(rgb / BEST)  # as an epoch that is better would
    assert [*find_rows([work_dir])] == [work_dir]
    (rgb / BEST).unlink()  # as a training without a look at held-out clips, that was forced, would
    assert [*find_rows([work_dir])] == [work_dir]
    (rgb / BEST).write_bytes(kept)
    assert (here["data"]["num_held_out"], here["data"]["val_split"]) == (2, "held out of train.txt")
    call(*asked(tmp_path, "--work-dir", tmp_path / "next", "--init", work_dir))  # the last one


def test_a_validation_on_clips_of_the_test_is_told(
    tmp_path: Path, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    val = key_file(tmp_path, "val.txt", "dan_left")
    call(*asked(tmp_path, "--work-dir", tmp_path / "run", "--val-split", val, "--dry-run"))
    assert "1 of the 2 clips of the test decide which checkpoint is the best" in caplog.text
    caplog.clear()
    call(*asked(tmp_path, "--work-dir", tmp_path / "run", "--dry-run"))
    assert "of the test decide" not in caplog.text


@pytest.mark.parametrize(
    ("words", "fields", "said"),
    [
        ((), {"crop_px": 16}, "needs at least 1 frames of 32x32 pixels, got 1 of 16x16"),
        ((), {"crop_pix": 32}, "Did you mean 'crop_px'"),
        ((), {"held_out": 0}, "--eval-every looks at the loss of held-out clips"),
        (("--val-split", "val"), {}, "no val split 'val': "),
        (("--steps", "3"), {}, "it counts epochs: give --epochs N"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    words: tuple[str, ...], fields: dict[str, int], said: str, tmp_path: Path, call: Call
) -> None:
    given = asked(tmp_path, "--work-dir", tmp_path / "run", "--dry-run", *words, **fields)
    with pytest.raises(KineticsError) as caught:
        call(*given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dry_run_writes_nothing(tmp_path: Path, call: Call) -> None:
    words = asked(tmp_path, "--work-dir", tmp_path / "run", "--dry-run")
    before = tree(tmp_path)
    table = call(*words)
    assert tree(tmp_path) == before
    title, row = table.splitlines()
    assert title.split()[:3] == ["stream", "recipe", "clips"]
    assert "small+batch-2+epochs-1+short_side-36+crop_px-32+held_out-0.4" in row


def test_several_seeds_are_runs_of_their_own_with_a_mean(tmp_path: Path, call: Call) -> None:
    table = call(*asked(tmp_path, "--work-dir", tmp_path / "run", "--seed", "3,5"))
    seeds = {
        path.name: Checkpoint.read(path / "rgb" / CHECKPOINT).seed
        for path in tmp_path.glob("run+*")
    }
    assert seeds == {"run+seed-3": 3, "run+seed-5": 5}
    tops = [
        json.loads((tmp_path / name / "rgb" / "result.json").read_text())["score"]["top1"]
        for name in seeds
    ]
    assert "mean and standard deviation:" in table
    assert f" 2 seeds  {100 * sum(tops) / 2:.1f} ± " in table.splitlines()[-1]


@pytest.mark.parametrize("text", ["a", "1,", "0.5", ""])
def test_seeds_are_whole_numbers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run(["--arch", "i3d", "--seed", text])
    assert "is no whole number, or several as 0,1,2" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "twice"), [("0,0", 0), ("1,2,01", 1), ("3,-0,0", 0)])
def test_a_seed_that_is_given_twice_is_refused(
    text: str, twice: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.run(["--arch", "i3d", "--seed", text])
    assert f"seed {twice} is given twice; leave one of them out" in capsys.readouterr().err


def test_recipes_are_printed_as_they_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes"]) == 0
    assert "hmdb51" in capsys.readouterr().out
    assert cli.run(["recipes", "small", "--arch", "c3d", "--lr", "0.01"]) == 0
    assert 'name = "small+lr-0.01"' in capsys.readouterr().out
