"""Inception-v1 with batch norm, for images and, inflated, for clips.

Source: Szegedy et al., arXiv 1409.4842, with batch norm and with 3x3 kernels in place of 5x5, as in
TensorFlow's slim. Inflated as in Carreira and Zisserman, arXiv 1705.07750 v3, section 2.4: a kernel
of NxN becomes NxNxN, except that the first two max pools do not pool in time. Module names are
those of the published i3d.py (github.com/deepmind/kinetics-i3d), with 2d in place of 3d for images:
`Mixed_3b.Branch_1.Conv3d_0b_3x3.conv_3d.weight`, `Mixed_3b.Branch_1.Conv2d_0b_3x3.conv_2d.weight`.

Shapes: B images or clips, C channels, T time, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from kinetics_bench.archs.layers import SameMaxPool, conv_bn_relu, named_sequential, same_conv
from kinetics_bench.archs.network import InputSpec, Network

# Output channels: Branch_0 1x1; Branch_1 1x1, 3x3; Branch_2 1x1, 3x3; Branch_3 1x1 after a pool.
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
NUM_FEATURES: Final = 1024  # channels of Mixed_5c


class Mixed(nn.Module):
    """An Inception module of 2 or 3 dimensions: four branches, concatenated on channels."""

    def __init__(self, name: str, in_channels: int, *, dims: int, momentum: float) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3 = MIXED[name]
        conv = f"Conv{dims}d"
        # The published code and its checkpoints have one irregular name.
        third = f"{conv}_0a_3x3" if name == "Mixed_5b" else f"{conv}_0b_3x3"

        def conv_unit(channels_in: int, channels_out: int, kernel: int = 1) -> nn.Module:
            return conv_bn_relu((channels_in, channels_out), (kernel,) * dims, momentum=momentum)

        self.Branch_0 = named_sequential({f"{conv}_0a_1x1": conv_unit(in_channels, b0)})
        self.Branch_1 = named_sequential(
            {
                f"{conv}_0a_1x1": conv_unit(in_channels, b1a),
                f"{conv}_0b_3x3": conv_unit(b1a, b1b, 3),
            }
        )
        self.Branch_2 = named_sequential(
            {f"{conv}_0a_1x1": conv_unit(in_channels, b2a), third: conv_unit(b2a, b2b, 3)}
        )
        pool = SameMaxPool((3,) * dims, (1,) * dims)
        self.Branch_3 = named_sequential(
            {f"MaxPool{dims}d_0a_3x3": pool, f"{conv}_0b_1x1": conv_unit(in_channels, b3)}
        )
        self.out_channels = b0 + b1b + b2b + b3

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, [T,] H, W) to (B, out_channels, [T,] H, W)."""
        branches = (self.Branch_0, self.Branch_1, self.Branch_2, self.Branch_3)
        return torch.cat([branch(x) for branch in branches], dim=1)


def backbone(in_channels: int, *, dims: int, momentum: float) -> nn.Sequential:
    """All layers before the last average pool.

    With `dims` 2 it maps images (B, C, H, W) to (B, 1024, ceil(H/32), ceil(W/32)), with 3 clips
    (B, C, T, H, W) to (B, 1024, ceil(T/8), ceil(H/32), ceil(W/32)).

    Args:
        in_channels: C.
        dims: 2 or 3.
        momentum: weight of a new batch in batch norm's running statistics.
    """
    endpoints: dict[str, nn.Module] = {}

    def conv(name: str, channels: tuple[int, int], kernel: int, stride: int = 1) -> None:
        sizes = (kernel,) * dims, (stride,) * dims
        endpoints[f"Conv{dims}d_{name}"] = conv_bn_relu(channels, *sizes, momentum=momentum)

    def pool(name: str, kernel: int, *, in_time: bool = True) -> None:
        sizes = [((size,) * dims)[-2:] for size in (kernel, 2)]
        if dims == 3:
            sizes = [((size[0] if in_time else 1), *size) for size in sizes]
        endpoints[f"MaxPool{dims}d_{name}"] = SameMaxPool(*sizes)

    conv("1a_7x7", (in_channels, 64), 7, 2)
    pool("2a_3x3", 3, in_time=False)
    conv("2b_1x1", (64, 64), 1)
    conv("2c_3x3", (64, 192), 3)
    pool("3a_3x3", 3, in_time=False)
    channels = 192
    for name in MIXED:
        if name == "Mixed_4b":
            pool("4a_3x3", 3)
        if name == "Mixed_5b":
            pool("5a_2x2", 2)
        mixed = Mixed(name, channels, dims=dims, momentum=momentum)
        endpoints[name] = mixed
        channels = mixed.out_channels
    return named_sequential(endpoints)


class InceptionNet(Network):
    """A backbone and a last layer. As in the published code, endpoints are direct submodules."""

    def __init__(
        self,
        num_classes: int,
        spec: InputSpec,
        backbone: nn.Sequential,
        *,
        dropout: float,
    ) -> None:
        super().__init__(spec, dropout=dropout)
        self.endpoints = tuple(name for name, _ in backbone.named_children())
        for name, module in backbone.named_children():
            self.add_module(name, module)
        self.dims = dims = 2 if self.endpoints[0].startswith("Conv2d") else 3
        last = same_conv((NUM_FEATURES, num_classes), (1,) * dims, bias=True)
        self.Logits = named_sequential(
            {f"Conv{dims}d_0c_1x1": named_sequential({f"conv_{dims}d": last})}
        )
        self.last_layers = (f"Logits.Conv{dims}d_0c_1x1.conv_{dims}d",)

    def feature_map(self, clips: Tensor) -> Tensor:
        """The output of the backbone: (B, C, [T,] H, W) to (B, 1024, [T',] H', W')."""
        return self.apply_modules(map(self.get_submodule, self.endpoints), clips)

    def classify(self, features: Tensor) -> Tensor:
        """Map features (B, 1024, T') to logits (B, K, T')."""
        # The last layer is a convolution of 1x1[x1] over (T', 1[, 1]).
        last = self.get_submodule(self.last_layers[0])
        shape = features.shape + (1,) * (self.dims - 1)
        logits: Tensor = last(features.reshape(shape))
        return logits.flatten(2)


def inflate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a 3-D Inception from that of a 2-D one (section 2.4 of the paper).

    A kernel of width N is repeated N times along time and divided by N. On a video of equal frames
    the inflated network then computes what the 2-D one computes on a frame, except near the two
    ends of the video, where zero padding has an effect. All other weights are copied.

    Args:
        weights: the state dict of a `backbone` or network of 2 dimensions.
    """
    return {
        name.replace("Conv2d_", "Conv3d_").replace("conv_2d", "conv_3d"): (
            weight.unsqueeze(2).repeat(1, 1, weight.shape[-1], 1, 1) / weight.shape[-1]
            if name.endswith("conv_2d.weight")
            else weight.clone()
        )
        for name, weight in weights.items()
    }
