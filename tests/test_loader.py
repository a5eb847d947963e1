"""The loader: exact epochs, and the same views however they are read."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import copy_of_shards, damage, tiny_shards

from benchmarks.loader import Clips, Plan, Reader, eval_items, train_batches
from benchmarks.protocols import PROTOCOLS
from benchmarks.recipes import RECIPES
from kinetics_tools.errors import ShardError
from kinetics_tools.shards import Sample, ShardFolder

RECIPE = replace(
    RECIPES["small"]["rgb"], num_frames=9, stride=2, short_side=36, crop_px=32, batch_size=3
)


def clips(shards: Path, stream: str = "rgb") -> Clips:
    samples = ShardFolder(shards).samples("all", (stream,), flow="opencv-tvl1")
    return Clips.for_training(samples, Reader(stream, RECIPE, 20.0), seed=0)


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 7), st.integers(1, 5))
def test_an_epoch_is_every_clip_once_over_all_processes(
    num_clips: int, batch_size: int, pass_size: int, num_processes: int
) -> None:
    recipe = replace(RECIPE, batch_size=batch_size, pass_size=pass_size)
    plans = [Plan(num_clips, recipe, 0, rank, num_processes) for rank in range(num_processes)]
    epochs = [list(plan.steps(4)) for plan in plans]
    assert {len(steps) for steps in epochs} == {plans[0].steps_per_epoch}
    seen = [n for steps in epochs for step in steps for numbers in step.passes for n in numbers]
    assert sorted(seen) == list(range(num_clips))
    for steps in zip(*epochs, strict=True):
        batch = [n for step in steps for numbers in step.passes for n in numbers]
        assert {step.num_clips for step in steps} == {len(batch)}
        assert all(len(numbers) <= pass_size for step in steps for numbers in step.passes)


def test_the_order_is_another_each_epoch_and_the_same_each_run() -> None:
    plan = Plan(50, RECIPE, 0)
    assert list(plan.steps(1)) == list(plan.steps(1))
    assert list(plan.steps(1)) != list(plan.steps(2))
    assert list(plan.steps(1)) != list(Plan(50, RECIPE, 1).steps(1))


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_views_do_not_depend_on_workers_memory_or_where_the_run_began(stream: str) -> None:
    plan = Plan(8, RECIPE, 0)
    read = [
        b.clips for b in train_batches(clips(tiny_shards(), stream), plan, range(3), num_workers=0)
    ]
    kept = clips(tiny_shards(), stream)
    assert kept.keep(2**30)
    from_memory = [b.clips for b in train_batches(kept, plan, range(3), num_workers=0)]
    by_workers = [
        b.clips
        for b in train_batches(clips(tiny_shards(), stream), plan, range(1, 3), num_workers=2)
    ]
    assert len(read) == 9
    for found, expected in zip([*from_memory, *by_workers], [*read, *read[3:]], strict=True):
        assert found is not None and expected is not None
        assert found.shape == expected.shape == (len(found), 3 if stream == "rgb" else 2, 9, 32, 32)
        assert torch.equal(found, expected)
        assert found.abs().max() <= 1


def test_clips_that_do_not_fit_in_memory_are_not_kept() -> None:
    dataset = clips(tiny_shards())
    assert not dataset.keep(10_000)
    assert dataset.kept == {}


def test_a_damaged_clip_is_an_item_that_says_so(tmp_path: Path) -> None:
    shards = copy_of_shards(tmp_path)
    damage(shards, "ben_left")
    for num_workers in (0, 2):
        samples = ShardFolder(shards).samples("all", ("rgb",))
        reader = Reader("rgb", RECIPE, 1.0)
        dataset = Clips.for_evaluation(samples, reader, PROTOCOLS["whole"])
        items = list(eval_items(dataset, range(8), num_workers=num_workers))
        failed = {item.key: item.failure for item in items if item.clip is None}
        assert list(failed) == ["ben_left"]
        assert "rgb-000000.tar, sample ben_left" in failed["ben_left"]
        batches = list(
            train_batches(clips(shards), Plan(8, RECIPE, 0), range(1), num_workers=num_workers)
        )
        assert [item.key for batch in batches for item in batch.failed] == ["ben_left"]
        assert sum(len(batch.label_ids) for batch in batches) == 7


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_shard_stops_the_run_in_one_line(tmp_path: Path, num_workers: int) -> None:
    shards = copy_of_shards(tmp_path)
    samples: list[Sample] = list(ShardFolder(shards).samples("all", ("rgb",)))
    tar = shards / "all" / "rgb-000000.tar"
    tar.write_bytes(tar.read_bytes()[:4000])
    dataset = Clips.for_evaluation(samples, Reader("rgb", RECIPE, 1.0), PROTOCOLS["whole"])
    with pytest.raises(ShardError, match="does not hold") as caught:
        list(eval_items(dataset, range(8), num_workers=num_workers))
    assert "\n" not in str(caught.value)
