"""The ledger: an append-only record of what happened to each key.

JSON lines: one object per attempt at one source. Every resume and every report derives from it and
from the files. A killed process may leave a torn last line: readers ignore it, and the next writer
removes it.

Each part of a job has its own file. `read` keeps what a resume needs (0.45 KB per key: 110 MB for
250,000 keys of two lines each, read in 7 s); `lines` streams everything, for reports.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple

from kinetics_tools.core.errors import PERMANENT, RETRYABLE, OutError, Reason
from kinetics_tools.core.files import make_folder, name_in_errors, open_own, require_file
from kinetics_tools.core.schema import Count, Digest, Key, NumBytes, NumFrames, parse
from kinetics_tools.core.units import Part

DONE: Final = "done"
FAILED: Final = "failed"
# The source of a failed line which says that a finished clip is damaged on disk. It is not a
# failure of the source that gave the clip.
VERIFY = "verify"
MAX_DAMAGED = 3  # a clip that a source gave damaged so often is damaged at the source
MAX_LINE_BYTES = 2**20
_FIRST_YEAR, _LAST_YEAR = 1970, 2999  # a page shows times of any zone, and the next line is later
_TICK_S = 0.001  # the resolution of a line's time


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One attempt at one clip from one source.

    Attributes:
        key: the clip's.
        status: "done" or "failed".
        source: its name, without secrets; VERIFY where a clip was found damaged on disk.
        reason: why it failed; None for "done".
        detail: of a failure, the last message of the tool; of a clip, what it was made from
            ("as-found", "section of 134, 640x360").
        frames: of the finished clip.
        held: how many of them repeat the video's last frame, since it ends before its segment.
        bytes: of the finished clip.
        sha256: of the finished clip, hex.
        seconds: duration of the attempt.
        versions: of the tools, by name.
        time: end of the attempt, UTC, ISO 8601; a `Writer` may write a later one.
    """

    key: Key
    status: Literal["done", "failed"]
    source: str
    reason: Reason | None = None
    detail: str = ""
    frames: NumFrames | None = None
    held: Count = 0
    bytes: NumBytes | None = None
    sha256: Digest | None = None
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    time: str = field(default_factory=lambda: _time(datetime.now(UTC)))

    def as_text(self) -> str:
        """The line of JSON, without fields that are None, empty or 0."""
        kept = {
            name: value for name, value in asdict(self).items() if value not in (None, "", 0, {})
        }
        return json.dumps(kept, ensure_ascii=False) + "\n"


class Done(NamedTuple):
    """The last finished clip of a key. Only its file shows whether it still exists.

    Attributes:
        source: that gave it.
        frames: of the clip.
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
        source: its name.
        reason: why it failed.
        at_s: when it failed, in seconds since 1970.
    """

    source: str
    reason: Reason | None
    at_s: float


@dataclass(slots=True)
class History:
    """What the ledger says of one key; the order in which lines are added does not matter.

    Attributes:
        done: the last finished clip, unless it was found damaged since; else None.
        failures: each source's last failure since the last clip was finished or found damaged.
    """

    done: Done | None = None
    failures: tuple[Failure, ...] = ()
    # A source once for each damaged clip that it gave.
    _damaged: tuple[str, ...] = field(default=(), init=False)
    _done_at_s: float = field(default=-math.inf, init=False)
    _broken_at_s: float = field(default=-math.inf, init=False)

    def add(self, line: Line, at_s: float | None = None) -> None:
        """Add a line of this key.

        Args:
            line: of this key.
            at_s: when it was written, in seconds since 1970; of equal times, the line added last is
                the later. None: after all lines added before.
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
        """Whether `source` has failed since the last finished clip."""
        return any(failure.source == source for failure in self.failures)

    def failed_with(self, source: str) -> Reason | None:
        """The reason of the source's last failure since the last finished clip; None for none."""
        return next((f.reason for f in self.failures if f.source == source), None)

    def may_try(self, source: str, retry: frozenset[Reason]) -> bool:
        """Whether `source` is to be tried: not tried yet, or failed with a reason in `retry`.

        A source that gave the clip damaged MAX_DAMAGED times has failed permanently.
        """
        reason = self.failed_with(source)
        if reason is None:
            return True
        if reason is Reason.DAMAGED and self._damaged.count(source) >= MAX_DAMAGED:
            return retry >= PERMANENT
        return reason in retry

    @property
    def is_broken(self) -> bool:
        """Whether the clip was found damaged on disk, and no source was tried since."""
        return self.done is None and self._broken_at_s > -math.inf and not self.failures

    @property
    def main_reason(self) -> str:
        """One reason for a missing clip: a retryable one where there is one, else the last.

        What a folder lacks says nothing of the clip, so that is the reason where there is no other.
        """
        if self.is_broken:
            return Reason.DAMAGED
        in_order = sorted(self.failures, key=lambda failure: failure.at_s)
        reasons = [failure.reason for failure in in_order if failure.reason is not None]
        reasons = [reason for reason in reasons if reason is not Reason.ABSENT] or reasons
        return next((r for r in reasons if r in RETRYABLE), reasons[-1] if reasons else "unknown")

    @property
    def is_retryable(self) -> bool:
        """Whether any source failed with a retryable reason."""
        return self.is_broken or any(
            self.may_try(failure.source, RETRYABLE) for failure in self.failures
        )


def ledger_path(out: Path, part: Part) -> Path:
    """The ledger file of one part."""
    return out / f"ledger-{part}.jsonl"


def read(out: Path) -> dict[str, History]:
    """The history of each key, from the ledgers of all parts in `out`.

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

    A line that is appended to that file is later than the "done" line, whatever the clocks say.

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
    """Each line and its time, never earlier than the line before: a clock may be set back."""
    latest_s = -math.inf
    for line, at_s in _lines(path):
        latest_s = max(latest_s, at_s)
        yield line, latest_s


def _lines(path: Path) -> Iterator[tuple[Line, float]]:
    """Each whole line of a file, and its time in seconds since 1970."""
    require_file(path)
    with path.open("rb") as file:
        for number in itertools.count(1):
            raw = file.readline(MAX_LINE_BYTES + 1)
            if len(raw) > MAX_LINE_BYTES:
                raise _too_long(f"{path}, line {number}")
            if not raw.endswith(b"\n"):
                return  # torn: its writer was killed, or is writing it now
            yield _read_line(raw, f"{path}, line {number}")


def _read_line(raw: bytes, where: str) -> tuple[Line, float]:
    try:
        line = _parse(json.loads(raw))
        return line, _seconds(line.time)
    except (ValueError, OverflowError, RecursionError) as error:
        said = " ".join(str(error).split())[:300]  # it may quote what is there
        raise OutError(
            f"{where}: not a ledger line ({said}); move that line to another file"
        ) from error


def _too_long(where: str) -> OutError:
    return OutError(f"{where}: longer than a ledger line; move the file away")


def _seconds(time: str) -> float:
    moment = datetime.fromisoformat(time)
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise ValueError(f"{time!r} is not a time of a run")
    return moment.timestamp()


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


def _parse(value: Any) -> Line:
    line = parse(value, Line)
    # Millions of lines share a few names of sources.
    object.__setattr__(line, "source", sys.intern(line.source))  # the dataclass is frozen
    return line


@contextmanager
def writer(path: Path) -> Iterator[Writer]:
    """Open a part's ledger for appending, after removing a torn last line.

    Raises:
        OutError: the last line of one of the folder's ledgers is not a ledger line.
    """
    make_folder(path.parent)
    with open_own(path, "ab+") as file:
        end = file.seek(0, os.SEEK_END)
        whole = _line_start(file, end)
        if whole < end:
            file.truncate(whole)
        latest_s = max(map(_last_s, _paths(path.parent)))
        yield Writer(file, path, latest_s + _TICK_S)


def _last_s(path: Path) -> float:
    """The time of a ledger's last whole line."""
    require_file(path)
    with path.open("rb") as file:
        end = _line_start(file, file.seek(0, os.SEEK_END))
        if end == 0:
            return -math.inf
        start = _line_start(file, end - 1)
        if end - start > MAX_LINE_BYTES:
            raise _too_long(f"{path}, last line")
        file.seek(start)
        _, at_s = _read_line(file.read(end - start), f"{path}, last line")
        return at_s


def _line_start(file: BinaryIO, end: int) -> int:
    """The start of the line with the byte before `end`: the byte after the last line feed."""
    position, chunk = end, b""
    while position > 0 and b"\n" not in chunk:
        step = min(position, 8192)
        position -= step
        file.seek(position)
        chunk = file.read(step)
    return position + chunk.rfind(b"\n") + 1


class Writer:
    """Appends lines; a line survives the end of this process once `add` has returned.

    The times of its lines are later than all times in the folder's ledgers when it was opened, and
    increase, even where the clock does not.
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
            # A lone surrogate (from a name that is not UTF-8) is written as JSON's escape.
            self._file.write(line.as_text().encode(errors="backslashreplace"))
            self._file.flush()
