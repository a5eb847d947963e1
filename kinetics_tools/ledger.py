"""The ledger: an append-only record of what happened to each key.

JSON lines, one object an attempt at one source. Every resume and every report derives from it and
from the files. A process that is killed may leave a torn last line: readers ignore it, and the next
writer removes it.
"""

import heapq
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from kinetics_tools.engine import Part
from kinetics_tools.errors import RETRYABLE, OutError, Reason
from kinetics_tools.files import naming

DONE = "done"
FAILED = "failed"
MAX_DAMAGED = 3  # a download that was damaged so often is damaged at its source


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One attempt at one clip from one source.

    Attributes:
        key: the clip's.
        status: "done" or "failed".
        source: as named on the command line.
        reason: why it failed.
        detail: the tool's last words; for a clip that a source had ready, "as-found".
        frames: of the finished clip.
        held: how many of them repeat the video's last frame (it ended before its segment).
        bytes: of the finished clip.
        sha256: of the finished clip, hex.
        seconds: what the attempt took.
        versions: of the tools.
        time: when it ended, UTC.
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
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    def as_text(self) -> str:
        """The line of JSON, without fields that say nothing."""
        kept = {
            name: value for name, value in asdict(self).items() if value not in (None, "", 0, {})
        }
        return json.dumps(kept, ensure_ascii=False) + "\n"


@dataclass(slots=True)
class History:
    """What the ledger says of one key.

    Attributes:
        done: the line of the clip that was last finished. Whether it is still there, its file says.
        failures: each source's last failure since.
        num_damaged: how often the clip came damaged from each source.
    """

    done: Line | None = None
    failures: dict[str, Line] = field(default_factory=dict)
    num_damaged: dict[str, int] = field(default_factory=dict)

    def add(self, line: Line) -> None:
        """Take a later line into account."""
        if line.status == DONE:
            self.done = line
            self.failures.clear()
            return
        self.failures[line.source] = line
        if line.reason is Reason.DAMAGED:
            self.num_damaged[line.source] = self.num_damaged.get(line.source, 0) + 1

    def may_try(self, source: str, retry: frozenset[Reason]) -> bool:
        """Whether `source` is worth asking: never asked, or failed with a reason in `retry`."""
        failure = self.failures.get(source)
        if failure is None or failure.reason is None:
            return True
        if failure.reason is Reason.DAMAGED and self.num_damaged[source] >= MAX_DAMAGED:
            return False
        return failure.reason in retry

    @property
    def main_reason(self) -> str:
        """One reason for a clip that could not be had: a retryable one where there is one."""
        reasons = [line.reason for line in self.failures.values() if line.reason is not None]
        return next((r for r in reasons if r in RETRYABLE), reasons[-1] if reasons else "unknown")

    @property
    def is_retryable(self) -> bool:
        """Whether any source failed with a reason that may pass."""
        return any(self.may_try(source, RETRYABLE) for source in self.failures)


def ledger_path(out: Path, part: Part) -> Path:
    """The file to which one part writes."""
    return out / f"ledger-{part}.jsonl"


def read(out: Path) -> dict[str, History]:
    """What the ledgers of all parts in `out` say, by key.

    Raises:
        OutError: a line other than a torn last one is not a ledger line.
    """
    histories: dict[str, History] = {}
    for _, line in heapq.merge(
        *(_timed(path) for path in sorted(out.glob("ledger-*.jsonl"))), key=itemgetter(0)
    ):
        histories.setdefault(line.key, History()).add(line)
    return histories


def _timed(path: Path) -> Iterator[tuple[str, Line]]:
    """Each line with its time, never earlier than the line before: a clock may be set back."""
    latest = ""
    for line in _lines(path):
        latest = max(latest, line.time)
        yield latest, line


def _lines(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                return  # torn: its writer was killed, or is writing now
            try:
                yield _parse(json.loads(raw))
            except (ValueError, TypeError, KeyError) as error:
                raise OutError(
                    f"{path}, line {number}: not a ledger line ({error}); remove that line"
                ) from error


def _parse(value: Any) -> Line:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    reason = value.pop("reason", None)
    return Line(**value, reason=None if reason is None else Reason(reason))


@contextmanager
def writer(path: Path) -> Iterator["Writer"]:
    """Open a part's ledger for appending, without the torn line that a killed writer left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        _remove_torn_line(file)
        yield Writer(file, path)


def _remove_torn_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    position, chunk = end, b""
    while position > 0 and b"\n" not in chunk:
        step = min(position, 65536)
        position -= step
        file.seek(position)
        chunk = file.read(step)
    keep = position + chunk.rfind(b"\n") + 1
    if keep < end:
        file.truncate(keep)


class Writer:
    """Appends lines as they happen; each is on its way to the disk when `add` returns."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def add(self, line: Line) -> None:
        """Append one line."""
        with naming(self._path):
            self._file.write(line.as_text().encode())
            self._file.flush()
