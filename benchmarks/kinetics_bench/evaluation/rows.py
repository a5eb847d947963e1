"""Rows on disk: a result with its predictions, found by the folder of a run, or by its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kinetics_bench.archs.registry import STREAMS
from kinetics_bench.evaluation.folders import BEST
from kinetics_bench.evaluation.results import (
    EVALUATION_PREFIX,
    RESULT,
    Predictions,
    Result,
    ranks,
)
from kinetics_bench.training.checkpoint import BEST as BEST_CHECKPOINT
from kinetics_bench.training.checkpoint import CHECKPOINT, Checkpoint
from kinetics_bench.weights.files import Weights
from kinetics_tools.core.errors import EvaluationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """A result, its predictions, and the folder they are in."""

    folder: Path
    result: Result
    predictions: Predictions

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.result.data.labels

    @property
    def is_best(self) -> bool:
        """Whether its weights are those of best.pt; older versions said it by the folder's name."""
        run_folder = self.folder.absolute().parent.name
        return self.result.best or run_folder.startswith(EVALUATION_PREFIX + BEST)

    @property
    def name(self) -> str:
        """What the row is called where several are told apart: its folder, as given."""
        return str(self.folder)


def read_row(folder: Path) -> Row:
    """The row in `folder`.

    Raises:
        EvaluationError: it cannot be read.
    """
    result = Result.read(folder)
    predictions = result.predictions(folder)
    if not result.score.num_videos:  # of an older version
        score = result.score.by_video(ranks(predictions) == 0, predictions.keys)
        result = replace(result, score=score)
    return Row(folder, result, predictions)


def find_row(folder: Path, stream: str | None = None) -> Row:
    """One row of a run, of another evaluation of it, or the row that `folder` itself holds.

    Args:
        folder: of any of these.
        stream: which row of a run; None: `joint` where there is one, else the first.

    Raises:
        EvaluationError: there is none, or it cannot be read.
    """
    if (folder / RESULT).exists():
        row = read_row(folder)
        if stream not in (None, row.result.stream):
            raise EvaluationError(f"{folder} holds the row {row.result.stream}, not {stream}")
        return row
    there = _streams_in(folder)
    if not there:
        raise EvaluationError(
            f"{folder} holds no result: give the --work-dir of a run that ended, an "
            f"{EVALUATION_PREFIX}... folder in it, or the folder of a row ({RESULT})"
        )
    if stream is not None and stream not in there:
        raise EvaluationError(f"{folder} has no row {stream}; it has {', '.join(there)}")
    return read_row(folder / (stream or there[0]))


def find_rows(runs: Sequence[Path]) -> dict[Path, list[Row]]:
    """The rows of each run, `joint` first; runs without a result are left out.

    So are other evaluations of a run that are of other weights than it has now: its training was
    made longer or done again since, or another checkpoint is the best. A run may be the folder of
    one row, such as a fused one.

    Raises:
        EvaluationError: no run has a result.
    """
    found: dict[Path, list[Row]] = {}
    for run in runs:
        for folder in (run, *sorted(run.glob(f"{EVALUATION_PREFIX}*"))):
            own = [folder] if (folder / RESULT).exists() else []
            rows = own or [folder / name for name in _streams_in(folder)]
            read = [read_row(row) for row in rows]
            if folder != run and _is_outdated(run, read, found.get(run, ())):
                logger.warning(
                    "%s is left out: the training of %s went on since, or was done again; evaluate "
                    "again",
                    *(folder, run),
                )
            elif read:
                found[folder] = read
        if run not in found:
            logger.warning("%s has no result yet and is left out", run)
    if not found:
        where = ", ".join(map(str, runs)) or "runs"
        raise EvaluationError(
            f"no result in {where}; train a network with: run-benchmark --arch i3d"
        )
    return found


def _is_outdated(run: Path, rows: Sequence[Row], of_run: Sequence[Row]) -> bool:
    """Whether another evaluation of a run is of other weights than the run has now."""
    now = {row.result.stream: row for row in of_run}
    for row in rows:
        if row.is_best:
            if _weights(row) and _weights(row) != _best_weights(run / row.result.stream, row):
                return True
        elif (last := now.get(row.result.stream)) is not None:
            known = {_weights(row), _weights(last)} - {""}
            if len(known) > 1 or _recipes(row) != _recipes(last):
                return True
    return False


def _best_weights(folder: Path, row: Row) -> str:
    """Hash of the weights in best.pt now; of a copy of a run without its checkpoints the row's."""
    if not (folder / CHECKPOINT).exists() and not (folder / BEST_CHECKPOINT).exists():
        return _weights(row)
    try:
        return Weights(state=Checkpoint.read(folder / BEST_CHECKPOINT).net, source="").sha256
    except EvaluationError:  # there is none now, or it is damaged
        return ""


def _weights(row: Row) -> str:
    """Hash of the weights that a row is of; empty: of two networks, or version 0.1 wrote it."""
    identity = row.result.data.identity
    return "" if isinstance(identity, str) else identity.get("weights", "")


def _recipes(row: Row) -> dict[str, tuple[str, str]]:
    """Hashes and names of the recipes of a row; the name tells where a training was made longer."""
    return {name: (each.hash, each.name) for name, each in row.result.training.items()}


def _streams_in(folder: Path) -> list[str]:
    """The streams that have a row in the folder of a run, `joint` first."""
    return [name for name in STREAMS if (folder / name / RESULT).exists()]


def with_classes_of(first: Row, other: Row) -> Predictions:
    """The predictions of `other` with the classes in the order of `first`, matched by name.

    Raises:
        EvaluationError: one has a class that the other lacks, they have no clip in common, or a
            clip has another label in each.
    """
    lacking = sorted(set(first.labels) ^ set(other.labels))
    if lacking:
        owner = first if lacking[0] in first.labels else other
        raise EvaluationError(
            f"{first.name} has {len(first.labels)} classes and {other.name} {len(other.labels)}, "
            f"and they are not the same: only {owner.name} has {lacking[0]!r}"
        )
    shared = set(first.predictions.keys) & set(other.predictions.keys)
    if not shared:
        raise EvaluationError(
            f"no clip was scored by both: {first.name} has such as {first.predictions.keys[0]}, "
            f"{other.name} such as {other.predictions.keys[0]}"
        )
    place = {label: at for at, label in enumerate(first.labels)}
    theirs = other.predictions
    mapped = np.array([place[label] for label in other.labels], np.int64)
    label_ids = mapped[theirs.label_ids]
    mine = dict(zip(first.predictions.keys, first.predictions.label_ids.tolist(), strict=True))
    for key, label_id in zip(theirs.keys, label_ids.tolist(), strict=True):
        if mine.get(key, label_id) != label_id:
            raise EvaluationError(
                f"{key} is {first.labels[mine[key]]!r} in {first.name} and "
                f"{first.labels[label_id]!r} in {other.name}: one of them has wrong labels"
            )
    return replace(theirs, label_ids=label_ids, logits=theirs.logits[:, np.argsort(mapped)])
