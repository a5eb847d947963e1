"""Runs that version 0.1 wrote are read: checkpoint, result, request; nothing is trained again."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from kinetics_bench.evaluation.results import PREDICTIONS, Predictions, Result
from kinetics_bench.inference.networks import networks_of_run, read_request
from kinetics_tools.core.errors import EvaluationError
from support import left_by_a_killed_process, run_command, unpack_written_by_0_1

# The command that wrote the run, but for its folders; its weights were set to zero later.
TRAINING = (
    *("--arch", "i3d", "--stream", "flow", "--recipe", "small", "--epochs", 1, "--batch-size", 4),
    *("--seed", 3, "--flow", "opencv-tvl1", "--workers", 0),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, shards and a run. The request in the run names the shards at /data/shards."""
    folder = tmp_path_factory.mktemp("written")
    unpack_written_by_0_1(folder)
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
    there, here = (json.loads((at / "result.json").read_text()) for at in (folder, tmp_path))
    assert there["score"]["standard_error"] == here["score"]["standard_error"] == 0.25  # 2 of 4
    assert here["score"].pop("num_videos") == 0
    assert here["score"].pop("interval") == pytest.approx([0.150039, 0.849961], abs=1e-6)
    assert here["score"].pop("bounds") == [0.5, 0.5]
    assert here["score"].pop("reweighted") == 0.5
    assert {here["score"].pop(f"num_unscored_{what}") for what in ("classes", "clips")} == {0}
    assert here["data"] == there.pop("data") | {
        "missing_train": {},
        "num_overlap": 0,
        "classes": None,
        "out_of_scope": {},
        "num_unclassed": 0,
        "overlaps": [],
        "num_held_out": 0,
        "val_split": "",
    }
    del here["data"]
    assert here == there


def test_a_checkpoint_is_written_as_it_was_read(written: Path, tmp_path: Path) -> None:
    (checkpoint,) = networks_of_run(written / "run")
    checkpoint.write(tmp_path / "checkpoint.pt")
    there, here = (
        torch.load(path, weights_only=True)
        for path in (written / "run" / "flow" / "checkpoint.pt", tmp_path / "checkpoint.pt")
    )
    assert here.pop("trained_on") is None  # it was not recorded
    assert (here.pop("begun"), here.pop("statistics")) == (None, [])  # nothing within an epoch
    there["data"] |= {"missing_train": {}}
    for name in there.keys() - {"net", "optimizer"}:
        assert here[name] == there[name], name
    assert here.keys() == there.keys()


@pytest.mark.full
def test_a_finished_training_is_reused(written: Path, tmp_path: Path) -> None:
    run = copy_of_run(written, tmp_path)
    before = (run / "flow" / "checkpoint.pt").stat().st_mtime_ns
    left = left_by_a_killed_process(run / "flow" / "checkpoint.pt")
    folders = ("--data", written / "shards", "--work-dir", run)
    done = run_command("run-benchmark", *TRAINING, *folders)
    assert done.returncode == 0, done.stderr
    assert "trained already" in done.stderr
    assert not left.exists()
    told = "of an older version, which did not record: order, labels or bytes of the training clips"
    assert told in done.stderr
    assert "evaluated again, not the same" in done.stderr
    assert (run / "flow" / "checkpoint.pt").stat().st_mtime_ns == before


@pytest.mark.full
def test_a_run_is_reported_and_evaluated_on_other_clips(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of_run(written, tmp_path)
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    done = run_command("run-benchmark", "report", run, "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    # Libraries write nowhere else.
    assert not list((tmp_path / "HOME").iterdir())
    assert not list((tmp_path / "TMPDIR").iterdir())
    assert {each.name for each in (tmp_path / "XDG_CACHE_HOME").iterdir()} == {"kinetics-tools"}
    options = ("--data", written / "shards", "--test-split", "train", "--workers", 0)
    # The checkpoint has a hash of the training clips, which are those of this split.
    done = run_command("run-benchmark", "evaluate", run, *options)
    assert done.returncode == 2
    assert "was trained on 4 of the 4 clips of --test-split train" in done.stderr
    done = run_command("run-benchmark", "evaluate", run, *options, "--allow-overlap")
    assert done.returncode == 0, done.stderr
    (folder,) = run.glob("evaluate-*")
    values = json.loads((folder / "flow" / "result.json").read_text())
    assert values["data"]["test_split"] == "train"
    assert values["score"]["num_scored"] == values["data"]["num_overlap"] == 4


def test_a_checkpoint_of_another_network_is_not_of_the_run(written: Path, tmp_path: Path) -> None:
    run = copy_of_run(written, tmp_path)
    request = json.loads((run / "run.json").read_text())
    for change in ({"stream": "rgb"}, {"arch": "two-stream"}):
        (run / "rgb").unlink(missing_ok=True)
        (run / "rgb").symlink_to("flow")  # as if the folders were swapped
        (run / "run.json").write_text(json.dumps(request | change))
        with pytest.raises(EvaluationError, match="is not of this run: it holds i3d flow with 2"):
            networks_of_run(run)
