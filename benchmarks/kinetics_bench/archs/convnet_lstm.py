"""ConvNet+LSTM: Inception-v1 on every fifth frame, then a recurrent layer with batch norm.

Source: Carreira and Zisserman, arXiv 1705.07750 v3, section 2.1, with the LSTM of Cooijmans et al.,
arXiv 1603.09025: 512 units on the 1024 values after the last average pool, a fully connected layer
on each state. Training takes the loss at all steps (25, which is 5 s); a test takes the logits of
the last of 50 (10 s).

Where the paper is silent, arXiv 1603.09025 is followed: batch norm of what comes from the input and
of what comes from the state, each with its own scale, which begins at 0.1, and without an offset,
which the gates' bias is; batch norm with scale and offset of the cell on its way out; statistics of
their own for each time step, since the first states differ from the later ones (the very first is
all zeros); steps beyond the 25 of training use those of the last; orthogonal first weights. Ours
are the forget gate's bias of 1, as is usual so that gradients last at first; epsilon 1e-5, as the
first states are small against 1e-3; dropout on what the last layer sees, none in the recurrence.

Shapes: B clips, T frames, which are the time steps, F features, N units, K classes.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinetics_bench.archs.inception import NUM_FEATURES, trunk
from kinetics_bench.archs.layers import linear, require_multiple_samples
from kinetics_bench.archs.network import ClipNeed, Network, full_precision, in_time, no_autocast
from kinetics_bench.archs.streams import CHANNELS
from kinetics_bench.archs.two_stream import images

UNITS: Final = 512
TRAIN_STEPS: Final = 25
AT_ONCE: Final = 256  # frames, in a test
FIRST_SCALE: Final = 0.1
EPSILON: Final = 1e-5


class StepBatchNorm(nn.Module):
    """Batch norm of (B, F) with moving statistics for each of the first `num_steps` time steps.

    Later steps use the last one's. A training on fewer steps leaves none without statistics: those
    that it does not reach take its last one's (`settle`).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, *, num_steps: int, momentum: float, offset: bool) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.momentum = momentum
        self.scale = nn.Parameter(torch.full((num_features,), FIRST_SCALE))
        self.bias = nn.Parameter(torch.zeros(num_features)) if offset else None
        self.register_buffer("running_mean", torch.zeros(num_steps, num_features))
        self.register_buffer("running_var", torch.ones(num_steps, num_features))

    def forward(self, values: Tensor, step: int) -> Tensor:
        """Normalise the values (B, F) of a time step, counted from 0.

        Raises:
            ValueError: in training, a single clip: its variance says nothing.
        """
        at = min(step, self.num_steps - 1)
        mean, var = self.running_mean[at], self.running_var[at]
        if not self.training:
            return functional.batch_norm(values, mean, var, self.scale, self.bias, eps=EPSILON)
        require_multiple_samples(values)
        # Not left to batch_norm, which keeps the rows for the backward pass, although it has no use
        # for them, and finds their tensor changed by the next step.
        for statistics, new in zip((var, mean), torch.var_mean(values.detach(), 0), strict=True):
            statistics.lerp_(new, self.momentum)
        return functional.batch_norm(
            values, None, None, self.scale, self.bias, training=True, eps=EPSILON
        )

    def settle(self, num_steps: int) -> None:
        """Give the steps from `num_steps` on the statistics of the one before."""
        if num_steps < self.num_steps:
            for statistics in (self.running_mean, self.running_var):
                statistics[num_steps:] = statistics[num_steps - 1]


class BatchNormLSTM(nn.Module):
    """One recurrent layer of Cooijmans et al., from a state of zeros."""

    def __init__(self, num_features: int, num_units: int, *, momentum: float) -> None:
        super().__init__()
        gates = 4 * num_units

        def norm(width: int, *, offset: bool) -> StepBatchNorm:
            return StepBatchNorm(width, num_steps=TRAIN_STEPS, momentum=momentum, offset=offset)

        self.input_weight = nn.Parameter(torch.empty(gates, num_features))
        self.state_weight = nn.Parameter(torch.empty(gates, num_units))
        self.bias = nn.Parameter(torch.zeros(gates))  # forget, input, output gate, candidate
        self.input_norm = norm(gates, offset=False)
        self.state_norm = norm(gates, offset=False)
        self.cell_norm = norm(num_units, offset=True)
        self.num_units = num_units
        with torch.no_grad():
            for weight in (self.input_weight, self.state_weight):
                for gate in weight.chunk(4):
                    nn.init.orthogonal_(gate)
            self.bias[:num_units] = 1.0

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, F, T) to the states (B, N, T)."""
        inputs = functional.linear(features.transpose(1, 2), self.input_weight)
        state = cell = features.new_zeros(len(features), self.num_units)
        states = []
        for step in range(features.shape[2]):
            gates = (
                self.input_norm(inputs[:, step], step)
                + self.state_norm(functional.linear(state, self.state_weight), step)
                + self.bias
            )
            forget, enter, leave, candidate = gates.chunk(4, dim=1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
            state = torch.sigmoid(leave) * torch.tanh(self.cell_norm(cell, step))
            states.append(state)
        if self.training:
            for norm in (self.input_norm, self.state_norm, self.cell_norm):
                norm.settle(len(states))
        return torch.stack(states, dim=2)


class ConvNetLSTM(Network):
    """Called with rgb (B, 3, T, H, W), every fifth frame of a clip: a time step each."""

    title = "ConvNet+LSTM"
    receptive_steps = None

    def __init__(self, num_classes: int, *, dropout: float, bn_momentum: float) -> None:
        super().__init__(ClipNeed("rgb"), dropout=dropout)
        self.convnet = trunk(CHANNELS["rgb"], dims=2, momentum=bn_momentum)
        self.lstm = BatchNormLSTM(NUM_FEATURES, UNITS, momentum=bn_momentum)
        self.last = linear(UNITS, num_classes)

    def pool_features(self, *clips: Tensor) -> Tensor:
        """The recurrent layer's state after each frame: (B, 512, T)."""
        (rgb,) = clips
        frames = images(rgb)
        # A test sees each frame alone: a long video need not go through the convolutions at once.
        parts = torch.split(frames, len(frames) if self.training else AT_ONCE)
        grids = [full_precision(self.through(self.convnet, part)) for part in parts]
        means = torch.cat([grid.mean(dim=(2, 3)) for grid in grids])
        # In bfloat16 the cell would forget: it adds small values to itself, step after step.
        with no_autocast(means):
            states: Tensor = self.lstm(in_time(means, len(rgb)))
        return states

    def forward(self, *clips: Tensor) -> Tensor:
        """Logits of the last step, which has seen all others: (B, K)."""
        return self.step_logits(*clips)[:, :, -1]

    def step_frames(self, *num_frames: int) -> list[tuple[int, int]]:
        """The frame of each step; its state knows those before."""
        return [(at, at + 1) for at in range(num_frames[0])]


def build(stream: str, num_classes: int, *, dropout: float, bn_momentum: float) -> Network:
    """The network of `rgb`, the only stream there is; see `kinetics_bench.archs.registry.build`."""
    assert stream == "rgb", stream
    return ConvNetLSTM(num_classes, dropout=dropout, bn_momentum=bn_momentum)
