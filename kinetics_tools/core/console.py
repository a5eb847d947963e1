"""What commands show: progress, tables, sizes and times."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from kinetics_tools.core.text import printable

logger = logging.getLogger(__name__)
T = TypeVar("T")
LOG_EVERY_S = 30.0
MAX_TOLD = 2000  # characters of a line: a message may quote a file name, or a word of a file


def tell(*lines: str) -> None:
    """Print lines to standard error: control characters are escaped, much text is cut.

    Where nobody can read it (a closed terminal, a full disk), the exit code says enough.
    """
    with suppress(OSError):
        for line in lines:
            shown = line if len(line) <= MAX_TOLD else f"{line[:MAX_TOLD]} ..."
            sys.stderr.write(printable(shown).replace("\n", "\\n") + "\n")
        sys.stderr.flush()


def progress(
    items: Iterable[T],
    *,
    total: int,
    what: str,
    size: Callable[[T], int] = lambda _: 1,
    status: Callable[[], str] = str,
) -> Iterator[T]:
    """Yield `items` and show progress: a bar on a terminal, else a log line every 30 s.

    Args:
        items: each is counted when the next one is asked for.
        total: the sum of all items' sizes.
        what: what is counted, in the plural, such as "clips".
        size: how many of these an item is.
        status: what else to show.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm  # only here, to keep --help fast

        with tqdm(total=total, desc=what, unit="", dynamic_ncols=True) as bar:
            for item in items:
                yield item
                bar.set_postfix_str(status(), refresh=False)
                bar.update(size(item))
        return
    yield from _logged(items, total, what, size, status)


def _logged(
    items: Iterable[T],
    total: int,
    what: str,
    size: Callable[[T], int],
    status: Callable[[], str],
) -> Iterator[T]:
    """Yield `items`; a thread logs progress, also while no item is finished."""
    start = time.monotonic()
    done = 0
    finished = threading.Event()

    def log() -> None:
        while not finished.wait(LOG_EVERY_S):
            spent_s = time.monotonic() - start
            rest = f"about {time_text(spent_s / done * (total - done))} left" if done else "working"
            rest = ", ".join(filter(None, (rest, status())))
            logger.info("%s: %d of %d after %s, %s", what, done, total, time_text(spent_s), rest)

    thread = threading.Thread(target=log, daemon=True, name="progress")
    thread.start()
    try:
        for item in items:
            yield item
            done += size(item)
    finally:
        finished.set()
        thread.join()


def text_table(rows: Sequence[Mapping[str, str]], *, left_aligned: Collection[str] = ()) -> str:
    """Format rows as aligned columns below their titles.

    Args:
        rows: at least one; all have the same keys, which are the titles.
        left_aligned: titles of columns to align left, as the first one is; the others align right.
    """
    titles = list(rows[0])
    lines = [titles, *([printable(cell) for cell in row.values()] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(titles))]
    left = {titles[0], *left_aligned}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if title in left else cell.rjust(width)
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
    """A duration in the largest unit of which it has two or more: 40 s, 12 min, 3.4 h, 34 days."""
    for unit, size in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{_short(seconds / size)} {unit}"
    return f"{seconds:.0f} s"


def _short(number: float) -> str:
    return f"{number:.1f}" if number < 9.95 else f"{number:.0f}"
