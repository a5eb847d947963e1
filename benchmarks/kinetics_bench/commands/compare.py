"""The verb `compare`: two rows on the clips that both scored."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_bench.archs.registry import STREAMS
from kinetics_bench.commands.options import PROG
from kinetics_tools.core import console
from kinetics_tools.core.cli import Exit, Parser, one_of
from kinetics_tools.core.text import printable

if TYPE_CHECKING:
    from kinetics_bench.evaluation.compare import Comparison, Listed, McNemar


def parser() -> Parser:
    """The options of the verb `compare`."""
    parser = Parser(
        f"{PROG} compare",
        "Compare two results on the clips that both scored: differences with bootstrap intervals "
        "by source video, McNemar's exact test, classes that gain and lose.",
        "A and B are folders: of a run, of another evaluation of it (RUN/evaluate-...), or of a "
        "row (RUN/rgb, or what fuse wrote).",
    )
    parser.add_argument("a", type=Path, metavar="A", help="one result; differences are A - B")
    parser.add_argument("b", type=Path, metavar="B", help="the other")
    parser.add_argument(
        "--stream",
        type=one_of("stream", STREAMS),
        help="which row of a run (default: joint, if it has one)",
    )
    parser.add_argument(
        "--keys",
        metavar="FILE|URL",
        help="only the clips of this list: keys or YouTube ids, one per line; a list of mmaction2 "
        "(PATH LABEL, PATH FRAMES LABEL); or a CSV with youtube_id,time_start,time_end",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, with all classes"
    )
    parser.add_common()
    return parser


def act(arguments: argparse.Namespace) -> int:
    """Print the comparison."""
    from kinetics_bench.evaluation.compare import compare
    from kinetics_bench.evaluation.key_lists import read_key_list
    from kinetics_bench.evaluation.rows import find_row

    rows = [find_row(folder, arguments.stream) for folder in (arguments.a, arguments.b)]
    keys = None if arguments.keys is None else read_key_list(arguments.keys)
    found = compare(*rows, keys=keys, seed=arguments.seed)
    if arguments.json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        print(printable("\n".join(_lines(found))))
    return Exit.COMPLETE


def _lines(found: Comparison) -> Iterator[str]:
    from kinetics_bench.evaluation.compare import class_cells
    from kinetics_bench.evaluation.intervals import RESAMPLES

    yield f"A: {found.a.name} ({found.a.title})"
    yield f"B: {found.b.name} ({found.b.title})"
    if found.listed:
        yield _told(found.listed)
    yield ""
    yield console.text_table(found.cells())
    yield ""
    yield (
        f"intervals: bootstrap of the {found.num_videos} source videos, {RESAMPLES} resamples, "
        f"seed {found.seed}"
    )
    yield _tested(found.test)
    if found.detectable is not None and found.detectable < 1:
        yield (
            "these clips can show, with a power of 80 %, a difference of top-1 of "
            f"{100 * found.detectable:.1f} points"
        )
    elif found.detectable is not None:
        yield "these clips are too few to show any difference of top-1 with a power of 80 %"
    for title, classes in (("A gains most in", found.gains), ("B gains most in", found.losses)):
        if classes:
            yield ""
            yield f"{title}:"
            yield console.text_table(class_cells(classes))
    if found.notes:
        yield ""
    for note in found.notes:
        yield f"note: {note}"


def _told(listed: Listed) -> str:
    return (
        f"of the {listed.num} entries of {listed.name} {listed.both} name clips that both scored, "
        f"{listed.only_a} clips of A only, {listed.only_b} of B only, {listed.neither} none of them"
    )


def _tested(test: McNemar) -> str:
    num = test.only_a + test.only_b
    least = (
        "so few cannot be significant: at least 6 are needed"
        if test.least_net is None
        else f"significant at 5 % from a net {test.least_net} of these {num} on"
    )
    return (
        f"McNemar's exact test of top-1: only A right {test.only_a}, only B right {test.only_b}, "
        f"p = {test.p:.3g}; {least}"
    )
