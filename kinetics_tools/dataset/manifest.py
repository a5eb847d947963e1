"""Manifests: the labelled segments of a dataset.

A manifest is a list of labelled intervals of videos, in any format of Kinetics' lists (see
`manifest_formats`). All fields are read as text, and all bad rows are found before anything starts.
"""

import csv
import io
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from kinetics_tools.core.errors import ManifestError, lookup
from kinetics_tools.core.keys import is_key, label_problem
from kinetics_tools.core.text import decode_text, read_bytes
from kinetics_tools.dataset.manifest_formats import COLUMNS, Row, rows

logger = logging.getLogger(__name__)

SPLIT_ALIASES = {"validate": "val"}
NUM_SHOWN = 10  # bad rows in a message
MAX_TIME_S = 1_000_000  # a key has six digits for a time
# A plain decimal number: exponents are how spreadsheets round large numbers.
_TIME = re.compile(r"0*[0-9]{1,6}(\.[0-9]*)?|\.[0-9]+")
_MILLISECOND = Decimal("0.001")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One labelled interval of a video: a manifest row.

    Attributes:
        youtube_id: id of the video.
        start_s: seconds from the video's start, to the millisecond.
        end_s: seconds from the video's start; the segment is half open, [start_s, end_s).
        label: class name; None where the list has no labels.
        split: "train", "val", "test", or another name from the list.
    """

    youtube_id: str
    start_s: Fraction
    end_s: Fraction
    label: str | None
    split: str

    @property
    def key(self) -> str:
        """The one name of segment, clip, sample, ledger line and prediction."""
        return f"{self.youtube_id}_{int(self.start_s):06d}_{int(self.end_s):06d}"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used. `line` is the number of its line; in JSON, of the entry."""

    line: int
    problem: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a manifest.

    Attributes:
        segments: in file order, each key once.
        bad_rows: rows that were skipped.
        num_duplicates: identical rows that were dropped.
    """

    segments: tuple[Segment, ...]
    bad_rows: tuple[BadRow, ...] = ()
    num_duplicates: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that occur, sorted."""
        return tuple(sorted({s.label for s in self.segments if s.label is not None}))


def read_manifest(path: Path, *, skip_bad_rows: bool = False, split: str | None = None) -> Manifest:
    """Read a manifest.

    Args:
        path: a CSV with a header: the columns `youtube_id,time_start,time_end,split`, optionally
            `label`, or the names that other lists give them; other columns are ignored. Or the JSON
            of the official archives.
        skip_bad_rows: return bad rows in the result instead of raising.
        split: of all rows, where the list has no such column.

    Raises:
        ManifestError: no such file, a column is missing, or some rows are bad; the message shows
            the first ten of them and their number.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise ManifestError(
            f"{path}: {error.strerror}; give a CSV manifest, or an official list by its name, "
            "such as kinetics400/val"
        ) from error
    return parse_manifest(data, str(path), skip_bad_rows=skip_bad_rows, split=split)


def parse_manifest(
    data: bytes, where: str, *, skip_bad_rows: bool = False, split: str | None = None
) -> Manifest:
    """Read a manifest from the bytes of its file; `where` names it in messages.

    Raises:
        ManifestError: as `read_manifest`.
    """
    # One byte that is not UTF-8 is one bad row.
    text = decode_text(data, where, errors="surrogateescape", raises=ManifestError)
    segments: dict[str, Segment] = {}
    bad: list[BadRow] = []
    num_duplicates = 0
    for line, row in rows(text, where, split):
        parsed = row if isinstance(row, str) else _parse(row)
        if isinstance(parsed, str):
            bad.append(BadRow(line, parsed))
            continue
        earlier = segments.setdefault(parsed.key, parsed)
        if earlier is parsed:
            continue
        if earlier == parsed:
            num_duplicates += 1
        else:
            bad.append(BadRow(line, f"a different row has the same key {parsed.key}"))
    if bad and not skip_bad_rows:
        shown = [f"  line {row.line}: {row.problem}" for row in bad[:NUM_SHOWN]]
        if len(bad) > NUM_SHOWN:
            shown.append(f"  and {len(bad) - NUM_SHOWN} more")
        raise ManifestError(
            f"{where}: {len(bad)} bad rows; fix them, or skip them with --skip-bad-rows", *shown
        )
    if not segments:
        raise ManifestError(f"{where}: no usable row after the header")
    if num_duplicates:
        logger.info("%s: %d identical duplicate rows dropped", where, num_duplicates)
    return Manifest(tuple(segments.values()), tuple(bad), num_duplicates)


def _parse(row: Row) -> Segment | str:
    """The row's segment, or what is wrong with the row."""
    problem = _problem(row)
    if problem is not None:
        return problem
    split = row["split"]
    return Segment(
        youtube_id=row["youtube_id"],
        start_s=_seconds(row["time_start"]),
        end_s=_seconds(row["time_end"]),
        label=row.get("label") or None,
        split=SPLIT_ALIASES.get(split, split),
    )


@lru_cache(maxsize=4096)  # lists of half a million rows have a few hundred different times
def _seconds(text: str) -> Fraction:
    """The time to the millisecond: lists that went through floats say 1.1000000000000001."""
    return Fraction(Decimal(text).quantize(_MILLISECOND))


def _problem(row: Row) -> str | None:
    video, start, end, split = (
        row[name] for name in ("youtube_id", "time_start", "time_end", "split")
    )
    if not is_key(f"{video}_000000_000000") or not video:
        return f"youtube_id {video[:80]!r} may have only letters, digits, - and _, at most 76"
    for name, time in (("time_start", start), ("time_end", end)):
        if not _TIME.fullmatch(time) or _seconds(time) >= MAX_TIME_S:
            return f"{name} {time[:40]!r} is not a plain number of seconds below {MAX_TIME_S}"
    if _seconds(start) >= _seconds(end):
        return f"time_end {end[:40]} is not after time_start {start[:40]}"
    if not is_key(split):
        return f"split {split[:40]!r} may have only letters, digits, - and _"
    label = row.get("label") or None
    return label_problem(label) if label is not None else None


def format_manifest(segments: Iterable[Segment]) -> str:
    """The segments as CSV text with DeepMind's columns, sorted by split and key."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(manifest_row, sorted(segments, key=lambda s: (s.split, s.key))))
    return buffer.getvalue()


def manifest_row(segment: Segment) -> tuple[str, ...]:
    """The segment's fields in the order of COLUMNS."""
    times = (_time(segment.start_s), _time(segment.end_s))
    return (segment.label or "", segment.youtube_id, *times, segment.split)


def _time(time_s: Fraction) -> str:
    return str(time_s) if time_s.denominator == 1 else f"{float(time_s):.3f}".rstrip("0")


def select(
    manifest: Manifest,
    *,
    splits: Sequence[str] = (),
    classes: Sequence[str] = (),
    limit: int | None = None,
) -> list[Segment]:
    """The manifest's segments of some splits and classes, the first `limit` of them.

    Raises:
        UnknownNameError: no row has that split or class.
        ManifestError: no row has both.
    """
    have_splits = {s.split: s for s in manifest.segments}
    chosen_splits = {SPLIT_ALIASES.get(split, split) for split in splits}
    for split in chosen_splits:
        lookup("split", split, have_splits)
    for name in classes:
        lookup("class", name, dict.fromkeys(manifest.labels, name))
    chosen = [
        s
        for s in manifest.segments
        if (not splits or s.split in chosen_splits) and (not classes or s.label in classes)
    ][:limit]
    if not chosen:
        raise ManifestError("no row of the manifest has both a chosen split and a chosen class")
    return chosen


def format_bad_rows(bad: Sequence[BadRow]) -> str:
    """Bad rows as CSV text: line number and problem."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("line", "problem"))
    writer.writerows((row.line, row.problem) for row in bad)
    return buffer.getvalue()
