"""Reading videos with PyAV: headers, frames, and how many frames there are.

Errors of PyAV become MediaErrors.
"""

import errno
import io
import math
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import numpy as np
import numpy.typing as npt
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from kinetics_tools.core.errors import MediaError, Reason

Frame = npt.NDArray[np.uint8]
# From the height and width of a picture, the rows and columns of it that are wanted.
Window = Callable[[int, int], tuple[slice, slice]]
MISSING_ERRNOS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
# The loop filter takes a fifth of the decoder's time, and without it all of the stream is read.
SKIP_LOOP_FILTER = {"skip_loop_filter": "all"}
# Formats that are texts which name other files: reading one would read these.
_REFERRING = frozenset({"concat", "dash", "hls", "imf", "lavfi", "rtp", "rtsp", "sap", "sdp"})
_FORMATS = {"format_whitelist": ",".join(sorted(av.formats_available - _REFERRING))}
_PICTURES = Disposition.timed_thumbnails | Disposition.still_image
_PHOTO_CODECS = frozenset({"mjpeg", "mjpegb", "png", "bmp", "gif", "tiff", "webp", "jpeg2000"})
# By the signs of the matrix: how the pixels' axes lie on the screen.
_ORIENTATIONS: Mapping[tuple[int, ...], tuple[str, ...]] = {
    (0, 1, -1, 0): ("transpose=clock",),
    (0, -1, 1, 0): ("transpose=cclock",),
    (0, 1, 1, 0): ("transpose=cclock_flip",),
    (0, -1, -1, 0): ("transpose=clock_flip",),
    (-1, 0, 0, -1): ("hflip", "vflip"),
    (-1, 0, 0, 1): ("hflip",),
    (1, 0, 0, -1): ("vflip",),
}
_TURNING = frozenset(f for f in _ORIENTATIONS.values() if f[0].startswith("transpose"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """What a file's header says of its video stream. It may be wrong; only decoding shows that.

    Attributes:
        width: in pixels, after rotation.
        height: in pixels, after rotation.
        fps: average rate; None where the header has none.
        container: FFmpeg's names of the file format, such as "mov,mp4,m4a,3gp,3g2,mj2".
        codec: PyAV's name of the codec, such as "h264".
        coder: entropy coder of H.264, "vlc" (CAVLC) or "ac" (CABAC); None where the header does not
            say.
        pixel_format: FFmpeg's name, such as "yuv420p".
        index: number of the video stream among all streams of the file.
        num_audio: number of audio tracks.
        sound_index: number of the audio stream among all streams; None without sound.
        pixel_aspect: width of a pixel divided by its height, after rotation; 1 where not known.
        duration_s: length in seconds; None where the header has none.
        time_base_s: length of one tick in seconds.
        first_tick: time of the first frame, in ticks; all our times count from it.
        orientation: ffmpeg's filters that turn stored pictures as they are to be seen.
    """

    width: int
    height: int
    fps: Fraction | None
    container: str
    codec: str
    pixel_format: str
    index: int
    num_audio: int
    sound_index: int | None
    pixel_aspect: Fraction
    duration_s: Fraction | None
    time_base_s: Fraction
    first_tick: int
    orientation: tuple[str, ...] = ()
    coder: str | None = None


def require_regular_file(path: Path) -> None:
    """Raise an error unless `path` is a regular file.

    Raises:
        MediaError: there is no file, or it is a folder or a device.
        OSError: that cannot be found out, as without permission to read the folder.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno not in MISSING_ERRNOS:
            raise
        raise MediaError(path, "no such file") from error
    if not stat.S_ISREG(mode):
        raise MediaError(path, "is a folder" if stat.S_ISDIR(mode) else "is not a file")


@contextmanager
def open_video(
    source: Path | bytes, *, strict: bool = True, for_display: bool = True
) -> Iterator[tuple[Any, Any]]:
    """Open a video; yield PyAV's container and the video stream that `choose_video` names.

    Args:
        source: a file or its bytes.
        strict: damage in the stream is an error; otherwise the decoder conceals it silently.
        for_display: False skips the loop filter, where frames are only counted.

    Raises:
        MediaError: the video cannot be opened, or what the block does with it fails.
    """
    name = source if isinstance(source, Path) else Path("<bytes>")
    if isinstance(source, Path):
        require_regular_file(source)
    try:
        # HMDB-51 has metadata that is not UTF-8: a plain open raises UnicodeDecodeError there.
        with av.open(
            str(source) if isinstance(source, Path) else io.BytesIO(source),
            metadata_errors="ignore",
            options=_FORMATS,
        ) as container:
            stream = choose_video(container)
            if stream is None:
                raise MediaError(name, "holds no video")
            if stream.codec_context is None:
                raise MediaError(name, "holds a video whose codec has no decoder")
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


def choose_video(container: Any) -> Any:
    """The video stream that is taken for the film; None if the file has none.

    A thumbnail, a track of one picture, or photographs (MJPEG, PNG) beside a film may come first in
    a file. They are taken only where there is nothing else, and a cover picture never. Of several
    films it is the one that the file marks as default, else the first.
    """

    def rank(stream: Any) -> tuple[bool, ...]:
        codec = stream.codec_context  # None if there is no decoder for it
        is_picture = bool(stream.disposition & _PICTURES) or stream.frames == 1
        is_photo = codec is not None and codec.name in _PHOTO_CODECS
        return codec is None, is_picture, is_photo, not stream.disposition & Disposition.default

    videos = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
    return min(videos, key=rank, default=None)


def choose_sound(container: Any) -> Any:
    """The audio stream that is kept: the one marked as default, else the first, or None."""
    return min(
        container.streams.audio,
        key=lambda stream: not stream.disposition & Disposition.default,
        default=None,
    )


def decode_frames(source: Path | bytes) -> Iterator[Any]:
    """Yield PyAV's frames in presentation order."""
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
        turned = _orientation(first)[:1] in _TURNING
        sound = choose_sound(container)
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        return Video(
            width=first.height if turned else first.width,
            height=first.width if turned else first.height,
            fps=stream.average_rate,
            container=container.format.name,
            codec=stream.codec_context.name,
            pixel_format=first.format.name,
            index=stream.index,
            num_audio=len(container.streams.audio),
            sound_index=None if sound is None else sound.index,
            pixel_aspect=1 / aspect if turned else aspect,
            duration_s=_duration(container, stream),
            time_base_s=stream.time_base,
            first_tick=first.pts or 0,
            orientation=_orientation(first),
            coder=_coder(stream.codec_context),
        )


def _coder(codec: Any) -> str | None:
    """The entropy coder that H.264's first picture parameter set names, as an MP4's header has it.

    ISO/IEC 14496-15 5.3.3.1 (avcC) and ITU-T H.264 7.3.2.2.
    """
    header = bytes(codec.extradata or b"")
    if codec.name != "h264" or header[:1] != b"\1":
        return None
    try:
        at = 6
        for _ in range(header[5] & 31):  # sequence parameter sets, each after its length
            at += 2 + int.from_bytes(header[at : at + 2])
        if not header[at]:
            return None
        # After the count, the length and the type: two numbers of variable length, then the flag.
        bits = "".join(f"{byte:08b}" for byte in header[at + 4 : at + 12])
        for _ in range(2):
            bits = bits[2 * bits.index("1") + 1 :]
        return {"0": "vlc", "1": "ac"}[bits[0]]
    except (IndexError, ValueError):  # it is cut short; decoding decides what that means
        return None


def _orientation(frame: Any) -> tuple[str, ...]:
    """The filters for a frame's display matrix, which is one of eight; none for any other."""
    data = next((d for d in frame.side_data if d.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return ()
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32)
    return _ORIENTATIONS.get((*np.sign((a, b, c, d)).tolist(),), ())


def _duration(container: Any, stream: Any) -> Fraction | None:
    """The length of the stream, else of the file, in seconds; None where the header has neither."""
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
    """Yield every frame in presentation order: uint8 (H, W, 3), RGB, full range.

    Raises:
        MediaError: damage anywhere in it.
    """
    converter: Any = VideoReformatter()
    for frame in decode_frames(source):
        # Without `threads`, each frame's conversion would start one thread per processor.
        yield converter.reformat(frame, format="rgb24", threads=1).to_ndarray()


def read_frames(
    source: Path | bytes, indices: Sequence[int] | None = None, window: Window | None = None
) -> Frame:
    """Read frames of a clip by number: uint8 (N, H, W, 3), RGB, full range.

    Only what they need is decoded, from the keyframe before the first of them on.

    Args:
        source: a file, or its bytes, of constant rate whose first frame has time 0.
        indices: frame numbers from 0, in any order, with or without repeats; None for all frames.
        window: the part of each frame that is returned; None for all of it.

    Raises:
        MediaError: damaged, or a number is past its end.
    """
    name = source if isinstance(source, Path) else Path("<bytes>")
    gathered = Gathering(name, indices, window)
    converter = VideoReformatter()  # one for all frames: it is a third of a conversion to make one
    with open_video(source) as (container, stream):
        rate = stream.average_rate
        if indices is not None and not (rate and stream.time_base):
            raise MediaError(name, "does not say when its frames are shown")
        if indices is None:
            numbered: Iterator[tuple[int, Any]] = enumerate(container.decode(stream))
        else:
            numbered = _decode_wanted(name, container, stream, gathered)
        for number, frame in numbered:
            if gathered.wants(number):
                rgb = converter.reformat(frame, format="rgb24", threads=1)
                gathered.add(number, plane(rgb)[:, : 3 * rgb.width].reshape(rgb.height, -1, 3))
    return gathered.result()


def _decode_wanted(
    name: Path, container: Any, stream: Any, gathered: "Gathering"
) -> Iterator[tuple[int, Any]]:
    """Frames with their numbers, from the keyframe before the first wanted one to the last one.

    Those that are not wanted, and that no other is predicted from, are not decoded.
    """
    per_tick = float(stream.average_rate * stream.time_base)  # frames
    codec, unsent = stream.codec_context, gathered.num_missing
    for packet in _packets_from(container, stream, math.floor(gathered.first / per_tick)):
        is_last = packet.size == 0  # it flushes the decoder
        if not is_last:
            is_wanted = gathered.wants(frame_number(name, packet, per_tick))
            if codec.name == "h264":  # others would lose frames that were sent before
                codec.skip_frame = "DEFAULT" if is_wanted else "NONREF"
            unsent -= is_wanted
        for frame in packet.decode():
            yield frame_number(name, frame, per_tick), frame
        if unsent == 0 and not is_last:  # what follows is not needed: take what is decoded
            for frame in codec.decode(None):
                yield frame_number(name, frame, per_tick), frame
            return


def _packets_from(container: Any, stream: Any, tick: int) -> Iterator[Any]:
    """Packets from a keyframe on that is shown at `tick` or before, if there is one."""
    target = tick
    while target > 0:
        container.seek(target, stream=stream)
        packets = container.demux(stream)
        head = next(packets)
        # A keyframe of an open group of pictures may be decoded before `tick` and shown after it.
        is_late = head.pts is not None and head.dts is not None and head.pts > tick
        if not is_late or head.dts > target:
            yield head
            yield from packets
            return
        target = head.dts - 1
    if tick > 0:
        container.seek(0, stream=stream)
    yield from container.demux(stream)


def frame_number(name: Path, frame: Any, frames_per_tick: float) -> int:
    """The number of a frame, or of a packet, in a clip of constant rate.

    Raises:
        MediaError: it has no time.
    """
    if frame.pts is None:
        raise MediaError(name, "does not say when its frames are shown")
    return round(float(frame.pts) * frames_per_tick)


def plane(frame: Any) -> Frame:
    """The first plane of a frame, uint8 (H, bytes of a row), without a copy; rows are padded."""
    first = frame.planes[0]
    return np.frombuffer(first, np.uint8).reshape(-1, first.line_size)[: frame.height]


class Gathering:
    """Pictures of a clip by number, each copied once to its place in one array.

    Attributes:
        first: the lowest number that is wanted.
    """

    def __init__(
        self,
        name: Path,
        indices: Sequence[int] | None,
        window: Window | None = None,
        *,
        rows_axis: int = 0,
    ) -> None:
        """Begin.

        Args:
            name: of the clip, in errors.
            indices: the numbers in the order of the result; None for all pictures.
            window: the part of each picture that is kept; None for all of it.
            rows_axis: the axis of a picture's rows; that of its columns follows.

        Raises:
            ValueError: there are no numbers.
        """
        if indices is not None and not len(indices):
            raise ValueError("no frame is requested")
        self._name = name
        self._window = window
        wanted = () if indices is None else indices
        numbers, self._order = np.unique(np.asarray(wanted, np.int64), return_inverse=True)
        self._places = None if indices is None else {n: at for at, n in enumerate(numbers.tolist())}
        self._missing = set(self._places or ())
        self._all: list[Frame] = []
        self._array: Frame | None = None
        self._size: tuple[int, ...] = ()
        self._axis = rows_axis
        self._part: tuple[slice, ...] = ()
        self.first: int = min(self._missing, default=0)

    def wants(self, number: int) -> bool:
        """Whether this picture is wanted, and was not added yet."""
        return self._places is None or number in self._missing

    @property
    def num_missing(self) -> int:
        """How many pictures are wanted that were not added yet."""
        return len(self._missing)

    def add(self, number: int, picture: Frame) -> None:
        """Copy the part of a picture, uint8 (..., H, W, ...), that is kept.

        Raises:
            MediaError: its size is not that of the first one.
        """
        if not self._size:
            self._size = picture.shape
            if self._window is not None:
                height, width = picture.shape[self._axis : self._axis + 2]
                self._part = (*[slice(None)] * self._axis, *self._window(height, width))
        elif picture.shape != self._size:
            raise MediaError(self._name, "changes its size")
        part = picture[self._part]
        if self._places is None:
            self._all.append(part.copy())
            return
        if self._array is None:
            self._array = np.empty((len(self._places), *part.shape), np.uint8)
        self._array[self._places[number]] = part
        self._missing.discard(number)

    def result(self) -> Frame:
        """The pictures, or their parts: uint8 (N, ..., h, w, ...).

        Raises:
            MediaError: there is none, or one is missing.
        """
        if self._places is None:
            if not self._all:
                raise MediaError(self._name, "holds no frame")
            return np.stack(self._all)
        if self._missing or self._array is None:
            raise MediaError(self._name, f"has no frame {min(self._missing)}")
        in_order = np.array_equal(self._order, np.arange(len(self._array)))
        return self._array if in_order else self._array[self._order]
