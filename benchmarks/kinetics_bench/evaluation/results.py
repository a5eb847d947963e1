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
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

import kinetics_tools
from kinetics_bench.archs.registry import STREAMS, check_network
from kinetics_bench.protocols import EvalProtocol, Extent
from kinetics_bench.recipes import Recipe
from kinetics_bench.training.checkpoint import EpochRecord, InitRecord
from kinetics_tools.core import schema
from kinetics_tools.core.errors import EvaluationError, OutError, UnknownNameError
from kinetics_tools.core.files import publish, read_json, require_file, write_json
from kinetics_tools.shards.records import StreamRecipe

RESULT = "result.json"
PREDICTIONS = "predictions.parquet"
NORMAL_95 = 1.959964  # standard deviations on both sides of the mean
MAX_CLIPS = 2**24
_COLUMNS = [pa.string(), pa.int64(), pa.list_(pa.float32())]  # of predictions.parquet
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
    def read(
        cls, path: Path, failed: Mapping[str, str], *, shape: tuple[int, int] | None = None
    ) -> Predictions:
        """Read what `write` wrote.

        Args:
            path: of the file.
            failed: as in the attributes.
            shape: (N, K) that it must have, checked before a logit is read; None: any.

        Raises:
            EvaluationError: it is missing, damaged, or of another shape.
        """
        try:
            require_file(path)
            with pq.ParquetFile(path) as file:
                num_rows, num_logits = file.metadata.num_rows, _num_logits(file.metadata)
                if not 0 < num_rows <= MAX_CLIPS:
                    raise ValueError(f"it has {num_rows} rows")
                if shape is not None and (num_rows, num_logits) != (shape[0], shape[0] * shape[1]):
                    raise ValueError(f"it is not of the {RESULT} beside it")
                table = file.read(["key", "label_id", "logits"])
            if table.schema.types != _COLUMNS:
                raise ValueError("it has columns of other types")
            keys = tuple(table["key"].to_pylist())
            schema.check(keys, tuple[schema.Key, ...])
            label_ids = table["label_id"].to_numpy()
            logits = np.stack(table["logits"].to_pylist()).astype(np.float32)
            if not np.isfinite(logits).all():
                raise ValueError("a logit is not finite")
            if not ((label_ids >= 0) & (label_ids < logits.shape[1])).all():
                raise ValueError("a label_id is not one of the logits")
            return cls(keys, label_ids, logits, dict(failed))
        except (OutError, OSError, pa.ArrowException, LookupError, ValueError) as error:
            said = " ".join(str(error).split())[:300]  # Arrow's may have several lines
            raise EvaluationError(f"{path} cannot be read ({said}); evaluate again") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Accuracy, and the clips that it covers.

    Attributes:
        top1: share of the evaluated clips whose true class has the highest logit.
        top5: share of those whose true class is among the five highest; None for five classes or
            fewer.
        mean_class: mean over the classes of the top-1 per class.
        interval: the 95 % interval of top1, from and to (see `wilson`).
        num_expected: clips in the split: evaluated and failed ones.
        num_scored: evaluated clips.
        num_failed: clips that are missing in the shards or could not be decoded.
        keys_sha256: of the evaluated keys, sorted, one per line. Scores with equal hashes can be
            compared.
    """

    top1: schema.Share
    top5: schema.Share | None
    mean_class: schema.Share
    interval: tuple[float, float]
    num_expected: schema.Count
    num_scored: schema.Positive
    num_failed: schema.Count
    keys_sha256: str


def _num_logits(metadata: pq.FileMetaData) -> int:
    """How many numbers the lists in the column `logits` have, by the file's footer."""
    total = 0
    for group in range(metadata.num_row_groups):
        columns = metadata.row_group(group)
        for number in range(columns.num_columns):
            column = columns.column(number)
            if column.path_in_schema.partition(".")[0] == "logits":
                total += column.num_values
    return total


def ranks(predictions: Predictions) -> npt.NDArray[np.int64]:
    """Number of classes above the true one, int64 (N,); of equal logits the lower index first."""
    rows = np.arange(len(predictions.keys))
    true = predictions.logits[rows, predictions.label_ids][:, None]
    before = np.arange(predictions.logits.shape[1])[None] < predictions.label_ids[:, None]
    higher = (predictions.logits > true) | ((predictions.logits == true) & before)
    counts: npt.NDArray[np.int64] = higher.sum(axis=1)
    return counts


def wilson(num_right: int, num: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, from and to.

    It says something where all clips are right, or none, and the standard error is 0: that of 5 of
    5 begins at 56.6 %.
    """
    share, spread = num_right / num, NORMAL_95**2 / num
    centre = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    # Rounding: the exact ends are 0 and 1 where none and all are right.
    return max(min(low, share), 0.0), min(max(high, share), 1.0)


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
        interval=wilson(int((rank == 0).sum()), num),
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
        identity: what decides the predictions, each part as a hash or a word. Version 0.1 wrote one
            hash of it.
        labels: class names in index order.
        flow: name of the flow; empty if the network sees none.
        train_split: None for weights that were not trained here.
        num_train: clips of that split in the shards.
        failed_train: key -> reason, of training clips that could not be decoded.
        test_split: the split that was evaluated.
        init: the weights that the training started from.
        missing_train: key -> reason, of training clips that are not in the shards.
        num_overlap: evaluated clips that the weights were trained on; 0 unless it was allowed.
    """

    folder: str
    identity: Mapping[str, str] | str
    labels: tuple[str, ...]
    flow: str
    train_split: str | None
    num_train: schema.Count
    failed_train: Mapping[str, str]
    test_split: str
    init: InitRecord = field(default_factory=InitRecord)  # absent in results of the first versions
    missing_train: Mapping[str, str] = field(default_factory=dict)
    num_overlap: schema.Count = 0

    def differing(self, identity: Mapping[str, str]) -> list[str]:
        """Names of the parts of `identity` that differ from those of this record."""
        there = {} if isinstance(self.identity, str) else self.identity
        return [name for name, value in identity.items() if there.get(name) != value]


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

    parameters: schema.Quantity
    flops: schema.Quantity
    flops_shape: tuple[tuple[schema.Quantity, ...], ...]
    device: str
    num_threads: schema.Count
    num_processes: schema.Count
    precision: str
    seconds_training: schema.Amount
    seconds_evaluation: schema.Amount


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
        history = {stream: [row.as_json() for row in rows] for stream, rows in self.history.items()}
        values |= {
            "protocol": self.protocol.as_json() | {"extents": extents},
            "recipes": self.recipes_as_json(),
            "history": history,
            **{name: asdict(values[name]) for name in ("score", "data", "cost", "origin")},
        }
        write_json(folder / RESULT, values)

    def predictions(self, folder: Path) -> Predictions:
        """Read the predictions.parquet in the folder of this result.

        Raises:
            EvaluationError: it is missing, damaged, or of another result.
        """
        shape = (self.score.num_scored, len(self.data.labels))
        found = Predictions.read(folder / PREDICTIONS, self.failed, shape=shape)
        if found.logits.shape != shape:  # the file's own count of them was wrong
            raise EvaluationError(
                f"{folder / PREDICTIONS} is not of the {RESULT} beside it; evaluate again"
            )
        return found

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
        except (ValueError, UnknownNameError) as error:
            raise EvaluationError(
                f"{folder / RESULT} is not a result of this version ({error}); evaluate again"
            ) from error

    @classmethod
    def _parsed(cls, values: Any) -> Result:
        values = schema.parse(values, dict[str, Any])
        recipes = dict(schema.parse(values.get("recipes"), dict[str, dict[str, Any]]))
        protocol = dict(schema.parse(values.get("protocol"), dict[str, Any]))
        protocol.pop("hash", None)
        extents = protocol.pop("extents", None)
        training = {each: Recipe.from_json(r) for each, r in recipes.pop("training", {}).items()}
        parts = {
            "protocol": schema.parse_exactly(protocol, EvalProtocol),
            "extents": extents,
            "score": _score_of(schema.parse(values.get("score"), dict[str, Any])),
            "training": training,
            "recipes": StreamRecipe.all_from_json(recipes),
        }
        found = schema.parse({**values, **parts}, cls)
        check_network(found.arch, found.stream)
        if not {*found.extents, *training, *found.history} <= set(STREAMS):
            raise ValueError("it has parts of an unknown stream")
        return found


def _score_of(values: Mapping[str, Any]) -> Score:
    """A stored score. Version 0.1 wrote a standard error in place of the interval."""
    stored = schema.parse({**values, "interval": (0.0, 1.0)}, Score)
    num = stored.num_scored
    return replace(stored, interval=wilson(round(stored.top1 * num), num))


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


def interval_text(value: Score) -> str:
    """The 95 % interval of top-1, in percent."""
    low, high = value.interval
    return f"{percent(low)} to {percent(high)}"


def cells(result: Result) -> dict[str, str]:
    """The numbers of a row by column title, as text."""
    value = result.score
    covers = f"{value.num_scored} / {value.num_expected}"
    if result.data.num_overlap:
        covers += f", {result.data.num_overlap} TRAINED ON"
    return {
        "stream": result.stream,
        "top-1 %": percent(value.top1),
        "95 % interval": interval_text(value),
        "top-5 %": percent(value.top5),
        "mean-class %": percent(value.mean_class),
        "evaluated / in the list": covers,
    }
