"""What the answers of HTTP servers mean, whichever library asked: status, headers, throughput."""

import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache

from kinetics_tools.core.errors import KineticsError, Reason

FIRST_ERROR = 400
FIRST_SERVER_ERROR = 500
PARTIAL_CONTENT = 206
RANGE_NOT_SATISFIABLE = 416
TOO_MANY_REQUESTS = 429
_REASONS: Mapping[int, Reason] = {
    404: Reason.GONE,
    410: Reason.GONE,
    TOO_MANY_REQUESTS: Reason.RATE_LIMITED,
    451: Reason.GEO_BLOCKED,
}


def status_reason(status: int) -> Reason:
    """The reason that an error status stands for; `server` for those that name none."""
    return _REASONS.get(status, Reason.SERVER)


def retry_after_s(header: str | None) -> float | None:
    """How many seconds a Retry-After header asks to wait: it gives seconds or a date.

    None where there is no header, or it is neither.
    """
    text = header or ""
    if re.fullmatch("[0-9]{1,18}", text):
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server may cost. The environment changes it, for all commands and their workers.

    Attributes:
        min_bytes_per_s: a server that sends less over a window is given up
            (KINETICS_TOOLS_MIN_BYTES_PER_S).
        max_bytes: of one video; more is not a video of ours (KINETICS_TOOLS_MAX_BYTES). Streams of
            tars have no end here: what is kept of them is bounded by member.
        timeout_s: how long a store that `--data` names may take to answer a request
            (KINETICS_TOOLS_TIMEOUT_S).
    """

    min_bytes_per_s: float = 1000.0
    max_bytes: float = 2.0**36
    timeout_s: float = 30.0


@cache
def limits() -> Limits:
    """The limits of this process.

    Raises:
        KineticsError: a variable is not a number above 0.
    """
    default = Limits()
    return Limits(
        min_bytes_per_s=_number("KINETICS_TOOLS_MIN_BYTES_PER_S", default.min_bytes_per_s),
        max_bytes=_number("KINETICS_TOOLS_MAX_BYTES", default.max_bytes),
        timeout_s=_number("KINETICS_TOOLS_TIMEOUT_S", default.timeout_s),
    )


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, "").strip()
    try:
        number = float(text) if text else default
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise KineticsError(f"{name} is {text[:40]!r}, not a number above 0; unset it")
    return number


@dataclass(frozen=True, slots=True)
class ContentRange:
    """Which bytes of a file an answer holds.

    Attributes:
        first: number of the first byte, from 0.
        last: number of the last byte.
        size: of the whole file in bytes; None where the server does not say.
    """

    first: int
    last: int
    size: int | None


def content_range(header: str | None) -> ContentRange | None:
    """Read a Content-Range header. None where there is none, or it names no range of bytes."""
    number = "([0-9]{1,18})"
    found = re.fullmatch(rf"bytes {number}-{number}/(?:{number}|\*)", header or "")
    if found is None:
        return None
    return ContentRange(int(found[1]), int(found[2]), int(found[3]) if found[3] else None)


class StallGuard:
    """Reads from a server, and gives up below the minimum throughput of `limits`, over a window.

    A socket's timeout starts over with every byte, so a server that sends one byte per minute
    would otherwise hold a connection for ever. Only the time inside `read` counts: between reads
    the reader itself may be slow.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._limits = limits()
        self._start_window()

    def _start_window(self) -> None:
        self._waited_s, self._num_bytes = 0.0, 0

    def read(self, read: Callable[[], bytes], error: Callable[[str], Exception]) -> bytes:
        """Return what `read` returns.

        Args:
            read: waits for bytes; returns at least one, or none at the end.
            error: makes the exception of a message.

        Raises:
            Exception: that of `error`, when a window has passed below minimum throughput.
        """
        start_s = time.monotonic()
        piece = read()
        self._waited_s += time.monotonic() - start_s
        self._num_bytes += len(piece)
        if piece and self._waited_s >= self._window_s:
            if self._num_bytes < self._limits.min_bytes_per_s * self._waited_s:
                raise error(
                    f"{self._num_bytes} bytes in {self._waited_s:.0f} s, below minimum throughput"
                )
            self._start_window()
        return piece
