"""The report: one HTML page, with everything in it, about one run or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kinetics_bench.archs.registry import ARCHS
from kinetics_bench.evaluation import page_pictures, page_tables, paper
from kinetics_bench.evaluation.figures import MAX_MATRIX
from kinetics_bench.evaluation.groups import groups
from kinetics_bench.evaluation.page_tables import Asked, Run
from kinetics_bench.evaluation.results import interval_text, percent
from kinetics_bench.evaluation.rows import Row, find_rows
from kinetics_bench.evaluation.strips import mistakes
from kinetics_bench.recipes.recipe import EXTENDED
from kinetics_tools.core.files import write_text
from kinetics_tools.core.html import render

TEMPLATE: Final = Path(__file__).with_name("report.html.jinja")
MAX_PAGE: Final = 3_000_000  # bytes; pictures of clips and filters take what the rest leaves
NUM_MISTAKES: Final = 12  # in the table
NUM_FAILED: Final = 20


def write_report(
    folders: Sequence[Path], out: Path, asked: Callable[[Path], Asked | None] = lambda _: None
) -> Path:
    """Write the page about some runs to `out`, and return `out`.

    Args:
        folders: work-dirs, or folders of rows.
        out: path of the page.
        asked: what the run, the other evaluation of a run, or the fused row in a folder was asked
            for; None: unknown.

    Raises:
        EvaluationError: no run has a result, or a result cannot be read.
    """
    runs = [_run(rows, asked) for rows in find_rows(folders).values()]
    together = groups([row for run in runs for row in run.rows])
    sections = [_section(run) for run in runs]
    beside, notes = page_tables.runs_table(runs)
    values = {
        "sections": sections,
        "table_rows": page_tables.results_table(runs),
        "group_rows": page_tables.groups_table(together),
        "paper_rows": page_tables.paper_table(runs, together),
        "paper": paper.SOURCE,
        "beside_rows": beside,
        "beside_notes": notes,
    }
    room = max(MAX_PAGE - len(render(TEMPLATE, **values)), 0) // len(sections)
    for section, run in zip(sections, runs, strict=True):
        page_pictures.add_pictures(section, run, room)
    write_text(out, render(TEMPLATE, **values))
    return out


def _run(rows: Sequence[Row], asked: Callable[[Path], Asked | None]) -> Run:
    """The run of some rows; where an older version wrote no seed, they have that of its request."""
    folder = rows[0].folder if rows[0].result.fused else rows[0].folder.parent
    told = asked(folder)
    if told is not None:
        rows = [
            row
            if row.result.seed is not None or row.result.data.train_split is None
            else replace(row, result=replace(row.result, seed=told.seed))
            for row in rows
        ]
    return Run(folder=folder, rows=rows, asked=told)


def _made_longer(rows: Sequence[Row]) -> str:
    """At which step each training of a run was made longer; empty if none was."""
    steps = {
        name: each.name.partition(EXTENDED)[2]
        for row in rows
        for name, each in row.result.training.items()
        if EXTENDED in each.name
    }
    return ", ".join(f"{name} at step {step}" for name, step in steps.items())


def _section(run: Run) -> dict[str, Any]:
    rows, best = run.rows, run.rows[0]
    result = best.result
    arch = ARCHS[result.arch]
    seeds = {row.result.seed for row in rows if row.result.seed is not None}
    history = {name: h for row in rows for name, h in row.result.history.items() if h}
    return {
        "name": run.name,
        "title": result.network if result.fused else arch.title,
        "data": Path(result.data.folder).name,
        "source": arch.source,
        "best": result.stream,
        "seed": ", ".join(map(str, sorted(seeds))),
        "top1": percent(result.score.top1),
        "interval": interval_text(result.score),
        "num_overlap": result.data.num_overlap,
        "chance": percent(1 / len(best.labels)),
        "num_scored": result.score.num_scored,
        "num_expected": result.score.num_expected,
        "test_split": result.data.test_split,
        "num_classes": len(best.labels),
        "protocol": result.protocol.title,
        "covers": [page_tables.covers(row) for row in rows],
        "failed": list(result.failed.items())[:NUM_FAILED],
        "num_failed": len(result.failed),
        "curves": page_pictures.curves(history),
        "matrix": page_pictures.matrix(best),
        "is_whole_matrix": len(best.labels) <= MAX_MATRIX,
        "pairs": page_tables.pairs_table(best),
        "classes": page_pictures.per_class(rows),
        "gain": page_pictures.gain(run),
        "class_rows": page_tables.classes_table(run),
        "mistakes": [page_tables.clip(each) for each in mistakes(best, NUM_MISTAKES)],
        "costs": [page_tables.cost(row) for row in rows],
        "hashes": [page_tables.hashes(row) for row in rows],
        "recipes": result.recipes_as_json(),
        "commands": run.asked.commands if run.asked else (),
        "made_longer": _made_longer(rows),
        "origin": result.origin,
        "filters": [],
        "filters_note": "",
        "strips": {"mistakes": [], "hits": []},
        "strips_note": "",
        "strips_flow": "",
        "strips_px": "",
    }
