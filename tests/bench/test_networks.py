"""Weights as they are: evaluated by the paper's protocol, and used on videos, like a run's."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from foreign import randomize_batch_norm
from kinetics_bench import cli
from kinetics_bench.archs.registry import build
from kinetics_bench.evaluation.results import Predictions
from kinetics_bench.inference.networks import networks_of_run, networks_of_weights
from kinetics_bench.recipes import RECIPES
from kinetics_tools.core.errors import EvaluationError, KineticsError
from kinetics_tools.dataset.labels import known_labels
from kinetics_tools.shards.reader import ShardFolder
from nets import calibrated
from tiny import copy_of_shards, key_file, tiny_clips, tiny_recipe, tiny_shards

KINETICS = known_labels("kinetics400")
CLASSES = {"left": 7, "right": 399}  # what the tiny clips' classes are called among Kinetics'


@pytest.fixture(autouse=True)
def _small_paper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The paper's recipe with 32 pixels in place of 224, in this process and this folder."""
    recipes = {each: tiny_recipe("i3d", each, protocol="paper") for each in ("rgb", "flow")}
    monkeypatch.setitem(RECIPES, "paper", {"i3d": recipes})
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of both streams' weights, with Kinetics' classes."""
    folder = tmp_path_factory.mktemp("weights")
    for stream in ("rgb", "flow"):
        torch.save(calibrated("i3d", stream, 400).state_dict(), folder / f"{stream}.pt")
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny shards, as of a set with Kinetics' classes."""
    folder = copy_of_shards(tmp_path_factory.mktemp("kinetics"))
    dataset = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(dataset | {"labels": KINETICS}))
    path = folder / "all" / "index.parquet"
    index = pd.read_parquet(path)
    index["label_id"] = index["label"].map(CLASSES)
    index["label"] = [KINETICS[number] for number in index["label_id"]]
    index.to_parquet(path, index=False)
    return folder


def call(capsys: pytest.CaptureFixture[str], *words: Any) -> list[str]:
    code = cli.run([str(word) for word in (*words, "--amp", "none", "--device", "cpu")])
    output = capsys.readouterr()
    assert code == 0, output.err
    return output.out.splitlines()


def rgb_logits(shards: Path) -> torch.Tensor:
    """Of dan_left: 250 frames, looped; 40x48 pixels resized to 36x43, of which the middle 32x32."""
    samples = ShardFolder(shards).samples("all", ["rgb"])
    sample = next(each for each in samples if each.key == "dan_left")
    frames = torch.from_numpy(sample.rgb()).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(frames, (36, 43), mode="bilinear", antialias=True)
    looped = resized[[at % 14 for at in range(250)]][:, :, 2:34, 6:38]
    clip = looped.transpose(0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        logits: torch.Tensor = calibrated("i3d", "rgb", 400)(clip)[0]
        backwards = calibrated("i3d", "rgb", 400)(clip.flip(2))[0]
    assert (logits - backwards).abs().max() > 1e-2  # else any frames would do
    return logits


@pytest.mark.full
def test_weights_are_evaluated_by_the_papers_protocol(
    weights: Path,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = key_file(tmp_path, "val.txt", "dan_*")
    words = ("evaluate", "--init", weights, "--data", shards, "--test-split", keys)
    told = call(capsys, *words)
    folder = Path("runs") / f"i3d-joint-{weights.name}"
    assert [line.split()[0] for line in told[1:4]] == ["rgb", "flow", "joint"]
    assert all(line.endswith("2 / 2") for line in told[1:4])
    assert told[4] == f"report: {folder / 'report.html'}"

    rows = {
        stream: Predictions.read(folder / stream / "predictions.parquet", {})
        for stream in ("rgb", "flow", "joint")
    }
    assert rows["joint"].label_ids.tolist() == list(CLASSES.values())
    assert rows["joint"].logits.tolist() == (rows["rgb"].logits + rows["flow"].logits).tolist()
    assert rows["joint"].logits.shape == (2, 400)
    np.testing.assert_allclose(rows["rgb"].logits[0], rgb_logits(shards), atol=1e-4, rtol=1e-3)

    result = json.loads((folder / "flow" / "result.json").read_text())
    assert result["protocol"]["name"] == "paper"
    assert result["recipes"]["flow-opencv-tvl1"]["method"] == "opencv-tvl1"
    assert result["data"]["train_split"] is None
    assert result["data"]["init"]["source"] == str(weights / "flow.pt")
    page = (folder / "report.html").read_text()
    for shown in ("not trained here", str(weights / "flow.pt"), "its two streams"):
        assert shown in page

    # It is a run like others: what is there is reused, other clips stand beside it.
    made = (folder / "flow" / "result.json").stat().st_mtime_ns
    assert call(capsys, "evaluate", folder) == told
    other = call(capsys, "evaluate", folder, "--test-split", "all", "--stream", "rgb")
    assert other[1].endswith("8 / 8")
    assert Path(other[2].removeprefix("report: ")).parent.parent == folder
    assert call(capsys, *words) == told
    assert (folder / "flow" / "result.json").stat().st_mtime_ns == made

    video = tiny_clips() / "left" / "dan_left.mp4"
    options = ("--json", "--top", 1, "--tmp-dir", tmp_path, "--stream", "rgb")
    caplog.clear()
    caplog.set_level("INFO")
    (line,) = call(capsys, "predict", video, "--init", weights, *options)
    assert caplog.messages == [
        f"{weights}: its rgb weights are rgb.pt",
        f"{video}: 14 frames, looped as in the paper to fill the network's input",
    ]
    assert call(capsys, "predict", video, "--work-dir", folder, *options) == [line]
    (best,) = json.loads(line)["classes"]
    assert best["label"] == KINETICS[rows["rgb"].logits[0].argmax()]


def test_other_weights_are_evaluated_anew_and_do_not_mix(
    weights: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copy(weights / "rgb.pt", tmp_path / "own.pt"))
    keys = key_file(tmp_path, "val.txt", "dan_left")
    words = ("--stream", "rgb", "--data", shards, "--test-split", keys, "--work-dir", "work")
    call(capsys, "evaluate", "--init", own, *words)
    before = Predictions.read(Path("work/rgb/predictions.parquet"), {})
    torch.save(randomize_batch_norm(build("i3d", "rgb"), seed=1).state_dict(), own)
    call(capsys, "evaluate", "--init", own, *words)
    after = Predictions.read(Path("work/rgb/predictions.parquet"), {})
    assert np.abs(after.logits - before.logits).max() > 1e-3
    with pytest.raises(EvaluationError, match=r"work holds an evaluation of i3d rgb .*own\.pt"):
        call(capsys, "evaluate", "--init", weights, *words)
    training = ("--arch", "i3d", "--recipe", "paper", "--train-split", "all", *words)
    with pytest.raises(EvaluationError, match=r"work holds an evaluation of i3d rgb .*own\.pt"):
        call(capsys, *training)
    with pytest.raises(EvaluationError, match="work holds i3d rgb, not flow"):
        networks_of_run(Path("work"), "flow")


def test_what_is_not_of_the_weights_is_refused_and_leaves_no_run(
    weights: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", "--stream", "rgb", "--test-split", "all", "--work-dir", "work")
    with pytest.raises(EvaluationError, match="of 'left', which is not among the 400 classes of"):
        call(capsys, *words, "--init", weights, "--data", tiny_shards())
    five = tmp_path / "five.pt"
    torch.save(build("i3d", "rgb", 5).state_dict(), five)
    video = tiny_clips() / "left" / "dan_left.mp4"
    for use in ((*words, "--data", shards), ("predict", video, "--stream", "rgb")):
        with pytest.raises(EvaluationError, match=r"five\.pt has no Logits\..* 400 classes"):
            call(capsys, *use, "--init", five)
    assert not Path("work/run.json").exists()


@pytest.mark.parametrize("num_classes", [5, 400])
def test_a_checkpoint_with_other_classes_is_refused_and_its_run_named(
    num_classes: int, weights: Path, tmp_path: Path
) -> None:
    """As many classes as Kinetics has do not make them Kinetics'."""
    (kinetics,) = networks_of_weights(str(weights), "i3d", "rgb")
    run = tmp_path / "run"
    path = run / "rgb" / "checkpoint.pt"
    kinetics.write(path)
    (run / "run.json").touch()
    assert networks_of_weights(str(run), "i3d", "rgb")

    labels = [f"class {number}" for number in range(num_classes)]
    net = build("i3d", "rgb", num_classes).state_dict()
    replace(kinetics, data=replace(kinetics.data, labels=tuple(labels)), net=net).write(path)
    for init in (run, path):
        words = f"{num_classes} classes that are not kinetics400's 400; give {run} in place of"
        with pytest.raises(EvaluationError, match=words):
            networks_of_weights(str(init), "i3d", "rgb")
    assert networks_of_weights(str(run), "i3d", "rgb", whole=False)  # for features any will do


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("evaluate", "work", "--arch", "c3d"), "--arch"),
        (("evaluate", "work", "--work-dir", "other"), "--work-dir"),
        (("predict", "x.mp4", "--work-dir", "work", "--arch", "i3d"), "--arch"),
        (("features", "x.mp4", "--work-dir", "work", "--arch", "c3d"), "--arch"),
    ],
)
def test_options_that_a_run_does_not_listen_to_are_refused(
    words: tuple[str, ...], option: str
) -> None:
    with pytest.raises(KineticsError, match=f"{option} is for --init; work is a run"):
        cli.run(words)
