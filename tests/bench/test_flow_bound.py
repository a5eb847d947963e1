"""The scale of flow in a network's input, where weights and shards were made with other bounds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foreign import GoogLeNet, randomize_batch_norm
from kinetics_bench import cli
from kinetics_bench.archs.registry import build
from kinetics_bench.data.inputs import network_inputs
from kinetics_bench.data.loader import Reader
from kinetics_bench.data.splits import select
from kinetics_bench.data.views import View
from kinetics_bench.inference.networks import networks_of_weights
from kinetics_bench.recipes import OneCycle
from kinetics_bench.training.checkpoint import CHECKPOINT, Checkpoint
from kinetics_bench.training.job import TrainingJob
from kinetics_bench.training.trainer import train
from kinetics_bench.weights.init import InitWeights, load_init
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.shards.reader import ShardFolder
from support import run_command
from tiny import LABELS, SIZE, key_file, tiny_clips
from trainings import CPU, RECIPE, job

ONE_EPOCH = replace(RECIPE, schedule=OneCycle(epochs=1, peak_lr=1e-2))
BOUND = 1  # the textures move by 2 pixels per frame


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of tiny clips, whose flow is clamped to BOUND."""
    shards = tmp_path_factory.mktemp("narrow") / "shards"
    options = ("--method", "opencv-tvl1", "--short-side", "keep", "--jobs", 1, "--bound", BOUND)
    done = run_command("extract-flow", tiny_clips(), shards, *options)
    assert done.returncode == 0, done.stderr
    return shards


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state dict of a flow I3D, as others publish them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "flow.pt"
    torch.save(randomize_batch_norm(build("i3d", "flow", len(LABELS))).state_dict(), path)
    return path


def start(path: Path, *, arch: str = "i3d", stream: str = "flow") -> InitWeights:
    found = load_init(str(path), arch=arch, stream=stream, num_classes=2, cache=path.parent)
    assert found is not None
    return found


def flow_job(folder: Path, shards: Path, init: InitWeights | None) -> TrainingJob:
    return job(folder, ONE_EPOCH, shards=shards, stream="flow", init=init)


def test_weights_say_the_bound_that_they_know(weights: Path, narrow: Path, tmp_path: Path) -> None:
    assert start(weights).bound == 20  # the authors'
    state = torch.load(weights, weights_only=True)
    torch.save({"epoch": 1, "net": state}, tmp_path / "other.pt")  # of another program
    assert start(tmp_path / "other.pt").bound == 20
    assert start(tmp_path / "other.pt").trained_on == ()
    torch.save({"net": state, "arch": "i3d", "stream": "flow"}, tmp_path / "bare.pt")
    assert start(tmp_path / "bare.pt").bound == 20
    torch.save(GoogLeNet().state_dict(), tmp_path / "googlenet.pth")
    assert start(tmp_path / "googlenet.pth").bound is None  # trained on pictures
    torch.save(build("i3d", "rgb", 2).state_dict(), tmp_path / "rgb.pt")
    assert start(tmp_path / "rgb.pt", stream="rgb").bound is None
    fused = build("3d-fused", "joint", 2).state_dict()
    torch.save(fused, tmp_path / "fused.pt")
    assert start(tmp_path / "fused.pt", arch="3d-fused", stream="joint").bound == 20

    ours = train(flow_job(tmp_path / "ours", narrow, None), CPU)
    assert ours.data.bound == BOUND
    assert start(tmp_path / "ours" / CHECKPOINT).bound == BOUND


def test_a_training_divides_flow_by_the_bound_of_its_weights(
    weights: Path, narrow: Path, tmp_path: Path
) -> None:
    init = start(weights)
    nets = {}
    for bound in (20, BOUND, None):
        folder = tmp_path / str(bound)
        done = train(flow_job(folder, narrow, replace(init, bound=bound)), CPU)
        assert done.data.bound == (bound or BOUND)
        nets[bound] = torch.cat([tensor.flatten() for tensor in done.net.values()])
    assert torch.equal(nets[BOUND], nets[None])
    assert not torch.equal(nets[20], nets[None])

    # What an older version trained, with the bound of the shards, is not taken for the same.
    path = tmp_path / "None" / CHECKPOINT
    older = Checkpoint.read(path)
    older.identity = {what: each for what, each in older.identity.items() if "bound" not in what}
    older.write(path)
    with pytest.raises(EvaluationError, match=r"not the same flow bound \(1(\.0)? there, 20"):
        train(flow_job(path.parent, narrow, init), CPU)
    again = train(flow_job(path.parent, narrow, replace(init, bound=None)), CPU)
    assert again.step == older.step


@pytest.mark.full
def test_the_commands_say_that_flow_is_clamped_too_early(
    weights: Path,
    narrow: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = "flow-opencv-tvl1 is clamped to 1 pixels per frame, and these weights expect up to 20"
    keys, others = (key_file(tmp_path, f"{name}.txt", f"{name}_*") for name in ("cyd", "dan"))
    words: tuple[object, ...] = ("--arch", "i3d", "--recipe", "sample", "--epochs", 1)
    words += ("--stream", "flow", "--data", narrow, "--batch-size", 2)
    words += ("--train-split", keys, "--test-split", others, "--work-dir", tmp_path / "run")
    done = run_command("run-benchmark", *words, "--init", weights)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(told) == 1
    checkpoint = tmp_path / "run" / "flow" / CHECKPOINT
    assert Checkpoint.read(checkpoint).data.bound == 20

    monkeypatch.setattr("kinetics_bench.inference.networks.known_labels", lambda _: LABELS)
    given = ["evaluate", "--stream", "flow", "--protocol", "whole", "--data", str(narrow)]
    given += ["--test-split", str(others), "--work-dir", str(tmp_path / "given")]
    assert cli.run([*given, "--init", str(weights)]) == 0
    assert caplog.text.count(told) == 1

    # Flow of videos is computed as that of the training, and scaled as the weights expect.
    (network,) = networks_of_weights(str(checkpoint), "i3d", "flow")
    recipe = network.data.flow_recipe
    assert recipe is not None
    assert (recipe.method, recipe.bound, network.data.bound) == ("opencv-tvl1", BOUND, 20)
    (published,) = networks_of_weights(str(weights), "i3d", "flow")
    assert published.data.bound == 20
    data = ShardFolder(narrow)
    chosen = select(data, str(others), role="test", streams=("flow",), flow="opencv-tvl1")
    view = View({"flow": torch.arange(9).numpy()})
    crops = Reader(network.recipe, network.data.bound).clips(chosen.samples[0], view)
    (clip,) = network_inputs(crops, torch.device("cpu"))
    larger = network.recipe.short_side / SIZE[0]  # motion grows with the frames
    assert float(clip.abs().max()) == pytest.approx(BOUND * larger / 20, abs=1e-3)
