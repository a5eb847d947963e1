"""A cache of data on disk, of limited size, that many processes share.

Data is named by what it holds, so a file is never changed, only made and removed. Whoever writes or
removes holds one lock; readers need none, since a removed file can be read to its end. A scratch
file that is there while the lock is free was left by a killed writer.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kinetics_tools.core.errors import KineticsError
from kinetics_tools.core.files import OTHER_CACHE_DIR, below, file_lock, open_own, publish

logger = logging.getLogger(__name__)

CACHE_BYTES = 50_000_000_000  # unless told otherwise: some 23,000 clips of Kinetics with their flow
_LOCK = ".lock"
_TOTAL = ".total"  # holds the bytes of all files, so that a writer need not look at each
_DATA = re.compile("[0-9a-f]{16,64}-[0-9]+")  # names of data; other files are not ours
_KEPT = 0.9  # of the limit, when files are removed: else every write would have to remove one


class FileCache:
    """Data by name, in a folder. The least recently read is removed where there is too much.

    A cache that cannot be written, as on a full disk, is no error: the log says so once, and
    nothing more is added.

    Attributes:
        folder: of its files. Others in it are left alone.
        max_bytes: of all files together. It holds also while several processes write.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        # One byte that forked processes share: whether one of them could not write.
        self._is_off = mmap.mmap(-1, 1)

    def __reduce__(self) -> tuple[object, ...]:
        return FileCache, (self.folder, self.max_bytes)

    def get(self, name: str, is_whole: Callable[[bytes], bool], *, size: int) -> bytes | None:
        """The data `name`; None if it is not there, or is not whole any more.

        Args:
            name: of the data: DIGEST-SIZE.
            is_whole: whether these bytes are that data.
            size: of the data in bytes; no more is read.
        """
        path = below(self.folder, name)
        try:
            with path.open("rb") as file:
                data = file.read(size + 1)
            if is_whole(data):
                with suppress(OSError):  # another process has just removed it, or it is read-only
                    os.utime(path)  # it was read now
                return data
            logger.warning("%s is damaged, and is fetched again", path)
            path.unlink()
        except FileNotFoundError:  # never made, or removed by another process meanwhile
            return None
        except OSError as error:
            self._turn_off(error)
        return None

    def put(self, name: str, data: bytes) -> None:
        """Keep data that `get` did not find, and remove other data to make room."""
        if self._is_off[0] or len(data) > self.max_bytes * _KEPT:
            return
        try:
            with file_lock(self.folder / _LOCK, OTHER_CACHE_DIR):
                self._write(below(self.folder, name), data)
        except (OSError, KineticsError) as error:
            self._turn_off(error)

    def tidy(self) -> None:
        """Remove what killed processes left, and what is too much, as after a lower limit."""
        try:
            with file_lock(self.folder / _LOCK, OTHER_CACHE_DIR):
                self._write_total(self._make_room(0))
        except (OSError, KineticsError) as error:
            self._turn_off(error)

    def _write(self, path: Path, data: bytes) -> None:
        if path.exists():  # another process was faster
            return
        total = self._read_total()
        if total is None or total + len(data) > self.max_bytes:
            total = self._make_room(len(data))
        # First the total: if this process is killed now, it is too large, and is counted again.
        self._write_total(total + len(data))
        with publish(path) as scratch:
            scratch.write_bytes(data)

    def _read_total(self) -> int | None:
        """What the note says; None if there is none, or its writer was killed."""
        with suppress(FileNotFoundError, ValueError):
            return int((self.folder / _TOTAL).read_text(encoding="ascii"))
        return None

    def _write_total(self, total: int) -> None:
        with open_own(self.folder / _TOTAL, "w") as file:
            file.write(str(total))

    def _make_room(self, num_bytes: int) -> int:
        """Remove scratch files, and the oldest data if `num_bytes` more do not fit.

        Returns:
            the bytes of all data that is left.
        """
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.startswith(".part-") and _DATA.search(entry.name):
                    Path(entry).unlink(missing_ok=True)
                elif _DATA.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):  # damaged, and removed by a reader
                        about = entry.stat(follow_symlinks=False)
                        found.append((about.st_mtime_ns, about.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        if total + num_bytes <= self.max_bytes:
            return total
        for _, size, path in sorted(found):
            if total + num_bytes <= self.max_bytes * _KEPT:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
        return total

    def _turn_off(self, error: Exception) -> None:
        if not self._is_off[0]:
            self._is_off[0] = 1
            said = (error.strerror if isinstance(error, OSError) else None) or error
            logger.warning(
                "the cache %s cannot be used (%s): what is not in it is read without it",
                *(self.folder, said),
            )
