"""Text files that users write, on any system: lists, labels, keys, cookies."""

import codecs
from pathlib import Path

from kinetics_tools.core.errors import KineticsError

_MARK = "\ufeff"  # a tool may add one to one that is there
_WIDE_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


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
    try:
        return data.decode("utf-8", errors).lstrip(_MARK)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise raises(f"{where}, line {line}, is not UTF-8; save the file as UTF-8") from error


def read_text(path: Path, *, raises: type[KineticsError] = KineticsError) -> str:
    """The text of a file as `decode_text` takes it.

    Raises:
        KineticsError: it cannot be read, or has another encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise raises(f"{path} cannot be read: {error.strerror}") from error
    return decode_text(data, str(path), raises=raises)
