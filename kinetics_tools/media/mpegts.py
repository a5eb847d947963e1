"""MPEG-TS files of which each segment counts its packets anew, as where an HLS stream was joined.

A demuxer takes such a jump for lost packets and calls the frame before it corrupt, though nothing
is missing. It must be listened to in all other cases: some decoders, such as that of H.265, do not
notice that a piece of a frame is lost.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kinetics_tools.core.files import name_in_errors

_PACKET_BYTES = 188
_HEADER_BYTES = 4
_LEADS = (0, 4)  # bytes before each packet: none, or a time as in the files of cameras (.m2ts)
_SYNC = 0x47
_PROGRAM_TABLE = 0  # the number of the track that lists the programs
_COUNTERS = 16

Bits = npt.NDArray[Any]


def renumber(path: Path, copy: Path) -> bool:
    """Write the file with packets that are counted through, if in it some are counted anew.

    A counter may only begin anew with a frame that is the first after a program table whose own
    counter jumps, as at the start of a segment. Any other jump stays: packets are lost there.

    Args:
        path: an MPEG-TS file.
        copy: the new file.

    Returns:
        Whether `copy` was written. It is not if the counters are right, or the file is not made of
        whole packets.

    Raises:
        OSError: the disk is full.
    """
    content = np.memmap(path, np.uint8, "r")
    packets = next((p for p in map(partial(_packets, content), _LEADS) if p is not None), None)
    if packets is None:
        return False
    headers = packets[:, :_HEADER_BYTES].copy()
    pids: Bits = (headers[:, 1].astype(np.uint16) & 0x1F) << 8 | headers[:, 2]
    (tables,) = np.nonzero(pids == _PROGRAM_TABLE)
    counters = headers[tables, 3].astype(np.int64) & 0x0F
    starts = tables[1:][np.diff(counters) % _COUNTERS != 1]
    for pid in np.unique(pids):
        (own,) = np.nonzero(pids == pid)
        segments = np.searchsorted(starts, own, side="right")
        headers[own, 3] = (headers[own, 3] & 0xF0) | _counted_through(headers[own], segments)
    changed = headers[:, 3] != packets[:, 3]
    if not changed.any():
        return False
    with name_in_errors(copy):
        shutil.copyfile(path, copy)
    lead = packets.strides[0] - _PACKET_BYTES
    copied = _packets(np.memmap(copy, np.uint8, "r+"), lead)
    assert copied is not None
    copied[changed, 3] = headers[changed, 3]
    return True


def _packets(content: Bits, lead: int) -> Bits | None:
    """The packets, each with `lead` bytes before it; None if these are none."""
    size = lead + _PACKET_BYTES
    packets = content[: len(content) // size * size].reshape(-1, size)[:, lead:]
    return packets if len(packets) and (packets[:, 0] == _SYNC).all() else None


def _counted_through(headers: Bits, segments: Bits) -> Bits:
    """The counters of one track's packets, without the jumps with which a segment begins.

    Args:
        headers: of the packets.
        segments: the number of the segment of each.
    """
    counters = headers[:, 3] & 0x0F
    has_payload = headers[:, 3] & 0x10 != 0
    begins = headers[:, 1] & 0x40 != 0
    # Packets without payload are not counted, and belong to the next one that has some.
    (full,) = np.nonzero(has_payload)
    following = np.searchsorted(full, np.arange(len(headers)))
    next_begins = np.append(begins[full], True)[following]
    jumps = np.zeros(len(headers), np.int64)
    jumps[1:] = counters[1:].astype(np.int64) - counters[:-1] - has_payload[1:]
    jumps[~next_begins] = 0
    jumps[1:][segments[1:] == segments[:-1]] = 0
    return ((counters - np.cumsum(jumps)) % _COUNTERS).astype(np.uint8)
