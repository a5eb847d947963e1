"""The results of an evaluation: predictions per clip, scores, and what each number covers.

predictions.parquet    Predictions: columns key, label_id, logits
result.json            Result: one row of a table
"""

from __future__ import annotations

import hashlib
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

import kinetics_tools
from kinetics_bench.protocols import EvalProtocol, Extent
from kinetics_bench.recipes import Recipe
from kinetics_bench.training.checkpoint import EpochRecord, InitRecord
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.files import publish, read_json, write_json
from kinetics_tools.shards.records import StreamRecipe

RESULT = "result.json"
PREDICTIONS = "predictions.parquet"
EVALUATION_PREFIX = "evaluate-"  # of folders with other evaluations of a run


@dataclass(frozen=True, slots=True)
class Predictions:
    """Logits of the evaluated clips, sorted by key, and why other clips were not evaluated.

    Attributes:
        keys: N keys, sorted.
        label_ids: int64 (N,), the true classes.
        logits: float32 (N, K).
        failed: key -> reason, of clips that were expected and have no prediction.
    """

    keys: tuple[str, ...]
    label_ids: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    failed: Mapping[str, str]

    @classmethod
    def of(
        cls, rows: Mapping[str, tuple[int, npt.NDArray[np.float32]]], failed: Mapping[str, str]
    ) -> Predictions:
        """Predictions from key -> (label id, logits).

        Raises:
            EvaluationError: no clip at all, or logits that are not finite.
        """
        if not rows:
            why = next(iter(failed.values()), "the split is empty")
            raise EvaluationError(f"no clip could be evaluated ({why})")
        keys = tuple(sorted(rows))
        logits = np.stack([rows[key][1] for key in keys]).astype(np.float32)
        if not np.isfinite(logits).all():
            bad = keys[int((~np.isfinite(logits)).any(axis=1).argmax())]
            raise EvaluationError(
                f"the logits of {bad} are not finite: the training diverged, or the weights "
                "are not usable"
            )
        return cls(keys, np.array([rows[key][0] for key in keys], np.int64), logits, dict(failed))

    def __add__(self, other: Predictions) -> Predictions:
        """Sums of logits, for the clips that both have; a clip that one lacks counts as failed."""
        mine, theirs = ({key: number for number, key in enumerate(p.keys)} for p in (self, other))
        rows = {
            key: (int(self.label_ids[number]), self.logits[number] + other.logits[theirs[key]])
            for key, number in mine.items()
            if key in theirs
        }
        return Predictions.of(rows, {**other.failed, **self.failed})

    def write(self, path: Path) -> None:
        """Write a Parquet file of columns key, label_id, logits."""
        table = pa.table(
            {
                "key": list(self.keys),
                "label_id": self.label_ids,
                "logits": pa.array(list(self.logits), pa.list_(pa.float32())),
            }
        )
        with publish(path) as scratch:
            pq.write_table(table, scratch)

    @classmethod
    def read(cls, path: Path, failed: Mapping[str, str]) -> Predictions:
        """Read what `write` wrote.

        Raises:
            EvaluationError: it is missing or damaged.
        """
        try:
            table = pq.read_table(path)
            logits = np.stack(table["logits"].to_pylist()).astype(np.float32)
            keys = tuple(table["key"].to_pylist())
            return cls(keys, table["label_id"].to_numpy(), logits, dict(failed))
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            said = " ".join(str(error).split())  # Arrow's may have several lines
            raise EvaluationError(f"{path} cannot be read ({said}); evaluate again") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Accuracy, and the clips that it covers.

    Attributes:
        top1: share of the evaluated clips whose true class has the highest logit.
        top5: share of those whose true class is among the five highest; None for five classes or
            fewer.
        mean_class: mean over the classes of the top-1 per class.
        standard_error: of top1, binomial.
        num_expected: clips in the split: evaluated and failed ones.
        num_scored: evaluated clips.
        num_failed: clips that are missing in the shards or could not be decoded.
        keys_sha256: of the evaluated keys, sorted, one per line. Scores with equal hashes can be
            compared.
    """

    top1: float
    top5: float | None
    mean_class: float
    standard_error: float
    num_expected: int
    num_scored: int
    num_failed: int
    keys_sha256: str


def ranks(predictions: Predictions) -> npt.NDArray[np.int64]:
    """Number of classes above the true one, int64 (N,); of equal logits the lower index first."""
    rows = np.arange(len(predictions.keys))
    true = predictions.logits[rows, predictions.label_ids][:, None]
    before = np.arange(predictions.logits.shape[1])[None] < predictions.label_ids[:, None]
    higher = (predictions.logits > true) | ((predictions.logits == true) & before)
    counts: npt.NDArray[np.int64] = higher.sum(axis=1)
    return counts


def score(predictions: Predictions) -> Score:
    """The score of `predictions`; failed clips are counted, but not as wrong ones."""
    rank = ranks(predictions)
    num = len(predictions.keys)
    top1 = float((rank == 0).mean())
    classes = np.unique(predictions.label_ids)
    per_class = [(rank[predictions.label_ids == label] == 0).mean() for label in classes]
    return Score(
        top1=top1,
        top5=float((rank < 5).mean()) if predictions.logits.shape[1] > 5 else None,
        mean_class=float(np.mean(per_class)),
        standard_error=math.sqrt(top1 * (1 - top1) / num),
        num_expected=num + len(predictions.failed),
        num_scored=num,
        num_failed=len(predictions.failed),
        keys_sha256=hashlib.sha256("\n".join(predictions.keys).encode()).hexdigest(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecord:
    """The data that a network was trained and evaluated on.

    Attributes:
        folder: of the shards, as given.
        identity: hash of everything that decides the predictions.
        labels: class names in index order.
        flow: name of the flow; empty if the network sees none.
        train_split: None for weights that were not trained here.
        num_train: clips in that split.
        failed_train: key -> reason, of training clips that could not be decoded.
        test_split: the split that was evaluated.
        init: the weights that the training started from.
    """

    folder: str
    identity: str
    labels: tuple[str, ...]
    flow: str
    train_split: str | None
    num_train: int
    failed_train: Mapping[str, str]
    test_split: str
    init: InitRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: number of weights.
        flops: operations for one clip; a multiplication and an addition are two.
        flops_shape: (C, T, H, W) of each input that `flops` was counted for.
        device: name of the GPU, or `cpu`.
        num_threads: of torch, per process.
        num_processes: that evaluated.
        precision: of the convolutions: `float32` or `bfloat16`.
        seconds_training: all epochs.
        seconds_evaluation: all clips.
    """

    parameters: int
    flops: int
    flops_shape: tuple[tuple[int, ...], ...]
    device: str
    num_threads: int
    num_processes: int
    precision: str
    seconds_training: float
    seconds_evaluation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The code that gave a result.

    Attributes:
        versions: of Python and of the packages that matter.
        commit: of the code; None if git does not track it.
        dirty: whether there were uncommitted changes; None without a commit.
    """

    versions: Mapping[str, str]
    commit: str | None
    dirty: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row: a stream of an architecture, under a protocol, on a set of clips.

    Attributes:
        arch: a name in ARCHS.
        stream: `rgb`, `flow` or `joint`.
        protocol: how clips are seen.
        extents: which frames of a clip each stream sees.
        score: the accuracy and what it covers.
        training: recipe of the training, by stream.
        recipes: recipes of the shards, by stream: `rgb`, `flow-<name>`.
        data: what it was trained and evaluated on.
        cost: parameters, operations, seconds.
        origin: versions and commit.
        failed: key -> reason, of clips that were not evaluated.
        history: one record per epoch, by stream; empty for `joint`.
    """

    arch: str
    stream: str
    protocol: EvalProtocol
    extents: Mapping[str, Extent]
    score: Score
    training: Mapping[str, Recipe]
    recipes: Mapping[str, StreamRecipe]
    data: DataRecord
    cost: Cost
    origin: Origin
    failed: Mapping[str, str]
    history: Mapping[str, Sequence[EpochRecord]]

    def write(self, folder: Path, predictions: Predictions) -> None:
        """Write predictions.parquet, then result.json: if that exists, both are complete."""
        predictions.write(folder / PREDICTIONS)
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        del values["extents"], values["training"]
        extents = {stream: asdict(extent) for stream, extent in self.extents.items()}
        history = {stream: [asdict(row) for row in rows] for stream, rows in self.history.items()}
        values |= {
            "protocol": self.protocol.as_json() | {"extents": extents},
            "recipes": self.recipes_as_json(),
            "history": history,
            **{name: asdict(values[name]) for name in ("score", "data", "cost", "origin")},
        }
        write_json(folder / RESULT, values)

    def recipes_as_json(self) -> dict[str, Any]:
        """All recipes as they are stored: `training` by stream, and those of the shards."""
        return {
            "training": {stream: recipe.as_json() for stream, recipe in self.training.items()},
            **{stream: recipe.as_json() for stream, recipe in self.recipes.items()},
        }

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Read the result.json in `folder`.

        Raises:
            EvaluationError: it is not a result of this version.
        """
        values = read_json(folder / RESULT, "evaluate again")
        try:
            return cls._parsed(values)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise EvaluationError(
                f"{folder / RESULT} is not a result of this version ({error!r}); evaluate again"
            ) from error

    @classmethod
    def _parsed(cls, values: Mapping[str, Any]) -> Result:
        protocol, recipes, data = dict(values["protocol"]), dict(values["recipes"]), values["data"]
        extents, training = protocol.pop("extents"), recipes.pop("training")
        del protocol["hash"]
        shapes = tuple(map(tuple, values["cost"]["flops_shape"]))
        init = InitRecord(**data.get("init", {}))  # absent in results of the first versions
        records = {
            "protocol": EvalProtocol(**protocol),
            "extents": {stream: Extent(**extent) for stream, extent in extents.items()},
            "score": Score(**values["score"]),
            "training": {stream: Recipe.from_json(recipe) for stream, recipe in training.items()},
            "recipes": {stream: StreamRecipe.from_json(each) for stream, each in recipes.items()},
            "data": DataRecord(**{**data, "labels": tuple(data["labels"]), "init": init}),
            "cost": Cost(**{**values["cost"], "flops_shape": shapes}),
            "origin": Origin(**values["origin"]),
            "history": {
                stream: [EpochRecord(**row) for row in rows]
                for stream, rows in values["history"].items()
            },
        }
        return cls(**{**values, **records})


@cache
def find_origin() -> Origin:
    """Versions, and commit and uncommitted changes of the code if git tracks it."""
    packages = ("torch", "numpy", "av", "webdataset")
    commit = _git("rev-parse", "HEAD") if _git("ls-files", "--error-unmatch", __file__) else None
    return Origin(
        versions={
            "kinetics-tools": kinetics_tools.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        commit=commit,
        dirty=None if commit is None else _git("status", "--porcelain") != "",
    )


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:  # no git here
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def percent(share: float | None) -> str:
    """A share in percent, with one decimal; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def cells(result: Result) -> dict[str, str]:
    """The numbers of a row by column title, as text."""
    value = result.score
    return {
        "stream": result.stream,
        "top-1 %": percent(value.top1),
        "+-": percent(value.standard_error),
        "top-5 %": percent(value.top5),
        "mean-class %": percent(value.mean_class),
        "evaluated / in the list": f"{value.num_scored} / {value.num_expected}",
    }
