"""The videos in a tar that is read from the network: once, in order, without trust in it.

Only the last part of a member's name and its bytes are used: no path of an archive reaches the
disk. Links, folders, devices, sparse files and AppleDouble files (`._*`) are skipped. No size that
the archive claims decides how much memory is used.
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

MAX_MEMBER_BYTES = 2**30  # a clip of ten seconds has a few MB
MAX_MEMBERS = 10**6
MAX_HEADER_BYTES = 2**20
MAX_TAIL_BYTES = 2**24  # after the archive's end mark: padding
BUFFER_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class TarVideo:
    """A video in a tar. It can be saved until the next one is read.

    Attributes:
        stem: the last part of its name, without suffix. Not safe as a file name.
        suffix: with its dot, in lower case.
        size: in bytes.
    """

    stem: str
    suffix: str
    size: int
    _content: IO[bytes]

    def save(self, path: Path) -> None:
        """Write its bytes to `path`, which exists only when it is complete.

        Raises:
            SourceError: the archive is damaged here, or reading it fails.
            OSError: the disk is full.
        """
        with publish(path) as scratch, _damage_as_source_error(), scratch.open("wb") as file:
            shutil.copyfileobj(self._content, file, BUFFER_BYTES)


def videos(stream: io.RawIOBase) -> Iterator[TarVideo]:
    """Yield the videos of a tar, plain or compressed, as its first bytes say.

    An archive that ends before its end mark, or whose checksum is wrong, is damaged; the videos
    before the damage are yielded.

    Raises:
        SourceError: it is damaged, or reading it fails.
    """
    with _damage_as_source_error():
        file = _Forward(_decompressed(io.BufferedReader(stream, BUFFER_BYTES)))
        with _header_errors():  # it reads the first one
            archive = tarfile.TarFile(fileobj=cast(IO[bytes], file), mode="r")
        with archive:
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
    for number in range(MAX_MEMBERS):
        with _header_errors():
            info = archive.next()
        if info is None:
            if number == 0:  # as where a server sends zeros
                raise tarfile.ReadError("no member")
            return
        cast(Any, archive).members.clear()  # tarfile would keep them all
        if info.size > MAX_MEMBER_BYTES:
            raise tarfile.ReadError(f"a member of {info.size} bytes")
        yield info
    raise tarfile.ReadError(f"more than {MAX_MEMBERS} members")


@contextmanager
def _header_errors() -> Iterator[None]:
    """In this block, absurd numbers, names or chains of headers are errors of the tar.

    tarfile raises more than its own errors for them.
    """
    try:
        yield
    except (ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise tarfile.ReadError(f"a header that cannot be read ({error})"[:200]) from error


class _Forward:
    """A file for tarfile that is read forwards only.

    tarfile's own streams do not check a compressed file's checksum, and tarfile takes a damaged
    header for the archive's end: `finish` tells such an end from the true one.
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
        """The number of bytes read so far."""
        return self._position

    def seek(self, position: int) -> None:
        """Skip to `position`, or to the end if that comes first."""
        if position < self._position:
            raise tarfile.ReadError("a member that begins before its header")
        while self._position < position:
            skipped = len(self._file.read(min(position - self._position, BUFFER_BYTES)))
            if not skipped:
                return
            self._position += skipped

    def finish(self) -> None:
        """Read to the end, where a compressed file has its checksum.

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
    """The tar in a file, whatever its name: some `.tar.gz` of CVDF are plain tars."""
    start = file.peek(6)
    for magic, opener in _COMPRESSIONS:
        if start.startswith(magic):
            return cast(IO[bytes], opener(file))
    return file


@contextmanager
def _damage_as_source_error() -> Iterator[None]:
    """In this block a damaged archive raises a SourceError."""
    try:
        yield
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError) as error:
        raise SourceError(Reason.DAMAGED, f"damaged archive: {error}") from error
    except OSError as error:
        if error.errno is not None:  # the disk's; gzip's and bz2's own have no number
            raise
        raise SourceError(Reason.DAMAGED, f"damaged archive: {error}") from error
