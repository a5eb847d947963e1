"""Training: the same weights whatever happened on the way, and files that are whole."""

import copy
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional

from kinetics_bench.archs.registry import ARCHS
from kinetics_bench.device import Machine
from kinetics_bench.evaluation.evaluate import Test as Evaluation
from kinetics_bench.evaluation.evaluate import predict_split
from kinetics_bench.protocols import PROTOCOLS
from kinetics_bench.recipes import MultiStep, OneCycle, Recipe
from kinetics_bench.training.checkpoint import CHECKPOINT, Checkpoint, TrainingData
from kinetics_bench.training.epochs import Epoch
from kinetics_bench.training.job import TrainingJob, require_usable
from kinetics_bench.training.log import EVENTS, LOG
from kinetics_bench.training.occasions import Saving
from kinetics_bench.training.trainer import _Training, train
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.files import FULL_ERRNOS
from support import command, environment
from tiny import copy_of_shards, damage, key_file, tiny_recipe, tiny_shards
from trainings import CPU, RECIPE, Killed, StopsAt, assert_same, job, run_processes


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
    assert lines == [row.as_json() for row in resumed.history]


def epochs_of(folder: Path) -> tuple[list[int], list[int]]:
    """The epochs in log.jsonl, and those that TensorBoard shows."""
    told = [json.loads(line)["epoch"] for line in (folder / LOG).read_text().splitlines()]
    events = EventAccumulator(str(folder / EVENTS)).Reload()
    return told, [event.step for event in events.Scalars("loss")]


def age_events(folder: Path) -> None:
    """Let a process of earlier seconds have written them: readers sort them by the second."""
    for path in (folder / EVENTS).iterdir():
        start, second, rest = re.split(r"(?<=tfevents\.)(\d+)", path.name)
        path.rename(path.with_name(f"{start}{int(second) - 60}{rest}"))


@pytest.mark.parametrize("left", ["as it was", "torn", "behind", "ahead", "none", "foreign"])
def test_the_log_has_each_epoch_once_whatever_a_killed_process_left(
    left: str, tmp_path: Path
) -> None:
    given = job(tmp_path)
    _train_one_epoch(given)
    age_events(tmp_path)
    whole = (tmp_path / LOG).read_text()
    later = whole.replace('"epoch": 1', '"epoch": 2')
    if left == "none":
        (tmp_path / LOG).unlink()
    elif left != "as it was":
        texts = {"torn": whole + later[:20], "behind": "", "ahead": whole + later + later[:-9]}
        (tmp_path / LOG).write_bytes(texts.get(left, "\xff").encode("latin-1"))
    done = train(given, CPU, resume=True)
    assert epochs_of(tmp_path) == ([1, 2, 3], [1, 2, 3])
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert lines == [row.as_json() for row in done.history]
    assert len(list((tmp_path / EVENTS).iterdir())) == 2  # of two processes, for three epochs


def test_a_training_that_goes_back_to_an_earlier_checkpoint_logs_each_epoch_once(
    tmp_path: Path,
) -> None:
    given = job(tmp_path)
    _train_one_epoch(given)
    age_events(tmp_path)
    earlier = (tmp_path / CHECKPOINT).read_bytes()
    whole = train(given, CPU, resume=True)
    age_events(tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(earlier)
    again = train(given, CPU, resume=True)
    assert_same(whole.net, again.net)
    assert epochs_of(tmp_path) == ([1, 2, 3], [1, 2, 3])


def test_a_log_is_appended_to_and_a_run_has_one_file_of_events(tmp_path: Path) -> None:
    seen = []

    class Looks(Machine):
        def barrier(self) -> None:
            if (tmp_path / LOG).exists():
                seen.append(((tmp_path / LOG).stat().st_ino, (tmp_path / LOG).read_text()))

    train(job(tmp_path), Looks(torch.device("cpu")))
    inodes, texts = zip(*seen, strict=True)
    assert len(set(inodes)) == 1
    assert [text.count("\n") for text in texts] == [1, 2, 3]
    assert len(list((tmp_path / EVENTS).iterdir())) == 1
    assert epochs_of(tmp_path) == ([1, 2, 3], [1, 2, 3])


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
    batch = next(training.examples.training(range(1), 0))
    clips = [torch.cat([each, each.flip(2)], 2) for each in batch.inputs]  # of two steps or more
    with torch.no_grad():  # so that the steps' losses are far apart
        for layer in training.net.last_layers:
            training.net.get_parameter(f"{layer}.weight").mul_(50)
    other = copy.deepcopy(training.net)
    sums = training._forward_backward(clips, batch.label_ids, Epoch())
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
        assert one.grad is not None and two.grad is not None
        largest = float(two.grad.abs().max())  # up to 1,800, as the last layer is so large
        torch.testing.assert_close(one.grad, two.grad, atol=1e-5 * max(largest, 1), rtol=1e-4)


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


@pytest.mark.parametrize(
    ("arch", "batch_size", "num_clips", "is_usable"),
    [
        ("convnet-lstm", 1, 8, False),
        ("c3d", 1, 8, False),
        ("c3d", 2, 7, False),  # the last batch has three clips, in micro-batches of 1 and 2
        ("c3d", 2, 8, True),
        ("c3d", 3, 7, True),
        ("c3d", 6, 1, False),
        ("i3d", 1, 8, True),
        ("3d-fused", 1, 8, True),
    ],
)
def test_a_micro_batch_that_cannot_be_used_is_told_before_the_first_step(
    arch: str, batch_size: int, num_clips: int, is_usable: bool, tmp_path: Path
) -> None:
    stream = ARCHS[arch].streams[0] if arch != "i3d" else "rgb"
    recipe = tiny_recipe(arch, stream, batch_size=batch_size, micro_batch_size=min(batch_size, 4))
    given = job(tmp_path / "run", recipe, arch=arch, stream=stream)
    few = replace(given.train, samples=given.train.samples[:num_clips])
    given = replace(given, train=few)
    if is_usable:
        require_usable(given, CPU)
        return
    with pytest.raises(EvaluationError) as caught:
        train(given, CPU)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"rgb: of {num_clips} training clips in batches of {batch_size}, ")
    size = {1: None, 8: 2}.get(num_clips, 3)
    assert line.endswith("on more clips" if size is None else f"give --batch-size {size}")
    if size is not None:
        larger = tiny_recipe(arch, stream, batch_size=size, micro_batch_size=min(size, 4))
        require_usable(replace(given, recipe=larger), CPU)
    assert not (tmp_path / "run").exists()


def _train_one_epoch(stopped: TrainingJob, machine: Machine = CPU) -> None:
    """Write what a training of `stopped` has written after its first epoch."""

    class StopAfterOne(Machine):
        def barrier(self) -> None:
            if (stopped.folder / CHECKPOINT).exists():
                raise Killed

    with pytest.raises(Killed):
        train(stopped, StopAfterOne(machine.device, float16=machine.float16))
    assert Checkpoint.read(stopped.folder / CHECKPOINT).epoch == 1


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_a_training_that_is_stopped_after_any_step_gives_the_same_weights(
    stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(job(tmp_path / "whole", stream=stream), CPU)
    assert whole.step == 6  # of three epochs
    stops = StopsAt(monkeypatch)
    given = job(tmp_path / "part", stream=stream, saving=Saving(steps=1))
    for stops.step in (1, 2, 3, 5):  # 2: the end of an epoch
        with pytest.raises(Killed):
            train(given, CPU, resume=True)
        left = Checkpoint.read(tmp_path / "part" / CHECKPOINT)
        assert (left.step, left.epoch, left.finished) == (stops.step, stops.step // 2, False)
        assert (left.begun is not None) == (stops.step % 2 == 1)
    stops.step = -1
    done = train(given, CPU, resume=True)
    assert_same(whole.net, done.net)
    assert [row.loss for row in whole.history] == [row.loss for row in done.history]
    assert [row.clips for row in done.history] == [8] * 3
    assert (done.begun, done.statistics) == (None, [])
    assert epochs_of(tmp_path / "part")[0] == [1, 2, 3]


@pytest.mark.parametrize("told", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_asks_for_a_checkpoint_after_the_step(
    told: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(job(tmp_path / "whole"), CPU)
    step, seen = _Training._step, []

    def stepping(training: _Training, *rest: Any) -> Any:
        if training.state.step == 2:
            signal.raise_signal(told)
        result = step(training, *rest)
        path = tmp_path / "part" / CHECKPOINT
        seen.append(Checkpoint.read(path).step if path.exists() else 0)
        return result

    monkeypatch.setattr(_Training, "_step", stepping)

    def stop(*_: object) -> None:
        raise Killed

    before = signal.signal(signal.SIGTERM, stop)
    try:
        given = job(tmp_path / "part", saving=Saving())
        if told == signal.SIGTERM:
            with pytest.raises(Killed):
                train(given, CPU)
            assert Checkpoint.read(tmp_path / "part" / CHECKPOINT).step == 3
            assert signal.getsignal(signal.SIGTERM) is stop
        done = train(given, CPU, resume=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    if told == signal.SIGUSR1:  # that of the step is there before the next step
        assert seen == [0, 0, 2, 3, 4, 4]
    assert_same(whole.net, done.net)


@pytest.mark.full
@pytest.mark.parametrize("num", [1, 2])
def test_ten_kills_between_steps_give_the_same_weights(num: int, tmp_path: Path) -> None:
    recipe = replace(
        RECIPE, batch_size=4, micro_batch_size=2, schedule=OneCycle(epochs=8, peak_lr=1e-3)
    )
    whole = job(tmp_path / "whole", recipe, saving=Saving(), num_workers=0)
    assert run_processes(whole, num)
    killed = job(tmp_path / "killed", recipe, saving=Saving(steps=1), num_workers=0)
    random = np.random.default_rng(0)
    kills = [run_processes(killed, num, seconds=random.random() * 0.3) for _ in range(10)]
    assert not all(kills)
    assert run_processes(killed, num)
    one, other = (Checkpoint.read(each.folder / CHECKPOINT) for each in (whole, killed))
    assert one.finished and other.finished
    assert_same(one.net, other.net)
    assert [row.loss for row in one.history] == [row.loss for row in other.history]


@pytest.mark.full
def test_a_training_of_two_processes_goes_on_with_one(tmp_path: Path) -> None:
    recipe = replace(RECIPE, batch_size=4, micro_batch_size=2)
    given = job(tmp_path, recipe, saving=Saving(steps=1), num_workers=0)
    run_processes(given, 2, seconds=0)
    left = Checkpoint.read(tmp_path / CHECKPOINT)
    done = train(given, CPU, resume=True)
    assert left.step < done.step == 6
    assert [row.clips for row in done.history] == [8] * 3


@pytest.mark.parametrize(("step", "epoch"), [(7, 1), (1, 1), (2, 2), (3, 1)])
def test_a_step_that_is_not_of_its_epoch_is_one_line(step: int, epoch: int, tmp_path: Path) -> None:
    given = job(tmp_path)
    _train_one_epoch(given)
    changed = replace(Checkpoint.read(tmp_path / CHECKPOINT), step=step, epoch=epoch)
    changed.write(tmp_path / CHECKPOINT)
    with pytest.raises(EvaluationError, match=r"is of step \d after epoch \d, which cannot be"):
        train(given, CPU, resume=True)


def test_as_many_checkpoints_stay_as_were_asked_for(tmp_path: Path) -> None:
    given = job(tmp_path, saving=Saving(steps=1, keep=3))
    done = train(given, CPU)
    names = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert names == ["checkpoint-00000004.pt", "checkpoint-00000005.pt", "checkpoint.pt"]
    (tmp_path / CHECKPOINT).write_bytes((tmp_path / names[1]).read_bytes())
    assert_same(done.net, train(given, CPU, resume=True).net)


def test_an_epoch_that_other_processes_began_goes_on_with_each_clip_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = StopsAt(monkeypatch)
    stops.step = 3
    given = job(tmp_path, saving=Saving(steps=1))
    with pytest.raises(Killed):
        train(given, CPU)
    path = tmp_path / CHECKPOINT
    stops.step = -1
    left = Checkpoint.read(path)
    left.statistics *= 2  # as of two processes
    left.write(path.with_name("two.pt"))
    path.with_name("two.pt").replace(path)
    done = train(given, CPU, resume=True)
    assert "was begun by 2 processes and is continued by 1" in caplog.text
    assert [row.clips for row in done.history] == [8] * 3


def test_a_finished_training_is_reused_and_another_refused(tmp_path: Path) -> None:
    first = train(job(tmp_path), CPU)
    modified = (tmp_path / CHECKPOINT).stat().st_mtime_ns
    again = train(job(tmp_path), CPU)
    assert_same(first.net, again.net)
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == modified
    with pytest.raises(
        EvaluationError, match=r"another training, not the same seed \(0 there, 1 now\).*--force"
    ):
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


def diverging(*milestones: tuple[int, float]) -> Recipe:
    """Plain steps: two per epoch on the tiny shards."""
    return replace(RECIPE, optimizer="sgd", schedule=MultiStep(milestones=milestones))


def test_a_training_stops_at_the_first_loss_that_is_not_finite(tmp_path: Path) -> None:
    given = job(tmp_path, diverging((2, 1e-3), (12, 1e30)))
    with pytest.raises(EvaluationError) as caught:
        train(given, CPU)
    (line,) = str(caught.value).splitlines()
    # The third step makes the weights too large, so the fourth has no loss.
    assert line.startswith("rgb: the loss is nan in step 4 (epoch 2), on ")
    named = re.findall(r"[a-z]+_(?:left|right)", line.partition(": the training")[0])
    (step, *_) = list(_Training(given, CPU, None).plan.steps(1))[1:]
    keys = [given.train.samples[number].key for number in step.micro_batches[0]]
    assert named == sorted(keys)
    assert "checkpoint.pt is that of epoch 1" in line
    kept = Checkpoint.read(tmp_path / CHECKPOINT)
    assert (kept.epoch, kept.finished) == (1, False)
    assert all(bool(values.isfinite().all()) for values in kept.net.values())
    assert [json.loads(line)["epoch"] for line in (tmp_path / LOG).read_text().splitlines()] == [1]
    with pytest.raises(EvaluationError, match="stopped after 1 epochs; give --resume"):
        train(given, CPU)
    with pytest.raises(EvaluationError, match="the loss is nan in step 4"):
        train(given, CPU, resume=True)


@pytest.mark.parametrize("last", [4, 3])
def test_the_last_step_of_an_epoch_or_of_all_may_be_the_one_that_diverges(
    last: int, tmp_path: Path
) -> None:
    recipe = diverging((last - 1, 1e-3), (last, 1e38), (last + 2 if last == 4 else last, 1e-3))
    with pytest.raises(EvaluationError, match=rf"is not finite after step {last}: .* of epoch 1"):
        train(job(tmp_path, recipe), CPU)
    assert Checkpoint.read(tmp_path / CHECKPOINT).epoch == 1


def test_a_gradient_that_overflows_is_no_step(tmp_path: Path) -> None:
    training = _Training(job(tmp_path), CPU, None)
    layer = training.net.get_parameter(f"{training.net.last_layers[0]}.weight")
    layer.register_hook(lambda gradient: gradient * 1e39)  # type: ignore[no-untyped-call]
    before = copy.deepcopy(training.net.state_dict())
    with pytest.raises(EvaluationError, match=r"gradient is not finite in step 1 .*no checkpoint"):
        training.run()
    for name, weight in training.net.named_parameters():
        assert torch.equal(weight, before[name]), name
    assert not (tmp_path / CHECKPOINT).exists()


class KillsWorkers(Machine):
    """Kills a process that reads clips, as the system does where memory is short."""

    def kill(self) -> None:
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)


class KillsInTraining(KillsWorkers):
    def barrier(self) -> None:
        if multiprocessing.active_children():  # before the first epoch there are none
            self.kill()


class KillsInEvaluation(KillsWorkers):
    def autocast(self) -> torch.autocast:
        self.kill()
        return super().autocast()


# Else a second error is printed while the first one is told.
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_training_whose_worker_is_killed_is_one_line_and_continues(tmp_path: Path) -> None:
    whole = train(job(tmp_path / "whole"), CPU)
    given = job(tmp_path / "killed", num_workers=2)
    with pytest.raises(EvaluationError, match=r"worker .* fewer --workers .* --resume") as caught:
        train(given, KillsInTraining(torch.device("cpu")))
    assert "\n" not in str(caught.value)
    assert Checkpoint.read(given.folder / CHECKPOINT).epoch == 1
    assert_same(whole.net, train(given, CPU, resume=True).net)
    assert multiprocessing.active_children() == []


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_an_evaluation_whose_worker_is_killed_is_one_line(tmp_path: Path) -> None:
    given = job(tmp_path)
    checkpoint = train(given, CPU)
    test = Evaluation(
        data=given.data,
        selection=given.train,
        flow="",
        protocol=PROTOCOLS["whole"],
        num_workers=2,
    )
    with pytest.raises(EvaluationError, match=r"worker .* fewer --workers .* again") as caught:
        predict_split(checkpoint, test, KillsInEvaluation(torch.device("cpu")))
    assert "\n" not in str(caught.value)
    assert len(predict_split(checkpoint, test, CPU).keys) == 8


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
        ("foreign", r"is not a checkpoint of this version \(its net is not a state dict\); copy"),
        ("format", r"is not a checkpoint of this version \(it has format 99, not 2\); copy it"),
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


def test_a_disk_that_fills_while_a_checkpoint_is_written_is_told(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    small_checkpoint(torch.arange(10.0)).write(path)
    before = path.read_bytes()

    def write_too_much() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            small_checkpoint(torch.arange(30_000.0)).write(path)  # more has torch use threads
        except OSError as error:
            os._exit(7 if error.filename == str(path) and error.errno in FULL_ERRNOS else 1)

    child = multiprocessing.get_context("fork").Process(target=write_too_much)
    child.start()
    child.join()
    assert child.exitcode == 7
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [CHECKPOINT]


def test_weights_of_another_class_count_are_refused(tmp_path: Path) -> None:
    done = train(job(tmp_path, replace(RECIPE, schedule=OneCycle(epochs=1, peak_lr=1e-3))), CPU)
    done.data = replace(done.data, labels=("left", "right", "up"))
    done.write(tmp_path / CHECKPOINT)
    told = "these weights are not of i3d, stream rgb, with 3 classes: see 'Logits"
    with pytest.raises(EvaluationError, match=told) as caught:
        Checkpoint.read(tmp_path / CHECKPOINT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state[0].pop("exp_avg"),
        lambda state: state[0].update(step=1),
        lambda state: state[0].update(exp_avg=torch.zeros(3)),
        lambda state: state.update({10**6: state[0]}),
        lambda state: state.update({0: [1]}),
    ],
)
def test_a_damaged_state_of_the_optimizer_is_one_line(
    change: Callable[[dict[Any, Any]], object], tmp_path: Path
) -> None:
    stopped = job(tmp_path, replace(RECIPE, schedule=OneCycle(epochs=2, peak_lr=1e-3)))
    _train_one_epoch(stopped)
    values = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    change(values["optimizer"]["state"])
    torch.save(values, tmp_path / CHECKPOINT)
    with pytest.raises(EvaluationError, match="the optimizer's state is damaged; copy it again"):
        train(stopped, CPU, resume=True)


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


HALF = replace(CPU, float16=True)


def test_float16_scales_its_loss_and_a_resumed_training_knows_the_scale(tmp_path: Path) -> None:
    options: dict[str, Any] = {"arch": "two-stream", "stream": "rgb"}
    whole = train(job(tmp_path / "whole", **options), HALF)
    assert whole.precision == "float16"
    assert whole.loss_scale is not None
    assert 1 < whole.loss_scale.scale <= 2.0**16
    stopped = job(tmp_path / "part", **options)
    _train_one_epoch(stopped, HALF)
    resumed = train(stopped, HALF, resume=True)
    assert_same(whole.net, resumed.net)
    assert resumed.loss_scale == whole.loss_scale
    single = train(job(tmp_path / "single", **options), CPU)
    assert single.loss_scale is None
    assert whole.history[0].loss == pytest.approx(single.history[0].loss, rel=0.1)


def test_a_step_that_overflows_in_float16_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    high = partial(torch.amp.GradScaler, init_scale=2.0**40)
    monkeypatch.setattr(torch.amp, "GradScaler", high)
    done = train(job(tmp_path, arch="two-stream", stream="rgb"), HALF)
    assert all(each.isfinite().all() for each in done.net.values())
    assert done.loss_scale is not None
    assert done.loss_scale.scale < 2.0**40
