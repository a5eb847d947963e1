"""The formats of Kinetics' lists: text in, rows with one set of column names out.

A list is a CSV with a header, or the JSON of the official archives. Publishers of lists use
different column names; `ALIASES` has the known ones. Values stay text.
"""

import csv
import io
import json
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

Row = Mapping[str, str]  # values by the names in COLUMNS; "label" may be absent


def rows(text: str, where: str, split: str | None) -> Iterator[tuple[int, Row | str]]:
    """Yield each row of a list, or what is wrong with it, with its line number.

    Args:
        text: a CSV, or a JSON object by video.
        where: name of the list in messages.
        split: of all rows, where the list has no such column.

    Yields:
        the number of the row's last line (in JSON, of the entry, from 1), and the row.

    Raises:
        ManifestError: the list as a whole cannot be read: its header lacks a column or has one
            twice, or it is not JSON.
    """
    if text.lstrip().startswith("{"):
        return _json_rows(text, where)
    return _csv_rows(text, where, split)


def _csv_rows(text: str, where: str, split: str | None) -> Iterator[tuple[int, Row | str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = _next_row(reader)
    names = _columns(header if isinstance(header, list) else [], where, split)
    given = {} if "split" in names or split is None else {"split": split}
    while (row := _next_row(reader)) is not None:
        if isinstance(row, str):
            yield reader.line_num, row
        elif len(row) == len(names):
            yield reader.line_num, dict(zip(names, row, strict=True)) | given
        elif row:
            yield reader.line_num, f"{len(row)} fields where the header has {len(names)}"


def _columns(header: Sequence[str], where: str, split: str | None) -> list[str]:
    """The columns of a header, by our names."""
    words = [word.strip() for word in header]
    names = [ALIASES.get(word, word) for word in words]
    shown = ",".join(words)[:200]
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


def _next_row(reader: Iterator[list[str]]) -> list[str] | str | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        return f"not CSV: {error}"


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
