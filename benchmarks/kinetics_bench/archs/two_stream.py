"""Two-Stream: one Inception-v1 for single frames, one for stacks of ten flow fields.

Source: Carreira and Zisserman, arXiv 1705.07750 v3, section 2.3, after Simonyan and Zisserman,
arXiv 1406.2199. Both are trained end to end through the average of their predictions; alone, each
is a baseline of the paper's Table 2. A test clip has 25 frames and 250 fields, in one call.

What the paper does not give, and we chose: logits are averaged, not probabilities, as in the
published code of I3D; the channels of a stack are x, y of its first field, x, y of its second and
so on, as in arXiv 1406.2199; the frame of a time step is the first frame of its stack of flow, so
that both networks see the same moment.

Shapes: B clips, n time steps, H height, W width.
"""

from torch import Tensor

from kinetics_bench.archs.inception import InceptionNet, backbone
from kinetics_bench.archs.network import (
    InputSpec,
    Joint,
    Network,
    batch_to_time,
    full_precision,
    require_matching_lengths,
)
from kinetics_bench.archs.streams import CHANNELS, FLOW_STACK


def stack_frames(clips: Tensor, stack: int = 1) -> Tensor:
    """Images of `stack` frames, stacked on channels: (B, C, stack n, H, W) to (B n, stack C, H, W).

    The channels are those of the first frame, then those of the second, and so on.
    """
    batch, channels, num_frames, height, width = clips.shape
    parts = clips.reshape(batch, channels, num_frames // stack, stack, height, width)
    return parts.permute(0, 2, 3, 1, 4, 5).reshape(-1, stack * channels, height, width)


class SnapshotNet(InceptionNet):
    """Inception-v1 on single frames, or on stacks of ten flow fields: one time step each.

    It takes rgb (B, 3, n, H, W) or flow (B, 2, 10 n, H, W).
    """

    title = "Two-Stream"

    def __init__(
        self, num_classes: int, stream: str, *, dropout: float, bn_momentum: float
    ) -> None:
        stack = FLOW_STACK if stream == "flow" else 1
        layers = backbone(stack * CHANNELS[stream], dims=2, momentum=bn_momentum)
        super().__init__(num_classes, InputSpec(stream, stack, stack), layers, dropout=dropout)
        self.stack = stack

    def pool_features(self, *clips: Tensor) -> Tensor:
        """The last feature map of each time step, averaged over height and width: (B, 1024, n)."""
        num_clips, num_steps = clips[0].shape[0], clips[0].shape[2] // self.stack
        feature_map = self.feature_map(stack_frames(clips[0], self.stack))
        means = full_precision(feature_map).mean(dim=(2, 3))
        return batch_to_time(means, num_clips, num_steps)

    def step_frames(self, *num_frames: int) -> list[tuple[int, int]]:
        """The frame, or the ten fields, [start, end) of each time step."""
        return [(at, at + self.stack) for at in range(0, num_frames[0], self.stack)]


class TwoStream(Joint):
    """Both networks; their logits are averaged, in training too.

    It takes rgb (B, 3, n, H, W) and flow (B, 2, 10 n, H, W).
    """

    def __init__(self, rgb: SnapshotNet, flow: SnapshotNet) -> None:
        super().__init__(rgb, flow, weight=0.5)

    def check(self, *clips: Tensor) -> None:
        """Raise ValueError unless inputs match `input_specs` and have 10 fields per frame."""
        super().check(*clips)
        require_matching_lengths(self.title, *clips, fields_per_frame=FLOW_STACK)


def build(stream: str, num_classes: int, *, dropout: float, bn_momentum: float) -> Network:
    """The network of one stream; for `joint` both. Arguments: see `kinetics_bench.archs.build`."""
    streams = ("rgb", "flow") if stream == "joint" else (stream,)
    nets = [
        SnapshotNet(num_classes, name, dropout=dropout, bn_momentum=bn_momentum) for name in streams
    ]
    return TwoStream(*nets) if stream == "joint" else nets[0]
