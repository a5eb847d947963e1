"""Predictions of several views of a clip: each decoded once, the mean of their softmax."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kinetics_bench.data.loader import Reader
from kinetics_bench.data.splits import select
from kinetics_bench.data.views import crop_of, several_views
from kinetics_bench.evaluation.evaluate import Test as Evaluation
from kinetics_bench.evaluation.evaluate import Viewing, evaluate, predict_split
from kinetics_bench.protocols import PROTOCOLS, protocol_named
from kinetics_bench.recipes import OneCycle, recipe_for
from kinetics_bench.training.checkpoint import Checkpoint
from kinetics_bench.training.trainer import train
from kinetics_tools.shards.reader import Sample, ShardFolder
from support import run_command
from tiny import key_file, tiny_recipe, tiny_shards
from trainings import CPU, job

FLOW = "opencv-tvl1"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """By stream, a network after one epoch; that of both sees them at different strides."""
    folder = tmp_path_factory.mktemp("run")
    schedule = OneCycle(epochs=1, peak_lr=1e-3)
    i3d = tiny_recipe(schedule=schedule)
    both = tiny_recipe("two-stream", "joint", schedule=schedule)
    return {
        "rgb": train(job(folder / "rgb", i3d), CPU),
        "joint": train(job(folder / "joint", both, arch="two-stream", stream="joint"), CPU),
    }


def asked(protocol: str, streams: tuple[str, ...], num_workers: int = 0) -> Evaluation:
    data = ShardFolder(tiny_shards())
    return Evaluation(
        data=data,
        selection=select(data, "all", role="test", streams=streams, flow=FLOW),
        flow=FLOW,
        protocol=protocol_named(protocol),
        num_workers=num_workers,
    )


@pytest.mark.parametrize(
    ("name", "stream"), [("2x3", "rgb"), ("1x1", "rgb"), ("3x2", "joint"), ("2x1", "joint")]
)
def test_a_prediction_is_the_mean_softmax_of_views_read_one_by_one(
    name: str, stream: str, checkpoints: dict[str, Checkpoint]
) -> None:
    checkpoint, protocol = checkpoints[stream], protocol_named(name)
    streams = ("rgb",) if stream == "rgb" else ("rgb", "flow")
    test = asked(name, streams)
    predictions = predict_split(checkpoint, test, CPU)
    net = CPU.place(checkpoint.network())
    reader = Reader(checkpoint.recipe, checkpoint.data.bound)
    one = Viewing.of(checkpoint, PROTOCOLS["whole"])
    for sample in test.selection.samples:
        views = several_views(14, checkpoint.recipe, protocol.clips, protocol.crops)
        assert len(views) >= protocol.crops
        logits = [one.logits(net, reader.clips(sample, view), 14, CPU) for view in views]
        mean = torch.softmax(torch.stack(logits).double(), dim=1).mean(dim=0)
        row = predictions.logits[predictions.keys.index(sample.key)]
        np.testing.assert_allclose(np.exp(row), mean.numpy(), atol=2e-6)


class Sure(torch.nn.Module):
    """A network whose logits are far apart, and the same for every view."""

    logits = torch.tensor([300.0, *range(-1, -9, -1), 1.0])

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(clips), -1)


@pytest.mark.parametrize("name", ["1x1", "2x3"])
def test_the_mean_keeps_the_order_of_the_least_probable_classes(
    name: str, checkpoints: dict[str, Checkpoint]
) -> None:
    viewing = Viewing.of(checkpoints["rgb"], protocol_named(name))
    sample = asked(name, ("rgb",)).selection.samples[0]
    clip = viewing.reader.clips(sample, viewing.read(sample.num_frames))
    mean = viewing.logits(Sure(), clip, sample.num_frames, CPU)
    assert mean.argsort().tolist() == Sure.logits.argsort().tolist()
    np.testing.assert_allclose(mean, torch.log_softmax(Sure.logits.double(), 0), rtol=1e-6)


def test_crops_are_those_of_the_recipe_and_not_those_of_the_papers() -> None:
    recipe = recipe_for("paper", "i3d", "rgb")
    rows = {
        crop_of(view, 256, 340, recipe.crop_px)[0].indices(256)[:2]
        for view in several_views(250, recipe, 10, 3)
    }
    assert rows == {(16, 240)}
    for name in ("10x3", "5x3"):
        assert "with the recipe's crop in place of its own" in PROTOCOLS[name].source


def test_a_clip_is_decoded_once_for_all_its_views(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[list[int]] = []
    rgb = Sample.rgb

    def counted(sample: Sample, indices: list[int], window: object = None) -> object:
        numbers.append(indices)
        return rgb(sample, indices, window)  # type: ignore[arg-type]

    monkeypatch.setattr(Sample, "rgb", counted)
    predict_split(checkpoints["rgb"], asked("10x3", ("rgb",)), CPU)
    assert numbers == [list(range(14))] * 8


def test_views_do_not_depend_on_workers_or_processes(checkpoints: dict[str, Checkpoint]) -> None:
    here = predict_split(checkpoints["rgb"], asked("4x3", ("rgb",)), CPU)
    workers = predict_split(checkpoints["rgb"], asked("4x3", ("rgb",), 2), CPU)
    assert here.keys == workers.keys
    assert np.array_equal(here.logits, workers.logits)


@pytest.mark.full
def test_results_of_other_views_do_not_mix(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    first = evaluate(checkpoints["rgb"], asked("2x3", ("rgb",)), tmp_path, CPU)
    assert evaluate(checkpoints["rgb"], asked("2x3", ("rgb",)), tmp_path, CPU) == first
    other = evaluate(checkpoints["rgb"], asked("3x2", ("rgb",)), tmp_path, CPU)
    assert other.data.identity != first.data.identity
    one = evaluate(checkpoints["rgb"], asked("1x1", ("rgb",)), tmp_path, CPU)
    assert first.cost.flops == 6 * one.cost.flops


@pytest.mark.full
def test_the_commands_take_any_number_of_views(tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    words = (
        *("--arch", "i3d", "--stream", "rgb", "--recipe", "sample", "--epochs", 1),
        *("--data", tiny_shards(), "--work-dir", work_dir, "--protocol", "2x3"),
        *("--train-split", key_file(tmp_path, "train.txt", "ann_*")),
        *("--test-split", key_file(tmp_path, "test.txt", "ben_*")),
    )
    done = run_command("run-benchmark", *words)
    assert done.returncode == 0, done.stderr
    result = json.loads((work_dir / "rgb" / "result.json").read_text())
    assert (result["protocol"]["name"], result["score"]["num_scored"]) == ("2x3", 2)
    again = run_command("run-benchmark", "evaluate", work_dir, "--protocol", "1x3")
    assert again.returncode == 0, again.stderr
    refused = run_command("run-benchmark", "evaluate", work_dir, "--protocol", "0x3")
    assert refused.returncode == 2
    assert "protocol" in refused.stderr.splitlines()[-1]
    video = next((tiny_shards().parent / "clips").rglob("*.mp4"))
    predicted = run_command("run-benchmark", "predict", video, "--work-dir", work_dir)
    assert predicted.returncode == 0, predicted.stderr
