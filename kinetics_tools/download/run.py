"""The stage from manifest to clips: the chain of sources, the ledger, resuming.

Sources are tried one after another, each for the segments that have no clip yet and that every
source before it has failed to give. Whatever a source gives becomes a clip in one way: cut or
conformed, decoded once more, its frames counted. Every attempt is a ledger line.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from kinetics_tools.core import engine
from kinetics_tools.core.errors import (
    IDENTITY,
    RETRYABLE,
    MediaError,
    OutError,
    Reason,
    SourceError,
)
from kinetics_tools.core.files import (
    OTHER_TMP_DIR,
    copy_file,
    digest,
    file_digest,
    file_lock,
    hold_lock,
    move,
    read_json,
    remove_leftovers,
    require_free,
    require_locks,
    scratch_folder,
    write_json,
)
from kinetics_tools.core.keys import VIDEO_SUFFIXES
from kinetics_tools.core.schema import parse
from kinetics_tools.core.text import printable
from kinetics_tools.core.units import WHOLE, Crash, Part
from kinetics_tools.dataset import layout, ledger
from kinetics_tools.dataset.layout import clip_path, record_selection
from kinetics_tools.dataset.ledger import DONE, FAILED, History, Line, Writer
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download.sources.base import (
    Footage,
    Opened,
    Source,
    SourceUnit,
    group_by_video,
)
from kinetics_tools.download.sources.rate_limit import LockedOut
from kinetics_tools.media import decode
from kinetics_tools.media.clips import Cut, conform, conforming_frames, cut
from kinetics_tools.media.recipe import ClipRecipe, all_parameters

RECIPE = "recipe.json"
MAX_UNANSWERED = 10  # videos in a row: the network is down
MIN_READY_S = 2  # a shorter ready clip does not show its action


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadPlan:
    """How a run makes clips. Sent to every worker process.

    Attributes:
        out: the folder to fill.
        sources: in the order in which they are tried for each clip.
        recipe: of the clips.
        binary: the ffmpeg program.
        retry: a source that failed before is tried again where its reason is one of these.
        keep_videos: keep fetched videos in `out/videos`.
        force: make every clip again.
        part: which share of the work.
        jobs: how many units at once (None: as many as the engine has processors); the clips' bytes
            do not depend on it.
        engine: a name in `engine.ENGINES`.
        tmp_dir: where videos are stored while they are cut; None for beside the clips.
    """

    out: Path
    sources: tuple[Source, ...]
    recipe: ClipRecipe
    binary: Path
    retry: frozenset[Reason] = RETRYABLE
    keep_videos: bool = False
    force: bool = False
    part: Part = WHOLE
    jobs: int | None = 1
    engine: str = "local"
    tmp_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class DownloadSummary:
    """What a part has after a run.

    Attributes:
        num_expected: segments of this part.
        num_done: how many of them have their clip.
        gaps: how many of the others, by reason.
        num_retryable: how many of the others may succeed if they are tried again.
        stopped: why the run ended early (a site that blocks us, a network that is down), or None.
    """

    num_expected: int
    num_done: int
    gaps: Mapping[str, int]
    num_retryable: int
    stopped: SourceError | None = None


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What a worker made of a unit.

    Attributes:
        lines: one for each segment that was tried.
        lockout: why the source may not be tried any more; segments without a line were not tried.
    """

    lines: tuple[Line, ...]
    lockout: LockedOut | None = None


def share(segments: Sequence[Segment], part: Part) -> list[Segment]:
    """The part's segments: those of every N-th video, in manifest order."""
    return [segment for own in part.of(group_by_video(segments)) for segment in own]


def is_done(out: Path, segment: Segment, history: History | None) -> bool:
    """Whether the ledger has the clip as done, and its file exists with the recorded size."""
    if history is None or history.done is None:
        return False
    try:
        return clip_path(out, segment).stat().st_size == history.done.bytes
    except OSError:
        return False


def wanted(
    segments: Iterable[Segment],
    source: Source,
    plan: DownloadPlan,
    histories: Mapping[str, History],
) -> list[Segment]:
    """The segments for which a source of the plan is to be tried, by what the ledger says of them.

    Those at which the site blocked us last time come last: if it blocks us again, all others have
    been tried.
    """
    before = plan.sources[: plan.sources.index(source)]
    found = [
        s
        for s in segments
        if _is_next(source, before, histories.get(s.key, History()), plan.retry)
        and not is_done(plan.out, s, histories.get(s.key))
    ]

    def was_blocked(segment: Segment) -> bool:
        history = histories.get(segment.key)
        return history is not None and history.failed_with(source.name) in IDENTITY

    return sorted(found, key=was_blocked)


def _is_next(
    source: Source, before: Sequence[Source], history: History, retry: frozenset[Reason]
) -> bool:
    """Whether every source before has failed, and this one may succeed."""
    return (
        source.wants(history)
        and history.may_try(source.name, retry)
        and all(history.has_failed(s.name) or not s.wants(history) for s in before)
    )


def pending(
    segments: Sequence[Segment], plan: DownloadPlan, histories: Mapping[str, History]
) -> list[Segment]:
    """The part's segments for which this run would try any source."""
    own = share(segments, plan.part)
    if plan.force:
        return own
    keys = {s.key for source in plan.sources for s in wanted(own, source, plan, histories)}
    return [s for s in own if s.key in keys]


def register_recipe(out: Path, recipe: ClipRecipe) -> None:
    """Write `out/recipe.json`, or check that it holds this recipe.

    Raises:
        OutError: OUT holds clips of another recipe; the message names what differs.
    """
    path = out / RECIPE
    with file_lock(out / ".lock-recipe"):
        if not path.exists():
            own = recipe.as_json()
            write_json(path, {"recipe": own, "hash": digest(own)})
            return
    require_same_recipe(path, recipe)


def require_same_recipe(path: Path, recipe: ClipRecipe) -> None:
    """Raise OutError if a recipe.json is there that holds another recipe, or is damaged."""
    if not path.exists():
        return
    recorded, own = (all_parameters(each) for each in (_recorded_recipe(path), recipe.as_json()))
    for name in sorted(recorded.keys() | own.keys()):
        if recorded.get(name) != own.get(name):
            raise OutError(
                f"{path}: the clips there were made with {_shown(name)} = "
                f"{_shown(recorded.get(name))}, this run has {_shown(name)} = {own.get(name)}; "
                "use the same, or choose another folder"
            )


def _shown(value: object) -> str:
    return " ".join(printable(str(value)).split())[:200]


def _recorded_recipe(path: Path) -> dict[str, Any]:
    """What a recipe.json holds.

    Raises:
        OutError: it is damaged.
    """
    advice = "if this run's options are those that made the clips there, move it away, else choose "
    advice += "another folder"
    try:
        stored = parse(read_json(path, advice), dict[str, Any])
        return parse(stored.get("recipe"), dict[str, Any])
    except ValueError as error:
        raise OutError(f"{path} is not a recipe of clips ({error}); {advice}") from error


@contextmanager
def download(
    segments: Sequence[Segment], labels: tuple[str, ...], plan: DownloadPlan
) -> Iterator[DownloadRun]:
    """Begin to make the clips that are not yet made; safe to call again at any time.

    The clips are made while the run is iterated over, inside the block. At the end of the block no
    worker is left, whether or not the run came to its end.

        with download(segments, labels, plan) as run:
            for line in run:
                print(line.key, line.status)
            print(run.summary())

    Args:
        segments: what OUT is to hold after this run, beside what earlier runs were to make.
        labels: the dataset's full label list, sorted.
        plan: how.

    Raises:
        OutError: OUT is in use, or holds another recipe or another label list.
        KineticsError: a source cannot be used.
    """
    _check_sources(segments, plan)
    with hold_lock(plan.out, str(plan.part)):
        remove_leftovers(plan.out)
        register_recipe(plan.out, plan.recipe)
        record_selection(plan.out, segments, labels)
        with (
            scratch_folder(plan.tmp_dir or plan.out) as scratch,
            ledger.writer(ledger.ledger_path(plan.out, plan.part)) as record,
            closing(DownloadRun(plan, segments, scratch, record)) as run,
        ):
            yield run


def rehearse(
    segments: Sequence[Segment], labels: tuple[str, ...], plan: DownloadPlan
) -> tuple[list[Segment], DownloadSummary | None]:
    """What a run that would begin now would do: nothing is written, and no source is asked.

    Returns:
        The part's segments for which any source would be tried; and the run's summary where it
        would end at once, because there are none or the first source is blocked.

    Raises:
        KineticsError: as `download`, and where the first source cannot be begun with.
    """
    _check_sources(segments, plan)
    require_free(plan.out, str(plan.part))
    require_same_recipe(plan.out / RECIPE, plan.recipe)
    layout.agree(plan.out, segments, labels)
    require_locks(plan.tmp_dir or plan.out, OTHER_TMP_DIR)
    recorded = ledger.read(plan.out)
    histories = {} if plan.force else recorded
    own = share(segments, plan.part)
    stopped = None
    for source in plan.sources:
        if wanted(own if source.by_video else segments, source, plan, histories):
            source.rehearse()
            stopped = source.lockout()
            _rehearse_engine(plan)
            break
    todo = pending(segments, plan, histories)
    if todo and stopped is None:
        return todo, None
    return todo, summarise(own, plan.out, recorded, stopped)


def _rehearse_engine(plan: DownloadPlan) -> None:
    """Raise KineticsError if the engine cannot be used: without units it begins and ends."""
    if plan.engine != "local":
        nothing: Sequence[SourceUnit] = ()
        for _ in engine.run(nothing, make_clips, jobs=plan.jobs, engine=plan.engine):
            pass


def _check_sources(segments: Sequence[Segment], plan: DownloadPlan) -> None:
    for source in plan.sources:
        source.check(segments)


def summarise(
    segments: Iterable[Segment],
    out: Path,
    histories: Mapping[str, History],
    stopped: SourceError | None,
) -> DownloadSummary:
    """What some segments have, from the ledger and the files."""
    gaps: Counter[str] = Counter()
    num_done = num_retryable = 0
    for segment in segments:
        history = histories.get(segment.key)
        if is_done(out, segment, history):
            num_done += 1
        elif history is None or not (history.failures or history.is_broken):
            gaps["not tried"] += 1
            num_retryable += 1
        else:
            gaps[history.main_reason] += 1
            num_retryable += history.is_retryable
    num_expected = num_done + gaps.total()
    return DownloadSummary(num_expected, num_done, dict(gaps.most_common()), num_retryable, stopped)


@dataclass(frozen=True, slots=True)
class Attempts:
    """What a run tries with one source.

    Attributes:
        source: its name.
        num_wanted: segments for which it is tried; there are at most so many lines.
        lines: each is in the ledger already when it is yielded.
    """

    source: str
    num_wanted: int
    lines: Generator[Line, None, None]


class DownloadRun:
    """A run of one part. Iterating over it makes the clips and yields each attempt's ledger line.

    Attributes:
        stopped: why the run ended early, or None.
    """

    def __init__(
        self, plan: DownloadPlan, segments: Sequence[Segment], scratch: Path, record: Writer
    ) -> None:
        self.stopped: SourceError | None = None
        self._plan = plan
        self._segments = segments
        self._own = share(segments, plan.part)
        self._own_keys = {segment.key for segment in self._own}
        self._scratch = scratch
        self._record = record
        self._is_alone = plan.part.count == 1  # else other parts write ledger lines meanwhile
        recorded = ledger.read(plan.out)  # a damaged one ends the run here, not at its end
        self._histories = {} if plan.force else recorded
        self._lines: Generator[Line, None, None] | None = None
        self._num_unanswered = 0  # videos in a row

    def __iter__(self) -> Iterator[Line]:
        """Try all sources, one after another."""
        for attempts in self.by_source():
            yield from attempts.lines

    def by_source(self) -> Iterator[Attempts]:
        """The same, for callers who show how far each source is."""
        plan = self._plan
        for number, source in enumerate(plan.sources):
            if number > 0 and not self._is_alone and not plan.force:
                self._histories = ledger.read(plan.out)  # other parts may have made clips of ours
            pool = self._own if source.by_video else self._segments
            segments = wanted(pool, source, plan, self._histories)
            if not segments:
                continue
            self.stopped = source.lockout()
            if self.stopped is None:
                with closing(self._try(source, segments)) as self._lines:
                    yield Attempts(source.name, len(segments), self._lines)
            if self.stopped is not None:
                return

    def close(self) -> None:
        """End the workers."""
        if self._lines is not None:
            self._lines.close()

    def summary(self) -> DownloadSummary:
        """What the part has now, from the ledger and the files."""
        is_current = self._is_alone and not self._plan.force
        histories = self._histories if is_current else ledger.read(self._plan.out)
        return summarise(self._own, self._plan.out, histories, self.stopped)

    def _try(self, source: Source, segments: Sequence[Segment]) -> Generator[Line, None, None]:
        """Try one source for all that is wanted of it."""
        plan = self._plan
        work = partial(make_clips, source=source, plan=plan, scratch=self._scratch)
        units = self._units(source, segments)  # the engine closes them
        with closing(engine.run(units, work, jobs=plan.jobs, engine=plan.engine)) as finished:
            for unit, result in finished:
                lines = self._lines_of(unit, result, source)
                for line in lines:  # all of them before one is yielded: the caller may end there
                    self._record.add(line)
                    self._histories.setdefault(line.key, History()).add(line)
                yield from lines

    def _units(
        self, source: Source, segments: Sequence[Segment]
    ) -> Generator[SourceUnit, None, None]:
        """The source's units; none after the run was stopped, so that it ends with those begun."""
        with closing(source.units(segments, self._plan.part, self._scratch)) as units:
            for unit in units:
                if self.stopped is not None:
                    return
                yield unit if unit.error is None else self._own_share(unit)

    def _own_share(self, unit: SourceUnit) -> SourceUnit:
        """The unit with this part's segments only: each part records its own gaps."""
        return replace(unit, segments=tuple(s for s in unit.segments if s.key in self._own_keys))

    def _lines_of(
        self, unit: SourceUnit, result: UnitResult | Crash, source: Source
    ) -> Sequence[Line]:
        """The unit's ledger lines; also notes what ends the run."""
        if isinstance(result, Crash):
            error = SourceError(Reason.KILLED, result.detail)
            return [_failed(segment, source, error) for segment in unit.segments]
        self.stopped = self.stopped or result.lockout or self._no_network(unit, result)
        return result.lines

    def _no_network(self, unit: SourceUnit, result: UnitResult) -> SourceError | None:
        """Why the run ends where the network is down: every further video would fail as well."""
        if unit.error is not None or not result.lines:
            return None
        last = result.lines[-1]
        self._num_unanswered = self._num_unanswered + 1 if last.reason is Reason.NETWORK else 0
        if self._num_unanswered < MAX_UNANSWERED:
            return None
        return SourceError(
            Reason.NETWORK,
            f"{MAX_UNANSWERED} videos in a row got no answer, the last: {last.detail}",
        )


def _failed(
    segment: Segment,
    source: Source,
    error: SourceError | MediaError,
    *,
    seconds: float = 0.0,
    versions: Mapping[str, str] | None = None,
) -> Line:
    return Line(
        key=segment.key,
        status=FAILED,
        source=source.name,
        reason=error.reason,
        detail=error.detail,
        seconds=seconds,
        versions=versions or {},
    )


def make_clips(
    unit: SourceUnit, *, source: Source, plan: DownloadPlan, scratch: Path
) -> UnitResult:
    """Make a unit's clips. An expected failure is a ledger line; a bug raises."""
    if unit.error is not None:
        return UnitResult(tuple(_failed(segment, source, unit.error) for segment in unit.segments))
    lines: list[Line] = []
    lockout = None
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        fetched = folder / "video"
        fetched.mkdir()
        opened = source.open(unit, fetched)
        try:
            for segment in unit.segments:
                lines.append(_make_clip(segment, opened, folder, source, plan))
        except LockedOut as error:
            lockout = error
        if plan.keep_videos:
            for video in fetched.iterdir():
                if video.suffix not in VIDEO_SUFFIXES:
                    continue  # what a broken fetch left
                move(video, plan.out / "videos" / f"{unit.segments[0].youtube_id}{video.suffix}")
    for file in itertools.chain(*unit.files.values()):
        if file.path.is_relative_to(scratch):
            file.path.unlink()
    if any(line.reason in IDENTITY for line in lines):
        lockout = source.lockout()  # here, because each host has its own rate limit
    return UnitResult(tuple(lines), lockout)


def _make_clip(
    segment: Segment,
    opened: Opened,
    folder: Path,
    source: Source,
    plan: DownloadPlan,
) -> Line:
    """One attempt at one clip from one source.

    Raises:
        LockedOut: the clip was not tried.
    """
    start = time.monotonic()
    scratch = folder / f"{segment.key}.mp4"
    versions = {"ffmpeg": plan.recipe.ffmpeg, **source.versions()}
    try:
        made, detail = _make_of_any(segment, opened, scratch, plan)
    except LockedOut:
        raise
    except (SourceError, MediaError) as error:
        seconds = round(time.monotonic() - start, 3)
        return _failed(segment, source, error, seconds=seconds, versions=versions)
    num_bytes, sha256 = scratch.stat().st_size, file_digest(scratch)
    move(scratch, clip_path(plan.out, segment))
    return Line(
        key=segment.key,
        status=DONE,
        source=source.name,
        detail=detail,
        frames=made.num_frames,
        held=made.num_held,
        bytes=num_bytes,
        sha256=sha256,
        seconds=round(time.monotonic() - start, 3),
        versions=versions,
    )


def _make_of_any(
    segment: Segment, opened: Opened, clip: Path, plan: DownloadPlan
) -> tuple[Cut, str]:
    """Make the clip of the first footage of which that can be done; return its detail too."""
    failures: list[MediaError] = []
    for footage in opened.footage(segment):
        try:
            made = _make_of(footage, segment, clip, plan)
        except MediaError as error:
            failures.append(error)
        else:
            details = (footage.detail, "no sound" if made.is_silent else "")
            return made, ", ".join(filter(None, details))
    if len(failures) == 1:
        raise failures[0]
    # There is one: a source yields footage or raises. A file that may be replaced by a good one
    # outweighs one that is too short.
    main = next((error for error in failures if error.reason in RETRYABLE), failures[-1])
    detail = "; ".join(map(str, failures))
    raise MediaError(main.path, detail, reason=main.reason)


def _make_of(footage: Footage, segment: Segment, clip: Path, plan: DownloadPlan) -> Cut:
    if footage.is_clip:
        return _check_ready(footage.path, clip, plan)
    return cut(
        footage.path,
        clip,
        start_s=segment.start_s - footage.zero_s,
        end_s=segment.end_s - footage.zero_s,
        recipe=plan.recipe,
        binary=plan.binary,
    )


def _check_ready(ready: Path, clip: Path, plan: DownloadPlan) -> Cut:
    """Make `clip` of a ready clip, from its time 0 to its end; a conforming one is copied."""
    if conforming_frames(ready, plan.recipe):
        copy_file(ready, clip)
        is_silent = plan.recipe.keep_audio and decode.probe(clip).num_audio == 0
        made = Cut(decode.count_frames(clip), is_silent=is_silent)
    else:
        made = conform(ready, clip, recipe=plan.recipe, binary=plan.binary)
    length_s = decode.probe(clip).duration_s or made.num_frames / Fraction(plan.recipe.fps)
    if length_s < MIN_READY_S:
        detail = f"the ready clip is only {float(length_s):.2f} s long"
        raise MediaError(ready, detail, reason=Reason.TOO_SHORT)
    return made
