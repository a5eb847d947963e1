"""The verb `archs`: what there is to choose from."""

from __future__ import annotations

import argparse
import json

from kinetics_bench.commands.options import PROG
from kinetics_tools.core import console
from kinetics_tools.core.cli import Exit, Parser


def parser() -> Parser:
    """The options of the verb `archs`."""
    parser = Parser(
        f"{PROG} archs",
        "List the architectures: parameters and the paper's rounded number, inputs in training and "
        "test and their seconds of video, FLOPs per input (a multiplication and an addition are "
        "two), and the smallest input.",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list, one object per network"
    )
    parser.add_common()
    return parser


def act(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from kinetics_bench.archs.table import table

    rows = table()
    if arguments.json:
        print(json.dumps([row.as_json() for row in rows], indent=1))
    else:
        words = ("stream", "train input", "test input", "smallest input")
        print(console.text_table([row.cells() for row in rows], left_aligned=words))
    return Exit.COMPLETE
