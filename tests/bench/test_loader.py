"""The loader: exact epochs, and the same views however they are read."""

import errno
import multiprocessing
import os
import pickle
import signal
import sys
import time
from contextlib import closing
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinetics_bench.archs.registry import CHANNELS, Sampling
from kinetics_bench.data import handover
from kinetics_bench.data.inputs import network_inputs
from kinetics_bench.data.loader import (
    BatchPlan,
    ClipDataset,
    Item,
    Reader,
    eval_items,
    train_batches,
)
from kinetics_bench.data.views import seeded_rng, train_view
from kinetics_bench.protocols import Extent
from kinetics_tools.core.errors import ShardError, StoreError
from kinetics_tools.shards.reader import Sample, ShardFolder
from support import wait_until
from tiny import ArrayClip, copy_of_shards, damage, tiny_recipe, tiny_shards

RECIPE = tiny_recipe(sampling={"rgb": Sampling(9, 2)}, batch_size=3, micro_batch_size=3)
WHOLE = {"rgb": Extent(stride=2, num=None, least=9)}


def clips(shards: Path, *streams: str) -> ClipDataset:
    """Training views of 9 frames, fields or both."""
    recipe = replace(RECIPE, sampling={s: Sampling(9, 2) for s in streams or ("rgb",)})
    samples = ShardFolder(shards).samples("all", recipe.streams, flow="opencv-tvl1")
    return ClipDataset.for_training(samples, Reader(recipe, 20.0), seed=0)


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 7), st.integers(1, 5))
def test_an_epoch_is_every_clip_once_over_all_processes(
    num_clips: int, batch_size: int, micro_batch_size: int, num_processes: int
) -> None:
    recipe = replace(RECIPE, batch_size=batch_size, micro_batch_size=micro_batch_size)
    plans = [BatchPlan(num_clips, recipe, 0, rank, num_processes) for rank in range(num_processes)]
    epochs = [list(plan.steps(4)) for plan in plans]
    assert {len(steps) for steps in epochs} == {plans[0].steps_per_epoch}
    parts = [part for steps in epochs for step in steps for part in step.micro_batches]
    assert sorted(number for part in parts for number in part) == list(range(num_clips))
    assert min(map(len, parts)) == plans[0].smallest_micro_batch
    rounds = []  # of each the clips of all processes
    for steps in zip(*epochs, strict=True):
        of_processes = [step.micro_batches for step in steps]
        assert {step.num_rounds for step in steps} == {max(map(len, of_processes))}
        rounds += [sum(map(len, each)) for each in zip_longest(*of_processes, fillvalue=())]
    assert min(rounds) == plans[0].smallest_round
    if num_clips > 1 and batch_size > 1 and micro_batch_size > 2:
        assert all(len(part) > 1 for part in parts)  # batch norm cannot train on one clip
    assert all(len(part) <= micro_batch_size for part in parts)
    for steps in zip(*epochs, strict=True):
        batch = [n for step in steps for part in step.micro_batches for n in part]
        assert {step.num_clips for step in steps} == {len(batch)}
        assert all(
            len(numbers) <= micro_batch_size for step in steps for numbers in step.micro_batches
        )


def test_the_order_is_another_each_epoch_and_the_same_each_run() -> None:
    plan = BatchPlan(50, RECIPE, 0)
    assert list(plan.steps(1)) == list(plan.steps(1))
    assert list(plan.steps(1)) != list(plan.steps(2))
    assert list(plan.steps(1)) != list(BatchPlan(50, RECIPE, 1).steps(1))


@pytest.mark.parametrize("streams", [("rgb",), ("flow",), ("rgb", "flow")])
def test_views_do_not_depend_on_workers_memory_or_where_the_run_began(
    streams: tuple[str, ...],
) -> None:
    plan = BatchPlan(8, RECIPE, 0)
    read = [
        b.clips
        for b in train_batches(clips(tiny_shards(), *streams), plan, range(3), num_workers=0)
    ]
    cached = clips(tiny_shards(), *streams)
    assert cached.cache_in_memory(2**30)
    from_memory = [b.clips for b in train_batches(cached, plan, range(3), num_workers=0)]
    by_workers = [
        b.clips
        for b in train_batches(clips(tiny_shards(), *streams), plan, range(1, 3), num_workers=2)
    ]
    assert len(read) == 9
    for found, expected in zip([*from_memory, *by_workers], [*read, *read[3:]], strict=True):
        assert found is not None and expected is not None
        assert tuple(found.streams) == streams
        inputs = (network_inputs(each, torch.device("cpu")) for each in (found, expected))
        for stream, one, other in zip(streams, *inputs, strict=True):
            assert one.shape == other.shape == (len(one), CHANNELS[stream], 9, 32, 32)
            assert torch.equal(one, other)
            assert one.abs().max() <= 1


def test_clips_that_do_not_fit_in_memory_are_not_cached() -> None:
    dataset = clips(tiny_shards())
    assert not dataset.cache_in_memory(10_000)
    assert dataset.cache == {}


def test_a_damaged_clip_is_an_item_that_says_so(tmp_path: Path) -> None:
    shards = copy_of_shards(tmp_path)
    damage(shards, "ben_left")
    for num_workers in (0, 2):
        samples = ShardFolder(shards).samples("all", ("rgb",))
        dataset = ClipDataset.for_evaluation(samples, Reader(RECIPE, 1.0), WHOLE)
        items = list(eval_items(dataset, range(8), num_workers=num_workers))
        failed = {item.key: item.failure for item in items if item.clips is None}
        assert list(failed) == ["ben_left"]
        assert "rgb-000000.tar, sample ben_left" in failed["ben_left"]
        batches = list(
            train_batches(clips(shards), BatchPlan(8, RECIPE, 0), range(1), num_workers=num_workers)
        )
        assert [item.key for batch in batches for item in batch.failed] == ["ben_left"]
        assert sum(len(batch.label_ids) for batch in batches) == 7


def test_a_clip_of_which_one_stream_is_damaged_fails_as_a_whole(tmp_path: Path) -> None:
    shards = copy_of_shards(tmp_path)
    damage(shards, "ben_left")  # its rgb; its flow is as it was
    for cached in (False, True):
        dataset = clips(shards, "rgb", "flow")
        if cached:
            assert dataset.cache_in_memory(2**30)
        batches = list(train_batches(dataset, BatchPlan(8, RECIPE, 0), range(1), num_workers=0))
        assert [item.key for batch in batches for item in batch.failed] == ["ben_left"]
        for batch in batches:
            assert batch.clips is not None
            assert {len(each) for each in batch.clips.streams.values()} == {len(batch.label_ids)}


def test_both_streams_of_a_view_have_one_crop_and_one_mirror() -> None:
    """A clip whose flow is a copy of its first two colours: both views must stay copies."""

    frames = np.random.default_rng(0).integers(0, 256, (12, 40, 48, 3)).astype(np.uint8)
    copied = ArrayClip(frames, frames[..., :2], bound=127.5)
    recipe = replace(RECIPE, sampling={"rgb": Sampling(3, 4), "flow": Sampling(3, 4)})
    reader = Reader(replace(recipe, short_side=40), 127.5)
    flips = set()
    for seed in range(8):
        view = train_view(12, reader.framing, seeded_rng(seed, 0, "key"))
        rgb, flow = network_inputs(reader.clips(copied, view), torch.device("cpu"))
        flips.add(view.flip)
        signs = torch.tensor([-1.0 if view.flip else 1.0, 1.0]).reshape(2, 1, 1, 1)
        torch.testing.assert_close(flow, signs * rgb[:, :2], atol=1e-6, rtol=0)
    assert flips == {False, True}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_shard_stops_the_run_in_one_line(tmp_path: Path, num_workers: int) -> None:
    shards = copy_of_shards(tmp_path)
    samples: list[Sample] = list(ShardFolder(shards).samples("all", ("rgb",)))
    tar = shards / "all" / "rgb-000000.tar"
    tar.write_bytes(tar.read_bytes()[:4000])
    dataset = ClipDataset.for_evaluation(samples, Reader(RECIPE, 1.0), WHOLE)
    with pytest.raises(ShardError, match="does not hold") as caught:
        list(eval_items(dataset, range(8), num_workers=num_workers))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="what is mapped is read in /proc")
def test_workers_hand_clips_over_outside_dev_shm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that torch makes there are limited to 64 MB in a container."""
    monkeypatch.setattr(handover, "IN_THE_QUEUE", 2**12)
    training = clips(tiny_shards())
    evaluation = ClipDataset.for_evaluation(training.samples, training.reader, WHOLE)
    batches = train_batches(training, BatchPlan(8, RECIPE, 0), range(1), num_workers=1)
    items = eval_items(evaluation, range(2), num_workers=1)
    with closing(batches), closing(items):
        for crops in (next(batches).clips, next(items).clips):
            assert crops is not None
            assert crops.streams["rgb"].nbytes > 2**12
            mapped = Path("/proc/self/maps").read_text()
            assert "/memfd:" in mapped
            assert "/dev/shm/torch" not in mapped
            del crops


def test_where_there_are_no_files_in_memory_the_clips_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_file() -> int:
        raise OSError(errno.EMFILE, "too many open files")

    dataset = ClipDataset.for_evaluation(clips(tiny_shards()).samples, Reader(RECIPE, 1.0), WHOLE)
    expected = [item.clips for item in eval_items(dataset, range(4), num_workers=0)]
    with monkeypatch.context() as elsewhere:
        elsewhere.delattr(os, "memfd_create", raising=False)
        files = list(eval_items(dataset, range(4), num_workers=2))
    monkeypatch.setattr(handover, "open_memory_file", no_file)
    queued = list(eval_items(dataset, range(4), num_workers=2))
    for items in (files, queued):
        for item, clip in zip(items, expected, strict=True):
            assert item.clips is not None and clip is not None
            assert torch.equal(item.clips.streams["rgb"], clip.streams["rgb"])


def test_a_dataset_can_be_sent_to_spawned_workers() -> None:
    training = clips(tiny_shards())
    evaluation = ClipDataset.for_evaluation(training.samples, training.reader, WHOLE)
    for dataset in (training, evaluation):
        sent = pickle.loads(pickle.dumps(dataset))
        one, other = dataset[2, 5].clips, sent[2, 5].clips
        assert one is not None and other is not None
        assert torch.equal(one.streams["rgb"], other.streams["rgb"])


class Sleeping(ClipDataset):
    """A disk or a store that hangs."""

    def __getitem__(self, index: tuple[int, int]) -> Item:
        time.sleep(1000)
        raise AssertionError("nobody waits so long")


def test_processes_that_wait_for_a_store_end_with_their_reader() -> None:
    whole = clips(tiny_shards())
    sleeping = Sleeping(whole.samples, whole.reader, whole.view_of)

    def give_up(*_: object) -> None:
        raise KeyboardInterrupt

    before = set(multiprocessing.active_children())
    handler = signal.signal(signal.SIGALRM, give_up)
    try:
        signal.setitimer(signal.ITIMER_REAL, 2)
        with pytest.raises(KeyboardInterrupt):
            next(eval_items(sleeping, range(8), num_workers=2))
    finally:
        signal.signal(signal.SIGALRM, handler)
    wait_until(lambda: set(multiprocessing.active_children()) <= before, seconds=30)


def test_a_store_that_fails_is_not_asked_for_all_other_clips(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = clips(tiny_shards())
    asked = []

    def rgb(sample: Sample, *_: object) -> Any:
        asked.append(sample.key)
        if len(asked) > 2:
            raise StoreError("no answer")
        return np.zeros((14, 40, 48, 3), np.uint8)

    monkeypatch.setattr(Sample, "rgb", rgb)
    with pytest.raises(StoreError):
        dataset.cache_in_memory(2**30)
    assert len(asked) == 3
