"""What became of every segment that an OUT was asked for: the figures that reports are made of.

All of it derives from `manifest.csv`, the ledgers and the files that are there, so it can be asked
at any time, also while a run is under way. Verdicts are those of the run's own summary.
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
    """How a segment stands, from best to worst."""

    PRESENT = "clips"
    RETRYABLE = "retryable gaps"
    PERMANENT = "permanent gaps"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class SegmentStatus:
    """How one segment stands.

    Attributes:
        segment: which.
        path: where its clip is or would be, relative to OUT, with slashes.
        state: clip or gap.
        reason: of a gap: a Reason; "missing" where the ledger has a clip as done whose file is not
            there, or not as long as it was; "not tried"; empty for a clip.
        source: which gave the clip, or gave that reason last.
        detail: its last words.
        time: when that was, UTC.
        frames: of the clip, as the ledger has it.
        bytes: of the clip.
        sha256: of the clip, hex, as the ledger has it.
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
    """What one source was asked for.

    Attributes:
        since: time of its first answer, UTC.
        attempts: ledger lines; each is about one clip.
        failures: of them, by reason.
        seconds: that all of them took.
    """

    since: str
    attempts: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, line: Line) -> None:
        """Take one of the source's lines into account."""
        self.since = min(self.since, line.time)
        self.attempts += 1
        self.seconds += line.seconds
        if line.status != DONE:
            self.failures[str(line.reason)] += 1


@dataclass(frozen=True, slots=True)
class Coverage:
    """What an OUT holds of what it was asked for.

    Attributes:
        labels: the dataset's full label list; a label's place in it is its id.
        statuses: one a segment, by split and key.
        source_stats: by source, in the order in which they were first asked.
        made: clips made, by minute ("2026-01-01T00:00", UTC).
        refused: rate limits and bot checks, by minute.
        num_files: files where clips lie, whether or not the ledger has them.
        num_bytes: of these files.
        until: time of the last ledger line; empty when there is none.
    """

    labels: tuple[str, ...]
    statuses: tuple[SegmentStatus, ...]
    source_stats: Mapping[str, SourceStats]
    made: Mapping[str, int]
    refused: Mapping[str, int]
    num_files: int
    num_bytes: int
    until: str

    def states(self, group: Callable[[Segment], str]) -> dict[str, Counter[State]]:
        """How many segments of each group are in each state."""
        found: dict[str, Counter[State]] = {}
        for status in self.statuses:
            found.setdefault(group(status.segment), Counter())[status.state] += 1
        return found

    @property
    def total(self) -> Counter[State]:
        """How many segments are in each state."""
        return Counter(status.state for status in self.statuses)

    @property
    def reasons(self) -> dict[str, Counter[State]]:
        """How many gaps have each reason, in which state; the most frequent reason first."""
        found: dict[str, Counter[State]] = {}
        for status in self.statuses:
            if status.state is not State.PRESENT:
                found.setdefault(status.reason, Counter())[status.state] += 1
        return dict(sorted(found.items(), key=lambda item: (-item[1].total(), item[0])))

    @property
    def given(self) -> dict[str, tuple[int, int]]:
        """How many clips, and bytes of clips, each source gave of those that are there."""
        clips: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for status in self.statuses:
            if status.state is State.PRESENT:
                clips[status.source] += 1
                sizes[status.source] += status.bytes
        return {source: (clips[source], sizes[source]) for source in [*self.source_stats, *clips]}


def reason_class(reason: str) -> str:
    """The class of a gap's reason; empty for what is no Reason."""
    return next((name for name, reasons in REASON_CLASSES.items() if reason in reasons), "")


@dataclass(frozen=True, slots=True)
class _LastEvent:
    """What a report keeps of the ledger line that decided how a segment stands."""

    source: str
    detail: str
    time: str


def survey(out: Path) -> Coverage:
    """Find out what an OUT holds of what it was asked for. Nothing is written.

    Raises:
        ManifestError: `out` is not a folder that kinetics-download filled.
        OutError: a ledger has a line that is none.
    """
    manifest, labels = read_out(out)
    histories = ledger.read(out)
    source_stats: dict[str, SourceStats] = {}
    made: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    words: dict[str, _LastEvent] = {}
    until = ""
    for line in ledger.lines(out):
        until = max(until, line.time)
        if line.source != VERIFY:
            source_stats.setdefault(line.source, SourceStats(line.time)).add(line)
        made[line.time[:MINUTE]] += line.status == DONE
        refused[line.time[:MINUTE]] += line.reason in IDENTITY
        known = words.get(line.key)
        # A run may have added lines since `histories` was read: those decide nothing here.
        if (known is None or known.time <= line.time) and _decides(line, histories.get(line.key)):
            words[line.key] = _LastEvent(line.source, line.detail, line.time)
    files = clip_files(out)
    statuses = [
        _segment_status(segment, histories.get(segment.key), words.get(segment.key), files)
        for segment in manifest.segments
    ]
    return Coverage(
        labels=labels,
        statuses=tuple(sorted(statuses, key=lambda s: (s.segment.split, s.segment.key))),
        source_stats=dict(sorted(source_stats.items(), key=lambda item: (item[1].since, item[0]))),
        made=+made,
        refused=+refused,
        num_files=len(files),
        num_bytes=sum(files.values()),
        until=until,
    )


def _decides(line: Line, history: History | None) -> bool:
    """Whether a key stands as it does because of this line, or of an earlier one that says so."""
    if history is None:
        return False
    if history.done is not None:
        return line.status == DONE and line.sha256 == history.done.sha256
    return line.status != DONE and line.reason == history.main_reason


def _segment_status(
    segment: Segment, history: History | None, word: _LastEvent | None, files: Mapping[str, int]
) -> SegmentStatus:
    path = clip_name(segment)
    if history is None or word is None:
        return SegmentStatus(segment, path, State.NOT_TRIED, State.NOT_TRIED)
    done = history.done
    if done is None:
        state = State.RETRYABLE if history.is_retryable else State.PERMANENT
        reason = str(history.main_reason)
        return SegmentStatus(segment, path, state, reason, word.source, word.detail, word.time)
    if files.get(path) != done.bytes:
        detail = "its file is not there" if path not in files else "its file has another size"
        return SegmentStatus(
            segment, path, State.RETRYABLE, MISSING, word.source, detail, word.time
        )
    return SegmentStatus(
        segment,
        path,
        State.PRESENT,
        source=word.source,
        time=word.time,
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
    """A table's row: how many segments a group has in each state."""
    expected = states.total()
    return {
        title: name,
        "expected": f"{expected:,}",
        **{state: f"{states[state]:,}" for state in State},
        "covered %": share(states[State.PRESENT], expected),
    }


def split_table(coverage: Coverage) -> Table:
    """Segments by split and state, with their sum where there are several splits."""
    splits = sorted(coverage.states(lambda segment: segment.split).items())
    rows = [state_row("split", split, states) for split, states in splits]
    return [*rows, state_row("split", "all", coverage.total)] if len(rows) > 1 else rows


def reason_table(coverage: Coverage) -> Table:
    """Gaps by reason, the most frequent first."""
    return [
        {
            "reason": reason,
            "class": reason_class(reason) or "-",
            "gaps": f"{states.total():,}",
            "of them retryable": f"{states.total() - states[State.PERMANENT]:,}",
        }
        for reason, states in coverage.reasons.items()
    ]


def source_table(coverage: Coverage) -> Table:
    """What each source was asked and gave, in the order in which they were first asked."""
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
                "failed most as": most(stats.failures),
            }
        )
    return rows


def most(failures: Counter[str], num: int = 3) -> str:
    """The most frequent reasons, with how often."""
    ranked: Iterable[tuple[str, int]] = sorted(failures.items(), key=lambda item: (-item[1], item))
    return ", ".join(f"{reason} {count:,}" for reason, count in list(ranked)[:num]) or "-"
