"""Clips that fit each network, and networks whose batch norm knows them."""

from functools import cache

import pytest
import torch
from torch import Tensor

from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import ARCHS, CHANNELS, build

EVERY = tuple((name, stream) for name, arch in ARCHS.items() for stream in arch.streams)
# C3D has 79 million weights: what takes long with them is tested in `full`.
LIGHT_AND_HEAVY = tuple(
    pytest.param(*each, marks=pytest.mark.full) if each[0] == "c3d" else each for each in EVERY
)
FRAMES_A_STEP = {
    "convnet-lstm": {"rgb": 1},
    "c3d": {"rgb": 16},
    "two-stream": {"rgb": 1, "flow": 10},
    "3d-fused": {"rgb": 5, "flow": 50},
}
SIZE = (45, 38)  # odd and even, and no multiple of a stride


def num_frames(name: str, stream: str, num_steps: int) -> tuple[int, ...]:
    """Frames of each clip that make `num_steps` time steps."""
    streams = ARCHS[name].clips_of(stream)
    if name == "i3d":
        return tuple(8 * num_steps + 1 for _ in streams)
    return tuple(FRAMES_A_STEP[name][each] * num_steps for each in streams)


def wave(stream: str, num: int, size: tuple[int, int] = SIZE, shift: float = 0.0) -> Tensor:
    """A clip (C, T, H, W) in [-1, 1] in which a wave goes by."""
    c, t, y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32) for n in (CHANNELS[stream], num, *size)),
        indexing="ij",
    )
    return torch.sin(0.7 * c + 0.3 * t + 0.21 * y + 0.13 * x + shift)


def waves(
    name: str,
    stream: str,
    *,
    num_steps: int = 2,
    num_clips: int = 2,
    size: tuple[int, int] = SIZE,
) -> list[Tensor]:
    """Clips to call a network with: (B, C, T, H, W) of each of its streams."""
    streams = ARCHS[name].clips_of(stream)
    return [
        torch.stack([wave(each, num, size, shift=1.7 * clip) for clip in range(num_clips)])
        for each, num in zip(streams, num_frames(name, stream, num_steps), strict=True)
    ]


# Where networks are tried: a GPU's backward pass has programs of its own.
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@cache
def awake(name: str, stream: str, num_classes: int = 5, *, num_steps: int = 2) -> Network:
    """A network of seed 0 in evaluation mode, with the statistics of its `waves`: one for all.

    With those of fresh weights the signal dies away layer by layer, and no output says anything.
    """
    torch.manual_seed(0)
    net = build(name, stream, num_classes, dropout=0.0, bn_momentum=1.0).train()
    with torch.no_grad():
        net(*waves(name, stream, num_steps=num_steps, num_clips=3))
    return net.eval()


def golden_logits(name: str, stream: str) -> list[float]:
    """Logits of a network with 5 classes, weights of seed 0, for a wave.

    In training mode, where batch norm takes the waves' own statistics. I3D sees one clip, as it has
    since its values were written; the others several, which some of their batch norm needs.
    """
    torch.manual_seed(0)
    net = build(name, stream, 5, dropout=0.0).train()
    with torch.inference_mode():
        logits = net(*waves(name, stream, num_clips=1 if name == "i3d" else 3))
    values: list[float] = logits[0].tolist()
    return values
