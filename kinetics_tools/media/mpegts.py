"""MPEG-TS files of which each segment starts to count its packets, as where HLS was joined.

A demuxer takes such a jump for lost packets and calls the frame before it corrupt, though nothing
is missing. It must be listened to in all other cases: some decoders, such as that of H.265, do not
notice that a piece of a frame is lost.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kinetics_tools.core.files import copy_file

_PACKET_BYTES = 188
_SIZES = (188, 192, 204)  # a camera's file (.m2ts) has a time before each packet, DVB a check after
_SYNC = 0x47
_SURE = 5  # so many packets in a row are no accident
_MOST_BREAKS = 10_000  # in the row of packets
_WINDOW_PACKETS = 4096
_PROGRAM_TABLE = 0  # the number of the track that lists the programs
_NULL_PACKETS = 0x1FFF  # the number of packets that fill gaps; their counters mean nothing
_COUNTERS = 16

Bits = npt.NDArray[Any]


def renumber(path: Path, copy: Path) -> bool:
    """Write the file with packets that are counted through, if a segment starts to count again.

    A counter may only start again with a frame from which decoding may begin, the first after a
    program table whose own counter jumps, as at the start of a segment. Any other jump stays:
    packets are lost there. What lies between packets, such as a tag, stays too.

    Args:
        path: an MPEG-TS file.
        copy: the new file.

    Returns:
        Whether `copy` was written. It is not if no counter is to be changed.

    Raises:
        OSError: the disk is full.
    """
    content = np.memmap(path, np.uint8, "r")
    at = _packet_positions(content)
    flags, low, before, length, about = (content[at + offset] for offset in range(1, 6))
    pids: Bits = (flags.astype(np.uint16) & 0x1F) << 8 | low
    starts = _segment_starts(pids, before)
    is_entry = (before & 0x20 != 0) & (length > 0) & (about & 0x40 != 0)  # decoding may begin there
    after = before.copy()
    for pid in np.unique(pids) if starts.size else ():
        (own,) = np.nonzero(pids == pid)
        segments = np.searchsorted(starts, own, side="right")
        begins = flags[own] & 0x40 != 0
        if is_entry[own].any():
            begins &= is_entry[own]
        counters = _counted_through(before[own], begins, segments)
        after[own] = (before[own] & 0xF0) | counters
    changed = after != before
    if not changed.any():
        return False
    copy_file(path, copy)
    np.memmap(copy, np.uint8, "r+")[at[changed] + 3] = after[changed]
    return True


def _segment_starts(pids: Bits, fourth: Bits) -> Bits:
    """The numbers of the packets with which segments after the first may begin.

    Args:
        pids: the track of each packet.
        fourth: the byte of each packet that holds its counter.
    """
    (tables,) = np.nonzero(pids == _PROGRAM_TABLE)
    counters: Bits = fourth[tables] & 0x0F
    steps: Bits = np.diff(counters.astype(np.int64))
    are_starts = steps % _COUNTERS != 1
    # Each sixteenth table may go on by accident where all tracks count from zero again.
    for number in np.nonzero(~are_starts & (counters[1:] == 0))[0]:
        until = tables[number + 2] if number + 2 < len(tables) else len(pids)
        near = slice(tables[number + 1], until)
        are_full = (fourth[near] & 0x10 != 0) & (pids[near] != _NULL_PACKETS)
        _, firsts = np.unique(pids[near][are_full], return_index=True)
        are_starts[number] = not (fourth[near][are_full][firsts] & 0x0F).any()
    starts: Bits = tables[1:][are_starts]
    return starts


def _packet_positions(content: Bits) -> Bits:
    """Where packets begin; between two rows of them there may be anything."""
    rows: list[Bits] = []
    position = 0
    while len(rows) < _MOST_BREAKS:
        found = _next_row(content, position)
        if found is None:
            break
        start, size = found
        number = _row_length(content, start, size)
        rows.append(start + size * np.arange(number))
        position = start + size * number
    return np.concatenate(rows) if rows else np.zeros(0, np.int64)


def _row_length(content: Bits, start: int, size: int) -> int:
    """How many packets of a size follow each other from a position on."""
    most = (len(content) - start - _PACKET_BYTES) // size + 1
    for first in range(0, most, _WINDOW_PACKETS):
        last = min(first + _WINDOW_PACKETS, most)
        is_other = content[start + first * size : start + last * size : size] != _SYNC
        if is_other.any():
            return first + int(np.argmax(is_other))
    return most


def _next_row(content: Bits, position: int) -> tuple[int, int] | None:
    """Where the next row of packets begins, from a position on, and their size; None at the end."""
    window = 64 * 1024
    while position < len(content):
        near = np.asarray(content[position : position + window + _SURE * max(_SIZES)])
        (marks,) = np.nonzero(near[:window] == _SYNC)
        for size in _SIZES:
            rows = marks[marks + (_SURE - 1) * size < len(near)]
            sure = np.all([near[rows + k * size] == _SYNC for k in range(_SURE)], axis=0)
            if sure.any():
                return position + int(rows[np.argmax(sure)]), size
        position += window
    return None


def _counted_through(fourth: Bits, begins: Bits, segments: Bits) -> Bits:
    """The counters of one track's packets, without the jumps with which a segment begins.

    Args:
        fourth: the byte of each packet that holds its counter.
        begins: whether a frame with which a segment may start begins in it.
        segments: the number of its segment.
    """
    counters = fourth & 0x0F
    has_payload = fourth & 0x10 != 0
    # Packets without payload are not counted, and belong to the next one that has some.
    (full,) = np.nonzero(has_payload)
    following = np.searchsorted(full, np.arange(len(fourth)))
    next_begins = np.append(begins[full], True)[following]
    jumps = np.zeros(len(fourth), np.int64)
    jumps[1:] = counters[1:].astype(np.int64) - counters[:-1] - has_payload[1:]
    jumps[~next_begins] = 0
    jumps[1:][segments[1:] == segments[:-1]] = 0
    return ((counters - np.cumsum(jumps)) % _COUNTERS).astype(np.uint8)
