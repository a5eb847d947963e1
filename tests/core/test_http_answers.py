"""Status, headers and throughput of HTTP answers, read without a server."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from kinetics_tools.core import http_answers
from kinetics_tools.core.errors import Reason
from kinetics_tools.core.http_answers import ContentRange, StallGuard


def test_a_status_that_names_no_reason_is_the_server() -> None:
    assert http_answers.status_reason(404) is Reason.GONE
    assert http_answers.status_reason(429) is Reason.RATE_LIMITED
    assert http_answers.status_reason(403) is Reason.SERVER
    assert http_answers.status_reason(503) is Reason.SERVER


def test_retry_after_gives_seconds_or_a_date() -> None:
    assert http_answers.retry_after_s("77") == 77
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert http_answers.retry_after_s(later) == pytest.approx(3600, abs=30)
    assert http_answers.retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for nothing in (None, "", "soon", "-5", "1.5"):
        assert http_answers.retry_after_s(nothing) is None


def test_content_range_says_which_bytes_of_how_many() -> None:
    assert http_answers.content_range("bytes 5-9/100") == ContentRange(5, 9, 100)
    assert http_answers.content_range("bytes 5-9/*") == ContentRange(5, 9, None)
    for nothing in (None, "", "bytes */100", "items 5-9/100", "bytes 5-9", "bytes 5-9/100 "):
        assert http_answers.content_range(nothing) is None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its one item; reading it does not move it."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_below_minimum_throughput_a_server_is_given_up(clock: list[float]) -> None:
    guard = StallGuard(window_s=10)

    def pieces() -> Iterator[bytes]:
        for seconds, size in ((9, 1), (1, 10_000), (5, 4000), (5, 5999), (10, 0)):
            clock[0] += seconds
            yield bytes(size)

    served = pieces()
    for size in (1, 10_000):  # the window that ends here has enough bytes, and another one begins
        assert len(guard.read(lambda: next(served), ValueError)) == size
    clock[0] += 1000  # of the reader's own
    assert len(guard.read(lambda: next(served), ValueError)) == 4000
    with pytest.raises(ValueError, match=r"^9999 bytes in 10 s, below minimum throughput$"):
        guard.read(lambda: next(served), ValueError)
    assert guard.read(lambda: next(served), ValueError) == b""  # the end is never too late
