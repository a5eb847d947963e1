"""Training recipes: every parameter that changes a weight, except the seed."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from kinetics_tools.errors import UnknownNameError, lookup, nearest
from kinetics_tools.files import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class OneCycle:
    """The rate climbs to `peak_lr` over the first `warmup` of all steps, then falls to nothing.

    Both along a cosine, from a 25th of the peak and to a 250,000th of it: torch's OneCycleLR with
    its defaults, momentum left alone.
    """

    epochs: int
    peak_lr: float
    warmup: float = 0.3

    def num_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * steps_per_epoch

    def lr(self, step: int, num_steps: int) -> float:
        """Learning rate of a step, counted from 0."""
        top = self.warmup * num_steps - 1
        first, last = self.peak_lr / 25, self.peak_lr / 250_000
        if step < top:
            return _cosine(first, self.peak_lr, step / top)
        return _cosine(self.peak_lr, last, (step - top) / max(num_steps - 1 - top, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stairs:
    """Constant rates in turn: `stairs` holds (the step at which it ends, learning rate)."""

    stairs: tuple[tuple[int, float], ...]

    def num_steps(self, steps_per_epoch: int) -> int:  # noqa: ARG002 - counted in steps
        """Optimizer steps of the whole training."""
        return self.stairs[-1][0]

    def lr(self, step: int, num_steps: int) -> float:  # noqa: ARG002 - as above
        """Learning rate of a step, counted from 0."""
        return next(lr for end, lr in self.stairs if step < end)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a stream is trained.

    Attributes:
        name: as given on the command line; `+batch-N` where the batch size was overridden.
        source: where the values come from.
        protocol: the evaluation protocol that fits, a name in PROTOCOLS. Changes no weight.
        num_frames: frames of a training view.
        stride: every which frame of the clip.
        short_side: pixels of the shorter side, to which the whole frame is resized.
        crop_px: height and width of the square that is cut out of it.
        flip: share of training views that are mirrored.
        batch_size: clips an optimizer step, over all processes.
        pass_size: clips a forward pass: batch norm's statistics come from so many. A batch is
            several passes where it is larger, on one process or shared out over many.
        schedule: length of the training and learning rates.
        optimizer: `sgd` (momentum 0.9) or `adamw`.
        weight_decay: of convolution kernels; offsets and biases have none.
        bn_momentum: weight of a new batch in batch norm's moving statistics.
        dropout: share of features dropped before the last layer.
        label_smoothing: share of each label spread over all classes.
    """

    name: str
    source: str
    protocol: str
    num_frames: int
    stride: int
    short_side: int
    crop_px: int
    flip: float
    batch_size: int
    pass_size: int
    schedule: OneCycle | Stairs
    optimizer: str
    weight_decay: float
    bn_momentum: float
    dropout: float = 0.5
    label_smoothing: float = 0.0

    @property
    def hash(self) -> str:
        """SHA-256 over what changes a weight: two recipes with equal hashes train alike."""
        told = {"name", "source", "protocol"}
        return digest({key: value for key, value in asdict(self).items() if key not in told})

    def as_json(self) -> dict[str, Any]:
        """The recipe and its hash as plain JSON values."""
        return asdict(self) | {"hash": self.hash}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe that `as_json` told, from a checkpoint."""
        told = {key: value for key, value in values.items() if key not in ("hash", "schedule")}
        schedule = values["schedule"]
        if "stairs" in schedule:
            stairs = Stairs(stairs=tuple((int(end), float(lr)) for end, lr in schedule["stairs"]))
            return cls(**told, schedule=stairs)
        return cls(**told, schedule=OneCycle(**schedule))

    def with_batch_size(self, batch_size: int | None) -> "Recipe":
        """The recipe with another batch size, which its name says; itself for None."""
        if batch_size in (None, self.batch_size):
            return self
        assert batch_size is not None
        return replace(
            self,
            name=f"{self.name}+batch-{batch_size}",
            batch_size=batch_size,
            pass_size=min(self.pass_size, batch_size),
        )


_PAPER_RGB = Recipe(
    name="paper",
    source="arXiv 1705.07750 v3, section 4; schedule and batch: README of deepmind/kinetics-i3d",
    protocol="paper",
    num_frames=64,
    stride=1,
    short_side=256,
    crop_px=224,
    flip=0.5,
    batch_size=384,  # 64 replicas with 6 clips each
    pass_size=6,
    schedule=Stairs(stairs=((97_000, 1e-1), (108_000, 1e-2), (115_000, 1e-3))),
    optimizer="sgd",
    weight_decay=1e-7,
    bn_momentum=0.001,
)
_PAPER_FLOW = replace(
    _PAPER_RGB,
    schedule=Stairs(
        stairs=(
            (97_000, 1e-1),
            (104_500, 1e-2),
            (115_000, 1e-3),
            (140_000, 1e-1),
            (150_000, 1e-2),
            (155_000, 1e-3),
        )
    ),
)
_SMALL = Recipe(
    name="small",
    source="measured on Weizmann, 10 classes, 60 training clips, two cores",
    protocol="whole",
    num_frames=16,
    stride=2,
    short_side=128,
    crop_px=112,
    flip=0.5,
    batch_size=6,
    pass_size=6,
    schedule=OneCycle(epochs=40, peak_lr=1e-3),
    optimizer="adamw",
    weight_decay=0.01,
    bn_momentum=0.1,
)
_SAMPLE_FLOW = replace(
    _SMALL,
    name="sample",
    source="measured on the embedded sample data set, six classes of motion, two cores",
    num_frames=12,
    short_side=64,
    crop_px=56,
    flip=0.0,  # its classes left and right would change places
    schedule=OneCycle(epochs=20, peak_lr=1e-3),
)
# In so few clips RGB learns textures by heart; smoothing keeps it from outshouting flow when the
# logits of both are added.
_SAMPLE_RGB = replace(_SAMPLE_FLOW, num_frames=16, stride=1, label_smoothing=0.2)

RECIPES: Final[Mapping[str, Mapping[str, Recipe]]] = {
    "paper": {"rgb": _PAPER_RGB, "flow": _PAPER_FLOW},
    "small": {"rgb": _SMALL, "flow": _SMALL},
    "sample": {"rgb": _SAMPLE_RGB, "flow": _SAMPLE_FLOW},
}


def recipe_for(name: str, stream: str) -> Recipe:
    """The recipe of one stream.

    Raises:
        UnknownNameError: no such recipe, or it does not train that stream.
    """
    streams = lookup("recipe", name, RECIPES)
    if stream not in streams:
        raise UnknownNameError(nearest(f"stream of recipe {name}", stream, streams))
    return streams[stream]
