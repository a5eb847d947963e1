"""The verb `report`: one page about runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from kinetics_bench.commands.options import PROG, REPORT, RUNS
from kinetics_bench.commands.repeat import asked_of
from kinetics_tools.core.cli import Exit, Parser
from kinetics_tools.core.errors import OutError
from kinetics_tools.core.files import remove_leftovers


def parser() -> Parser:
    """The options of the verb `report`."""
    parser = Parser(f"{PROG} report", "Write one HTML page about one run or several.")
    parser.add_argument(
        "runs", type=Path, nargs="*", metavar="RUN", help="work-dirs (default: all in runs/)"
    )
    parser.add_argument("--out", type=Path, default=RUNS / REPORT, help="path of the page")
    parser.add_common()
    return parser


def act(arguments: argparse.Namespace) -> int:
    """Write the page, and print its path."""
    from kinetics_bench.evaluation.report import write_report

    if not arguments.out.name:
        raise OutError(f"--out {arguments.out} is a folder; give the path of a page, report.html")
    # A mistyped command leaves a folder with only a lock in it.
    remove_leftovers(arguments.out.parent, deep=False)
    runs = arguments.runs or sorted({path.parent for path in RUNS.glob("*/[!.]*")})
    print(write_report(runs, arguments.out, asked_of))
    return Exit.COMPLETE
