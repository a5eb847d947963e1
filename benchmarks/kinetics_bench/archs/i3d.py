"""Two-Stream I3D: Inception-v1 with every kernel inflated to three dimensions.

Source: Carreira and Zisserman, "Quo Vadis, Action Recognition?", arXiv 1705.07750 v3, section 2.4,
and the authors' published i3d.py (github.com/deepmind/kinetics-i3d), whose endpoint names the
modules keep: `Mixed_3b.Branch_1.Conv3d_0b_3x3.conv_3d.weight` is the variable
`inception_i3d/Mixed_3b/Branch_1/Conv3d_0b_3x3/conv_3d/w`. One thing differs: the last pool spans
all of height and width, which is the published 7x7 at 224 pixels and works at any other size.

Shapes: B clips, C channels, T time, H height, W width, T' time steps, K classes.
"""

from typing import Final

from torch import Tensor

from kinetics_bench.archs.inception import InceptionNet, trunk
from kinetics_bench.archs.network import ClipNeed, Joint, Network, full_precision
from kinetics_bench.archs.streams import CHANNELS

MIN_FRAMES: Final = 9  # fewer leave less than the two time steps that the last pool spans
STRIDE: Final = 8  # frames between two cells of the last grid


class I3D(InceptionNet):
    """One stream of I3D. Any T from 9 frames, any H and W from 32 pixels.

    T' is 7 for 64 frames, 31 for 250.
    """

    title = "I3D"
    # Step i is made of frames 8 i - 47 to 8 i + 62. A cell of the last grid sees 99 frames; which,
    # is moved by up to three with the clip's length, as SAME padding goes by it.
    receptive_steps = 7
    temporal_strides = (STRIDE,)

    def __init__(
        self, num_classes: int, stream: str, *, dropout: float, bn_momentum: float
    ) -> None:
        inflated = trunk(CHANNELS[stream], dims=3, momentum=bn_momentum)
        super().__init__(num_classes, ClipNeed(stream, MIN_FRAMES), inflated, dropout=dropout)

    def pool_features(self, *clips: Tensor) -> Tensor:
        """The last grid averaged over height, width and every two neighbours in time."""
        means = full_precision(self.grid(clips[0])).mean(dim=(3, 4))
        return (means[:, :, 1:] + means[:, :, :-1]) / 2

    def step_frames(self, *num_frames: int) -> list[tuple[int, int]]:
        """The frames [start, end) of the two cells that each step averages."""
        (num,) = num_frames
        num_steps = -(-num // STRIDE) - 1
        return [(STRIDE * at, min(STRIDE * (at + 2), num)) for at in range(num_steps)]


def build(stream: str, num_classes: int, *, dropout: float, bn_momentum: float) -> Network:
    """The network of one stream, or of both for `joint`; see `kinetics_bench.archs.registry.build`.

    Both streams' logits are added with equal weight, as in the published code.
    """
    streams = ("rgb", "flow") if stream == "joint" else (stream,)
    nets = [I3D(num_classes, name, dropout=dropout, bn_momentum=bn_momentum) for name in streams]
    return Joint(*nets, share=1.0) if stream == "joint" else nets[0]
