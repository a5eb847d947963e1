"""The index of a split: one row per sample, where its members are in the shards.

Importing this module is quick: pandas is imported where the index is read or written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_tools.core.files import publish

if TYPE_CHECKING:
    import pandas as pd

NUM_CHECK_DIGITS = 16  # of SHA-256, kept in the index: decoders paint over damage and say nothing


@dataclass(frozen=True, slots=True)
class IndexPlace:
    """Where a sample's member of one stream is.

    Attributes:
        shard: name of the tar, in the split's folder.
        offset: bytes from the tar's start to the data.
        size: bytes of the data.
        sha256: the first NUM_CHECK_DIGITS digits, of the data.
    """

    shard: str
    offset: int
    size: int
    sha256: str


_PLACE_COLUMNS = ("shard", "offset", "size", "sha256")  # of each stream, after its name


@dataclass(frozen=True, slots=True)
class IndexRow:
    """A sample in the index of its split.

    Attributes:
        key: of the sample.
        label: class name, or None.
        label_id: rank of the label in the dataset's full list, or None.
        frames: RGB frames.
        places: by stream; a stream that the sample lacks is left out.
    """

    key: str
    label: str | None
    label_id: int | None
    frames: int
    places: dict[str, IndexPlace]


_ROW_COLUMNS = ("key", "label", "label_id", "frames")


def write_rows(path: Path, rows: Iterable[IndexRow], streams: Iterable[str]) -> None:
    """Write the index of a split: four columns, then four for each of `streams`."""
    import pandas as pd

    streams = tuple(streams)
    values = [
        [row.key, row.label, row.label_id, row.frames]
        + [each for stream in streams for each in _place_values(row.places.get(stream))]
        for row in rows
    ]
    names = [*_ROW_COLUMNS, *(f"{stream}_{part}" for stream in streams for part in _PLACE_COLUMNS)]
    whole = {n for n in names if n in _ROW_COLUMNS[2:] or n.endswith(("_offset", "_size"))}
    table = pd.DataFrame(values, columns=names)
    table = table.astype({name: "Int64" if name in whole else "string" for name in names})
    with publish(path) as scratch:
        table.to_parquet(scratch, index=False)


def _place_values(place: IndexPlace | None) -> tuple[object, ...]:
    if place is None:
        return (None,) * len(_PLACE_COLUMNS)
    return place.shard, place.offset, place.size, place.sha256


def read_rows(path: Path) -> list[IndexRow]:
    """Read the index of a split.

    Raises:
        FileNotFoundError: there is none.
    """
    import pandas as pd

    table = pd.read_parquet(path).astype(object)
    table = table.where(table.notna(), None)
    streams = [
        name.removesuffix("_shard")
        for name in table.columns
        if name.endswith("_shard") and name not in _ROW_COLUMNS
    ]
    places = {stream: _places(table, stream) for stream in streams}
    return [
        IndexRow(key, label, label_id, frames, {s: p for s, own in places.items() if (p := own[n])})
        for n, (key, label, label_id, frames) in enumerate(
            zip(*(table[name] for name in _ROW_COLUMNS), strict=True)
        )
    ]


def _places(table: pd.DataFrame, stream: str) -> list[IndexPlace | None]:
    columns = (table[f"{stream}_{part}"] for part in _PLACE_COLUMNS)
    return [None if row[0] is None else IndexPlace(*row) for row in zip(*columns, strict=True)]
