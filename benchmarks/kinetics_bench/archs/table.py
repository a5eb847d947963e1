"""What each network costs, counted without computing, beside the figures of the paper's Table 1."""

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
    """Parameters of a network, and FLOPs of one call in evaluation. Nothing is computed.

    FLOPs are those of convolutions and matrix products, multiply and add counted apart.

    Args:
        name: a name in ARCHS.
        stream: one of the architecture's streams.
        num_classes: how many logits.
        shapes: (C, T, H, W) of each clip that the network is called with.
    """
    with torch.device("meta"):
        net = build(name, stream, num_classes).eval()
        clips = [torch.empty(1, *shape) for shape in shapes]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*clips)
    return sum(weight.numel() for weight in net.parameters()), counter.get_total_flops()


def describe(name: str, stream: str) -> dict[str, Any]:
    """One network at 400 classes, as plain JSON values.

    `parameters`, `paper_parameters` (rounded; null where the paper gives none), `px` (height and
    width of its input), `train` and `test`: `inputs` (by stream: `num` frames, every `stride`-th),
    `footprint_s` (seconds of video), `flops` (of one such input); `smallest`: (frames, pixels) that
    each of its clips must have.
    """
    arch = ARCHS[name]
    with torch.device("meta"):
        needs = build(name, stream, NUM_CLASSES).needs
    row: dict[str, Any] = {
        "arch": name,
        "title": arch.title,
        "stream": stream,
        "parameters": 0,
        "paper_parameters": arch.paper_millions * 10**6 if stream == arch.streams[0] else None,
        "px": arch.crop_px,
        "smallest": {need.stream: [need.min_frames, need.min_px] for need in needs},
    }
    for phase, samplings in (("train", arch.train), ("test", arch.test)):
        inputs = {each: samplings[each] for each in arch.clips_of(stream)}
        shapes = [(CHANNELS[each], s.num, arch.crop_px, arch.crop_px) for each, s in inputs.items()]
        row["parameters"], flops = count(name, stream, NUM_CLASSES, shapes)
        row[phase] = _phase(inputs) | {"flops": flops}
    return row


def table() -> list[dict[str, Any]]:
    """`describe` of every network there is."""
    return [describe(name, stream) for name, arch in ARCHS.items() for stream in arch.streams]


def _phase(inputs: Mapping[str, Sampling]) -> dict[str, Any]:
    return {
        "inputs": {each: {"num": s.num, "stride": s.stride} for each, s in inputs.items()},
        "footprint_s": max(s.footprint_s for s in inputs.values()),
    }


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of `table` as text for a terminal."""
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
