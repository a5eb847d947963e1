"""Parameters and FLOPs of each network, next to the figures of the paper's Table 1.

They are counted on the meta device: only shapes are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from kinetics_bench.archs.registry import ARCHS, Arch, Sampling, build
from kinetics_bench.archs.streams import CHANNELS

NUM_CLASSES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class InputCost:
    """One of the paper's inputs, of training or test.

    Attributes:
        inputs: stream -> number and stride of the frames or fields.
        footprint_s: seconds of video.
        flops: of one forward pass for one clip, in evaluation mode.
    """

    inputs: Mapping[str, Sampling]
    footprint_s: float
    flops: int

    def cells(self, phase: str) -> dict[str, str]:
        """The input as text, by column title."""
        return {
            f"{phase} input": " + ".join(
                f"{each.num} {stream}" + (f" (stride {each.stride})" if each.stride > 1 else "")
                for stream, each in self.inputs.items()
            ),
            f"{phase} s": f"{self.footprint_s:g}",
            f"{phase} GFLOPs": f"{self.flops / 1e9:.1f}",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCost:
    """A network with 400 classes.

    Attributes:
        parameters: number of trainable values.
        paper_parameters: the same as given in the paper, rounded; None if it gives none.
        px: height and width of the input.
        smallest: stream -> minimum number of frames or fields, minimum height and width.
        train, test: the inputs of the paper.
    """

    arch: str
    title: str
    stream: str
    parameters: int
    paper_parameters: int | None
    px: int
    smallest: Mapping[str, tuple[int, int]]
    train: InputCost
    test: InputCost

    def as_json(self) -> dict[str, Any]:
        """The network as JSON values."""
        return asdict(self)

    def cells(self) -> dict[str, str]:
        """The network as text, by column title."""
        smallest = " + ".join(f"{num} {stream}" for stream, (num, _) in self.smallest.items())
        px = max(px for _, px in self.smallest.values())
        return {
            "arch": self.arch,
            "stream": self.stream,
            "parameters": f"{self.parameters / 1e6:.2f} M",
            "paper": f"{self.paper_parameters / 1e6:.0f} M" if self.paper_parameters else "-",
            "pixels": f"{self.px}x{self.px}",
            **self.train.cells("train"),
            **self.test.cells("test"),
            "smallest input": f"{smallest}, {px}x{px}",
        }


def count(
    name: str, stream: str, num_classes: int, shapes: Sequence[tuple[int, ...]]
) -> tuple[int, int]:
    """Parameters of a network, and FLOPs of one forward pass in evaluation mode.

    FLOPs are those of convolutions and matrix products; a multiply-add counts as two.

    Args:
        name: a name in ARCHS.
        stream: one of the architecture's streams.
        num_classes: number of logits.
        shapes: (C, T, H, W) of each input, in order.
    """
    with torch.device("meta"):
        net = build(name, stream, num_classes).eval()
        clips = [torch.empty(1, *shape) for shape in shapes]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*clips)
    return sum(weight.numel() for weight in net.parameters()), counter.get_total_flops()


def table() -> list[NetworkCost]:
    """All networks."""
    return [_cost(name, stream) for name, arch in ARCHS.items() for stream in arch.streams]


def _cost(name: str, stream: str) -> NetworkCost:
    arch = ARCHS[name]
    with torch.device("meta"):
        specs = build(name, stream, NUM_CLASSES).input_specs
    parameters, train = _input_cost(name, stream, arch.train)
    _, test = _input_cost(name, stream, arch.test)
    return NetworkCost(
        arch=name,
        title=arch.title,
        stream=stream,
        parameters=parameters,
        paper_parameters=_paper_parameters(arch) if stream == arch.streams[0] else None,
        px=arch.crop_px,
        smallest={spec.stream: (spec.min_frames, spec.min_px) for spec in specs},
        train=train,
        test=test,
    )


def _paper_parameters(arch: Arch) -> int | None:
    return None if arch.paper_millions is None else arch.paper_millions * 10**6


def _input_cost(name: str, stream: str, samplings: Mapping[str, Sampling]) -> tuple[int, InputCost]:
    """Parameters of a network, and the cost of one of its inputs."""
    arch = ARCHS[name]
    inputs = {each: samplings[each] for each in arch.clips_of(stream)}
    shapes = [(CHANNELS[each], s.num, arch.crop_px, arch.crop_px) for each, s in inputs.items()]
    parameters, flops = count(name, stream, NUM_CLASSES, shapes)
    footprint_s = max(sampling.footprint_s for sampling in inputs.values())
    return parameters, InputCost(inputs=inputs, footprint_s=footprint_s, flops=flops)
