"""Training recipes: every parameter that changes a weight, except the seed."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from kinetics_bench.archs.registry import ARCHS, CHANNELS, Sampling
from kinetics_tools.core.errors import EvaluationError, UnknownNameError, lookup, unknown_name
from kinetics_tools.core.files import digest


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
class MultiStep:
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
    """How a network is trained.

    Attributes:
        name: as given on the command line; `+batch-N`, `+epochs-N` where that was overridden.
        source: where the values come from.
        protocol: the evaluation protocol that fits, a name in PROTOCOLS. Changes no weight.
        sampling: frames or fields of a training view and their stride, of each stream that the
            network is called with.
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
    sampling: Mapping[str, Sampling]
    short_side: int
    crop_px: int
    flip: float
    batch_size: int
    pass_size: int
    schedule: OneCycle | MultiStep
    optimizer: str
    weight_decay: float
    bn_momentum: float
    dropout: float = 0.5
    label_smoothing: float = 0.0

    @property
    def streams(self) -> tuple[str, ...]:
        """What the network is called with, in order: `rgb`, `flow` or both."""
        return tuple(stream for stream in CHANNELS if stream in self.sampling)

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
        own = ("hash", "schedule", "sampling")
        told = {key: value for key, value in values.items() if key not in own}
        told["sampling"] = {name: Sampling(**each) for name, each in values["sampling"].items()}
        schedule = values["schedule"]
        if "stairs" in schedule:
            stairs = MultiStep(
                stairs=tuple((int(end), float(lr)) for end, lr in schedule["stairs"])
            )
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

    def with_epochs(self, epochs: int | None) -> "Recipe":
        """The recipe with another length, which its name says; itself for None.

        Raises:
            EvaluationError: it is as long as so many steps, whatever they are of.
        """
        if epochs is None:
            return self
        if isinstance(self.schedule, MultiStep):
            raise EvaluationError(
                f"--epochs {epochs} is for recipes that count epochs (small, sample); recipe "
                f"{self.name} counts steps: leave it out, or take --recipe small"
            )
        if epochs == self.schedule.epochs:
            return self
        schedule = replace(self.schedule, epochs=epochs)
        return replace(self, name=f"{self.name}+epochs-{epochs}", schedule=schedule)


def _of(
    arch: str, base: Recipe, sampling: Mapping[str, Sampling] | None = None
) -> dict[str, Recipe]:
    """`base` for each network of an architecture; `sampling` None: as in Table 1."""
    known = ARCHS[arch]
    each = sampling or known.train
    return {
        stream: replace(base, sampling={name: each[name] for name in known.clips_of(stream)})
        for stream in known.networks
    }


_PAPER = Recipe(
    name="paper",
    source="arXiv 1705.07750 v3, section 4; schedule and batch: README of deepmind/kinetics-i3d",
    protocol="paper",
    sampling={},
    short_side=256,
    crop_px=224,
    flip=0.5,
    batch_size=384,  # 64 replicas with 6 clips each
    pass_size=6,
    schedule=MultiStep(stairs=((97_000, 1e-1), (108_000, 1e-2), (115_000, 1e-3))),
    optimizer="sgd",
    weight_decay=1e-7,
    bn_momentum=0.001,
)
_PAPER_FLOW = replace(
    _PAPER,
    schedule=MultiStep(
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
# Of the baselines the paper says: SGD with momentum 0.9 for 110,000 steps, the rate divided by 10
# when the validation loss saturates; 32 GPUs, 64 for the 3D-ConvNet. The rest is ours: rates, and
# the share of steps of each, as released for I3D's rgb stream (97, 108 and 115 thousand, scaled),
# its weight decay and dropout; clips a GPU as said below.
_BASELINE = replace(
    _PAPER,
    source="arXiv 1705.07750 v3, section 4: SGD, 110k steps, 32 GPUs; not published and chosen: "
    "batch (8 clips a GPU), rates and their steps in I3D's proportion, weight decay and dropout "
    "of I3D",
    schedule=MultiStep(stairs=((93_000, 1e-1), (103_000, 1e-2), (110_000, 1e-3))),
    batch_size=32 * 8,
    pass_size=8,
)
_SNAPSHOTS = replace(
    _BASELINE,
    source=_BASELINE.source.replace("8 clips", "32 clips, as a view is one image a stream"),
    batch_size=32 * 32,
    pass_size=32,
)
_PAPER_C3D = replace(
    _BASELINE,
    source="arXiv 1705.07750 v3, sections 2.2 and 4: SGD, 110k steps, 112 px, 64 GPUs of 15 clips; "
    "not published and chosen: frames of 128 px (as 256 to 224), rates and their steps in I3D's "
    "proportion, weight decay and dropout of I3D",
    short_side=128,
    crop_px=112,
    batch_size=64 * 15,
    pass_size=15,
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
    pass_size=6,
    schedule=OneCycle(epochs=40, peak_lr=1e-3),
    optimizer="adamw",
    weight_decay=0.01,
    bn_momentum=0.1,
)
_SMALL_BASELINE = replace(
    _SMALL, source="that of i3d, which was measured on Weizmann; frames as in the paper's Table 1"
)
# Some of their batch norm has one value a clip to compare, so they see more clips at once.
_SMALL_DENSE = replace(
    _SMALL_BASELINE,
    source=_SMALL_BASELINE.source + "; twice the clips a batch, for batch norm",
    batch_size=12,
    pass_size=12,
)
_SMALL_LSTM = replace(
    _SMALL_DENSE,
    source="that of i3d, which was measured on Weizmann; twice the clips a batch, for batch norm; "
    "12 frames of 1.4 s",
)
_SAMPLE_FLOW = replace(
    _SMALL,
    name="sample",
    source="measured on the embedded sample data set, six classes of motion, two cores",
    sampling={"flow": Sampling(12, 2)},
    short_side=64,
    crop_px=56,
    flip=0.0,  # its classes left and right would change places
    schedule=OneCycle(epochs=20, peak_lr=1e-3),
)
# In so few clips RGB learns textures by heart; smoothing keeps it from outshouting flow when the
# logits of both are added.
_SAMPLE_RGB = replace(_SAMPLE_FLOW, sampling={"rgb": Sampling(16)}, label_smoothing=0.2)

# Name -> architecture -> stream.
RECIPES: Final[Mapping[str, Mapping[str, Mapping[str, Recipe]]]] = {
    "paper": {
        "i3d": {"rgb": _of("i3d", _PAPER)["rgb"], "flow": _of("i3d", _PAPER_FLOW)["flow"]},
        "convnet-lstm": _of("convnet-lstm", _BASELINE),
        "c3d": _of("c3d", _PAPER_C3D),
        "two-stream": _of("two-stream", _SNAPSHOTS),
        "3d-fused": _of("3d-fused", _BASELINE),
    },
    "small": {
        "i3d": _of("i3d", _SMALL, {"rgb": Sampling(16, 2), "flow": Sampling(16, 2)}),
        "convnet-lstm": _of("convnet-lstm", _SMALL_LSTM, {"rgb": Sampling(12, 3)}),
        "c3d": _of("c3d", _SMALL_DENSE),
        "two-stream": _of("two-stream", _SMALL_BASELINE),
        "3d-fused": _of("3d-fused", _SMALL_BASELINE),
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
        UnknownNameError: no such recipe, or no such network of the architecture.
        EvaluationError: the recipe is not for that architecture.
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
