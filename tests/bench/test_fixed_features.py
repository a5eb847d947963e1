"""The recipe `fixed`: features are computed once, and a head is trained on them."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import ARCHS
from kinetics_bench.data import loader
from kinetics_bench.data.inputs import network_inputs
from kinetics_bench.data.loader import Reader
from kinetics_bench.data.splits import hold_out
from kinetics_bench.data.views import View, middle_view
from kinetics_bench.recipes import RECIPES, OneCycle, Recipe, RecipeChoice
from kinetics_bench.training import features
from kinetics_bench.training.checkpoint import CHECKPOINT, Checkpoint
from kinetics_bench.training.features import FeatureExamples, Part
from kinetics_bench.training.job import TrainingJob, plan_of
from kinetics_bench.training.occasions import Saving
from kinetics_bench.training.trainer import _Training, plan_training, train
from kinetics_bench.weights.init import InitWeights, load_init
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.shards.reader import Sample
from nets import calibrated
from support import run_command
from tiny import copy_of_shards, damage, key_file, tiny_recipe, tiny_shards
from trainings import CPU, Killed, StopsAt, assert_same, job, run_processes

NETWORKS = [
    pytest.param(arch, stream, marks=pytest.mark.full if arch in ("c3d", "3d-fused") else ())
    for arch, known in ARCHS.items()
    for stream in known.networks
]
CHANGES: dict[str, Any] = {
    "fixed_features": True,
    "micro_batch_size": 2,
    "schedule": OneCycle(epochs=3, peak_lr=1e-1),
}


def weights(folder: Path, arch: str = "i3d", stream: str = "rgb") -> InitWeights:
    """Initial weights of a network of five other classes, in a file."""
    path = folder / f"{arch}-{stream}.pt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(calibrated(arch, stream).state_dict(), path)
    init = load_init(str(path), arch=arch, stream=stream, num_classes=2, cache=folder)
    assert init is not None
    return init


def fixed(
    folder: Path, arch: str = "i3d", stream: str = "rgb", *, recipe: Any = None, **changes: Any
) -> TrainingJob:
    """A training of the last layer; features are kept in `folder`/features."""
    made = tiny_recipe(arch, stream, **(CHANGES | (recipe or {})))
    options: dict[str, Any] = {
        "init": weights(folder, arch, stream),
        "finetune": "last",
        "features": folder / "features",
        "num_workers": 0,
    }
    return job(folder / "run", made, arch=arch, stream=stream, **(options | changes))


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers of clips that went through a whole network, one entry for each pass."""
    passes: list[int] = []
    whole = Network.features

    def count(net: Network, *clips: Tensor) -> Tensor:
        passes.append(len(clips[0]))
        return whole(net, *clips)

    with monkeypatch.context() as patch:
        patch.setattr(Network, "features", count)
        yield passes


def read_features(given: TrainingJob) -> dict[str, Tensor]:
    """What is on the disk, by key."""
    assert given.features is not None
    found: dict[str, Tensor] = {}
    for path in sorted(given.features.rglob("*.npz")):
        part = np.load(path)
        found.update(zip(part["keys"].tolist(), torch.from_numpy(part["features"]), strict=True))
    return found


def clip_inputs(given: TrainingJob, key: str) -> list[Tensor]:
    """The view of a clip that features are computed of, made by hand."""
    (sample,) = [each for each in given.train.samples if each.key == key]
    view = middle_view(sample.num_frames, given.recipe)
    crops = Reader(given.recipe, given.bound).clips(sample, view)
    return network_inputs(crops, CPU.device)


@pytest.mark.parametrize(("arch", "stream"), NETWORKS)
def test_the_head_is_the_one_that_is_trained_by_hand(
    arch: str, stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = fixed(tmp_path, arch, stream, recipe={"dropout": 0.0, "label_smoothing": 0.1})
    began = copy.deepcopy(_Training(given, CPU, None).net).eval()
    with counting(monkeypatch) as passes:
        done = train(given, CPU)
    nets = 2 if (arch, stream) == ("two-stream", "joint") else 1  # `features` of both, and its own
    assert passes == [1] * len(given.train.samples) * (nets + (nets > 1))
    kept = read_features(given)
    with torch.inference_mode():
        for key in given.train.keys:
            own = began.features(*clip_inputs(given, key))[0]
            torch.testing.assert_close(kept[key], own, atol=1e-5, rtol=1e-4)

    net = done.network()
    for name, by_hand in trained_by_hand(given, began, kept).items():
        found = net.get_parameter(name).reshape(by_hand.shape)
        torch.testing.assert_close(found, by_hand, atol=2e-5, rtol=1e-4, msg=name)

    # The checkpoint is a whole network: its frozen part as it was, its logits those of the head.
    lasts = tuple(f"{name}." for name in net.last_layers)
    state = began.state_dict()
    changed = {name for name, tensor in state.items() if not tensor.equal(done.net[name])}
    assert {name for name in done.net if name.startswith(lasts)} == changed
    with torch.inference_mode():
        for key in given.train.keys:
            head = net.clip_logits(net.head(kept[key][None]))
            whole = net(*clip_inputs(given, key))
            torch.testing.assert_close(whole, head, atol=1e-4, rtol=1e-4)
    assert done.init.finetune == "last"


def trained_by_hand(
    given: TrainingJob, began: Network, kept: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Weights of the last layers by name: of matrices, torch's loss and optimizer, and the plan."""
    layers = [began.get_submodule(name) for name in began.last_layers]
    matrices = [layer.get_parameter("weight").detach().flatten(1).clone() for layer in layers]
    offsets = [layer.get_parameter("bias").detach().clone() for layer in layers]
    for each in (*matrices, *offsets):
        each.requires_grad_()
    decayed = {"params": matrices, "weight_decay": given.recipe.weight_decay}
    optimizer = torch.optim.AdamW([decayed, {"params": offsets, "weight_decay": 0.0}])
    plan, schedule = plan_of(given, CPU), given.recipe.schedule
    steps = [step for epoch in range(3) for step in plan.steps(epoch)]
    assert len(steps) == schedule.num_steps(plan.steps_per_epoch)
    for number, step in enumerate(steps):
        samples = [given.train.samples[at] for each in step.micro_batches for at in each]
        labels = torch.tensor([sample.label_id for sample in samples])
        parts = torch.stack([kept[sample.key] for sample in samples]).chunk(len(layers), dim=1)
        logits = sum(
            torch.einsum("kf,bft->bkt", matrix, part) + offset[:, None]
            for matrix, offset, part in zip(matrices, offsets, parts, strict=True)
        ) / len(layers)
        assert isinstance(logits, Tensor)
        if not ARCHS[given.arch].loss_at_all_steps:
            logits = logits.mean(dim=2, keepdim=True)
        losses = [
            functional.cross_entropy(each, labels, label_smoothing=0.1)
            for each in logits.unbind(dim=2)
        ]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr(number, len(steps))
        optimizer.step()
    names = began.last_layers
    return {
        **{f"{name}.weight": each.detach() for name, each in zip(names, matrices, strict=True)},
        **{f"{name}.bias": each.detach() for name, each in zip(names, offsets, strict=True)},
    }


@pytest.mark.parametrize("arch", ["i3d", "convnet-lstm"])
def test_the_head_is_the_one_of_finetune_last_where_every_epoch_shows_the_middle(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout: the same values are dropped."""

    def show_the_middle(recipe: Recipe, _seed: int, _epoch: int, sample: Sample) -> View:
        return middle_view(sample.num_frames, recipe)

    given = fixed(tmp_path, arch, recipe={"dropout": 0.5})
    once = train(given, CPU)
    monkeypatch.setattr(loader, "random_view", show_the_middle)
    plain = replace(given.recipe, fixed_features=False)
    every_step = train(replace(given, recipe=plain, folder=tmp_path / "every"), CPU)
    for one, other in zip(once.history, every_step.history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-3)
        assert (one.step, one.clips, one.lr) == (other.step, other.clips, other.lr)
    for name, value in every_step.net.items():
        torch.testing.assert_close(once.net[name], value, atol=1e-4, rtol=1e-3, msg=name)


def test_features_are_computed_once_for_any_seed_and_any_part_that_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = fixed(tmp_path)
    train_part, held_out = hold_out(given.train, 0.25, seed=0)
    first = replace(given, train=train_part, held_out=held_out, check_every=1)
    with counting(monkeypatch) as passes:
        done = train(first, CPU)
        assert passes == [1] * 8
        assert done.history[-1].val_loss is not None
        train_part, held_out = hold_out(given.train, 0.25, seed=1)
        assert train_part.keys != first.train.keys
        other = replace(first, train=train_part, held_out=held_out, seed=1, folder=tmp_path / "1")
        train(other, CPU)
        assert passes == [1] * 8
        changed = replace(given.recipe, crop_px=36)
        train(replace(first, recipe=changed, folder=tmp_path / "2"), CPU)
        assert passes == [1] * 16
    whole = done.network()
    with torch.inference_mode():
        keys = first.held_out.keys if first.held_out else ()
        logits = torch.cat([whole(*clip_inputs(given, key)) for key in sorted(keys)])
    labels = {sample.key: sample.label_id for sample in given.train.samples}
    loss = functional.cross_entropy(logits, torch.tensor([labels[key] for key in sorted(keys)]))
    assert done.history[-1].val_loss == pytest.approx(float(loss), rel=1e-4)


def test_a_training_that_is_stopped_after_any_step_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = fixed(tmp_path, saving=Saving(steps=1))
    whole = train(replace(given, folder=tmp_path / "whole"), CPU)
    stops = StopsAt(monkeypatch)
    with counting(monkeypatch) as passes:
        for stops.step in (1, 2, 5):
            with pytest.raises(Killed):
                train(given, CPU, resume=True)
        stops.step = -1
        done = train(given, CPU, resume=True)
    assert passes == []
    assert_same(whole.net, done.net)
    assert [row.loss for row in whole.history] == [row.loss for row in done.history]


def test_of_features_that_were_begun_the_rest_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(features, "PART", 3)
    given = fixed(tmp_path)
    write = Part.write

    def write_and_end(part: Part, path: Path) -> None:
        write(part, path)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Part, "write", write_and_end)
        train(given, CPU)
    assert len(read_features(given)) == 3
    with counting(monkeypatch) as passes:
        done = train(given, CPU)
    assert passes == [1] * 5
    read = [Part.read(path, keys) for path, keys in parts_of(given)]
    assert [part and len(part.keys) for part in read] == [3, 3, 2]
    # A file that is damaged, or of other clips, is computed again.
    (first, *_), (second, *_), _ = parts_of(given)
    first.write_bytes(first.read_bytes()[:-100])
    second.write_bytes(parts_of(given)[2][0].read_bytes())
    with counting(monkeypatch) as passes:
        again = train(given, CPU, force=True)
    assert passes == [1] * 6
    assert_same(done.net, again.net)
    told = [each.getMessage() for each in caplog.records if "computed again" in each.getMessage()]
    assert [text.split()[0] for text in told] == [str(first), str(second)]
    assert "\n" not in "".join(told)


def test_no_changed_byte_of_a_file_of_features_is_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "part.npz"
    values = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    part = Part.of({"a": values[0], "b": values[1], "c": "damaged"})
    part.write(path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for change in (0x01, 0xFF):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])
            read = Part.read(path, ["a", "b", "c"])
            assert read is None or read.features.shape == values.shape


def parts_of(given: TrainingJob) -> list[tuple[Path, list[str]]]:
    """The files of features, and the keys that each has."""
    assert given.features is not None
    paths = sorted(given.features.rglob("*.npz"))
    keys = list(given.train.keys)
    return [(path, keys[at : at + 3]) for path, at in zip(paths, range(0, 9, 3), strict=True)]


def test_a_clip_that_cannot_be_decoded_is_counted(tmp_path: Path) -> None:
    shards = copy_of_shards(tmp_path)
    damage(shards, "ben_left")
    done = train(fixed(tmp_path, shards=shards), CPU)
    assert list(done.failed) == ["ben_left"]
    assert [(row.clips, row.failed) for row in done.history] == [(7, 1)] * 3
    again = train(fixed(tmp_path, shards=shards), CPU, force=True)
    assert again.failed == done.failed
    alone = fixed(tmp_path, shards=shards)
    few = [sample for sample in alone.train.samples if sample.key == "ben_left"]
    only = replace(alone, train=replace(alone.train, samples=few), folder=tmp_path / "alone")
    with pytest.raises(EvaluationError, match="rgb: no clip could be decoded: "):
        train(only, CPU)


def test_features_that_are_not_finite_are_one_line(tmp_path: Path) -> None:
    given = fixed(tmp_path)
    assert given.init is not None
    name = next(name for name in given.init.state if name.endswith("batch_norm.bias"))
    high = {**given.init.state, name: given.init.state[name] + 3e38}
    broken = replace(given, init=replace(given.init, state=high))
    with pytest.raises(
        EvaluationError, match=r"the features of clip .* are not finite; give other"
    ):
        train(broken, CPU)


@pytest.mark.parametrize("fixed_features", [True, False])
def test_a_frozen_network_with_random_layers_is_refused(
    fixed_features: bool, tmp_path: Path
) -> None:
    given = fixed(tmp_path, recipe={"fixed_features": fixed_features})
    with pytest.raises(EvaluationError, match=r"rgb: only the last layer .* give --init") as caught:
        train(replace(given, init=None), CPU)
    assert "\n" not in str(caught.value)
    assert given.init is not None
    name = "Mixed_5c.Branch_0.Conv3d_0a_1x1.conv_3d.weight"
    part = {each: tensor for each, tensor in given.init.state.items() if each != name}
    with pytest.raises(EvaluationError, match=f"has no {re.escape(name)} of i3d") as caught:
        train(replace(given, init=replace(given.init, state=part)), CPU)
    assert "\n" not in str(caught.value)


def test_a_plan_writes_nothing_and_counts_the_features(tmp_path: Path) -> None:
    given = fixed(tmp_path)
    before = plan_training(given, CPU)
    assert not (tmp_path / "features").exists()
    examples = FeatureExamples(given, CPU, _Training(given, CPU, None).net)
    assert examples.seconds_before() > 0
    train(given, CPU)
    assert examples.seconds_before() == 0
    assert before.seconds > 0
    assert before.num_steps == 6


@pytest.mark.parametrize(
    ("arch", "stream"),
    [("i3d", "flow"), pytest.param("two-stream", "joint", marks=pytest.mark.full)],
)
def test_two_processes_share_the_features_and_the_steps(
    arch: str, stream: str, tmp_path: Path
) -> None:
    # Of two clips each the micro-batches of one process and of two are the same.
    given = fixed(tmp_path, arch, stream)
    one = train(replace(given, folder=tmp_path / "one"), CPU)
    for path in (tmp_path / "features").rglob("*.npz"):
        path.unlink()
    two = replace(given, folder=tmp_path / "two")
    assert run_processes(two, 2)
    found = Checkpoint.read(two.folder / CHECKPOINT)
    assert found.finished
    assert [row.clips for row in found.history] == [8] * 3
    for name, value in one.net.items():
        torch.testing.assert_close(found.net[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_the_recipe_sees_what_the_papers_test_sees() -> None:
    for arch, networks in RECIPES["fixed"].items():
        for stream, recipe in networks.items():
            assert recipe.fixed_features
            assert "Table 4" in recipe.source
            assert recipe.flip == 0
            if (arch, stream) == ("i3d", "flow"):
                assert recipe.sampling["flow"].num == 249
            else:
                assert recipe.sampling == {s: ARCHS[arch].test[s] for s in recipe.streams}
            other = RECIPES["ucf101"][arch][stream]
            assert recipe.schedule == other.schedule
            assert recipe.batch_size == other.batch_size


def test_any_recipe_may_fix_the_features() -> None:
    plain = RECIPES["small"]["i3d"]["rgb"]
    choice = RecipeChoice(name="small", overrides={"fixed_features": True})
    made: Recipe = choice.recipe("i3d", "rgb")
    assert made.fixed_features
    assert made.name == "small+fixed_features-True"
    assert made.hash != plain.hash


@pytest.mark.full
def test_a_run_is_read_as_any_other(tmp_path: Path) -> None:
    words: tuple[object, ...] = (
        *("--arch", "i3d", "--stream", "rgb", "--recipe", "small", "--epochs", 2),
        *("--set", "fixed_features=true", "--data", tiny_shards(), "--cache-dir", tmp_path / "c"),
        *("--train-split", key_file(tmp_path, "train.txt", "ann_*", "ben_*")),
        *("--test-split", key_file(tmp_path, "test.txt", "dan_*"), "--work-dir", tmp_path / "run"),
    )
    refused = run_command("run-benchmark", *words)
    assert refused.returncode == 2
    told = "recipe small+epochs-2+fixed_features-True trains only the last layer, on the features"
    assert told in refused.stderr
    assert refused.stderr.count("\n") == 1
    weights(tmp_path)
    done = run_command("run-benchmark", *words, "--init", tmp_path / "i3d-rgb.pt")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "c" / "features").rglob("*.npz"))) == 1
    for again in (
        ("evaluate", tmp_path / "run", "--protocol", "1x1"),
        ("resume", tmp_path / "run", "--epochs", 3, "--cache-dir", tmp_path / "c"),
        ("report", tmp_path / "run", "--out", tmp_path / "page.html"),
    ):
        said = run_command("run-benchmark", *again)
        assert said.returncode == 0, said.stderr
    page = (tmp_path / "page.html").read_text()
    assert "--finetune last" in page
    assert "last layer trained" in page
    assert Checkpoint.read(tmp_path / "run" / "rgb" / CHECKPOINT).step == 3
