"""`kinetics-download report` and `verify`: what an OUT holds, and whether it is whole."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_tools.core import cli, console, system
from kinetics_tools.core.cli import Exit, Parser

if TYPE_CHECKING:
    from kinetics_tools.download.coverage import Coverage
    from kinetics_tools.download.verify import CheckResult


def report_parser() -> Parser:
    """The parser of `kinetics-download report`."""
    parser = Parser(
        "kinetics-download report",
        "Tell what became of every segment that OUT was asked for, and write OUT/report: a page "
        "with plots (report.html), a list `path label_id` a split, clips.csv and missing.csv. It "
        "may be asked at any time, also while a run fills OUT.",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="a folder of kinetics-download's")
    parser.add_argument(
        "--absolute", action="store_true", help="absolute paths in the lists, not relative to OUT"
    )
    parser.add_common()
    return parser


def report_main(argv: Sequence[str]) -> int:
    """Do what `kinetics-download report` is asked for, and return the exit code."""
    options = report_parser().parse_args(argv)
    from kinetics_tools.download.report import write_report

    coverage, written = write_report(options.out, absolute=options.absolute)
    _tell(coverage)
    print("\nwritten:")
    for path in written:
        print(f"  {path}")
    return Exit.COMPLETE


def _tell(coverage: "Coverage") -> None:
    from kinetics_tools.download.coverage import reason_table, source_table, split_table

    for rows in (split_table(coverage), reason_table(coverage), source_table(coverage)):
        if rows:
            print(console.text_table(rows) + "\n")
    print(f"on disk: {coverage.num_files:,} clips, {console.size_text(coverage.num_bytes)}")


def verify_parser() -> Parser:
    """The parser of `kinetics-download verify`."""
    parser = Parser(
        "kinetics-download verify",
        "Decode every clip of OUT that the ledger has as done, and compare its bytes and frames. "
        "Damaged clips are recorded, and made again by the next kinetics-download of the same "
        "manifest; nothing is deleted.",
        "exit codes: 0 every clip is whole; 2 unusable input; 4 some must be made again; "
        "130 interrupted",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="a folder of kinetics-download's")
    parser.add_argument("--split", type=cli.names, help="only these splits: train,val")
    parser.add_argument(
        "--jobs",
        type=cli.positive,
        default=system.num_processors(),
        metavar="N",
        help="clips at once",
    )
    parser.add_common()
    return parser


def verify_main(argv: Sequence[str]) -> int:
    """Do what `kinetics-download verify` is asked for, and return the exit code."""
    options = verify_parser().parse_args(argv)
    from kinetics_tools.download.verify import verify

    found = verify(options.out, splits=options.split or (), jobs=options.jobs, show=_show)
    for path in found.untracked:
        print(f"{path}: is not in the ledger as done; left alone")
    print(f"{found.num_whole} clips are whole, {found.num_damaged} must be made again")
    if found.num_damaged == 0:
        return Exit.COMPLETE
    print("to make them again, give the kinetics-download command that filled this folder again")
    return Exit.RETRYABLE_GAPS


def _show(verdicts: Iterator["CheckResult"], total: int) -> Iterable["CheckResult"]:
    """Print what is damaged when it has been recorded."""
    for verdict in console.progress(verdicts, total=total, what="clips"):
        yield verdict
        if verdict.problem is not None:
            print(f"{verdict.path}: {verdict.problem}", flush=True)
