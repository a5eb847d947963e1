"""An evaluation in TensorBoard: its scores and figures, each once."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kinetics_bench.data.splits import select
from kinetics_bench.evaluation.evaluate import Test as Asked
from kinetics_bench.evaluation.evaluate import evaluate
from kinetics_bench.protocols import PROTOCOLS
from kinetics_bench.training.checkpoint import Checkpoint
from kinetics_bench.training.log import EVENTS
from kinetics_bench.training.trainer import train
from kinetics_tools.shards.reader import ShardFolder
from tiny import tiny_shards
from trainings import CPU, job


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return train(job(tmp_path_factory.mktemp("training"), arch="two-stream", stream="rgb"), CPU)


def asked() -> Asked:
    data = ShardFolder(tiny_shards())
    chosen = select(data, "all", role="test", streams=("rgb",), flow="opencv-tvl1")
    return Asked(data=data, selection=chosen, flow="", protocol=PROTOCOLS["whole"], num_workers=0)


def shown(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[int]]]:
    """Steps and values of the scalars, and steps of the images, by name."""
    events = EventAccumulator(str(folder / EVENTS / "evaluation")).Reload()
    tags = events.Tags()
    scalars = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in tags["scalars"]}
    return scalars, {name: [e.step for e in events.Images(name)] for name in tags["images"]}


def test_an_evaluation_is_written_once_and_a_reused_one_not_again(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    result = evaluate(checkpoint, asked(), tmp_path, CPU)
    assert result.seed == checkpoint.seed == 0
    scalars, images = shown(tmp_path)
    assert scalars == {
        f"evaluation/{name}": [(3, float(np.float32(getattr(result.score, name))))]
        for name in ("top1", "mean_class")  # top5 says nothing of two classes
    }
    names = ("classes", "confusion", "filters/rgb")
    assert images == {f"evaluation/{name}": [3] for name in names}
    files = sorted((tmp_path / EVENTS / "evaluation").iterdir())
    evaluate(checkpoint, asked(), tmp_path, CPU)  # reused
    assert sorted((tmp_path / EVENTS / "evaluation").iterdir()) == files


def test_one_that_is_done_again_takes_the_place_of_the_first(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    evaluate(checkpoint, asked(), tmp_path, CPU)
    (first,) = (tmp_path / EVENTS / "evaluation").iterdir()
    start, second, rest = re.split(r"(?<=tfevents\.)(\d+)", first.name)
    first.rename(first.with_name(f"{start}{int(second) - 60}{rest}"))  # of a minute ago
    other = replace(checkpoint, net={name: 2 * each for name, each in checkpoint.net.items()})
    result = evaluate(other, asked(), tmp_path, CPU)
    scalars, images = shown(tmp_path)
    assert scalars["evaluation/top1"] == [(3, float(np.float32(result.score.top1)))]
    assert set(map(len, images.values())) == {1}
