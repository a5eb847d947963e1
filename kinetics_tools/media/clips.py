"""Clips: `cut` makes one of a segment of a video, `conform` of a whole video."""

import itertools
import math
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import ffmpeg

from kinetics_tools.core.errors import MediaError, Reason
from kinetics_tools.media.decode import Video, count_frames, decode_frames, probe
from kinetics_tools.media.encode import run_ffmpeg
from kinetics_tools.media.mpegts import renumber
from kinetics_tools.media.recipe import ClipRecipe
from kinetics_tools.media.timeline import Timeline, is_exact_seek, read_timeline

SEEK_FROM_S = 5  # decoding less than this takes less time than to prove a seek
SEEK_MARGIN_S = 1  # demuxers seek by decoding time, which is ahead of presentation time
HOLD_S = Fraction(1, 2)  # labels are whole seconds; a video may end this much before its segment
# Of the files that ffmpeg writes: nothing in them depends on the source's name or the clock.
_FILE = {
    "map_metadata": -1,
    "map_chapters": -1,
    "fflags": "+bitexact",
    "flags:v": "+bitexact",
    "flags:a": "+bitexact",
    "movflags": "+faststart",
}
_FINER = 40  # times the clip's rate, to find a video's last frame
_MOST_TICKS = 2**31  # per second, in a filter
_MOST_MP4_TICKS = 10**7  # per second: a frame may last 2**31 of them
_EMPTY_MP4_BYTES = 1024  # ffmpeg writes up to this, with status 0, when no frame passed its filters


@dataclass(frozen=True, slots=True)
class Cut:
    """A clip that was written.

    Attributes:
        num_frames: its number of frames, counted by decoding it.
        num_held: how many of them repeat the last frame of a video that ends before its segment.
        is_silent: whether it lacks the sound that the recipe keeps, as the video has none there.
    """

    num_frames: int
    num_held: int = 0
    is_silent: bool = False


def cut(
    video: Path,
    clip: Path,
    *,
    start_s: Fraction,
    end_s: Fraction,
    recipe: ClipRecipe,
    binary: Path,
) -> Cut:
    """Cut the segment `[start_s, end_s)` of `video` into the new file `clip`.

    Frame k of the clip is the last frame of the video whose time, counted from the video's first
    frame, is at most `start_s + k / fps`; there are `(end_s - start_s) * fps` of them. With
    `keep_original` these frames are there once each, at their own times; the first one, which is
    seen at `start_s`, is at time 0.

    Segments after SEEK_FROM_S are reached by a seek where it is proven to be exact; otherwise all
    is decoded from zero. Where the sound cannot be had, the clip has none.

    Raises:
        MediaError: damaged, or (reason too-short) it ends more than half a second before `end_s`.
        OSError: the disk is full.
    """
    make = _cut_original if recipe.keep_original else _cut_constant
    with _job(video, clip, recipe, binary) as job:
        return job.with_sound(make(job, start_s, end_s), start_s, end_s)


def conform(
    source: Path,
    clip: Path,
    *,
    recipe: ClipRecipe,
    binary: Path,
    start: int = 0,
    num_frames: int | None = None,
) -> Cut:
    """Write `source`, from its time 0, into the new file `clip` in the form of `recipe`.

    Args:
        source: any video.
        clip: the new file.
        recipe: the form of the clip.
        binary: the ffmpeg program.
        start: number of the first frame to write, counted in frames of the whole clip.
        num_frames: the number of frames to write at most; None for all.

    Raises:
        MediaError: damaged.
        OSError: the disk is full.
    """
    start_s = Fraction(start, recipe.fps)
    length_s = None if num_frames is None else Fraction(num_frames, recipe.fps)
    end_s = None if length_s is None else start_s + length_s
    with _job(source, clip, recipe, binary) as job:
        made = job.with_sound(Cut(job.write(_Span(start_s, length_s))), start_s, end_s)
    if made.num_frames == 0 and start:
        duration_s = job.facts.duration_s
        length = "" if duration_s is None else f"; it is {float(duration_s):.2f} s long"
        where = f"from {start / recipe.fps:.2f} s on (frame {start})"
        raise MediaError(source, f"holds no frame {where}{length}")
    if made.num_frames == 0:
        raise MediaError(source, "holds no frame")
    return made


@contextmanager
def _job(video: Path, clip: Path, recipe: ClipRecipe, binary: Path) -> Iterator["_Job"]:
    facts = probe(video)
    with tempfile.TemporaryDirectory(prefix=".cut-", dir=clip.parent) as name:
        scratch = Path(name)
        copy = scratch / "source.ts"
        renumbered = "mpegts" in facts.container.split(",") and renumber(video, copy)
        yield _Job(video, copy if renumbered else video, clip, scratch, facts, recipe, binary)


def _cut_constant(job: "_Job", start_s: Fraction, end_s: Fraction) -> Cut:
    """Cut at the constant rate of the recipe."""
    fps = job.recipe.fps
    num_frames = max(round((end_s - start_s) * fps), 1)
    span = _Span(start_s, Fraction(num_frames, fps))
    timeline = None
    if start_s > SEEK_FROM_S:
        timeline = read_timeline(job.source, job.facts, end_s)
    written = job.write_by_seek(span, num_frames, timeline, start_s)
    if written == num_frames:
        return Cut(num_frames)
    # The clip's own frames say when the video ends, but not more exactly than 1 / fps.
    ends_s = start_s + Fraction(written, fps)
    timeline = read_timeline(job.source, job.facts)
    if timeline is not None:
        ends_s = min(ends_s, timeline.end_s)
    if written == 0 or ends_s < end_s - HOLD_S:
        raise _too_short(job.video, ends_s, start_s, end_s)
    held = num_frames - written
    return Cut(job.write(replace(span, hold=held)), held)


def _cut_original(job: "_Job", start_s: Fraction, end_s: Fraction) -> Cut:
    """Cut at the video's own times."""
    for timeline in job.timelines(end_s):
        ends_s = timeline.end_s
        if ends_s <= start_s or ends_s < end_s - HOLD_S:
            raise _too_short(job.video, ends_s, start_s, end_s)
        first = bisect_right(timeline.times_s, start_s) - 1
        num_frames = bisect_left(timeline.times_s, end_s) - first
        first_s = timeline.times_s[first]
        span = _Span(start_s, end_s - start_s, first_s=first_s)
        if job.write_by_seek(span, num_frames, timeline, first_s) == num_frames:
            return Cut(num_frames)
    raise MediaError(job.video, "its frames cannot be told apart by their times")


def _too_short(video: Path, ends_s: Fraction, start_s: Fraction, end_s: Fraction) -> MediaError:
    where = f"at {float(ends_s):.2f} s" if ends_s > start_s else f"before {float(start_s):.2f} s"
    detail = f"ends {where}, the segment at {float(end_s):.2f} s"
    return MediaError(video, detail, reason=Reason.TOO_SHORT)


def conforming_frames(path: Path, recipe: ClipRecipe, *, most: int | None = None) -> int:
    """The number of frames of a clip that already is as `recipe` says; 0 if it is not.

    The bytes of such a clip can be kept. Every frame is decoded, as only that proves the rate.

    Args:
        path: the clip.
        recipe: the form of clips.
        most: the number of frames to check at most; None for all.

    Raises:
        MediaError: it cannot be decoded.
    """
    video = probe(path)
    wanted = _size(video, recipe)
    found = video.codec, video.pixel_format, video.width, video.height
    if found != ("h264", _pixel_format(wanted), *wanted):
        return 0
    if "mp4" not in video.container.split(","):
        return 0
    if video.pixel_aspect != 1 and not _keeps_shape(recipe):
        return 0
    if video.num_audio > int(recipe.keep_audio):
        return 0
    since_key = num_frames = 0
    for frame in itertools.islice(decode_frames(path), most):
        if frame.rotation or (frame.width, frame.height) != wanted or frame.pts is None:
            return 0
        if frame.pts * frame.time_base * recipe.fps != num_frames:
            return 0
        since_key = 0 if frame.key_frame else since_key + 1
        if since_key >= recipe.keyframe_interval:
            return 0
        num_frames += 1
    return num_frames


def _size(video: Video, recipe: ClipRecipe) -> tuple[int, int]:
    """Width and height of the clip in pixels: even, as chroma planes have half the size.

    With `keep_original` they may be odd.
    """
    width, height = _scaled_size(video, recipe)
    return (width, height) if recipe.keep_original else (width // 2 * 2, height // 2 * 2)


def _scaled_size(video: Video, recipe: ClipRecipe) -> tuple[int, int]:
    """The size to which frames are scaled; an odd row or column is then cut off, not squeezed in.

    Pixels that are not square become so, unless the recipe keeps the size.
    """
    stored = max(video.width, 2), max(video.height, 2)
    if _keeps_shape(recipe):
        return stored
    assert recipe.short_side is not None
    shown = video.width * video.pixel_aspect, Fraction(video.height)
    scale = recipe.short_side / min(shown)
    if scale >= 1 and not recipe.enlarge:
        scale = Fraction(1)
    if scale == video.pixel_aspect == 1:
        return stored
    width, height = (2 * max(math.floor(side * scale / 2 + Fraction(1, 2)), 1) for side in shown)
    return width, height


def _keeps_shape(recipe: ClipRecipe) -> bool:
    """Whether a clip has the size of its video, and pixels of its shape."""
    return recipe.keep_original or recipe.short_side is None


@dataclass(frozen=True, slots=True)
class _Span:
    """Which frames of a video are written.

    Attributes:
        start_s: at which time of the video the clip begins.
        length_s: of the clip; None for all that follows.
        hold: how often the video's last frame is repeated.
        first_s: with `keep_original`, the time of the first frame, if that is before `start_s`.
        seek_s: where decoding begins, in the file's own time; None for its beginning.
    """

    start_s: Fraction
    length_s: Fraction | None = None
    hold: int = 0
    first_s: Fraction | None = None
    seek_s: Fraction | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    """A clip to be made of a video: how ffmpeg is asked for it.

    Attributes:
        video: named in errors.
        source: the file that is read.
        clip: the new file.
        scratch: a folder for other files.
        facts: of the video.
        recipe: the form of the clip.
        binary: the ffmpeg program.
    """

    video: Path
    source: Path
    clip: Path
    scratch: Path
    facts: Video
    recipe: ClipRecipe
    binary: Path

    def write(self, span: _Span) -> int:
        """Write the clip; return the number of its frames, by decoding it. 0: none was shown."""
        messages = self._run(self._graph(span), self.clip)
        try:
            return count_frames(self.clip)
        except MediaError:
            if messages or self.clip.stat().st_size > _EMPTY_MP4_BYTES:
                raise
            return 0

    def write_by_seek(
        self, span: _Span, num_frames: int, timeline: Timeline | None, first_s: Fraction
    ) -> int:
        """Write the clip by a seek if that is exact and gives all frames, else from zero.

        Args:
            span: the frames.
            num_frames: how many they are.
            timeline: of the video up to `first_s`, at least; None forbids a seek.
            first_s: when the first frame is seen.
        """
        seek_s = self._first_s + max(first_s - SEEK_MARGIN_S, Fraction(0))
        if (
            first_s > SEEK_FROM_S
            and timeline is not None
            and is_exact_seek(self.source, self.facts, timeline, to_s=seek_s, start_s=first_s)
        ):
            with suppress(MediaError):  # decoding from zero decides
                if self.write(replace(span, seek_s=seek_s)) == num_frames:
                    return num_frames
        return self.write(span)

    def with_sound(self, made: Cut, start_s: Fraction, end_s: Fraction | None) -> Cut:
        """Add the sound from `start_s` to `end_s` to the clip, if its recipe keeps that.

        The picture stays as it is, also where the video has no sound there, or a damaged one.
        """
        if not self.recipe.keep_audio or not made.num_frames:
            return made
        if self.facts.sound_index is None:
            return replace(made, is_silent=True)
        mixed = self.scratch / "mixed.mp4"
        try:
            self._run(self._sound_graph(mixed, start_s, end_s), mixed)
            is_silent = probe(mixed).num_audio == 0
            if not is_silent:
                mixed.replace(self.clip)
        except MediaError as error:
            if error.reason is not Reason.DAMAGED:
                raise
            is_silent = True
        return replace(made, is_silent=is_silent)

    def timelines(self, end_s: Fraction) -> Iterator[Timeline]:
        """The times of the frames up to `end_s`: as packets say, and if that fails by decoding."""
        timeline = read_timeline(self.source, self.facts, end_s)
        if timeline is not None:
            yield timeline
        yield self._decoded_timeline()

    def _decoded_timeline(self) -> Timeline:
        """The times of all frames, as ffmpeg finds them where it decodes from zero."""
        listed = self.scratch / "times.txt"
        ticks = self.facts.time_base_s.denominator
        picture = self._from_zero(self._input(None), ticks=ticks, shift=0)
        picture = _in_order(picture).filter("scale", 16, 16).filter("format", "gray")
        listing = {"f": "framecrc", "fps_mode": "passthrough", "enc_time_base": "filter"}
        self._run(ffmpeg.output(picture, str(listed.absolute()), **listing), listed)
        lines = listed.read_text(encoding="ascii").splitlines()
        # Columns: stream, time of decoding, time, duration, bytes, checksum.
        rows = [line.split(",") for line in lines if not line.startswith("#")]
        lasts = {Fraction(int(row[2]), ticks): Fraction(int(row[3]), ticks) for row in rows}
        if not lasts:
            raise MediaError(self.video, "holds no frame")
        times = tuple(sorted(lasts))
        return Timeline(times, times[-1] + lasts[times[-1]])

    def _run(self, graph: Any, output: Path) -> str:
        return run_ffmpeg(graph, binary=self.binary, video=self.video, output=output)

    @property
    def _first_s(self) -> Fraction:
        """The time of the first frame, in the file's own time."""
        return self.facts.first_tick * self.facts.time_base_s

    def _input(self, seek_s: Fraction | None) -> Any:
        # Frames of another size go to the same filters, as `scale` takes any size: new filters
        # would start to count times from zero there.
        reading: dict[str, Any] = {"threads": 1, "reinit_filter:v": 0}
        if seek_s is not None:
            # Keep all frames from the keyframe on (noaccurate_seek), as the frame shown at
            # start_s may have an earlier time; and their times as they are stored (copyts).
            reading |= {
                "copyts": None,
                "noaccurate_seek": None,
                "seek_timestamp": 1,
                "ss": f"{float(seek_s):.6f}",
            }
        return ffmpeg.input(str(self.source.absolute()), **reading)

    def _from_zero(self, source: Any, *, ticks: int, shift: int, zero: str = "STARTPTS") -> Any:
        """The picture with times in `1 / ticks` s from the first frame's, less `shift`."""
        picture = source[str(self.facts.index)].filter("settb", f"1/{ticks}")
        return picture.filter("setpts", f"PTS-{zero}-{shift}")

    def _graph(self, span: _Span) -> Any:
        picture = self._picture(self._input(span.seek_s), span)
        recipe = self.recipe
        return ffmpeg.output(
            picture,
            str(self.clip.absolute()),
            vcodec="libx264",
            preset=recipe.preset,
            crf=recipe.crf,
            g=recipe.keyframe_interval,
            threads=1,
            fps_mode="passthrough",
            **_FILE,
            **(self._own_times(span.start_s) if recipe.keep_original else {}),
        )

    def _own_times(self, start_s: Fraction) -> dict[str, Any]:
        return {"enc_time_base": "filter", "video_track_timescale": self._ticks(start_s)}

    def _sound_graph(self, mixed: Path, start_s: Fraction, end_s: Fraction | None) -> Any:
        seek_s = None
        zero_s = self._first_s - self.facts.sound_start_s + start_s
        if read_timeline(self.source, self.facts, end_s) is not None:
            zero_s = self._first_s + start_s
            seek_s = max(zero_s - SEEK_MARGIN_S, self._first_s)
        sound = self._input(seek_s)[str(self.facts.sound_index)]
        end = {} if end_s is None else {"end": float(end_s - start_s)}
        return ffmpeg.output(
            ffmpeg.input(str(self.clip.absolute())).video,
            sound.filter("asetpts", f"PTS-{float(zero_s):.6f}/TB").filter("atrim", start=0, **end),
            str(mixed.absolute()),
            vcodec="copy",
            acodec="aac",
            **_FILE,
        )

    def _ticks(self, start_s: Fraction) -> int:
        """Ticks per second, so many that `start_s` is a whole number of them, if that can be."""
        own = self.facts.time_base_s.denominator
        ticks = math.lcm(own, start_s.denominator)
        most = _MOST_MP4_TICKS if self.recipe.keep_original else _MOST_TICKS
        return ticks if ticks < most else own

    def _picture(self, source: Any, span: _Span) -> Any:
        ticks = self._ticks(span.start_s)
        zero = "STARTPTS" if span.seek_s is None else str(round(self._first_s * ticks))
        shift = round(span.start_s * ticks)
        picture = self._from_zero(source, ticks=ticks, shift=shift, zero=zero)
        if self.recipe.keep_original:
            first = 0 if span.first_s is None else round(span.first_s * ticks) - shift
            end = {} if span.length_s is None else {"end_pts": math.ceil(span.length_s * ticks)}
            picture = picture.filter("trim", start_pts=first, **end)
            picture = picture.filter("setpts", "max(PTS,0)")
            picture = _in_order(picture)
        else:
            # round=up moves a frame to the first output time that is not before it, and repeats it
            # until the next frame's: each output time gets the last frame at or before it.
            fps = self.recipe.fps
            if span.hold:
                # At a higher rate: the last frame may be shown between two output times.
                picture = picture.filter("fps", fps=fps * _FINER, round="up")
                picture = picture.filter("trim", start_pts=0)
                more = (span.hold + 1) * _FINER
                picture = picture.filter("tpad", stop=more, stop_mode="clone")
                picture = picture.filter("framestep", _FINER).filter("settb", f"1/{fps}")
            else:
                picture = picture.filter("fps", fps=fps, round="up")
            end = {} if span.length_s is None else {"end_pts": round(span.length_s * fps)}
            picture = picture.filter("trim", start_pts=0, **end)
        return self._sized(picture)

    def _sized(self, picture: Any) -> Any:
        scaled, size = _scaled_size(self.facts, self.recipe), _size(self.facts, self.recipe)
        flags = f"{self.recipe.scaler}+accurate_rnd+full_chroma_int+bitexact"
        picture = picture.filter("scale", *scaled, flags=flags)
        if size != scaled:
            picture = picture.filter("crop", *size, 0, 0)
        if not _keeps_shape(self.recipe):
            picture = picture.filter("setsar", 1)
        return picture.filter("format", _pixel_format(size))


def _in_order(picture: Any) -> Any:
    """Without frames whose time is not after the one before: only one of them can be shown."""
    return picture.filter("select", "isnan(prev_selected_pts)+gt(pts,prev_selected_pts)")


def _pixel_format(size: tuple[int, int]) -> str:
    """yuv420p, which every player knows; it cannot have odd sides."""
    return "yuv444p" if any(side % 2 for side in size) else "yuv420p"
