"""How fast the architectures train, and what memory a step takes; each line of output is JSON.

    python benchmarks/speed/train.py
    python benchmarks/speed/train.py --arch i3d --part steps --batch 2

A step is forward and backward of a batch at the paper's input (Table 1), without an optimizer;
forward alone is in training mode too, without gradients.
Parts:

    product    operations a second that one large matrix product reaches, by precision
    steps      clips a second, forward alone and with backward, in each way that this machine can
    operators  the seconds of a step by operator, the way that run-benchmark takes, by torch's
               profiler: all convolutions, those that take most, the rest (on CUDA idle time too)
    memory     what a step takes at its peak, weights and gradients included, with all activations
               kept and with checkpointed ones

Ways are named by precision (bfloat16 where the hardware computes in it, or with --emulate) and
layout; `compiled` is torch.compile, which needs a C++ compiler on a CPU. Ways take turns, after one
turn that is not counted; a ratio is the median of the turns' ratios to plain float32, contiguous.
Multiplications and additions are counted apart; `share_of_product` is of the product in the same
precision, in the same run. On CUDA "float32" is torch's own: operands of convolutions rounded to
TF32, and so those of its product here.
"""

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

# A product is to last long beside its launch.
PRODUCT_SIDES = {"cpu": 4096, "cuda": 8192}
TURNS = 3
MOST = 8  # operators that are told


@dataclass(frozen=True, slots=True)
class Way:
    """How a step is computed."""

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
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", choices=ARCHS, action="append", help="(default: all)")
    parser.add_argument("--stream", help="(default: the first that is trained)")
    parser.add_argument("--part", choices=PARTS, action="append", help="(default: all)")
    parser.add_argument("--batch", type=int, default=2, help="clips a step (default: 2)")
    parser.add_argument("--device", default="auto", help="as run-benchmark's")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--emulate", action="store_true", help="bfloat16 also where it is emulated")
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
    """Architectures with the stream that is measured of each."""
    for name in options.arch or ARCHS:
        arch = ARCHS[name]
        trained = [each for each in arch.streams if each != "joint" or arch.joint_training]
        stream = options.stream or trained[0]
        if stream in trained:
            yield name, stream


def _clips(name: str, stream: str, batch: int) -> list[Tensor]:
    """What a training of the paper sees: (B, C, T, H, W) of each stream, drawn from [-1, 1]."""
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
    """Move a network and its clips to the machine, in the way's layout; return the clips."""
    if way.channels_last:
        machine.place(net)
        return list(machine.place_clips(clips))
    net.to(machine.device)
    return [each.to(machine.device) for each in clips]


def _synchronize(machine: Machine) -> None:
    if machine.device.type == "cuda":
        torch.cuda.synchronize(machine.device)


class _Side:
    """A network in one way, whose steps are timed."""

    def __init__(self, name: str, stream: str, way: Way, batch: int, machine: Machine) -> None:
        self.way, self.machine = way, machine
        torch.manual_seed(0)
        self.net = build(name, stream).train()
        self.clips = _placed(self.net, _clips(name, stream, batch), way, machine)
        # Shapes of earlier networks would make torch compile for any shape: minutes, slower code.
        self.call: Callable[..., Any] = (
            torch.compile(self.net, dynamic=False) if way.compiled else self.net
        )

    def turn(self) -> tuple[float, float]:
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
    """Of a forward pass, and of a step; counted on the meta device, where nothing is computed."""
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
    """A square matrix product in each precision of the ways."""
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
    """Operations a second: the best of some, for it is to say what the machine can."""
    side = PRODUCT_SIDES[machine.device.type]
    matrix = torch.rand(side, side, device=machine.device).to(dtype)
    seconds = []
    for _ in range(TURNS + 1):
        _synchronize(machine)
        began = time.perf_counter()
        matrix @ matrix
        _synchronize(machine)
        seconds.append(time.perf_counter() - began)
    return 2 * float(side) ** 3 / min(seconds)


def measure_steps(options: argparse.Namespace, machine: Machine) -> Iterator[dict[str, Any]]:
    """Each architecture in each way, the ways taking turns."""
    ways = _ways(options, machine)
    rates = {dtype: _product_rate(dtype, machine) for dtype in {_precision(way) for way in ways}}
    for name, stream in _networks(options):
        operations = _operations(name, stream, options.batch)
        torch.compiler.reset()
        sides = [_Side(name, stream, way, options.batch, machine) for way in ways]
        turns = [[side.turn() for side in sides] for _ in range(TURNS + 1)][1:]
        for number, way in enumerate(ways):
            own = [turn[number] for turn in turns]
            yield {
                "arch": name,
                "stream": stream,
                "batch": options.batch,
                "way": str(way),
                **_told("forward", 0, own, turns, options.batch),
                **_told("step", 1, own, turns, options.batch),
                "giga_operations_a_clip": round(operations[1] / options.batch / 1e9, 1),
                "share_of_product": round(
                    operations[1]
                    / statistics.median(step_s for _, step_s in own)
                    / rates[_precision(way)],
                    3,
                ),
            }


def _told(
    what: str,
    at: int,
    own: Sequence[tuple[float, float]],
    turns: Sequence[Sequence[tuple[float, float]]],
    batch: int,
) -> dict[str, float]:
    """Clips a second, and times plain; plain's is the first side."""
    ratios = [turn[0][at] / mine[at] for turn, mine in zip(turns, own, strict=True)]
    return {
        f"{what}_clips_per_s": round(batch / statistics.median(mine[at] for mine in own), 3),
        f"{what}_times_plain": round(statistics.median(ratios), 2),
    }


def measure_operators(options: argparse.Namespace, machine: Machine) -> Iterator[dict[str, Any]]:
    """What convolutions take of a step, which operators take most, and what is left of it."""
    activities = [ProfilerActivity.CPU]
    if machine.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    for name, stream in _networks(options):
        side = _Side(name, stream, _chosen(machine), options.batch, machine)
        side.step()
        with profile(activities=activities) as profiler:
            step_s = side.step()
        seconds = {
            event.key.removeprefix("aten::"): (
                event.self_device_time_total
                if machine.device.type == "cuda"
                else event.self_cpu_time_total
            )
            / 1e6
            for event in profiler.key_averages()
            if event.key.startswith("aten::")  # what is not is autograd's, and CUDA's own kernels
        }
        most = sorted(seconds, key=lambda key: -seconds[key])[:MOST]
        yield {
            "arch": name,
            "stream": stream,
            "batch": options.batch,
            "way": str(side.way),
            "step_s": round(step_s, 4),
            "convolutions_s": round(sum(seconds[key] for key in seconds if "conv" in key), 4),
            "seconds": {key: round(seconds[key], 4) for key in most},
            "rest_s": round(step_s - sum(seconds[key] for key in most), 4),
        }


def _chosen(machine: Machine) -> Way:
    """What run-benchmark does."""
    return Way(bfloat16=machine.bfloat16, channels_last=True)


def measure_memory(options: argparse.Namespace, machine: Machine) -> Iterator[dict[str, Any]]:
    """A step in a process of its own, the way that run-benchmark takes."""
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
    """Bytes that this process takes more than before: on CUDA of the device."""
    before = _status_bytes("VmRSS")
    with open_machine(device, "auto") as machine:
        side = _Side(name, stream, _chosen(machine), batch, machine)
        if checkpointed:
            side.net.checkpoint_activations()
        with machine.autocast():
            logits = side.net(*side.clips)
        logits.square().sum().backward()
        if machine.device.type == "cuda":
            return torch.cuda.max_memory_allocated(machine.device)
    return _status_bytes("VmHWM") - before


def _status_bytes(what: str) -> int:
    """What Linux tells of this process: `VmRSS`, its memory; `VmHWM`, the most that was."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith(f"{what}:"))
    return int(line.split()[1]) * 1024


PARTS: Mapping[str, Callable[[argparse.Namespace, Machine], Iterator[dict[str, Any]]]] = {
    "product": measure_product,
    "steps": measure_steps,
    "operators": measure_operators,
    "memory": measure_memory,
}

if __name__ == "__main__":
    main()
