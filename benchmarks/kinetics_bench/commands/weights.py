"""The verb `verify-weights`: our logits beside the published ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from kinetics_bench.archs.registry import CHANNELS
from kinetics_bench.commands.options import PROG
from kinetics_tools.core import console
from kinetics_tools.core.cli import Exit, Parser
from kinetics_tools.core.errors import KineticsError


def parser() -> Parser:
    """The options of the verb `verify-weights`."""
    parser = Parser(
        f"{PROG} verify-weights",
        "Compare our logits for the authors' example (a clip of cricket) with the published ones.",
        "Weights and both arrays are in github.com/deepmind/kinetics-i3d, folder data/; other "
        "copies of the weights can be used. Exit code 0: all numbers are equal within the "
        "tolerance; 3: some are not.",
    )
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="a folder with one file of weights per stream, its name with rgb or flow in it; or a "
        "file of one stream",
    )
    for stream, channels in CHANNELS.items():
        parser.add_argument(
            f"--{stream}",
            type=Path,
            metavar="NPY",
            help=f"v_CricketShot_g04_c01_{stream}.npy, (1, 79, 224, 224, {channels})",
        )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_common()
    return parser


def act(arguments: argparse.Namespace) -> int:
    """Print the comparison."""
    given = {stream: getattr(arguments, stream) for stream in CHANNELS}
    clips = {stream: path for stream, path in given.items() if path is not None}
    if not clips:
        raise KineticsError("give the arrays of the example: --rgb NPY, --flow NPY, or both")
    from kinetics_bench.device import open_machine
    from kinetics_bench.weights.published_example import LOGIT_TOLERANCE, verify, worst

    with open_machine(arguments.device, "none") as machine:
        checks = verify(arguments.path, clips, machine)
    print(console.text_table([check.cells() for check in checks], left_aligned=("class", "")))
    num_passed = sum(check.passed for check in checks)
    largest = worst(checks)
    print(
        f"{num_passed} of {len(checks)} numbers agree within {LOGIT_TOLERANCE:g}; the largest "
        f"difference is {abs(largest.found - largest.expected):.3g} ({largest.stream}, "
        f"{largest.what})"
    )
    return Exit.COMPLETE if num_passed == len(checks) else Exit.PERMANENT_GAPS
