"""The one wall to ffmpeg and PyAV: probing, cutting, encoding, decoding.

Writing goes through the ffmpeg binary (the same one everywhere: it comes in a wheel), reading
through PyAV. What they say of a video that cannot be read becomes a MediaError; a full disk stays
an OSError, for it says nothing about the video.
"""

import errno
import io
import itertools
import math
import os
import re
import signal
import stat
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import av.container
import ffmpeg
import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

from kinetics_tools.errors import KineticsError, MediaError, Reason
from kinetics_tools.files import FULL_ERRNOS

Frame = npt.NDArray[np.uint8]

SEEK_FROM_S = 5  # an earlier start is decoded from zero: some AVI files lose frames by any seek
SEEK_MARGIN_S = 1  # a demuxer seeks by decoding time, which runs ahead of the time shown
HOLD_S = Fraction(1, 2)  # labels are whole seconds; a video may end this much before its segment
# What ffmpeg says of a disk, by which it is told from a video that is damaged. An I/O error is not
# among them: demuxers say so of damage too.
STORAGE_WORDS = {os.strerror(number): number for number in (*FULL_ERRNOS, errno.EROFS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRecipe:
    """Every parameter that changes a pixel of a clip.

    Attributes:
        fps: constant rate of the clip.
        short_side: pixels of the shorter side; None keeps the size.
        enlarge: whether a smaller video is enlarged to `short_side`.
        keep_original: keeps size and rate, whatever the two above say.
        keep_audio: keeps the first audio track, as AAC.
        crf: x264's constant rate factor; 18 is the value that its authors call visually lossless.
        preset: x264's trade of time for size.
        keyframe_interval: at least one keyframe in so many frames, for reading from the middle.
        ffmpeg: version of the binary.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """What a file's header says of its video stream. It may be wrong: only decoding tells.

    Attributes:
        width: pixels as shown, after rotation.
        height: pixels as shown, after rotation.
        fps: average rate, where the header has one.
        container: FFmpeg's names of the file format, such as "mov,mp4,m4a,3gp,3g2,mj2".
        codec: PyAV's name of the decoder's codec, such as "h264".
        pixel_format: FFmpeg's name, such as "yuv420p".
        num_audio: number of audio tracks.
        duration_s: length, where the header has one.
        time_base_s: length of one tick.
        first_tick: time of the first frame shown; zero of every time that we count.
    """

    width: int
    height: int
    fps: Fraction | None
    container: str
    codec: str
    pixel_format: str
    num_audio: int
    duration_s: Fraction | None
    time_base_s: Fraction
    first_tick: int


def find_ffmpeg(override: Path | None = None) -> Path:
    """The ffmpeg binary: `override`, or the one in the wheel imageio-ffmpeg.

    Raises:
        KineticsError: `override` is not a program.
    """
    if override is None:
        return Path(imageio_ffmpeg.get_ffmpeg_exe())
    if not os.access(override, os.X_OK) or override.is_dir():
        raise KineticsError(f"--ffmpeg {override}: no program there; leave it out to use our own")
    return override.absolute()


@cache
def ffmpeg_version(binary: Path) -> str:
    """The version that the binary names, such as "9.0.2".

    Raises:
        KineticsError: it does not answer as ffmpeg does.
    """
    try:
        said = subprocess.run([binary, "-version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise KineticsError(f"{binary} does not run: {error.strerror}") from error
    words = said.stdout.split()
    if said.returncode != 0 or words[:2] != ["ffmpeg", "version"]:
        raise KineticsError(f"{binary} does not answer -version as ffmpeg does")
    return words[2]


_NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


def refuse_no_file(path: Path) -> None:
    """Raise MediaError where `path` is no file.

    Raises:
        OSError: it cannot be told, as in a folder that is closed to this user.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno not in _NOWHERE:
            raise
        raise MediaError(path, "no such file") from error
    if not stat.S_ISREG(mode):
        raise MediaError(path, "is a folder" if stat.S_ISDIR(mode) else "is no file")


# The last touch of a picture, a fifth of the decoder's time: all of the stream is read without it.
_UNSEEN = {"skip_loop_filter": "all"}


@contextmanager
def _video_of(
    source: Path | bytes, *, strict: bool = True, seen: bool = True
) -> Iterator[tuple[Any, Any]]:
    """Open `source`; yield its container and video stream. Errors of PyAV become MediaErrors.

    A strict decoder stops at damage; another one would paint over it and say nothing. Frames that
    are only counted need not be fit to be seen.
    """
    name = source if isinstance(source, Path) else Path("<bytes>")
    if isinstance(source, Path):
        refuse_no_file(source)
    try:
        # HMDB-51 has metadata that is not UTF-8: a plain open raises UnicodeDecodeError there.
        with av.open(
            str(source) if isinstance(source, Path) else io.BytesIO(source),
            metadata_errors="ignore",
        ) as container:
            if not container.streams.video:
                raise MediaError(name, "holds no video")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # parallelism is across clips
            if strict:
                stream.codec_context.options = {"err_detect": "explode"} | ({} if seen else _UNSEEN)
            yield container, stream
    except (av.FFmpegError, UnicodeDecodeError) as error:
        no_memory = isinstance(error, MemoryError)
        reason = Reason.KILLED if no_memory else Reason.DAMAGED
        raise MediaError(name, f"cannot be decoded: {error}", reason=reason) from error


def _decode(source: Path | bytes) -> Iterator[Any]:
    """Yield PyAV's frames in the order shown."""
    with _video_of(source) as (container, stream):
        yield from container.decode(stream)


def probe(path: Path) -> Video:
    """Read a file's header and its first frame.

    Raises:
        MediaError: not a video, or its first frame cannot be decoded.
    """
    with _video_of(path, strict=False) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None:
            raise MediaError(path, "holds no frame")
        turned = first.rotation % 180 != 0
        return Video(
            width=first.height if turned else first.width,
            height=first.width if turned else first.height,
            fps=stream.average_rate,
            container=container.format.name,
            codec=stream.codec_context.name,
            pixel_format=first.format.name,
            num_audio=len(container.streams.audio),
            duration_s=_duration(container, stream),
            time_base_s=stream.time_base,
            first_tick=first.pts or 0,
        )


def _duration(container: Any, stream: Any) -> Fraction | None:
    """The stream's length in seconds, or that of all, as the header has it."""
    if stream.duration is not None:
        return Fraction(stream.duration * stream.time_base)
    if container.duration is not None:
        return Fraction(container.duration, av.time_base)
    return None


def conforming_frames(path: Path, recipe: ClipRecipe, *, most: int | None = None) -> int:
    """How many frames a clip has that already is what `recipe` would make of it; of others, 0.

    Such a clip's bytes may be kept. Every frame is decoded: a constant rate is a claim about all.

    Args:
        path: the clip.
        recipe: of clips.
        most: frames to look at; None for all.

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
    for frame in itertools.islice(_decode(path), most):
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
    """Width and height of the clip: even numbers, for chroma has half the size."""
    width, height, short = video.width, video.height, recipe.short_side
    smaller = min(width, height)
    if recipe.keep_original or short is None or (smaller <= short and not recipe.enlarge):
        return max(width // 2 * 2, 2), max(height // 2 * 2, 2)
    scale = Fraction(short, smaller)
    return tuple(
        2 * max(math.floor(side * scale / 2 + Fraction(1, 2)), 1) for side in (width, height)
    )  # type: ignore[return-value]  # a pair in, a pair out


@dataclass(frozen=True, slots=True)
class Cut:
    """What a cut wrote.

    Attributes:
        num_frames: frames of the clip, counted by decoding it.
        num_held: how many of them repeat the video's last frame, since it ends before its segment.
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
    frame, is at most `start_s + k / fps`; there are `(end_s - start_s) * fps` of them. A late
    segment is reached by a seek; whenever its result is not exact, the video is decoded from zero.

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
            job = _Job(video, facts, recipe, start_s, num_frames, seek=True)
            if _write(job, clip, binary) == num_frames:
                return Cut(num_frames)
        except MediaError:
            pass  # decoding from zero decides
    job = _Job(video, facts, recipe, start_s, num_frames)
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
    job = _Job(video, facts, recipe, start_s, num_frames, hold=missing)
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
    job = _Job(video, facts, recipe, start_s, None, end_s=end_s, seek=start_s > SEEK_FROM_S)
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
    """Write `source`, from its time 0, into the new file `clip` as `recipe` says.

    Args:
        source: any video.
        clip: the new file.
        recipe: of the clip.
        binary: the ffmpeg program.
        start: number of the first frame to write, of those that the whole clip would have.
        num_frames: at most to write; None for all.

    Raises:
        MediaError: damaged.
        OSError: the disk is full.
    """
    facts = probe(source)
    job = _Job(source, facts, recipe, Fraction(start, recipe.fps), num_frames)
    written = _write(job, clip, binary)
    if written == 0 and start:
        length = "" if facts.duration_s is None else f"; it is {float(facts.duration_s):.2f} s long"
        where = f"from {start / recipe.fps:.2f} s on (frame {start})"
        raise MediaError(source, f"holds no frame {where}{length}")
    if written == 0:
        raise MediaError(source, "holds no frame")
    return Cut(written)


@dataclass(frozen=True, slots=True)
class _Job:
    """One run of ffmpeg: which frames of which video, written how."""

    video: Path
    facts: Video
    recipe: ClipRecipe
    start_s: Fraction
    num_frames: int | None  # None: to the end, or to end_s
    seek: bool = False
    hold: int = 0
    end_s: Fraction | None = None

    def graph(self, clip: Path) -> Any:
        # A picture of another size goes to the same filters, of which `scale` takes any: new ones
        # would count times from there on anew.
        reading: dict[str, Any] = {"threads": 1, "reinit_filter:v": 0}
        if self.seek or self._with_sound:
            # Else times count from the file's first packet, of whichever track.
            reading["copyts"] = None
        if self.seek:
            # All frames from the keyframe on are kept (noaccurate_seek): the frame shown at the
            # start may lie before it.
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
        # Ticks so fine that the start falls on one: every comparison of times below is exact.
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
            # round=up gives a frame the first output time that is not before it, and holds it until
            # the next frame's: the last frame at or before each output time.
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


def _write(job: _Job, clip: Path, binary: Path) -> int:
    """Run the job and count, by decoding, the frames that it wrote (0: ffmpeg found none)."""
    command = ffmpeg.compile(
        job.graph(clip).global_args("-loglevel", "error", "-xerror", "-nostdin"),
        cmd=str(binary),
        overwrite_output=True,
    )
    said = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    words = said.stderr.decode(errors="replace").strip()
    _raise_if_full(words, clip)
    if said.returncode == -signal.SIGXFSZ:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(clip))
    if said.returncode < 0:
        detail = f"ffmpeg was killed by {signal.Signals(-said.returncode).name}"
        raise MediaError(job.video, detail, reason=Reason.KILLED)
    if said.returncode != 0:
        raise MediaError(job.video, _last_words(words) or f"ffmpeg ended with {said.returncode}")
    try:
        return count_frames(clip)
    except MediaError:
        if words or clip.stat().st_size > _EMPTY_MP4_BYTES:
            raise
        return 0


def _raise_if_full(words: str, path: Path) -> None:
    for text, number in STORAGE_WORDS.items():
        if text in words:
            raise OSError(number, os.strerror(number), str(path))


def _last_words(text: str) -> str:
    """The last line of what ffmpeg said was wrong, without addresses (they differ in every run).

    Of the parts of it that are named before a line, the innermost stays.
    """
    lines = re.sub(r"\[[^]]*\] (?=\[)| @ 0x[0-9a-f]+", "", text).splitlines()
    telling = [line for line in lines if not _ENDING.search(line)]
    return (telling or lines or [""])[-1][:400]


# What ffmpeg says of its own end, after it has said what was wrong.
_ENDING = re.compile(
    "Task finished with error code|Terminating thread with return code"
    "|Could not open encoder before EOF|Nothing was written into output file"
)


_EMPTY_MP4_BYTES = 1024  # what ffmpeg writes, with status 0, when no frame passed its filters


def write_video(
    path: Path,
    pictures: Iterable[Frame],
    *,
    fps: int | Fraction,
    binary: Path,
    for_browsers: bool = False,
) -> None:
    """Encode pictures as H.264 (yuv420p) into the new file `path`.

    Args:
        path: its suffix names the container.
        pictures: uint8 (H, W, 3), RGB, all of one even size; at least one.
        fps: constant rate.
        binary: the ffmpeg program.
        for_browsers: puts the index first and says which colours these are, so that it plays
            before it is there whole and looks the same everywhere.

    Raises:
        MediaError: ffmpeg failed.
        OSError: the disk is full.
    """
    rest = iter(pictures)
    first = next(rest)
    height, width, _ = first.shape
    command = ffmpeg.compile(
        ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", r=str(fps))
        .output(
            str(path.absolute()),
            vcodec="libx264",
            pix_fmt="yuv420p",
            crf=16,
            threads=1,
            **(_FOR_BROWSERS if for_browsers else {}),
        )
        .global_args("-loglevel", "error"),
        cmd=str(binary),
        overwrite_output=True,
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            for picture in itertools.chain([first], rest):
                process.stdin.write(picture.tobytes())
            process.stdin.close()
        except BrokenPipeError:  # its last words say why it stopped reading
            with suppress(BrokenPipeError):
                process.stdin.close()  # or leaving the block tries again to send what is left
        words = process.stderr.read().decode(errors="replace")
    _raise_if_full(words, path)
    if process.returncode != 0:
        raise MediaError(path, _last_words(words))


# swscale makes such colours of RGB unless told otherwise; untagged ones players guess.
_FOR_BROWSERS = {"movflags": "+faststart", "colorspace": "smpte170m", "color_range": "tv"}


def count_frames(path: Path) -> int:
    """Decode all of a video and count its frames.

    Raises:
        MediaError: damage anywhere in it.
    """
    with _video_of(path, seen=False) as (container, stream):
        return sum(1 for _ in container.decode(stream))


def frames(source: Path | bytes) -> Iterator[Frame]:
    """Yield every frame in the order shown: uint8 (H, W, 3), RGB, full range.

    Raises:
        MediaError: damage anywhere in it.
    """
    for frame in _decode(source):
        yield frame.to_ndarray(format="rgb24")


def read_frames(source: Path | bytes, indices: Sequence[int] | None = None) -> Frame:
    """Read frames of a clip of ours by number: uint8 (N, H, W, 3), RGB, full range.

    Args:
        source: a file, or its bytes, of constant rate whose first frame has time 0.
        indices: numbers from 0, in any order, repeated as wanted; None for all frames.

    Raises:
        MediaError: damaged, or a number is past its end.
    """
    name = source if isinstance(source, Path) else Path("<bytes>")
    if indices is None:
        found = dict(enumerate(frames(source)))
        if not found:
            raise MediaError(name, "holds no frame")
        return np.stack(list(found.values()))
    if not len(indices):
        raise ValueError("no frame was asked for")
    wanted = set(indices)
    found = {}
    with _video_of(source) as (container, stream):
        rate = stream.average_rate
        if min(wanted) > 0:
            container.seek(int(min(wanted) / rate / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            number = round(frame.pts * frame.time_base * rate)
            if number in wanted:
                found[number] = frame.to_ndarray(format="rgb24")
            if number >= max(wanted):
                break
    if len(found) < len(wanted):
        raise MediaError(name, f"has no frame {min(wanted - found.keys())}")
    return np.stack([found[index] for index in indices])


def encode_gray(
    frames: Iterable[Frame], *, encoder: str, container: str, options: Mapping[str, str]
) -> bytes:
    """Store grey frames as a video, the same bytes each time.

    Args:
        frames: uint8 (H, W) each, one at least, all of one size, H and W from 2. They are read one
            by one, so that a long clip needs no memory but for what is stored of it.
        encoder: FFmpeg's name of one that takes grey pictures: ffv1, libx264.
        container: FFmpeg's name, such as matroska.
        options: of the encoder. They must make each frame a keyframe, as `decode_gray` needs it.

    Raises:
        MediaError: the encoder takes no such frames, as those that are too large for it.
    """
    rest = iter(frames)
    first = next(rest)
    try:
        return _encoded_gray(
            itertools.chain([first], rest), first.shape, encoder, container, options
        )
    except av.FFmpegError as error:
        height, width = first.shape
        what = f"{width}x{height} pixels cannot be encoded by {encoder}: {error.strerror}"
        raise MediaError(Path("<bytes>"), what) from error


def _encoded_gray(
    frames: Iterable[Frame],
    shape: tuple[int, int],
    encoder: str,
    container: str,
    options: Mapping[str, str],
) -> bytes:
    buffer = io.BytesIO()
    height, width = shape
    with av.open(buffer, "w", format=container, options={"fflags": "bitexact"}) as file:
        stream: Any = file.add_stream(  # of video: the encoder is
            encoder, rate=_GRAY_FPS, options={**options, "threads": "1", "flags": "+bitexact"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "gray"
        stream.codec_context.color_range = _FULL_RANGE
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="gray")
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def decode_gray(data: bytes, indices: Sequence[int] | None = None) -> Frame:
    """Read what `encode_gray` stored: uint8 (N, H, W); `indices` as in `read_frames`.

    Only the frames wanted are decoded. Pixels that were changed on the way are not noticed: FFmpeg
    conceals them. Who stores the bytes keeps their digest.

    Raises:
        MediaError: not such a file, or a number is past its end.
    """
    if indices is not None and not len(indices):
        raise ValueError("no frame was asked for")
    wanted = None if indices is None else set(indices)
    found = dict(_numbered_gray(data, wanted))
    name = Path("<bytes>")
    if not found and wanted is None:
        raise MediaError(name, "holds no frame")
    if wanted is not None and len(found) < len(wanted):
        raise MediaError(name, f"has no frame {min(wanted - found.keys())}")
    return np.stack([found[number] for number in (sorted(found) if indices is None else indices)])


def _numbered_gray(data: bytes, wanted: Collection[int] | None) -> Iterator[tuple[int, Frame]]:
    with _video_of(data) as (container, stream):
        ticks = 1 / (stream.average_rate * stream.time_base)  # of a frame
        if wanted and min(wanted) > 0:
            container.seek(int(min(wanted) * ticks), stream=stream)
        for packet in container.demux(stream):
            ends = packet.pts is None  # what the demuxer says last; the decoder gives what it holds
            if not ends and wanted is not None and round(packet.pts / ticks) not in wanted:
                continue
            for frame in packet.decode():
                yield round(frame.pts / ticks), _luma(frame)


def _luma(frame: Any) -> Frame:
    """The grey values as they were stored; some decoders put empty colour planes beside them."""
    if frame.format.name not in ("gray", "yuvj420p"):
        raise MediaError(Path("<bytes>"), f"is no grey video but {frame.format.name}")
    plane = frame.planes[0]
    rows: Frame = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[: frame.height, : frame.width].copy()


@cache
def encoder_versions(encoder: str) -> dict[str, str]:
    """Versions of what decides an encoder's bytes: FFmpeg's libraries, and x264 where it is used.

    They are those in PyAV's wheel, not of the ffmpeg program.
    """
    versions = {"ffmpeg": av.ffmpeg_version_info}
    if encoder == "libx264":
        options = {"preset": "ultrafast"}
        tiny = encode_gray(
            [np.zeros((16, 16), np.uint8)], encoder=encoder, container="mp4", options=options
        )
        said = re.search(rb"x264 - core (\S+)", tiny)  # it signs its work
        assert said is not None
        versions["x264"] = said[1].decode()
    return versions


_GRAY_FPS = 25
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG: nobody may squeeze the values
