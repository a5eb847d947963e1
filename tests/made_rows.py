"""Rows made of logits, for tests of what is done with results."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kinetics_bench.evaluation.results import (
    Cost,
    DataRecord,
    Predictions,
    Result,
    find_origin,
    score,
)
from kinetics_bench.evaluation.rows import Row
from kinetics_bench.protocols import PROTOCOLS, Extent
from kinetics_bench.recipes import recipe_for
from kinetics_tools.shards.records import StreamRecipe


def made_row(
    folder: str | Path,
    clips: Mapping[str, tuple[str, Sequence[float]]],
    labels: Sequence[str],
    failed: Mapping[str, str] | None = None,
    *,
    network: tuple[str, str] = ("i3d", "rgb"),
    **changes: Any,
) -> Row:
    """A row of clips: key -> label, logits in the order of `labels`; `changes` of its result."""
    rows = {
        key: (list(labels).index(label), np.array(logits, np.float32))
        for key, (label, logits) in clips.items()
    }
    predictions = Predictions.of(rows, failed or {})
    arch, stream = network
    streams = ("rgb", "flow") if stream == "joint" else (stream,)
    result = Result(
        arch=arch,
        stream=stream,
        protocol=PROTOCOLS["whole"],
        extents={name: Extent(stride=2, num=None, least=16) for name in streams},
        score=score(predictions),
        training={name: recipe_for("small", arch, name) for name in streams},
        recipes={"rgb": StreamRecipe.of({"fps": 25})},
        data=DataRecord(
            folder="shards",
            identity={"weights": "0", "order, labels or bytes of the clips": "1"},
            labels=tuple(labels),
            flow="tvl1" if "flow" in streams else "",
            train_split="train",
            num_train=60,
            failed_train={},
            test_split="val",
        ),
        cost=Cost(
            parameters=100,
            flops=1000,
            flops_shape=((3, 64, 224, 224),),
            device="cpu",
            num_threads=2,
            num_processes=1,
            precision="float32",
            seconds_training=40.0,
            seconds_evaluation=3.0,
        ),
        origin=find_origin(),
        failed=predictions.failed,
        history={},
    )
    return Row(Path(folder), replace(result, **changes), predictions)


def written_row(folder: Path, row: Row) -> Path:
    """The folder, which then holds the row."""
    folder.mkdir(parents=True)
    row.result.write(folder, row.predictions)
    return folder
