"""The loader for other people's loops: exact epochs, a state, tensors in a dictionary."""

import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kinetics_bench.archs.registry import Sampling
from kinetics_bench.data import ClipLoader, network_inputs, select
from kinetics_bench.data.loader import Reader
from kinetics_bench.data.views import middle_view
from kinetics_tools.core.errors import EvaluationError, ShardError
from kinetics_tools.shards.reader import Sample, ShardFolder
from support import environment, wait_until
from tiny import ArrayClip, copy_of_shards, damage, tiny_recipe, tiny_shards

VIEW: dict[str, Any] = {"num_frames": 9, "short_side": 36, "crop_px": 32}
SMALL: dict[str, Any] = {"num_frames": 1, "short_side": 2, "crop_px": 1}


@dataclass
class Clip(ArrayClip):
    """A clip in memory of which the loader knows what it knows of a sample."""

    key: str = ""
    label_id: int | None = 0
    num_frames: int = 2
    rgb_at: str | None = "here"
    flow_at: str | None = "here"


def many(num: int, label_id: int | None = 0) -> Any:
    frames, codes = np.zeros((2, 2, 2, 3), np.uint8), np.zeros((1, 2, 2, 2), np.uint8)
    return [Clip(frames, codes, 20.0, f"key{number}", label_id) for number in range(num)]


def samples(*streams: str, shards: Path | None = None) -> list[Sample]:
    data = ShardFolder(shards or tiny_shards())
    return list(data.samples("all", streams or ("rgb",), flow="opencv-tvl1"))


def numbers(batch: dict[str, torch.Tensor]) -> list[int]:
    given: list[int] = batch["number"].tolist()
    return given


def test_a_batch_is_a_dictionary_of_tensors_of_the_same_clips() -> None:
    chosen = samples("rgb", "flow")
    loader = ClipLoader(chosen, streams=("flow", "rgb"), batch_size=3, **VIEW)
    assert len(loader) == 3
    seen = []
    for batch in loader:
        assert list(batch) == ["rgb", "flow", "label_id", "number"]
        size = len(batch["number"])
        assert batch["rgb"].shape == (size, 3, 9, 32, 32)
        assert batch["flow"].shape == (size, 2, 9, 32, 32)
        assert batch["rgb"].dtype == batch["flow"].dtype == torch.float32
        assert all(batch[s].min() >= -1 and batch[s].max() <= 1 for s in ("rgb", "flow"))
        assert batch["label_id"].tolist() == [chosen[n].label_id for n in numbers(batch)]
        seen += numbers(batch)
    assert sorted(seen) == list(range(8))


def test_the_views_are_those_that_run_benchmark_trains_on() -> None:
    chosen = samples("rgb", "flow")
    loader = ClipLoader(chosen, streams=("rgb", "flow"), batch_size=8, bound=10.0, **VIEW)
    recipe = tiny_recipe(sampling={s: Sampling(9) for s in ("rgb", "flow")})
    from kinetics_bench.data import ClipDataset

    theirs = ClipDataset.for_training(chosen, Reader(recipe, 10.0), seed=0)
    for epoch in range(2):
        (batch,) = loader
        for at, number in enumerate(numbers(batch)):
            crops = theirs[epoch, number].clips
            assert crops is not None
            for stream, one in zip(
                ("rgb", "flow"), network_inputs(crops, torch.device("cpu")), strict=True
            ):
                assert torch.equal(batch[stream][at], one[0])


@given(st.integers(8, 30), st.integers(2, 40), st.integers(0, 1))
def test_both_streams_of_a_clip_are_cut_at_one_time_and_place(
    num_frames: int, wanted: int, training: int
) -> None:
    """Frames have their number as red, and codes of field t the number t, at every pixel."""
    height, width = 36, 44
    place = np.arange(height)[:, None] * 5 + np.arange(width)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[..., 0] = np.arange(num_frames)[:, None, None]
    frames[..., 1:] = place[None, ..., None]
    codes = np.empty((num_frames - 1, height, width, 2), np.uint8)
    codes[..., 1] = place[None]
    codes[..., 0] = np.arange(num_frames - 1)[:, None, None]
    clip: Any = Clip(frames, codes, 127.5, "key", 0, num_frames)
    options = VIEW | {"num_frames": wanted, "bound": 127.5, "training": bool(training)}
    (batch,) = ClipLoader([clip], streams=("rgb", "flow"), **options)
    rgb, flow = (batch[stream][0] * 127.5 for stream in ("rgb", "flow"))
    assert torch.allclose(rgb[1], flow[1], atol=0.01)  # the same place, flipped or not
    x = flow[0] if not (rgb[1, 0, 0, 0] > rgb[1, 0, 0, -1]) else -flow[0]
    assert torch.allclose(rgb[0], x, atol=0.01)  # the same times


@settings(max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 8),
    st.booleans(),
)
def test_each_clip_is_given_once_for_any_processes_also_where_they_change(
    num: int, size: int, processes: int, next_size: int, others: int, steps: int, training: bool
) -> None:
    assume(num >= max(processes, others))
    clips = many(num)

    def loaders(of: int, batch_size: int) -> list[ClipLoader]:
        options = SMALL | {"batch_size": batch_size, "num_processes": of, "training": training}
        return [ClipLoader(clips, rank=rank, **options) for rank in range(of)]

    before = loaders(processes, size)
    assert len({len(loader) for loader in before}) == 1
    reads = [islice(loader, steps) for loader in before]
    given = [[numbers(batch) for batch in read] for read in reads]
    states = [loader.state_dict() for loader in before]
    assert all(state == states[0] for state in states)
    assert all(0 < len(part) <= size + 1 for parts in given for part in parts)

    after = loaders(others, next_size)
    for loader in after:
        loader.load_state_dict(states[0])
    seen = sorted(n for parts in given for part in parts for n in part)
    rest = [[numbers(batch) for batch in loader] for loader in after]
    assert len({len(parts) for parts in rest}) == 1
    left = sorted(n for parts in rest for part in parts for n in part)
    if len(left) >= others:
        assert all(part for parts in rest for part in parts)
    if len(seen) == num:  # the epoch had ended: this is the next one
        assert left == list(range(num))
        assert all(loader.epoch == 1 for loader in after)
    else:
        assert sorted(seen + left) == list(range(num))
        assert all(loader.epoch == 0 for loader in after)
    following = sorted(n for loader in after for batch in loader for n in numbers(batch))
    assert following == list(range(num))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_follows_a_state_is_what_would_have_followed(num_workers: int) -> None:
    chosen = samples("rgb", "flow")
    options = VIEW | {"streams": ("rgb", "flow"), "batch_size": 3, "num_workers": num_workers}
    whole = ClipLoader(chosen, **options)
    expected = [batch for _ in range(2) for batch in whole]
    for done in range(1, 6):
        loader = ClipLoader(chosen, **options)
        given, state = 0, None
        while state is None:
            for _ in loader:  # what workers have read ahead does not count
                given += 1
                if given == done:
                    state = pickle.loads(pickle.dumps(loader.state_dict()))
                    break
        other = ClipLoader(chosen, **(options | {"num_workers": 0}))
        other.load_state_dict(state)
        rest = [batch for _ in range(2) for batch in other][: 6 - done]
        for one, two in zip(expected[done:], rest, strict=True):
            assert one.keys() == two.keys()
            assert all(torch.equal(one[name], two[name]) for name in one)


def test_another_epoch_has_another_order_and_a_loop_that_was_left_begins_the_next() -> None:
    loader = ClipLoader(many(20), **(SMALL | {"batch_size": 20}))
    first, second = (numbers(next(iter(loader))) for _ in range(2))
    assert first != second and sorted(first) == sorted(second) == list(range(20))
    assert loader.epoch == 1
    fixed = ClipLoader(many(20), training=False, **(SMALL | {"batch_size": 20}))
    assert [numbers(next(iter(fixed))) for _ in range(2)] == [list(range(20))] * 2


@pytest.mark.parametrize(
    "change",
    [
        {"clips": -1},
        {"clips": 9},
        {"clips": "1"},
        {"epoch": None},
        {"order": "other"},
        {"version": 2},
        {"version": torch.zeros(300)},
        {"clips": torch.zeros(300)},
    ],
)
def test_a_state_of_something_else_is_refused(change: dict[str, Any]) -> None:
    loader = ClipLoader(many(8), **SMALL)
    with pytest.raises(ValueError, match=r"clips|version|Expected|other samples") as caught:
        loader.load_state_dict(loader.state_dict() | change)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    for other in (
        ClipLoader(many(7), **SMALL),
        ClipLoader(many(8), seed=1, **SMALL),
        ClipLoader(many(8), training=False, **SMALL),
    ):
        with pytest.raises(ValueError, match="other samples, seed or training"):
            loader.load_state_dict(other.state_dict())
    assert sum(len(batch["number"]) for batch in loader) == 8


@pytest.mark.parametrize("state", [None, 3, "state", [1]])
def test_a_state_that_is_no_dictionary_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match="a state is a dictionary, not"):
        ClipLoader(many(8), **SMALL).load_state_dict(state)


def test_what_else_a_state_has_is_not_looked_at() -> None:
    loader = ClipLoader(many(8), **SMALL)
    loader.load_state_dict(loader.state_dict() | {"weights": torch.zeros(10**6)})


def test_only_the_newest_iterator_counts() -> None:
    loader = ClipLoader(many(8), **(SMALL | {"batch_size": 2}))
    older = iter(loader)
    next(older)
    newer = iter(loader)
    next(older)
    assert loader.state_dict()["clips"] == 0
    assert loader.state_dict()["epoch"] == 1
    next(newer)
    assert loader.state_dict()["clips"] == 2


def test_samples_that_cannot_be_told_apart_or_lack_a_stream_are_refused() -> None:
    with pytest.raises(ValueError, match="a key is there twice"):
        ClipLoader([*many(3), *many(1)], **SMALL)
    with pytest.raises(ValueError, match="sample ann_left was read without rgb or flow"):
        ClipLoader(samples("rgb"), streams=("rgb", "flow"), **VIEW)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_need_not_be_a_list(num_workers: int) -> None:
    lazy = ShardFolder(tiny_shards()).samples("all", ("rgb",))
    loader = ClipLoader(lazy, num_workers=num_workers, **VIEW)
    assert sorted(n for batch in loader for n in numbers(batch)) == list(range(8))


@pytest.mark.parametrize(
    "change",
    [
        {"streams": ()},
        {"streams": ("rgb", "depth")},
        {"num_frames": 0},
        {"stride": 0},
        {"crop_px": 3},
        {"crop_px": 0},
        {"flip": 1.5},
        {"flip": float("nan")},
        {"bound": 0.0},
        {"bound": float("inf")},
        {"bound": float("nan")},
        {"batch_size": 0},
        {"num_workers": -1},
        {"rank": 2, "num_processes": 2},
        {"rank": -1, "num_processes": 2},
        {"rank": 1},
        {"num_processes": 4},
        {"num_frames": 1.5},
        {"stride": float("nan")},
        {"stride": 2**70},
        {"batch_size": "2"},
        {"num_workers": 1.5},
        {"crop_px": None},
        {"seed": "2"},
        {"training": "no"},
        {"flip": "x"},
        {"streams": "rgb"},
        {"streams": None},
        {"rank": 0, "num_processes": 9},
        {"rank": 0, "num_processes": 0},
    ],
)
def test_options_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(change)) as caught:
        ClipLoader(many(8), **(SMALL | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [None, "shards", ["a"], ShardFolder, iter(())])
def test_what_are_no_samples_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"samples are those of select\(\.\.\.\)\.samples or"):
        ClipLoader(given, **SMALL)


def test_no_clips_are_no_loader() -> None:
    with pytest.raises(ValueError, match="0 clips for num_processes 1: each needs one or more"):
        ClipLoader([], **SMALL)


LEFT_OPEN = """
import sys
from kinetics_bench.data import ClipLoader
from kinetics_tools.shards import ShardFolder

chosen = ShardFolder(sys.argv[1]).samples("all", ("rgb",))
loader = ClipLoader(chosen, num_frames=9, short_side=36, crop_px=32, batch_size=1, num_workers=2)
batches = iter(loader)
next(batches)
{end}
"""


@pytest.mark.parametrize(("end", "code"), [("", 0), ("raise ValueError('mine')", 1)])
def test_a_program_that_leaves_a_loader_open_ends(end: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN.format(end=end), tiny_shards()],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr


def test_samples_without_labels_give_no_labels() -> None:
    (batch,) = ClipLoader(many(3, None), **SMALL)
    assert list(batch) == ["rgb", "number"]
    (batch,) = ClipLoader([*many(3, 0), *many(5, None)[3:]], **SMALL)
    assert list(batch) == ["rgb", "number"]


def test_the_middle_of_a_clip_is_its_middle() -> None:
    framing = tiny_recipe(sampling={"rgb": Sampling(4, 2)})
    view = middle_view(15, framing)
    assert (view.top, view.left, view.flip) == (0.5, 0.5, False)
    assert view.indices["rgb"].tolist() == [4, 6, 8, 10]
    assert middle_view(5, framing).indices["rgb"].tolist() == [0, 2, 4, 1]  # it is looped


def test_clips_that_cannot_be_decoded_are_left_out_named_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = copy_of_shards(tmp_path)
    damage(shards, "ben_left")
    chosen = samples(shards=shards)
    loader = ClipLoader(chosen, batch_size=1, num_workers=2, **VIEW)
    with caplog.at_level(logging.WARNING):
        given = [batch for _ in range(2) for batch in loader]
    assert len(given) == 16  # as many as without the damage: other processes count on it
    empty = [batch for batch in given if len(batch["number"]) == 0]
    assert [batch["rgb"].shape for batch in empty] == [(0, 3, 9, 32, 32)] * 2
    assert [batch["label_id"].shape for batch in empty] == [(0,)] * 2
    assert list(loader.failed) == ["ben_left"]
    assert caplog.text.count("sample ben_left") == 1
    seen = sorted(n for batch in given[:8] for n in numbers(batch))
    assert [chosen[n].key for n in seen] == [s.key for s in chosen if s.key != "ben_left"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_that_is_truncated_between_epochs_is_named(
    num_workers: int, tmp_path: Path
) -> None:
    shards = copy_of_shards(tmp_path)
    loader = ClipLoader(samples(shards=shards), num_workers=num_workers, **VIEW)
    assert sum(len(batch["number"]) for batch in loader) == 8
    tar = shards / "all" / "rgb-000000.tar"
    os.truncate(tar, tar.stat().st_size // 2)
    with pytest.raises(ShardError, match=r"rgb-000000\.tar"):
        list(loader)
    shutil.copy(tiny_shards() / "all" / "rgb-000000.tar", tar)
    assert sum(len(batch["number"]) for batch in loader) == 8


KILL = """
import multiprocessing, os, signal, sys
from kinetics_bench.data import ClipLoader
from kinetics_tools import KineticsError, shards

chosen = shards.ShardFolder(sys.argv[1]).samples("all", ("rgb",))
options = {"num_frames": 9, "short_side": 36, "crop_px": 32, "batch_size": 1}
loader = ClipLoader(chosen, num_workers=1, **options)
seen, state = [], None
try:
    for batch in loader:
        # At once: the signal of a worker's end may come at any call.
        seen, state = [*seen, *batch["number"].tolist()], loader.state_dict()
        if len(seen) == 1:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
except (KineticsError, RuntimeError) as error:
    print(type(error).__name__, str(error).count("\\n"), str(error)[:100])
other = ClipLoader(chosen, **options)
other.load_state_dict(state)
print(sorted(seen + [n for batch in other for n in batch["number"].tolist()]))
print(multiprocessing.active_children())
"""


def test_a_worker_that_is_killed_is_an_error_and_the_state_goes_on() -> None:
    """In a process of its own, of which the workers are the children."""
    done = subprocess.run(
        [sys.executable, "-c", KILL, tiny_shards()],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    error, seen, left = done.stdout.splitlines()
    assert error.startswith(
        ("EvaluationError 0 a process that reads clips has ended", "RuntimeError")
    )
    assert "DataLoader worker" in error
    assert seen == str(list(range(8)))
    assert left == "[]"


def test_a_worker_that_is_killed_while_a_batch_is_waited_for_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hang(*_: object) -> Any:
        time.sleep(1000)

    monkeypatch.setattr(Sample, "rgb", hang)
    before = set(multiprocessing.active_children())
    batches = iter(ClipLoader(samples(), num_workers=1, **VIEW))

    def kill(*_: object) -> None:
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()

    handler = signal.signal(signal.SIGALRM, kill)
    try:
        signal.setitimer(signal.ITIMER_REAL, 2)
        with pytest.raises(EvaluationError, match="a process that reads clips has ended") as caught:
            next(batches)
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert "\n" not in str(caught.value)


def test_torchrun_gives_each_process_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        seen += [n for batch in ClipLoader(many(8), **SMALL) for n in numbers(batch)]
    assert sorted(seen) == list(range(8))


def test_select_gives_its_samples() -> None:
    chosen = select(ShardFolder(tiny_shards()), "all", role="train", streams=("rgb",))
    loader = ClipLoader(chosen.samples, batch_size=8, num_workers=1, **VIEW)
    (batch,) = loader
    number = numbers(batch)[0]
    assert loader.dataset[0, number].key == chosen.samples[number].key


def test_a_loop_that_is_left_ends_its_workers() -> None:
    before = set(multiprocessing.active_children())
    loader = ClipLoader(samples(), num_workers=2, **(VIEW | {"batch_size": 1}))
    for _ in loader:
        break
    wait_until(lambda: set(multiprocessing.active_children()) <= before, seconds=30)
