"""The manner of all commands: options that each has, exit codes, progress, one-line errors."""

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import NoReturn, TypeVar

import kinetics_tools
from kinetics_tools.errors import KineticsError, lookup, nearest
from kinetics_tools.files import PATH_ERRNOS, STORAGE_ERRNOS

T = TypeVar("T")
LOG_EVERY_S = 30.0


class Exit(IntEnum):
    """What a command's exit code says."""

    COMPLETE = 0
    CRASH = 1
    UNUSABLE = 2
    PERMANENT_GAPS = 3
    RETRYABLE_GAPS = 4
    STOPPED = 75
    INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """argparse with our manners: no abbreviations, defaults shown, the nearest name suggested."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_Formatter,
        )

    def error(self, message: str) -> NoReturn:
        """End with one line instead of argparse's usage block."""
        self.exit(Exit.UNUSABLE, f"error: {message} (see {self.prog} --help)\n")

    def add_common(self) -> None:
        """Add the options that every command has."""
        common = self.add_argument_group("in every command")
        common.add_argument(
            "--seed", type=int, default=0, help="every random choice follows from it"
        )
        common.add_argument(
            "--tmp-dir", type=Path, help="where scratch files go (default: beside the output)"
        )
        common.add_argument("--version", action="version", version=kinetics_tools.__version__)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)" and "(default: False)" say nothing.
        if action.default in (None, False, (), argparse.SUPPRESS) or action.help is None:
            return action.help
        return super()._get_help_string(action)


def one_of(kind: str, known: Iterable[str]) -> Callable[[str], str]:
    """An argparse type: one of the `known` names, else an error that suggests the nearest."""
    table = {name: name for name in known}

    def parse(name: str) -> str:
        if name not in table:
            raise argparse.ArgumentTypeError(nearest(kind, name, table))
        return lookup(kind, name, table)

    return parse


def positive(text: str) -> int:
    """An argparse type: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def take_verb(argv: list[str], verbs: Iterable[str]) -> tuple[str | None, list[str]]:
    """Split off a leading verb. A file of that name is given as ./NAME."""
    if argv and argv[0] in set(verbs):
        return argv[0], argv[1:]
    return None, argv


def default_jobs() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit: its own code, 2 for what the user can mend, 130 for Ctrl-C."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    try:
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except KineticsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(Exit.UNUSABLE)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(Exit.INTERRUPTED)
    except OSError as error:
        if error.errno not in STORAGE_ERRNOS | PATH_ERRNOS:
            raise
        where = error.filename or tempfile.gettempdir()
        print(
            f"error: {where}: {error.strerror}; make room or choose another folder, "
            "then give the same command again",
            file=sys.stderr,
        )
        sys.exit(Exit.UNUSABLE)


def progress(items: Iterable[T], *, total: int, what: str) -> Iterator[T]:
    """Yield `items`, and show how far: a bar on a terminal, else a log line every 30 s."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=what, unit="", dynamic_ncols=True)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LOG_EVERY_S:
            last = now
            left_s = (now - start) / done * (total - done)
            logging.getLogger(what).info(
                "%s: %d of %d, about %.0f s left", what, done, total, left_s
            )
