"""The index of a split: one row per sample, where its members are in the shards.

Importing this module is quick: pandas is imported where the index is read or written.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_tools.core.files import publish
from kinetics_tools.core.schema import (
    Count,
    DigestStart,
    Key,
    NumBytes,
    NumFrames,
    ShardName,
    Stream,
    check,
)
from kinetics_tools.core.store import Address

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


# The types of the columns: those of each stream, after its name, and those before them.
MAX_TEXT_BYTES = 1024  # of a field; names of files have 255
MAX_INDEX_BYTES = 2**31  # of a split's index when it is decoded; Kinetics-700 has some 200 MB
_PLACE_COLUMNS = {
    "shard": list[ShardName | None],
    "offset": list[NumBytes | None],
    "size": list[NumBytes | None],
    "sha256": list[DigestStart | None],
}


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


_ROW_COLUMNS = {
    "key": list[Key],
    "label": list[str | None],
    "label_id": list[Count | None],
    "frames": list[NumFrames],
}


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
    whole = {n for n in names if n in ("label_id", "frames") or n.endswith(("_offset", "_size"))}
    table = pd.DataFrame(values, columns=names)
    table = table.astype({name: "Int64" if name in whole else "string" for name in names})
    with publish(path) as scratch:
        table.to_parquet(scratch, index=False)


def _place_values(place: IndexPlace | None) -> tuple[object, ...]:
    if place is None:
        return (None,) * len(_PLACE_COLUMNS)
    return place.shard, place.offset, place.size, place.sha256


def read_rows(path: Path | Address, labels: Sequence[str]) -> list[IndexRow]:
    """Read the index of a split.

    Args:
        path: of the index, or its address.
        labels: the dataset's full label list.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not an index, or does not belong to these labels; says why.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(path, Path) and not path.is_file():
        raise FileNotFoundError(path)
    content = path if isinstance(path, Path) else io.BytesIO(path.read(MAX_INDEX_BYTES))
    size = content.stat().st_size if isinstance(content, Path) else len(content.getbuffer())
    try:
        # Each row has a key and digests of its own, so a file that claims more is not ours.
        metadata = pq.read_metadata(content)
        if metadata.num_rows > size:
            raise ValueError("it has more rows than bytes")
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > MAX_INDEX_BYTES:
            raise ValueError(f"it expands to more than {MAX_INDEX_BYTES} bytes")
        table = _read_table(content)
    except (pa.ArrowException, OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk; the others are Arrow's
        raise ValueError(" ".join(str(error).split())) from error
    streams = _check(table, labels)
    table = table.astype(object)
    table = table.where(table.notna(), None)
    places = {stream: _places(table, stream) for stream in streams}
    return [
        IndexRow(key, label, label_id, frames, {s: p for s, own in places.items() if (p := own[n])})
        for n, (key, label, label_id, frames) in enumerate(
            zip(*(table[name] for name in _ROW_COLUMNS), strict=True)
        )
    ]


def _read_table(content: Path | io.BytesIO) -> pd.DataFrame:
    """The columns, of which no text is long: a dictionary may have one once that all rows repeat.

    Raises:
        ValueError: one is.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    schema = pq.read_schema(content)
    texts = (pa.string(), pa.large_string())
    names = [each.name for each in schema if each.type in texts]
    table = pq.read_table(content, read_dictionary=names)
    for name in names:
        for chunk in table[name].chunks:
            longest = pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0
            if longest > MAX_TEXT_BYTES:
                raise ValueError(f"column {name} has a text of {longest} bytes")
    frame: pd.DataFrame = table.cast(schema).to_pandas()
    return frame


def _check(table: pd.DataFrame, labels: Sequence[str]) -> list[str]:
    """Check every field of an index: paths and sizes are made of them. Return its streams.

    Raises:
        ValueError: a column is missing, or a field is not what it may be.
    """
    streams = [name.removesuffix("_shard") for name in table.columns if name.endswith("_shard")]
    check(streams, list[Stream])
    columns = dict(_ROW_COLUMNS)
    for stream in streams:
        columns |= {f"{stream}_{part}": type_ for part, type_ in _PLACE_COLUMNS.items()}
    for name, type_ in columns.items():
        if name not in table:
            raise ValueError(f"it has no column {name}")
        values = table[name].drop_duplicates()
        try:
            check(values.astype(object).where(values.notna(), None).tolist(), type_)
        except ValueError as error:
            raise ValueError(f"column {name}: {error}") from error
    if table["key"].duplicated().any():
        raise ValueError("a key is there twice")
    _check_labels(table, labels)
    for stream in streams:
        _check_places(table, stream)
    return streams


def _check_labels(table: pd.DataFrame, labels: Sequence[str]) -> None:
    pairs = table[["label", "label_id"]].drop_duplicates().astype(object)
    for label, label_id in pairs.where(pairs.notna(), None).itertuples(index=False):
        if (label, label_id) == (None, None):
            continue
        if label_id is None or label_id >= len(labels) or labels[label_id] != label:
            raise ValueError(
                f"dataset.json has another label than {label!r:.80} as number {label_id}"
            )


def _check_places(table: pd.DataFrame, stream: str) -> None:
    present = table[[f"{stream}_{part}" for part in _PLACE_COLUMNS]].notna()
    if (present.any(axis=1) != present.all(axis=1)).any():
        raise ValueError(f"a row has only a part of its place in {stream}")


def _places(table: pd.DataFrame, stream: str) -> list[IndexPlace | None]:
    columns = (table[f"{stream}_{part}"] for part in _PLACE_COLUMNS)
    return [None if row[0] is None else IndexPlace(*row) for row in zip(*columns, strict=True)]
