"""A recipe: every parameter of a training that changes a weight, except the seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from kinetics_bench.archs.registry import CHANNELS, Sampling
from kinetics_bench.recipes.schedules import MultiStep, OneCycle, Plateau, Schedule
from kinetics_tools.core import schema
from kinetics_tools.core.files import digest

# Names that files and hashes keep, where ours have changed since: checkpoints stay readable, and
# a recipe keeps its hash.
_STORED: Final[Mapping[str, str]] = {"micro_batch_size": "pass_size", "milestones": "stairs"}
# Fields that came later are stored and hashed only where they say something.
_LATER: Final[Mapping[str, Any]] = {"held_out": 0.0, "fixed_features": False}
Optimizer = Literal["sgd", "adamw"]
_UNHASHED: Final = frozenset({"name", "source", "protocol"})
MAX_VIEW_PX: Final = 2**28  # of one stream of one clip: 5,000 frames of 224 x 224
# And the step: in the name of the recipe of a training that was made longer there.
EXTENDED: Final = "+extended-at-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a network is trained.

    Attributes:
        name: as given, with what was overridden: `small+batch-4+lr-0.01`.
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
        held_out: share of the training videos of each class that is not trained on: their loss
            decides the rate of a Plateau schedule, and which checkpoint is the best.
        fixed_features: whether only the last layer is trained, on features of the initial weights
            that are computed once: of the middle of each clip, with `sampling` frames, centre crop,
            no flip.
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
    optimizer: Optimizer
    weight_decay: schema.Amount
    bn_momentum: schema.Share
    dropout: schema.Share = 0.5
    label_smoothing: schema.Share = 0.0
    held_out: schema.Share = 0.0
    fixed_features: bool = False

    @property
    def streams(self) -> tuple[str, ...]:
        """The network's inputs, in order: `rgb`, `flow` or both."""
        return tuple(stream for stream in CHANNELS if stream in self.sampling)

    @property
    def hash(self) -> str:
        """SHA-256 of what changes a weight, hex: recipes of equal hash train the same network."""
        return digest({key: v for key, v in self._stored().items() if key not in _UNHASHED})

    def as_json(self) -> dict[str, Any]:
        """The recipe and its `hash` as JSON values, under the names that checkpoints keep."""
        return self._stored() | {"hash": self.hash}

    def _stored(self) -> dict[str, Any]:
        values = asdict(
            self, dict_factory=lambda items: {_STORED.get(name, name): v for name, v in items}
        )
        return {name: v for name, v in values.items() if _LATER.get(name, ...) != v}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe that `as_json` wrote.

        Raises:
            ValueError: a field is missing, or is not what it may be.
        """
        fields = _ours(schema.parse(values, dict[str, Any]))
        schedule = _ours(schema.parse(fields.get("schedule"), dict[str, Any]))
        kinds: dict[str, type[Schedule]] = {"milestones": MultiStep, "start_lr": Plateau}
        kind = next((kinds[name] for name in kinds if name in schedule), OneCycle)
        recipe = schema.parse(fields | {"schedule": schema.parse(schedule, kind)}, cls)
        if isinstance(recipe.schedule, MultiStep):
            steps = [step for step, _ in recipe.schedule.milestones]
            if not steps or steps != sorted(steps):
                raise ValueError("the milestones are not in order")
        if not recipe.sampling.keys() <= CHANNELS.keys():
            raise ValueError("the sampling is of unknown streams")
        frames = max((each.num for each in recipe.sampling.values()), default=0)
        if recipe.crop_px > recipe.short_side:
            raise ValueError(f"crop_px {recipe.crop_px} exceeds short_side {recipe.short_side}")
        if frames * recipe.crop_px**2 > MAX_VIEW_PX:
            raise ValueError(
                f"a view of {frames} frames, {recipe.crop_px} px of them, is too large"
            )
        return recipe


def _ours(values: Mapping[str, Any]) -> dict[str, Any]:
    """Stored values under the names that we use now."""
    ours = {stored: name for name, stored in _STORED.items()}
    return {ours.get(name, name): value for name, value in values.items()}
