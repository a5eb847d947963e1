"""Two-Stream I3D: Inception-v1 with every kernel inflated to three dimensions.

Source: Carreira and Zisserman, "Quo Vadis, Action Recognition?", arXiv 1705.07750 v3, and the
authors' published i3d.py (github.com/deepmind/kinetics-i3d), whose endpoint names the modules keep:
`Mixed_3b.Branch_1.Conv3d_0b_3x3.conv_3d.weight` is the variable
`inception_i3d/Mixed_3b/Branch_1/Conv3d_0b_3x3/conv_3d/w`. One thing differs: the last pool spans
all of height and width, which is the published 7x7 at 224 pixels and works at any other size.

Shapes: B clips, C channels, T time, H height, W width, K classes.
"""

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.archs import CHANNELS

MIN_FRAMES: Final = 9  # fewer leave less than the two time steps that the last pool spans
MIN_PX: Final = 32  # the total stride: one cell of the last grid

Triple = tuple[int, int, int]

# Branch_0's 1x1; Branch_1's 1x1 and 3x3; Branch_2's 1x1 and 3x3; Branch_3's 1x1 after its pool.
MIXED: Final[Mapping[str, tuple[int, int, int, int, int, int]]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis: cells to add in front and at the back.

    The output has ceil(size / stride) cells. Back is front or front + 1.
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv(nn.Conv3d):
    """A convolution with TensorFlow's SAME padding at any size."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, T, H, W) to (B, C', ceil(T/s), ceil(H/s), ceil(W/s))."""
        pads = [
            same_padding(size, kernel, stride)
            for size, kernel, stride in zip(
                input.shape[2:], self.kernel_size, self.stride, strict=True
            )
        ]
        fronts = tuple(front for front, _ in pads)
        # The convolution pads by itself, without a copy, where it can. In bfloat16 on a CPU oneDNN
        # then returns garbage as the weights' gradient when no window lies inside the time axis
        # (measured with torch 2.13: kernel 3 on 2 frames), so short inputs are padded before.
        long = input.shape[2] > self.kernel_size[0] or not any(fronts)
        if long and all(front == back for front, back in pads):
            return functional.conv3d(input, self.weight, self.bias, self.stride, fronts)
        # functional.pad wants the last axis first.
        padded = functional.pad(input, [cells for pad in reversed(pads) for cells in pad])
        return functional.conv3d(padded, self.weight, self.bias, self.stride)


class SameMaxPool(nn.Module):
    """A max pool with TensorFlow's SAME padding, whose cells never win, at any size."""

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, clips: Tensor) -> Tensor:
        """Map (B, C, T, H, W) to (B, C, ceil(T/s), ceil(H/s), ceil(W/s))."""
        front = [
            same_padding(size, kernel, stride)[0]
            for size, kernel, stride in zip(clips.shape[2:], self.kernel, self.stride, strict=True)
        ]
        # ceil_mode lets the last window reach over the end: the one cell by which the back may
        # exceed the front. Where both are equal the windows fit, and it changes nothing.
        return functional.max_pool3d(clips, self.kernel, self.stride, front, ceil_mode=True)


class OffsetBatchNorm(nn.BatchNorm3d):
    """Batch norm as in Sonnet 1: an offset (beta) but no scale (gamma), epsilon 1e-3."""

    def __init__(self, num_features: int, momentum: float) -> None:
        super().__init__(num_features, eps=1e-3, momentum=momentum, affine=False)
        self.bias = nn.Parameter(torch.zeros(num_features))


class Unit3D(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: Triple = (1, 1, 1),
        stride: Triple = (1, 1, 1),
        *,
        momentum: float,
    ) -> None:
        super().__init__()
        self.conv_3d = SameConv(*channels, kernel, stride, bias=False)
        self.batch_norm = OffsetBatchNorm(channels[1], momentum)
        _draw(self.conv_3d)

    def forward(self, clips: Tensor) -> Tensor:
        """Map (B, C, T, H, W) to (B, C', T', H', W')."""
        return functional.relu_(self.batch_norm(self.conv_3d(clips)))


class Mixed(nn.Module):
    """An inception module: four branches, concatenated on channels."""

    def __init__(self, name: str, in_channels: int, *, momentum: float) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3 = MIXED[name]

        def unit(channels_in: int, channels_out: int, kernel: int = 1) -> Unit3D:
            return Unit3D((channels_in, channels_out), (kernel,) * 3, momentum=momentum)

        # The published code has one irregular name, and checkpoints keep it.
        third = "Conv3d_0a_3x3" if name == "Mixed_5b" else "Conv3d_0b_3x3"
        self.Branch_0 = _chain(Conv3d_0a_1x1=unit(in_channels, b0))
        self.Branch_1 = _chain(
            Conv3d_0a_1x1=unit(in_channels, b1a), Conv3d_0b_3x3=unit(b1a, b1b, 3)
        )
        self.Branch_2 = _chain(Conv3d_0a_1x1=unit(in_channels, b2a), **{third: unit(b2a, b2b, 3)})
        self.Branch_3 = _chain(
            MaxPool3d_0a_3x3=SameMaxPool((3, 3, 3), (1, 1, 1)), Conv3d_0b_1x1=unit(in_channels, b3)
        )
        self.out_channels = b0 + b1b + b2b + b3

    def forward(self, clips: Tensor) -> Tensor:
        """Map (B, C, T, H, W) to (B, out_channels, T, H, W)."""
        branches = (self.Branch_0, self.Branch_1, self.Branch_2, self.Branch_3)
        return torch.cat([branch(clips) for branch in branches], dim=1)


class I3D(nn.Module):
    """One stream of I3D. Any T from 9 frames, any H and W from 32 pixels."""

    def __init__(
        self, num_classes: int, in_channels: int, *, dropout: float, bn_momentum: float
    ) -> None:
        super().__init__()
        momentum = bn_momentum
        self.trunk: list[nn.Module] = []

        def add(name: str, module: nn.Module) -> None:
            self.add_module(name, module)
            self.trunk.append(module)

        add("Conv3d_1a_7x7", Unit3D((in_channels, 64), (7, 7, 7), (2, 2, 2), momentum=momentum))
        add("MaxPool3d_2a_3x3", SameMaxPool((1, 3, 3), (1, 2, 2)))
        add("Conv3d_2b_1x1", Unit3D((64, 64), momentum=momentum))
        add("Conv3d_2c_3x3", Unit3D((64, 192), (3, 3, 3), momentum=momentum))
        add("MaxPool3d_3a_3x3", SameMaxPool((1, 3, 3), (1, 2, 2)))
        channels = 192
        for name in MIXED:
            if name == "Mixed_4b":
                add("MaxPool3d_4a_3x3", SameMaxPool((3, 3, 3), (2, 2, 2)))
            if name == "Mixed_5b":
                add("MaxPool3d_5a_2x2", SameMaxPool((2, 2, 2), (2, 2, 2)))
            mixed = Mixed(name, channels, momentum=momentum)
            add(name, mixed)
            channels = mixed.out_channels
        self.dropout = nn.Dropout(dropout)
        last = nn.Conv3d(channels, num_classes, 1)
        _draw(last)
        self.Logits = _chain(Conv3d_0c_1x1=_chain(conv_3d=last))

    def step_logits(self, clips: Tensor) -> Tensor:
        """Logits of each time step: float32 (B, K, T'), T' = 7 for 64 frames, 31 for 250.

        Args:
            clips: (B, C, T, H, W) in [-1, 1].

        Raises:
            ValueError: fewer than 9 frames, or less than 32 pixels high or wide.
        """
        num_frames, height, width = clips.shape[2:]
        if num_frames < MIN_FRAMES or min(height, width) < MIN_PX:
            raise ValueError(
                f"I3D needs at least {MIN_FRAMES} frames of {MIN_PX}x{MIN_PX} pixels, "
                f"got {num_frames} of {width}x{height}"
            )
        features = clips
        for module in self.trunk:
            features = module(features)
        # Under autocast the last steps stay in float32: bfloat16 logits would tie. On the meta
        # device, where shapes are counted and nothing is computed, there is no autocast.
        with torch.autocast("cpu" if clips.is_meta else clips.device.type, enabled=False):
            means = features.float().mean(dim=(3, 4), keepdim=True)
            pairs = (means[:, :, 1:] + means[:, :, :-1]) / 2
            logits: Tensor = self.Logits(self.dropout(pairs))
        return logits[:, :, :, 0, 0]

    def forward(self, clips: Tensor) -> Tensor:
        """Logits averaged over time: float32 (B, K). See `step_logits`."""
        return self.step_logits(clips).mean(dim=2)


class TwoStreamI3D(nn.Module):
    """Both streams; their logits are added with equal weight, as in the published code."""

    def __init__(self, rgb: nn.Module, flow: nn.Module) -> None:
        super().__init__()
        self.rgb = rgb
        self.flow = flow

    def forward(self, rgb: Tensor, flow: Tensor) -> Tensor:
        """Map (B, 3, T, H, W) and (B, 2, T', H, W), both in [-1, 1], to logits (B, K)."""
        logits: Tensor = self.rgb(rgb) + self.flow(flow)
        return logits


def build(stream: str, num_classes: int, *, dropout: float, bn_momentum: float) -> nn.Module:
    """The network of one stream, or of both for `joint`; see `benchmarks.archs.build`."""
    streams = ("rgb", "flow") if stream == "joint" else (stream,)
    nets = [
        I3D(num_classes, CHANNELS[name], dropout=dropout, bn_momentum=bn_momentum)
        for name in streams
    ]
    return TwoStreamI3D(*nets) if stream == "joint" else nets[0]


def _chain(**modules: nn.Module) -> nn.Sequential:
    chain = nn.Sequential()
    for name, module in modules.items():
        chain.add_module(name, module)
    return chain


def _draw(conv: nn.Conv3d) -> None:
    """Sonnet 1's default: a normal cut at two deviations, deviation 1/sqrt(fan in); bias 0."""
    deviation = 1 / math.sqrt(conv.in_channels * math.prod(conv.kernel_size))
    nn.init.trunc_normal_(conv.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
