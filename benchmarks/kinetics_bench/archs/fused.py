"""3D-Fused Two-Stream: frames' and flow's last grids, joined by a convolution over space and time.

Source: Carreira and Zisserman, arXiv 1705.07750 v3, section 2.3, after Feichtenhofer et al., arXiv
1604.06573. Five frames, ten apart, and the ten flow fields that follow each give grids of 5x7x7;
concatenated on channels, they go through a 3x3x3 convolution of 512 channels, a 3x3x3 max pool and
one fully connected layer. All is trained end to end. Tests see 25 frames and 250 fields: five such
windows, their logits averaged.

Where the paper is silent: the grids are joined as 2048 channels and everything is averaged before
the last layer, since only that gives its 39 million parameters; batch norm and ReLU follow the new
convolution, as section 2.5 says of all but the last; the new max pool has stride 2 and SAME padding
like the 3x3x3 pool of I3D; the new layers' Gaussian noise has a deviation of 0.01 (batch norm
undoes the convolution's scale, and the first logits are close to each other); dropout stands before
the last layer, as in the other networks.

Shapes: B clips, n windows, T time, H height, W width.
"""

from typing import Final

import torch
from torch import Tensor, nn

from kinetics_bench.archs.inception import NUM_FEATURES, trunk
from kinetics_bench.archs.layers import SameMaxPool, unit
from kinetics_bench.archs.network import ClipNeed, Network, full_precision, in_time, refuse_unequal
from kinetics_bench.archs.streams import CHANNELS, FLOW_STACK
from kinetics_bench.archs.two_stream import images

NUM_FRAMES: Final = 5  # of a window; each has a stack of flow
WIDTH: Final = 512
DEVIATION: Final = 0.01


class Fused(Network):
    """Called with rgb (B, 3, 5 n, H, W), flow (B, 2, 50 n, H, W): n windows, a time step each."""

    title = "3D-Fused Two-Stream"

    def __init__(self, num_classes: int, *, dropout: float, bn_momentum: float) -> None:
        num_fields = NUM_FRAMES * FLOW_STACK
        super().__init__(
            ClipNeed("rgb", NUM_FRAMES, NUM_FRAMES),
            ClipNeed("flow", num_fields, num_fields),
            dropout=dropout,
        )
        self.rgb = trunk(CHANNELS["rgb"], dims=2, momentum=bn_momentum)
        self.flow = trunk(FLOW_STACK * CHANNELS["flow"], dims=2, momentum=bn_momentum)
        self.fusion = unit((2 * NUM_FEATURES, WIDTH), (3, 3, 3), momentum=bn_momentum)
        self.pool = SameMaxPool((3, 3, 3), (2, 2, 2))
        self.last = nn.Linear(WIDTH, num_classes)
        for weight in (self.fusion.get_parameter("conv_3d.weight"), self.last.weight):
            nn.init.normal_(weight, std=DEVIATION)
        nn.init.zeros_(self.last.bias)

    def check(self, *clips: Tensor) -> None:
        """As every network's; and there must be ten fields a frame."""
        super().check(*clips)
        refuse_unequal(self.title, *clips, fields_per_frame=FLOW_STACK)

    def pool_features(self, *clips: Tensor) -> Tensor:
        """The fused grid of each window averaged over time, height and width: (B, 512, n)."""
        rgb, flow = clips
        spatial = self.through(self.rgb, images(rgb))
        motion = self.through(self.flow, images(flow, FLOW_STACK))
        grids = torch.cat([spatial, motion], dim=1)
        # (B 5 n, 2048, h, w) to (B n, 2048, 5, h, w)
        grids = grids.reshape(-1, NUM_FRAMES, *grids.shape[1:]).transpose(1, 2)
        fused = self.pool(self.fusion(grids))
        return in_time(full_precision(fused).mean(dim=(2, 3, 4)), len(rgb))

    def step_frames(self, *num_frames: int) -> list[tuple[int, int]]:
        """The fifty fields of each window."""
        length = NUM_FRAMES * FLOW_STACK
        return [(at, at + length) for at in range(0, num_frames[1], length)]


def build(stream: str, num_classes: int, *, dropout: float, bn_momentum: float) -> Network:
    """The network of `joint`, the only stream there is; see `registry.build`."""
    assert stream == "joint", stream
    return Fused(num_classes, dropout=dropout, bn_momentum=bn_momentum)
