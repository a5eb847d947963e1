"""Synthetic clips for each network, and networks whose batch norm has their statistics."""

from functools import cache

import pytest
import torch
from torch import Tensor

from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import ARCHS, CHANNELS, build

ALL_NETWORKS = tuple((name, stream) for name, arch in ARCHS.items() for stream in arch.streams)
# C3D has 79 million weights: its slow tests are in `full`.
C3D_IN_FULL = tuple(
    pytest.param(*each, marks=pytest.mark.full) if each[0] == "c3d" else each
    for each in ALL_NETWORKS
)
FRAMES_PER_STEP = {
    "i3d": {"rgb": 8, "flow": 8},
    "convnet-lstm": {"rgb": 1},
    "c3d": {"rgb": 16},
    "two-stream": {"rgb": 1, "flow": 10},
    "3d-fused": {"rgb": 5, "flow": 50},
}
NUM_LAST = {"i3d": 1}  # frames that the last step needs besides
SIZE = (45, 38)  # odd and even, not a multiple of a stride


def num_frames(name: str, stream: str, num_steps: int) -> tuple[int, ...]:
    """Frames of each input for `num_steps` time steps."""
    streams = ARCHS[name].clips_of(stream)
    last = NUM_LAST.get(name, 0)
    return tuple(FRAMES_PER_STEP[name][each] * num_steps + last for each in streams)


def wave(stream: str, num: int, size: tuple[int, int] = SIZE, shift: float = 0.0) -> Tensor:
    """A clip of a moving wave: float32 (C, T, H, W) in [-1, 1]."""
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
    """Inputs of a network, in order, each float32 (B, C, T, H, W) in [-1, 1]."""
    streams = ARCHS[name].clips_of(stream)
    return [
        torch.stack([wave(each, num, size, shift=1.7 * clip) for clip in range(num_clips)])
        for each, num in zip(streams, num_frames(name, stream, num_steps), strict=True)
    ]


# Backward passes on a GPU use other kernels, so networks are tested there too.
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@cache
def calibrated(name: str, stream: str, num_classes: int = 5, *, num_steps: int = 2) -> Network:
    """A network of seed 0 in evaluation mode, its running statistics those of its `waves`; cached.

    With initial statistics the activations would shrink layer by layer to almost zero.
    """
    torch.manual_seed(0)
    net = build(name, stream, num_classes, dropout=0.0, bn_momentum=1.0).train()
    with torch.no_grad():
        net(*waves(name, stream, num_steps=num_steps, num_clips=3))
    return net.eval()


def golden_logits(name: str, stream: str) -> list[float]:
    """Logits of a network with 5 classes, weights of seed 0, for a wave.

    In training mode, so that batch norm uses the statistics of the waves. I3D gets one clip, as
    when its values were recorded; the others three, since some of their batch norms need several.
    """
    torch.manual_seed(0)
    net = build(name, stream, 5, dropout=0.0).train()
    with torch.inference_mode():
        logits = net(*waves(name, stream, num_clips=1 if name == "i3d" else 3))
    values: list[float] = logits[0].tolist()
    return values
