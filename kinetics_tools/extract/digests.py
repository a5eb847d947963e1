"""SHA-256 of clips, kept in OUT: a file that did not change is not read again at the next start."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Final

from kinetics_tools.core import schema, system
from kinetics_tools.core.errors import OutError
from kinetics_tools.core.files import file_digest, read_json, write_text

logger = logging.getLogger(__name__)
FILE: Final = ".digests.json"
SETTLED_NS: Final = 2 * 10**9  # a file may change twice within a tick of its disk's clock
CHUNK: Final = 32  # files that a thread looks at before it takes others
# Size, times of the last change of bytes and of anything, inode, digest.
Entry = tuple[int, int, int, int, schema.Digest]


class DigestStore:
    """Digests of files by name, as they were when a file was read last.

    A file is read again where its size, its times (ns) or its inode are others. One that changed in
    the last two seconds is not kept. Several tasks may write the same store: the last one's stands,
    and what it lacks is read again.
    """

    def __init__(self, folder: Path | None = None, *, distrust: bool = False) -> None:
        """Read what is kept.

        Args:
            folder: where it is kept; None: nowhere.
            distrust: whether every file is read again.
        """
        self._path = None if folder is None else folder / FILE
        self._entries: dict[str, Entry] = {}
        self._is_changed = False
        if self._path is not None and not distrust:
            self._entries = _read(self._path)

    def find(self, files: Mapping[str, Path]) -> dict[str, str | None]:
        """The digest of each file by its name; None of one that is not there or cannot be read.

        Several are read at once, one for each processor.
        """
        names = iter(files.items())
        chunks = iter(lambda: list(islice(names, CHUNK)), [])
        with ThreadPoolExecutor(system.num_processors()) as pool:
            found = dict(chain.from_iterable(pool.map(self._find_some, chunks)))
        unreadable = {name: why for name, (_, why) in found.items() if why}
        for name, (entry, _) in found.items():
            if entry is not None and self._entries.get(name) != entry:
                self._entries[name] = entry
                self._is_changed = True
        if unreadable:
            name, why = next(iter(unreadable.items()))
            logger.warning(
                "%d clips cannot be read and count as missing, such as %s (%s)",
                *(len(unreadable), files[name], why),
            )
        return {name: entry[-1] if entry else None for name, (entry, _) in found.items()}

    def _find_some(
        self, files: Iterable[tuple[str, Path]]
    ) -> list[tuple[str, tuple[Entry | None, str]]]:
        return [(name, self._find_one(name, path)) for name, path in files]

    def _find_one(self, name: str, path: Path) -> tuple[Entry | None, str]:
        """The entry of a file, or why it has none; neither where there is no file."""
        try:
            if not path.is_file():
                return None, ""
            before, kept = _state(path), self._entries.get(name)
            if kept is not None and kept[:-1] == before:
                return kept, ""
            return (*before, file_digest(path)), ""
        except OSError as error:
            return None, error.strerror or str(error)

    def write(self) -> None:
        """Write what was read since, if a folder was given."""
        if self._path is None or not self._is_changed:
            return
        settled = time.time_ns() - SETTLED_NS
        entries = {name: each for name, each in self._entries.items() if max(each[1:3]) < settled}
        write_text(self._path, json.dumps(entries, sort_keys=True, separators=(",", ":")))
        self._is_changed = False


def _state(path: Path) -> tuple[int, int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _read(path: Path) -> dict[str, Entry]:
    try:
        return schema.parse(read_json(path), dict[str, Entry])
    except FileNotFoundError:
        return {}
    except (OSError, OutError, ValueError) as error:
        logger.warning("%s is left out, all clips are read again: %s", path, error)
        return {}
