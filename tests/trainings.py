"""Trainings on the tiny shards."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kinetics_bench.archs.registry import ARCHS
from kinetics_bench.data.splits import select
from kinetics_bench.device import Machine
from kinetics_bench.recipes import OneCycle, Recipe
from kinetics_bench.training.job import TrainingJob
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
