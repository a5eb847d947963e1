"""The results of an evaluation: predictions per clip, scores, and what each number covers.

predictions.parquet    Predictions: columns key, label_id, logits
predictions.csv        the same for people: labels, and probabilities; written where it is asked for
result.json            Result: one row of a table
"""

from __future__ import annotations

import csv
import hashlib
import math
import platform
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

import kinetics_tools
from kinetics_bench.archs.registry import STREAMS, check_network
from kinetics_bench.evaluation import coverage, intervals
from kinetics_bench.protocols import EvalProtocol, Extent
from kinetics_bench.recipes import Recipe
from kinetics_bench.training.checkpoint import EpochRecord, InitRecord
from kinetics_tools.core import schema
from kinetics_tools.core.errors import EvaluationError, OutError, UnknownNameError
from kinetics_tools.core.files import publish, read_json, require_file, write_json
from kinetics_tools.core.keys import source_video
from kinetics_tools.shards.records import StreamRecipe

RESULT = "result.json"
PREDICTIONS = "predictions.parquet"
PREDICTIONS_CSV = "predictions.csv"
MAX_CLIPS = 2**24
_COLUMNS = [pa.string(), pa.int64(), pa.list_(pa.float32())]  # of predictions.parquet
EVALUATION_PREFIX = "evaluate-"  # of folders with other evaluations of a run
TRAINING = "training"  # source of an Overlap


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

    def subset(self, keys: Collection[str]) -> Predictions:
        """The predictions and failures of some clips; keys that are not there are left out."""
        wanted = frozenset(keys)
        at = [number for number, key in enumerate(self.keys) if key in wanted]
        failed = {key: why for key, why in self.failed.items() if key in wanted}
        kept = tuple(self.keys[number] for number in at)
        return Predictions(kept, self.label_ids[at], self.logits[at], failed)

    def softmax(self) -> npt.NDArray[np.float64]:
        """Probabilities of the classes, float64 (N, K); each row sums to 1."""
        shares: npt.NDArray[np.float64] = np.exp(self.log_softmax())
        return shares

    def log_softmax(self) -> npt.NDArray[np.float64]:
        """Logarithms of the probabilities of the classes, float64 (N, K)."""
        below = self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True)
        logs: npt.NDArray[np.float64] = below - np.log(np.exp(below).sum(axis=1, keepdims=True))
        return logs

    def write_csv(self, path: Path, labels: Sequence[str]) -> None:
        """Write columns key, label, prediction, and the probability of each class, by its name."""
        predicted = self.logits.argmax(axis=1)
        with publish(path) as scratch, scratch.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["key", "label", "prediction", *labels])
            for number, shares in enumerate(self.softmax()):
                names = (labels[self.label_ids[number]], labels[predicted[number]])
                writer.writerow([self.keys[number], *names, *(f"{p:.9g}" for p in shares)])

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
            if any(key >= after for key, after in pairwise(keys)):
                raise ValueError("its keys are not sorted, each once")
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
        interval: the 95 % interval of top1, from and to (see `intervals.of_share`).
        num_expected: clips in the split: evaluated and failed ones.
        num_scored: evaluated clips.
        num_failed: clips that are missing in the shards or could not be decoded.
        keys_sha256: of the evaluated keys, sorted, one per line. Scores with equal hashes can be
            compared.
        bounds: top1 if all failed clips were wrong, and if all were right.
        reweighted: top1 with each class counted as often as the split lists it; None: the class of
            a failed clip is not known.
        num_unscored_classes, num_unscored_clips: classes of the split without an evaluated clip,
            which `reweighted` leaves out, and their clips.
        standard_error: of top1; None where it would be 0, as all or none are right.
        num_videos: source videos of the evaluated clips; 0: an older version took each clip as one
            of its own.
    """

    top1: schema.Share
    top5: schema.Share | None
    mean_class: schema.Share
    interval: tuple[schema.Share, schema.Share]
    num_expected: schema.Count
    num_scored: schema.Positive
    num_failed: schema.Count
    keys_sha256: str
    bounds: tuple[schema.Share, schema.Share]
    reweighted: schema.Share | None = None
    num_unscored_classes: schema.Count = 0
    num_unscored_clips: schema.Count = 0
    standard_error: schema.Share | None = None
    num_videos: schema.Count = 0

    def by_video(self, right: npt.NDArray[np.bool_], keys: Sequence[str]) -> Score:
        """The score with the interval and the error of clips of which some share a video.

        Args:
            right: bool (N,), which evaluated clips are right.
            keys: of these, N.
        """
        names, videos = np.unique([source_video(key) for key in keys], return_inverse=True)
        interval, error = intervals.of_share(right, videos)
        return replace(self, interval=interval, standard_error=error, num_videos=len(names))


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


def sha256_of_keys(keys: Sequence[str]) -> str:
    """SHA-256 of sorted keys, one per line: which clips a score is of."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def score(predictions: Predictions, label_ids: Mapping[str, int] | None = None) -> Score:
    """The score of `predictions`; failed clips are counted, but not as wrong ones.

    Args:
        predictions: of the evaluated clips.
        label_ids: key -> class, of the failed clips where it is known; other keys are ignored.
    """
    rank = ranks(predictions)
    num = len(predictions.keys)
    top1 = float((rank == 0).mean())
    classes = np.unique(predictions.label_ids)
    per_class = [(rank[predictions.label_ids == label] == 0).mean() for label in classes]
    missing = [(label_ids or {}).get(key) for key in predictions.failed]
    weighted = coverage.reweighted(rank == 0, predictions.label_ids, missing)
    num_right = int((rank == 0).sum())
    found = Score(
        top1=top1,
        top5=float((rank < 5).mean()) if predictions.logits.shape[1] > 5 else None,
        mean_class=float(np.mean(per_class)),
        interval=(0.0, 1.0),
        num_expected=num + len(predictions.failed),
        num_scored=num,
        num_failed=len(predictions.failed),
        keys_sha256=sha256_of_keys(predictions.keys),
        bounds=coverage.bounds(num_right, num, num + len(predictions.failed)),
        reweighted=weighted.top1,
        num_unscored_classes=weighted.num_classes,
        num_unscored_clips=weighted.num_clips,
    )
    return found.by_video(rank == 0, predictions.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Evaluated clips of videos that the weights were, or may have been, trained on.

    Attributes:
        source: whose videos: TRAINING, or the name of a list of --pretrained-on.
        num_listed: videos there.
        num_videos: of these, videos with an evaluated clip.
        num_clips: evaluated clips of these.
        without: the score of the others; None if no clip is shared, or no other was evaluated.
    """

    source: str
    num_listed: schema.Count
    num_videos: schema.Count
    num_clips: schema.Count
    without: Score | None = None


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
        classes: those that the test was restricted to, of the network's labels; None: all.
        out_of_scope: class -> clips, of the classes that the list of the test split has and the
            shards do not have at all. They are not among the expected ones.
        num_unclassed: missing clips that may be of `classes` or not. They are not among the
            expected ones.
        overlaps: evaluated clips of videos that the weights were trained on.
        num_held_out: clips that were not trained on, whose loss was looked at in training.
        val_split: where they are from; empty if there are none.
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
    classes: tuple[str, ...] | None = None
    out_of_scope: Mapping[str, schema.Count] = field(default_factory=dict)
    num_unclassed: schema.Count = 0
    overlaps: tuple[Overlap, ...] = ()
    num_held_out: schema.Count = 0
    val_split: str = ""

    @property
    def num_held_out_of_training(self) -> int:
        """Clips of the training split that were held out; 0 if those came from another split."""
        return self.num_held_out if self.val_split == f"held out of {self.train_split}" else 0

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


FusionOf = Literal["logits", "softmax"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """What a row was fused from.

    Attributes:
        of: what was added: `logits`, or the probabilities of `softmax`.
        parts: at least one.
    """

    of: FusionOf
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One of the rows that a row was fused from.

    Attributes:
        name: the folder that it was in.
        weight: of its predictions in the sum.
        result: the row, which is not a fused one.
    """

    name: str
    weight: schema.Amount
    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row: a stream of an architecture, under a protocol, on a set of clips.

    A fused row has a network of each of its parts. Where these differ, the fields here are those of
    the first part that has them, but for sums (`cost`); `fused` has all.

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
        seed: of the training; None: nothing was trained, or an older version did not write it.
        fused: from what; None for the row of one run.
        best: whether the weights are those of best.pt, not of the last checkpoint.
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
    seed: int | None = None
    fused: Fusion | None = None
    best: bool = False

    @property
    def network(self) -> str:
        """The architecture; of a fused row all of them."""
        return self._of_parts(lambda result: result.arch)

    @property
    def protocol_name(self) -> str:
        """Name of the protocol; of a fused row all of them."""
        return self._of_parts(lambda result: result.protocol.name)

    def _of_parts(self, name: Callable[[Result], str]) -> str:
        parts = [part.result for part in self.fused.parts] if self.fused else [self]
        return " + ".join(dict.fromkeys(map(name, parts)))

    def write(self, folder: Path, predictions: Predictions) -> None:
        """Write predictions.parquet and result.json: if this exists, both are complete.

        What was there before stays until both are written: a full disk takes nothing away.
        """
        with publish(folder / RESULT) as row:
            write_json(row, self._as_json())
            with publish(folder / PREDICTIONS) as table:
                predictions.write(table)
                for name in (RESULT, PREDICTIONS_CSV):  # of the predictions before
                    (folder / name).unlink(missing_ok=True)

    def update(self, folder: Path) -> None:
        """Write result.json beside the predictions of this row, which stay."""
        write_json(folder / RESULT, self._as_json())

    def _as_json(self) -> dict[str, Any]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        del values["extents"], values["training"]
        if self.seed is None:
            del values["seed"]
        if not self.best:  # other rows are written as before
            del values["best"]
        extents = {stream: asdict(extent) for stream, extent in self.extents.items()}
        history = {stream: [row.as_json() for row in rows] for stream, rows in self.history.items()}
        values |= {
            "protocol": self.protocol.as_json() | {"extents": extents},
            "recipes": self.recipes_as_json(),
            "history": history,
            **{name: asdict(values[name]) for name in ("score", "data", "cost", "origin")},
        }
        del values["fused"]
        if self.fused is not None:  # so here
            parts = [
                {"name": part.name, "weight": part.weight, "result": part.result._as_json()}
                for part in self.fused.parts
            ]
            values["fused"] = {"of": self.fused.of, "parts": parts}
        return values

    def predictions(self, folder: Path) -> Predictions:
        """Read the predictions.parquet in the folder of this result.

        Raises:
            EvaluationError: it is missing, damaged, or of another result.
        """
        shape = (self.score.num_scored, len(self.data.labels))
        found = Predictions.read(folder / PREDICTIONS, self.failed, shape=shape)
        keys_sha256 = sha256_of_keys(found.keys)
        if (found.logits.shape, keys_sha256) != (shape, self.score.keys_sha256) or not math.isclose(
            float((ranks(found) == 0).mean()), self.score.top1, abs_tol=1e-9
        ):
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
            EvaluationError: there is none, or it is not a result of this version.
        """
        try:
            values = read_json(folder / RESULT, "evaluate again")
        except FileNotFoundError as error:  # while it is written again, there is none
            raise EvaluationError(f"{folder} has no {RESULT}; evaluate again") from error
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
            "fused": _fusion_of(values.get("fused")),
        }
        found = schema.parse({**values, **parts}, cls)
        check_network(found.arch, found.stream)
        if not {*found.extents, *training, *found.history} <= set(STREAMS):
            raise ValueError("it has parts of an unknown stream")
        if len(set(found.data.labels)) < len(found.data.labels):
            raise ValueError("a label is there twice")  # classes are matched by name
        return found


def _fusion_of(values: Any) -> Fusion | None:
    """What a stored row was fused from. Its parts are not fused rows, so this ends."""
    if values is None:
        return None
    stored = schema.parse(values, dict[str, Any])
    parts = []
    for part in schema.parse(stored.get("parts"), list[dict[str, Any]]):
        result = schema.parse(part.get("result"), dict[str, Any])
        if result.get("fused") is not None:
            raise ValueError("a part of it is a fused row")
        parts.append({**part, "result": Result._parsed(result)})
    if not parts:
        raise ValueError("it was fused from nothing")
    return schema.parse({**stored, "parts": parts}, Fusion)


def _score_of(values: Mapping[str, Any]) -> Score:
    """A stored score. Older versions took clips as independent; 0.1 wrote no interval or bounds."""
    again: dict[str, Any] = {"bounds": (0.0, 1.0)}
    if not values.get("num_videos"):
        again |= {"interval": (0.0, 1.0), "standard_error": None}
    stored = schema.parse({**values, **again}, Score)
    num, expected = stored.num_scored, stored.num_expected
    if expected != num + stored.num_failed:
        raise ValueError(f"{expected} clips are not {num} evaluated and {stored.num_failed} failed")
    num_right = round(stored.top1 * num)
    if not stored.num_videos:
        error = intervals.binomial_error(num_right, num)
        stored = replace(stored, interval=intervals.wilson(num_right, num), standard_error=error)
    return replace(
        stored,
        bounds=coverage.bounds(num_right, num, expected),
        reweighted=stored.reweighted if stored.num_failed else stored.top1,
    )


def run_of(folder: Path) -> Path:
    """The work-dir of the run whose rows are in `folder`: that itself, or the folder above it."""
    is_other = folder.absolute().name.startswith(EVALUATION_PREFIX)
    return folder.parent if is_other else folder


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
    lower, upper = value.bounds
    return {
        "stream": result.stream,
        "protocol": result.protocol_name,
        "seed": "-" if result.seed is None else str(result.seed),
        "top-1 %": percent(value.top1),
        "95 % interval": interval_text(value),
        "top-5 %": percent(value.top5),
        "mean-class %": percent(value.mean_class),
        "bounds %": f"{percent(lower)} to {percent(upper)}",
        "reweighted %": percent(value.reweighted),
        "evaluated / in the list": covers_text(result),
    }


def covers_text(result: Result) -> str:
    """How many clips a row covers, and what else is to be known about them."""
    value = result.score
    return ", ".join([f"{value.num_scored} / {value.num_expected}", *scope_notes(result)])


def scope_notes(result: Result) -> list[str]:
    """What is to be known about the clips of a row: out of scope, or trained on."""
    data = result.data
    parts = []
    if data.out_of_scope:
        num_clips = sum(data.out_of_scope.values())
        parts.append(f"{num_clips:,} of {len(data.out_of_scope)} classes out of scope")
    if result.fused is None:
        return parts + _notes_on_overlaps(data)
    for at, part in enumerate(result.fused.parts, 1):
        parts += [f"part {at}: {note}" for note in _notes_on_overlaps(part.result.data)]
    return parts


def _notes_on_overlaps(data: DataRecord) -> list[str]:
    """Which clips of a row of one network it was, or may have been, trained on."""
    parts = []
    trained = next((each for each in data.overlaps if each.source == TRAINING), None)
    if data.num_overlap or trained:
        is_all = trained is None or trained.num_clips == data.num_overlap
        what = "TRAINED ON" if is_all else "OF TRAINED VIDEOS"
        num = data.num_overlap if trained is None else trained.num_clips
        parts.append(f"{num} {what}{_others(trained)}")
    parts += [
        f"{each.num_clips:,} of videos in {each.source}{_others(each)}"
        for each in data.overlaps
        if each is not trained  # also none: a check that found nothing is no missing check
    ]
    return parts


def _others(overlap: Overlap | None) -> str:
    """The accuracy without the clips of an overlap."""
    others = None if overlap is None else overlap.without
    return "" if others is None else f" ({percent(others.top1)} % without)"
