"""The record of an evaluation: predictions clip by clip, scores, and what each number covers."""

import hashlib
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

import kinetics_tools
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.files import publish, read_json, write_json

RESULT = "result.json"
PREDICTIONS = "predictions.parquet"
EVALUATION = "evaluate-"  # folders of evaluations beside the run's own begin so


@dataclass(frozen=True, slots=True)
class Predictions:
    """Logits of the clips that were scored, sorted by key, and why others were not.

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
    ) -> "Predictions":
        """Predictions from key -> (label id, logits).

        Raises:
            EvaluationError: no clip at all, or logits that are not finite.
        """
        if not rows:
            why = next(iter(failed.values()), "the split is empty")
            raise EvaluationError(f"no clip could be scored ({why})")
        keys = tuple(sorted(rows))
        logits = np.stack([rows[key][1] for key in keys]).astype(np.float32)
        if not np.isfinite(logits).all():
            bad = keys[int((~np.isfinite(logits)).any(axis=1).argmax())]
            raise EvaluationError(
                f"the logits of {bad} are not finite: the training diverged, or the weights are "
                "of no use"
            )
        return cls(keys, np.array([rows[key][0] for key in keys], np.int64), logits, dict(failed))

    def __add__(self, other: "Predictions") -> "Predictions":
        """Logits added, of the clips that both scored; what either lacks counts as failed."""
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
    def read(cls, path: Path, failed: Mapping[str, str]) -> "Predictions":
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
            raise EvaluationError(f"{path} cannot be read; evaluate again ({error})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How good, over which clips.

    Attributes:
        top1: share of scored clips whose true class has the highest logit.
        top5: among the five highest; None where there are not more than five classes.
        mean_class: mean over classes of each class's top-1.
        standard_error: of top1, binomial.
        num_expected: clips that belong to the split: scored + failed.
        num_scored: clips that top1 is a share of.
        num_failed: clips that are missing in the shards or could not be decoded.
        keys_sha256: over the scored keys, sorted, one a line. Two scores compare where it is equal.
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
    """Classes before the true one, int64 (N,); of equal logits the lower index is first."""
    rows = np.arange(len(predictions.keys))
    true = predictions.logits[rows, predictions.label_ids][:, None]
    before = np.arange(predictions.logits.shape[1])[None] < predictions.label_ids[:, None]
    higher = (predictions.logits > true) | ((predictions.logits == true) & before)
    counts: npt.NDArray[np.int64] = higher.sum(axis=1)
    return counts


def score(predictions: Predictions) -> Score:
    """The score of `predictions`; a failed clip is in no share, and counted."""
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
class Result:
    """One row: an architecture's stream under a protocol on a set of clips.

    Attributes:
        score: the numbers and what they cover.
        recipes: `training` of each stream, and the `rgb` and `flow-<name>` recipes of the data.
        data: the folder as given, test split, labels, training clips used and failed.
        cost: parameters, floating point operations of one clip (a multiplication and an addition
            are two) with the shape they were counted at, seconds, device, precision.
        origin: versions, commit, whether the tree was dirty.
        failed: key -> reason.
        history: an object an epoch, as in log.jsonl; empty for joint.
    """

    arch: str
    stream: str
    protocol: Mapping[str, Any]
    score: Score
    recipes: Mapping[str, Any]
    data: Mapping[str, Any]
    cost: Mapping[str, Any]
    origin: Mapping[str, Any]
    failed: Mapping[str, str]
    history: Mapping[str, Sequence[Mapping[str, Any]]]

    def write(self, folder: Path, predictions: Predictions) -> None:
        """Write predictions.parquet, then result.json: where that is, both are complete."""
        predictions.write(folder / PREDICTIONS)
        write_json(folder / RESULT, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Result":
        """Read the result.json in `folder`.

        Raises:
            EvaluationError: it is not one of ours.
        """
        values = read_json(folder / RESULT)
        try:
            return cls(**(values | {"score": Score(**values["score"])}))
        except (TypeError, KeyError) as error:
            raise EvaluationError(
                f"{folder / RESULT} is not a result of this version ({error}); evaluate again"
            ) from error


@cache
def origin() -> dict[str, Any]:
    """Versions, and commit and dirty of the code where git tracks it, else None."""
    packages = ("torch", "numpy", "av", "webdataset")
    commit = _git("rev-parse", "HEAD") if _git("ls-files", "--error-unmatch", __file__) else None
    return {
        "versions": {
            "kinetics-tools": kinetics_tools.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "commit": commit,
        "dirty": None if commit is None else _git("status", "--porcelain") != "",
    }


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
    """A share as a percentage with one decimal; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def cells(result: Result) -> dict[str, str]:
    """The row's numbers as a table shows them, by column title."""
    value = result.score
    return {
        "stream": result.stream,
        "top-1 %": percent(value.top1),
        "+-": percent(value.standard_error),
        "top-5 %": percent(value.top5),
        "mean-class %": percent(value.mean_class),
        "scored / expected": f"{value.num_scored} / {value.num_expected}",
    }
