"""The one wall to ffmpeg and PyAV: probing, cutting, encoding, decoding.

Writing goes through the ffmpeg binary (the same one everywhere: it comes in a wheel), reading
through PyAV. What they say of a video that cannot be read becomes a MediaError; a full disk stays
an OSError, for it says nothing about the video.
"""

import errno
import io
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import numpy as np
import numpy.typing as npt

from kinetics_tools.core.errors import MediaError, Reason

Frame = npt.NDArray[np.uint8]
SEEK_MARGIN_S = 1  # a demuxer seeks by decoding time, which runs ahead of the time shown


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


MISSING_ERRNOS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


def require_regular_file(path: Path) -> None:
    """Raise MediaError where `path` is no file.

    Raises:
        OSError: it cannot be told, as in a folder that is closed to this user.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno not in MISSING_ERRNOS:
            raise
        raise MediaError(path, "no such file") from error
    if not stat.S_ISREG(mode):
        raise MediaError(path, "is a folder" if stat.S_ISDIR(mode) else "is no file")


# The last touch of a picture, a fifth of the decoder's time: all of the stream is read without it.
SKIP_LOOP_FILTER = {"skip_loop_filter": "all"}


@contextmanager
def open_video(
    source: Path | bytes, *, strict: bool = True, for_display: bool = True
) -> Iterator[tuple[Any, Any]]:
    """Open `source`; yield its container and video stream. Errors of PyAV become MediaErrors.

    A strict decoder stops at damage; another one would paint over it and say nothing. Frames that
    are only counted need not be fit to be seen.
    """
    name = source if isinstance(source, Path) else Path("<bytes>")
    if isinstance(source, Path):
        require_regular_file(source)
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
                stream.codec_context.options = {"err_detect": "explode"} | (
                    {} if for_display else SKIP_LOOP_FILTER
                )
            yield container, stream
    except (av.FFmpegError, UnicodeDecodeError) as error:
        no_memory = isinstance(error, MemoryError)
        reason = Reason.KILLED if no_memory else Reason.DAMAGED
        raise MediaError(name, f"cannot be decoded: {error}", reason=reason) from error


def decode_frames(source: Path | bytes) -> Iterator[Any]:
    """Yield PyAV's frames in the order shown."""
    with open_video(source) as (container, stream):
        yield from container.decode(stream)


def probe(path: Path) -> Video:
    """Read a file's header and its first frame.

    Raises:
        MediaError: not a video, or its first frame cannot be decoded.
    """
    with open_video(path, strict=False) as (container, stream):
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


def count_frames(path: Path) -> int:
    """Decode all of a video and count its frames.

    Raises:
        MediaError: damage anywhere in it.
    """
    with open_video(path, for_display=False) as (container, stream):
        return sum(1 for _ in container.decode(stream))


def frames(source: Path | bytes) -> Iterator[Frame]:
    """Yield every frame in the order shown: uint8 (H, W, 3), RGB, full range.

    Raises:
        MediaError: damage anywhere in it.
    """
    for frame in decode_frames(source):
        yield _rgb(frame)


def _rgb(frame: Any) -> Frame:
    # Without `threads`, each frame's conversion would start one thread per processor.
    pixels: Frame = frame.to_ndarray(format="rgb24", threads=1)
    return pixels


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
    with open_video(source) as (container, stream):
        rate = stream.average_rate
        if min(wanted) > 0:
            container.seek(int(min(wanted) / rate / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            number = round(frame.pts * frame.time_base * rate)
            if number in wanted:
                found[number] = _rgb(frame)
            if number >= max(wanted):
                break
    if len(found) < len(wanted):
        raise MediaError(name, f"has no frame {min(wanted - found.keys())}")
    return np.stack([found[index] for index in indices])
