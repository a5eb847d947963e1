"""The verb `fuse`: the weighted sum of saved predictions, as a row of its own."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_bench.archs.registry import STREAMS
from kinetics_bench.commands.options import PROG, add_dump
from kinetics_bench.commands.work_dir import print_results
from kinetics_bench.training.lock import locked
from kinetics_tools.core.cli import Parser, one_of
from kinetics_tools.core.errors import EvaluationError

if TYPE_CHECKING:
    from kinetics_bench.evaluation.results import Result

logger = logging.getLogger(__name__)


def parser() -> Parser:
    """The options of the verb `fuse`."""
    parser = Parser(
        f"{PROG} fuse",
        "Add the saved predictions of several results, clip by clip, and score the sum. A clip "
        "that one of them lacks counts as failed.",
        "Folders are as for compare. compare and report take DIR.",
    )
    parser.add_argument(
        "rows",
        type=Path,
        nargs="+",
        metavar="ROW",
        help="folders of runs, of other evaluations, or of rows (RUN/rgb)",
    )
    parser.add_argument(
        "--weights",
        type=_weights,
        metavar="W,W",
        help="one number from 0 on for each (default: 1 each)",
    )
    parser.add_argument(
        "--of",
        default="logits",
        choices=("logits", "softmax"),
        help="what is added: logits, as joint does, or the probabilities of softmax",
    )
    parser.add_argument(
        "--stream",
        type=one_of("stream", STREAMS),
        help="which row of a run (default: joint, if it has one)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the new row"
    )
    add_dump(parser)
    parser.add_common()
    return parser


def act(arguments: argparse.Namespace) -> int:
    """Fuse, and print the row."""
    from kinetics_bench.evaluation.fusion import fuse
    from kinetics_bench.evaluation.rows import find_row

    if len(arguments.rows) < 2:
        raise EvaluationError(f"{arguments.rows[0]} alone is no sum; give two rows or more")
    rows = [find_row(folder, arguments.stream) for folder in arguments.rows]
    weights = arguments.weights or (1.0,) * len(rows)
    result, predictions = fuse(rows, weights, arguments.of)
    before = _own(arguments.out)
    with locked(arguments.out):
        if before not in ("", _sum(result)):
            logger.info("%s: replaced, it was %s", arguments.out, before)
        result.write(arguments.out, predictions)
        return print_results([result], arguments.out, dump=arguments.dump)


def _weights(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text[:80]!r} is not numbers with commas between them, such as 1,1.5"
        ) from error


def _own(out: Path) -> str:
    """What the fused row in `out` is the sum of; empty if there is none.

    Raises:
        EvaluationError: `out` holds what another command wrote.
    """
    from kinetics_bench.evaluation.results import RESULT, Result
    from kinetics_bench.inference.networks import RUN

    is_run = (out / RUN).exists() or any((out / name / RESULT).exists() for name in STREAMS)
    there = Result.read(out) if (out / RESULT).exists() else None
    if is_run or (there is not None and not there.fused):
        raise EvaluationError(f"{out} holds results of a run; choose another --out")
    return "" if there is None else _sum(there)


def _sum(result: Result) -> str:
    assert result.fused is not None
    parts = " + ".join(f"{part.weight:g} x {part.name}" for part in result.fused.parts)
    return f"{result.fused.of} of {parts}"
