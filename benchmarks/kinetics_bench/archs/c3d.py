"""3D-ConvNet: C3D as the paper trains it, on 16 frames of 112x112 pixels.

Source: Carreira and Zisserman, arXiv 1705.07750 v3, section 2.2, after Tran et al., arXiv
1412.0767: eight convolutions of 3x3x3, five max pools, two fully connected layers of 4096; batch
norm after each of the convolutions and fully connected layers, and a first pool that also pools in
time. A test clip has 240 frames: 15 windows, their logits averaged.

What the paper does not give, and we chose: every pool is 2x2x2 with stride 2 and SAME padding, so
that 16 frames become 8, 4, 2, 1, 1 and 112 pixels 56, 28, 14, 7, 4; only a last feature map of
1x4x4 gives the paper's 79 million parameters. Windows do not overlap. Batch norm has an offset and
no scale, as in I3D. Dropout follows both fully connected layers, as in arXiv 1412.0767. Weights are
initialised as in I3D. Where the last feature map is not 4x4 (all sizes except 97 to 112 pixels),
adaptive average pooling makes it 4x4.

Shapes: B clips, n windows, C channels, T time, H height, W width.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn

from kinetics_bench.archs.layers import (
    SameMaxPool,
    conv_bn_relu,
    is_symbolic,
    linear,
    linear_bn_relu,
    named_sequential,
)
from kinetics_bench.archs.network import (
    InputSpec,
    Network,
    batch_to_time,
    full_precision,
    split_windows,
)
from kinetics_bench.archs.streams import CHANNELS

WINDOW: Final = 16  # frames
# Channels of the convolutions between one pool and the next.
STAGES: Final = ((64,), (128,), (256, 256), (512, 512), (512, 512))
FC6_SIZE: Final = (1, 4, 4)  # T, H, W of the last feature map, the input of fc6
WIDTH: Final = 4096


class C3D(Network):
    """Takes rgb (B, 3, 16 n, H, W): n windows, one time step each."""

    title = "3D-ConvNet"

    def __init__(self, num_classes: int, *, dropout: float, bn_momentum: float) -> None:
        super().__init__(InputSpec("rgb", WINDOW, WINDOW), dropout=dropout)
        layers: dict[str, nn.Module] = {}
        channels = CHANNELS["rgb"]
        for stage, widths in enumerate(STAGES, 1):
            for letter, width in zip("ab", widths, strict=False):
                name = f"conv{stage}{letter}" if len(widths) > 1 else f"conv{stage}"
                layers[name] = conv_bn_relu((channels, width), (3, 3, 3), momentum=bn_momentum)
                channels = width
            layers[f"pool{stage}"] = SameMaxPool((2, 2, 2), (2, 2, 2))
        self.convs = named_sequential(layers)
        num_features = channels * math.prod(FC6_SIZE)
        self.fc6 = linear_bn_relu(num_features, WIDTH, momentum=bn_momentum)
        self.fc7 = linear_bn_relu(WIDTH, WIDTH, momentum=bn_momentum)
        self.last = linear(WIDTH, num_classes)

    def pool_features(self, *clips: Tensor) -> Tensor:
        """The output of fc7 for each window: (B, 4096, n)."""
        (rgb,) = clips
        feature_map = self.apply_modules(self.convs, split_windows(rgb, WINDOW))
        for axis, size in enumerate(FC6_SIZE, 2):
            feature_map = adaptive_pool(feature_map, axis, size)
        features = self.fc7(self.dropout(self.fc6(feature_map.flatten(1))))
        return batch_to_time(full_precision(features), rgb.shape[0], rgb.shape[2] // WINDOW)

    def step_frames(self, *num_frames: int) -> list[tuple[int, int]]:
        """The 16 frames [start, end) of each window."""
        return [(at, at + WINDOW) for at in range(0, num_frames[0], WINDOW)]


def adaptive_pool(x: Tensor, axis: int, size: int) -> Tensor:
    """Adaptive average pooling of one axis to `size`; written out because ONNX does not have it."""
    num = x.shape[axis]
    ends = [(num * at // size, (num * (at + 1) + size - 1) // size) for at in range(size)]
    if is_symbolic([num]):
        # The same without slices, whose lengths a graph would have to know.
        places = torch.arange(num, device=x.device).reshape([-1] + [1] * (x.ndim - 1 - axis))
        masks = [(places >= start) & (places < end) for start, end in ends]
        parts = [torch.where(m, x, 0).sum(axis, keepdim=True) / m.sum() for m in masks]
    elif num == size:
        return x
    else:
        parts = [x.narrow(axis, start, end - start).mean(axis, keepdim=True) for start, end in ends]
    return torch.cat(parts, dim=axis)


def build(stream: str, num_classes: int, *, dropout: float, bn_momentum: float) -> Network:
    """The network of `rgb`, its only stream. Arguments: see `kinetics_bench.archs.build`."""
    assert stream == "rgb", stream
    return C3D(num_classes, dropout=dropout, bn_momentum=bn_momentum)
