"""Cookie files: read and checked here, so that yt-dlp never meets a line that it cannot read.

Of such a line it prints the cookie's value, which is as good as a password. No message of this
module holds a value.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path

from kinetics_tools.core.errors import KineticsError
from kinetics_tools.core.text import decode_text, read_bytes

ADVICE = (
    "log in with the browser and export its cookies as a cookies.txt file, in Netscape format with "
    "tabs"
)
BROWSER_ADVICE = "close the browser, or export a cookies.txt file for --cookies"
_HEADER = "# Netscape HTTP Cookie File\n"
_HTTP_ONLY = "#HttpOnly_"
_NUM_COLUMNS = 7  # domain, subdomains, path, secure, expires, name, value
_SWITCHES = ("TRUE", "FALSE")


class CookiesError(KineticsError):
    """A cookie file cannot be used."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"--cookies {self.path} cannot be used ({self.problem}): {ADVICE}"


def read_cookies(path: Path) -> str:
    """The cookies of a file, one per line, in the one form that yt-dlp takes.

    The header may be absent and a byte order mark present, as some exporters write it.

    Args:
        path: of a cookies.txt file in Netscape format. It is not changed.

    Raises:
        CookiesError: no such file, another format, a line that is no cookie, or all have expired.
    """
    rows = list(_rows(path, _text(path)))
    if not rows:
        raise CookiesError(path, "it holds no cookies")
    if all(0 < float(row[4]) <= time.time() for row in rows):
        raise CookiesError(path, "all its cookies have expired")
    return _HEADER + "".join("\t".join(row) + "\n" for row in rows)


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise CookiesError(path, "it is a folder" if path.is_dir() else "it is not a file")
        data = read_bytes(path)
    except OSError as error:
        raise CookiesError(path, f"it cannot be read: {error.strerror}") from error
    try:
        text = decode_text(data, str(path))
    except KineticsError:
        # Not from the error: it holds the file's bytes.
        raise CookiesError(path, "it is not UTF-8 text") from None
    if text.lstrip().startswith(("[", "{")):
        raise CookiesError(path, "it is JSON")
    return text


def _rows(path: Path, text: str) -> Iterator[list[str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        kept = line.rstrip("\r").removeprefix(_HTTP_ONLY)
        if not kept.strip() or kept.startswith("#"):
            continue
        row = _row(kept)
        if row is None:
            spaced = kept.split()
            are_spaces = "\t" not in kept and _is_switch(spaced[1:2])
            problem = "has spaces where tabs belong" if are_spaces else "is not of Netscape format"
            raise CookiesError(path, f"line {number} {problem}")
        yield row


def _row(line: str) -> list[str] | None:
    """The columns of a line; None where it is no cookie."""
    columns = line.split("\t")
    if len(columns) == _NUM_COLUMNS - 1:
        columns.append("")  # an editor has removed the tab before an empty value
    if len(columns) != _NUM_COLUMNS or re.search(r"[\x00-\x08\n-\x1f\x7f]", line):
        return None
    domain, _, path, secure, expires, name, value = columns
    is_time = re.fullmatch(r"(-?[0-9]{1,16}(\.[0-9]+)?)?", expires)
    if not domain.strip(" .") or not _is_switch(columns[1:4:2]) or not is_time or not name + value:
        return None
    subdomains = domain.startswith(".") or columns[1].upper() == "TRUE"
    return [
        f".{domain.lstrip('.')}" if subdomains else domain,
        str(subdomains).upper(),
        path or "/",
        secure.upper(),
        expires if float(expires or 0) > 0 else "0",  # until the browser ends
        name,
        value,
    ]


def _is_switch(words: list[str]) -> bool:
    return bool(words) and all(word.upper() in _SWITCHES for word in words)
