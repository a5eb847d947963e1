"""What all commands share: options, types of arguments, exit codes, errors in one line.

Only commands import this module, no library module does.
"""

import argparse
import errno
import logging
import os
import re
import select
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

import kinetics_tools
from kinetics_tools.core import console, signals
from kinetics_tools.core.engine import ENGINES
from kinetics_tools.core.errors import KineticsError, lookup, unknown_name
from kinetics_tools.core.files import (
    ACCESS_ERRNOS,
    FULL_ERRNOS,
    LIMITS,
    PATH_ERRNOS,
    STORAGE_ERRNOS,
)
from kinetics_tools.core.system import cache_dir, contain_libraries, num_processors
from kinetics_tools.core.text import printable


class Exit(IntEnum):
    """The exit codes of all commands."""

    COMPLETE = 0
    CRASH = 1
    UNUSABLE = 2
    PERMANENT_GAPS = 3
    RETRYABLE_GAPS = 4
    STOPPED = 75
    HUNG_UP = 129
    INTERRUPTED = 130
    QUIT = 131
    BROKEN_PIPE = 141
    TERMINATED = 143


class Parser(argparse.ArgumentParser):
    """An argparse parser: no abbreviations, an error is one line, and `--help` is one screen.

    Of a help text `--help` shows the first line, `--help-all` shows all. Of the options in the
    group `more` it shows the names.
    """

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_Formatter,
            add_help=False,
        )
        self.more = self.add_argument_group("more options")
        self._action_groups.remove(self.more)  # it comes last
        self.add_argument("-h", "--help", action="help", help="show this help and exit")
        self.more.add_argument("--help-all", action=_HelpAll, help="explain every option, and exit")
        self.more.add_argument("--version", action="version", version=kinetics_tools.__version__)

    def format_help(self) -> str:
        """The help of one screen."""
        hidden = [name for each in self.more._group_actions for name in each.option_strings]
        names = ", ".join(name for name in hidden if name != "--help-all")
        return self._help(brief=True, end=f"more, explained by --help-all: {names}")

    def format_full_help(self) -> str:
        """The help with every option and all that is said of it."""
        return self._help(brief=False)

    def _help(self, *, brief: bool, end: str | None = None) -> str:
        formatter = _Formatter(self.prog, brief=brief)
        formatter.add_text(self._usage())
        formatter.add_text(self.description)
        for group in (*self._action_groups, *(() if brief else (self.more,))):
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        formatter.add_text(end)
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def _usage(self) -> str:
        """What must be given, on one line."""
        groups = [each for each in self._mutually_exclusive_groups if each.required]
        chosen = [action for each in groups for action in each._group_actions]
        needed = [
            action
            for action in self._actions
            if action in chosen or action.required or not action.option_strings
        ]
        formatter = argparse.HelpFormatter(self.prog, width=1000)
        formatter.add_usage(None, needed, groups)
        return f"{formatter.format_help().strip()} [options]"

    def error(self, message: str) -> NoReturn:
        """Exit with one line in place of argparse's usage block."""
        console.tell(f"error: {message} (see {self.prog} --help)")
        sys.exit(Exit.UNUSABLE)

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        """Parse, and let libraries that are imported later keep to the cache folder."""
        parsed = super().parse_args(*arguments, **options)
        with suppress(KineticsError):  # no home folder: few commands need a cache
            contain_libraries(cache_dir(getattr(parsed, "cache_dir", None)).absolute())
        return parsed

    def add_run(self, *, jobs: str, made: str) -> argparse._ArgumentGroup:
        """Add the options of a command whose work is split into units and parts.

        Args:
            jobs: help of `--jobs`: what it counts, and its default.
            made: what `--force` makes again, such as "clip".

        Returns:
            their group, to which the command may add options.
        """
        run = self.add_argument_group("run options")
        run.add_argument("--jobs", type=whole(1, MAX_PROCESSES), metavar="N", help=jobs)
        run.add_argument(
            "--engine",
            type=one_of("engine", ENGINES),
            default="local",
            metavar="NAME",
            help=f"where work runs: {', '.join(ENGINES)}\n"
            "local: in processes on this machine; ray: on the Ray cluster that RAY_ADDRESS "
            "names, else on a local Ray",
        )
        run.add_argument(
            "--task",
            metavar="I/N",
            help="do part I of N, I from 0 to N-1; a Slurm array sets it",
        )
        run.add_argument("--force", action="store_true", help=f"make every {made} again")
        run.add_argument("--dry-run", action="store_true", help="show what would be done")
        return run

    def add_jobs(self) -> None:
        """Add `--jobs` of a command whose work is not split into units and parts."""
        self.add_argument(
            "--jobs",
            type=whole(1, MAX_PROCESSES),
            default=num_processors(),
            metavar="N",
            help="clips at once",
        )

    def add_common(self, *, seed: Callable[[str], Any] = int) -> None:
        """Add the options that every command has; `seed`: the type of --seed."""
        where = self.more if seed is int else self
        where.add_argument(
            "--seed",
            type=seed,
            default="0",
            help="seed of all random choices"
            + ("" if seed is int else "\n0,1,2: train with each, and print their mean"),
        )
        self.more.add_argument(
            "--tmp-dir",
            type=Path,
            metavar="DIR",
            help="folder for temporary files (default: beside the output)",
        )


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    def __init__(self, prog: str, *, brief: bool = False) -> None:
        super().__init__(prog, max_help_position=28)
        self._brief = brief

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, _, details = (action.help or "").partition("\n")
        if details and not self._brief:
            text = f"{text}; {details}"
        # "(default: None)" and "(default: False)" would say nothing.
        if action.default in (None, False, (), [], argparse.SUPPRESS) or "(default" in text:
            return text
        return f"{text} (default: %(default)s)"

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.indent("\n".join(self._split_lines(text, width)), indent)


class _HelpAll(argparse.Action):
    def __init__(self, option_strings: list[str], **options: Any) -> None:
        options |= {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS, "nargs": 0}
        super().__init__(option_strings, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        assert isinstance(parser, Parser)
        print(parser.format_full_help(), end="")
        parser.exit()


def one_of(kind: str, known: Iterable[str]) -> Callable[[str], str]:
    """An argparse type: one of the `known` names. The error suggests the nearest one."""
    table = {name: name for name in known}

    def parse(name: str) -> str:
        if name not in table:
            raise argparse.ArgumentTypeError(unknown_name(kind, name, table))
        return lookup(kind, name, table)

    return parse


def whole(least: int, most: int) -> Callable[[str], int]:
    """An argparse type: a whole number in a range."""

    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > len(str(most)) or not least <= int(text) <= most:
            shown = f"{text[:40]!r} is not a whole number from {least} to {most}"
            raise argparse.ArgumentTypeError(shown)
        return int(text)

    return parse


positive = whole(1, 2**24)
MIN_PX = 0.001
MAX_PX = 10_000
MAX_PROCESSES = 4096  # of one command; more than any machine has processors


_UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def num_bytes(text: str) -> int:
    """An argparse type: a number of bytes, such as 0, 500MB or 1.5TB (decimal units)."""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,3})?) ?([kMGT]B|)", text)
    number = float(found[1]) * _UNITS[found[2]] if found else -1.0
    if not 0 <= number <= 2**50:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a size, such as 0, 500MB or 1.5TB")
    return int(number)


def pixels(text: str) -> float:
    """An argparse type: a number of pixels above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not MIN_PX <= number <= MAX_PX:
        shown = f"{text[:40]!r} is not a number of pixels from {MIN_PX} to {MAX_PX}"
        raise argparse.ArgumentTypeError(shown)
    return number


def pixels_or_keep(text: str) -> int | None:
    """An argparse type: a whole number of pixels, or None for `keep`."""
    return None if text == "keep" else whole(1, MAX_PX)(text)


def take_verb(argv: list[str], verbs: Iterable[str]) -> tuple[str | None, list[str]]:
    """Split off a leading verb (subcommand). A file of the same name is written ./NAME."""
    if argv and argv[0] in set(verbs):
        return argv[0], argv[1:]
    return None, argv


def add_short_side(group: argparse._ActionsContainer) -> None:
    """Add `--short-side`, the size of samples."""
    group.add_argument(
        "--short-side",
        type=pixels_or_keep,
        default=256,
        metavar="N|keep",
        help="shorter side in pixels, or the size of each clip\nsmaller clips are enlarged",
    )


def add_scaler(group: argparse._ActionsContainer, scalers: Mapping[str, str]) -> None:
    """Add `--scaler`, a name in `scalers`, whose first one is the default."""
    meanings = "; ".join(f"{name}, {meaning}" for name, meaning in scalers.items())
    group.add_argument(
        "--scaler",
        type=one_of("scaler", scalers),
        default=next(iter(scalers)),
        metavar="NAME",
        help=f"how pictures are scaled: {', '.join(scalers)}\n{meanings}",
    )


def add_encoding(group: argparse._ActionsContainer, encodings: Mapping[str, str]) -> None:
    """Add `--encoding`, a name in `encodings`, whose first one is the default."""
    meanings = "; ".join(f"{name}, {meaning}" for name, meaning in encodings.items())
    group.add_argument(
        "--encoding",
        type=one_of("encoding", encodings),
        default=next(iter(encodings)),
        metavar="NAME",
        help=f"how clips are encoded: {', '.join(encodings)}\n{meanings}",
    )


def add_cache_dir(group: argparse._ActionsContainer) -> None:
    """Add `--cache-dir`, whose value `system.cache_dir` takes."""
    group.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="folder for files kept between runs: downloaded lists, weights and samples, rate "
        "limits (default: $XDG_CACHE_HOME/kinetics-tools or ~/.cache/kinetics-tools)",
    )


def run(main: Callable[[], int], *, again: str = "the same command") -> NoReturn:
    """Run a command and exit: with its own code, 2 for errors that users can fix, 130 for Ctrl-C.

    Standard streams that are closed are as /dev/null.

    Args:
        main: the command; returns its exit code.
        again: what continues a stopped run, for the message.
    """
    _open_closed_streams()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler])
    for ours in ("kinetics_tools", "kinetics_bench"):
        logging.getLogger(ours).setLevel(logging.INFO)  # other libraries: warnings and errors
    _stop_at_signals()
    try:
        code = _code_of(main)
        sys.stdout.flush()
        sys.exit(code)
    except KineticsError as error:
        first, *others = error.lines
        console.tell(f"error: {first}", *others)
        sys.exit(Exit.UNUSABLE)
    except _StoppedError as stopped:
        stopped.end(again)
    except BrokenPipeError:
        if not _reader_closed_pipe():
            raise
        _drop(sys.stdout)
        sys.exit(Exit.BROKEN_PIPE)
    except (OSError, RuntimeError, MemoryError) as error:
        said = _environment_problem(error)
        if said is None:
            raise
        console.tell(f"error: {said}")
        sys.exit(Exit.UNUSABLE)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # of a full disk: it is told, and the exit code is chosen
                _drop(stream)


def _code_of(main: Callable[[], int]) -> int | str | None:
    """The exit code of a command, also of one that ends by itself, as argparse does."""
    try:
        return main()
    except _StoppedError:
        raise
    except SystemExit as ended:
        return ended.code


def _open_closed_streams() -> None:
    """Open /dev/null for standard streams that are closed.

    Else the next file that is opened takes their place, and whatever is printed goes into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # It takes the lowest free number, which is this one. Children have it too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - for good
            setattr(sys, name, stream)


def _drop(stream: TextIO) -> None:
    """Drop what a standard stream still holds: Python flushes it as it exits, or ends with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _PrintableFormatter(logging.Formatter):
    """As `console.tell`, but for the lines of a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).replace("\n", "\\n")

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _environment_problem(error: OSError | RuntimeError | MemoryError) -> str | None:
    """In one line, what the disk or the machine refuses; None for any other error, a bug."""
    if isinstance(error, MemoryError):
        return f"{os.strerror(errno.ENOMEM)}; {LIMITS[errno.ENOMEM]}, or smaller files"
    if isinstance(error, RuntimeError):
        is_thread = str(error) == "can't start new thread"
        return f"no thread can be started; {LIMITS[errno.EAGAIN]}" if is_thread else None
    if error.errno in LIMITS:
        return f"{error.strerror}; {LIMITS[error.errno]}"
    return _advise(error) if error.errno in STORAGE_ERRNOS | PATH_ERRNOS else None


def _advise(error: OSError) -> str:
    """What is wrong with a path, in one line."""
    where = error.filename or "standard output, or a file of this run"
    advice = "choose"
    if error.errno in FULL_ERRNOS:
        advice = "make room, or choose"
    elif error.errno in ACCESS_ERRNOS:
        advice = "allow access to it, or choose"
    return f"{where}: {error.strerror}; {advice} another folder, then run the same command again"


def _reader_closed_pipe() -> bool:
    """Whether the reader of stdout, such as `head`, closed the pipe."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


class _StoppedError(SystemExit):
    """A signal stops the command: unwinding ends children and removes scratch folders.

    Not a KeyboardInterrupt: at that one, `subprocess` does not wait for the child it kills.
    """

    def __init__(self, number: int) -> None:
        self.exit = Exit(128 + number)
        super().__init__(self.exit)

    def end(self, again: str) -> NoReturn:
        """Say so, and exit."""
        for number in signals.STOPPING:
            signal.signal(number, signal.SIG_IGN)  # for the rest
        said = self.exit.name.lower().replace("_", " ")
        console.tell(f"{said}; {again} continues where this one stopped")
        sys.exit(self.exit)


RESEND_S = 0.05


def _stop_at_signals() -> None:
    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise _StoppedError(number)

    report = sys.unraisablehook

    def stop_again(unraisable: "sys.UnraisableHookArgs") -> None:
        # What a finalizer raises is printed and dropped, a signal that comes there as well. It is
        # sent again after this hook, whose exceptions are dropped too.
        if isinstance(unraisable.exc_value, _StoppedError):
            number = unraisable.exc_value.exit - 128
            again = threading.Timer(RESEND_S, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
        else:
            report(unraisable)

    sys.unraisablehook = stop_again
    for number in signals.STOPPING:
        # A shell or nohup may have asked to ignore Ctrl-C or the end of the terminal.
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def comma_separated(text: str) -> tuple[str, ...]:
    """An argparse type: names with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
