"""The base class of all networks: clips in, logits per time step out.

Shapes: B clips, C channels, T time, H height, W width, F features, T' time steps, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import local
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kinetics_bench.archs.streams import CHANNELS

MIN_PX: Final = 32  # the total spatial stride of every network: its last feature map is then 1x1


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What an input of a network must be.

    Attributes:
        stream: `rgb` or `flow`.
        min_frames: the minimum number of frames or fields.
        multiple: the number of frames or fields must be a multiple of this.
        min_px: the minimum height and width, pixels.
    """

    stream: str
    min_frames: int = 1
    multiple: int = 1
    min_px: int = MIN_PX

    def check(self, title: str, clips: Tensor) -> None:
        """Raise ValueError, in one line, for clips that the network `title` does not accept."""
        if clips.ndim != 5:
            raise ValueError(f"{title} takes clips (B, C, T, H, W), got {tuple(clips.shape)}")
        channels, num_frames, height, width = clips.shape[1:]
        if channels != CHANNELS[self.stream]:
            given = {number: name for name, number in CHANNELS.items()}.get(channels)
            raise ValueError(
                f"this {title} takes {self.stream}, {CHANNELS[self.stream]} channels, "
                f"got {channels} channels" + (f" (is it {given}?)" if given else "")
            )
        if num_frames < self.min_frames or min(height, width) < self.min_px:
            raise ValueError(
                f"{title} needs at least {self.min_frames} frames of {self.min_px}x{self.min_px} "
                f"pixels, got {num_frames} of {width}x{height}"
            )
        if num_frames % self.multiple:
            raise ValueError(
                f"{title} needs a multiple of {self.multiple} {self.stream} frames, "
                f"got {num_frames}"
            )


class Network(nn.Module, ABC):
    """A network for action recognition.

    Logits and features are float32, under autocast too. If the whole network was cast, as by
    `build(...).bfloat16()`, they have the dtype of its weights.

    Attributes:
        title: its name in messages.
        input_specs: one per input, in the order of `forward`'s arguments.
        last_layers: dotted names of the layers whose outputs are the classes. For another number of
            classes replace each by one with other `out_channels` or `out_features`.
        receptive_steps: a time step depends on so many steps before and after it; None: on all
            steps before it. So in evaluation mode the features of a part of a clip equal those of
            the whole clip, except in so many steps at both ends of the part, if the part begins at
            a multiple of `temporal_strides` and its length leaves the same remainder as the clip's.
    """

    title: str
    last_layers: tuple[str, ...] = ("last",)
    receptive_steps: int | None = 0
    _checkpoints_activations = False

    def __init__(self, *input_specs: InputSpec, dropout: float) -> None:
        super().__init__()
        self.input_specs = input_specs
        self.dropout = nn.Dropout(dropout)

    @property
    def temporal_strides(self) -> tuple[int, ...]:
        """Of each input, frames or fields from one time step to the next."""
        return tuple(spec.multiple for spec in self.input_specs)

    def check(self, *clips: Tensor) -> None:
        """Raise ValueError, in one line, for inputs that do not match `input_specs`."""
        if len(clips) != len(self.input_specs):
            names = ", ".join(spec.stream for spec in self.input_specs)
            raise ValueError(f"{self.title} is called with {names}; got {len(clips)} clips")
        for spec, each in zip(self.input_specs, clips, strict=True):
            spec.check(self.title, each)

    def checkpoint_activations(self) -> None:
        """Keep only the activations between endpoints; the backward pass recomputes the others.

        Weights, gradients and running statistics do not change. A step takes less memory and a
        third more operations.
        """
        for net in self.modules():
            if isinstance(net, Network):
                net._checkpoints_activations = True

    def apply_modules(self, modules: Iterable[nn.Module], x: Tensor) -> Tensor:
        """Apply modules one after the other, each with its activations checkpointed if asked."""
        for module in modules:
            if self._checkpoints_activations and torch.is_grad_enabled():
                x = checkpoint(module, x, use_reentrant=False, context_fn=recompute_contexts)
            else:
                x = module(x)
        return x

    def features(self, *clips: Tensor) -> Tensor:
        """Pooled features, the input of the last layer: (B, F, T'), one column per time step.

        Args:
            *clips: rgb (B, 3, T, H, W), flow (B, 2, T, H, W), or both, as in `input_specs`; floats
                in [-1, 1].

        Raises:
            ValueError: the clips do not match `input_specs`.
        """
        self.check(*clips)
        return self.pool_features(*clips)

    def step_logits(self, *clips: Tensor) -> Tensor:
        """Logits of each time step: (B, K, T'). Arguments and errors as in `features`."""
        return self.head(self.features(*clips))

    def forward(self, *clips: Tensor) -> Tensor:
        """Logits averaged over time steps: (B, K). Arguments and errors as in `features`."""
        return self.clip_logits(self.step_logits(*clips))

    def head(self, features: Tensor) -> Tensor:
        """Dropout and the last layer: `features` (B, F, T') to logits of each step (B, K, T')."""
        with no_autocast(features):
            return self.classify(self.dropout(features))

    def clip_logits(self, step_logits: Tensor) -> Tensor:
        """The logits of clips, (B, K), from those of their time steps, (B, K, T')."""
        return step_logits.mean(dim=2)

    @abstractmethod
    def step_frames(self, *num_frames: int) -> list[tuple[int, int]]:
        """The frames [start, end) of each time step, T' pairs.

        They are numbers in the last input. Where there are two, this is the flow, which has the
        smaller stride. Times that stride, divided by 25 fps, they are seconds. The receptive field
        of a time step is larger than this.

        Args:
            *num_frames: the number of frames or fields of each input.
        """

    @abstractmethod
    def pool_features(self, *clips: Tensor) -> Tensor:
        """`features` of clips that were checked, in `full_precision`."""

    def classify(self, features: Tensor) -> Tensor:
        """Map features (B, F, T') to logits (B, K, T')."""
        logits: Tensor = self.get_submodule("last")(features.transpose(1, 2))
        return logits.transpose(1, 2)


class Head(nn.Module):
    """The last layer of a network as a network of its own, which takes its features.

    Its weights are those of the network, and so is its mode.
    """

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net

    def step_logits(self, features: Tensor) -> Tensor:
        """Logits of each time step: (B, F, T') to (B, K, T')."""
        return self.net.head(features)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of clips: (B, F, T') to (B, K)."""
        return self.net.clip_logits(self.step_logits(features))


class Joint(Network):
    """Late fusion of an rgb and a flow network: the sum of their logits, times `weight`."""

    def __init__(self, rgb: Network, flow: Network, *, weight: float) -> None:
        super().__init__(*rgb.input_specs, *flow.input_specs, dropout=0.0)
        self.title = rgb.title
        self.rgb = rgb
        self.flow = flow
        self.weight = weight
        self.receptive_steps = rgb.receptive_steps
        self.last_layers = tuple(
            f"{name}.{last}"
            for name, net in self.named_children()
            if isinstance(net, Network)
            for last in net.last_layers
        )

    @property
    def temporal_strides(self) -> tuple[int, ...]:
        """Frames and fields from one time step to the next."""
        return (*self.rgb.temporal_strides, *self.flow.temporal_strides)

    def pool_features(self, *clips: Tensor) -> Tensor:
        """Features of both networks, rgb first: (B, 2 F, T'), for the steps that both have."""
        rgb, flow = _same_length(self.rgb.features(clips[0]), self.flow.features(clips[1]))
        return torch.cat([rgb, flow], dim=1)

    def step_logits(self, *clips: Tensor) -> Tensor:
        """Logits of the time steps that both networks have: (B, K, T')."""
        self.check(*clips)
        rgb, flow = _same_length(self.rgb.step_logits(clips[0]), self.flow.step_logits(clips[1]))
        return self.weight * (rgb + flow)

    def forward(self, *clips: Tensor) -> Tensor:
        """Logits, of each network averaged over all its own time steps: (B, K)."""
        self.check(*clips)
        logits: Tensor = self.weight * (self.rgb(clips[0]) + self.flow(clips[1]))
        return logits

    def head(self, features: Tensor) -> Tensor:
        """The sum of both networks' logits, times `weight`: (B, 2 F, T') to (B, K, T')."""
        rgb, flow = features.chunk(2, dim=1)
        return self.weight * (self.rgb.head(rgb) + self.flow.head(flow))

    def step_frames(self, *num_frames: int) -> list[tuple[int, int]]:
        """The flow fields [start, end) of each time step."""
        num_steps = len(self.rgb.step_frames(num_frames[0]))
        return self.flow.step_frames(num_frames[1])[:num_steps]


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context without autocast on the device of `tensor`."""
    # The meta device, on which shapes are computed, has no autocast.
    return torch.autocast("cpu" if tensor.is_meta else tensor.device.type, enabled=False)


def full_precision(tensor: Tensor) -> Tensor:
    """A result of autocast as float32; any other tensor as it is."""
    # Rounded to bfloat16, logits of several classes would be equal.
    halves = (torch.bfloat16, torch.float16)
    is_cast = tensor.dtype in halves and torch.is_autocast_enabled(tensor.device.type)
    return tensor.float() if is_cast else tensor


_thread = local()


def is_recomputing() -> bool:
    """Whether this thread is recomputing checkpointed activations."""
    return getattr(_thread, "recomputes", False)


@contextmanager
def _recomputing() -> Iterator[None]:
    _thread.recomputes = True
    try:
        yield
    finally:
        _thread.recomputes = False


def recompute_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of the forward pass and of the recomputation, for torch's `checkpoint`."""
    return nullcontext(), _recomputing()


def split_windows(clips: Tensor, length: int) -> Tensor:
    """Windows on the batch axis: (B, C, n length, H, W) to (B n, C, length, H, W)."""
    batch, channels, num_frames, height, width = clips.shape
    parts = clips.reshape(batch, channels, num_frames // length, length, height, width)
    return parts.transpose(1, 2).flatten(0, 1)


def batch_to_time(features: Tensor, num_clips: int, num_steps: int) -> Tensor:
    """Move windows or frames from the batch axis back to time: (B n, F) to (B, F, n)."""
    # Both numbers are given: a size that torch infers ties an export to several clips.
    return features.reshape(num_clips, num_steps, features.shape[1]).transpose(1, 2)


def require_matching_lengths(
    title: str, rgb: Tensor, flow: Tensor, *, fields_per_frame: int
) -> None:
    """Raise ValueError unless there are `fields_per_frame` flow fields per rgb frame."""
    if flow.shape[2] != fields_per_frame * rgb.shape[2]:
        raise ValueError(
            f"{title} needs {fields_per_frame} flow fields per rgb frame, "
            f"got {flow.shape[2]} for {rgb.shape[2]}"
        )


def _same_length(*tensors: Tensor) -> list[Tensor]:
    num_steps = min(tensor.shape[2] for tensor in tensors)
    return [tensor[:, :, :num_steps] for tensor in tensors]
