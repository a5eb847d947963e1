"""Held-out clips: which they are, and what they decide."""

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinetics_bench.data.splits import Selection, hold_out
from kinetics_bench.recipes import Plateau
from kinetics_bench.training import examples
from kinetics_bench.training.checkpoint import BEST, CHECKPOINT, Checkpoint
from kinetics_bench.training.examples import ClipExamples
from kinetics_bench.training.job import TrainingJob, new_network
from kinetics_bench.training.trainer import plan_training, train
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.shards.reader import Sample
from support import tree
from tiny import copy_of_shards, damage, tiny_recipe
from trainings import CPU, RECIPE, Killed, StopsAt, assert_same, job


def sample(key: str, label: str) -> Any:
    made = object.__new__(Sample)
    for name, value in {"key": key, "label": label}.items():
        object.__setattr__(made, name, value)
    return made


CLIPS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(1, 9)), unique=True, max_size=60
)


@given(CLIPS, st.floats(0.01, 0.99), st.integers(0, 9))
def test_whole_videos_are_held_out_of_every_class_that_has_two(
    clips: list[tuple[int, int, int]], share: float, seed: int
) -> None:
    names = [(f"v_{label}_g{video:02d}_c{clip:02d}", str(label)) for label, video, clip in clips]
    whole = Selection(
        name="train", samples=[sample(*name) for name in names], missing={}, labels=()
    )
    videos = {label: {v for other, v, _ in clips if other == label} for label, _, _ in clips}
    several = {str(label) for label, found in videos.items() if len(found) > 1}
    if not several:
        with pytest.raises(EvaluationError, match="no class has two videos"):
            hold_out(whole, share, seed=seed)
        return
    rest, held = hold_out(whole, share, seed=seed)
    assert sorted((*rest.keys, *held.keys)) == sorted(whole.keys)
    assert {key[:-4] for key in rest.keys}.isdisjoint(key[:-4] for key in held.keys)
    assert {each.label for each in held.samples} == several
    assert Counter(each.label for each in rest.samples).keys() == {label for _, label in names}
    shuffled = replace(whole, samples=whole.samples[::-1])
    assert hold_out(shuffled, share, seed=seed)[1].keys == held.keys


def checked(
    folder: Path, recipe: Any = RECIPE, *, shards: Path | None = None, **changes: Any
) -> TrainingJob:
    """A training on half of the tiny clips, with the others held out."""
    whole = job(folder, recipe, shards=shards)
    half = len(whole.train.samples) // 2
    parts = [
        replace(whole.train, samples=whole.train.samples[part])
        for part in (slice(half), slice(half, None))
    ]
    return replace(whole, train=parts[0], held_out=parts[1], **changes)


def test_a_look_at_held_out_clips_changes_no_weight(tmp_path: Path) -> None:
    plain = train(replace(checked(tmp_path / "a"), held_out=None), CPU)
    looked = train(checked(tmp_path / "b", check_every=2), CPU)
    assert_same(plain.net, looked.net)
    assert plain.identity == looked.identity
    assert [each.val_loss is None for each in looked.history] == [True, False, False]
    assert not (tmp_path / "a" / BEST).exists()
    best = Checkpoint.read(tmp_path / "b" / BEST)
    assert (best.best, best.step) == (looked.best, looked.best and looked.best.step)
    assert best.history == looked.history[: best.epoch]


def test_a_plateau_ends_a_training_and_a_resumed_one_is_the_same(tmp_path: Path) -> None:
    plateau = Plateau(steps=30, start_lr=1e-3, drops=1, patience=1, min_change=0.9)
    recipe = tiny_recipe(schedule=plateau)
    whole = train(checked(tmp_path / "whole", recipe), CPU)
    # The first look is an improvement; the second and third are not.
    assert (whole.epoch, whole.finished) == (3, True)
    assert [each.lr for each in whole.history] == [1e-3, 1e-3, 1e-4]
    stopped = checked(tmp_path / "part", recipe)
    first = Checkpoint.write
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def write(state: Checkpoint, path: Path) -> None:
            first(state, path)
            if state.epoch == 2 and path.name != BEST:
                raise KeyboardInterrupt

        patch.setattr(Checkpoint, "write", write)
        train(stopped, CPU)
    resumed = train(stopped, CPU, resume=True)
    assert_same(whole.net, resumed.net)
    assert resumed.losses == whole.losses
    other = replace(stopped, held_out=replace(stopped.train))
    with pytest.raises(EvaluationError, match="not the same held-out clips"):
        train(other, CPU, resume=True)


def test_a_saturated_training_has_ended_whatever_its_length(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kinetics_bench")
    plateau = Plateau(steps=9, start_lr=1e-3, drops=0, patience=1, min_change=0.9)
    short = checked(tmp_path, tiny_recipe(schedule=plateau))
    done = train(short, CPU)
    assert (done.step, done.finished) == (2, True)
    plan = plan_training(short, CPU)
    assert (plan.num_steps, plan.steps_done, plan.steps_ahead) == (9, 2, 0)
    assert plan.cells()["ahead"] == "0"
    before = tree(tmp_path)
    for length in (20, 30):
        longer = replace(short.recipe, schedule=plateau.with_length(length))
        asked = replace(short, recipe=longer)
        caplog.clear()
        grown = train(asked, CPU, extend=True)
        assert "ended at step 2, as the loss of its held-out clips has saturated" in caplog.text
        assert (grown.step, grown.recipe, grown.extended) == (2, short.recipe, [])
        assert plan_training(asked, CPU, extend=True).finished
    assert tree(tmp_path) == before
    # Its weights are those of a training that may be longer.
    fresh = train(replace(short, recipe=longer, folder=tmp_path / "fresh"), CPU)
    assert_same(fresh.net, done.net)


def test_other_held_out_clips_are_refused_once_some_were_looked_at(tmp_path: Path) -> None:
    looked = checked(tmp_path / "looked", check_every=1)
    assert looked.held_out is not None
    train(looked, CPU)
    fewer = replace(looked.held_out, name="few.txt", samples=looked.held_out.samples[:2])
    for other, words in (
        (fewer, r"\(all there, few\.txt now\)"),
        (None, r"\(all there, none now\)"),
        (replace(fewer, name="all"), "; choose another"),
    ):
        for options in ({"resume": True}, {"extend": True}, {}):
            with pytest.raises(EvaluationError, match=f"not the same held-out clips ?{words}"):
                train(replace(looked, held_out=other), CPU, **options)
    path = looked.folder / CHECKPOINT
    stored = torch.load(path, weights_only=True)
    torch.save({n: v for n, v in stored.items() if n not in ("held_out", "best")}, path)
    old = train(replace(looked, held_out=fewer), CPU)  # which clips it saw is not known
    assert old.best is not None
    assert old.best.step == stored["best"]["step"]


def test_held_out_clips_may_be_given_later_if_none_were_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = checked(tmp_path, check_every=1)
    stops = StopsAt(monkeypatch)
    stops.step = 1
    with pytest.raises(Killed):
        train(replace(asked, held_out=None), CPU)
    stops.step = -1
    done = train(asked, CPU, resume=True)
    assert asked.held_out is not None
    assert (done.num_held_out, done.val_split) == (4, "all")
    assert done.held_out == asked.held_out.contents_sha256
    assert [each.val_loss is None for each in done.history] == [True, False, False]


def test_a_held_out_clip_that_cannot_be_decoded_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held_out = checked(tmp_path).held_out
    assert held_out is not None
    shards = copy_of_shards(tmp_path)
    damage(shards, held_out.samples[0].key)
    done = train(checked(tmp_path / "run", check_every=3, shards=shards), CPU)
    assert "1 of 4 held-out clips could not be decoded and do not count" in caplog.text
    assert done.best is not None
    assert done.best.step == done.step
    assert not done.failed


@pytest.mark.parametrize("share", [0.5, 1.5, 2.5])
def test_held_out_clips_are_kept_in_the_memory_that_training_clips_leave(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for a part of the training clips, for them and a part of the others, for all."""
    given = checked(tmp_path)
    assert given.held_out is not None
    found = ClipExamples(given, CPU, new_network(given))
    found.prepare()
    training, held_out = found._clips, found._held_out
    assert held_out.cached_bytes > 0
    kept = training.cached_bytes + held_out.cached_bytes * (share - 1)
    room = training.cached_bytes * share if share < 1 else kept
    for clips in (training, held_out):
        clips.cache.clear()
    monkeypatch.setattr(examples, "CACHE_BYTES", int(room))
    found.prepare()
    assert len(training.cache) == (len(given.train.samples) if share > 1 else 0)
    assert len(held_out.cache) == (len(given.held_out.samples) if share > 2 else 0)
    assert training.cached_bytes + held_out.cached_bytes <= room
