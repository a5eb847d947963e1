"""What all networks are: clips in, logits a time step, one last layer.

Shapes: B clips, C channels, T time, H height, W width, F features, T' time steps, K classes.
"""

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

MIN_PX: Final = 32  # the total stride of every network here: one cell of its last grid


@dataclass(frozen=True, slots=True)
class ClipNeed:
    """What a network needs of one of the clips that it is called with.

    Attributes:
        stream: `rgb` or `flow`.
        min_frames: the fewest frames (or fields).
        multiple: their number must be a multiple of this.
        min_px: the least height and width.
    """

    stream: str
    min_frames: int = 1
    multiple: int = 1
    min_px: int = MIN_PX

    def check(self, title: str, clips: Tensor) -> None:
        """Raise ValueError, in one line, for clips that the network `title` cannot take."""
        if clips.ndim != 5:
            raise ValueError(f"{title} takes clips (B, C, T, H, W), got {tuple(clips.shape)}")
        channels, num_frames, height, width = clips.shape[1:]
        if channels != CHANNELS[self.stream]:
            given = {number: name for name, number in CHANNELS.items()}.get(channels)
            what = f"{channels} channels" + (f": {given} given to it?" if given else "")
            raise ValueError(
                f"{title} is a net of {self.stream} here, with {CHANNELS[self.stream]} channels, "
                f"and got {what}"
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
    """A network for action recognition. Logits and features are float32, under autocast too.

    Of a network cast as a whole, `build(...).bfloat16()`, they are what its weights are.

    Attributes:
        title: its name in messages.
        needs: what it needs of each clip that it is called with, in order.
        last_layers: dotted names of the layers that end in the classes: replace these, each with
            one of other `out_channels` or `out_features`, for another number of classes.
        receptive_steps: how many steps before and after a time step, with the frames between them,
            decide about its value; None: all the steps before it. In a test, features of a
            piece of a clip are those of the whole clip but for so many steps at either cut, if
            pieces begin at `temporal_strides` and their length leaves the same rest.
    """

    title: str
    last_layers: tuple[str, ...] = ("last",)
    receptive_steps: int | None = 0
    _recomputes = False

    def __init__(self, *needs: ClipNeed, dropout: float) -> None:
        super().__init__()
        self.needs = needs
        self.dropout = nn.Dropout(dropout)

    @property
    def temporal_strides(self) -> tuple[int, ...]:
        """Frames of each clip from one time step to the next."""
        return tuple(need.multiple for need in self.needs)

    def check(self, *clips: Tensor) -> None:
        """Raise ValueError, in one line that names the need, for clips that do not fit."""
        if len(clips) != len(self.needs):
            names = ", ".join(need.stream for need in self.needs)
            raise ValueError(f"{self.title} is called with {names}; got {len(clips)} clips")
        for need, each in zip(self.needs, clips, strict=True):
            need.check(self.title, each)

    def checkpoint_activations(self) -> None:
        """Keep less of a forward pass: the backward pass then computes the rest once more.

        What is kept is what goes from one endpoint to the next. Weights, gradients and moving
        statistics come out the same; memory falls, and a step has a third more operations.
        """
        for net in self.modules():
            if isinstance(net, Network):
                net._recomputes = True

    def through(self, modules: Iterable[nn.Module], grid: Tensor) -> Tensor:
        """What modules, one after the other, make of `grid`."""
        for module in modules:
            if self._recomputes and torch.is_grad_enabled():
                grid = checkpoint(module, grid, use_reentrant=False, context_fn=recompute_contexts)
            else:
                grid = module(grid)
        return grid

    def features(self, *clips: Tensor) -> Tensor:
        """What the last layer sees, pooled: (B, F, T'), one column a time step.

        Args:
            *clips: rgb (B, 3, T, H, W), flow (B, 2, T, H, W), or both, as `needs` says; in [-1, 1].

        Raises:
            ValueError: the clips are not what `needs` says.
        """
        self.check(*clips)
        return self.pool_features(*clips)

    def step_logits(self, *clips: Tensor) -> Tensor:
        """Logits of each time step: (B, K, T'). Arguments and errors as `features`."""
        features = self.features(*clips)
        with no_autocast(features):
            return self.classify(self.dropout(features))

    def forward(self, *clips: Tensor) -> Tensor:
        """Logits averaged over the time steps: (B, K). Arguments and errors as `features`."""
        return self.step_logits(*clips).mean(dim=2)

    @abstractmethod
    def step_frames(self, *num_frames: int) -> list[tuple[int, int]]:
        """The frames [start, end) that each time step stands for: T' of them.

        They count the frames of the last clip given: where there are both, the flow's fields, which
        lie densest. Divided by 25 fps, times the clip's stride, they are seconds. What a step's
        value depends on reaches further than that.

        Args:
            *num_frames: frames of each clip that `features` is called with.
        """

    @abstractmethod
    def pool_features(self, *clips: Tensor) -> Tensor:
        """`features` of clips that were checked, in `full_precision`."""

    def classify(self, features: Tensor) -> Tensor:
        """Map features (B, F, T') to logits (B, K, T')."""
        logits: Tensor = self.get_submodule("last")(features.transpose(1, 2))
        return logits.transpose(1, 2)


class Joint(Network):
    """A network of rgb and one of flow; their logits are added, each with the weight `share`."""

    def __init__(self, rgb: Network, flow: Network, *, share: float) -> None:
        super().__init__(*rgb.needs, *flow.needs, dropout=0.0)
        self.title = rgb.title
        self.rgb = rgb
        self.flow = flow
        self.share = share
        self.receptive_steps = rgb.receptive_steps
        self.last_layers = tuple(
            f"{name}.{last}"
            for name, net in self.named_children()
            if isinstance(net, Network)
            for last in net.last_layers
        )

    @property
    def temporal_strides(self) -> tuple[int, ...]:
        """Frames of either clip from one time step to the next."""
        return (*self.rgb.temporal_strides, *self.flow.temporal_strides)

    def pool_features(self, *clips: Tensor) -> Tensor:
        """Both networks' features, rgb's first: (B, 2 F, T'), for the steps that both have."""
        return torch.cat(_trimmed(self.rgb.features(clips[0]), self.flow.features(clips[1])), dim=1)

    def step_logits(self, *clips: Tensor) -> Tensor:
        """Logits of each time step that both networks have: (B, K, T')."""
        self.check(*clips)
        rgb, flow = _trimmed(self.rgb.step_logits(clips[0]), self.flow.step_logits(clips[1]))
        return self.share * (rgb + flow)

    def forward(self, *clips: Tensor) -> Tensor:
        """Logits, each network's averaged over all its own steps: (B, K)."""
        self.check(*clips)
        logits: Tensor = self.share * (self.rgb(clips[0]) + self.flow(clips[1]))
        return logits

    def step_frames(self, *num_frames: int) -> list[tuple[int, int]]:
        """The flow's fields [start, end) that each step stands for."""
        num_steps = len(self.rgb.step_frames(num_frames[0]))
        return self.flow.step_frames(num_frames[1])[:num_steps]


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which operations compute in the precision of what they are given."""
    # On the meta device, where shapes are counted and nothing is computed, there is no autocast.
    return torch.autocast("cpu" if tensor.is_meta else tensor.device.type, enabled=False)


def full_precision(tensor: Tensor) -> Tensor:
    """What autocast computed, as float32; of a network cast to another precision, as it is."""
    # Pooled values and logits stay out of bfloat16: its logits would tie.
    halves = (torch.bfloat16, torch.float16)
    is_cast = tensor.dtype in halves and torch.is_autocast_enabled(tensor.device.type)
    return tensor.float() if is_cast else tensor


_forward = local()


def is_recomputing() -> bool:
    """Whether this thread computes a second time what was not kept of a forward pass."""
    return getattr(_forward, "is_second", False)


@contextmanager
def _second() -> Iterator[None]:
    _forward.is_second = True
    try:
        yield
    finally:
        _forward.is_second = False


def recompute_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What the first and the second time run in."""
    return nullcontext(), _second()


def windows(clips: Tensor, length: int) -> Tensor:
    """Cut (B, C, n length, H, W) into windows of `length` frames: (B n, C, length, H, W)."""
    batch, channels, num_frames, height, width = clips.shape
    parts = clips.reshape(batch, channels, num_frames // length, length, height, width)
    return parts.transpose(1, 2).flatten(0, 1)


def in_time(values: Tensor, batch: int) -> Tensor:
    """Values of `windows`, or of single frames, side by side again: (B n, F) to (B, F, n)."""
    return values.reshape(batch, -1, values.shape[1]).transpose(1, 2)


def refuse_unequal(title: str, rgb: Tensor, flow: Tensor, *, fields_per_frame: int) -> None:
    """Raise ValueError where there are not so many flow fields for each rgb frame."""
    if flow.shape[2] != fields_per_frame * rgb.shape[2]:
        raise ValueError(
            f"{title} needs {fields_per_frame} flow fields for each rgb frame, "
            f"got {flow.shape[2]} for {rgb.shape[2]}"
        )


def _trimmed(*values: Tensor) -> list[Tensor]:
    num_steps = min(value.shape[2] for value in values)
    return [value[:, :, :num_steps] for value in values]
