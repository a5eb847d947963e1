"""The checkpoint of a network: everything needed to continue its training, or to use it.

The names of the fields are the names in the file, except those of the recipe (see `recipes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Final, cast

import torch
from torch import Tensor

from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import ARCHS, build, check_network
from kinetics_bench.recipes import Recipe
from kinetics_bench.weights.choices import FINETUNES, INITS
from kinetics_bench.weights.files import UNREADABLE_ERRORS, is_damaged
from kinetics_bench.weights.naming import like
from kinetics_tools.core import schema
from kinetics_tools.core.errors import EvaluationError, UnknownNameError
from kinetics_tools.core.files import copy_file, publish, require_file
from kinetics_tools.flow.methods import FlowRecipe
from kinetics_tools.media.recipe import ClipRecipe
from kinetics_tools.shards.records import RGB, StreamRecipe, flow_stream

FORMAT: Final = 2
# Of what is computed from equal inputs. It is raised where a change of our code changes weights or
# predictions, so that a result of the older code is never taken for one of this code.
NUMERICS: Final = 3
CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
STATISTIC: Final = ".running_"  # in the names of batch norm's moving statistics
_TENSORS: Final = ("net", "optimizer", "statistics")  # fields with tensors
AGAIN: Final = "copy it again, or train again with --force"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The shards that a network was trained on.

    Attributes:
        labels: class names in index order.
        recipes: of the shards, by stream: `rgb`, and `flow-<name>` if the network sees flow.
        flow: name of the flow; empty if the network sees none.
        bound: pixels per frame that are 1 in the network's input; 1 if it sees no flow.
        train_split: None for weights that were not trained here.
        num_train: clips of that split in the shards.
        missing_train: key -> reason, of clips of that split that are not in the shards. Version 0.1
            did not write them.
    """

    labels: tuple[str, ...]
    recipes: Mapping[str, StreamRecipe]
    flow: str
    bound: schema.Bound
    train_split: str | None
    num_train: schema.Count
    missing_train: Mapping[str, str] = field(default_factory=dict)

    @property
    def clip_recipe(self) -> ClipRecipe:
        """The recipe of the RGB samples."""
        return ClipRecipe.from_json(self.recipes[RGB].parameters)

    @property
    def flow_recipe(self) -> FlowRecipe | None:
        """The recipe of the flow; None if the network sees none."""
        recipe = self.recipes.get(flow_stream(self.flow))
        return None if recipe is None else FlowRecipe.from_json(recipe.parameters)

    def as_json(self) -> dict[str, Any]:
        """The plain values that are stored."""
        recipes = {name: recipe.as_json() for name, recipe in self.recipes.items()}
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return values | {"labels": list(self.labels), "recipes": recipes}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainingData:
        """Read what `as_json` wrote.

        Raises:
            ValueError: a field is missing, or is not what it may be.
        """
        recipes = StreamRecipe.all_from_json(values.get("recipes"))
        data = schema.parse({**values, "recipes": recipes}, cls)
        schema.check_labels(data.labels)
        if not data.labels:
            raise ValueError("it has no labels")
        ClipRecipe.from_json(recipes[RGB].parameters)
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class InitRecord:
    """The weights that a training started from.

    Attributes:
        source: `scratch`, or the path or URL of the weights.
        sha256: of the weights; empty for `scratch`.
        finetune: `all`, or `last`: only the last layer was trained.
    """

    source: str = INITS[0]
    sha256: str = ""
    finetune: str = FINETUNES[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One epoch of a training: a line of log.jsonl.

    Attributes:
        epoch: number of the epoch, from 1.
        step: optimizer steps of the training until its end.
        loss: mean over the clips, of the training views.
        top1: share of the clips whose true class had the highest logit.
        lr: learning rate of the last step.
        clips: number of clips that were trained on.
        failed: number of training clips that could not be decoded, since the training began.
        seconds: duration.
        waiting: share of that time in which the network waited for clips.
        val_loss, val_top1: of the held-out clips, at its end; None where these were not looked at.
    """

    epoch: schema.Count
    step: schema.Count
    loss: schema.Amount
    top1: schema.Share
    lr: schema.Amount
    clips: schema.Count
    failed: schema.Count
    seconds: schema.Amount
    waiting: schema.Amount
    val_loss: schema.Amount | None = None
    val_top1: schema.Share | None = None

    def as_json(self) -> dict[str, Any]:
        """The plain values that are stored; those of held-out clips only where there are any."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A look at the held-out clips.

    Attributes:
        step: finished optimizer steps at that time.
        loss, top1: of these clips.
    """

    step: schema.Count
    loss: schema.Amount
    top1: schema.Share

    def is_better_than(self, other: Look | None) -> bool:
        """Whether its top-1 is higher, of equal ones its loss lower; None: there is no other."""
        return other is None or (self.top1, -self.loss) > (other.top1, -other.loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """A training was made longer.

    Attributes:
        step, epoch: finished ones until then.
        recipe: whose schedule they followed.
    """

    step: schema.Count
    epoch: schema.Count
    recipe: Recipe

    @property
    def had_ended(self) -> bool:
        """Whether the training had ended; else it was stopped before, and then made longer."""
        schedule = self.recipe.schedule
        return schedule.length == (self.epoch if schedule.unit == "epochs" else self.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossScale:
    """What the loss is multiplied with before the backward pass, as torch's GradScaler has it.

    Attributes:
        scale: the factor.
        steps: without an overflow, since it was changed.
    """

    scale: schema.Amount
    steps: schema.Count


def keep_earlier(folder: Path, num: int, step: int) -> None:
    """Keep checkpoint.pt, which will be replaced, and others before it: `num` in all.

    Args:
        folder: of the network.
        num: how many stay; 0: none.
        step: of the one that is there; the copy is called checkpoint-STEP.pt.
    """
    path = folder / CHECKPOINT
    kept = folder / f"checkpoint-{step:08d}.pt"
    if num > 0 and path.exists() and not kept.exists():
        with publish(kept) as scratch:
            copy_file(path, scratch)
    earlier = sorted(folder.glob("checkpoint-[0-9]*.pt"))
    for each in earlier[: len(earlier) - num]:
        each.unlink()


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunEpoch:
    """What a checkpoint says of an epoch that has not ended.

    Attributes:
        loss, correct: sums over its clips so far: of the loss, and of those that had the highest
            logit for their class.
        clips: number of its clips so far.
        seconds: spent on it.
        waited_s: of them, for clips.
        skipped: why a micro-batch of one clip was left out; empty: none was.
    """

    loss: schema.Amount
    correct: schema.Count
    clips: schema.Count
    seconds: schema.Amount
    waited_s: schema.Amount
    skipped: str = ""


class _Noting:
    """A file to write that keeps the error of its disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """A network, trained or in training, and everything needed to continue or to use it.

    Attributes:
        arch: a name in ARCHS.
        stream: `rgb`, `flow` or `joint`.
        identity: what decides the weights; trainings of equal identity train the same network.
        recipe: of the training.
        data: the shards that it was trained on.
        seed: of the training.
        precision: of the convolutions: `float32` or `bfloat16`.
        net: state dict of the network.
        optimizer: state dict of the optimizer.
        epoch: number of finished epochs.
        step: number of finished optimizer steps.
        begun: the epoch that these steps are in, if it has not ended.
        statistics: in an epoch that has not ended, the moving statistics of batch norm of each
            process, by rank; those in `net` are their mean.
        finished: whether the training is.
        history: one record per finished epoch.
        failed: key -> reason, of training clips that could not be decoded.
        init: the weights that it started from.
        trained_on: keys of all clips that the weights were trained on here, by this training and by
            that of its initial weights, sorted; None: an older version did not record them.
        format: version of the file format.
        extended: the schedules that it followed before it was made longer.
        loss_scale: of a training in float16.
        num_held_out: clips that are not trained on, whose loss is looked at.
        val_split: where they are from: a split, or `held out of` one; empty if there are none.
        held_out: hash of their keys, labels and bytes; empty: there are none, or an older version
            did not record it.
        best: the look at them that was best, whose weights best.pt has; None: there was none. An
            epoch that was reopened has left the history, and its look may be this one.
    """

    arch: str
    stream: str
    identity: Mapping[str, str | int | float]
    recipe: Recipe
    data: TrainingData
    seed: int
    precision: str
    net: dict[str, Any]
    optimizer: dict[str, Any]
    epoch: schema.Count = 0
    step: schema.Count = 0
    finished: bool = False
    history: list[EpochRecord] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    init: InitRecord = field(default_factory=InitRecord)
    trained_on: tuple[str, ...] | None = None
    format: int = FORMAT
    begun: BegunEpoch | None = None
    statistics: list[dict[str, Any]] = field(default_factory=list)
    extended: list[Extension] = field(default_factory=list)
    loss_scale: LossScale | None = None
    num_held_out: schema.Count = 0
    val_split: str = ""
    held_out: str = ""
    best: Look | None = None

    @property
    def losses(self) -> list[float]:
        """Of the held-out clips, at each look at them."""
        return [each.val_loss for each in self.history if each.val_loss is not None]

    def write(self, path: Path) -> None:
        """Write it; a reader sees the old file or the new one."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values |= {
            "identity": dict(self.identity),
            "recipe": self.recipe.as_json(),
            "data": self.data.as_json(),
            "history": [record.as_json() for record in self.history],
            "extended": [
                {"step": each.step, "epoch": each.epoch, "recipe": each.recipe.as_json()}
                for each in self.extended
            ],
            "init": asdict(self.init),
            "begun": None if self.begun is None else asdict(self.begun),
            "trained_on": None if self.trained_on is None else list(self.trained_on),
            "loss_scale": None if self.loss_scale is None else asdict(self.loss_scale),
            "best": None if self.best is None else asdict(self.best),
        }
        # They came later, and are written where they say something.
        for name in ("extended", "loss_scale", "num_held_out", "val_split", "held_out", "best"):
            if not values[name]:
                del values[name]
        with publish(path) as scratch, scratch.open("wb") as file:
            noting = _Noting(file)
            try:
                torch.save(values, cast(IO[bytes], noting))
            except RuntimeError as error:  # all that torch says of a full disk: a wrong position
                raise noting.error or error from error

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read what `write` wrote, to the CPU. Code in the file is not run.

        Raises:
            EvaluationError: it is missing, damaged, or has another format.
        """
        try:
            require_file(path)
            if is_damaged(path):
                raise EvaluationError(f"{path} is damaged or truncated; {AGAIN}")
            values = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise EvaluationError(f"{path} is missing: no training was started there") from error
        except UNREADABLE_ERRORS as error:
            raise EvaluationError(
                f"{path} is damaged, or not a checkpoint of this version; {AGAIN}"
            ) from error
        try:
            return cls._parsed(values)
        except (ValueError, UnknownNameError) as error:
            raise EvaluationError(
                f"{path} is not a checkpoint of this version ({error}); {AGAIN}"
            ) from error

    @classmethod
    def _parsed(cls, values: Any) -> Checkpoint:
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}")
        for name in ("net", "optimizer"):
            if not isinstance(values.get(name), dict):
                raise ValueError(f"its {name} is not a state dict")
        schema.check_plain({n: v for n, v in values.items() if n not in _TENSORS})
        if values.get("format") != FORMAT:
            raise ValueError(f"it has format {values.get('format')!r}, not {FORMAT}"[:300])
        data = TrainingData.from_json(schema.parse(values.get("data"), dict[str, Any]))
        recipe = Recipe.from_json(schema.parse(values.get("recipe"), dict[str, Any]))
        extended = [
            schema.parse({**each, "recipe": Recipe.from_json(each.get("recipe", {}))}, Extension)
            for each in schema.parse(values.get("extended", []), list[dict[str, Any]])
        ]
        parts = {"data": data, "recipe": recipe, "extended": extended}
        found = schema.parse({**values, **parts}, cls)
        found.best = found.best or _best_of(found.history)
        check_network(found.arch, found.stream)
        if recipe.streams != ARCHS[found.arch].clips_of(found.stream):
            raise ValueError(f"a recipe of {', '.join(recipe.streams)}")
        if ("flow" in recipe.streams) != (data.flow_recipe is not None):
            raise ValueError(f"it has no recipe of the flow {data.flow!r}"[:300])
        # As torch has them: they may have attributes, and keys of any kind.
        found.net, found.optimizer = values["net"], values["optimizer"]
        found.check_net()
        found.statistics = values.get("statistics", [])
        found.check_statistics()
        return found

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.data.labels

    def check_statistics(self) -> None:
        """Raise a ValueError unless each process's statistics are those of the network."""
        names = {name for name in self.net if STATISTIC in name}
        is_ok = isinstance(self.statistics, list) and all(
            isinstance(own, dict)
            and own.keys() == names
            and all(
                isinstance(own[name], Tensor)
                and (own[name].shape, own[name].dtype) == (self.net[name].shape, torch.float32)
                and not own[name].is_meta
                for name in names
            )
            for own in self.statistics
        )
        if not is_ok or bool(self.statistics) != (self.begun is not None):
            raise ValueError("its statistics are not those of its network")

    def network(self) -> Network:
        """The network with its weights, on the CPU, in evaluation mode."""
        net = build(self.arch, self.stream, len(self.labels))
        net.load_state_dict(self.net)
        return net.eval()

    def check_net(self) -> None:
        """Raise a ValueError unless the weights are those of the network, all of them."""
        with torch.device("meta"):  # names, shapes and dtypes only
            want = build(self.arch, self.stream, len(self.labels)).state_dict()
        for name in [*want, *self.net]:
            there, here = self.net.get(name), want.get(name, want.get(like(str(name))))
            if (
                not isinstance(there, Tensor)
                or here is None
                or (there.shape, there.dtype, there.layout) != (here.shape, here.dtype, here.layout)
                or there.is_meta
            ):
                raise ValueError(
                    f"these weights are not of {self.arch}, stream {self.stream}, with "
                    f"{len(self.labels)} classes: see {name!r}"[:300]
                )


def _best_of(history: Sequence[EpochRecord]) -> Look | None:
    """The best look of a history; None: there was none."""
    best = None
    for each in history:
        if each.val_loss is not None:
            look = Look(step=each.step, loss=each.val_loss, top1=each.val_top1 or 0.0)
            best = look if look.is_better_than(best) else best
    return best
