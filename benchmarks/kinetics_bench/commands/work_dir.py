"""The work-dir of a run: its lock, and the rows that are printed at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from kinetics_bench.commands.options import REPORT
from kinetics_tools.core import console
from kinetics_tools.core.cli import Exit
from kinetics_tools.core.files import hold_lock, remove_leftovers

if TYPE_CHECKING:
    from kinetics_bench.evaluation.results import Result


@contextlib.contextmanager
def locked(work_dir: Path) -> Iterator[None]:
    """Hold the lock of a work-dir for the block, without what killed runs left in it.

    With torchrun the first process holds it for all.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with hold_lock(work_dir):
        remove_leftovers(work_dir)
        yield


def print_results(results: Sequence[Result], folder: Path) -> int:
    """Write the page of a run, and print its rows."""
    from kinetics_bench.evaluation.report import write_report
    from kinetics_bench.evaluation.results import cells

    report = write_report([folder], folder / REPORT)
    print(console.text_table([cells(result) for result in results]))
    print(f"report: {report}")
    return Exit.COMPLETE


def print_mean(runs: Sequence[Sequence[Result]]) -> None:
    """Print mean and deviation of the rows of several runs that differ in their seed."""
    print(f"mean and standard deviation of {len(runs)} seeds:")
    rows = []
    for results in zip(*runs, strict=True):
        scores = [result.score for result in results]
        rows.append(
            {
                "stream": results[0].stream,
                "top-1 %": _mean([each.top1 for each in scores]),
                "top-5 %": _mean([each.top5 for each in scores if each.top5 is not None]),
                "mean-class %": _mean([each.mean_class for each in scores]),
            }
        )
    print(console.text_table(rows))


def _mean(shares: Sequence[float]) -> str:
    """Mean and sample standard deviation, in percent."""
    if not shares:
        return "-"
    return f"{100 * mean(shares):.1f} +- {100 * stdev(shares):.1f}"
