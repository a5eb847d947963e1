"""The stage from manifest to clips: the source chain, the ledger, resume.

The sources are asked one after another. Each is asked for the segments that no clip has yet and
that every source before it has failed to give; what it gives must pass one door (cut or conformed,
decoded once more, frames counted) to become a clip. Every answer is a ledger line.
"""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from kinetics_tools.core import engine as engine_module
from kinetics_tools.core.errors import (
    IDENTITY,
    RETRYABLE,
    MediaError,
    OutError,
    Reason,
    SourceError,
)
from kinetics_tools.core.files import (
    digest,
    file_digest,
    file_lock,
    hold_lock,
    move,
    name_in_errors,
    read_json,
    remove_leftovers,
    scratch_folder,
    write_json,
)
from kinetics_tools.core.keys import VIDEO_SUFFIXES
from kinetics_tools.core.units import WHOLE, Crash, Part
from kinetics_tools.dataset import ledger
from kinetics_tools.dataset.layout import clip_path, record_selection
from kinetics_tools.dataset.ledger import DONE, FAILED, History, Line, Writer
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download.sources.base import Opened, Source, SourceUnit, by_video
from kinetics_tools.download.sources.rate_limit import LockedOut
from kinetics_tools.media import decode
from kinetics_tools.media.cut import ClipRecipe, Cut, conform, conforming_frames, cut

MAX_SILENT = 10  # videos in a row for which no answer came: the network is down
MIN_READY_S = 2  # a ready clip shorter than this is too short to say what it shows


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadPlan:
    """How a run makes clips. Sent to every worker process.

    Attributes:
        out: the folder to fill.
        sources: in the order in which each clip's are asked.
        recipe: of the clips.
        binary: the ffmpeg program.
        retry: reasons for which a source that failed before is asked again.
        keep_videos: keep fetched videos in `out/videos`.
        force: make every clip anew.
        part: which share of the work.
        jobs: how many units at once (None: as many as the engine has processors); the clips' bytes
            do not depend on it.
        engine: a name in `engine.ENGINES`.
        tmp_dir: where videos go while they are cut; None for beside the clips.
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
    """How a part stands after a run.

    Attributes:
        num_expected: segments of this part.
        num_done: of them, clips in place.
        gaps: of the others, how many by reason.
        num_retryable: of the others, how many may succeed when asked again.
        stopped: why the run was ended early (a lock-out, a network that is down), or None.
    """

    num_expected: int
    num_done: int
    gaps: Mapping[str, int]
    num_retryable: int
    stopped: SourceError | None = None


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What became of a unit.

    Attributes:
        lines: one for each segment that was asked for.
        lockout: why nothing more may be asked of the source; of the segments without a line,
            nothing was.
    """

    lines: tuple[Line, ...]
    lockout: LockedOut | None = None


Show = Callable[[Iterator[Line], int, str], Iterable[Line]]


def share(segments: Sequence[Segment], part: Part) -> list[Segment]:
    """The part's segments: those of every N-th video, in manifest order."""
    return [segment for own in part.of(by_video(segments)) for segment in own]


def is_done(out: Path, segment: Segment, history: History | None) -> bool:
    """Whether the ledger has the clip as done and the file is there with the size it had."""
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
    """What to ask a source of the plan for, now that the ledger says this of the segments.

    Those for which it refused us last time come last: were it to refuse us for them again, and lock
    us out, nothing else would ever be asked.
    """
    before = plan.sources[: plan.sources.index(source)]
    found = [
        s
        for s in segments
        if _is_next(source, before, histories.get(s.key, History()), plan.retry)
        and not is_done(plan.out, s, histories.get(s.key))
    ]

    def is_refused(segment: Segment) -> bool:
        history = histories.get(segment.key)
        return history is not None and history.failed_with(source.name) in IDENTITY

    return sorted(found, key=is_refused)


def _is_next(
    source: Source, before: Sequence[Source], history: History, retry: frozenset[Reason]
) -> bool:
    """Whether every source before has failed, and this one is worth asking."""
    return (
        source.wants(history)
        and history.may_try(source.name, retry)
        and all(history.has_failed(s.name) or not s.wants(history) for s in before)
    )


def pending(
    segments: Sequence[Segment], plan: DownloadPlan, histories: Mapping[str, History]
) -> list[Segment]:
    """The part's segments that this run would ask any source for."""
    own = share(segments, plan.part)
    if plan.force:
        return own
    asked = {s.key for source in plan.sources for s in wanted(own, source, plan, histories)}
    return [s for s in own if s.key in asked]


def register_recipe(out: Path, recipe: ClipRecipe) -> None:
    """Write `out/recipe.json`, or check that it says the same.

    Raises:
        OutError: OUT holds clips of another recipe; the message names what differs.
    """
    path = out / "recipe.json"
    values = recipe.as_json()
    with file_lock(out / ".lock-recipe"):
        if not path.exists():
            write_json(path, {"recipe": values, "hash": digest(values)})
            return
    old = read_json(path).get("recipe", {})
    for name in sorted(old.keys() | values.keys()):
        if old.get(name) != values.get(name):
            raise OutError(
                f"{path}: the clips there were made with {name} = {old.get(name)}, this run has "
                f"{name} = {values.get(name)}; use the same, or choose another folder"
            )


def download(
    segments: Sequence[Segment],
    labels: tuple[str, ...],
    plan: DownloadPlan,
    *,
    show: Show,
    begin: Callable[[], None] = lambda: None,
) -> DownloadSummary:
    """Make the clips that are not yet made; safe to call again at any time.

    Args:
        segments: what OUT is to hold after this run, beside what it was asked to hold before.
        labels: the dataset's full label list, sorted.
        plan: how.
        show: wraps the iterator of a source's ledger lines, given how many there may be and the
            source's name, to show progress.
        begin: called when OUT is this run's, before anything is asked.

    Raises:
        OutError: OUT is in use, or holds another recipe or another label list.
        KineticsError: a source cannot be used.
    """
    for source in plan.sources:
        source.check(segments)
    with hold_lock(plan.out, str(plan.part)):
        remove_leftovers(plan.out)
        register_recipe(plan.out, plan.recipe)
        record_selection(plan.out, segments, labels)
        begin()
        with (
            scratch_folder(plan.tmp_dir or plan.out) as scratch,
            ledger.writer(ledger.ledger_path(plan.out, plan.part)) as record,
        ):
            run = _Run(plan, segments, scratch, record, show)
            stopped = next(filter(None, map(run.ask, plan.sources)), None)
        return summarise(segments, plan, stopped)


class _Run:
    """One run of one part: what the ledger says by now, and what ends it early."""

    def __init__(
        self,
        plan: DownloadPlan,
        segments: Sequence[Segment],
        scratch: Path,
        record: Writer,
        show: Show,
    ) -> None:
        self._plan = plan
        self._segments = segments
        self._own = share(segments, plan.part)
        self._own_keys = {segment.key for segment in self._own}
        self._scratch = scratch
        self._record = record
        self._show = show
        self._histories = {} if plan.force else ledger.read(plan.out)
        self._stop: SourceError | None = None
        self._num_silent = 0  # videos in a row for which no answer came

    def ask(self, source: Source) -> SourceError | None:
        """Ask one source for all that is wanted of it; return what stops the run."""
        plan = self._plan
        if plan.part.count > 1 and not plan.force:
            self._histories = ledger.read(plan.out)  # other parts may have served this one's clips
        pool = self._own if source.by_video else self._segments
        asked = wanted(pool, source, plan, self._histories)
        if not asked:
            return None
        lockout = source.lockout()
        if lockout is not None:
            return lockout
        work = partial(make_clips, source=source, plan=plan, scratch=self._scratch)
        units = self._units(source, asked)  # the engine closes them
        with closing(
            engine_module.run(units, work, jobs=plan.jobs, engine=plan.engine)
        ) as finished:
            for line in self._show(self._lines(finished, source), len(asked), source.name):
                self._record.add(line)
                self._histories.setdefault(line.key, History()).add(line)
        return self._stop

    def _units(self, source: Source, asked: Sequence[Segment]) -> Generator[SourceUnit, None, None]:
        """The source's units, none after a stop: what is under way then ends in peace."""
        with closing(source.units(asked, self._plan.part, self._scratch)) as units:
            for unit in units:
                if self._stop is not None:
                    return
                yield self._own_verdict(unit)

    def _own_verdict(self, unit: SourceUnit) -> SourceUnit:
        """What a source lacks, each part records of its own segments: the record has it once."""
        if unit.error is None:
            return unit
        return replace(unit, segments=tuple(s for s in unit.segments if s.key in self._own_keys))

    def _lines(
        self, finished: Iterable[tuple[SourceUnit, UnitResult | Crash]], source: Source
    ) -> Iterator[Line]:
        for unit, made in finished:
            if isinstance(made, Crash):
                error = SourceError(Reason.KILLED, made.detail)
                yield from (_failed(segment, source, error) for segment in unit.segments)
            else:
                self._stop = self._stop or made.lockout or self._silence(unit, made)
                yield from made.lines

    def _silence(self, unit: SourceUnit, made: UnitResult) -> SourceError | None:
        """A network that is down fails every video alike, at the pace of one that is up."""
        if unit.error is not None or not made.lines:
            return None
        last = made.lines[-1]
        self._num_silent = self._num_silent + 1 if last.reason is Reason.NETWORK else 0
        if self._num_silent < MAX_SILENT:
            return None
        return SourceError(
            Reason.NETWORK, f"{MAX_SILENT} videos in a row got no answer, the last: {last.detail}"
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


def summarise(
    segments: Sequence[Segment], plan: DownloadPlan, stopped: SourceError | None = None
) -> DownloadSummary:
    """How the part stands, from the ledger and the files."""
    histories = ledger.read(plan.out)
    gaps: Counter[str] = Counter()
    num_done = num_retryable = 0
    for segment in share(segments, plan.part):
        history = histories.get(segment.key)
        if is_done(plan.out, segment, history):
            num_done += 1
        elif history is None or not (history.failures or history.is_broken):
            gaps["not tried"] += 1
            num_retryable += 1
        else:
            gaps[history.main_reason] += 1
            num_retryable += history.is_retryable
    return DownloadSummary(
        num_done + gaps.total(), num_done, dict(gaps.most_common()), num_retryable, stopped
    )


def make_clips(
    unit: SourceUnit, *, source: Source, plan: DownloadPlan, scratch: Path
) -> UnitResult:
    """Make a unit's clips. Expected failures are lines; a bug still raises."""
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
                ready = unit.ready.get(segment.key)
                lines.append(_make_clip(segment, ready, opened, folder, source, plan))
        except LockedOut as error:
            lockout = error
        if plan.keep_videos:
            for video in fetched.iterdir():
                if video.suffix not in VIDEO_SUFFIXES:
                    continue  # what a broken fetch left
                move(video, plan.out / "videos" / f"{unit.segments[0].youtube_id}{video.suffix}")
    for ready in unit.ready.values():
        if ready.is_relative_to(scratch):
            ready.unlink()
    if any(line.reason in IDENTITY for line in lines):
        lockout = source.lockout()  # asked here: each host has a pace of its own
    return UnitResult(tuple(lines), lockout)


def _make_clip(
    segment: Segment,
    ready: Path | None,
    opened: Opened,
    folder: Path,
    source: Source,
    plan: DownloadPlan,
) -> Line:
    """One attempt at one clip from one source.

    Raises:
        LockedOut: it was not asked for.
    """
    start = time.monotonic()
    scratch = folder / f"{segment.key}.mp4"
    versions = {"ffmpeg": plan.recipe.ffmpeg, **source.versions()}
    try:
        made, detail = (
            _cut(segment, opened, scratch, plan)
            if ready is None
            else (_pass_ready(ready, scratch, plan), "as-found")
        )
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


def _cut(segment: Segment, opened: Opened, clip: Path, plan: DownloadPlan) -> tuple[Cut, str]:
    """Cut the segment out of the first footage from which it can be cut; say what that was."""
    damage = None
    for footage in opened.footage(segment):
        try:
            made = cut(
                footage.path,
                clip,
                start_s=segment.start_s - footage.zero_s,
                end_s=segment.end_s - footage.zero_s,
                recipe=plan.recipe,
                binary=plan.binary,
            )
        except MediaError as error:
            damage = error
        else:
            return made, footage.detail
    assert damage is not None, "a source gives footage or says why not"
    raise damage


def _pass_ready(ready: Path, clip: Path, plan: DownloadPlan) -> Cut:
    """Bring a clip that a source has ready through the same door, from its time 0, all of it."""
    if conforming_frames(ready, plan.recipe):
        with name_in_errors(clip):
            shutil.copyfile(ready, clip)
        made = Cut(decode.count_frames(clip))
    else:
        made = conform(ready, clip, recipe=plan.recipe, binary=plan.binary)
    fps = decode.probe(clip).fps or plan.recipe.fps
    if made.num_frames < MIN_READY_S * fps:
        detail = f"the ready clip has only {made.num_frames} frames"
        raise MediaError(ready, detail, reason=Reason.TOO_SHORT)
    return made
