"""3D-ConvNet: C3D as the paper trains it, on 16 frames of 112x112 pixels.

Source: Carreira and Zisserman, arXiv 1705.07750 v3, section 2.2, after Tran et al., arXiv
1412.0767: eight convolutions of 3x3x3, five max pools, two fully connected layers of 4096; batch
norm after each of the convolutions and fully connected layers, and a first pool that halves time
too. Tests see 240 frames: 15 windows, their logits averaged.

Where the paper is silent: every pool is 2x2x2 with stride 2 and SAME padding, so that 16 frames go
8, 4, 2, 1, 1 and 112 pixels 56, 28, 14, 7, 4; only a grid of 1x4x4 gives the paper's 79 million
parameters. Windows do not overlap. Batch norm has an offset and no scale, as in I3D. Dropout
follows both fully connected layers, as in arXiv 1412.0767. First weights are drawn as I3D's. At
sizes whose last grid is not 4x4 (all but 97 to 112 pixels) it is averaged, or its cells are
repeated, to 4x4.

Shapes: B clips, n windows, C channels, T time, H height, W width.
"""

from typing import Final

import torch
from torch import Tensor, nn

from kinetics_bench.archs.layers import SameMaxPool, chain, dense, linear, unit
from kinetics_bench.archs.network import ClipNeed, Network, full_precision, in_time, windows
from kinetics_bench.archs.streams import CHANNELS

WINDOW: Final = 16  # frames
# Channels of the convolutions between one pool and the next.
STAGES: Final = ((64,), (128,), (256, 256), (512, 512), (512, 512))
GRID: Final = (1, 4, 4)  # what fc6 sees
WIDTH: Final = 4096


class C3D(Network):
    """Called with rgb (B, 3, 16 n, H, W): n windows, a time step each."""

    title = "3D-ConvNet"

    def __init__(self, num_classes: int, *, dropout: float, bn_momentum: float) -> None:
        super().__init__(ClipNeed("rgb", WINDOW, WINDOW), dropout=dropout)
        layers: dict[str, nn.Module] = {}
        channels = CHANNELS["rgb"]
        for stage, widths in enumerate(STAGES, 1):
            for letter, width in zip("ab", widths, strict=False):
                name = f"conv{stage}{letter}" if len(widths) > 1 else f"conv{stage}"
                layers[name] = unit((channels, width), (3, 3, 3), momentum=bn_momentum)
                channels = width
            layers[f"pool{stage}"] = SameMaxPool((2, 2, 2), (2, 2, 2))
        self.convs = chain(layers)
        num_cells = GRID[0] * GRID[1] * GRID[2]
        self.fc6 = dense(channels * num_cells, WIDTH, momentum=bn_momentum)
        self.fc7 = dense(WIDTH, WIDTH, momentum=bn_momentum)
        self.last = linear(WIDTH, num_classes)

    def pool_features(self, *clips: Tensor) -> Tensor:
        """What fc7 finds in each window: (B, 4096, n)."""
        (rgb,) = clips
        grid = self.through(self.convs, windows(rgb, WINDOW))
        for axis, size in enumerate(GRID, 2):
            grid = fitted(grid, axis, size)
        found = self.fc7(self.dropout(self.fc6(grid.flatten(1))))
        return in_time(full_precision(found), len(rgb))

    def step_frames(self, *num_frames: int) -> list[tuple[int, int]]:
        """The sixteen frames of each window."""
        return [(at, at + WINDOW) for at in range(0, num_frames[0], WINDOW)]


def fitted(grid: Tensor, axis: int, size: int) -> Tensor:
    """Average, or repeat, the cells of an axis to `size` of them, as adaptive pooling does.

    Written out since ONNX has no adaptive pooling.
    """
    num = grid.shape[axis]
    if num == size:
        return grid
    ends = [(num * at // size, -(-num * (at + 1) // size)) for at in range(size)]
    parts = [grid.narrow(axis, start, end - start).mean(axis, keepdim=True) for start, end in ends]
    return torch.cat(parts, dim=axis)


def build(stream: str, num_classes: int, *, dropout: float, bn_momentum: float) -> Network:
    """The network of `rgb`, the only stream there is; see `kinetics_bench.archs.registry.build`."""
    assert stream == "rgb", stream
    return C3D(num_classes, dropout=dropout, bn_momentum=bn_momentum)
