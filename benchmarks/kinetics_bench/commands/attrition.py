"""The verb `attrition`: what losing clips does to an accuracy."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_bench.archs.registry import STREAMS
from kinetics_bench.commands.options import PROG
from kinetics_tools.core import console
from kinetics_tools.core.cli import Exit, Parser, one_of

if TYPE_CHECKING:
    from kinetics_bench.evaluation.attrition import Attrition, Range


def parser() -> Parser:
    """The options of the verb `attrition`."""
    parser = Parser(
        f"{PROG} attrition",
        "How the top-1 of a run moves when its test clips are thinned: by the clips that another "
        "copy of the data lost, for each reason in its ledger, and by 1,000 random losses of the "
        "same number. Then a curve, in steps of 5 % of the clips.",
    )
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="the work-dir of a run, the folder of another evaluation of it, or of a row",
    )
    parser.add_argument(
        "--ledger",
        type=Path,
        required=True,
        metavar="CLIPS",
        help="a folder that kinetics-download filled: of its files, manifest.csv, labels.txt and "
        "the ledgers are read",
    )
    parser.add_argument(
        "--stream",
        type=one_of("stream", STREAMS),
        help="of the run (default: joint, or the one that it has)",
    )
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON, to plot")
    parser.add_common()
    return parser


def act(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    from kinetics_bench.evaluation.attrition import Ledger, attrition
    from kinetics_bench.evaluation.results import ranks
    from kinetics_bench.evaluation.rows import find_row

    row = find_row(arguments.run, arguments.stream)
    predictions = row.predictions
    right = dict(zip(predictions.keys, (ranks(predictions) == 0).tolist(), strict=True))
    found = attrition(right, Ledger.read(arguments.ledger), seed=arguments.seed)
    if arguments.json:
        stream = row.result.stream
        print(json.dumps({"seed": arguments.seed, "stream": stream, **asdict(found)}))
    else:
        print(_text(found, row.name))
    return Exit.COMPLETE


def _text(found: Attrition, name: str) -> str:
    from kinetics_bench.evaluation.results import percent

    unknown = f", of which the ledger does not know {found.num_unknown:,}"
    rows = [
        {
            "reason": loss.reason,
            "lost there": f"{loss.num_lost:,}",
            "scored here": f"{loss.num_scored:,}",
            "top-1 % of the rest": percent(loss.top1),
            "change": "-" if loss.top1 is None else f"{100 * (loss.top1 - found.top1):+.2f}",
            **_columns("random", loss.random),
            "as far by chance %": percent(loss.p_value),
        }
        for loss in found.losses
    ]
    curve = [
        {
            "lost %": percent(step.share),
            "clips": f"{step.num:,}",
            **_columns("random", step.random),
            **_columns("real", step.real),
        }
        for step in found.curve
    ]
    return "\n".join(
        (
            f"{name}: top-1 {percent(found.top1)} % of {found.num_scored:,} clips"
            + (unknown if found.num_unknown else ""),
            "",
            console.text_table(rows),
            "",
            console.text_table(curve),
        )
    )


def _columns(what: str, drawn: Range | None) -> dict[str, str]:
    """Two columns of top-1 after drawn losses."""
    ends = "-" if drawn is None else f"{100 * drawn.low:.2f} to {100 * drawn.high:.2f}"
    mean = "-" if drawn is None else f"{100 * drawn.mean:.2f}"
    return {f"{what}: mean": mean, f"{what}: 95 % of draws": ends}
