"""Text that comes from outside: files that users write on any system, words of servers."""

import codecs
import errno
import os
import re
import select
import stat
from pathlib import Path

from kinetics_tools.core.errors import KineticsError

MAX_LIST_BYTES = 2**30  # of a list that is read whole; the largest official one has 30 MB
PIPE_WAIT_S = 60.0
_MARKS = re.compile("^\ufeff+", re.MULTILINE)  # files may be joined, and a tool may add a second
_WIDE_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def printable(text: str) -> str:
    """Text for a terminal or a log: control characters and the like as escapes, not line feeds.

    A file name or a server's words may hold codes that colour, hide or change what was printed.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode()
        for each in text
    )


def is_utf8(path: Path) -> bool:
    """Whether a path's bytes are UTF-8, as not all libraries take others."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def decode_text(
    data: bytes,
    where: str,
    *,
    errors: str = "strict",
    raises: type[KineticsError] = KineticsError,
) -> str:
    """The text of a file in UTF-8, without a byte order mark; its line ends stay as they are.

    `str.splitlines` takes the line ends of all systems.

    Args:
        data: all of the file.
        where: its name, in errors.
        errors: as for `bytes.decode`: what to do about bytes that are not UTF-8.
        raises: the class of the errors.

    Raises:
        KineticsError: it has another encoding; the message says what to do.
    """
    for mark, name in _WIDE_MARKS.items():
        if data.startswith(mark):
            raise raises(f"{where} is a file in {name}; save it as UTF-8")
    if _is_wide(data):
        raise raises(f"{where} is a file in UTF-16; save it as UTF-8")
    try:
        return _MARKS.sub("", data.decode("utf-8", errors))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise raises(f"{where}, line {line}, is not UTF-8; save the file as UTF-8") from error


def _is_wide(data: bytes) -> bool:
    """Whether a file of UTF-16 begins here that has no mark: every second byte is zero."""
    start = data[:64]
    return len(start) > 3 and (not any(start[::2]) or not any(start[1::2])) and any(start)


def read_bytes(path: Path) -> bytes:
    """All of a file that a user gives as a list: a manifest, labels, keys, cookies.

    A pipe, as of `<(head list.csv)`, is read to its end.

    Raises:
        OSError: it cannot be read; it is another device; it is larger than MAX_LIST_BYTES (EFBIG);
            or nothing came through a pipe for PIPE_WAIT_S (ETIMEDOUT). It has the path.
    """

    def error(number: int, said: str) -> OSError:
        return OSError(number, said, str(path))

    with open(path, "rb", buffering=0, opener=_open_now) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or file.isatty()):
            raise error(errno.ENODEV, "It is a device, not a file")
        parts: list[bytes] = []
        num_bytes = 0
        poll = select.poll()
        poll.register(file, select.POLLIN | select.POLLHUP)
        while num_bytes <= MAX_LIST_BYTES:
            # A pipe without a writer yet has no event; a file always has one.
            if not poll.poll(PIPE_WAIT_S * 1000):
                raise error(errno.ETIMEDOUT, f"Nothing came through this pipe in {PIPE_WAIT_S:g} s")
            part = file.read(2**20)
            if not part:
                return b"".join(parts)
            parts.append(part)
            num_bytes += len(part)
    raise error(errno.EFBIG, f"It is larger than {MAX_LIST_BYTES} bytes")


def _open_now(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)  # else a pipe waits for a writer, for ever


def read_text(path: Path, *, raises: type[KineticsError] = KineticsError) -> str:
    """The text of a file as `decode_text` takes it.

    Raises:
        KineticsError: it cannot be read, or has another encoding.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise raises(f"{path} cannot be read: {error.strerror}") from error
    return decode_text(data, str(path), raises=raises)
