"""Reading a folder of shards: `ShardFolder` says what it holds, a `Sample` decodes.

Plain webdataset reads the tars too. We read a member by its offset, and check the tar header before
it and the digest of its data: a shard that was changed, exchanged or damaged is an error, never a
wrong sample. `records` says which files there are. Importing this module is quick: pandas, PyAV and
OpenCV are imported where they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload

from kinetics_tools.core.errors import MediaError, ShardError, lookup
from kinetics_tools.core.file_cache import FileCache
from kinetics_tools.core.files import below
from kinetics_tools.core.store import Address, is_address
from kinetics_tools.flow.codecs import CODECS
from kinetics_tools.flow.methods import dequantise
from kinetics_tools.shards.index import read_table
from kinetics_tools.shards.records import (
    RGB,
    RGB_EXT,
    Dataset,
    Location,
    SplitContents,
    StreamRecipe,
    flow_stream,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from kinetics_tools.media.decode import Window

_AT_ONCE: Final = 4096  # samples that are made at once where all are asked for


@dataclass(frozen=True, slots=True)
class Sample:
    """A handle on one clip in the shards: small, picklable; nothing is decoded before it is used.

    Attributes:
        key: name of the clip.
        label: class name; None where the set has no labels.
        label_id: rank of the label in the dataset's full list; None without a label.
        num_frames: RGB frames, T; there are T - 1 flow fields.
        rgb_at: where its RGB is; None if the sample was read without it.
        flow_at: where its flow is; None if the sample was read without it.
        codec: name of the flow's codec; empty without flow.
        bound: flow is clamped to +- so many pixels per frame; 0 without flow.
    """

    key: str
    label: str | None
    label_id: int | None
    num_frames: int
    rgb_at: Location | None
    flow_at: Location | None
    codec: str
    bound: float

    def rgb(
        self, indices: Sequence[int] | None = None, window: Window | None = None
    ) -> npt.NDArray[np.uint8]:
        """RGB frames: uint8 (N, H, W, 3), 0 to 255.

        Args:
            indices: frame numbers from 0 to T - 1, in any order, with repeats; None for all.
            window: from height and width of a frame, the slices of rows and columns that are
                returned; None for all of it.

        Raises:
            ShardError: the shard does not hold what the index says, is damaged, or has no such
                frame.
            ValueError: the sample was read without stream rgb.
        """
        from kinetics_tools.media.decode import read_frames

        place = _place(self.rgb_at, self.key, RGB)
        with _as_shard_error(place, self.key):
            frames = read_frames(place.read(), indices, window)
        return _counted(frames, self.num_frames if indices is None else len(indices), place)

    def flow(
        self, indices: Sequence[int] | None = None, window: Window | None = None
    ) -> npt.NDArray[np.float32]:
        """Flow fields: float32 (N, H, W, 2), pixels per frame, x then y, +x right, +y down.

        Field t is the motion from frame t to frame t + 1.

        Args:
            indices: field numbers from 0 to T - 2, in any order, with repeats; None for all.
            window: as for `rgb`.

        Raises:
            ShardError: the shard does not hold what the index says, is damaged, or has no such
                field.
            ValueError: the sample was read without stream flow.
        """
        return dequantise(self.codes(indices, window), bound=self.bound)

    def codes(
        self, indices: Sequence[int] | None = None, window: Window | None = None
    ) -> npt.NDArray[np.uint8]:
        """Flow fields as they are stored: uint8 (N, H, W, 2), x then y.

        A code c is (c / 255 - 0.5) 2 `bound` pixels per frame. Arguments and errors are those of
        `flow`.
        """
        place = _place(self.flow_at, self.key, "flow")
        with _as_shard_error(place, self.key):
            codec = lookup("flow codec", self.codec, CODECS)
            codes = codec.decode(place.read(), indices, window)
        return _counted(codes, self.num_frames - 1 if indices is None else len(indices), place)


def _place(location: Location | None, key: str, stream: str) -> Location:
    if location is None:
        raise ValueError(f"sample {key} was read without stream {stream}")
    return location


def _counted(frames: npt.NDArray[np.uint8], wanted: int, place: Location) -> npt.NDArray[np.uint8]:
    if len(frames) != wanted:
        raise ShardError(
            f"{place.shard}: {place.name} has {len(frames)} pictures, not {wanted}; rgb and flow "
            "shards do not match: run extract-flow again"
        )
    return frames


@contextmanager
def _as_shard_error(place: Location, key: str) -> Iterator[None]:
    """In this block a MediaError becomes a ShardError that names the shard."""
    try:
        yield
    except MediaError as error:
        raise ShardError(f"{place.shard}, sample {key}: {error.detail}") from error


class Samples(Sequence[Sample]):
    """The samples of a split, each made when it is asked for: columns of an index are small."""

    def __init__(
        self,
        table: pa.Table,
        exts: Mapping[str, str],
        shards: Mapping[str, str | Address],
        codec: str,
        bound: float,
    ) -> None:
        """The samples of the rows of `table`.

        Args:
            table: rows of an index.
            exts: by stream, the extension of its members: what the samples can give.
            shards: by name, where the tar is.
            codec: name of the flow's codec; empty without flow.
            bound: of the flow; 0 without flow.
        """
        self._table = table
        self._exts = exts
        self._shards = shards
        self._codec = codec
        self._bound = bound

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Samples: ...

    def __getitem__(self, index: int | slice) -> Sample | Samples:
        numbers = range(len(self))[index]
        if isinstance(numbers, int):
            return next(self._made(self._table.slice(numbers, 1)))
        import pyarrow as pa

        rows = self._table.take(pa.array(numbers, pa.int64()))
        return Samples(rows, self._exts, self._shards, self._codec, self._bound)

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self._made(self._table.slice(start, _AT_ONCE))

    def _made(self, rows: pa.Table) -> Iterator[Sample]:
        columns = [_values(rows[name]) for name in ("key", "label", "label_id", "frames")]
        rgb = self._locations(rows, columns[0], (each for each in self._exts if each == RGB))
        flow = self._locations(rows, columns[0], (each for each in self._exts if each != RGB))
        for key, label, label_id, frames, *at in zip(*columns, rgb, flow, strict=True):
            yield Sample(key, label, label_id, frames, at[0], at[1], self._codec, self._bound)

    def _locations(
        self, rows: pa.Table, keys: Sequence[str], streams: Iterator[str]
    ) -> Iterator[Location | None]:
        """Where the members of the first of `streams` are; without one they were not asked for."""
        stream = next(streams, None)
        if stream is None:
            return repeat(None, len(rows))
        columns = (_values(rows[f"{stream}_{part}"]) for part in ("offset", "size", "sha256"))
        shards = map(self._shards.__getitem__, _values(rows[f"{stream}_shard"]))
        names = (f"{key}.{self._exts[stream]}" for key in keys)
        return map(Location, shards, names, *columns)


def _values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column, as `to_pylist` gives them; of many, several times faster."""
    is_slow = column.null_count > 0 or len(column) < _AT_ONCE // 64  # it decodes all shards' names
    values: list[Any] = column.to_pylist() if is_slow else column.to_numpy().tolist()
    return values


class ShardFolder:
    """A folder that extract-flow wrote, or a copy of it in a store elsewhere.

    Each file is read at most once: dataset.json here, the index of a split when its samples are
    asked for.

    Attributes:
        folder: its path, or its address.
        labels: the dataset's full label list; the index is the label id.
        splits: names of the splits.
        flows: names of the flows present, "tvl1" for the stream "flow-tvl1".
        recipes: how each stream was made, with its hash; by stream.
    """

    def __init__(self, folder: Path | str, *, cache: FileCache | None = None) -> None:
        """Open the folder.

        Args:
            folder: its path, or its address, such as s3://bucket/shards: whatever fsspec can read.
            cache: of samples that are read from an address; None: nothing is kept.

        Raises:
            ShardError: it has no dataset.json, or one of another schema version.
            StoreError: the store does not give it.
        """
        place: Path | Address
        if isinstance(folder, str) and is_address(folder):
            place = Address.of(folder, cache)
        else:
            place = Path(folder)
        dataset = Dataset.read(place)
        if dataset is None and isinstance(place, Address):
            raise ShardError(
                f"{place} holds no shards (no dataset.json); copy a folder there that extract-flow "
                "wrote, or give another address"
            )
        if dataset is None:
            raise ShardError(
                f"{folder} holds no finished shards (no dataset.json); make them with: "
                f"extract-flow CLIPS {folder}"
            )
        self.folder = place
        self.labels: tuple[str, ...] = dataset.labels
        self.splits: tuple[str, ...] = tuple(sorted(dataset.splits))
        self.recipes: Mapping[str, StreamRecipe] = dataset.recipes
        self._contents: Mapping[str, SplitContents] = dataset.splits
        present = {
            stream
            for contents in dataset.splits.values()
            for stream, number in contents.present.items()
            if number > 0 and stream != RGB
        }
        prefix = flow_stream("")
        self.flows: tuple[str, ...] = tuple(sorted(s.removeprefix(prefix) for s in present))
        self._tables: dict[str, pa.Table] = {}

    def flow_named(self, name: str | None = None) -> str:
        """The flow called `name`; without a name the only one here.

        Raises:
            UnknownNameError: there is no such flow.
            ShardError: there is none here, or there are several and no name says which.
        """
        if name is not None:
            return lookup("flow", name, {flow: flow for flow in self.flows})
        if not self.flows:
            raise ShardError(f"{self.folder} holds no finished flow; run extract-flow again")
        if len(self.flows) > 1:
            there = ", ".join(self.flows)
            raise ShardError(f"{self.folder} holds the flows: {there}; say which with --flow NAME")
        return self.flows[0]

    def flow_bound(self, name: str) -> float:
        """The bound of the flow `name`, pixels per frame: `flow() / bound` is in [-1, 1].

        Raises:
            UnknownNameError: there is no such flow.
        """
        return self._flow_recipe(name).bound

    def num_expected(self, split: str) -> int:
        """How many samples the split would have if none were missing.

        Raises:
            UnknownNameError: there is no such split.
        """
        return lookup("split", split, self._contents).expected

    def missing(self, split: str) -> Mapping[str, str]:
        """The keys that are expected in a split but not present, each with the reason.

        Raises:
            UnknownNameError: there is no such split.
        """
        return lookup("split", split, self._contents).gaps

    def missing_labels(self, split: str) -> Mapping[str, str]:
        """The labels of the keys in `missing`, as far as they are known.

        Shards that version 0.1 made do not say them.

        Raises:
            UnknownNameError: there is no such split.
        """
        return lookup("split", split, self._contents).gap_labels

    def samples(
        self, split: str, streams: Sequence[str] = (RGB, "flow"), *, flow: str = "tvl1"
    ) -> Sequence[Sample]:
        """The samples of a split, in the order of its shards.

        Args:
            split: one of `splits`.
            streams: "rgb", "flow" or both: what the samples can give.
            flow: name of the flow, one of `flows`.

        Raises:
            UnknownNameError: there is no such split or flow.
            ShardError: some samples lack a stream asked for.
        """
        table = self._index(split)
        exts = {RGB: RGB_EXT} if RGB in streams else {}
        codec, bound = "", 0.0
        if "flow" in streams:
            recipe = self._flow_recipe(flow)
            codec, bound = recipe.codec, recipe.bound
            exts[flow_stream(flow)] = f"flow.{lookup('flow codec', codec, CODECS).ext}"
        for stream in exts:
            self._refuse_gaps(table, split, stream)
        columns = [f"{stream}_shard" for stream in exts]
        names = {name for column in columns for name in table[column].unique().to_pylist()}
        shards = {name: self._shard(split, name) for name in names}
        return Samples(table, exts, shards, codec, bound)

    def _index(self, split: str) -> pa.Table:
        lookup("split", split, self._contents)
        if split not in self._tables:
            path = below(self.folder, split, "index.parquet")
            try:
                self._tables[split] = read_table(path, self.labels)
            except FileNotFoundError as error:
                raise ShardError(
                    f"{path} is missing; write it with: {self._index_command}"
                ) from error
            except ValueError as error:
                raise ShardError(
                    f"{path} is damaged ({error}); write it again with: {self._index_command}"
                ) from error
        return self._tables[split]

    @property
    def _index_command(self) -> str:
        if isinstance(self.folder, Address):
            return "extract-flow index, in the folder that this is a copy of, and copy it again"
        return f"extract-flow index {self.folder}"

    def _flow_recipe(self, name: str) -> StreamRecipe:
        return lookup("flow", name, {flow: self.recipes[flow_stream(flow)] for flow in self.flows})

    def _refuse_gaps(self, table: pa.Table, split: str, stream: str) -> None:
        name = f"{stream}_shard"
        if name in table.column_names:
            lacking = table["key"].filter(table[name].is_null())
        else:
            lacking = table["key"]
        if len(lacking) > 0:
            raise ShardError(
                f"{self.folder / split}: rgb and {stream} shards do not match, {len(lacking)} of "
                f"{len(table)} samples have no {stream}, such as {lacking[0].as_py()}; run "
                f"extract-flow again with --name {stream.removeprefix(flow_stream(''))}"
            )

    def _shard(self, split: str, name: str) -> str | Address:
        path = below(self.folder, split, name)
        return path if isinstance(path, Address) else str(path)


def read_samples(
    folder: Path | str, split: str, streams: Sequence[str] = (RGB, "flow"), *, flow: str = "tvl1"
) -> Iterator[Sample]:
    """Yield the samples of a split in the order of its shards.

    Args:
        folder: that extract-flow wrote: its path, or its address in a store elsewhere.
        split: "train", "val", ...; "all" for the shards of a folder of class folders.
        streams: "rgb", "flow" or both: what the samples can give.
        flow: name of the flow: its method, unless `--name` gave it another.

    Raises:
        ShardError: the folder breaks the schema, or lacks what is asked for.
        UnknownNameError: there is no such split or flow.
    """
    return iter(ShardFolder(folder).samples(split, streams, flow=flow))
