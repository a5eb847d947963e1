"""Grey pictures stored as a video, and read again."""

import io
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import av
import av.container
import numpy as np

from kinetics_tools.core.errors import MediaError
from kinetics_tools.media.decode import Frame, open_video


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
    with open_video(data) as (container, stream):
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
