"""What the networks share, made for two or three dimensions: by the length of the kernel given.

Two dimensions are (H, W), three (T, H, W). Source of padding, batch norm and first weights: the
published networks' TensorFlow and Sonnet 1 (deepmind/kinetics-i3d, i3d.py).
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from kinetics_bench.archs.network import is_recomputing

Size = tuple[int, ...]

EPSILON: Final = 1e-3  # of batch norm
# Tensor cores take channels by eights. Of the two or three of a clip cuDNN computes without them:
# on an H100 I3D's first layer alone took a third of a step in bfloat16. There, a convolution of
# stride 2 on fewer channels is computed on `_space_to_depth`: 1.4 times the clips a second.
SPACE_TO_DEPTH_ON: Final = frozenset({"cuda"})
FEW_CHANNELS: Final = 8


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis: cells to add in front and at the back.

    The output has ceil(size / stride) cells. Back is front or front + 1.
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class _SameConv(_ConvNd):
    """A convolution with TensorFlow's SAME padding at any size."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, [T,] H, W) to (B, C', [ceil(T/s),] ceil(H/s), ceil(W/s))."""
        few = self.in_channels < FEW_CHANNELS and set(self.stride) == {2}
        if few and input.device.type in SPACE_TO_DEPTH_ON:
            return self._space_to_depth(input)
        pads = self._pads(input)
        fronts = tuple(front for front, _ in pads)
        # The convolution pads by itself, without a copy, where it can. In bfloat16 on a CPU oneDNN
        # then returns garbage as the weights' gradient when no window lies inside the time axis
        # (measured with torch 2.13: kernel 3 on 2 frames), so short inputs are padded before.
        long = input.shape[2] > self.kernel_size[0] or not any(fronts)
        if long and all(front == back for front, back in pads):
            return _convolve(input, self.weight, self.bias, self.stride, fronts)
        return _convolve(_padded(input, pads), self.weight, self.bias, self.stride)

    def _pads(self, input: Tensor) -> list[tuple[int, int]]:
        sizes = zip(input.shape[2:], self.kernel_size, self.stride, strict=True)
        return [same_padding(size, kernel, stride) for size, kernel, stride in sizes]

    def _space_to_depth(self, input: Tensor) -> Tensor:
        """The same sums: every 2x2x2 neighbours are channels of one cell, and the stride is 1."""
        device = input.device.type
        if torch.is_autocast_enabled(device):  # before it is copied
            input = input.to(torch.get_autocast_dtype(device))
        weight = _padded(self.weight, [(0, size % 2) for size in self.kernel_size])
        pads = []
        for size, kernel, (front, _) in zip(
            input.shape[2:], weight.shape[2:], self._pads(input), strict=True
        ):
            # As far as the last window of the even kernel reaches, where that has zeros.
            end = 2 * (math.ceil(size / 2) - 1) + kernel
            pads.append((front, end - front - size))
        return _convolve(_twos(_padded(input, pads)), _twos(weight), self.bias)


def _convolve(grid: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    """Torch's convolution of as many dimensions as there are; `window`: stride and padding."""
    convolve = functional.conv2d if grid.ndim == 4 else functional.conv3d
    return convolve(grid, weight, bias, *window)


def _padded(grid: Tensor, pads: Sequence[tuple[int, int]]) -> Tensor:
    """Add cells of 0 in front and at the back of each axis but the first two."""
    # functional.pad wants the last axis first.
    return functional.pad(grid, [cells for pad in reversed(pads) for cells in pad])


def _twos(grid: Tensor) -> Tensor:
    """Make channels of neighbours: (B, C, [2 T,] 2 H, 2 W) to (B, C', [T,] H, W), C' = 4 C or 8 C.

    Channels come last in memory.
    """
    dims = grid.ndim - 2
    halves = [number for size in grid.shape[2:] for number in (size // 2, 2)]
    blocks = grid.reshape(*grid.shape[:2], *halves)
    order = [0, *range(2, 2 + 2 * dims, 2), *range(3, 3 + 2 * dims, 2), 1]
    return blocks.permute(order).flatten(1 + dims).movedim(-1, 1)


class SameConv2d(_SameConv, nn.Conv2d):
    """Convolution of images, SAME."""


class SameConv3d(_SameConv, nn.Conv3d):
    """Convolution of clips, SAME."""


CONVS: Final[Mapping[int, type[SameConv2d] | type[SameConv3d]]] = {2: SameConv2d, 3: SameConv3d}


def same_conv(
    channels: tuple[int, int], kernel: Size, stride: Size | None = None, *, bias: bool = False
) -> _ConvNd:
    """A SAME convolution of as many dimensions as `kernel` has, with its first weights drawn."""
    strides: Any = stride or (1,) * len(kernel)
    window: Any = kernel
    conv = CONVS[len(kernel)](*channels, window, strides, bias=bias)
    draw(conv)
    return conv


class SameMaxPool(nn.Module):
    """A max pool with TensorFlow's SAME padding, whose cells never win, at any size."""

    def __init__(self, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, grid: Tensor) -> Tensor:
        """Map (B, C, [T,] H, W) to (B, C, [ceil(T/s),] ceil(H/s), ceil(W/s))."""
        front = [
            same_padding(size, kernel, stride)[0]
            for size, kernel, stride in zip(grid.shape[2:], self.kernel, self.stride, strict=True)
        ]
        pool = functional.max_pool2d if len(front) == 2 else functional.max_pool3d
        # ceil_mode lets the last window reach over the end: the one cell by which the back may
        # exceed the front. Where both are equal the windows fit, and it changes nothing.
        pooled: Tensor = pool(grid, self.kernel, self.stride, front, ceil_mode=True)
        return pooled


class OffsetBatchNorm(nn.Module):
    """Batch norm as in Sonnet 1: an offset (beta), epsilon 1e-3, and no scale (gamma).

    Weights from elsewhere may come with a scale. `keep_scale` takes it as a frozen factor, a buffer
    `scale` that is saved with the weights. Loading a state dict makes the layer what the state dict
    says: the buffer appears with an entry `scale`, and goes where there is none.

    It is none of torch's batch norms, of which torch's tools know that without a scale there is no
    offset either: SyncBatchNorm.convert_sync_batchnorm would drop it, and leaves this layer alone.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    scale: Tensor | None

    def __init__(self, num_features: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.register_buffer("scale", None)

    def keep_scale(self, values: Tensor) -> None:
        """Multiply by `values`, (num_features,), from now on; training does not change them."""
        if values.shape != self.bias.shape:
            raise ValueError(
                f"a scale of shape {tuple(values.shape)} for {len(self.bias)} features"
            )
        self.scale = values.detach().to(self.bias, copy=True)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...) a channel.

        Raises:
            ValueError: in training, one value a channel: its variance says nothing.
        """
        mean, var = self.running_mean, self.running_var
        if self.training:
            require_multiple_samples(input)
            if is_recomputing():  # the statistics have this batch already
                mean, var = mean.clone(), var.clone()
            else:
                self.num_batches_tracked.add_(1)
        # Of an offset without a scale torch computes no gradient on CUDA: the backward pass ends in
        # an error there (seen with 2.11).
        scale = torch.ones_like(self.bias) if self.scale is None else self.scale
        return functional.batch_norm(
            input, mean, var, scale, self.bias, self.training, self.momentum, EPSILON
        )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if prefix + "scale" in state_dict:
            if self.scale is None:
                self.scale = torch.ones_like(self.bias.detach())
        elif prefix + "running_mean" in state_dict:
            self.scale = None
        super()._load_from_state_dict(state_dict, prefix, *rest)


class BatchNormSingleSampleError(ValueError):
    """Batch norm was to train on one clip, where it has nothing to compare."""


def require_multiple_samples(values: Tensor) -> None:
    """Raise BatchNormSingleSampleError if batch norm has one value per channel of (B, C, ...)."""
    if values.shape[0] * math.prod(values.shape[2:]) == 1:
        raise BatchNormSingleSampleError(
            "batch norm cannot train on one clip where it sees one value a channel of it; "
            "give at least 2 clips a pass"
        )


def chain(modules: Mapping[str, nn.Module]) -> nn.Sequential:
    """Modules one after the other, by name."""
    return nn.Sequential(OrderedDict(modules))


def draw(layer: _ConvNd | nn.Linear) -> None:
    """Sonnet 1's default: a normal cut at two deviations, deviation 1/sqrt(fan in); bias 0."""
    fan_in = layer.weight[0].numel()
    deviation = 1 / math.sqrt(fan_in)
    nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def linear(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """A fully connected layer with its first weights drawn as a convolution's."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    draw(layer)
    return layer


def unit(
    channels: tuple[int, int], kernel: Size, stride: Size | None = None, *, momentum: float
) -> nn.Sequential:
    """Convolution without bias (SAME), batch norm, ReLU: (B, C, [T,] H, W) to (B, C', ...).

    The convolution is called `conv_2d` or `conv_3d`, by the length of `kernel`.
    """
    return chain(
        {
            f"conv_{len(kernel)}d": same_conv(channels, kernel, stride),
            "batch_norm": OffsetBatchNorm(channels[1], momentum),
            "relu": nn.ReLU(inplace=True),
        }
    )


def dense(in_features: int, out_features: int, *, momentum: float) -> nn.Sequential:
    """Fully connected layer without bias, batch norm, ReLU: (B, F) to (B, F')."""
    return chain(
        {
            "linear": linear(in_features, out_features, bias=False),
            "batch_norm": OffsetBatchNorm(out_features, momentum),
            "relu": nn.ReLU(inplace=True),
        }
    )
