"""Published lists of clips: which of our clips stand behind a number of somebody else.

Their formats are those of `kinetics_bench.data.list_lines`; `*` and `?` in a key are allowed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import urlsplit

from kinetics_bench.data import list_lines
from kinetics_bench.data.splits import keys_matching
from kinetics_tools.core import http_client
from kinetics_tools.core.errors import EvaluationError, SourceError
from kinetics_tools.core.keys import candidate_keys, source_video
from kinetics_tools.core.store import is_address
from kinetics_tools.core.text import decode_text, read_text
from kinetics_tools.dataset.manifest import parse_manifest

MAX_BYTES: Final = 2**26  # of a list that is fetched; Kinetics-700 with paths has half of it
_HASHED: Final = re.compile(".*-[0-9a-f]{8}")  # keys of files whose name was changed


@dataclass(frozen=True, slots=True)
class KeyList:
    """A list of clips.

    Attributes:
        name: its path or address.
        entries: keys, patterns of keys, YouTube ids, or paths of videos; each once, in the list's
            order.
    """

    name: str
    entries: tuple[str, ...]

    def find(self, keys: Collection[str]) -> dict[str, frozenset[str]]:
        """Each entry -> those of `keys` that it names: one, none, or all clips of a video."""
        clips_of = defaultdict(set)
        for key in keys:
            clips_of[source_video(key)].add(key)
        known = frozenset(keys)
        with_hashes = any(map(_HASHED.fullmatch, known))
        return {entry: _named(entry, known, clips_of, with_hashes) for entry in self.entries}


def _named(
    entry: str, keys: frozenset[str], clips_of: dict[str, set[str]], with_hashes: bool
) -> frozenset[str]:
    path = PurePosixPath(entry)
    stem = list_lines.as_key(path.name if entry in keys else path.stem)
    if stem in keys:
        return frozenset({stem})
    if stem in clips_of:
        return frozenset(clips_of[stem])
    found = filter(keys.__contains__, candidate_keys(path) if with_hashes else ())
    return frozenset([*found][:1]) or frozenset(keys_matching(entry, keys))


def read_key_list(place: str) -> KeyList:
    """Read a list from a path or an http address.

    Raises:
        EvaluationError: it cannot be read or fetched, or names nothing.
        ManifestError: it is a list of Kinetics with bad rows.
    """
    if not is_address(place):
        return parse_key_list(read_text(Path(place), raises=EvaluationError), place)
    name = _without_secrets(place)
    data = _fetched(place, name)
    return parse_key_list(decode_text(data, name, raises=EvaluationError), name)


def _fetched(address: str, name: str) -> bytes:
    data = bytearray()
    try:
        with http_client.open_stream(address) as stream:
            while piece := stream.read(http_client.CHUNK_BYTES):
                data += piece
                if len(data) > MAX_BYTES:
                    raise EvaluationError(f"{name} has more than {MAX_BYTES} bytes: it is no list")
    except SourceError as error:
        raise EvaluationError(f"the list cannot be fetched: {error.detail}") from error
    return bytes(data)


def _without_secrets(address: str) -> str:
    """An address without a password or a token, which results would show."""
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise EvaluationError(f"{address[:200]!r} is no address: {error}") from error
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def parse_key_list(text: str, name: str) -> KeyList:
    """Read a list from its text; `name` names it in errors.

    Raises:
        EvaluationError: it names nothing, or a line is too long.
        ManifestError: it is a list of Kinetics with bad rows.
    """
    if list_lines.is_manifest(text):
        manifest = parse_manifest(text.encode(), name, split="listed")
        return KeyList(name, tuple(segment.key for segment in manifest.segments))
    entries = list_lines.entries(text, name)
    if not entries:
        raise EvaluationError(f"{name} names no clip")
    return KeyList(name, entries)
