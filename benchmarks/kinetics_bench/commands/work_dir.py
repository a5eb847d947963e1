"""The rows of a run that are printed at its end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_bench.commands.options import REPORT
from kinetics_bench.commands.repeat import asked_of
from kinetics_tools.core import console
from kinetics_tools.core.cli import Exit
from kinetics_tools.core.errors import EvaluationError, OutError
from kinetics_tools.core.text import printable

if TYPE_CHECKING:
    from kinetics_bench.evaluation.results import Result

logger = logging.getLogger(__name__)


def print_results(results: Sequence[Result], folder: Path, *, dump: str | None = None) -> int:
    """Write the page of a run, and print its rows; `dump` is the value of --dump."""
    from kinetics_bench.evaluation.report import write_report
    from kinetics_bench.evaluation.results import PREDICTIONS_CSV, cells
    from kinetics_bench.evaluation.rows import find_row

    if dump:
        for result in results:
            row = find_row(folder, result.stream)
            row.predictions.write_csv(row.folder / PREDICTIONS_CSV, row.labels)
    print(console.text_table([cells(result) for result in results]))
    try:
        print(f"report: {write_report([folder], folder / REPORT, asked_of)}")
    except (EvaluationError, OutError) as error:  # another evaluation in the folder is damaged
        logger.warning("no page was written: %s", error)
    return Exit.COMPLETE


def print_means(folders: Sequence[Path]) -> None:
    """Print mean and deviation of rows that differ in their seed, and which rows are in none."""
    from kinetics_bench.evaluation.groups import groups
    from kinetics_bench.evaluation.rows import find_rows

    rows = [row for own in find_rows(folders).values() for row in own]
    found = groups(rows)
    means = [{"stream": group.one.result.stream, **group.cells()} for group in found]
    print("mean and standard deviation:" if means else "no mean: no two rows are alike")
    if means:
        print(console.text_table(means))
    inside = {row.folder for group in found for own in group.rows.values() for row in own.values()}
    for row in rows:
        if row.folder not in inside:
            print(
                printable(
                    f"in no mean: {row.name}: its clips, weights, recipe, protocol or precision "
                    "differ from those of the other seeds"
                )
            )
