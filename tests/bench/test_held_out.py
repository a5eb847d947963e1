"""Held-out clips: which they are, and what they decide."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_bench.data.splits import Selection, hold_out
from kinetics_bench.recipes import Plateau
from kinetics_bench.training import examples
from kinetics_bench.training.checkpoint import BEST, Checkpoint
from kinetics_bench.training.examples import ClipExamples
from kinetics_bench.training.job import TrainingJob, new_network
from kinetics_bench.training.trainer import train
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.shards.reader import Sample
from tiny import copy_of_shards, damage, tiny_recipe
from trainings import CPU, RECIPE, assert_same, job


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
    assert best.epoch == looked.best_epoch
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


def test_a_held_out_clip_that_cannot_be_decoded_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held_out = checked(tmp_path).held_out
    assert held_out is not None
    shards = copy_of_shards(tmp_path)
    damage(shards, held_out.samples[0].key)
    done = train(checked(tmp_path / "run", check_every=3, shards=shards), CPU)
    assert "1 of 4 held-out clips could not be decoded and do not count" in caplog.text
    assert done.best_epoch == 3
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
