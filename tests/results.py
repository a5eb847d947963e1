"""Results of runs that nobody trained."""

from pathlib import Path

import numpy as np

from kinetics_bench.archs.registry import STREAMS
from kinetics_bench.evaluation.results import (
    Cost,
    DataRecord,
    Predictions,
    Result,
    find_origin,
    score,
)
from kinetics_bench.protocols import PROTOCOLS, Extent
from kinetics_bench.recipes import RECIPES
from kinetics_bench.training.checkpoint import EpochRecord, InitRecord
from kinetics_tools.shards.records import StreamRecipe

FAILED = {"gone_clip": "rgb-000000.tar, sample gone_clip: <b>damaged</b>"}


def row(stream: str, labels: list[str], num_clips: int = 12) -> tuple[Result, Predictions]:
    """A row of random predictions."""
    random = np.random.default_rng(0)
    rows = {
        f"clip_{at:02d}": (at % len(labels), random.normal(size=len(labels)).astype(np.float32))
        for at in range(num_clips)
    }
    predictions = Predictions.of(rows, FAILED)
    recipe = RECIPES["small"]["i3d"]["rgb"]
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
    streams = ("rgb", "flow") if stream == "joint" else (stream,)
    result = Result(
        arch="i3d",
        stream=stream,
        protocol=PROTOCOLS["whole"],
        extents={"rgb": Extent(stride=2, num=None, least=16)},
        score=score(predictions),
        training=dict.fromkeys(streams, recipe),
        recipes={"rgb": StreamRecipe.of({"fps": 25})},
        data=DataRecord(
            folder="some/shards",
            identity="0",
            labels=tuple(labels),
            flow="tvl1",
            train_split="train",
            num_train=60,
            failed_train={"bad": "damaged"},
            missing_train={"lost": "missing", "other": "not in the shards"},
            test_split="val",
            init=InitRecord(source="weights.pt", sha256="0123456789abcdef", finetune="last"),
        ),
        cost=Cost(
            parameters=12_689_984,
            flops=10**11,
            flops_shape=((3, 64, 224, 224),),
            device="cpu",
            num_threads=2,
            num_processes=1,
            precision="bfloat16",
            seconds_training=400.0,
            seconds_evaluation=3.0,
        ),
        origin=find_origin(),
        failed=FAILED,
        history={} if stream == "joint" else {stream: history},
    )
    return result, predictions


def make_run(folder: Path, labels: list[str], streams: tuple[str, ...] = STREAMS) -> Path:
    """A run in a folder with a row per stream."""
    for stream in streams:
        result, predictions = row(stream, labels)
        (folder / stream).mkdir(parents=True)
        result.write(folder / stream, predictions)
    return folder
