"""Parameters and FLOPs of each network, next to the figures of the paper's Table 1.

They are counted on the meta device: only shapes are computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from kinetics_bench.archs.registry import ARCHS, Sampling, build
from kinetics_bench.archs.streams import CHANNELS

NUM_CLASSES = 400


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


def describe(name: str, stream: str) -> dict[str, Any]:
    """One network with 400 classes, as JSON values.

    They are `parameters`; `paper_parameters` (rounded; null if the paper gives none); `px` (height
    and width of the input); `train` and `test`, each with `inputs` (by stream: `num` and `stride`),
    `footprint_s` (seconds of video) and `flops` (per clip); `smallest` (by stream: minimum number
    of frames, minimum height and width).
    """
    arch = ARCHS[name]
    with torch.device("meta"):
        specs = build(name, stream, NUM_CLASSES).input_specs
    row: dict[str, Any] = {
        "arch": name,
        "title": arch.title,
        "stream": stream,
        "parameters": 0,
        "paper_parameters": arch.paper_millions * 10**6 if stream == arch.streams[0] else None,
        "px": arch.crop_px,
        "smallest": {spec.stream: [spec.min_frames, spec.min_px] for spec in specs},
    }
    for phase, samplings in (("train", arch.train), ("test", arch.test)):
        inputs = {each: samplings[each] for each in arch.clips_of(stream)}
        shapes = [(CHANNELS[each], s.num, arch.crop_px, arch.crop_px) for each, s in inputs.items()]
        row["parameters"], flops = count(name, stream, NUM_CLASSES, shapes)
        row[phase] = _phase(inputs) | {"flops": flops}
    return row


def table() -> list[dict[str, Any]]:
    """`describe` for all networks."""
    return [describe(name, stream) for name, arch in ARCHS.items() for stream in arch.streams]


def _phase(inputs: Mapping[str, Sampling]) -> dict[str, Any]:
    return {
        "inputs": {each: {"num": s.num, "stride": s.stride} for each, s in inputs.items()},
        "footprint_s": max(s.footprint_s for s in inputs.values()),
    }


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of `table` as text, by column title."""
    paper = row["paper_parameters"]
    found = {
        "arch": row["arch"],
        "stream": row["stream"],
        "parameters": f"{row['parameters'] / 1e6:.2f} M",
        "paper": f"{paper / 1e6:.0f} M" if paper else "-",
        "pixels": f"{row['px']}x{row['px']}",
    }
    for phase in ("train", "test"):
        values = row[phase]
        found |= {
            f"{phase} input": " + ".join(
                f"{each['num']} {stream}"
                + (f" ({each['stride']} apart)" if each["stride"] > 1 else "")
                for stream, each in values["inputs"].items()
            ),
            f"{phase} s": f"{values['footprint_s']:g}",
            f"{phase} GFLOPs": f"{values['flops'] / 1e9:.1f}",
        }
    smallest = " + ".join(f"{num} {stream}" for stream, (num, _) in row["smallest"].items())
    px = max(px for _, px in row["smallest"].values())
    return found | {"smallest input": f"{smallest}, {px}x{px}"}
