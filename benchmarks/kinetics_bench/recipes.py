"""Training recipes: every parameter that changes a weight, except the seed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from kinetics_bench.archs.registry import ARCHS, CHANNELS, Sampling
from kinetics_tools.core import schema
from kinetics_tools.core.errors import EvaluationError, UnknownNameError, lookup, unknown_name
from kinetics_tools.core.files import digest

__all__ = ["RECIPES", "MultiStep", "OneCycle", "Recipe", "recipe_for"]

# Names that files and hashes keep, where ours have changed since: checkpoints stay readable, and
# a recipe keeps its hash.
_STORED: Final[Mapping[str, str]] = {"micro_batch_size": "pass_size", "milestones": "stairs"}
MAX_VIEW_PX: Final = 2**28  # of one stream of one clip: 5,000 frames of 224 x 224
_UNHASHED: Final = frozenset({"name", "source", "protocol"})  # they change no weight


class Schedule(ABC):
    """Learning rates and the length of a training."""

    __slots__ = ()

    @abstractmethod
    def num_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole training."""

    @abstractmethod
    def lr(self, step: int, num_steps: int) -> float:
        """Learning rate of step `step` (from 0) of a training of `num_steps`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneCycle(Schedule):
    """Cosine warm-up to `peak_lr`, then cosine decay, once per training.

    It is torch's OneCycleLR with its defaults and `cycle_momentum=False`: the learning rate begins
    at `peak_lr` / 25 and ends at `peak_lr` / 250,000.

    Attributes:
        epochs: length of the training.
        peak_lr: the highest learning rate.
        warmup: share of all steps before it, from 0 to 1.
    """

    epochs: schema.Positive
    peak_lr: schema.Amount
    warmup: schema.Share = 0.3

    def num_steps(self, steps_per_epoch: int) -> int:
        """As `epochs` says."""
        return self.epochs * steps_per_epoch

    def lr(self, step: int, num_steps: int) -> float:
        """On the cosine."""
        top = self.warmup * num_steps - 1
        first, last = self.peak_lr / 25, self.peak_lr / 250_000
        if step < top:
            return _cosine(first, self.peak_lr, step / top)
        return _cosine(self.peak_lr, last, (step - top) / max(num_steps - 1 - top, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiStep(Schedule):
    """Step decay: the learning rate is constant between milestones, as in torch's MultiStepLR.

    MultiStepLR multiplies by one factor at each milestone. Here each milestone comes with the rate
    before it, so that a rate may rise again, and the last milestone ends the training.

    Attributes:
        milestones: (optimizer step, learning rate until that step), in order.
    """

    milestones: tuple[tuple[schema.Count, schema.Amount], ...]

    def num_steps(self, steps_per_epoch: int) -> int:  # noqa: ARG002 - milestones are steps
        """The last milestone."""
        return self.milestones[-1][0]

    def lr(self, step: int, num_steps: int) -> float:  # noqa: ARG002 - milestones are steps
        """Constant until the next milestone."""
        return next(lr for milestone, lr in self.milestones if step < milestone)


def _ours(values: Mapping[str, Any]) -> dict[str, Any]:
    """Stored values under the names that we use now."""
    ours = {stored: name for name, stored in _STORED.items()}
    return {ours.get(name, name): value for name, value in values.items()}


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a network is trained.

    Attributes:
        name: as given on the command line, with `+batch-N`, `+epochs-N` where these were given.
        source: the paper, code or measurement that the values come from.
        protocol: the default evaluation protocol, a name in PROTOCOLS. It changes no weight.
        sampling: stream -> number and stride of the frames or fields of a training view, for each
            stream of the network's input.
        short_side: the shorter side of the frame after resizing, pixels.
        crop_px: height and width of the random crop, pixels.
        flip: probability of a horizontal flip.
        batch_size: clips per optimizer step, over all processes.
        micro_batch_size: clips per forward pass. Batch norm's statistics come from one micro-batch.
            A larger batch is several micro-batches, whose gradients are accumulated on one process
            or summed over several.
        schedule: learning rates and length of the training.
        optimizer: `sgd` (momentum 0.9) or `adamw`.
        weight_decay: of kernels and matrices; batch norm and biases have none.
        bn_momentum: weight of a new batch in batch norm's running statistics.
        dropout: probability that a feature before the last layer is dropped.
        label_smoothing: as in torch's cross_entropy, from 0 to 1.
    """

    name: str
    source: str
    protocol: str
    sampling: Mapping[str, Sampling]
    short_side: schema.Pixels
    crop_px: schema.Pixels
    flip: schema.Share
    batch_size: schema.Positive
    micro_batch_size: schema.Positive
    schedule: Schedule
    optimizer: Literal["sgd", "adamw"]
    weight_decay: schema.Amount
    bn_momentum: schema.Share
    dropout: schema.Share = 0.5
    label_smoothing: schema.Share = 0.0

    @property
    def streams(self) -> tuple[str, ...]:
        """The network's inputs, in order: `rgb`, `flow` or both."""
        return tuple(stream for stream in CHANNELS if stream in self.sampling)

    @property
    def hash(self) -> str:
        """SHA-256 of what changes a weight, hex: recipes of equal hash train the same network."""
        values = self._stored()
        return digest({key: value for key, value in values.items() if key not in _UNHASHED})

    def as_json(self) -> dict[str, Any]:
        """The recipe and its `hash` as JSON values, under the names that checkpoints keep."""
        return self._stored() | {"hash": self.hash}

    def _stored(self) -> dict[str, Any]:
        return asdict(
            self, dict_factory=lambda items: {_STORED.get(name, name): v for name, v in items}
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe that `as_json` wrote.

        Raises:
            ValueError: a field is missing, or is not what it may be.
        """
        fields = _ours(schema.parse(values, dict[str, Any]))
        schedule = _ours(schema.parse(fields.get("schedule"), dict[str, Any]))
        kind = MultiStep if "milestones" in schedule else OneCycle
        recipe = schema.parse(fields | {"schedule": schema.parse(schedule, kind)}, cls)
        if isinstance(recipe.schedule, MultiStep):
            steps = [step for step, _ in recipe.schedule.milestones]
            if not steps or steps != sorted(steps):
                raise ValueError("the milestones are not in order")
        if not recipe.sampling.keys() <= CHANNELS.keys():
            raise ValueError("the sampling is of unknown streams")
        frames = max((each.num for each in recipe.sampling.values()), default=0)
        if recipe.crop_px > recipe.short_side or frames * recipe.crop_px**2 > MAX_VIEW_PX:
            raise ValueError(f"a view of {frames} frames, {recipe.crop_px} px of them")
        return recipe

    def with_batch_size(self, batch_size: int | None) -> Recipe:
        """The recipe with another batch size, which its name then says; None changes nothing."""
        if batch_size in (None, self.batch_size):
            return self
        assert batch_size is not None
        return replace(
            self,
            name=f"{self.name}+batch-{batch_size}",
            batch_size=batch_size,
            micro_batch_size=min(self.micro_batch_size, batch_size),
        )

    def with_epochs(self, epochs: int | None) -> Recipe:
        """The recipe with another number of epochs, which its name then says; None changes nothing.

        Raises:
            EvaluationError: the length of this recipe is counted in steps.
        """
        if epochs is None:
            return self
        if not isinstance(self.schedule, OneCycle):
            raise EvaluationError(
                f"--epochs {epochs} is for recipes that count epochs (small, sample); recipe "
                f"{self.name} counts steps: leave it out, or take --recipe small"
            )
        if epochs == self.schedule.epochs:
            return self
        schedule = replace(self.schedule, epochs=epochs)
        return replace(self, name=f"{self.name}+epochs-{epochs}", schedule=schedule)


def _per_network(
    arch: str, base: Recipe, sampling: Mapping[str, Sampling] | None = None
) -> dict[str, Recipe]:
    """`base` for each network of an architecture; the default `sampling` is that of Table 1."""
    known = ARCHS[arch]
    samplings = sampling or known.train
    return {
        stream: replace(base, sampling={name: samplings[name] for name in known.clips_of(stream)})
        for stream in known.networks
    }


_PAPER = Recipe(
    name="paper",
    source="arXiv 1705.07750 v3, section 2.5; schedule and batch: README of deepmind/kinetics-i3d",
    protocol="paper",
    sampling={},
    short_side=256,
    crop_px=224,
    flip=0.5,
    batch_size=384,  # 64 replicas with 6 clips each
    micro_batch_size=6,
    schedule=MultiStep(milestones=((97_000, 1e-1), (108_000, 1e-2), (115_000, 1e-3))),
    optimizer="sgd",
    weight_decay=1e-7,
    bn_momentum=0.001,
)
_PAPER_FLOW = replace(
    _PAPER,
    schedule=MultiStep(
        milestones=(
            (97_000, 1e-1),
            (104_500, 1e-2),
            (115_000, 1e-3),
            (140_000, 1e-1),
            (150_000, 1e-2),
            (155_000, 1e-3),
        )
    ),
)
# For the baselines the paper gives: SGD with momentum 0.9 for 110,000 steps, the rate divided by 10
# when the validation loss saturates; 32 GPUs, and 64 with 15 clips each for the 3D-ConvNet. For the
# others it does not give a batch size. The rest is our choice: rates and milestones in proportion
# to those released for I3D's rgb stream (97, 108 and 115 thousand), I3D's weight decay and dropout,
# and the clips per GPU given below.
_BASELINE = replace(
    _PAPER,
    source="arXiv 1705.07750 v3, section 2.5: SGD, 110k steps, 32 GPUs; not published and chosen: "
    "batch (8 clips per GPU), rates and their steps in I3D's proportion, weight decay and dropout "
    "of I3D",
    schedule=MultiStep(milestones=((93_000, 1e-1), (103_000, 1e-2), (110_000, 1e-3))),
    batch_size=32 * 8,
    micro_batch_size=8,
)
_TWO_STREAM = replace(
    _BASELINE,
    source=_BASELINE.source.replace("8 clips", "32 clips, as a view is one image per stream"),
    batch_size=32 * 32,
    micro_batch_size=32,
)
_PAPER_C3D = replace(
    _BASELINE,
    source="arXiv 1705.07750 v3, sections 2.2 and 2.5: SGD, 110k steps, 112 px, 64 GPUs of 15 "
    "clips; not published and chosen: frames of 128 px (as 256 to 224), rates and their steps in "
    "I3D's proportion, weight decay and dropout of I3D",
    short_side=128,
    crop_px=112,
    batch_size=64 * 15,
    micro_batch_size=15,
)
_SMALL = Recipe(
    name="small",
    source="measured on Weizmann, 10 classes, 60 training clips, two cores",
    protocol="whole",
    sampling={},
    short_side=128,
    crop_px=112,
    flip=0.5,
    batch_size=6,
    micro_batch_size=6,
    schedule=OneCycle(epochs=40, peak_lr=1e-3),
    optimizer="adamw",
    weight_decay=0.01,
    bn_momentum=0.1,
)
_SMALL_BASELINE = replace(
    _SMALL, source="that of i3d, which was measured on Weizmann; frames as in the paper's Table 1"
)
# Some of their batch norms see one value per clip and channel, so micro-batches are larger.
_SMALL_DENSE = replace(
    _SMALL_BASELINE,
    source=_SMALL_BASELINE.source + "; twice the clips per batch, for batch norm",
    batch_size=12,
    micro_batch_size=12,
)
_SMALL_LSTM = replace(
    _SMALL_DENSE,
    source="that of i3d, which was measured on Weizmann; twice the clips per batch, for batch "
    "norm; 12 frames of 1.4 s",
)
_SAMPLE_FLOW = replace(
    _SMALL,
    name="sample",
    source="measured on the embedded sample data set, six classes of motion, two cores",
    sampling={"flow": Sampling(12, 2)},
    short_side=64,
    crop_px=56,
    flip=0.0,  # a flip would exchange the classes left and right
    schedule=OneCycle(epochs=20, peak_lr=1e-3),
)
# With so few clips the rgb network overfits to textures. Label smoothing keeps its logits small, so
# that they do not dominate those of flow when both are added.
_SAMPLE_RGB = replace(_SAMPLE_FLOW, sampling={"rgb": Sampling(16)}, label_smoothing=0.2)

# Name -> architecture -> stream.
RECIPES: Final[Mapping[str, Mapping[str, Mapping[str, Recipe]]]] = {
    "paper": {
        "i3d": {
            "rgb": _per_network("i3d", _PAPER)["rgb"],
            "flow": _per_network("i3d", _PAPER_FLOW)["flow"],
        },
        "convnet-lstm": _per_network("convnet-lstm", _BASELINE),
        "c3d": _per_network("c3d", _PAPER_C3D),
        "two-stream": _per_network("two-stream", _TWO_STREAM),
        "3d-fused": _per_network("3d-fused", _BASELINE),
    },
    "small": {
        "i3d": _per_network("i3d", _SMALL, {"rgb": Sampling(16, 2), "flow": Sampling(16, 2)}),
        "convnet-lstm": _per_network("convnet-lstm", _SMALL_LSTM, {"rgb": Sampling(12, 3)}),
        "c3d": _per_network("c3d", _SMALL_DENSE),
        "two-stream": _per_network("two-stream", _SMALL_BASELINE),
        "3d-fused": _per_network("3d-fused", _SMALL_BASELINE),
    },
    "sample": {"i3d": {"rgb": _SAMPLE_RGB, "flow": _SAMPLE_FLOW}},
}


def recipe_for(name: str, arch: str, stream: str) -> Recipe:
    """The recipe of one network.

    Args:
        name: a name in RECIPES.
        arch: a name in ARCHS.
        stream: one of `ARCHS[arch].networks`.

    Raises:
        UnknownNameError: the recipe, or this network of the architecture, does not exist.
        EvaluationError: the recipe is not for this architecture.
    """
    archs = lookup("recipe", name, RECIPES)
    if arch not in archs:
        others = [other for other, known in RECIPES.items() if arch in known]
        raise EvaluationError(
            f"recipe {name} is for {', '.join(archs)}, not for {arch}; take --recipe "
            f"{' or '.join(others)}"
        )
    if stream not in archs[arch]:
        raise UnknownNameError(unknown_name(f"stream of {arch}", stream, archs[arch]))
    return archs[arch][stream]
