"""The report: one HTML page, with everything in it, about one run or several."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.figure import Figure

from kinetics_bench.archs.registry import ARCHS, STREAMS
from kinetics_bench.evaluation.results import (
    EVALUATION_PREFIX,
    RESULT,
    Predictions,
    Result,
    cells,
    interval_text,
    percent,
    ranks,
)
from kinetics_bench.training.checkpoint import EpochRecord, InitRecord
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.files import write_text
from kinetics_tools.core.html import figure_image, figure_text, render, style_axes

logger = logging.getLogger(__name__)

TEMPLATE: Final = Path(__file__).with_name("report.html.jinja")
MAX_MATRIX: Final = 20  # classes that a confusion matrix can show legibly
NUM_WORST: Final = 12
NUM_FAILED: Final = 20
COLOURS: Final = {"rgb": "#b4532a", "flow": "#2a6fb4", "joint": "#3b3b58"}


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


def find_rows(runs: Sequence[Path]) -> dict[Path, list[Row]]:
    """The rows of each run, `joint` first; runs without a result are left out.

    Raises:
        EvaluationError: no run has a result.
    """
    found: dict[Path, list[Row]] = {}
    for run in runs:
        for folder in (run, *sorted(run.glob(f"{EVALUATION_PREFIX}*"))):
            rows = [_read(folder / name) for name in STREAMS if (folder / name / RESULT).exists()]
            if rows:
                found[folder] = rows
        if run not in found:
            logger.warning("%s has no result yet and is left out", run)
    if not found:
        where = ", ".join(map(str, runs)) or "runs"
        raise EvaluationError(
            f"no result in {where}; train a network with: run-benchmark --arch i3d"
        )
    return found


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page about `runs` to `out`, and return `out`."""
    found = find_rows(runs)
    page = render(
        TEMPLATE,
        sections=[_section(_name(folder), rows) for folder, rows in found.items()],
        table_rows=[
            {"run": _name(folder), "network": row.result.arch, **cells(row.result)}
            for folder, rows in found.items()
            for row in rows
        ],
    )
    write_text(out, page)
    return out


def _read(folder: Path) -> Row:
    result = Result.read(folder)
    return Row(folder, result, result.predictions(folder))


def _name(folder: Path) -> str:
    """Name of a run: its folder; of another evaluation of it: RUN/FOLDER."""
    folder = folder.absolute()
    inner = folder.name.startswith(EVALUATION_PREFIX)
    return f"{folder.parent.name}/{folder.name}" if inner else folder.name


def _section(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    best = rows[0]
    result = best.result
    arch = ARCHS[result.arch]
    small = len(best.labels) <= MAX_MATRIX
    history = {name: h for row in rows for name, h in row.result.history.items() if h}
    return {
        "name": name,
        "title": arch.title,
        "data": Path(result.data.folder).name,
        "source": arch.source,
        "best": best.result.stream,
        "top1": percent(result.score.top1),
        "interval": interval_text(result.score),
        "num_overlap": result.data.num_overlap,
        "chance": percent(1 / len(best.labels)),
        "num_scored": result.score.num_scored,
        "num_classes": len(best.labels),
        "protocol": result.protocol.title,
        "covers": [_covers(row) for row in rows],
        "failed": list(result.failed.items())[:NUM_FAILED],
        "num_failed": len(result.failed),
        "curves": [
            _curve(history, "loss", "training loss"),
            _curve(history, "top1", "training top-1 %", 100),
        ]
        if history
        else [],
        "matrix": figure_image(_matrix(best), "Confusion matrix") if small else None,
        "classes": figure_image(_per_class(rows), "Accuracy per class"),
        "worst": _worst(best),
        "costs": [_cost(row) for row in rows],
        "recipes": result.recipes_as_json(),
        "origin": result.origin,
    }


def _covers(row: Row) -> dict[str, str]:
    data, score = row.result.data, row.result.score
    failed, missing = len(data.failed_train), len(data.missing_train)
    trained_on = f"{data.train_split}: {data.num_train - failed} / {data.num_train + missing} clips"
    gaps = {"could not be decoded": failed, "not in the shards": missing}
    why = ", ".join(f"{number} {gap}" for gap, number in gaps.items() if number)
    if why:
        trained_on += f" ({why})"
    return {
        "stream": row.result.stream,
        "trained on": "not trained here" if data.train_split is None else trained_on,
        "tested on": data.test_split
        + (f" ({data.num_overlap} clips TRAINED ON)" if data.num_overlap else ""),
        "in the list": str(score.num_expected),
        "evaluated": str(score.num_scored),
        "failed": str(score.num_failed),
        "hash of the clips": score.keys_sha256[:12],
        "initial weights": _init_text(data.init),
    }


def _init_text(init: InitRecord) -> str:
    digits = f" ({init.sha256[:12]})" if init.sha256 else ""
    return init.source + digits + ("; last layer trained" if init.finetune == "last" else "")


def _cost(row: Row) -> dict[str, str]:
    cost = row.result.cost
    recipes = row.result.training.values()
    return {
        "stream": row.result.stream,
        "recipe": ", ".join(sorted({f"{each.name} {each.hash[:8]}" for each in recipes})),
        "parameters": f"{cost.parameters:,}",
        "GFLOPs per clip": f"{cost.flops / 1e9:.1f}",
        "of an input": " + ".join("x".join(map(str, shape)) for shape in cost.flops_shape),
        "training": _minutes(cost.seconds_training),
        "evaluation": _minutes(cost.seconds_evaluation),
        "on": f"{cost.device}, {cost.num_processes} process(es) with "
        f"{cost.num_threads} threads, {cost.precision}",
    }


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _worst(row: Row) -> list[dict[str, str]]:
    """The clips with the lowest probability of the true class."""
    predictions = row.predictions
    shares = softmax(predictions.logits)
    true = shares[np.arange(len(shares)), predictions.label_ids]
    return [
        {
            "clip": predictions.keys[at],
            "true class": row.labels[predictions.label_ids[at]],
            "p(true) %": percent(float(true[at])),
            "predicted": row.labels[int(shares[at].argmax())],
            "p(predicted) %": percent(float(shares[at].max())),
        }
        for at in np.argsort(true, kind="stable")[:NUM_WORST]
    ]


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Probabilities float64 (N, K) of logits (N, K)."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _curve(
    history: Mapping[str, Sequence[EpochRecord]], name: str, title: str, scale: float = 1
) -> Markup:
    """A plot of one field of the records over the epochs, one line per stream."""
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for stream, rows in history.items():
        values = [scale * getattr(row, name) for row in rows]
        marker = "o" if len(rows) == 1 else None  # a line needs two epochs
        epochs = [row.epoch for row in rows]
        axes.plot(epochs, values, color=COLOURS[stream], label=stream, marker=marker)
    axes.set(xlabel="epoch", title=title)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    style_axes(axes)
    return figure_image(figure, f"{title} per epoch")


def _matrix(row: Row) -> Figure:
    num = len(row.labels)
    counts = np.zeros((num, num))
    np.add.at(counts, (row.predictions.label_ids, row.predictions.logits.argmax(axis=1)), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.42 * num
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [figure_text(label) for label in row.labels]
    axes.set_xticks(range(num), labels, rotation=90)
    axes.set_yticks(range(num), labels)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for true, predicted in np.argwhere(counts):
        ink = "white" if shares[true, predicted] > 0.5 else "black"
        text = f"{counts[true, predicted]:.0f}"
        axes.text(predicted, true, text, ha="center", va="center", color=ink)
    return figure


def _per_class(rows: Sequence[Row]) -> Figure:
    """Top-1 per class as bars, sorted by the first row; of many classes the lowest and highest."""
    labels = rows[0].labels
    shares = [_class_shares(row) for row in rows]
    order = [at for at in np.argsort(shares[0], kind="stable") if not np.isnan(shares[0][at])]
    if len(order) > 2 * MAX_MATRIX:
        order = [*order[:MAX_MATRIX], *order[-MAX_MATRIX:]]
    height = 0.9 / len(rows)
    figure = Figure(figsize=(7, 0.8 + 0.36 * len(order)), layout="constrained")
    axes = figure.subplots()
    for number, (row, values) in enumerate(zip(rows, shares, strict=True)):
        places = np.arange(len(order)) + (number - (len(rows) - 1) / 2) * height
        stream = row.result.stream
        axes.barh(places, 100 * values[order], height * 0.9, color=COLOURS[stream], label=stream)
    axes.set_yticks(range(len(order)), [figure_text(labels[at]) for at in order])
    axes.invert_yaxis()
    axes.set(xlabel="top-1 %", xlim=(0, 100))
    if len(rows) > 1:
        axes.legend(frameon=False, ncols=len(rows), loc="lower right", bbox_to_anchor=(1, 1))
    style_axes(axes)
    return figure


def _class_shares(row: Row) -> npt.NDArray[np.float64]:
    """Top-1 per class, float64 (K,); NaN for classes without an evaluated clip."""
    right = ranks(row.predictions) == 0
    num = len(row.labels)
    of_class = np.bincount(row.predictions.label_ids, minlength=num).astype(float)
    hits = np.bincount(row.predictions.label_ids, weights=right, minlength=num)
    of_class[of_class == 0] = np.nan
    shares: npt.NDArray[np.float64] = hits / of_class
    return shares
