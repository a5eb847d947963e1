"""The manner of all commands: options that each has, exit codes, progress, one-line errors."""

import argparse
import errno
import logging
import os
import select
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import NoReturn

import kinetics_tools
from kinetics_tools.core.engine import ENGINES
from kinetics_tools.core.errors import KineticsError, lookup, unknown_name
from kinetics_tools.core.files import FULL_ERRNOS, PATH_ERRNOS, STORAGE_ERRNOS


class Exit(IntEnum):
    """What a command's exit code says."""

    COMPLETE = 0
    CRASH = 1
    UNUSABLE = 2
    PERMANENT_GAPS = 3
    RETRYABLE_GAPS = 4
    STOPPED = 75
    INTERRUPTED = 130
    UNREAD = 141
    TERMINATED = 143


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

    def add_run(self, *, jobs: str, made: str) -> argparse._ArgumentGroup:
        """Add the options of a run that makes things, in any number of parts.

        Args:
            jobs: what `--jobs` counts, and its default, in words.
            made: what `--force` makes anew, such as "clip".

        Returns:
            their group, for options of the command's own.
        """
        run = self.add_argument_group("the run")
        run.add_argument("--jobs", type=positive, metavar="N", help=jobs)
        run.add_argument(
            "--engine",
            type=one_of("engine", ENGINES),
            default="local",
            help="what runs the work: local, processes of this machine; ray, a Ray cluster, the "
            "one that RAY_ADDRESS names",
        )
        run.add_argument(
            "--task",
            metavar="I/N",
            help="do the I-th of N shares, I from 0; in a Slurm array it follows from the array",
        )
        run.add_argument("--force", action="store_true", help=f"make every {made} anew")
        run.add_argument("--dry-run", action="store_true", help="say what would be done")
        return run

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
        if action.default in (None, False, (), [], argparse.SUPPRESS) or action.help is None:
            return action.help
        return super()._get_help_string(action)


def one_of(kind: str, known: Iterable[str]) -> Callable[[str], str]:
    """An argparse type: one of the `known` names, else an error that suggests the nearest."""
    table = {name: name for name in known}

    def parse(name: str) -> str:
        if name not in table:
            raise argparse.ArgumentTypeError(unknown_name(kind, name, table))
        return lookup(kind, name, table)

    return parse


def positive(text: str) -> int:
    """An argparse type: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def pixels(text: str) -> float:
    """An argparse type: a number of pixels above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels above 0")
    return number


def pixels_or_keep(text: str) -> int | None:
    """An argparse type: a whole number of pixels, or None for `keep`."""
    return None if text == "keep" else positive(text)


def take_verb(argv: list[str], verbs: Iterable[str]) -> tuple[str | None, list[str]]:
    """Split off a leading verb. A file of that name is given as ./NAME."""
    if argv and argv[0] in set(verbs):
        return argv[0], argv[1:]
    return None, argv


def add_short_side(group: argparse._ActionsContainer) -> None:
    """Add the option that says how large samples are."""
    group.add_argument(
        "--short-side",
        type=pixels_or_keep,
        default=256,
        metavar="N|keep",
        help="pixels; smaller clips are enlarged; keep leaves each clip its size",
    )


def add_cache_dir(group: argparse._ActionsContainer) -> None:
    """Add the option whose value `cache_dir` takes."""
    group.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="what outlives a run: fetched lists and weights, the pace of asking (default: "
        "$XDG_CACHE_HOME/kinetics-tools or ~/.cache/kinetics-tools)",
    )


def run(main: Callable[[], int], *, again: str = "the same command") -> NoReturn:
    """Run a command and exit: its own code, 2 for what the user can mend, 130 for Ctrl-C.

    Args:
        main: does it, and returns the code.
        again: what goes on where it was stopped, in words.
    """
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for ours in ("kinetics_tools", "kinetics_bench"):
        logging.getLogger(ours).setLevel(logging.INFO)  # of libraries only what is wrong
    # A batch system's word that time is up: unwinding ends children and sweeps scratch folders.
    signal.signal(signal.SIGTERM, partial(_on_sigterm, again))
    try:
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except KineticsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(Exit.UNUSABLE)
    except KeyboardInterrupt:
        print(f"interrupted; {again} goes on where this one stopped", file=sys.stderr)
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        if not _is_unread():
            raise
        sys.exit(Exit.UNREAD)
    except OSError as error:
        if error.errno not in STORAGE_ERRNOS | PATH_ERRNOS:
            raise
        where = error.filename or tempfile.gettempdir()
        advice = "choose"
        if error.errno in FULL_ERRNOS:
            advice = "make room, or choose"
        elif error.errno in (errno.EACCES, errno.EPERM):
            advice = "allow access to it, or choose"
        print(
            f"error: {where}: {error.strerror}; {advice} another folder, then give the same "
            "command again",
            file=sys.stderr,
        )
        sys.exit(Exit.UNUSABLE)


def _is_unread() -> bool:
    """Whether who read this command's output, `head` for one, has gone; then it goes nowhere."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, select.POLLOUT)
    is_unread = any(event & select.POLLERR for _, event in poll.poll(0))
    if is_unread:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # what Python still has to write
    return is_unread


def _on_sigterm(again: str, *_: object) -> NoReturn:
    print(f"terminated; {again} goes on where this one stopped", file=sys.stderr)
    sys.exit(Exit.TERMINATED)


def names(text: str) -> tuple[str, ...]:
    """An argparse type: names with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
