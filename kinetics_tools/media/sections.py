"""Copies of the part of a video that a segment needs, without decoding, from files on a network."""

import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from kinetics_tools.core.errors import MediaError, Reason
from kinetics_tools.media.clip_writer import SEEK_MARGIN_S
from kinetics_tools.media.decode import choose_sound, choose_video
from kinetics_tools.media.encode import DISK_ERRNOS

# File formats with an index and the time of each frame: without these a seek is a guess.
_SEEKABLE = frozenset({"mov", "matroska"})
# Enough to recognise the codecs; more would be downloaded in vain.
PROBE_OPTIONS = {"probesize": "65536", "analyzeduration": "0"}


def copy_section(
    files: Sequence[io.IOBase],
    section: Path,
    *,
    start_s: Fraction,
    end_s: Fraction,
    with_sound: bool,
) -> Fraction:
    """Copy the packets that `cut` needs for the segment `[start_s, end_s)` into the new `section`.

    A clip that is cut from the section, with the returned time subtracted from its times, has the
    same frames, bit for bit, as one that is cut from the whole video. Only the index, the first
    frame, and the packets from the last keyframe at or before the segment to the first frame after
    it are read.

    Args:
        files: the video, readable at any position, and its sound if that is a file of its own.
            Exceptions of their `read` are raised.
        section: written as MP4.
        start_s: seconds from the video's first frame.
        end_s: seconds from the video's first frame.
        with_sound: whether sound is copied, from a second before the segment, as audio decoders
            need some packets to settle.

    Returns:
        Time of the section's first frame, in seconds from the video's first frame.

    Raises:
        MediaError: the video is damaged, or (reason no-formats) no exact section of it is possible;
            the whole video may still be usable.
        OSError: the disk is full.
    """
    with ExitStack() as stack, _section_errors(section):
        inputs: list[Any] = [
            stack.enter_context(av.open(file, metadata_errors="ignore", options=PROBE_OPTIONS))
            for file in files
        ]
        for container in inputs:
            if _SEEKABLE.isdisjoint(container.format.name.split(",")):
                raise _no_section(section, f"the file format {container.format.name} has no index")
        color_properties, zero_s = read_first_frame(inputs[0], section)
        picture = choose_video(inputs[0])
        heard = choose_sound(inputs[-1]) if with_sound else None
        sound = () if heard is None else (heard,)
        window = (zero_s + start_s, zero_s + end_s)
        packets = _section_packets(inputs, (picture, *sound), window, section)
        begin = next(packet for packet in packets if packet.stream is picture)
        begin_s = begin.pts * begin.time_base
        section_s = _write_packets(packets, (picture, *sound), section)
        with av.open(str(section)) as written:
            copied_colors, first_s = read_first_frame(written, section)
        if copied_colors != color_properties:
            raise _no_section(
                section, "it cannot keep the colours or the shape that the container gives"
            )
        first_frame_s = Fraction(first_s - section_s + begin_s - zero_s)
        # Containers may mark frames as keyframes from which no decoder can begin.
        if first_frame_s > start_s or not _begins_with_keyframe(section):
            raise _no_section(section, "decoding cannot begin at the keyframe before the segment")
        return first_frame_s


def _begins_with_keyframe(section: Path) -> bool:
    with av.open(str(section)) as container:
        return next(container.decode(video=0)).key_frame


def _section_packets(
    inputs: Sequence[Any], streams: Sequence[Any], window: tuple[Fraction, Fraction], path: Path
) -> list[Any]:
    """The packets of a window; those of `streams[0]`, the video, start with a keyframe."""
    start_s, end_s = window
    first_s = streams[0].start_time * streams[0].time_base if streams[0].start_time else 0
    for before_s in (SEEK_MARGIN_S,) if len(streams) > 1 else (0, SEEK_MARGIN_S):
        since_s = max(start_s - before_s, Fraction(first_s))
        own = streams if len(inputs) == 1 else streams[:1]
        packets = list(_window(inputs[0], own, since_s, end_s, path))
        begin = next((packet for packet in packets if packet.stream is streams[0]), None)
        if begin and begin.is_keyframe and begin.pts * begin.time_base <= start_s:
            break
    else:
        raise _no_section(path, "no keyframe was found before the segment")
    if len(inputs) > 1 and len(streams) > 1:
        # In one file both would start at zero, so keep the difference of their start times.
        later_s = Fraction(inputs[1].start_time - inputs[0].start_time, av.time_base)
        theirs = list(_window(inputs[1], streams[1:], since_s + later_s, end_s + later_s, path))
        for packet in theirs:
            ticks = round(later_s / packet.time_base)
            packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
        packets += theirs
    return packets


def _no_section(path: Path, why: str) -> MediaError:
    """The error where the video may be good, but only all of it can be used."""
    detail = f"no exact section is possible: {why}; the whole video may do"
    return MediaError(path, detail, reason=Reason.NO_FORMATS)


@contextmanager
def _section_errors(section: Path) -> Iterator[None]:
    """In this block FFmpeg's errors become MediaErrors, except those of a full disk."""
    try:
        yield
    except av.FFmpegError as error:
        if error.errno is not None and error.errno in DISK_ERRNOS:
            raise OSError(error.errno, os.strerror(error.errno), str(section)) from error
        raise MediaError(section, f"no section can be copied: {error.strerror}") from error


def read_first_frame(container: Any, path: Path) -> tuple[tuple[Any, ...], Fraction]:
    """Display properties of the first frame, which a container may change; its time in seconds."""
    stream = choose_video(container)
    if stream is None or stream.codec_context is None:
        raise MediaError(path, "holds no video that can be decoded")
    stream.codec_context.thread_count = 1
    first = next(container.decode(stream), None)
    if first is None or first.pts is None:
        raise MediaError(path, "holds no frame with a time")
    colors = (first.color_range, first.colorspace, first.color_primaries, first.color_trc)
    shape = (first.width, first.height, first.rotation, stream.sample_aspect_ratio)
    return (*colors, *shape, first.format.name), first.pts * stream.time_base


def _require_plain(packet: Any, path: Path) -> None:
    """Raise a MediaError for a packet of which a copy would show something else."""
    if packet.is_corrupt:
        raise MediaError(path, "holds a frame that is cut off")
    if packet.is_discard and packet.stream.type == "video":  # of sound, what fills its first packet
        raise _no_section(path, "an edit list hides frames there")
    if packet.pts is None or packet.dts is None:
        raise _no_section(path, "the file does not store each frame's time")


def _window(
    container: Any, streams: Sequence[Any], since_s: Fraction, until_s: Fraction, path: Path
) -> Iterator[Any]:
    """Yield packets from the last keyframe at or before `since_s` to the first from `until_s` on.

    Both are decoding times: a frame is decoded before it is shown.
    """
    container.seek(math.floor(since_s / streams[0].time_base), stream=streams[0])
    unfinished = {stream.index for stream in streams}
    ends_s = since_s
    for packet in container.demux(*streams):
        if packet.size == 0:  # the end of the file
            if ends_s < until_s and streams[0].type == "video":
                raise _no_section(path, "the video ends within the segment")
            return
        _require_plain(packet, path)
        if packet.stream is streams[0]:
            # WebM does not store how long the last frame is shown.
            lasts = 0 if "webm" in container.format.name else packet.duration or 0
            ends_s = max(ends_s, (packet.pts + lasts) * packet.time_base)
        time_s = packet.dts * packet.time_base
        if packet.stream_index in unfinished:
            yield packet
            if time_s >= until_s:
                unfinished.remove(packet.stream_index)
        if not unfinished or time_s > until_s + SEEK_MARGIN_S:  # sound may end earlier
            return


def _write_packets(packets: Iterable[Any], streams: Sequence[Any], path: Path) -> Fraction:
    """Write packets unchanged; return the new time of the first video packet, in seconds."""
    ticks_s = streams[0].time_base
    # The start of each track is stored in ticks of the movie, so these must fit all tracks.
    movie = math.lcm(*(stream.time_base.denominator for stream in streams))
    exact = {"movie_timescale": str(min(movie, 2**31 - 1)), "fflags": "bitexact"}
    with av.open(str(path), "w", format="mp4", options=exact) as container:
        for stream in streams:
            if stream.codec_context.name not in container.supported_codecs:
                raise _no_section(path, f"it cannot hold {stream.codec_context.name}")
        copies = [container.add_stream_from_template(stream, opaque=True) for stream in streams]
        copies[0].codec_context.sample_aspect_ratio = streams[0].sample_aspect_ratio or 0
        own = dict(zip((id(stream) for stream in streams), copies, strict=True))
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            packet.stream = own[id(packet.stream)]
            container.mux(packet)
    with av.open(str(path)) as container:
        first = next(container.demux(video=0))
        if first.pts is None or (ticks_s / first.time_base).denominator != 1:
            raise _no_section(path, f"it has no exact ticks of {ticks_s} s")
        return Fraction(first.pts * first.time_base)
