"""The ledger: an append-only record of what happened to each key.

JSON lines, one object an attempt at one source. Every resume and every report derives from it and
from the files. A process that is killed may leave a torn last line: readers ignore it, and the next
writer removes it.

A job of many parts has as many files; they are read one after another, whatever their number.
`read` keeps what a resume needs (0.45 KB a key: 110 MB for 250,000 keys of two lines each, read in
7 s), `lines` streams everything, for reports.
"""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kinetics_tools.core.errors import PERMANENT, RETRYABLE, OutError, Reason
from kinetics_tools.core.files import name_in_errors
from kinetics_tools.core.units import Part

DONE = "done"
FAILED = "failed"
# In place of a source, in a failed line: the clip that was done is damaged on disk. It counts
# against no source.
VERIFY = "verify"
MAX_DAMAGED = 3  # a download that was damaged so often is damaged at its source
_TICK_S = 0.001  # between two times that a line can tell apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One attempt at one clip from one source.

    Attributes:
        key: the clip's.
        status: "done" or "failed".
        source: its name, without secrets; VERIFY where a clip was found damaged on disk.
        reason: why it failed.
        detail: the tool's last words; of a clip, what it was made of ("as-found", "section of 134,
            640x360").
        frames: of the finished clip.
        held: how many of them repeat the video's last frame (it ended before its segment).
        bytes: of the finished clip.
        sha256: of the finished clip, hex.
        seconds: what the attempt took.
        versions: of the tools.
        time: when it ended, UTC; a `Writer` may move it on.
    """

    key: str
    status: str
    source: str
    reason: Reason | None = None
    detail: str = ""
    frames: int | None = None
    held: int = 0
    bytes: int | None = None
    sha256: str | None = None
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    time: str = field(default_factory=lambda: _time(datetime.now(UTC)))

    def as_text(self) -> str:
        """The line of JSON, without fields that say nothing."""
        kept = {
            name: value for name, value in asdict(self).items() if value not in (None, "", 0, {})
        }
        return json.dumps(kept, ensure_ascii=False) + "\n"


class Done(NamedTuple):
    """The clip of a key that was last finished. Whether it is still there, its file says.

    Attributes:
        source: where it came from.
        frames: in it.
        bytes: of the file.
        sha256: of the file, hex.
    """

    source: str
    frames: int | None
    bytes: int | None
    sha256: str | None


class Failure(NamedTuple):
    """A source's last failure to give a key.

    Attributes:
        source: which.
        reason: why.
        at_s: when, in seconds since 1970.
    """

    source: str
    reason: Reason | None
    at_s: float


@dataclass(slots=True)
class History:
    """What the ledger says of one key, whatever the order in which its lines were read.

    Attributes:
        done: the clip that was last finished, unless it was found damaged since.
        failures: each source's last failure since a clip was last finished or found damaged.
    """

    done: Done | None = None
    failures: tuple[Failure, ...] = ()
    # A source as often as the clip came damaged from it.
    _damaged: tuple[str, ...] = field(default=(), init=False)
    _done_at_s: float = field(default=-math.inf, init=False)
    _broken_at_s: float = field(default=-math.inf, init=False)

    def add(self, line: Line, at_s: float | None = None) -> None:
        """Take a line into account.

        Args:
            line: of this key.
            at_s: when it was written, in seconds since 1970; of equal times the last one added
                counts as the later. None: after all lines before.
        """
        if at_s is None:
            before = (failure.at_s for failure in self.failures)
            at_s = max(_seconds(line.time), self._done_at_s, self._broken_at_s, *before)
        if line.status == DONE:
            self._add_done(line, at_s)
        elif line.source == VERIFY:
            self._broken_at_s = max(self._broken_at_s, at_s)
            self.failures = tuple(failure for failure in self.failures if failure.at_s > at_s)
            if at_s >= self._done_at_s:
                self.done = None
        else:
            self._add_failure(line, at_s)

    def _add_done(self, line: Line, at_s: float) -> None:
        if at_s < self._done_at_s:
            return
        self._done_at_s = at_s
        self.failures = tuple(failure for failure in self.failures if failure.at_s > at_s)
        if at_s >= self._broken_at_s:
            self.done = Done(line.source, line.frames, line.bytes, line.sha256)

    def _add_failure(self, line: Line, at_s: float) -> None:
        if line.reason is Reason.DAMAGED:
            self._damaged += (line.source,)
        others = []
        for failure in self.failures:
            if failure.source != line.source:
                others.append(failure)
            elif failure.at_s > at_s:
                return
        if at_s >= max(self._done_at_s, self._broken_at_s):
            failure = Failure(line.source, line.reason, at_s)
            self.failures = (*others, failure)

    def has_failed(self, source: str) -> bool:
        """Whether `source` was asked and failed since a clip was last finished."""
        return any(failure.source == source for failure in self.failures)

    def failed_with(self, source: str) -> Reason | None:
        """The reason of the source's last failure since a clip was last finished."""
        return next((f.reason for f in self.failures if f.source == source), None)

    def may_try(self, source: str, retry: frozenset[Reason]) -> bool:
        """Whether `source` is worth asking: never asked, or failed with a reason in `retry`.

        One from which the clip came damaged MAX_DAMAGED times has failed for good.
        """
        reason = self.failed_with(source)
        if reason is None:
            return True
        if reason is Reason.DAMAGED and self._damaged.count(source) >= MAX_DAMAGED:
            return retry >= PERMANENT
        return reason in retry

    @property
    def is_broken(self) -> bool:
        """Whether the clip was found damaged on disk, and no source has been asked since."""
        return self.done is None and self._broken_at_s > -math.inf and not self.failures

    @property
    def main_reason(self) -> str:
        """One reason for a clip that could not be had: a retryable one where there is one."""
        if self.is_broken:
            return Reason.DAMAGED
        in_order = sorted(self.failures, key=lambda failure: failure.at_s)
        reasons = [failure.reason for failure in in_order if failure.reason is not None]
        return next((r for r in reasons if r in RETRYABLE), reasons[-1] if reasons else "unknown")

    @property
    def is_retryable(self) -> bool:
        """Whether any source failed with a reason that may pass."""
        return self.is_broken or any(
            self.may_try(failure.source, RETRYABLE) for failure in self.failures
        )


def ledger_path(out: Path, part: Part) -> Path:
    """The file to which one part writes."""
    return out / f"ledger-{part}.jsonl"


def read(out: Path) -> dict[str, History]:
    """What the ledgers of all parts in `out` say, by key.

    Raises:
        OutError: a line other than a torn last one is not a ledger line.
    """
    histories: dict[str, History] = {}
    for path in _paths(out):
        for line, at_s in _timed(path):
            history = histories.get(line.key)
            if history is None:
                history = histories[line.key] = History()
            history.add(line, at_s)
    return histories


def lines(out: Path) -> Iterator[Line]:
    """Every line of all parts in `out`, one file after another.

    Raises:
        OutError: a line other than a torn last one is not a ledger line.
    """
    for path in _paths(out):
        for line, _ in _lines(path):
            yield line


def done_in(out: Path) -> dict[str, Path]:
    """The file that has each key's last "done" line.

    What is appended there comes after that line whatever the clocks say.

    Raises:
        OutError: a line other than a torn last one is not a ledger line.
    """
    last: dict[str, tuple[float, Path]] = {}
    for path in _paths(out):
        for line, at_s in _timed(path):
            if line.status == DONE and (line.key not in last or last[line.key][0] <= at_s):
                last[line.key] = (at_s, path)
    return {key: path for key, (_, path) in last.items()}


def _paths(out: Path) -> list[Path]:
    return sorted(out.glob("ledger-*.jsonl"))


def _timed(path: Path) -> Iterator[tuple[Line, float]]:
    """Each line with its time, never earlier than the line before: a clock may be set back."""
    latest_s = -math.inf
    for line, at_s in _lines(path):
        latest_s = max(latest_s, at_s)
        yield line, latest_s


def _lines(path: Path) -> Iterator[tuple[Line, float]]:
    """Each whole line of a file, and its time in seconds since 1970."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                return  # torn: its writer was killed, or is writing now
            yield _read_line(raw, f"{path}, line {number}")


def _read_line(raw: bytes, where: str) -> tuple[Line, float]:
    try:
        line = _parse(json.loads(raw))
        return line, _seconds(line.time)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise OutError(f"{where}: not a ledger line ({error}); remove that line") from error


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


def _parse(value: Any) -> Line:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    reason = value.pop("reason", None)
    # A few words name the sources of millions of lines.
    source = sys.intern(value.pop("source"))
    return Line(**value, source=source, reason=None if reason is None else Reason(reason))


@contextmanager
def writer(path: Path) -> Iterator["Writer"]:
    """Open a part's ledger for appending, without the torn line that a killed writer left.

    Raises:
        OutError: the last line of one of the folder's ledgers is not a ledger line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        whole = _line_start(file, end)
        if whole < end:
            file.truncate(whole)
        latest_s = max(map(_last_s, _paths(path.parent)))
        yield Writer(file, path, latest_s + _TICK_S)


def _last_s(path: Path) -> float:
    """The time of a ledger's last whole line."""
    with path.open("rb") as file:
        end = _line_start(file, file.seek(0, os.SEEK_END))
        if end == 0:
            return -math.inf
        start = _line_start(file, end - 1)
        file.seek(start)
        _, at_s = _read_line(file.read(end - start), f"{path}, last line")
        return at_s


def _line_start(file: BinaryIO, end: int) -> int:
    """Where the line begins that has the byte before `end`: behind the last line feed before."""
    position, chunk = end, b""
    while position > 0 and b"\n" not in chunk:
        step = min(position, 8192)
        position -= step
        file.seek(position)
        chunk = file.read(step)
    return position + chunk.rfind(b"\n") + 1


class Writer:
    """Appends lines as they happen; each is on its way to the disk when `add` returns.

    Its lines come after all that the folder's ledgers held when it was opened, and after each
    other, whatever the clock says: one that is behind is overruled.
    """

    def __init__(self, file: BinaryIO, path: Path, earliest_s: float) -> None:
        self._file = file
        self._path = path
        self._earliest_s = earliest_s

    def add(self, line: Line) -> None:
        """Append one line."""
        at_s = _seconds(line.time)
        if at_s < self._earliest_s:
            line = replace(line, time=_time(datetime.fromtimestamp(self._earliest_s, UTC)))
        self._earliest_s = max(self._earliest_s, at_s)
        with name_in_errors(self._path):
            # Half a character (a name that is not UTF-8 has such) is written as JSON's escape.
            self._file.write(line.as_text().encode(errors="backslashreplace"))
            self._file.flush()
