"""The manner of all commands: options that each has, exit codes, progress, one-line errors."""

import argparse
import errno
import logging
import os
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

import kinetics_tools
from kinetics_tools.engine import ENGINES, num_processors
from kinetics_tools.errors import KineticsError, lookup, nearest
from kinetics_tools.files import FULL_ERRNOS, PATH_ERRNOS, STORAGE_ERRNOS

logger = logging.getLogger(__name__)
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
            raise argparse.ArgumentTypeError(nearest(kind, name, table))
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


def default_jobs() -> int:
    """How many processors this process may use."""
    return num_processors()


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


def cache_dir(chosen: Path | None = None) -> Path:
    """The folder of what outlives a run: the chosen one, else ours among the user's caches.

    Raises:
        KineticsError: the user has no home folder.
    """
    if chosen is not None:
        return chosen
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if root.is_absolute():  # by the XDG rules another one is to be ignored
        return root / "kinetics-tools"
    try:
        return Path.home() / ".cache" / "kinetics-tools"
    except RuntimeError as error:
        raise KineticsError("there is no home folder for a cache; give --cache-dir DIR") from error


def run(main: Callable[[], int], *, again: str = "the same command") -> NoReturn:
    """Run a command and exit: its own code, 2 for what the user can mend, 130 for Ctrl-C.

    Args:
        main: does it, and returns the code.
        again: what goes on where it was stopped, in words.
    """
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for ours in ("kinetics_tools", "benchmarks"):
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


def progress(
    items: Iterable[T], *, total: int, what: str, size: Callable[[T], int] = lambda _: 1
) -> Iterator[T]:
    """Yield `items`, and show how far: a bar on a terminal, else a log line every 30 s.

    Args:
        items: what is done, as it is done.
        total: of the sizes of all.
        what: is counted, in the plural.
        size: how many of them an item is.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=what, unit="", dynamic_ncols=True) as bar:
            for item in items:
                yield item
                bar.update(size(item))
        return
    yield from _logged(items, total, what, size)


def _logged(items: Iterable[T], total: int, what: str, size: Callable[[T], int]) -> Iterator[T]:
    """Yield `items`; a thread says how far they are, also while nothing is finished."""
    start = time.monotonic()
    done = 0
    over = threading.Event()

    def tell() -> None:
        while not over.wait(LOG_EVERY_S):
            spent_s = time.monotonic() - start
            rest = f"about {time_text(spent_s / done * (total - done))} left" if done else "working"
            logger.info("%s: %d of %d after %s, %s", what, done, total, time_text(spent_s), rest)

    thread = threading.Thread(target=tell, daemon=True, name="progress")
    thread.start()
    try:
        for item in items:
            yield item
            done += size(item)
    finally:
        over.set()
        thread.join()


def names(text: str) -> tuple[str, ...]:
    """An argparse type: names with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def text_table(rows: Sequence[Mapping[str, str]], *, words: Collection[str] = ()) -> str:
    """Rows of equal keys as aligned columns, the titles first.

    Args:
        rows: one at least.
        words: columns of words, which begin at one edge as the first column does; numbers end at
            one.
    """
    titles = list(rows[0])
    lines = [titles, *(list(row.values()) for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(titles))]
    begins = {titles[0], *words}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if title in begins else cell.rjust(width)
            for title, cell, width in zip(titles, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def size_text(num_bytes: float) -> str:
    """A size in decimal units: 430 kB, 1.5 MB, 29 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{_short(num_bytes / size)} {unit}"
    return f"{num_bytes:.0f} B"


def time_text(seconds: float) -> str:
    """A time in a unit of which there are a few: 40 s, 12 min, 3.4 h, 34 days."""
    for unit, size in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{_short(seconds / size)} {unit}"
    return f"{seconds:.0f} s"


def _short(number: float) -> str:
    return f"{number:.1f}" if number < 9.95 else f"{number:.0f}"
