"""When the frames of a video are shown, as its packets say, and whether a seek in it is exact.

Only reading a video from its beginning is always right: demuxers guess times that a file does not
store, and files that were joined have each time twice. Here that is found out without decoding.
"""

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av

from kinetics_tools.core.errors import MediaError
from kinetics_tools.media.decode import Video, open_video

# File formats that store the time of each frame. In others, such as AVI, FFmpeg computes it from
# the times of decoding, and after a seek the result may be another one.
TIMED_CONTAINERS = frozenset({"mov", "matroska", "mpegts"})
_MAX_STEP_S = 10  # ffmpeg takes a longer step for the joint of two files, and closes it
_SEPARATE_HIDDEN = frozenset({"vp8"})  # codecs with packets of their own for frames never shown


@dataclass(frozen=True, slots=True)
class Timeline:
    """The frames of a video up to some time.

    Attributes:
        times_s: of the frames, in order, in seconds from the first frame's.
        end_s: when the last of them ends.
        packets: time in ticks, as it is stored, and position in the file, of each packet that was
            read; empty if the times are not those of packets.
    """

    times_s: tuple[Fraction, ...]
    end_s: Fraction
    packets: frozenset[tuple[int, int | None]] = frozenset()

    def seen_at(self, time_s: Fraction) -> int:
        """The number of the frame that is seen at a time: the last one at or before it."""
        return bisect_right(self.times_s, time_s) - 1


def read_timeline(path: Path, facts: Video, until_s: Fraction | None = None) -> Timeline | None:
    """Read a video's packets, from the first one to the first that is shown after `until_s`.

    Args:
        path: the video.
        facts: what `probe` says of it.
        until_s: in seconds from the first frame; None for all of the video.

    Returns:
        None where packets do not tell: the format does not store each frame's time, the times are
        not those of one recording, or they cannot be read.
    """
    if facts.codec in _SEPARATE_HIDDEN or TIMED_CONTAINERS.isdisjoint(facts.container.split(",")):
        return None
    try:
        found = _read_packets(path, facts, until_s)
    except MediaError:
        return None
    if found is None or facts.first_tick not in found or found[facts.first_tick].is_hidden:
        return None
    shown = sorted(time for time, packet in found.items() if not packet.is_hidden)
    times_s = tuple((time - facts.first_tick) * facts.time_base_s for time in shown)
    packets = frozenset((time, packet.position) for time, packet in found.items())
    lasts = found[shown[-1]].lasts
    return Timeline(times_s, times_s[-1] + lasts * facts.time_base_s, packets)


class _Packet(NamedTuple):
    """A frame as it is stored: its duration in ticks, its position in the file."""

    lasts: int
    position: int | None
    is_hidden: bool  # by an edit list


def _read_packets(path: Path, facts: Video, until_s: Fraction | None) -> dict[int, _Packet] | None:
    """Each packet by its time in ticks; None if these are not of one recording."""
    until = None if until_s is None else until_s / facts.time_base_s + facts.first_tick
    found: dict[int, _Packet] = {}
    decoded_at = None
    with open_video(path, strict=False) as (container, stream):
        for packet in container.demux(stream):
            if packet.size == 0:  # the end of the file, or a frame that is shown for longer
                continue
            if packet.pts is None or packet.pts in found:
                return None
            if packet.dts is not None:
                step = 0 if decoded_at is None else packet.dts - decoded_at
                if packet.dts > packet.pts or not 0 <= step * facts.time_base_s <= _MAX_STEP_S:
                    return None
                decoded_at = packet.dts
            is_hidden = packet.is_discard or packet.pts < facts.first_tick
            found[packet.pts] = _Packet(packet.duration or 0, packet.pos, is_hidden)
            # A packet is decoded before it is shown: all later ones are shown later than this.
            if until is not None and decoded_at is not None and decoded_at > until:
                break
    return found


def is_exact_seek(
    path: Path, facts: Video, timeline: Timeline, *, to_s: Fraction, start_s: Fraction
) -> bool:
    """Whether decoding after a seek to `to_s` gives the frames shown from `start_s` on.

    Args:
        path: the video.
        facts: what `probe` says of it.
        timeline: its frames up to `start_s`, at least.
        to_s: where the seek goes, in the file's own time.
        start_s: in seconds from the first frame.
    """
    try:
        with open_video(path, strict=False) as (container, stream):
            container.seek(round(to_s * av.time_base))
            packet, frame = _first_after_seek(container, stream)
    except MediaError:
        return False
    if frame is None or (packet.pts, packet.pos) not in timeline.packets:
        return False  # it is in another part of a joined file, or past `start_s`
    # A frame that is no keyframe lacks those that it was predicted from.
    at_s = ((frame.pts or 0) - facts.first_tick) * facts.time_base_s
    return bool(frame.key_frame) and at_s <= start_s


def _first_after_seek(container: Any, stream: Any) -> tuple[Any, Any]:
    """The next packet, and the first frame that decoding from there gives, or None."""
    first = None
    for packet in container.demux(stream):
        first = first or packet
        for frame in packet.decode():
            return first, frame
    return first, None
