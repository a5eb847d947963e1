"""Training speed and memory of the architectures; each line of output is JSON.

    python benchmarks/speed/train.py
    python benchmarks/speed/train.py --arch i3d --part steps --batch 2

A step is the forward and backward pass of a batch at the paper's training input (Table 1), without
the optimizer. `forward` is a forward pass in training mode, without gradients. Parts:

    product    operations per second of one large matrix product, per precision
    steps      clips per second of forward passes and of steps, per configuration
    operators  seconds of a step per operator, in the configuration of run-benchmark, by torch's
               profiler: all convolutions, the slowest operators, the rest (on CUDA with idle time)
    memory     peak memory of a step, with weights and gradients, without and with activation
               checkpointing

A configuration (`way`) is a precision (bfloat16 if the hardware supports it, or with --emulate), a
memory layout, and `compiled` for torch.compile, which on a CPU needs a C++ compiler. Configurations
are timed in turns, after one round of warm-up. A `times_plain` is the median over the rounds of the
ratio to float32, contiguous, not compiled. A multiply-add counts as two operations.
`share_of_product` is the operations per second divided by those of the matrix product in the same
precision, in the same run. On CUDA "float32" is torch's default: convolutions, and here also the
matrix product, round their operands to TF32.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import ARCHS, CHANNELS, build
from kinetics_bench.device import Machine, open_machine
from kinetics_tools.core.system import num_processors

# Large enough that the launch of the kernel does not matter.
PRODUCT_SIDES = {"cpu": 4096, "cuda": 8192}
ROUNDS = 3
NUM_OPERATORS = 8  # in the output


@dataclass(frozen=True, slots=True)
class Way:
    """A configuration: how a step is computed."""

    bfloat16: bool = False
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        words = [
            "bfloat16" if self.bfloat16 else "float32",
            "channels last" if self.channels_last else "contiguous",
            *(["compiled"] if self.compiled else []),
        ]
        return ", ".join(words)


STATUS = Path("/proc/self/status")  # of Linux
COMPILERS = ("c++", "g++", "clang++")
PLAIN = Way()
WAYS = (
    PLAIN,
    Way(channels_last=True),
    Way(channels_last=True, compiled=True),
    Way(bfloat16=True),
    Way(bfloat16=True, channels_last=True),
    Way(bfloat16=True, channels_last=True, compiled=True),
)


def main() -> None:
    """Run the parts given on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", choices=ARCHS, action="append", help="(default: all)")
    parser.add_argument("--stream", help="(default: the first that is trained)")
    parser.add_argument("--part", choices=PARTS, action="append", help="(default: all)")
    parser.add_argument("--batch", type=int, default=2, help="clips per step (default: 2)")
    parser.add_argument("--device", default="auto", help="as for run-benchmark")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--emulate", action="store_true", help="bfloat16 even if it is emulated")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    with open_machine(options.device, "auto") as machine:
        for part in options.part or PARTS:
            for result in PARTS[part](options, machine):
                print(json.dumps({"part": part} | result | _about(machine)), flush=True)


def _about(machine: Machine) -> dict[str, Any]:
    on_cuda = machine.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(machine.device) if on_cuda else machine.device.type,
        "threads": torch.get_num_threads(),
        "processors": num_processors(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }


def _networks(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Pairs of architecture and stream to measure."""
    for name in options.arch or ARCHS:
        arch = ARCHS[name]
        trained = [each for each in arch.streams if each != "joint" or arch.joint_training]
        stream = options.stream or trained[0]
        if stream in trained:
            yield name, stream


def _clips(name: str, stream: str, batch: int) -> list[Tensor]:
    """Random inputs of the paper's training size, each (B, C, T, H, W) in [-1, 1]."""
    arch = ARCHS[name]
    return [
        torch.rand(batch, CHANNELS[each], arch.train[each].num, arch.crop_px, arch.crop_px) * 2 - 1
        for each in arch.clips_of(stream)
    ]


def _ways(options: argparse.Namespace, machine: Machine) -> list[Way]:
    has_bfloat16 = machine.bfloat16 or options.emulate
    compiles = machine.device.type != "cpu" or any(map(shutil.which, COMPILERS))
    compiles = compiles and not options.eager
    return [
        way for way in WAYS if (has_bfloat16 or not way.bfloat16) and (compiles or not way.compiled)
    ]


def _placed(net: Network, clips: list[Tensor], way: Way, machine: Machine) -> list[Tensor]:
    """Move a network and its inputs to the device, in the layout of `way`; return the inputs."""
    if way.channels_last:
        machine.place(net)
        return list(machine.place_clips(clips))
    net.to(machine.device)
    return [each.to(machine.device) for each in clips]


def _synchronize(machine: Machine) -> None:
    if machine.device.type == "cuda":
        torch.cuda.synchronize(machine.device)


class _Timed:
    """A network in one configuration, whose steps are timed."""

    def __init__(self, name: str, stream: str, way: Way, batch: int, machine: Machine) -> None:
        self.way, self.machine = way, machine
        torch.manual_seed(0)
        self.net = build(name, stream).train()
        self.clips = _placed(self.net, _clips(name, stream, batch), way, machine)
        # After other shapes torch would compile for dynamic ones: this takes minutes and is slower.
        self.call: Callable[..., Any] = (
            torch.compile(self.net, dynamic=False) if way.compiled else self.net
        )

    def round(self) -> tuple[float, float]:
        """Seconds of a forward pass without gradients, and of a step."""
        began = self._now()
        with torch.no_grad():
            self._forward()
        return self._now() - began, self.step()

    def step(self) -> float:
        """Seconds of a forward and a backward pass."""
        self.net.zero_grad(set_to_none=True)
        began = self._now()
        loss = self._forward().float().square().sum()
        torch.autograd.backward(loss)
        return self._now() - began

    def _forward(self) -> Tensor:
        kind = self.machine.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.way.bfloat16):
            logits: Tensor = self.call(*self.clips)
        return logits

    def _now(self) -> float:
        _synchronize(self.machine)
        return time.perf_counter()


def _operations(name: str, stream: str, batch: int) -> tuple[int, int]:
    """Operations of a forward pass and of a step, counted on the meta device."""
    with torch.device("meta"):
        net = build(name, stream).train()
        clips = _clips(name, stream, batch)
    counts = []
    for with_backward in (False, True):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(with_backward):
            logits = net(*clips)
            if with_backward:
                logits.sum().backward()
        counts.append(counter.get_total_flops())
    return counts[0], counts[1]


def measure_product(options: argparse.Namespace, machine: Machine) -> Iterator[dict[str, Any]]:
    """A square matrix product in each precision of the configurations."""
    for dtype in dict.fromkeys(_precision(way) for way in _ways(options, machine)):
        yield {
            "precision": str(dtype).removeprefix("torch."),
            "side": PRODUCT_SIDES[machine.device.type],
            "giga_operations_per_s": round(_product_rate(dtype, machine) / 1e9, 1),
        }


def _precision(way: Way) -> torch.dtype:
    return torch.bfloat16 if way.bfloat16 else torch.float32


@cache
def _product_rate(dtype: torch.dtype, machine: Machine) -> float:
    """Operations per second, the best of several: what the machine can reach."""
    side = PRODUCT_SIDES[machine.device.type]
    matrix = torch.rand(side, side, device=machine.device).to(dtype)
    seconds = []
    for _ in range(ROUNDS + 1):
        _synchronize(machine)
        began = time.perf_counter()
        matrix @ matrix
        _synchronize(machine)
        seconds.append(time.perf_counter() - began)
    return 2 * float(side) ** 3 / min(seconds)


def measure_steps(options: argparse.Namespace, machine: Machine) -> Iterator[dict[str, Any]]:
    """Each architecture in each configuration, timed in turns."""
    ways = _ways(options, machine)
    rates = {dtype: _product_rate(dtype, machine) for dtype in {_precision(way) for way in ways}}
    for name, stream in _networks(options):
        operations = _operations(name, stream, options.batch)
        torch.compiler.reset()
        timed = [_Timed(name, stream, way, options.batch, machine) for way in ways]
        rounds = [[each.round() for each in timed] for _ in range(ROUNDS + 1)][1:]
        for number, way in enumerate(ways):
            own = [seconds[number] for seconds in rounds]
            yield {
                "arch": name,
                "stream": stream,
                "batch": options.batch,
                "way": str(way),
                **_rates("forward", 0, own, rounds, options.batch),
                **_rates("step", 1, own, rounds, options.batch),
                "giga_operations_a_clip": round(operations[1] / options.batch / 1e9, 1),
                "share_of_product": round(
                    operations[1]
                    / statistics.median(step_s for _, step_s in own)
                    / rates[_precision(way)],
                    3,
                ),
            }


def _rates(
    what: str,
    at: int,
    own: Sequence[tuple[float, float]],
    rounds: Sequence[Sequence[tuple[float, float]]],
    batch: int,
) -> dict[str, float]:
    """Clips per second, and the speed relative to the first configuration, PLAIN."""
    ratios = [plain[0][at] / mine[at] for plain, mine in zip(rounds, own, strict=True)]
    return {
        f"{what}_clips_per_s": round(batch / statistics.median(mine[at] for mine in own), 3),
        f"{what}_times_plain": round(statistics.median(ratios), 2),
    }


def measure_operators(options: argparse.Namespace, machine: Machine) -> Iterator[dict[str, Any]]:
    """Seconds of all convolutions, of the slowest operators, and the rest of a step."""
    activities = [ProfilerActivity.CPU]
    if machine.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    for name, stream in _networks(options):
        timed = _Timed(name, stream, _default_way(machine), options.batch, machine)
        timed.step()
        with profile(activities=activities) as profiler:
            step_s = timed.step()
        seconds = {
            event.key.removeprefix("aten::"): (
                event.self_device_time_total
                if machine.device.type == "cuda"
                else event.self_cpu_time_total
            )
            / 1e6
            for event in profiler.key_averages()
            if event.key.startswith("aten::")  # the others are of autograd and CUDA kernels
        }
        slowest = sorted(seconds, key=lambda key: -seconds[key])[:NUM_OPERATORS]
        yield {
            "arch": name,
            "stream": stream,
            "batch": options.batch,
            "way": str(timed.way),
            "step_s": round(step_s, 4),
            "convolutions_s": round(sum(seconds[key] for key in seconds if "conv" in key), 4),
            "seconds": {key: round(seconds[key], 4) for key in slowest},
            "rest_s": round(step_s - sum(seconds[key] for key in slowest), 4),
        }


def _default_way(machine: Machine) -> Way:
    """The configuration of run-benchmark."""
    return Way(bfloat16=machine.bfloat16, channels_last=True)


def measure_memory(options: argparse.Namespace, machine: Machine) -> Iterator[dict[str, Any]]:
    """A step in a new process, in the configuration of run-benchmark."""
    if machine.device.type == "cpu" and not STATUS.exists():
        raise SystemExit(f"--part memory on a CPU needs {STATUS}, which this system does not have")
    context = multiprocessing.get_context("spawn")
    for name, stream in _networks(options):
        peaks = {}
        for checkpointed in (False, True):
            job = (name, stream, options.batch, checkpointed, options.device)
            with context.Pool(1) as pool:
                peaks[checkpointed] = pool.apply(_peak_of_a_step, job)
        yield {
            "arch": name,
            "stream": stream,
            "batch": options.batch,
            "precision": machine.precision,
            "peak_gib": round(peaks[False] / 2**30, 2),
            "peak_gib_checkpointed": round(peaks[True] / 2**30, 2),
        }


def _peak_of_a_step(name: str, stream: str, batch: int, checkpointed: bool, device: str) -> int:
    """Bytes: on CUDA the peak of the device, else by how much the process grew at its peak."""
    before = _status_bytes("VmRSS")
    with open_machine(device, "auto") as machine:
        timed = _Timed(name, stream, _default_way(machine), batch, machine)
        if checkpointed:
            timed.net.checkpoint_activations()
        with machine.autocast():
            logits = timed.net(*timed.clips)
        logits.square().sum().backward()
        if machine.device.type == "cuda":
            return torch.cuda.max_memory_allocated(machine.device)
    return _status_bytes("VmHWM") - before


def _status_bytes(what: str) -> int:
    """The memory of this process on Linux: `VmRSS` now, `VmHWM` at its peak."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{what}:"))
    return int(line.split()[1]) * 1024


PARTS: Mapping[str, Callable[[argparse.Namespace, Machine], Iterator[dict[str, Any]]]] = {
    "product": measure_product,
    "steps": measure_steps,
    "operators": measure_operators,
    "memory": measure_memory,
}

if __name__ == "__main__":
    main()
