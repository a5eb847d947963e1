"""The videos in a tar that comes over a wire: read once, in order, whatever its maker meant by it.

Of a member only the last part of its name counts, and only its bytes are used: no path of an
archive reaches the disk. Links, folders, devices, sparse files and AppleDouble files (`._*`) are
passed over. Nothing is read into memory at the archive's word.
"""

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from kinetics_tools.core.errors import Reason, SourceError
from kinetics_tools.core.files import publish
from kinetics_tools.core.keys import VIDEO_SUFFIXES

MAX_MEMBER_BYTES = 2**30  # a clip of ten seconds has a few million
MAX_MEMBERS = 10**6
MAX_HEADER_BYTES = 2**20
MAX_TAIL_BYTES = 2**24  # behind the archive's end mark: padding
BUFFER_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class TarVideo:
    """A video in a tar. It can be saved until the next one is asked for.

    Attributes:
        stem: the last part of its name, without suffix. Not to be trusted as a name on disk.
        suffix: with its dot, in lower case.
        size: in bytes.
    """

    stem: str
    suffix: str
    size: int
    _content: IO[bytes]

    def save(self, path: Path) -> None:
        """Write its bytes to `path`, which is there only when it is complete.

        Raises:
            SourceError: the archive is broken here, or cannot be read on.
            OSError: the disk is full.
        """
        with publish(path) as scratch, _damage_told(), scratch.open("wb") as file:
            shutil.copyfileobj(self._content, file, BUFFER_BYTES)


def videos(stream: io.RawIOBase) -> Iterator[TarVideo]:
    """Yield the videos of a tar, plain or compressed, which its first bytes say.

    An archive that ends before its end mark, or whose checksum is wrong, is broken: what came
    before that was yielded.

    Raises:
        SourceError: it is broken (damaged), or cannot be read on.
    """
    with _damage_told():
        file = _Forward(_decompressed(io.BufferedReader(stream, BUFFER_BYTES)))
        with tarfile.TarFile(fileobj=cast(IO[bytes], file), mode="r") as archive:
            for info in _members(archive):
                stem, dot, suffix = info.name.rpartition("/")[2].rpartition(".")
                suffix = dot + suffix.lower()
                is_file = info.isreg() and not info.issparse()
                if not is_file or suffix not in VIDEO_SUFFIXES or stem.startswith("._"):
                    continue
                content = archive.extractfile(info)
                assert content is not None  # it is a file
                yield TarVideo(stem, suffix, info.size, content)
        file.finish()


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for _ in range(MAX_MEMBERS):
        info = archive.next()
        if info is None:
            return
        cast(Any, archive).members.clear()  # it would keep them all
        if info.size > MAX_MEMBER_BYTES:
            raise tarfile.ReadError(f"a member of {info.size} bytes")
        yield info
    raise tarfile.ReadError(f"more than {MAX_MEMBERS} members")


class _Forward:
    """What tarfile needs of a file, on one that can only be read on.

    tarfile's own streams do not check a compressed file's checksum, and it takes a header that it
    cannot read for the archive's end: `finish` tells such an end from the true one.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._position = 0
        self._latest = b""

    def read(self, size: int) -> bytes:
        """Read `size` bytes, fewer only at the end."""
        if size > MAX_HEADER_BYTES:  # members are read in pieces
            raise tarfile.ReadError(f"a header of {size} bytes")
        self._latest = self._file.read(size)
        self._position += len(self._latest)
        return self._latest

    def tell(self) -> int:
        """How many bytes were read."""
        return self._position

    def seek(self, position: int) -> None:
        """Read on to `position`, or to the end where that comes first."""
        if position < self._position:
            raise tarfile.ReadError("a member that begins before its header")
        while self._position < position:
            skipped = len(self._file.read(min(position - self._position, BUFFER_BYTES)))
            if not skipped:
                return
            self._position += skipped

    def finish(self) -> None:
        """Read the rest, in which a compressed file has its checksum.

        Raises:
            tarfile.ReadError: what was read last is not the end mark of a tar.
        """
        if self._latest != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end mark")
        for _ in range(0, MAX_TAIL_BYTES, BUFFER_BYTES):
            if not self._file.read(BUFFER_BYTES):
                return


_COMPRESSIONS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\0", lzma.open),
)


def _decompressed(file: io.BufferedReader) -> IO[bytes]:
    """The tar in a file whose name may say anything: some `.tar.gz` of CVDF are plain tars."""
    start = file.peek(6)
    for magic, opener in _COMPRESSIONS:
        if start.startswith(magic):
            return cast(IO[bytes], opener(file))
    return file


@contextmanager
def _damage_told() -> Iterator[None]:
    """In this block a broken archive is a SourceError."""
    try:
        yield
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError) as error:
        raise SourceError(Reason.DAMAGED, f"broken archive: {error}") from error
    except OSError as error:
        if error.errno is not None:  # the disk's; gzip's and bz2's own have no number
            raise
        raise SourceError(Reason.DAMAGED, f"broken archive: {error}") from error
