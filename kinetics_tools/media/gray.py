"""Grey frames encoded as a video, and decoded again: how flow is stored."""

import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import av
import av.container
import numpy as np

from kinetics_tools.core.errors import MediaError
from kinetics_tools.media.decode import (
    Frame,
    Gathering,
    Window,
    frame_number,
    open_video,
    plane,
)

_GRAY_FPS = 25
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG: values 0 to 255 stay as they are


def encode_gray(
    frames: Iterable[Frame], *, encoder: str, container: str, options: Mapping[str, str]
) -> bytes:
    """Encode grey frames as a video; equal frames give equal bytes.

    Args:
        frames: uint8 (H, W) each, at least one, all of one size, H and W at least 2. They are read
            one by one: memory holds one frame and the encoded bytes.
        encoder: FFmpeg's name of an encoder for grey frames: ffv1, libx264.
        container: FFmpeg's name of a file format, such as matroska.
        options: of the encoder. They must make each frame a keyframe, as `decode_gray` needs that.

    Raises:
        MediaError: the encoder does not take such frames, as they are too large for it.
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
        stream: Any = file.add_stream(  # a video stream, as the encoder is one of video
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


def decode_gray(
    data: bytes,
    indices: Sequence[int] | None = None,
    window: Window | None = None,
    *,
    parts: int = 1,
) -> Frame:
    """Decode frames of `encode_gray`: uint8 (N, P, H, W).

    Only the requested frames are decoded. Damaged bytes may give wrong pixels without an error, as
    FFmpeg conceals damage: the caller must check a digest of the bytes.

    Args:
        data: the bytes of the video.
        indices: frame numbers from 0, in any order, with or without repeats; None for all frames.
        window: the rows and columns of each part that are returned; None for all of it.
        parts: P, the number of pictures of equal size that lie above each other in a frame.

    Raises:
        MediaError: not such a video, or a number is past its end.
    """
    name = Path("<bytes>")
    gathered = Gathering(name, indices, window, rows_axis=1)
    with open_video(data) as (container, stream):
        if not (stream.average_rate and stream.time_base):
            raise MediaError(name, "does not say when its frames are shown")
        per_tick = float(stream.average_rate * stream.time_base)  # frames
        if gathered.first > 0:
            container.seek(int(gathered.first / per_tick), stream=stream)
        for packet in container.demux(stream):
            is_last = packet.size == 0  # at the end of the file; it flushes the decoder
            if not is_last and not gathered.wants(frame_number(name, packet, per_tick)):
                continue
            for frame in packet.decode():
                number = frame_number(name, frame, per_tick)
                if gathered.wants(number):
                    gathered.add(number, _luma(frame, parts))
    return gathered.result()


def _luma(frame: Any, parts: int) -> Frame:
    """The stored grey values (P, H, W), without the empty colour planes of some decoders."""
    if frame.format.name not in ("gray", "yuvj420p") or frame.height % parts:
        what = f"{frame.format.name}, {frame.width}x{frame.height}"
        raise MediaError(Path("<bytes>"), f"is not a grey video of {parts} parts but {what}")
    return plane(frame)[:, : frame.width].reshape(parts, -1, frame.width)


@cache
def encoder_versions(encoder: str) -> dict[str, str]:
    """Versions on which an encoder's bytes depend: FFmpeg's libraries, and x264 if it is used.

    They are those of PyAV's wheel, not of the ffmpeg program.
    """
    versions = {"ffmpeg": av.ffmpeg_version_info}
    if encoder == "libx264":
        options = {"preset": "ultrafast"}
        tiny = encode_gray(
            [np.zeros((16, 16), np.uint8)], encoder=encoder, container="mp4", options=options
        )
        said = re.search(rb"x264 - core (\S+)", tiny)  # x264 writes its version into the stream
        assert said is not None
        versions["x264"] = said[1].decode()
    return versions
