"""Layers of two or three dimensions; the length of the given kernel says which.

Two dimensions are (H, W), three (T, H, W). Padding, batch norm and initial weights are those of
TensorFlow and Sonnet 1, with which the networks were published (deepmind/kinetics-i3d, i3d.py).

Shapes: B images or clips, C channels, T time, H height, W width; s stride.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from kinetics_bench.archs.batch_norm import (
    BatchNorm,
    Moments,
    Processes,
    count_values,
    normalise,
    require_multiple_samples,
)
from kinetics_bench.archs.network import is_recomputing

Size = tuple[int, ...]

EPSILON: Final = 1e-3  # of batch norm
# Tensor cores need a multiple of eight channels. With two or three cuDNN does not use them: on an
# H100 I3D's first layer alone took a third of a step in bfloat16. So on these devices a convolution
# of stride 2 on few channels is computed on `space_to_depth`: 1.4 times the clips per second.
SPACE_TO_DEPTH_ON: Final = frozenset({"cuda"})
FEW_CHANNELS: Final = 8


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis: how many zeros to add in front and at the end.

    The output then has length ceil(size / stride). The end gets as many as the front, or one more.
    """
    total = ((size + stride - 1) // stride - 1) * stride + kernel - size
    if kernel < stride:
        total = max(total, 0)
    return total // 2, total - total // 2


def is_symbolic(sizes: Sequence[int]) -> bool:
    """Whether one of the sizes is a symbol: the graph is exported, and must fit all its values."""
    return any(isinstance(size, torch.SymInt) for size in sizes)


class _SameConv(_ConvNd):
    """A convolution with TensorFlow's SAME padding, for any input size."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, [T,] H, W) to (B, C', [ceil(T/s),] ceil(H/s), ceil(W/s))."""
        pads = self._pads(input)
        if is_symbolic(input.shape[2:]):
            return _convolve(_padded(input, pads), self.weight, self.bias, self.stride)
        few = self.in_channels < FEW_CHANNELS and set(self.stride) == {2}
        if few and input.device.type in SPACE_TO_DEPTH_ON:
            return self._by_space_to_depth(input)
        fronts = tuple(front for front, _ in pads)
        # Torch's convolution pads without a copy, if both sides are equal. But in bfloat16 on a CPU
        # oneDNN then returns a wrong weight gradient if no window fits inside the time axis
        # (measured with torch 2.13: kernel 3, 2 frames), so short inputs are padded first.
        long = input.shape[2] > self.kernel_size[0] or not any(fronts)
        if long and all(front == back for front, back in pads):
            return _convolve(input, self.weight, self.bias, self.stride, fronts)
        return _convolve(_padded(input, pads), self.weight, self.bias, self.stride)

    def _pads(self, input: Tensor) -> list[tuple[int, int]]:
        sizes = zip(input.shape[2:], self.kernel_size, self.stride, strict=True)
        return [same_padding(size, kernel, stride) for size, kernel, stride in sizes]

    def _by_space_to_depth(self, input: Tensor) -> Tensor:
        """The same convolution on `space_to_depth` of input and kernel, with stride 1."""
        device = input.device.type
        if torch.is_autocast_enabled(device):  # cast before the copies below
            input = input.to(torch.get_autocast_dtype(device))
        weight = _padded(self.weight, [(0, size % 2) for size in self.kernel_size])
        pads = []
        for size, kernel, (front, _) in zip(
            input.shape[2:], weight.shape[2:], self._pads(input), strict=True
        ):
            # To the end of the last window of the kernel, which was padded with zeros to even size.
            end = 2 * (math.ceil(size / 2) - 1) + kernel
            pads.append((front, end - front - size))
        return _convolve(space_to_depth(_padded(input, pads)), space_to_depth(weight), self.bias)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    """Torch's conv2d or conv3d, by the dimensions of `x`; `window` is stride and padding."""
    convolve = functional.conv2d if x.ndim == 4 else functional.conv3d
    return convolve(x, weight, bias, *window)


def _padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Add a value, in front and at the end, to each axis except batch and channels."""
    # functional.pad takes the last axis first.
    return functional.pad(x, [number for pad in reversed(pads) for number in pad], value=value)


def space_to_depth(x: Tensor) -> Tensor:
    """Move 2x2[x2] neighbours to channels: (B, C, [2 T,] 2 H, 2 W) to (B, C', [T,] H, W).

    C' is 4 C or 8 C. The result is channels last in memory.
    """
    dims = x.ndim - 2
    halves = [number for size in x.shape[2:] for number in (size // 2, 2)]
    blocks = x.reshape(*x.shape[:2], *halves)
    order = [0, *range(2, 2 + 2 * dims, 2), *range(3, 3 + 2 * dims, 2), 1]
    return blocks.permute(order).flatten(1 + dims).movedim(-1, 1)


class SameConv2d(_SameConv, nn.Conv2d):
    """Convolution of images with SAME padding: (B, C, H, W) to (B, C', ceil(H/s), ceil(W/s))."""


class SameConv3d(_SameConv, nn.Conv3d):
    """Convolution of clips with SAME padding.

    (B, C, T, H, W) to (B, C', ceil(T/s), ceil(H/s), ceil(W/s)).
    """


CONVS: Final[Mapping[int, type[SameConv2d] | type[SameConv3d]]] = {2: SameConv2d, 3: SameConv3d}


def same_conv(
    channels: tuple[int, int], kernel: Size, stride: Size | None = None, *, bias: bool = False
) -> _ConvNd:
    """A convolution with SAME padding and initial weights.

    Args:
        channels: input and output.
        kernel: two sizes for images, three for clips.
        stride: as many; default 1.
        bias: whether there is one.
    """
    strides: Any = stride or (1,) * len(kernel)
    window: Any = kernel
    conv = CONVS[len(kernel)](*channels, window, strides, bias=bias)
    init_truncated_normal(conv)
    return conv


class SameMaxPool(nn.Module):
    """Max pooling with TensorFlow's SAME padding (of minus infinity), for any input size."""

    def __init__(self, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, [T,] H, W) to (B, C, [ceil(T/s),] ceil(H/s), ceil(W/s))."""
        pads = [
            same_padding(size, kernel, stride)
            for size, kernel, stride in zip(input.shape[2:], self.kernel, self.stride, strict=True)
        ]
        pool = functional.max_pool2d if len(pads) == 2 else functional.max_pool3d
        if is_symbolic(input.shape[2:]):
            return pool(_padded(input, pads, -math.inf), self.kernel, self.stride)
        front = [front for front, _ in pads]
        # With ceil_mode the last window may reach one cell over the end: the cell by which SAME's
        # end padding may exceed the front. If both are equal, it changes nothing.
        pooled: Tensor = pool(input, self.kernel, self.stride, front, ceil_mode=True)
        return pooled


class OffsetBatchNorm(BatchNorm):
    """Batch norm as in Sonnet 1: with an offset (beta), without a scale (gamma), epsilon 1e-3.

    The moving variance is that of the values of a batch, as in TensorFlow. torch's own batch norms
    keep the unbiased estimate, which is larger where a batch has few values.

    Weights from other trainers may have a scale. `keep_scale` stores it as a frozen buffer `scale`,
    which is saved with the weights. Loading a state dict creates the buffer if the state dict has
    an entry `scale`, and removes it if not.

    It does not inherit from torch's batch norms: SyncBatchNorm.convert_sync_batchnorm would take a
    batch norm without scale for one without offset, and drop the offset.
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
        """Scale by `values`, (num_features,), from now on; training does not change them.

        Raises:
            ValueError: `values` has another shape.
        """
        if values.shape != self.bias.shape:
            raise ValueError(
                f"a scale of shape {tuple(values.shape)} for {len(self.bias)} features"
            )
        self.scale = values.detach().to(self.bias, copy=True)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...) per channel.

        Raises:
            BatchNormSingleSampleError: in training, there is one value per channel.
        """
        # On CUDA torch cannot compute the gradient of an offset without a scale: the backward pass
        # raises (seen with 2.11).
        scale = torch.ones_like(self.bias) if self.scale is None else self.scale
        if self.training and self.processes is not None:
            return self._normalised_with_others(input, scale, self.processes)
        mean, var = self.running_mean, self.running_var
        if self.training:
            require_multiple_samples(count_values(input))
            mean, var = mean.clone(), var.clone()  # torch saves what it updates, for the gradient
        normalised = functional.batch_norm(
            input, mean, var, scale, self.bias, self.training, self.momentum, EPSILON
        )
        # A forward pass that is computed again for its gradient has updated the statistics before.
        if self.training and not is_recomputing():
            self.num_batches_tracked.add_(1)
            self.running_mean.copy_(mean)
            # torch gives the unbiased variance, n / (n - 1) of the one that it normalises with.
            excess = (var - self.running_var * (1 - self.momentum)) / count_values(input)
            self.running_var.copy_(var - excess)
        return normalised

    def _normalised_with_others(self, input: Tensor, scale: Tensor, processes: Processes) -> Tensor:
        moments = Moments(input, processes)
        if not moments.is_empty and not is_recomputing():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(moments.mean, self.momentum)
            self.running_var.lerp_(moments.var, self.momentum)
        return normalise(input, moments, (scale, self.bias), EPSILON)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if prefix + "scale" in state_dict:
            if self.scale is None:
                self.scale = torch.ones_like(self.bias.detach())
        elif prefix + "running_mean" in state_dict:
            self.scale = None
        super()._load_from_state_dict(state_dict, prefix, *rest)


def named_sequential(modules: Mapping[str, nn.Module]) -> nn.Sequential:
    """A Sequential of modules under the given names."""
    return nn.Sequential(OrderedDict(modules))


def init_truncated_normal(layer: _ConvNd | nn.Linear) -> None:
    """Sonnet 1's default: normal, std 1/sqrt(fan in), truncated at two std; the bias is 0."""
    fan_in = layer.weight[0].numel()
    std = 1 / math.sqrt(fan_in)
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def linear(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """A fully connected layer, initialised as the convolutions are."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    init_truncated_normal(layer)
    return layer


def conv_bn_relu(
    channels: tuple[int, int], kernel: Size, stride: Size | None = None, *, momentum: float
) -> nn.Sequential:
    """SAME convolution without bias, batch norm, ReLU: (B, C, [T,] H, W) to (B, C', ...).

    The modules are named `conv_2d` or `conv_3d` (by the length of `kernel`), `batch_norm`, `relu`.

    Args:
        channels: input and output.
        kernel: two sizes for images, three for clips.
        stride: as many; default 1.
        momentum: weight of a new batch in the running statistics.
    """
    return named_sequential(
        {
            f"conv_{len(kernel)}d": same_conv(channels, kernel, stride),
            "batch_norm": OffsetBatchNorm(channels[1], momentum),
            "relu": nn.ReLU(inplace=True),
        }
    )


def linear_bn_relu(in_features: int, out_features: int, *, momentum: float) -> nn.Sequential:
    """Fully connected layer without bias, batch norm, ReLU: (B, F) to (B, F')."""
    return named_sequential(
        {
            "linear": linear(in_features, out_features, bias=False),
            "batch_norm": OffsetBatchNorm(out_features, momentum),
            "relu": nn.ReLU(inplace=True),
        }
    )
