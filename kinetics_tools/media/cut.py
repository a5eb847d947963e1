"""Clips: `cut` makes one of a segment of a video, `conform` of a whole video."""

import itertools
import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import ffmpeg

from kinetics_tools.core.errors import MediaError, Reason
from kinetics_tools.media.decode import Video, count_frames, decode_frames, probe
from kinetics_tools.media.encode import run_ffmpeg

SEEK_FROM_S = 5  # earlier starts are decoded from zero: any seek loses frames of some AVI files
SEEK_MARGIN_S = 1  # demuxers seek by decoding time, which is ahead of presentation time
HOLD_S = Fraction(1, 2)  # labels are whole seconds; a video may end this much before its segment
_EMPTY_MP4_BYTES = 1024  # ffmpeg writes up to this, with status 0, when no frame passed its filters


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRecipe:
    """Every parameter that changes a pixel of a clip.

    Attributes:
        fps: constant rate of the clip.
        short_side: pixels of the shorter side; None keeps the size.
        enlarge: whether a smaller video is enlarged to `short_side`.
        keep_original: keeps size and rate, whatever the three above say.
        keep_audio: keeps the first audio track, as AAC.
        crf: x264's constant rate factor; its authors call 18 visually lossless.
        preset: x264's preset, which trades time for size.
        keyframe_interval: frames from one keyframe to the next, at most; for random access.
        ffmpeg: version of the ffmpeg program.
    """

    fps: int = 25
    short_side: int | None = 256
    enlarge: bool = False
    keep_original: bool = False
    keep_audio: bool = False
    crf: int = 18
    preset: str = "medium"
    keyframe_interval: int = 16
    ffmpeg: str = ""

    def as_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Cut:
    """A clip that was written.

    Attributes:
        num_frames: its number of frames, counted by decoding it.
        num_held: how many of them repeat the last frame of a video that ends before its segment.
    """

    num_frames: int
    num_held: int = 0


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
    frame, is at most `start_s + k / fps`; there are `(end_s - start_s) * fps` of them. Segments
    after SEEK_FROM_S are reached by a seek; if its result is not exact, all is decoded from zero.

    Raises:
        MediaError: damaged, or (reason too-short) it ends more than half a second before `end_s`.
        OSError: the disk is full.
    """
    facts = probe(video)
    if recipe.keep_original:
        return _cut_original(video, clip, facts, (start_s, end_s), recipe, binary)
    num_frames = max(round((end_s - start_s) * recipe.fps), 1)
    if start_s > SEEK_FROM_S:
        try:
            job = _FfmpegRun(video, facts, recipe, start_s, num_frames, seek=True)
            if _write(job, clip, binary) == num_frames:
                return Cut(num_frames)
        except MediaError:
            pass  # decoding from zero decides
    job = _FfmpegRun(video, facts, recipe, start_s, num_frames)
    written = _write(job, clip, binary)
    missing = num_frames - written
    if missing == 0:
        return Cut(num_frames)
    if written == 0 or missing > HOLD_S * recipe.fps:
        ends_s = float(start_s + Fraction(written, recipe.fps))
        where = f"ends at {ends_s:.2f} s" if written else f"ends before {float(start_s):.2f} s"
        raise MediaError(
            video, f"{where}, the segment at {float(end_s):.2f} s", reason=Reason.TOO_SHORT
        )
    job = _FfmpegRun(video, facts, recipe, start_s, num_frames, hold=missing)
    return Cut(_write(job, clip, binary), missing)


def _cut_original(
    video: Path,
    clip: Path,
    facts: Video,
    segment: tuple[Fraction, Fraction],
    recipe: ClipRecipe,
    binary: Path,
) -> Cut:
    start_s, end_s = segment
    job = _FfmpegRun(video, facts, recipe, start_s, None, end_s=end_s, seek=start_s > SEEK_FROM_S)
    written = _write(job, clip, binary)
    rate = facts.fps or Fraction(recipe.fps)
    if written < (end_s - start_s - HOLD_S) * rate:
        raise MediaError(video, f"gives only {written} frames", reason=Reason.TOO_SHORT)
    return Cut(written)


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
    facts = probe(source)
    job = _FfmpegRun(source, facts, recipe, Fraction(start, recipe.fps), num_frames)
    written = _write(job, clip, binary)
    if written == 0 and start:
        length = "" if facts.duration_s is None else f"; it is {float(facts.duration_s):.2f} s long"
        where = f"from {start / recipe.fps:.2f} s on (frame {start})"
        raise MediaError(source, f"holds no frame {where}{length}")
    if written == 0:
        raise MediaError(source, "holds no frame")
    return Cut(written)


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
    if (video.codec, video.pixel_format, video.width, video.height) != ("h264", "yuv420p", *wanted):
        return 0
    if "mp4" not in video.container.split(","):
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
    """Width and height of the clip, even numbers, as chroma planes have half the size."""
    width, height, short = video.width, video.height, recipe.short_side
    smaller = min(width, height)
    if recipe.keep_original or short is None or (smaller <= short and not recipe.enlarge):
        return max(width // 2 * 2, 2), max(height // 2 * 2, 2)
    scale = Fraction(short, smaller)
    return tuple(
        2 * max(math.floor(side * scale / 2 + Fraction(1, 2)), 1) for side in (width, height)
    )  # type: ignore[return-value]  # a pair in, a pair out


@dataclass(frozen=True, slots=True)
class _FfmpegRun:
    """One run of ffmpeg: which frames of a video it writes, and how."""

    video: Path
    facts: Video
    recipe: ClipRecipe
    start_s: Fraction
    num_frames: int | None  # None: to the end, or to end_s
    seek: bool = False
    hold: int = 0
    end_s: Fraction | None = None

    def graph(self, clip: Path) -> Any:
        # Frames of another size go to the same filters, as `scale` takes any size: new filters
        # would start to count times from zero there.
        reading: dict[str, Any] = {"threads": 1, "reinit_filter:v": 0}
        if self.seek or self._with_sound:
            # Otherwise times would count from the first packet of any track.
            reading["copyts"] = None
        if self.seek:
            # Keep all frames from the keyframe on (noaccurate_seek), as the frame shown at
            # start_s may have an earlier time.
            zero_s = self.facts.first_tick * self.facts.time_base_s
            before = max(self.start_s - SEEK_MARGIN_S, Fraction(0))
            reading |= {
                "noaccurate_seek": None,
                "seek_timestamp": 1,
                "ss": f"{float(zero_s + before):.6f}",
            }
        source = ffmpeg.input(str(self.video.absolute()), **reading)
        streams = [self._picture(source.video)]
        if self._with_sound:
            streams.append(self._sound(source.audio))
        return ffmpeg.output(*streams, str(clip.absolute()), **self._writing())

    @property
    def _with_sound(self) -> bool:
        return self.recipe.keep_audio and self.facts.num_audio > 0

    def _picture(self, picture: Any) -> Any:
        # Ticks so fine that start_s is a whole number of them: all comparisons of times are exact.
        ticks = math.lcm(self.facts.time_base_s.denominator, self.start_s.denominator)
        ticks = ticks if ticks < 2**31 else self.facts.time_base_s.denominator
        zero = "STARTPTS"
        if self.seek:
            zero = str(round(self.facts.first_tick * self.facts.time_base_s * ticks))
        shift = round(self.start_s * ticks)
        picture = picture.filter("settb", f"1/{ticks}").filter("setpts", f"PTS-{zero}-{shift}")
        if self.recipe.keep_original:
            length = (
                {}
                if self.end_s is None
                else {"end_pts": round((self.end_s - self.start_s) * ticks)}
            )
            picture = picture.filter("trim", start_pts=0, **length)
        else:
            # round=up moves a frame to the first output time that is not before it, and repeats it
            # until the next frame's: each output time gets the last frame at or before it.
            picture = picture.filter("fps", fps=self.recipe.fps, round="up")
            if self.hold:
                picture = picture.filter("tpad", stop=self.hold, stop_mode="clone")
            length = {} if self.num_frames is None else {"end_pts": self.num_frames}
            picture = picture.filter("trim", start_pts=0, **length)
        width, height = _size(self.facts, self.recipe)
        return picture.filter(
            "scale", width, height, flags="bicubic+accurate_rnd+full_chroma_int+bitexact"
        ).filter("format", "yuv420p")

    def _sound(self, sound: Any) -> Any:
        zero = float(self.facts.first_tick * self.facts.time_base_s + self.start_s)
        sound = sound.filter("asetpts", f"PTS-{zero:.6f}/TB")
        length = {}
        if self.num_frames is not None:
            length = {"end": self.num_frames / self.recipe.fps}
        elif self.end_s is not None:
            length = {"end": float(self.end_s - self.start_s)}
        return sound.filter("atrim", start=0, **length)

    def _writing(self) -> dict[str, Any]:
        return {
            "map_metadata": -1,
            "map_chapters": -1,
            "vcodec": "libx264",
            "preset": self.recipe.preset,
            "crf": self.recipe.crf,
            "g": self.recipe.keyframe_interval,
            "threads": 1,
            "fps_mode": "passthrough",
            "fflags": "+bitexact",
            "flags:v": "+bitexact",
            "flags:a": "+bitexact",
            "movflags": "+faststart",
        } | ({"acodec": "aac"} if self.recipe.keep_audio else {})


def _write(job: _FfmpegRun, clip: Path, binary: Path) -> int:
    """Run the job and count, by decoding, the frames that it wrote; 0 if the video had none."""
    messages = run_ffmpeg(job.graph(clip), binary=binary, video=job.video, output=clip)
    try:
        return count_frames(clip)
    except MediaError:
        if messages or clip.stat().st_size > _EMPTY_MP4_BYTES:
            raise
        return 0
