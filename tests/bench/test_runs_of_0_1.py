"""Runs that version 0.1 wrote are read: checkpoint, result, request; nothing is trained again."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from kinetics_bench.evaluation.results import PREDICTIONS, Predictions, Result
from kinetics_bench.inference.networks import networks_of_run, read_request
from support import ROOT, run_command

# The command that wrote the run, but for its folders; its weights were set to zero later.
TRAINING = (
    *("--arch", "i3d", "--stream", "flow", "--recipe", "small", "--epochs", 1, "--batch-size", 4),
    *("--seed", 3, "--flow", "opencv-tvl1", "--workers", 0),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, shards and a run. The request in the run names the shards at /data/shards."""
    folder = tmp_path_factory.mktemp("written")
    with tarfile.open(ROOT / "tests" / "golden" / "written_by_0.1.tar.xz") as members:
        members.extractall(folder, filter="data")
    return folder


def copy_of_run(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "run", tmp_path / "run"))


def test_a_checkpoint_and_a_request_are_read(written: Path) -> None:
    request = read_request(written / "run")
    assert (request.arch, request.stream, request.recipe) == ("i3d", "flow", "small")
    (checkpoint,) = networks_of_run(written / "run")
    assert checkpoint.finished
    assert checkpoint.labels == ("going left", "going right")
    assert checkpoint.data.recipes.keys() == {"rgb", "flow-opencv-tvl1"}
    assert checkpoint.data.flow_recipe is not None
    assert checkpoint.data.flow_recipe.method == "opencv-tvl1"
    assert (checkpoint.history[0].epoch, checkpoint.init.source) == (1, "scratch")


def test_a_result_is_written_as_it_was_read(written: Path, tmp_path: Path) -> None:
    folder = written / "run" / "flow"
    result = Result.read(folder)
    result.write(tmp_path, Predictions.read(folder / PREDICTIONS, result.failed))
    assert (tmp_path / "result.json").read_bytes() == (folder / "result.json").read_bytes()


def test_a_checkpoint_is_written_as_it_was_read(written: Path, tmp_path: Path) -> None:
    (checkpoint,) = networks_of_run(written / "run")
    checkpoint.write(tmp_path / "checkpoint.pt")
    there, here = (
        torch.load(path, weights_only=True)
        for path in (written / "run" / "flow" / "checkpoint.pt", tmp_path / "checkpoint.pt")
    )
    for name in there.keys() - {"net", "optimizer"}:
        assert here[name] == there[name], name
    assert here.keys() == there.keys()


def test_a_finished_training_is_reused(written: Path, tmp_path: Path) -> None:
    run = copy_of_run(written, tmp_path)
    before = (run / "flow" / "checkpoint.pt").stat().st_mtime_ns
    folders = ("--data", written / "shards", "--work-dir", run)
    done = run_command("run-benchmark", *TRAINING, *folders)
    assert done.returncode == 0, done.stderr
    assert "trained already" in done.stderr
    assert "evaluated already" in done.stderr
    assert (run / "flow" / "checkpoint.pt").stat().st_mtime_ns == before


def test_a_run_is_reported_and_evaluated_on_other_clips(written: Path, tmp_path: Path) -> None:
    run = copy_of_run(written, tmp_path)
    done = run_command("run-benchmark", "report", run, "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    options = ("--data", written / "shards", "--test-split", "train", "--workers", 0)
    done = run_command("run-benchmark", "evaluate", run, *options)
    assert done.returncode == 0, done.stderr
    (folder,) = run.glob("evaluate-*")
    values = json.loads((folder / "flow" / "result.json").read_text())
    assert values["data"]["test_split"] == "train"
    assert values["score"]["num_scored"] == 4
