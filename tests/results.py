"""Results of runs that nobody trained."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from kinetics_bench.archs.registry import STREAMS
from kinetics_bench.evaluation.results import Predictions, Result
from kinetics_bench.protocols import Extent
from kinetics_bench.recipes import RECIPES
from kinetics_bench.training.checkpoint import EpochRecord, InitRecord
from made_rows import made_row

FAILED = {"gone_clip": "rgb-000000.tar, sample gone_clip: <b>damaged</b>"}


def row(stream: str, labels: list[str], num_clips: int = 12) -> tuple[Result, Predictions]:
    """A row of random predictions."""
    random = np.random.default_rng(0)
    rows = {
        f"clip_{at:02d}": (labels[at % len(labels)], random.normal(size=len(labels)).tolist())
        for at in range(num_clips)
    }
    history = [
        EpochRecord(
            epoch=at,
            step=at,
            loss=1 / at,
            top1=0.5,
            lr=1e-3,
            clips=60,
            failed=1,
            seconds=2.0,
            waiting=0,
        )
        for at in (1, 2, 3)
    ]
    made = made_row("", rows, labels, FAILED, network=("i3d", stream))
    result = made.result
    data = replace(
        result.data,
        folder="some/shards",
        identity="0",
        flow="tvl1",
        failed_train={"bad": "damaged"},
        missing_train={"lost": "missing", "other": "not in the shards"},
        init=InitRecord(source="weights.pt", sha256="0123456789abcdef", finetune="last"),
    )
    cost = replace(
        result.cost,
        parameters=12_689_984,
        flops=10**11,
        precision="bfloat16",
        seconds_training=400.0,
    )
    result = replace(
        result,
        extents={"rgb": Extent(stride=2, num=None, least=16)},
        training=dict.fromkeys(result.training, RECIPES["small"]["i3d"]["rgb"]),
        data=data,
        cost=cost,
        history={} if stream == "joint" else {stream: history},
    )
    return result, made.predictions


def make_run(folder: Path, labels: list[str], streams: tuple[str, ...] = STREAMS) -> Path:
    """A run in a folder with a row per stream."""
    for stream in streams:
        result, predictions = row(stream, labels)
        (folder / stream).mkdir(parents=True)
        result.write(folder / stream, predictions)
    return folder
