"""Two-Stream I3D: Inception-v1 with every kernel inflated to three dimensions.

Source: Carreira and Zisserman, "Quo Vadis, Action Recognition?", arXiv 1705.07750 v3, section 2.4,
and the authors' published i3d.py (github.com/deepmind/kinetics-i3d), whose endpoint names the
modules keep: `Mixed_3b.Branch_1.Conv3d_0b_3x3.conv_3d.weight` is the variable
`inception_i3d/Mixed_3b/Branch_1/Conv3d_0b_3x3/conv_3d/w`. One difference: the last average pool
covers the full height and width. At 224 pixels this is the published 7x7; other sizes work too.

Shapes: B clips, C channels, T time, H height, W width, T' time steps, K classes.
"""

from typing import Final

from torch import Tensor

from kinetics_bench.archs.inception import InceptionNet, backbone
from kinetics_bench.archs.network import InputSpec, Joint, Network, full_precision
from kinetics_bench.archs.streams import CHANNELS

MIN_FRAMES: Final = 9  # with fewer, the last feature map is shorter than the last pool: 2
STRIDE: Final = 8  # total temporal stride


class I3D(InceptionNet):
    """One stream of I3D, for clips (B, C, T, H, W) with T at least 9, H and W at least 32.

    T' is ceil(T / 8) - 1: 7 for 64 frames, 31 for 250.
    """

    title = "I3D"
    # Step i depends on frames 8 i - 47 to 8 i + 62: the receptive field of the last feature map is
    # 99 frames. It shifts by up to three frames with the clip's length, as SAME padding does.
    receptive_steps = 7
    temporal_strides = (STRIDE,)

    def __init__(
        self, num_classes: int, stream: str, *, dropout: float, bn_momentum: float
    ) -> None:
        inflated = backbone(CHANNELS[stream], dims=3, momentum=bn_momentum)
        super().__init__(num_classes, InputSpec(stream, MIN_FRAMES), inflated, dropout=dropout)

    def pool_features(self, *clips: Tensor) -> Tensor:
        """The last feature map after an average pool of 2 x H' x W', stride 1: (B, 1024, T')."""
        means = full_precision(self.feature_map(clips[0])).mean(dim=(3, 4))
        return (means[:, :, 1:] + means[:, :, :-1]) / 2

    def step_frames(self, *num_frames: int) -> list[tuple[int, int]]:
        """The 16 frames [start, end) of each time step: it averages two strides."""
        (num,) = num_frames
        num_steps = -(-num // STRIDE) - 1
        return [(STRIDE * at, min(STRIDE * (at + 2), num)) for at in range(num_steps)]


def build(stream: str, num_classes: int, *, dropout: float, bn_momentum: float) -> Network:
    """The network of one stream; for `joint` both, logits added as in the published code.

    Arguments: see `kinetics_bench.archs.build`.
    """
    streams = ("rgb", "flow") if stream == "joint" else (stream,)
    nets = [I3D(num_classes, name, dropout=dropout, bn_momentum=bn_momentum) for name in streams]
    return Joint(*nets, weight=1.0) if stream == "joint" else nets[0]
