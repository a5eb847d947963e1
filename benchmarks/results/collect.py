"""Two tables of all rows under a folder of runs: python collect.py RUNS RESULTS.csv PREDICTIONS.csv

RESULTS.csv        a line for each row: what was run, top-1 and what it covers, seconds
PREDICTIONS.csv    a line for each clip of each row: class, prediction, its probability
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kinetics_bench.evaluation.results import RESULT
from kinetics_bench.evaluation.rows import Row, read_row
from kinetics_bench.inference.networks import read_request


def line(row: Row, name: str) -> dict[str, Any]:
    """What RESULTS.csv says of a row."""
    result, score, cost = row.result, row.result.score, row.result.cost
    low, high = score.interval
    asked = read_request(row.folder.parent)
    return {
        "row": name,
        "arch": result.arch,
        "stream": result.stream,
        "seed": asked.seed,
        "protocol": result.protocol_name,
        "top1": f"{100 * score.top1:.1f}",
        "from": f"{100 * low:.1f}",
        "to": f"{100 * high:.1f}",
        "mean_class": f"{100 * score.mean_class:.1f}",
        "num_scored": score.num_scored,
        "num_expected": score.num_expected,
        "classes": " ".join(result.data.classes or row.labels),
        "init": Path(asked.init).name,
        "recipes": " ".join(f"{name} {each.hash[:8]}" for name, each in result.training.items()),
        "seconds_training": f"{cost.seconds_training:.0f}",
        "seconds_evaluation": f"{cost.seconds_evaluation:.0f}",
        "threads": cost.num_threads,
        "precision": cost.precision,
        "commit": (result.origin.commit or "")[:7],
    }


def clips(row: Row, name: str) -> Iterator[dict[str, Any]]:
    """What PREDICTIONS.csv says of a row."""
    found = row.predictions
    for key, label_id, shares in zip(found.keys, found.label_ids, found.softmax(), strict=True):
        best = int(shares.argmax())
        names = {"label": row.labels[label_id], "prediction": row.labels[best]}
        yield {"row": name, "key": key, **names, "probability": f"{shares[best]:.4f}"}


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def main(runs: Path, results: Path, predictions: Path) -> None:
    """Write both tables."""
    folders = sorted(path.parent for path in runs.rglob(RESULT))
    rows = {str(folder.relative_to(runs)): read_row(folder) for folder in folders}
    write(results, [line(row, name) for name, row in rows.items()])
    write(predictions, [each for name, row in rows.items() for each in clips(row, name)])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
