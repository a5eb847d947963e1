"""The part of a video that a segment needs, copied undecoded out of files read over the network."""

import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from kinetics_tools.core.errors import MediaError
from kinetics_tools.media.decode import SEEK_MARGIN_S
from kinetics_tools.media.encode import STORAGE_WORDS

# Enough to know the codecs; more would be fetched for nothing.
PROBE_OPTIONS = {"probesize": "65536", "analyzeduration": "0"}


def copy_section(
    files: Sequence[io.IOBase],
    section: Path,
    *,
    start_s: Fraction,
    end_s: Fraction,
    with_sound: bool,
) -> Fraction:
    """Copy what `cut` needs for the segment `[start_s, end_s)`, undecoded, into the new `section`.

    Cut from the section, at its times less the answer, a clip has the pictures of the one that is
    cut from the whole video, bit for bit. Little else is read of the files: the index, the first
    frame, and from the last keyframe at or before the segment to the first frame after it.

    Args:
        files: the video, readable at any position, and its sound where that is a file of its own.
            What they raise when they are read is raised.
        section: written as MP4.
        start_s: seconds from the video's first frame.
        end_s: seconds from the video's first frame.
        with_sound: whether sound is copied, from a second before the segment: decoders of sound
            take time to settle.

    Returns:
        Time of the section's first frame, in seconds, counted from the video's first frame.

    Raises:
        MediaError: damaged, or a video of which no exact section can be had; all of it may do.
        OSError: the disk is full.
    """
    with ExitStack() as stack, _section_errors(section):
        inputs: list[Any] = [
            stack.enter_context(av.open(file, metadata_errors="ignore", options=PROBE_OPTIONS))
            for file in files
        ]
        color_properties, zero_s = read_first_frame(inputs[0], section)
        picture = inputs[0].streams.video[0]
        sound = inputs[-1].streams.audio[:1] if with_sound else ()
        window = (zero_s + start_s, zero_s + end_s)
        packets = _section_packets(inputs, (picture, *sound), window, section)
        begin = next(packet for packet in packets if packet.stream is picture)
        begin_s = begin.pts * begin.time_base
        section_s = _write_packets(packets, (picture, *sound), section)
        with av.open(str(section)) as written:
            copied_colors, first_s = read_first_frame(written, section)
        if copied_colors != color_properties:
            raise MediaError(section, "a section cannot say what the video's container says")
        return Fraction(first_s - section_s + begin_s - zero_s)


def _section_packets(
    inputs: Sequence[Any], streams: Sequence[Any], window: tuple[Fraction, Fraction], path: Path
) -> list[Any]:
    """The packets of a window: those of `streams[0]`, the pictures, begin with a keyframe."""
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
        raise MediaError(path, "no keyframe was found before the segment")
    if len(inputs) > 1 and len(streams) > 1:
        # Each of the two would begin at its own zero, were they merged into one file.
        later_s = Fraction(inputs[1].start_time - inputs[0].start_time, av.time_base)
        theirs = list(_window(inputs[1], streams[1:], since_s + later_s, end_s + later_s, path))
        for packet in theirs:
            ticks = round(later_s / packet.time_base)
            packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
        packets += theirs
    return packets


@contextmanager
def _section_errors(section: Path) -> Iterator[None]:
    """In this block FFmpeg's errors become MediaErrors, but for those of the disk."""
    try:
        yield
    except av.FFmpegError as error:
        if error.errno is not None and error.errno in STORAGE_WORDS.values():
            raise OSError(error.errno, os.strerror(error.errno), str(section)) from error
        raise MediaError(section, f"no section can be copied: {error.strerror}") from error


def read_first_frame(container: Any, path: Path) -> tuple[tuple[Any, ...], Fraction]:
    """How the first frame is to be shown, which a container may change, and its time in seconds."""
    if not container.streams.video:
        raise MediaError(path, "holds no video")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    first = next(container.decode(stream), None)
    if first is None or first.pts is None:
        raise MediaError(path, "holds no frame with a time")
    colors = (first.color_range, first.colorspace, first.color_primaries, first.color_trc)
    shape = (first.width, first.height, first.rotation, stream.sample_aspect_ratio)
    return (*colors, *shape, first.format.name), first.pts * stream.time_base


def _window(
    container: Any, streams: Sequence[Any], since_s: Fraction, until_s: Fraction, path: Path
) -> Iterator[Any]:
    """Yield packets from the last keyframe at or before `since_s` to the first one from `until_s`.

    The times are those of decoding: a frame that is shown by then has been decoded by then.
    """
    container.seek(math.floor(since_s / streams[0].time_base), stream=streams[0])
    unfinished = {stream.index for stream in streams}
    ends_s = since_s
    for packet in container.demux(*streams):
        if packet.size == 0:  # the end of the file
            if ends_s < until_s and streams[0].type == "video":
                raise MediaError(path, "no section shows how the video ends; all of it would")
            return
        if packet.pts is None or packet.dts is None or packet.is_corrupt:
            raise MediaError(path, "holds a frame that is cut off or has no time")
        if packet.stream is streams[0]:
            # A webm does not say how long its last frame is shown.
            lasts = 0 if "webm" in container.format.name else packet.duration or 0
            ends_s = max(ends_s, (packet.pts + lasts) * packet.time_base)
        time_s = packet.dts * packet.time_base
        if packet.stream_index in unfinished:
            yield packet
            if time_s >= until_s:
                unfinished.remove(packet.stream_index)
        if not unfinished or time_s > until_s + SEEK_MARGIN_S:  # a sound may end before
            return


def _write_packets(packets: Iterable[Any], streams: Sequence[Any], path: Path) -> Fraction:
    """Write packets as they are; the answer is the first picture's new time, in seconds."""
    ticks_s = streams[0].time_base
    # In the ticks of the movie the file says when each track begins: they must suit all tracks.
    movie = math.lcm(*(stream.time_base.denominator for stream in streams))
    exact = {"movie_timescale": str(min(movie, 2**31 - 1)), "fflags": "bitexact"}
    with av.open(str(path), "w", format="mp4", options=exact) as container:
        for stream in streams:
            if stream.codec_context.name not in container.supported_codecs:
                raise MediaError(path, f"a section cannot hold {stream.codec_context.name}")
        copies = [container.add_stream_from_template(stream, opaque=True) for stream in streams]
        copies[0].codec_context.sample_aspect_ratio = streams[0].sample_aspect_ratio or 0
        own = dict(zip((id(stream) for stream in streams), copies, strict=True))
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            packet.stream = own[id(packet.stream)]
            container.mux(packet)
    with av.open(str(path)) as container:
        first = next(container.demux(video=0))
        if first.pts is None or (ticks_s / first.time_base).denominator != 1:
            raise MediaError(path, f"a section has no exact ticks of {ticks_s} s")
        return Fraction(first.pts * first.time_base)
