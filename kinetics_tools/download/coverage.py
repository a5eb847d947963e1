"""Which clips an OUT has and why others are missing: the numbers behind the report.

All numbers derive from `manifest.csv`, the ledgers and the existing files, so they can be computed
at any time, also during a run. They agree with the summary that a run prints.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from kinetics_tools.core.console import size_text
from kinetics_tools.core.errors import IDENTITY, REASON_CLASSES
from kinetics_tools.dataset import ledger
from kinetics_tools.dataset.layout import MISSING, clip_files, clip_name, read_out
from kinetics_tools.dataset.ledger import DONE, VERIFY, History, Line
from kinetics_tools.dataset.manifest import Segment

MINUTE = len("2026-01-01T00:00")  # of an ISO time


class State(StrEnum):
    """Whether a segment has its clip, from best to worst."""

    PRESENT = "clips"
    RETRYABLE = "retryable gaps"
    PERMANENT = "permanent gaps"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class SegmentStatus:
    """One segment: its clip, or why it has none.

    Attributes:
        segment: the manifest row.
        path: of its clip, which may not exist, relative to OUT, with slashes.
        state: clip or gap.
        reason: of a gap: a Reason; "missing" where the ledger has the clip as done, but its file
            does not exist or has another size; "not tried"; empty for a clip.
        source: of the clip, or of the last failure with that reason.
        detail: of that ledger line.
        time: of that ledger line, UTC.
        frames: of the clip, from the ledger.
        bytes: of the clip.
        sha256: of the clip, hex, from the ledger.
    """

    segment: Segment
    path: str
    state: State
    reason: str = ""
    source: str = ""
    detail: str = ""
    time: str = ""
    frames: int | None = None
    bytes: int = 0
    sha256: str = ""


@dataclass(slots=True)
class SourceStats:
    """How often one source was tried.

    Attributes:
        since: time of the first attempt, UTC.
        attempts: number of ledger lines; each is about one clip.
        failures: number of failed attempts, by reason.
        seconds: duration of all attempts together.
    """

    since: str
    attempts: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, line: Line) -> None:
        """Count one of the source's ledger lines."""
        self.since = min(self.since, line.time)
        self.attempts += 1
        self.seconds += line.seconds
        if line.status != DONE:
            self.failures[str(line.reason)] += 1


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which of the expected clips an OUT has.

    Attributes:
        labels: the dataset's full label list; a label's index in it is its id.
        statuses: one per segment, by split and key.
        source_stats: by source, in the order in which they were first tried.
        made: number of clips made, by minute ("2026-01-01T00:00", UTC).
        blocked: number of rate limits and bot checks, by minute.
        num_files: number of files in the clips' folders, also those that are not in the ledger.
        num_bytes: size of these files.
        until: time of the last ledger line; empty where there is none.
    """

    labels: tuple[str, ...]
    statuses: tuple[SegmentStatus, ...]
    source_stats: Mapping[str, SourceStats]
    made: Mapping[str, int]
    blocked: Mapping[str, int]
    num_files: int
    num_bytes: int
    until: str

    def states(self, group: Callable[[Segment], str]) -> dict[str, Counter[State]]:
        """The number of segments in each state, by group."""
        found: dict[str, Counter[State]] = {}
        for status in self.statuses:
            found.setdefault(group(status.segment), Counter())[status.state] += 1
        return found

    @property
    def total(self) -> Counter[State]:
        """The number of segments in each state."""
        return Counter(status.state for status in self.statuses)

    @property
    def reasons(self) -> dict[str, Counter[State]]:
        """The number of gaps in each state, by reason; the most frequent reason first."""
        found: dict[str, Counter[State]] = {}
        for status in self.statuses:
            if status.state is not State.PRESENT:
                found.setdefault(status.reason, Counter())[status.state] += 1
        return dict(sorted(found.items(), key=lambda item: (-item[1].total(), item[0])))

    @property
    def given(self) -> dict[str, tuple[int, int]]:
        """The number of existing clips, and their bytes, by source."""
        clips: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for status in self.statuses:
            if status.state is State.PRESENT:
                clips[status.source] += 1
                sizes[status.source] += status.bytes
        return {source: (clips[source], sizes[source]) for source in [*self.source_stats, *clips]}


def reason_class(reason: str) -> str:
    """The class of a gap's reason; empty for "missing" and "not tried"."""
    return next((name for name, reasons in REASON_CLASSES.items() if reason in reasons), "")


@dataclass(frozen=True, slots=True)
class _LastEvent:
    """What the report shows of the ledger line that decides a segment's state."""

    source: str
    detail: str
    time: str


def survey(out: Path) -> Coverage:
    """Find out which of the expected clips an OUT has. Nothing is written.

    Raises:
        ManifestError: `out` is not a folder that kinetics-download filled.
        OutError: a ledger is damaged.
    """
    manifest, labels = read_out(out)
    histories = ledger.read(out)
    source_stats: dict[str, SourceStats] = {}
    made: Counter[str] = Counter()
    blocked: Counter[str] = Counter()
    last_events: dict[str, _LastEvent] = {}
    until = ""
    for line in ledger.lines(out):
        until = max(until, line.time)
        if line.source != VERIFY:
            source_stats.setdefault(line.source, SourceStats(line.time)).add(line)
        made[line.time[:MINUTE]] += line.status == DONE
        blocked[line.time[:MINUTE]] += line.reason in IDENTITY
        known = last_events.get(line.key)
        # A run may have added lines since `histories` was read: those are not counted here.
        if (known is None or known.time <= line.time) and _decides(line, histories.get(line.key)):
            last_events[line.key] = _LastEvent(line.source, line.detail, line.time)
    files = clip_files(out)
    statuses = [
        _segment_status(segment, histories.get(segment.key), last_events.get(segment.key), files)
        for segment in manifest.segments
    ]
    return Coverage(
        labels=labels,
        statuses=tuple(sorted(statuses, key=lambda s: (s.segment.split, s.segment.key))),
        source_stats=dict(sorted(source_stats.items(), key=lambda item: (item[1].since, item[0]))),
        made=+made,
        blocked=+blocked,
        num_files=len(files),
        num_bytes=sum(files.values()),
        until=until,
    )


def _decides(line: Line, history: History | None) -> bool:
    """Whether this line, or an earlier equal one, is why the key has its state."""
    if history is None:
        return False
    if history.done is not None:
        return line.status == DONE and line.sha256 == history.done.sha256
    return line.status != DONE and line.reason == history.main_reason


def _segment_status(
    segment: Segment, history: History | None, last: _LastEvent | None, files: Mapping[str, int]
) -> SegmentStatus:
    path = clip_name(segment)
    if history is None or last is None:
        return SegmentStatus(segment, path, State.NOT_TRIED, State.NOT_TRIED)
    done = history.done
    if done is None:
        state = State.RETRYABLE if history.is_retryable else State.PERMANENT
        reason = str(history.main_reason)
        return SegmentStatus(segment, path, state, reason, last.source, last.detail, last.time)
    if files.get(path) != done.bytes:
        detail = "its file is not there" if path not in files else "its file has another size"
        return SegmentStatus(
            segment, path, State.RETRYABLE, MISSING, last.source, detail, last.time
        )
    return SegmentStatus(
        segment,
        path,
        State.PRESENT,
        source=last.source,
        time=last.time,
        frames=done.frames,
        bytes=done.bytes or 0,
        sha256=done.sha256 or "",
    )


def share(part: int, whole: int) -> str:
    """A percentage; never 100.0 for less than all."""
    if whole == 0:
        return "-"
    percent = 100 * part / whole
    return f"{min(percent, 99.9) if part < whole else percent:.1f}"


Table = list[dict[str, str]]


def state_row(title: str, name: str, states: Counter[State]) -> dict[str, str]:
    """A row of a table: the number of a group's segments in each state."""
    expected = states.total()
    return {
        title: name,
        "expected": f"{expected:,}",
        **{state: f"{states[state]:,}" for state in State},
        "coverage %": share(states[State.PRESENT], expected),
    }


def split_table(coverage: Coverage) -> Table:
    """Number of segments by split and state, with the sum where there are several splits."""
    splits = sorted(coverage.states(lambda segment: segment.split).items())
    rows = [state_row("split", split, states) for split, states in splits]
    return [*rows, state_row("split", "all", coverage.total)] if len(rows) > 1 else rows


def reason_table(coverage: Coverage) -> Table:
    """Number of gaps by reason, the most frequent first."""
    return [
        {
            "reason": reason,
            "class": reason_class(reason) or "-",
            "gaps": f"{states.total():,}",
            "retryable": f"{states.total() - states[State.PERMANENT]:,}",
        }
        for reason, states in coverage.reasons.items()
    ]


def source_table(coverage: Coverage) -> Table:
    """Attempts and clips of each source, in the order in which they were first tried."""
    given = coverage.given
    rows = []
    for source, stats in coverage.source_stats.items():
        num_clips, num_bytes = given[source]
        rows.append(
            {
                "source": source,
                "attempts": f"{stats.attempts:,}",
                "failed": f"{stats.failures.total():,}",
                "clips": f"{num_clips:,}",
                "bytes": size_text(num_bytes),
                "seconds": f"{stats.seconds:,.0f}",
                "main reasons": most(stats.failures),
            }
        )
    return rows


def most(failures: Counter[str], num: int = 3) -> str:
    """The `num` most frequent reasons, with their numbers."""
    ranked: Iterable[tuple[str, int]] = sorted(failures.items(), key=lambda item: (-item[1], item))
    return ", ".join(f"{reason} {count:,}" for reason, count in list(ranked)[:num]) or "-"
