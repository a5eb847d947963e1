"""The stage from manifest to clips: the source chain of each clip, the ledger, resume.

A unit is one video: it is fetched once for all of its segments that are not done. For each segment
the sources are asked in order until one gives a clip that survives the door (cut, decoded once
more, frames counted); every failure on the way is a ledger line.
"""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kinetics_tools import engine, ledger, media, sources
from kinetics_tools.engine import WHOLE, Crash, Part
from kinetics_tools.errors import (
    IDENTITY,
    RETRYABLE,
    MediaError,
    OutError,
    Reason,
    SourceError,
)
from kinetics_tools.files import (
    digest,
    exclusive,
    file_digest,
    hold,
    move,
    naming,
    read_json,
    scratch_folder,
    sweep,
    write_json,
)
from kinetics_tools.ledger import DONE, FAILED, History, Line
from kinetics_tools.manifest import Segment, clip_path, record_selection
from kinetics_tools.media import ClipRecipe, Cut
from kinetics_tools.sources import Source

MIN_READY_S = 2  # a ready clip shorter than this is too short to say what it shows
STOP_AFTER = 3  # identity errors in a row: the host has locked us out


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a run makes clips. Sent to every worker process.

    Attributes:
        out: the folder to fill.
        sources: in the order in which each clip's are asked.
        recipe: of the clips.
        binary: the ffmpeg program.
        retry: reasons for which a source that failed before is asked again.
        keep_videos: keep fetched videos in `out/videos`.
        force: make every clip anew.
        part: which share of the videos.
        jobs: how many videos at once; the clips' bytes do not depend on it.
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
    jobs: int = 1
    engine: str = "local"
    tmp_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """A video, its segments that are to be made, and what the ledger says of them."""

    youtube_id: str
    segments: tuple[Segment, ...]
    histories: Mapping[str, History] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Summary:
    """How a part stands after a run.

    Attributes:
        num_expected: segments of this part.
        num_done: of them, clips in place.
        gaps: of the others, how many by reason.
        num_retryable: of the others, how many may succeed when asked again.
        stopped: the reason for which the run was ended early, or None.
    """

    num_expected: int
    num_done: int
    gaps: Mapping[str, int]
    num_retryable: int
    stopped: Reason | None = None


def videos_of(segments: Iterable[Segment], part: Part) -> list[tuple[str, list[Segment]]]:
    """The part's videos, each with its segments, in manifest order."""
    videos: dict[str, list[Segment]] = {}
    for segment in segments:
        videos.setdefault(segment.youtube_id, []).append(segment)
    return part.of(list(videos.items()))


def is_done(out: Path, segment: Segment, history: History | None) -> bool:
    """Whether the ledger has the clip as done and the file is there with the size it had."""
    if history is None or history.done is None:
        return False
    clip = clip_path(out, segment)
    return clip.is_file() and clip.stat().st_size == history.done.bytes


def pending(
    segments: Iterable[Segment], plan: Plan, histories: Mapping[str, History]
) -> list[Unit]:
    """The part's units: videos with a segment that is not done and has a source worth asking."""
    units = []
    for video, own in videos_of(segments, plan.part):
        wanted = tuple(s for s in own if _is_wanted(s, plan, histories.get(s.key)))
        if wanted:
            known = {s.key: histories[s.key] for s in wanted if s.key in histories}
            units.append(Unit(video, wanted, {} if plan.force else known))
    return units


def _is_wanted(segment: Segment, plan: Plan, history: History | None) -> bool:
    if plan.force or history is None:
        return True
    return not is_done(plan.out, segment, history) and any(
        history.may_try(source.name, plan.retry) for source in plan.sources
    )


def claim_recipe(out: Path, recipe: ClipRecipe) -> None:
    """Write `out/recipe.json`, or check that it says the same.

    Raises:
        OutError: OUT holds clips of another recipe; the message names what differs.
    """
    path = out / "recipe.json"
    values = recipe.as_json()
    with exclusive(out / ".lock-recipe"):
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
    plan: Plan,
    *,
    show: Callable[[Iterator[tuple[Unit, object]], int], Iterable[tuple[Unit, object]]],
) -> Summary:
    """Make the clips that are not yet made; safe to call again at any time.

    Args:
        segments: what OUT is to hold after this run, beside what it was asked to hold before.
        labels: the dataset's full label list, sorted.
        plan: how.
        show: wraps the iterator of finished units, given how many there will be, to show progress.

    Raises:
        OutError: OUT is in use, or holds another recipe or another label list.
    """
    with hold(plan.out, str(plan.part)):
        sweep(plan.out)
        claim_recipe(plan.out, plan.recipe)
        record_selection(plan.out, segments, labels)
        units = pending(segments, plan, ledger.read(plan.out))
        stopped = None
        with (
            scratch_folder(plan.tmp_dir or plan.out) as scratch,
            ledger.writer(ledger.ledger_path(plan.out, plan.part)) as record,
            closing(
                engine.run(
                    units,
                    partial(make_clips, plan=plan, scratch=scratch),
                    jobs=min(plan.jobs, max(len(units), 1)),
                    engine=plan.engine,
                )
            ) as finished,
        ):
            lockout = _Lockout()
            for unit, result in show(finished, len(units)):
                lines = _lines_of(unit, result, plan)
                for line in lines:
                    record.add(line)
                lockout.see(lines)
                if lockout.reason is not None:
                    stopped = lockout.reason
                    break
        return summarise(segments, plan, stopped)


class _Lockout:
    """Tells from the lines of a run that the host refuses us, not a clip."""

    def __init__(self) -> None:
        self._in_a_row: Counter[str] = Counter()
        self.reason: Reason | None = None

    def see(self, lines: Iterable[Line]) -> None:
        """Take a unit into account: each source was asked for its video once."""
        for source, line in {line.source: line for line in lines}.items():
            refused = line.reason in IDENTITY
            self._in_a_row[source] = self._in_a_row[source] + 1 if refused else 0
            if self._in_a_row[source] >= STOP_AFTER:
                self.reason = line.reason


def _lines_of(unit: Unit, result: object, plan: Plan) -> list[Line]:
    if not isinstance(result, Crash):
        assert isinstance(result, list)
        return result
    source = plan.sources[0].name
    return [
        Line(key=s.key, status=FAILED, source=source, reason=Reason.DAMAGED, detail=result.detail)
        for s in unit.segments
    ]


def summarise(segments: Iterable[Segment], plan: Plan, stopped: Reason | None = None) -> Summary:
    """How the part stands, from the ledger and the files."""
    histories = ledger.read(plan.out)
    gaps: Counter[str] = Counter()
    num_done = num_retryable = 0
    for _, own in videos_of(segments, plan.part):
        for segment in own:
            history = histories.get(segment.key)
            if is_done(plan.out, segment, history):
                num_done += 1
            elif history is None or not history.failures:
                gaps["not tried"] += 1
                num_retryable += 1
            else:
                gaps[history.main_reason] += 1
                num_retryable += history.is_retryable
    return Summary(
        num_done + gaps.total(), num_done, dict(gaps.most_common()), num_retryable, stopped
    )


def make_clips(unit: Unit, *, plan: Plan, scratch: Path) -> list[Line]:
    """Make a video's clips. Expected failures are lines; a bug still raises."""
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        videos = _Videos(unit.youtube_id, Path(folder), plan)
        for segment in unit.segments:
            history = unit.histories.get(segment.key, History())
            for source in plan.sources:
                if not history.may_try(source.name, plan.retry):
                    continue
                lines.append(_make_clip(segment, source, videos, plan))
                if lines[-1].status == DONE:
                    break
    return lines


class _Videos:
    """A unit's video from each source, fetched when first asked for, once."""

    def __init__(self, youtube_id: str, folder: Path, plan: Plan) -> None:
        self._youtube_id = youtube_id
        self._plan = plan
        self._answers: dict[str, Path | SourceError] = {}
        self.folder = folder

    def of(self, source: Source) -> Path:
        """The video, or the SourceError that the first ask gave."""
        if source.name not in self._answers:
            self._answers[source.name] = self._fetch(source)
        answer = self._answers[source.name]
        if isinstance(answer, SourceError):
            raise answer
        return answer

    def _fetch(self, source: Source) -> Path | SourceError:
        into = self.folder / str(len(self._answers))
        into.mkdir()
        try:
            video = source.video(self._youtube_id, into)
        except SourceError as error:
            return error
        if not (self._plan.keep_videos and video.is_relative_to(into)):
            return video
        kept = self._plan.out / "videos" / f"{self._youtube_id}{video.suffix}"
        move(video, kept)
        return kept


def _make_clip(segment: Segment, source: Source, videos: _Videos, plan: Plan) -> Line:
    """One attempt at one clip from one source."""
    start = time.monotonic()
    scratch = videos.folder / f"{segment.key}.mp4"
    versions = {"ffmpeg": plan.recipe.ffmpeg, **sources.versions()}
    try:
        ready = source.clip(segment.key)
        if ready is not None:
            made = _pass_ready(ready, scratch, plan)
        else:
            made = media.cut(
                videos.of(source),
                scratch,
                start_s=segment.start_s,
                end_s=segment.end_s,
                recipe=plan.recipe,
                binary=plan.binary,
            )
    except (SourceError, MediaError) as error:
        return Line(
            key=segment.key,
            status=FAILED,
            source=source.name,
            reason=error.reason,
            detail=error.detail,
            seconds=round(time.monotonic() - start, 3),
            versions=versions,
        )
    num_bytes, sha256 = scratch.stat().st_size, file_digest(scratch)
    move(scratch, clip_path(plan.out, segment))
    return Line(
        key=segment.key,
        status=DONE,
        source=source.name,
        detail="" if ready is None else "as-found",
        frames=made.num_frames,
        held=made.num_held,
        bytes=num_bytes,
        sha256=sha256,
        seconds=round(time.monotonic() - start, 3),
        versions=versions,
    )


def _pass_ready(ready: Path, clip: Path, plan: Plan) -> Cut:
    """Bring a clip that a source has ready through the same door, from its time 0, all of it."""
    if media.conforms(ready, plan.recipe):
        with naming(clip):
            shutil.copyfile(ready, clip)
        made = Cut(media.count_frames(clip))
    else:
        made = media.conform(ready, clip, recipe=plan.recipe, binary=plan.binary)
    if made.num_frames < MIN_READY_S * plan.recipe.fps:
        detail = f"the ready clip has only {made.num_frames} frames"
        raise MediaError(ready, detail, reason=Reason.TOO_SHORT)
    return made
