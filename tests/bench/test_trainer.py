"""Training: the same weights whatever happened on the way, and files that are whole."""

import copy
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from kinetics_bench.data.loader import train_batches
from kinetics_bench.device import Machine
from kinetics_bench.recipes import MultiStep, OneCycle
from kinetics_bench.training.checkpoint import CHECKPOINT, Checkpoint, TrainingData
from kinetics_bench.training.trainer import EVENTS, LOG, TrainingJob, _Epoch, _Training, train
from kinetics_tools.core.errors import EvaluationError
from support import command, environment
from tiny import copy_of_shards, damage, key_file, tiny_recipe, tiny_shards
from trainings import CPU, RECIPE, job


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


class Killed(Exception):
    """Stands for the end of the process."""


def test_a_resumed_training_gives_the_same_weights(tmp_path: Path) -> None:
    whole = train(job(tmp_path / "whole", stream="flow"), CPU)
    # Killed after the first epoch's checkpoint: what a process leaves behind is this folder.
    part = tmp_path / "part"
    one_epoch = Checkpoint.read(tmp_path / "whole" / CHECKPOINT)
    assert one_epoch.finished
    stopped = job(part, stream="flow")
    _train_one_epoch(stopped)
    with pytest.raises(EvaluationError, match=r"stopped after 1 epochs; give --resume .*--force"):
        train(stopped, CPU)
    resumed = train(stopped, CPU, resume=True)
    assert_same(whole.net, resumed.net)
    assert [row.loss for row in whole.history] == [row.loss for row in resumed.history]
    lines = [json.loads(line) for line in (part / LOG).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines == [asdict(row) for row in resumed.history]


@pytest.mark.full
def test_a_training_that_saves_memory_gives_the_same_weights(tmp_path: Path) -> None:
    kept = train(job(tmp_path / "kept"), CPU)
    saving = replace(CPU, activation_checkpointing=True)

    twice = train(job(tmp_path / "twice"), saving)

    assert twice.net.keys() == kept.net.keys()
    for name, value in kept.net.items():
        torch.testing.assert_close(twice.net[name], value, msg=name)


@pytest.mark.full
def test_a_resumed_training_of_both_streams_at_once_gives_the_same_weights(
    tmp_path: Path,
) -> None:
    recipe = tiny_recipe("two-stream", "joint")
    changes: dict[str, Any] = {"arch": "two-stream", "stream": "joint"}
    whole = train(job(tmp_path / "whole", recipe, **changes), CPU)
    stopped = job(tmp_path / "part", recipe, **changes)
    _train_one_epoch(stopped)
    resumed = train(stopped, CPU, resume=True)
    assert_same(whole.net, resumed.net)
    assert whole.data.recipes.keys() == {"rgb", "flow-opencv-tvl1"}
    # It is one network, which sees both.
    net = whole.network()
    rgb, flow = torch.rand(1, 3, 1, 32, 32) * 2 - 1, torch.rand(1, 2, 10, 32, 32) * 2 - 1
    with torch.inference_mode():
        logits = net(rgb, flow)
        for other in (net(0 * rgb, flow), net(rgb, 0 * flow)):
            assert (other - logits).abs().max() > 1e-4


@pytest.mark.parametrize(("arch", "stream"), [("convnet-lstm", "rgb"), ("two-stream", "joint")])
def test_the_loss_is_of_all_steps_of_the_recurrent_network_and_of_the_average_of_others(
    arch: str, stream: str, tmp_path: Path
) -> None:
    recipe = tiny_recipe(arch, stream, dropout=0.0, label_smoothing=0.1)
    training = _Training(job(tmp_path, recipe, arch=arch, stream=stream), CPU, None)
    batch = next(train_batches(training.clips, training.plan, range(1), num_workers=0))
    assert batch.clips is not None
    # Of two time steps or more each.
    clips = [torch.cat([each, each.flip(2)], dim=2) for each in batch.clips]
    with torch.no_grad():  # so that the steps' losses are far apart
        for layer in training.net.last_layers:
            training.net.get_parameter(f"{layer}.weight").mul_(50)
    other = copy.deepcopy(training.net)
    sums = training._forward_backward(clips, batch.label_ids, _Epoch())
    step_logits = other.step_logits(*clips)
    steps = step_logits.unbind(dim=2) if arch == "convnet-lstm" else [step_logits.mean(dim=2)]
    assert step_logits.shape[2] > 1
    losses = [
        functional.cross_entropy(each, batch.label_ids, reduction="sum", label_smoothing=0.1)
        for each in steps
    ]
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(sums[0], expected.detach(), atol=1e-5, rtol=1e-5)
    assert len(losses) == 1 or abs(float(losses[-1].detach() - sums[0])) > 0.01
    assert sums[1] == (steps[-1].argmax(dim=1) == batch.label_ids).sum()
    expected.backward()  # type: ignore[no-untyped-call]
    for one, two in zip(training.net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-5, rtol=1e-4)


def test_a_clip_left_alone_by_damage_is_no_step_for_batch_norm(tmp_path: Path) -> None:
    shards = copy_of_shards(tmp_path)
    damage(shards, "ben_left")
    recipe = tiny_recipe("convnet-lstm", batch_size=2, micro_batch_size=2)
    given = job(tmp_path / "run", recipe, shards=shards, arch="convnet-lstm")
    done = train(given, CPU)
    assert [(row.clips, row.failed) for row in done.history] == [(6, 1)] * 2  # of 8
    pair = replace(
        given.train, samples=[s for s in given.train.samples if s.key in ("ann_left", "ben_left")]
    )
    alone = replace(given, train=pair, folder=tmp_path / "alone")
    with pytest.raises(EvaluationError, match="no clip could be trained on: batch norm cannot"):
        train(alone, CPU)


def _train_one_epoch(stopped: TrainingJob) -> None:
    """Write what a training of `stopped` has written after its first epoch."""

    class StopAfterOne(Machine):
        def barrier(self) -> None:
            if (stopped.folder / CHECKPOINT).exists():
                raise Killed

    with pytest.raises(Killed):
        train(stopped, StopAfterOne(torch.device("cpu")))
    assert Checkpoint.read(stopped.folder / CHECKPOINT).epoch == 1


def test_a_finished_training_is_reused_and_another_refused(tmp_path: Path) -> None:
    first = train(job(tmp_path), CPU)
    modified = (tmp_path / CHECKPOINT).stat().st_mtime_ns
    again = train(job(tmp_path), CPU)
    assert_same(first.net, again.net)
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == modified
    with pytest.raises(EvaluationError, match=r"another training \(not the same seed\).*--force"):
        train(job(tmp_path, seed=1), CPU)
    forced = train(job(tmp_path, seed=1), CPU, force=True)
    assert any(not torch.equal(forced.net[name], value) for name, value in first.net.items())
    assert (tmp_path / EVENTS).is_dir()


def test_a_batch_in_several_passes_sums_their_gradients(tmp_path: Path) -> None:
    # Without batch statistics that differ, passes of 4 and of 2 would agree; here only the number
    # of steps and the counting can be compared.
    recipe = replace(
        RECIPE, batch_size=8, micro_batch_size=2, schedule=MultiStep(milestones=((3, 1e-2),))
    )
    done = train(job(tmp_path, replace(recipe, optimizer="sgd")), CPU)
    assert [(row.step, row.clips, row.lr) for row in done.history] == [
        (1, 8, 0.01),
        (2, 8, 0.01),
        (3, 8, 0.01),
    ]


def test_a_clip_that_cannot_be_decoded_is_counted(tmp_path: Path) -> None:
    shards = copy_of_shards(tmp_path)
    damage(shards, "ben_left")
    done = train(job(tmp_path / "run", shards=shards), CPU)
    assert list(done.failed) == ["ben_left"]
    assert [(row.clips, row.failed) for row in done.history] == [(7, 1)] * 3


def small_checkpoint(weights: torch.Tensor) -> Checkpoint:
    """One of no network, for what becomes of the file."""
    return Checkpoint(
        arch="i3d",
        stream="rgb",
        identity={},
        recipe=RECIPE,
        data=TrainingData(
            labels=("left", "right"),
            recipes={},
            flow="",
            bound=1.0,
            train_split="train",
            num_train=2,
        ),
        seed=0,
        precision="float32",
        net={"weights": weights},
        optimizer={},
    )


@pytest.mark.parametrize(
    ("damaged", "told"),
    [
        ("truncated", "is damaged or truncated; copy it again"),
        ("flipped", "is damaged or truncated; copy it again"),
        ("empty", "is damaged, or not a checkpoint of this version; copy it again"),
        ("foreign", "is damaged, or not a checkpoint of this version; copy it again"),
        ("format", "has format 99, this version reads"),
    ],
)
def test_a_broken_checkpoint_is_one_line(damaged: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    small_checkpoint(torch.arange(100_000.0)).write(path)
    if damaged == "truncated":
        path.write_bytes(path.read_bytes()[:100_000])
    elif damaged == "flipped":  # one bit of a weight, of which torch.load says nothing
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damaged == "empty":
        path.write_bytes(b"")
    elif damaged == "foreign":
        torch.save({"state_dict": {}}, path)
    else:
        values = torch.load(path, weights_only=True)
        torch.save(values | {"format": 99}, path)
    with pytest.raises(EvaluationError, match=f"{told}.*train again with --force") as caught:
        Checkpoint.read(path)
    assert "\n" not in str(caught.value)


def test_no_flipped_bit_of_a_checkpoint_passes(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    weights = torch.arange(50.0)
    small_checkpoint(weights).write(path)
    whole = path.read_bytes()
    entries = whole.index(b"PK\x01\x02")  # where the zip's list of its parts begins
    assert len(whole) - entries < 1000
    bits = [(at, bit) for at in (*range(4), *range(entries, len(whole))) for bit in range(8)]
    refused = 0
    for at, bit in bits:
        content = bytearray(whole)
        content[at] ^= 1 << bit
        path.write_bytes(content)
        try:
            checkpoint = Checkpoint.read(path)
        except EvaluationError as error:
            refused += 1
            assert "\n" not in str(error)
        else:  # a time, say, which nobody reads
            assert torch.equal(checkpoint.net["weights"], weights)
            assert checkpoint.labels == ("left", "right")
    assert refused > len(bits) / 2


def test_weights_of_another_class_count_are_refused(tmp_path: Path) -> None:
    done = train(job(tmp_path, replace(RECIPE, schedule=OneCycle(epochs=1, peak_lr=1e-3))), CPU)
    done.data = replace(done.data, labels=("left", "right", "up"))
    with pytest.raises(
        EvaluationError, match="do not belong to i3d, stream rgb, with 3 classes"
    ) as caught:
        done.network()
    assert "\n" not in str(caught.value)


def _arguments(work_dir: Path, keys: Path) -> tuple[object, ...]:
    return (
        *("--arch", "i3d", "--stream", "rgb", "--recipe", "sample", "--data", tiny_shards()),
        *("--train-split", key_file(keys, "train.txt", "ann_*", "ben_*", "cyd_*")),
        *("--test-split", key_file(keys, "test.txt", "dan_*"), "--work-dir", work_dir),
    )


def test_a_training_that_is_stopped_names_the_option_that_continues_it(tmp_path: Path) -> None:
    work_dir = tmp_path / "work"
    with subprocess.Popen(
        command("run-benchmark", *_arguments(work_dir, tmp_path)),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as training:
        while not (work_dir / "run.json").exists():
            assert training.poll() is None
            time.sleep(0.02)
        training.terminate()
        _, said = training.communicate(timeout=60)
    assert training.returncode == 143
    words = "terminated; the same command with --resume continues where this one stopped"
    assert said.splitlines()[-1] == words


@pytest.mark.full
def test_a_killed_run_continues_to_the_same_weights(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = command("run-benchmark", *_arguments(whole, tmp_path))
    subprocess.run(first, env=environment(), check=True)
    again = command("run-benchmark", *_arguments(killed, tmp_path))
    process = subprocess.Popen(again, env=environment())
    while not (killed / "rgb" / CHECKPOINT).exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not Checkpoint.read(killed / "rgb" / CHECKPOINT).finished
    subprocess.run([*again, "--resume"], env=environment(), check=True)
    assert_same(
        Checkpoint.read(whole / "rgb" / CHECKPOINT).net,
        Checkpoint.read(killed / "rgb" / CHECKPOINT).net,
    )


@pytest.mark.full
def test_two_processes_train_and_score_each_clip_once(tmp_path: Path) -> None:
    torchrun = shutil.which("torchrun", path=str(Path(command("run-benchmark")[0]).parent))
    assert torchrun is not None
    words = command("run-benchmark", *_arguments(tmp_path / "run", tmp_path), "--device", "cpu")
    options = ["--standalone", "--no-python", "--nproc-per-node", "2"]
    done = subprocess.run(
        [torchrun, *options, *words],
        env=environment() | {"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "rgb" / "result.json").read_text())
    assert (result["score"]["num_scored"], result["score"]["num_expected"]) == (2, 2)
    assert result["cost"]["num_processes"] == 2
    assert [row["clips"] for row in result["history"]["rgb"]] == [6] * len(result["history"]["rgb"])
    assert done.stdout.count("report: ") == 1
