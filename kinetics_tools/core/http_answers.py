"""What the answers of HTTP servers mean, whichever library asked: status, headers, throughput."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from kinetics_tools.core.errors import Reason

FIRST_ERROR = 400
FIRST_SERVER_ERROR = 500
PARTIAL_CONTENT = 206
TOO_MANY_REQUESTS = 429
MIN_BYTES_PER_S = 1000.0
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
    if text.isdecimal():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


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
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(?:(\d+)|\*)", header or "")
    if found is None:
        return None
    return ContentRange(int(found[1]), int(found[2]), int(found[3]) if found[3] else None)


class StallGuard:
    """Reads from a server, and gives up below minimum throughput: MIN_BYTES_PER_S over a window.

    A socket's timeout starts over with every byte, so a server that sends one byte per minute
    would otherwise hold a connection for ever. Only the time inside `read` counts: between reads
    the reader itself may be slow.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
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
            if self._num_bytes < MIN_BYTES_PER_S * self._waited_s:
                raise error(
                    f"{self._num_bytes} bytes in {self._waited_s:.0f} s, below minimum throughput"
                )
            self._start_window()
        return piece
