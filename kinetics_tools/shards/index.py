"""The index of a split: one row per sample, where its members are in the shards.

Importing this module is quick: pandas and Arrow are imported where the index is read or written.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    import pyarrow as pa

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


def read_table(path: Path | Address, labels: Sequence[str]) -> pa.Table:
    """Read the index of a split: its columns, of which each field is what it may be.

    A table has some 0.2 kB a sample, an object for each row and place ten times that.

    Args:
        path: of the index, or its address.
        labels: the dataset's full label list.

    Returns:
        the columns that `write_rows` wrote: texts and int64.

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
        table = _columns(content)
        _check(table, labels)
        return _compact(table)
    except (pa.ArrowException, OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk; the others are Arrow's
        raise ValueError(" ".join(str(error).split())[:300]) from error


def streams_of(names: Iterable[str]) -> list[str]:
    """The streams of an index, by the names of its columns."""
    return [n.removesuffix("_shard") for n in names if n.endswith("_shard")]


def _columns(content: Path | io.BytesIO) -> pa.Table:
    """The columns of an index, their texts as dictionaries: one that repeats is there once.

    Other columns are not read: a few bytes of a file may be very many in memory.

    Raises:
        ValueError: a column is missing, twice there or of another type, or has a long text.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    schema = pq.read_schema(content)
    wanted = list(_columns_of(streams_of(schema.names)))
    texts = [name for name in wanted if not _is_whole(name)]
    for name in wanted:
        if schema.names.count(name) != 1:
            raise ValueError(f"it has {'no' if name not in schema.names else 'two'} {name}")
        kind = schema.field(name).type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        is_right = is_text if name in texts else pa.types.is_integer(kind)
        if not is_right and not pa.types.is_null(kind):
            raise ValueError(f"column {name} is {str(kind)!r:.80}")
    table = pq.read_table(content, columns=wanted, read_dictionary=texts).unify_dictionaries()
    for name in texts:
        for chunk in table[name].chunks:
            if isinstance(chunk, pa.DictionaryArray):  # else all are null
                longest = pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0
                if longest > MAX_TEXT_BYTES:
                    raise ValueError(f"column {name} has a text of {longest} bytes")
    return table


def _compact(table: pa.Table) -> pa.Table:
    """A checked table, of which texts that are all different are no dictionaries."""
    import pyarrow as pa

    def kind(name: str) -> pa.DataType:
        if _is_whole(name):
            return pa.int64()
        is_shared = name == "label" or name.endswith("_shard")
        return pa.dictionary(pa.int32(), pa.string()) if is_shared else pa.string()

    cast = {name: table[name].cast(kind(name)) for name in table.column_names}
    return pa.table(cast).combine_chunks()


def _is_whole(name: str) -> bool:
    return name in ("label_id", "frames") or name.endswith(("_offset", "_size"))


def _columns_of(streams: Sequence[str]) -> dict[str, Any]:
    """Name and type of each column."""
    check(streams, list[Stream])
    places = {f"{s}_{part}": type_ for s in streams for part, type_ in _PLACE_COLUMNS.items()}
    return _ROW_COLUMNS | places


def _check(table: pa.Table, labels: Sequence[str]) -> None:
    """Check every field of an index: paths and sizes are made of them.

    Raises:
        ValueError: a field is not what it may be.
    """
    import pyarrow as pa

    streams = streams_of(table.column_names)
    for name, type_ in _columns_of(streams).items():
        values = table[name].unique()  # of a text each is in the file, so they are not too many
        if isinstance(values, pa.DictionaryArray):
            values = values.dictionary_decode()  # whose values are read much faster
        try:
            check(values.to_pylist(), type_)
        except ValueError as error:
            raise ValueError(f"column {name}: {error}") from error
        if name == "key" and len(values) < len(table):
            raise ValueError("a key is there twice")
    pairs = table.select(["label", "label_id"]).group_by(["label", "label_id"]).aggregate([])
    for label, label_id in zip(*(each.to_pylist() for each in pairs.columns), strict=True):
        if (label, label_id) == (None, None):
            continue
        if label_id is None or label_id >= len(labels) or labels[label_id] != label:
            raise ValueError(
                f"dataset.json has another label than {label!r:.80} as number {label_id}"
            )
    for stream in streams:
        parts = [table[f"{stream}_{part}"].is_null() for part in _PLACE_COLUMNS]
        if any(part != parts[0] for part in parts):
            raise ValueError(f"a row has only a part of its place in {stream}")
