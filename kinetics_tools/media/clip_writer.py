"""A clip of a video, written by the ffmpeg program: its picture, and then its sound."""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import ffmpeg

from kinetics_tools.core.errors import MediaError
from kinetics_tools.core.text import is_utf8
from kinetics_tools.media.decode import Video, count_frames, probe
from kinetics_tools.media.encode import run_ffmpeg
from kinetics_tools.media.mpegts import renumber
from kinetics_tools.media.recipe import ClipRecipe
from kinetics_tools.media.shape import clip_shape
from kinetics_tools.media.timeline import Timeline, is_exact_seek, read_timeline

SEEK_FROM_S = 5  # decoding less than this takes less time than to prove a seek
SEEK_MARGIN_S = 1  # demuxers seek by decoding time, which is ahead of presentation time
# Of the files that ffmpeg writes: nothing in them depends on the source's name or the clock.
_FILE = {
    "map_metadata": -1,
    "map_chapters": -1,
    "fflags": "+bitexact",
    "flags:v": "+bitexact",
    "flags:a": "+bitexact",
    "movflags": "+faststart",
}
_BEYOND_S = 10  # at most by so much, joints move the time of a sound
_FINER = 40  # times the clip's rate, to find a video's last frame
_MOST_TICKS = 2**31  # per second, in a filter
_MOST_MP4_TICKS = 10**7  # per second: a frame may last 2**31 of them
_EMPTY_MP4_BYTES = 1024  # ffmpeg writes up to this, with status 0, when no frame passed its filters


@dataclass(frozen=True, slots=True)
class Span:
    """Which frames of a video are written. Times are in seconds from the video's first frame.

    Attributes:
        start_s: where the clip begins.
        length_s: of the clip; None for all that follows.
        first_s: time of the first frame, which is seen at `start_s`; None if it is not known.
        last: of a clip at the video's own times: the time of its last frame, and when that ends.
        hold: how often the video's last frame is repeated.
    """

    start_s: Fraction
    length_s: Fraction | None = None
    first_s: Fraction | None = None
    last: tuple[Fraction, Fraction] | None = None
    hold: int = 0


@contextmanager
def open_writer(
    video: Path, clip: Path, recipe: ClipRecipe, binary: Path
) -> Iterator["ClipWriter"]:
    """A writer of one clip; its scratch files lie beside the clip until the block ends.

    Raises:
        MediaError: the video cannot be read.
        OSError: the disk is full.
    """
    facts = probe(video)
    with tempfile.TemporaryDirectory(prefix=".cut-", dir=clip.parent) as name:
        scratch = Path(name)
        source, copy = video.absolute(), scratch / "source.ts"
        if "mpegts" in facts.container.split(",") and renumber(video, copy):
            source = copy
        elif not is_utf8(source):
            (scratch / "source").symlink_to(source)
            source = scratch / "source"
        yield ClipWriter(video, source, clip, scratch, facts, recipe, binary)


@dataclass(slots=True)
class ClipWriter:
    """Writes a clip of a video.

    The program works in the scratch folder and knows files there by their names alone: a path of
    the user's may have characters that mean something to it, or that are not UTF-8.

    Attributes:
        video: named in errors.
        source: the file that is read.
        clip: the new file, once it is published.
        scratch: a folder for all other files.
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
    _stored: dict[Fraction | None, Timeline | None] = field(default_factory=dict)

    def publish(self) -> None:
        """Give the clip its name."""
        self._written.replace(self.clip)

    @property
    def _written(self) -> Path:
        return self.scratch / "clip.mp4"

    def stored_timeline(self, until_s: Fraction | None) -> Timeline | None:
        """The frames' times up to `until_s` as packets say; None where these do not tell."""
        if until_s not in self._stored:
            self._stored[until_s] = read_timeline(self.source, self.facts, until_s)
        return self._stored[until_s]

    def decoded_timeline(self, until_s: Fraction | None = None) -> Timeline:
        """The frames' times up to `until_s`, as ffmpeg finds them where it decodes from zero."""
        ticks = self.facts.time_base_s.denominator
        picture = _in_order(self._timed(self._input(None), ticks))
        if until_s is not None:
            picture = picture.filter("trim", end_pts=math.floor(until_s * ticks) + 1)
        rows = self._list(picture)
        lasts = {Fraction(time, ticks): Fraction(lasting, ticks) for time, lasting in rows}
        times = tuple(sorted(lasts))
        return Timeline(times, times[-1] + lasts[times[-1]])

    def write(self, span: Span) -> int:
        """Write the picture, decoded from zero; return its frames, counted by decoding it.

        0 if the video has no frame there.
        """
        return self._write(span, None)

    def write_by_seek(self, span: Span, num_frames: int, timeline: Timeline | None) -> int:
        """Write the picture by a seek if that is exact and gives all frames, else from zero.

        Args:
            span: the frames.
            num_frames: how many they are.
            timeline: of the video up to the span's end, at least; None forbids a seek.
        """
        first_s = span.start_s if span.first_s is None else span.first_s
        seek_s = self._first_s + max(first_s - SEEK_MARGIN_S, Fraction(0))
        if (
            first_s > SEEK_FROM_S
            and timeline is not None
            and timeline.packets
            and is_exact_seek(self.source, self.facts, timeline, to_s=seek_s, start_s=first_s)
        ):
            with suppress(MediaError):  # decoding from zero decides
                if self._write(span, seek_s) == num_frames:
                    return num_frames
        return self.write(span)

    def add_sound(self, start_s: Fraction, end_s: Fraction | None) -> bool:
        """Add the sound from `start_s` to `end_s` to the clip; False if there is none to hear.

        The picture stays as it is.

        Raises:
            MediaError: the sound is damaged.
        """
        if self.facts.sound_index is None:
            return False
        mixed = self.scratch / "mixed.mp4"
        if self.stored_timeline(end_s) is not None:
            zero_s = self._first_s + start_s
            source = self._input(max(zero_s - SEEK_MARGIN_S, self._first_s))
            also = []
        else:
            source = self._input(None)
            # Where files were joined, ffmpeg moves both tracks alike if it reads both.
            zero_s = self._common_time(start_s)
            last = {} if end_s is None else {"to": float(zero_s + end_s - start_s)}
            also = [ffmpeg.output(source[str(self.facts.index)], "-", f="null", **last)]
        sound = source[str(self.facts.sound_index)]
        sound = sound.filter("asetpts", f"PTS-{float(zero_s):.6f}/TB")
        end = {} if end_s is None else {"end": float(end_s - start_s)}
        mix = ffmpeg.output(
            ffmpeg.input(self._written.name).video,
            sound.filter("atrim", start=0, **end),
            mixed.name,
            vcodec="copy",
            acodec="aac",
            **_FILE,
        )
        self._run(ffmpeg.merge_outputs(mix, *also) if also else mix)
        if probe(mixed).num_audio == 0:
            return False
        mixed.replace(self._written)
        return True

    def _common_time(self, start_s: Fraction) -> Fraction:
        """The time that ffmpeg gives to `start_s` where it reads picture and sound together."""
        before = self.decoded_timeline(start_s).times_s
        source = self._input(None)
        ticks = self.facts.time_base_s.denominator
        picture = source[str(self.facts.index)].filter("settb", f"1/{ticks}")
        enough = {"to": float(start_s) + _BEYOND_S}
        sound = ffmpeg.output(source[str(self.facts.sound_index)], "-", f="null", **enough)
        rows = self._list(_in_order(picture), sound, most=len(before))
        return Fraction(rows[-1][0], ticks) + start_s - before[len(rows) - 1]

    def _list(self, picture: Any, *others: Any, most: int | None = None) -> list[tuple[int, int]]:
        """Time and duration of the pictures that leave a filter, in ticks."""
        listed = self.scratch / "times.txt"
        tiny = picture.filter("scale", 16, 16).filter("format", "gray")
        listing = {"f": "framecrc", "fps_mode": "passthrough", "enc_time_base": "filter"}
        end = {} if most is None else {"frames:v": most}
        output = ffmpeg.output(tiny, listed.name, **listing, **end)
        self._run(ffmpeg.merge_outputs(output, *others) if others else output)
        lines = listed.read_text(encoding="ascii").splitlines()
        # Columns: stream, time of decoding, time, duration, bytes, checksum.
        rows = [line.split(",") for line in lines if not line.startswith("#")]
        if not rows:
            raise MediaError(self.video, "holds no frame")
        return [(int(row[2]), int(row[3])) for row in rows]

    def _write(self, span: Span, seek_s: Fraction | None) -> int:
        original = self.recipe.keep_original
        graph = ffmpeg.output(
            self._sized(self._original(span, seek_s) if original else self._constant(span, seek_s)),
            self._written.name,
            vcodec="libx264",
            threads=1,
            fps_mode="passthrough",
            **self.recipe.x264_options(),
            **_FILE,
            **({"enc_time_base": "filter"} if original else {}),
            **({"video_track_timescale": self._mp4_ticks(span)} if original else {}),
            **({"bsf:v": self._ended(span)} if span.last is not None else {}),
        )
        messages = self._run(graph)
        try:
            return count_frames(self._written)
        except MediaError:
            if messages or self._written.stat().st_size > _EMPTY_MP4_BYTES:
                raise
            return 0

    def _run(self, graph: Any) -> str:
        return run_ffmpeg(
            graph, binary=self.binary, video=self.video, output=self.clip, folder=self.scratch
        )

    @property
    def _first_s(self) -> Fraction:
        """The time of the first frame, in the file's own time."""
        return self.facts.first_tick * self.facts.time_base_s

    def _input(self, seek_s: Fraction | None) -> Any:
        # Frames of another size go to the same filters, as `scale` takes any size: new filters
        # would start to count times from zero there. They are turned after that, not by ffmpeg
        # before, whose filter for that does not take another size.
        reading: dict[str, Any] = {"threads": 1, "reinit_filter:v": 0, "noautorotate": None}
        if seek_s is not None:
            # Keep all frames from the keyframe on (noaccurate_seek), as the frame shown at
            # start_s may have an earlier time; and their times as they are stored (copyts).
            reading |= {
                "copyts": None,
                "noaccurate_seek": None,
                "seek_timestamp": 1,
                "ss": f"{float(seek_s):.6f}",
            }
        is_here = self.source.parent == self.scratch
        return ffmpeg.input(self.source.name if is_here else str(self.source), **reading)

    def _timed(self, source: Any, ticks: int, *, zero: str = "STARTPTS") -> Any:
        """The picture with times in `1 / ticks` s from the first frame's."""
        picture = source[str(self.facts.index)].filter("settb", f"1/{ticks}")
        return picture.filter("setpts", f"PTS-{zero}")

    def _zero(self, seek_s: Fraction | None, ticks: int) -> str:
        return "STARTPTS" if seek_s is None else str(round(self._first_s * ticks))

    def _mp4_ticks(self, span: Span) -> int:
        """Ticks per second of a clip that keeps the video's times, as exact as an MP4 allows."""
        own = self.facts.time_base_s.denominator
        exact = math.lcm(own, span.start_s.denominator)
        return next((ticks for ticks in (exact, own) if ticks <= _MOST_MP4_TICKS), 10**6)

    def _original(self, span: Span, seek_s: Fraction | None) -> Any:
        ticks = self._mp4_ticks(span)
        picture = self._timed(self._input(seek_s), ticks, zero=self._zero(seek_s, ticks))
        picture = _in_order(picture)
        first_s = span.start_s if span.first_s is None else span.first_s
        end = {}
        if span.length_s is not None:
            end = {"end_pts": math.ceil((span.start_s + span.length_s) * ticks)}
        picture = picture.filter("trim", start_pts=round(first_s * ticks), **end)
        # The first frame is seen from the clip's time 0 on, also if its own time is earlier.
        return picture.filter("setpts", f"max(PTS-{math.floor(span.start_s * ticks)},0)")

    def _ended(self, span: Span) -> str:
        """The bitstream filter that ends the last frame with the clip; it may be seen longer."""
        assert span.last is not None
        ticks = self._mp4_ticks(span)
        zero = math.floor(span.start_s * ticks)
        at, end = (round(time_s * ticks) - zero for time_s in span.last)
        # Times that are not named would change too.
        return f"setts=pts=PTS:dts=DTS:duration='if(gte(PTS,{max(at, 0)}),{end}-PTS,DURATION)'"

    def _constant(self, span: Span, seek_s: Fraction | None) -> Any:
        # Ticks so fine that start_s is a whole number of them: all comparisons of times are exact.
        own = self.facts.time_base_s.denominator
        exact = math.lcm(own, span.start_s.denominator)
        ticks = exact if exact < _MOST_TICKS else own
        picture = self._timed(self._input(seek_s), ticks, zero=self._zero(seek_s, ticks))
        picture = picture.filter("setpts", f"PTS-{math.floor(span.start_s * ticks)}")
        # round=up moves a frame to the first output time that is not before it, and repeats it
        # until the next frame's: each output time gets the last frame at or before it.
        fps = self.recipe.fps
        if span.hold:
            # At a higher rate: the last frame may be shown between two output times.
            picture = picture.filter("fps", fps=fps * _FINER, round="up")
            picture = picture.filter("trim", start_pts=0)
            picture = picture.filter("tpad", stop=(span.hold + 1) * _FINER, stop_mode="clone")
            picture = picture.filter("framestep", _FINER).filter("settb", f"1/{fps}")
        else:
            picture = picture.filter("fps", fps=fps, round="up")
        end = {} if span.length_s is None else {"end_pts": round(span.length_s * fps)}
        return picture.filter("trim", start_pts=0, **end)

    def _sized(self, picture: Any) -> Any:
        shape = clip_shape(self.facts, self.recipe)
        is_turned = any(each.startswith("transpose") for each in self.facts.orientation)
        lying = shape.scaled[::-1] if is_turned else shape.scaled
        flags = f"{self.recipe.scaler}+accurate_rnd+full_chroma_int+bitexact"
        picture = picture.filter("scale", *lying, flags=flags)
        for each in self.facts.orientation:
            name, _, direction = each.partition("=")
            picture = picture.filter(name, *filter(None, [direction]))
        # Or the clip would say that it is still to be turned.
        picture = picture.filter("sidedata", mode="delete", type="DISPLAYMATRIX")
        if (shape.width, shape.height) != shape.scaled:
            picture = picture.filter("crop", shape.width, shape.height, 0, 0)
        if shape.pixel_aspect is not None:
            # After frames of another size `scale` would give another one.
            picture = picture.filter("setsar", str(shape.pixel_aspect))
        return picture.filter("format", shape.pixel_format)


def _in_order(picture: Any) -> Any:
    """Without frames whose time is not after the one before: only one of them can be shown."""
    return picture.filter("select", "isnan(prev_selected_pts)+gt(pts,prev_selected_pts)")
