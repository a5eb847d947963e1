"""Trainings on the tiny shards, in this process and in several, and their ends."""

import multiprocessing
import os
import pickle
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from kinetics_bench.archs.registry import ARCHS
from kinetics_bench.data.splits import select
from kinetics_bench.device import Machine, open_machine
from kinetics_bench.recipes import OneCycle, Recipe
from kinetics_bench.training.checkpoint import CHECKPOINT, Checkpoint
from kinetics_bench.training.job import TrainingJob
from kinetics_bench.training.trainer import train
from kinetics_tools.shards.reader import ShardFolder
from tiny import tiny_recipe, tiny_shards

CPU = Machine(torch.device("cpu"))
RECIPE = tiny_recipe(schedule=OneCycle(epochs=3, peak_lr=1e-3))


def job(
    folder: Path, recipe: Recipe = RECIPE, *, shards: Path | None = None, **changes: Any
) -> TrainingJob:
    """A training on the tiny shards; `recipe` sees as much of a clip as the network needs."""
    data = ShardFolder(shards or tiny_shards())
    arch, stream = changes.setdefault("arch", "i3d"), changes.setdefault("stream", "rgb")
    streams = ARCHS[arch].clips_of(stream)
    chosen = select(data, "all", role="train", streams=streams, flow="opencv-tvl1")
    values: dict[str, Any] = {
        "recipe": replace(recipe, sampling=tiny_recipe(arch, stream).sampling),
        "data": data,
        "flow": "opencv-tvl1",
        "train": chosen,
        "seed": 0,
        "folder": folder,
    }
    return TrainingJob(**(values | changes))


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Check that two state dicts are equal, bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


class Killed(Exception):
    """Stands for the end of the process."""


class StopsAt:
    """Stands for the end of the process, once the checkpoint of a step is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step = -1
        write = Checkpoint.write

        def writing(checkpoint: Checkpoint, path: Path) -> None:
            write(checkpoint, path)
            if checkpoint.step == self.step:
                raise Killed

        monkeypatch.setattr(Checkpoint, "write", writing)


def call_as(rank: int, num: int, port: int, work: bytes) -> None:
    """One of `num` processes: calls a function with its machine."""
    torch.set_num_threads(1)  # all of them share this machine's cores
    if num > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(num)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    function, options = pickle.loads(work)
    with open_machine("cpu", "none", **options) as machine:
        function(machine)


def start_processes(
    function: Callable[[Machine], object], num: int, **options: Any
) -> list[BaseProcess]:
    """Start `num` processes that compute together; `options` are those of `open_machine`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not forks of this process: threads of torch that ran in it are missing in a fork, which hangs.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["kinetics_bench.training.trainer"])
    # As bytes: of an object torch would share each weight by a file descriptor, which are too many.
    work = pickle.dumps((function, options))
    processes = [server.Process(target=call_as, args=(n, num, port, work)) for n in range(num)]
    for process in processes:
        process.start()
    return list(processes)


def in_processes(function: Callable[[Machine], object], num: int, **options: Any) -> None:
    """Call a function in `num` processes that compute together; all must end well."""
    processes = start_processes(function, num, **options)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * num


def train_or_resume(given: TrainingJob, machine: Machine) -> None:
    """Train in one of several processes."""
    train(given, machine, resume=True)


def run_processes(
    given: TrainingJob, num: int, seconds: float | None = None, **options: Any
) -> bool:
    """Train in `num` processes, killed `seconds` after the next checkpoint; whether it ended."""
    path = given.folder / CHECKPOINT
    before = path.stat().st_mtime_ns if path.exists() else 0
    processes = start_processes(partial(train_or_resume, given), num, **options)
    if seconds is not None:
        while not path.exists() or path.stat().st_mtime_ns == before:
            if not any(process.is_alive() for process in processes):
                break
            time.sleep(0.01)
        time.sleep(seconds)
        for process in processes:
            process.kill()
    for process in processes:
        process.join()
    return all(process.exitcode == 0 for process in processes)
