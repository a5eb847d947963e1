"""Batch norm over the clips of all processes: equal to one process with all clips."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kinetics_bench.archs.batch_norm import BatchNorm, BatchNormSingleSampleError
from kinetics_bench.archs.convnet_lstm import StepBatchNorm
from kinetics_bench.archs.layers import OffsetBatchNorm
from kinetics_bench.archs.registry import ARCHS, build
from kinetics_bench.data.loader import BatchPlan
from kinetics_bench.device import Machine
from kinetics_bench.recipes import OneCycle
from kinetics_bench.training.checkpoint import CHECKPOINT, Checkpoint
from kinetics_bench.training.job import TrainingJob, require_usable
from kinetics_bench.training.occasions import Saving
from kinetics_bench.training.trainer import train
from kinetics_tools.core.errors import EvaluationError
from nets import waves
from tiny import copy_of_shards, damage, tiny_recipe
from trainings import CPU, assert_same, in_processes, job, run_processes

# How many of the clips each of two processes has.
PARTS = [(3, 3), (5, 1), (6, 0), (0, 6), (1, 1), (2, 1)]
SYNCED = {"sync_batch_norm": True}
# In the short run the network with both kinds of batch norm.
NETWORKS = [
    pytest.param(arch, stream, marks=() if arch == "convnet-lstm" else pytest.mark.full)
    for arch, known in ARCHS.items()
    for stream in known.networks
]


def norms() -> dict[str, BatchNorm]:
    """Batch norms of three channels with other weights than the initial ones."""
    torch.manual_seed(0)
    scaled = OffsetBatchNorm(3, momentum=0.3)
    scaled.keep_scale(torch.tensor([0.5, 1.0, -2.0]))
    found = {
        "offset": OffsetBatchNorm(3, momentum=0.3),
        "scaled": scaled,
        "step": StepBatchNorm(3, num_steps=2, momentum=0.3, offset=True),
        "step without offset": StepBatchNorm(3, num_steps=2, momentum=0.3, offset=False),
    }
    for norm in found.values():
        for weight in norm.parameters():
            torch.nn.init.normal_(weight)
    return found


def values_of(name: str, num: int) -> Tensor:
    """Values with a mean that is large beside their deviation, channels apart."""
    torch.manual_seed(num)
    values = torch.randn(num, 3, *(() if "step" in name else (2, 4, 3)))
    offsets = torch.tensor([1000.0, 0.0, -3.0])
    return values + offsets.reshape(3, *[1] * (values.ndim - 2))


def passed(name: str, norm: BatchNorm, values: Tensor, direction: Tensor) -> dict[str, Tensor]:
    """What a forward and a backward pass give: values, gradients, moving statistics."""
    values = values.clone().requires_grad_()
    found = norm.train()(values, *([1] if "step" in name else []))
    (found * direction).sum().backward()
    assert values.grad is not None
    gradients = {f"gradient of {n}": p.grad for n, p in norm.named_parameters()}
    return {
        "normalised": found.detach(),
        "gradient of the values": values.grad,
        **{key: each for key, each in gradients.items() if each is not None},
        **dict(norm.named_buffers()),
    }


def own(tensor: Tensor, part: tuple[int, ...], rank: int) -> Tensor:
    """The clips of a process."""
    return tensor[: part[0]] if rank == 0 else tensor[part[0] :]


def pass_layers(folder: Path, machine: Machine) -> None:
    """Each norm, on each division of the clips, in one of two processes."""
    results = {}
    for part in PARTS:
        for name, norm in norms().items():
            machine.place(norm)
            values = values_of(name, sum(part))
            direction = values.flip(0).sin()
            each = (own(tensor, part, machine.rank) for tensor in (values, direction))
            results[part, name] = passed(name, norm, *each)
    torch.save(results, folder / f"{machine.rank}.pt")


def test_a_layer_in_two_processes_is_that_of_one_with_all_clips(tmp_path: Path) -> None:
    in_processes(partial(pass_layers, tmp_path), 2, **SYNCED)
    ranks: list[dict[Any, dict[str, Tensor]]] = [
        torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)
    ]
    for part in PARTS:
        for name, norm in norms().items():
            values = values_of(name, sum(part))
            whole = passed(name, norm, values, values.flip(0).sin())
            first, second = (results[part, name] for results in ranks)
            for what, expected in whole.items():
                if what in ("normalised", "gradient of the values"):
                    found = torch.cat([first[what], second[what]])
                elif what.startswith("gradient"):
                    found = first[what] + second[what]
                else:
                    torch.testing.assert_close(first[what], second[what], rtol=0, atol=0)
                    found = first[what]
                torch.testing.assert_close(
                    found, expected, atol=2e-4, rtol=1e-4, msg=f"{part} {name}: {what}"
                )


def pass_few(folder: Path, machine: Machine) -> None:
    """One value per channel in all, and none."""
    told = []
    for name, norm in norms().items():
        machine.place(norm).train()
        before = {key: each.clone() for key, each in norm.named_buffers()}
        step = [0] if "step" in name else []
        values = torch.ones(1 - machine.rank, 3, requires_grad=True)
        with pytest.raises(BatchNormSingleSampleError) as caught:
            norm(values, *step)
        told.append(str(caught.value))
        norm(values[:0], *step).sum().backward()
        for key, each in norm.named_buffers():
            assert torch.equal(each, before[key]), key
        norm.eval()(values, *step)  # alone: no process waits for another
        if machine.is_main:
            norm(values, *step)
    torch.save(told, folder / f"{machine.rank}.pt")


def test_one_value_in_all_processes_is_refused_by_all_of_them(tmp_path: Path) -> None:
    in_processes(partial(pass_few, tmp_path), 2, **SYNCED)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert len(first) == len(norms())


def one_step(arch: str, stream: str, machine: Machine, part: tuple[int, ...]) -> dict[str, Tensor]:
    """Gradients and statistics after one step on the clips of this process, and its logits."""
    torch.manual_seed(0)
    net = build(arch, stream, 3, dropout=0.0, bn_momentum=0.3)
    machine.place(net.double()).train()  # in float32 roundings grow from layer to layer
    clips = [each.double() for each in waves(arch, stream, num_clips=sum(part), size=(32, 32))]
    labels = torch.arange(sum(part)) % 3
    clips = [own(each, part, machine.rank) for each in clips]
    labels = own(labels, part, machine.rank)
    logits = net(*clips)
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **gradients, **dict(net.named_buffers())}


def pass_networks(
    arch: str, stream: str, parts: list[tuple[int, ...]], folder: Path, machine: Machine
) -> None:
    """One step in one of two processes."""
    for part in parts:
        results = one_step(arch, stream, machine, part)
        torch.save(results, folder / f"{part}-{machine.rank}.pt")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("arch", "stream"), NETWORKS)
def test_a_network_in_two_processes_is_that_of_one_with_all_clips(
    arch: str, stream: str, checkpointing: bool, tmp_path: Path
) -> None:
    parts: list[tuple[int, ...]] = [(2, 1), (0, 3)]
    options = {**SYNCED, "activation_checkpointing": checkpointing}
    in_processes(partial(pass_networks, arch, stream, parts, tmp_path), 2, **options)
    whole = one_step(arch, stream, CPU, (3,))
    for part in parts:
        first, second = (torch.load(tmp_path / f"{part}-{rank}.pt") for rank in range(2))
        for name, expected in whole.items():
            if name == "logits":
                found = torch.cat([first[name], second[name]])
            elif "running" in name or "num_batches" in name:
                torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)
                found = first[name]
            else:
                found = first[name] + second[name]
            torch.testing.assert_close(found, expected, msg=f"{part}: {name}")


def test_every_batch_norm_of_a_network_is_one_that_is_synced() -> None:
    for arch, known in ARCHS.items():
        for stream in known.networks:
            with torch.device("meta"):
                net = build(arch, stream, 3)
            with_statistics = {
                name.rpartition(".")[0] for name, _ in net.named_buffers() if ".running_" in name
            }
            assert with_statistics
            for name in with_statistics:
                assert isinstance(net.get_submodule(name), BatchNorm), name


def convnet_lstm(folder: Path, **changes: Any) -> TrainingJob:
    """An epoch with both kinds of batch norm; its last batch has two clips, the others three."""
    recipe = tiny_recipe("convnet-lstm", dropout=0.0, batch_size=3, micro_batch_size=3)
    schedule = OneCycle(epochs=1, peak_lr=1e-6)
    recipe = replace(recipe, optimizer="sgd", bn_momentum=0.3, schedule=schedule)
    return job(folder, recipe, arch="convnet-lstm", num_workers=0, **changes)


def in_halves(given: TrainingJob) -> TrainingJob:
    """The same for two processes, of which one has one clip of three, and none of two."""
    recipe = replace(given.recipe, micro_batch_size=2)
    return replace(given, recipe=recipe, folder=given.folder / "two")


def sizes_of(given: TrainingJob) -> list[tuple[int, ...]]:
    """How many clips each of two processes has in the steps of an epoch."""
    plans = [BatchPlan(8, given.recipe, given.seed, rank, 2) for rank in range(2)]
    steps = zip(*(plan.steps(0) for plan in plans), strict=True)
    return [tuple(sum(map(len, step.micro_batches)) for step in each) for each in steps]


def assert_close(one: Checkpoint, two: Checkpoint) -> None:
    """Check that two trainings are the same but for roundings.

    These grow in batch norms of two values: without oneDNN the statistics of one process alone are
    others in the last layers. So those of the first ones are compared.
    """
    assert one.finished
    assert two.finished
    assert two.failed.keys() == one.failed.keys()
    for row, other in zip(one.history, two.history, strict=True):
        assert row.loss == pytest.approx(other.loss, rel=1e-3)
        assert (row.clips, row.failed) == (other.clips, other.failed)
    for layer in ("1a_7x7", "2b_1x1", "2c_3x3"):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            key = f"convnet.Conv2d_{layer}.batch_norm.{name}"
            value = one.net[key].double()
            atol = 3e-3 * float(value.abs().max())
            torch.testing.assert_close(two.net[key].double(), value, atol=atol, rtol=0, msg=key)


def test_a_training_in_two_processes_is_that_of_one(tmp_path: Path) -> None:
    given = convnet_lstm(tmp_path)
    halves = in_halves(given)
    assert sizes_of(halves) == [(1, 2), (1, 2), (2, 0)]
    assert run_processes(halves, 2, **SYNCED)
    assert_close(train(given, CPU), Checkpoint.read(halves.folder / CHECKPOINT))


def test_a_process_whose_clips_cannot_be_decoded_takes_part(tmp_path: Path) -> None:
    shards = copy_of_shards(tmp_path)
    damage(shards, "ben_left")
    place = [sample.key for sample in job(tmp_path).train.samples].index("ben_left")
    given = convnet_lstm(tmp_path, shards=shards)

    def is_alone(seed: int) -> bool:
        plan = BatchPlan(8, in_halves(given).recipe, seed, 0, 2)
        return any((place,) in step.micro_batches for step in plan.steps(0))

    given = replace(given, seed=next(seed for seed in range(100) if is_alone(seed)))
    halves = in_halves(given)
    assert run_processes(halves, 2, **SYNCED)
    two = Checkpoint.read(halves.folder / CHECKPOINT)
    assert list(two.failed) == ["ben_left"]
    assert_close(train(given, CPU), two)


@pytest.mark.full
def test_a_training_that_was_stopped_goes_on_with_the_same_batch_norm(tmp_path: Path) -> None:
    given = in_halves(convnet_lstm(tmp_path, saving=Saving(steps=1)))
    whole = replace(given, folder=tmp_path / "whole")
    assert run_processes(whole, 2, **SYNCED)
    run_processes(given, 2, seconds=0, **SYNCED)
    before = Checkpoint.read(given.folder / CHECKPOINT)
    assert before.identity["batch norm"] == "of the clips of all processes"
    if not before.finished:
        said = "not the same batch norm (of the clips of all processes there, of the clips of each "
        with pytest.raises(EvaluationError, match=re.escape(said)) as caught:
            train(given, CPU, resume=True)
        assert "\n" not in str(caught.value)
    assert run_processes(given, 2, **SYNCED)
    found = Checkpoint.read(given.folder / CHECKPOINT)
    assert_same(Checkpoint.read(whole.folder / CHECKPOINT).net, found.net)


def test_one_process_trains_the_same_with_it(tmp_path: Path) -> None:
    given = convnet_lstm(tmp_path)
    plain = train(given, CPU)
    synced = train(replace(given, folder=tmp_path / "synced"), replace(CPU, sync_batch_norm=True))
    assert_same(plain.net, synced.net)


def test_a_checkpoint_of_before_is_of_the_batch_norm_of_each_process(tmp_path: Path) -> None:
    given = convnet_lstm(tmp_path)
    done = train(given, CPU)
    done.identity = {what: value for what, value in done.identity.items() if what != "batch norm"}
    done.write(given.folder / CHECKPOINT)
    train(given, CPU)
    with pytest.raises(EvaluationError, match="not the same batch norm"):
        train(given, replace(CPU, sync_batch_norm=True))


def test_one_clip_in_each_process_is_enough(tmp_path: Path) -> None:
    given = convnet_lstm(tmp_path)
    given = replace(given, recipe=replace(given.recipe, batch_size=2, micro_batch_size=1))
    two = replace(CPU, num_processes=2)
    with pytest.raises(EvaluationError, match="a micro-batch has one clip"):
        require_usable(given, two)
    require_usable(given, replace(two, sync_batch_norm=True))
    odd = replace(given, recipe=replace(given.recipe, batch_size=3))
    with pytest.raises(EvaluationError, match="a micro-batch has one clip"):
        require_usable(odd, replace(two, sync_batch_norm=True))
