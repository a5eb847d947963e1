"""What a run computes on: device, precision, and the processes that torchrun started."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Final, Literal, TypeVar

import torch
from torch import Tensor, distributed, nn

from kinetics_bench.archs.batch_norm import BatchNorm
from kinetics_bench.archs.network import Network
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.system import cpu_flags

T = TypeVar("T")
CHANNELS_LAST: Final = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True, slots=True)
class Machine:
    """The device and precision of this process, and its rank among the run's processes.

    Attributes:
        device: the device of networks and clips.
        bfloat16: whether forward passes run under autocast to bfloat16.
        float16: whether they run under autocast to float16; a training then scales its loss.
        rank: rank of this process, from 0.
        num_processes: number of processes, the world size.
        activation_checkpointing: whether `place` makes networks checkpoint their activations.
        sync_batch_norm: whether batch norms of a placed network, in training, normalise by the
            clips of all processes.
        compiled: whether a training compiles its forward and backward pass, by torch.compile.
    """

    device: torch.device
    bfloat16: bool = False
    rank: int = 0
    num_processes: int = 1
    activation_checkpointing: bool = False
    float16: bool = False
    sync_batch_norm: bool = False
    compiled: bool = False

    @property
    def syncs(self) -> bool:
        """Whether a forward pass in training is one of all processes together."""
        return self.sync_batch_norm and self.num_processes > 1

    @property
    def amp(self) -> Literal["none", "bfloat16", "float16"]:
        """What `open_machine` takes for this precision."""
        return "float16" if self.float16 else "bfloat16" if self.bfloat16 else "none"

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and shows progress."""
        return self.rank == 0

    @property
    def precision(self) -> str:
        """Precision of convolutions. Weights, statistics and logits are always float32."""
        return "bfloat16" if self.bfloat16 else "float16" if self.float16 else "float32"

    def autocast(self) -> torch.autocast:
        """The autocast context for forward passes."""
        half = torch.float16 if self.float16 else torch.bfloat16
        return torch.autocast(self.device.type, half, enabled=self.precision != "float32")

    def place(self, net: nn.Module) -> nn.Module:
        """Move a network to the device, channels last, which bfloat16 needs to be faster."""
        if self.activation_checkpointing and isinstance(net, Network):
            net.checkpoint_activations()
        if self.syncs:
            for module in net.modules():
                if isinstance(module, BatchNorm):
                    module.processes = self
        net.to(self.device)
        for weight in net.parameters():
            if weight.ndim in CHANNELS_LAST:
                weight.data = weight.data.contiguous(memory_format=CHANNELS_LAST[weight.ndim])
        return net

    def place_clips(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Move a network's inputs, each (B, C, T, H, W), to the device, channels last."""
        moved = (each.to(self.device, non_blocking=True) for each in clips)
        return [each.contiguous(memory_format=torch.channels_last_3d) for each in moved]

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over all processes; one all-reduce for all."""
        if self.num_processes == 1 or not tensors:
            return
        wide = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
        flat = torch.cat([tensor.reshape(-1).to(wide) for tensor in tensors])
        with _with_the_others():
            distributed.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def all_gather(self, values: Tensor) -> Tensor:
        """The values (n,) of all P processes in the order of their ranks: (P, n)."""
        rows = [torch.empty_like(values) for _ in range(self.num_processes)]
        with _with_the_others():
            distributed.all_gather(rows, values.contiguous())
        return torch.stack(rows)

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the order of their ranks, on every process."""
        if self.num_processes == 1:
            return [value]
        values: list[Any] = [None] * self.num_processes
        with _with_the_others():
            distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self.num_processes > 1:
            with _with_the_others():
                distributed.barrier()


@contextmanager
def open_machine(
    device: str,
    amp: str,
    *,
    activation_checkpointing: bool = False,
    sync_batch_norm: bool = False,
    compiled: bool = False,
) -> Iterator[Machine]:
    """The machine to compute on. Under torchrun, its process group exists inside the context.

    Args:
        device: `auto` (CUDA if there is a GPU), `cpu`, `cuda` (under torchrun one GPU per process)
            or `cuda:N`.
        amp: `bfloat16`, `float16`, `none`, or `auto`: bfloat16 if the hardware supports it.
        activation_checkpointing: see `Machine`.
        sync_batch_norm: see `Machine`.
        compiled: see `Machine`.

    Raises:
        EvaluationError: `compiled` does not go together with another option; CUDA was asked for and
            torch finds no GPU; or the other processes cannot be reached.
    """
    if compiled and (activation_checkpointing or sync_batch_norm):
        other = "--sync-bn" if sync_batch_norm else "--checkpoint-activations"
        raise EvaluationError(f"--compile does not go together with {other}: leave one of them out")
    chosen = _device(device)
    bfloat16 = amp == "bfloat16" or (amp == "auto" and _has_bfloat16(chosen))
    num_processes = _num_processes(os.environ)
    machine = Machine(
        chosen,
        bfloat16,
        activation_checkpointing=activation_checkpointing,
        float16=amp == "float16",
        sync_batch_norm=sync_batch_norm,
        compiled=compiled,
    )
    if num_processes == 1:
        yield machine
        return
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    with _with_the_others(f"the processes of this run do not meet at {place}"):
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield replace(machine, rank=distributed.get_rank(), num_processes=num_processes)
    finally:
        distributed.destroy_process_group()


@contextmanager
def _with_the_others(
    what: str = "the processes of this run lost each other: one has ended, or this one has a fault",
) -> Iterator[None]:
    """A block in which the processes of a run talk to each other.

    Args:
        what: what it means that they cannot, for the message.

    Raises:
        EvaluationError: they cannot.
    """
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if not isinstance(error, distributed.DistError) and "gloo/" not in text:
            raise
        short = text if len(text) < 400 else f"{text[:200]} ... {text[-200:]}"
        raise EvaluationError(
            f"{what} ({short}); the first error of all of them says why; then start all again, a "
            "training with --resume"
        ) from error


def _num_processes(environ: Mapping[str, str]) -> int:
    """How many processes torchrun started.

    Raises:
        EvaluationError: its variables are not those of torchrun.
    """
    told = {name: environ.get(name, "") for name in ("WORLD_SIZE", "RANK")}
    if not told["WORLD_SIZE"] or told["WORLD_SIZE"] == "1":
        return 1
    is_usable = all(re.fullmatch("[0-9]{1,6}", value) for value in told.values())
    if (
        not is_usable
        or int(told["RANK"]) >= int(told["WORLD_SIZE"])
        or not environ.get("MASTER_ADDR")
        or not re.fullmatch("[0-9]{1,5}", environ.get("MASTER_PORT", ""))
    ):
        raise EvaluationError(
            f"WORLD_SIZE is {told['WORLD_SIZE'][:20]!r} and RANK {told['RANK'][:20]!r}, which "
            "torchrun did not set; start many processes with torchrun, or unset them"
        )
    return int(told["WORLD_SIZE"])


def _device(name: str) -> torch.device:
    if re.fullmatch("auto|cpu|cuda(:[0-9]{1,4})?", name) is None:
        raise EvaluationError(f"--device {name[:40]!r} is not auto, cpu, cuda or cuda:N")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EvaluationError(f"--device {name}: torch finds no CUDA device here; use --device cpu")
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(name)
    return torch.device(name)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # A CPU without these instructions emulates bfloat16, slower than float32.
    return not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})
