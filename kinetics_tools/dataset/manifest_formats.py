"""The formats of Kinetics' lists: text in, rows with one set of column names out.

A list is a CSV with a header, or the JSON of the official archives. Publishers of lists use
different column names; `ALIASES` has the known ones. Values stay text.

A row of a CSV is one line. CSV allows line ends in quotes, but no list needs them, and one stray
quote would make one row of all lines up to the next quote.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kinetics_tools.core.errors import ManifestError

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
REQUIRED = frozenset(COLUMNS) - {"label"}  # test lists may have no labels
ALIASES: Mapping[str, str] = {
    "video": "youtube_id",  # MediaPipe's own lists
    "label_name": "label",
    "start": "time_start",
    "end": "time_end",
    "video-id": "youtube_id",  # ActivityNet's crawler renames the columns to these
    "label-name": "label",
    "start-time": "time_start",
    "end-time": "time_end",
}
# Quotes are around a whole field. The csv module takes others for a part of the text.
_QUOTED_WHOLE = re.compile(r'(?:[ \t]*"(?:[^"]|"")*"|[^",]*)(?:,(?:[ \t]*"(?:[^"]|"")*"|[^",]*))*')
_NOT_UTF8 = re.compile(r"[\udc80-\udcff]")

Row = Mapping[str, str]  # values by the names in COLUMNS; "label" may be absent


def rows(text: str, where: str, split: str | None) -> Iterator[tuple[int, Row | str]]:
    """Yield each row of a list, or what is wrong with it, with its line number.

    Args:
        text: a CSV, or a JSON object by video. Bytes that are not UTF-8 are lone surrogates, as
            the error handler `surrogateescape` makes them.
        where: name of the list in messages.
        split: of all rows, where the list has no such column.

    Yields:
        the number of the row's line (in JSON, of the entry, from 1), and the row.

    Raises:
        ManifestError: the list as a whole cannot be read: its header lacks a column or has one
            twice, or it is not JSON.
    """
    if text.lstrip().startswith("{"):
        return _json_rows(text, where)
    return _csv_rows(text, where, split)


def _csv_rows(text: str, where: str, split: str | None) -> Iterator[tuple[int, Row | str]]:
    """Read each line by itself: a row that is damaged in any way leaves all others as they are."""
    # Ends lines at CR LF, LF and CR, as csv does.
    lines = enumerate(io.StringIO(text, newline=""), start=1)
    at, first = next(((number, line) for number, line in lines if line.strip()), (1, ""))
    header = _fields_of(first)
    if _NOT_UTF8.search(first):
        raise ManifestError(f"{where} is not UTF-8 text")
    if isinstance(header, str):
        raise ManifestError(f"{where}, line {at}, the header: {header}")
    names = _columns(header, where, split)
    given = {} if "split" in names or split is None else {"split": split}
    for number, line in lines:
        row = _fields_of(line)
        if isinstance(row, str):
            yield number, row
        elif len(row) == len(names):
            yield number, dict(zip(names, row, strict=True)) | given
        elif any(row):
            yield number, f"{len(row)} fields where the header has {len(names)}"


def _fields_of(line: str) -> list[str] | str:
    """The fields of a line of a CSV, without spaces around them; or what is wrong with it."""
    line = line.rstrip("\r\n")
    try:
        row = next(csv.reader([line], strict=True, skipinitialspace=True), ())
    except csv.Error as error:
        if "unexpected end" in str(error):
            return "not CSV: a quote opens here and does not close on this line"
        return f"not CSV: {error}"
    if '"' in line and not _QUOTED_WHOLE.fullmatch(line):
        return "not CSV: a quote inside a field that does not begin with one"
    return [field.strip(" \t") for field in row]


def _columns(header: Sequence[str], where: str, split: str | None) -> list[str]:
    """The columns of a header, by our names."""
    names = [ALIASES.get(word, word) for word in header]
    shown = ",".join(header)[:200]
    twice = sorted(name for name, count in Counter(names).items() if count > 1 and name in COLUMNS)
    if twice:
        raise ManifestError(f"{where}: two columns for {twice[0]}; its header is {shown!r}")
    missing = sorted(REQUIRED - set(names) - ({"split"} if split is not None else set()))
    if missing == ["split"]:
        raise ManifestError(
            f"{where}: no column split; name the split of its rows, such as --split val"
        )
    if missing:
        raise ManifestError(
            f"{where}: no column {', '.join(missing)}; its header is {shown!r}, and "
            f"{','.join(COLUMNS)} is needed (label may be absent)"
        )
    return names


def _json_rows(text: str, where: str) -> Iterator[tuple[int, Row | str]]:
    """The official JSON: {youtube_id: {"annotations": {"label", "segment"}, "subset"}}."""
    try:
        # Pairs, not a dict, which would drop a video that is listed twice. Numbers stay text.
        entries = json.loads(
            text, object_pairs_hook=_Pairs, parse_int=str, parse_float=str, parse_constant=str
        )
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where} is not JSON: {error}") from error
    for number, (youtube_id, entry) in enumerate(entries, start=1):
        facts = _fields(entry)
        annotations = _fields(facts.get("annotations"))
        match annotations.get("segment"), facts.get("subset"), annotations.get("label") or "":
            case [str(start), str(end)], str(subset), str(label):
                values = (label, youtube_id, start, end, subset)
                yield number, dict(zip(COLUMNS, values, strict=True))
            case _:
                yield number, f"entry {youtube_id[:80]!r} has no annotations.segment or no subset"


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its names, also repeated ones."""


def _fields(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, _Pairs) else {}
