"""Two-Stream: one Inception-v1 for single frames, one for stacks of ten flow fields.

Source: Carreira and Zisserman, arXiv 1705.07750 v3, section 2.3, after Simonyan and Zisserman,
arXiv 1406.2199. Both are trained end to end through the average of their predictions; alone, each
is the baseline of the paper's Table 2. Tests see 25 frames and 250 fields, in one call.

Where the paper is silent: what is averaged are logits, not probabilities, as in the published code
of I3D; the channels of a stack are x, y of its first field, x, y of its second and so on, as in
arXiv 1406.2199; frame k is the first frame of the stack that shares its step, so that both networks
see one moment.

Shapes: B clips, n time steps, H height, W width.
"""

from torch import Tensor

from kinetics_bench.archs.inception import InceptionNet, trunk
from kinetics_bench.archs.network import (
    ClipNeed,
    Joint,
    Network,
    full_precision,
    in_time,
    refuse_unequal,
)
from kinetics_bench.archs.streams import CHANNELS, FLOW_STACK


def images(clips: Tensor, stack: int = 1) -> Tensor:
    """Each `stack` frames an image, stacked on channels: (B, C, s n, H, W) to (B n, s C, H, W)."""
    batch, channels, num_frames, height, width = clips.shape
    parts = clips.reshape(batch, channels, num_frames // stack, stack, height, width)
    return parts.permute(0, 2, 3, 1, 4, 5).reshape(-1, stack * channels, height, width)


class SnapshotNet(InceptionNet):
    """Inception-v1 on single frames, or on stacks of ten flow fields: each is a time step."""

    title = "Two-Stream"

    def __init__(
        self, num_classes: int, stream: str, *, dropout: float, bn_momentum: float
    ) -> None:
        stack = FLOW_STACK if stream == "flow" else 1
        flat = trunk(stack * CHANNELS[stream], dims=2, momentum=bn_momentum)
        super().__init__(num_classes, ClipNeed(stream, stack, stack), flat, dropout=dropout)
        self.stack = stack

    def pool_features(self, *clips: Tensor) -> Tensor:
        """The last grid of each step averaged over height and width: (B, 1024, n)."""
        grid = self.grid(images(clips[0], self.stack))
        return in_time(full_precision(grid).mean(dim=(2, 3)), len(clips[0]))

    def step_frames(self, *num_frames: int) -> list[tuple[int, int]]:
        """The frame, or the ten fields, of each step."""
        return [(at, at + self.stack) for at in range(0, num_frames[0], self.stack)]


class TwoStream(Joint):
    """Both networks; their logits are averaged, in training too."""

    def __init__(self, rgb: SnapshotNet, flow: SnapshotNet) -> None:
        super().__init__(rgb, flow, share=0.5)

    def check(self, *clips: Tensor) -> None:
        """As every network's; and there must be ten fields a frame."""
        super().check(*clips)
        refuse_unequal(self.title, *clips, fields_per_frame=FLOW_STACK)


def build(stream: str, num_classes: int, *, dropout: float, bn_momentum: float) -> Network:
    """The network of one stream, or of both for `joint`; see `registry.build`."""
    streams = ("rgb", "flow") if stream == "joint" else (stream,)
    nets = [
        SnapshotNet(num_classes, name, dropout=dropout, bn_momentum=bn_momentum) for name in streams
    ]
    return TwoStream(*nets) if stream == "joint" else nets[0]
