"""3D-Fused Two-Stream: feature maps of frames and flow, fused by a 3-D convolution.

Source: Carreira and Zisserman, arXiv 1705.07750 v3, section 2.3, after Feichtenhofer et al., arXiv
1604.06573. Five frames, ten apart, and the ten flow fields after each give feature maps of 5x7x7.
Concatenated on channels, they go through a 3x3x3 convolution of 512 channels, a 3x3x3 max pool and
one fully connected layer. Everything is trained end to end. A test clip has 25 frames and 250
fields: five such windows, their logits averaged.

What the paper does not give, and we chose: the feature maps are concatenated to 2048 channels, and
the fused one is averaged over time, height and width, since only this gives the paper's 39 million
parameters; batch norm and ReLU follow the new convolution, as section 2.5 says for all convolutions
except the last; the new max pool has stride 2 and SAME padding, as the 3x3x3 pool of I3D; the
Gaussian noise that initialises the new layers has std 0.01 (batch norm removes the convolution's
scale, and the first logits are close to each other); dropout is before the last layer, as in the
other networks.

Shapes: B clips, n windows, T time, H height, W width.
"""

from typing import Final

import torch
from torch import Tensor, nn

from kinetics_bench.archs.inception import NUM_FEATURES, backbone
from kinetics_bench.archs.layers import SameMaxPool, conv_bn_relu
from kinetics_bench.archs.network import (
    InputSpec,
    Network,
    batch_to_time,
    full_precision,
    require_matching_lengths,
)
from kinetics_bench.archs.streams import CHANNELS, FLOW_STACK
from kinetics_bench.archs.two_stream import stack_frames

NUM_FRAMES: Final = 5  # per window; each has a stack of flow fields
WIDTH: Final = 512
INIT_STD: Final = 0.01


class Fused(Network):
    """Takes rgb (B, 3, 5 n, H, W) and flow (B, 2, 50 n, H, W): n windows, one time step each."""

    title = "3D-Fused Two-Stream"

    def __init__(self, num_classes: int, *, dropout: float, bn_momentum: float) -> None:
        num_fields = NUM_FRAMES * FLOW_STACK
        super().__init__(
            InputSpec("rgb", NUM_FRAMES, NUM_FRAMES),
            InputSpec("flow", num_fields, num_fields),
            dropout=dropout,
        )
        self.rgb = backbone(CHANNELS["rgb"], dims=2, momentum=bn_momentum)
        self.flow = backbone(FLOW_STACK * CHANNELS["flow"], dims=2, momentum=bn_momentum)
        self.fusion = conv_bn_relu((2 * NUM_FEATURES, WIDTH), (3, 3, 3), momentum=bn_momentum)
        self.pool = SameMaxPool((3, 3, 3), (2, 2, 2))
        self.last = nn.Linear(WIDTH, num_classes)
        for weight in (self.fusion.get_parameter("conv_3d.weight"), self.last.weight):
            nn.init.normal_(weight, std=INIT_STD)
        nn.init.zeros_(self.last.bias)

    def check(self, *clips: Tensor) -> None:
        """Raise ValueError unless inputs match `input_specs` and have 10 fields per frame."""
        super().check(*clips)
        require_matching_lengths(self.title, *clips, fields_per_frame=FLOW_STACK)

    def pool_features(self, *clips: Tensor) -> Tensor:
        """The fused feature map of each window, averaged over time, height, width: (B, 512, n)."""
        rgb, flow = clips
        spatial = self.apply_modules(self.rgb, stack_frames(rgb))
        temporal = self.apply_modules(self.flow, stack_frames(flow, FLOW_STACK))
        both = torch.cat([spatial, temporal], dim=1)
        # (B 5 n, 2048, h, w) to (B n, 2048, 5, h, w)
        both = both.reshape(-1, NUM_FRAMES, *both.shape[1:]).transpose(1, 2)
        fused = self.pool(self.fusion(both))
        means = full_precision(fused).mean(dim=(2, 3, 4))
        return batch_to_time(means, rgb.shape[0], rgb.shape[2] // NUM_FRAMES)

    def step_frames(self, *num_frames: int) -> list[tuple[int, int]]:
        """The 50 fields [start, end) of each window."""
        length = NUM_FRAMES * FLOW_STACK
        return [(at, at + length) for at in range(0, num_frames[1], length)]


def build(stream: str, num_classes: int, *, dropout: float, bn_momentum: float) -> Network:
    """The network of `joint`, its only stream. Arguments: see `kinetics_bench.archs.build`."""
    assert stream == "joint", stream
    return Fused(num_classes, dropout=dropout, bn_momentum=bn_momentum)
