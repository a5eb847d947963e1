"""The checkpoint of a network: everything needed to continue its training, or to use it.

The names of the fields are the names in the file, except those of the recipe (see `recipes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import torch

from kinetics_bench.archs.network import Network
from kinetics_bench.archs.registry import build
from kinetics_bench.recipes import Recipe
from kinetics_bench.weights.choices import FINETUNES, INITS
from kinetics_bench.weights.files import UNREADABLE_ERRORS, is_damaged
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.files import publish
from kinetics_tools.flow.methods import FlowRecipe
from kinetics_tools.media.recipe import ClipRecipe
from kinetics_tools.shards.records import RGB, StreamRecipe, flow_stream

FORMAT: Final = 2
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The shards that a network was trained on.

    Attributes:
        labels: class names in index order.
        recipes: of the shards, by stream: `rgb`, and `flow-<name>` if the network sees flow.
        flow: name of the flow; empty if the network sees none.
        bound: pixels per frame that are 1 in the network's input; 1 if it sees no flow.
        train_split: None for weights that were not trained here.
        num_train: clips in that split.
    """

    labels: tuple[str, ...]
    recipes: Mapping[str, StreamRecipe]
    flow: str
    bound: float
    train_split: str | None
    num_train: int

    @property
    def clip_recipe(self) -> ClipRecipe:
        """The recipe of the RGB samples."""
        return ClipRecipe.from_json(self.recipes[RGB].parameters)

    @property
    def flow_recipe(self) -> FlowRecipe | None:
        """The recipe of the flow; None if the network sees none."""
        recipe = self.recipes.get(flow_stream(self.flow))
        return None if recipe is None else FlowRecipe(**recipe.parameters)

    def as_json(self) -> dict[str, Any]:
        """The plain values that are stored."""
        recipes = {name: recipe.as_json() for name, recipe in self.recipes.items()}
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return values | {"labels": list(self.labels), "recipes": recipes}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainingData:
        """Read what `as_json` wrote."""
        recipes = {name: StreamRecipe.from_json(each) for name, each in values["recipes"].items()}
        return cls(**{**values, "labels": tuple(values["labels"]), "recipes": recipes})


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
    """

    epoch: int
    step: int
    loss: float
    top1: float
    lr: float
    clips: int
    failed: int
    seconds: float
    waiting: float


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
        finished: whether the training is.
        history: one record per finished epoch.
        failed: key -> reason, of training clips that could not be decoded.
        init: the weights that it started from.
        format: version of the file format.
    """

    arch: str
    stream: str
    identity: Mapping[str, str | int]
    recipe: Recipe
    data: TrainingData
    seed: int
    precision: str
    net: dict[str, Any]
    optimizer: dict[str, Any]
    epoch: int = 0
    step: int = 0
    finished: bool = False
    history: list[EpochRecord] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    init: InitRecord = field(default_factory=InitRecord)
    format: int = FORMAT

    def write(self, path: Path) -> None:
        """Write it; a reader sees the old file or the new one."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values |= {
            "identity": dict(self.identity),
            "recipe": self.recipe.as_json(),
            "data": self.data.as_json(),
            "history": [asdict(record) for record in self.history],
            "init": asdict(self.init),
        }
        with publish(path) as scratch:
            torch.save(values, scratch)

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read what `write` wrote, to the CPU. Code in the file is not run.

        Raises:
            EvaluationError: it is missing, damaged, or has another format.
        """
        try:
            if is_damaged(path):
                raise EvaluationError(
                    f"{path} is damaged or truncated; copy it again, or train again with --force"
                )
            values = torch.load(path, map_location="cpu", weights_only=True)
            checkpoint = cls._parsed(values)
        except FileNotFoundError as error:
            raise EvaluationError(f"{path} is missing: no training was started there") from error
        except UNREADABLE_ERRORS as error:
            raise EvaluationError(
                f"{path} is damaged, or not a checkpoint of this version; copy it again, "
                "or train again with --force"
            ) from error
        if checkpoint.format != FORMAT:
            raise EvaluationError(
                f"{path} has format {checkpoint.format}, this version reads {FORMAT}; "
                "train again with --force"
            )
        return checkpoint

    @classmethod
    def _parsed(cls, values: Mapping[str, Any]) -> Checkpoint:
        records = {
            "recipe": Recipe.from_json(values["recipe"]),
            "data": TrainingData.from_json(values["data"]),
            "history": [EpochRecord(**row) for row in values["history"]],
            "init": InitRecord(**values["init"]),
        }
        return cls(**{**values, **records})

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.data.labels

    def network(self) -> Network:
        """The network with its weights, on the CPU, in evaluation mode.

        Raises:
            EvaluationError: the weights do not fit the architecture and the number of classes.
        """
        net = build(self.arch, self.stream, len(self.labels))
        try:
            net.load_state_dict(self.net)
        except RuntimeError as error:
            raise EvaluationError(
                f"these weights do not belong to {self.arch}, stream {self.stream}, with "
                f"{len(self.labels)} classes: {str(error).splitlines()[-1].strip()}"
            ) from error
        return net.eval()
