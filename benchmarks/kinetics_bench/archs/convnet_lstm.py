"""ConvNet+LSTM: Inception-v1 on every fifth frame, then a recurrent layer with batch norm.

Source: Carreira and Zisserman, arXiv 1705.07750 v3, section 2.1, with the LSTM of Cooijmans et al.,
arXiv 1603.09025: 512 units on the 1024 features after the last average pool, a fully connected
layer on each state. In training the loss is taken at all time steps (25, which is 5 s). In a test
the logits of the last time step are used (of 50, which is 10 s).

What the paper does not give is as in arXiv 1603.09025: batch norm of the input's and of the state's
contribution to the gates, each with its own scale, initially 0.1, and without an offset, since the
gates have a bias; batch norm with scale and offset of the cell before the output gate; separate
statistics for each time step, since the first states differ from the later ones; the statistics of
the last of the 25 training steps for all steps after it; orthogonal initial weights; a forget gate
bias of 1; epsilon 1e-5. Our choices: the initial state and cell are zero, where theirs are learned
(1,024 parameters more); dropout before the last layer, none in the recurrence.

Shapes: B clips, T frames, which are the time steps, F features, N units, K classes.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinetics_bench.archs.batch_norm import (
    BatchNorm,
    Moments,
    count_values,
    normalise,
    require_multiple_samples,
)
from kinetics_bench.archs.inception import NUM_FEATURES, backbone
from kinetics_bench.archs.layers import is_symbolic, linear
from kinetics_bench.archs.network import (
    InputSpec,
    Network,
    batch_to_time,
    full_precision,
    no_autocast,
)
from kinetics_bench.archs.streams import CHANNELS
from kinetics_bench.archs.two_stream import stack_frames

UNITS: Final = 512
TRAIN_STEPS: Final = 25
MAX_FRAMES_AT_ONCE: Final = 256  # through the ConvNet, in evaluation mode
INITIAL_SCALE: Final = 0.1
EPSILON: Final = 1e-5


class StepBatchNorm(BatchNorm):
    """Batch norm of (B, F) with separate running statistics for the first `num_steps` time steps.

    Later time steps use those of the last. A training on fewer steps copies the statistics of its
    last step to the remaining ones (`fill_statistics`).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, *, num_steps: int, momentum: float, offset: bool) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.momentum = momentum
        self.scale = nn.Parameter(torch.full((num_features,), INITIAL_SCALE))
        self.bias = nn.Parameter(torch.zeros(num_features)) if offset else None
        self.register_buffer("running_mean", torch.zeros(num_steps, num_features))
        self.register_buffer("running_var", torch.ones(num_steps, num_features))

    def forward(self, values: Tensor, step: int) -> Tensor:
        """Normalise the values (B, F) of time step `step`, counted from 0.

        Raises:
            BatchNormSingleSampleError: in training, B is 1, in all processes that share statistics.
        """
        at = min(step, self.num_steps - 1)
        mean, var = self.running_mean[at], self.running_var[at]
        if not self.training:
            return functional.batch_norm(values, mean, var, self.scale, self.bias, eps=EPSILON)
        if self.processes is not None:
            moments = Moments(values, self.processes)
            if not moments.is_empty:
                mean.lerp_(moments.mean, self.momentum)
                var.lerp_(moments.var, self.momentum)
            weights = (self.scale, self.bias)
            return normalise(values, moments, weights, EPSILON)
        require_multiple_samples(count_values(values))
        # batch_norm would save the row of the running statistics for the backward pass, and raise
        # there since the next time step changes the tensor in place. So they are updated here.
        found = torch.var_mean(values.detach(), 0, correction=0)
        for statistics, new in zip((var, mean), found, strict=True):
            statistics.lerp_(new, self.momentum)
        return functional.batch_norm(
            values, None, None, self.scale, self.bias, training=True, eps=EPSILON
        )

    def fill_statistics(self, num_steps: int) -> None:
        """Copy the statistics of the last of `num_steps` time steps to all later ones."""
        if num_steps < self.num_steps:
            for statistics in (self.running_mean, self.running_var):
                statistics[num_steps:] = statistics[num_steps - 1]


class BatchNormLSTM(nn.Module):
    """The batch-normalised LSTM of Cooijmans et al., one layer; the initial state is zero."""

    def __init__(self, num_features: int, num_units: int, *, momentum: float) -> None:
        super().__init__()
        gates = 4 * num_units

        def norm(width: int, *, offset: bool) -> StepBatchNorm:
            return StepBatchNorm(width, num_steps=TRAIN_STEPS, momentum=momentum, offset=offset)

        self.input_weight = nn.Parameter(torch.empty(gates, num_features))
        self.state_weight = nn.Parameter(torch.empty(gates, num_units))
        self.bias = nn.Parameter(torch.zeros(gates))  # forget, input, output gate; candidate
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
        state = cell = features.new_zeros(features.shape[0], self.num_units)
        states = []
        for step in range(features.shape[2]):
            gates = (
                self.input_norm(inputs[:, step], step)
                + self.state_norm(functional.linear(state, self.state_weight), step)
                + self.bias
            )
            forget, input_, output, candidate = gates.chunk(4, dim=1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(input_) * torch.tanh(candidate)
            state = torch.sigmoid(output) * torch.tanh(self.cell_norm(cell, step))
            states.append(state)
        if self.training:
            for norm in (self.input_norm, self.state_norm, self.cell_norm):
                norm.fill_statistics(len(states))
        return torch.stack(states, dim=2)


class ConvNetLSTM(Network):
    """Takes rgb (B, 3, T, H, W), every fifth frame of a clip: one time step per frame."""

    title = "ConvNet+LSTM"
    receptive_steps = None

    def __init__(self, num_classes: int, *, dropout: float, bn_momentum: float) -> None:
        super().__init__(InputSpec("rgb"), dropout=dropout)
        self.convnet = backbone(CHANNELS["rgb"], dims=2, momentum=bn_momentum)
        self.lstm = BatchNormLSTM(NUM_FEATURES, UNITS, momentum=bn_momentum)
        self.last = linear(UNITS, num_classes)

    def pool_features(self, *clips: Tensor) -> Tensor:
        """The LSTM's state after each frame: (B, 512, T)."""
        (rgb,) = clips
        frames = stack_frames(rgb)
        # In evaluation mode frames do not affect each other in the ConvNet: a long video goes
        # through it in parts, which needs less memory.
        is_whole = self.training or is_symbolic(frames.shape[:1])
        parts = [frames] if is_whole else torch.split(frames, MAX_FRAMES_AT_ONCE)
        maps = [full_precision(self.apply_modules(self.convnet, part)) for part in parts]
        means = torch.cat([feature_map.mean(dim=(2, 3)) for feature_map in maps])
        # The cell sums small values over many steps: bfloat16 would round them away.
        with no_autocast(means):
            states: Tensor = self.lstm(batch_to_time(means, rgb.shape[0], rgb.shape[2]))
        return states

    def clip_logits(self, step_logits: Tensor) -> Tensor:
        """The logits of the last time step, whose state depends on all frames: (B, K)."""
        return step_logits[:, :, -1]

    def step_frames(self, *num_frames: int) -> list[tuple[int, int]]:
        """The frame [start, end) of each time step. Its state depends on all frames before too."""
        return [(at, at + 1) for at in range(num_frames[0])]


def build(stream: str, num_classes: int, *, dropout: float, bn_momentum: float) -> Network:
    """The network of `rgb`, its only stream. Arguments: see `kinetics_bench.archs.build`."""
    assert stream == "rgb", stream
    return ConvNetLSTM(num_classes, dropout=dropout, bn_momentum=bn_momentum)
