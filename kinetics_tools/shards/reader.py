"""The folder of shards: what lies in it, and how it is read.

    recipe.json                          what every run in this folder must agree on
    dataset.json                         what is here: labels, recipes, counts, gaps by split
    <split>/index.parquet                a row a sample: where its members lie
    <split>/rgb-000000.tar, .json        <key>.mp4 and <key>.json; its sidecar
    <split>/flow-<name>-000000.tar, .json   <key>.flow.<ext> and <key>.json, same keys, same order

Plain webdataset reads the tars. We read a member by its offset, and check the tar header in front
of it and the digest of its data: a shard that was changed, exchanged or damaged is an error, never
a wrong sample. `sharding` writes all of it. Nothing here takes long to import.
"""

import hashlib
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_tools.core.errors import MediaError, ShardError, lookup
from kinetics_tools.core.files import read_json
from kinetics_tools.flow.codecs import CODECS
from kinetics_tools.flow.methods import dequantise

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

SCHEMA_VERSION = 1
RGB = "rgb"
RGB_EXT = "mp4"
_HEADER_BYTES = 512  # of tar
PLACE_COLUMNS = ("shard", "offset", "size", "sha256")  # columns of each stream
NUM_CHECK_DIGITS = 16  # of SHA-256, kept in the index: decoders paint over damage and say nothing


def flow_stream(name: str) -> str:
    """The stream of the flow called `name`."""
    return f"flow-{name}"


def shard_path(folder: Path, split: str, stream: str, number: int) -> Path:
    """Where a shard's tar lies; its sidecar has the suffix .json."""
    return folder / split / f"{stream}-{number:06d}.tar"


def check_schema(path: Path, value: Any) -> None:
    """Take `schema_version` out of a JSON value; raise ShardError when it is not ours."""
    found = value.pop("schema_version", None) if isinstance(value, dict) else None
    if found != SCHEMA_VERSION:
        raise ShardError(
            f"{path} is of schema version {found}, this program reads {SCHEMA_VERSION}; "
            "make the shards again in another folder"
        )


@dataclass(frozen=True, slots=True)
class Location:
    """Where a member's data lies.

    Attributes:
        shard: path of the tar.
        name: of the member.
        offset: bytes from the tar's start to the data.
        size: bytes of the data.
        sha256: of the data, or the first digits of it.
    """

    shard: str
    name: str
    offset: int
    size: int
    sha256: str

    def read(self) -> bytes:
        """The member's data.

        Raises:
            ShardError: the shard is gone, or there is not this member, whole, at this place.
        """
        try:
            with Path(self.shard).open("rb") as file:
                file.seek(self.offset - _HEADER_BYTES)
                data = file.read(_HEADER_BYTES + self.size)
        except FileNotFoundError as error:
            raise ShardError(f"{self.shard} is gone; give extract-flow again") from error
        try:
            header = tarfile.TarInfo.frombuf(data[:_HEADER_BYTES], "utf-8", "strict")
            is_it = (header.name, header.size) == (self.name, self.size)
        except (tarfile.HeaderError, UnicodeDecodeError):
            is_it = False
        if not is_it or len(data) < _HEADER_BYTES + self.size:
            raise ShardError(
                f"{self.shard} does not hold {self.name} where the index says; it was changed or "
                "exchanged since: give extract-flow again, or extract-flow index"
            )
        if not hashlib.sha256(data[_HEADER_BYTES:]).hexdigest().startswith(self.sha256):
            raise ShardError(
                f"{self.shard}: {self.name} is damaged; remove it and run extract-flow"
            )
        return data[_HEADER_BYTES:]


@dataclass(frozen=True, slots=True)
class Sample:
    """A handle on a sample: light, picklable, nothing decoded.

    Attributes:
        key: its name.
        label: class name; None where the set has no labels.
        label_id: rank of the label in the dataset's full list.
        num_frames: RGB frames; there is one flow field less.
        rgb_at: where its RGB lies, if that was asked for.
        flow_at: where its flow lies, if that was asked for.
        codec: name of the flow's codec.
        bound: of the flow, pixels.
    """

    key: str
    label: str | None
    label_id: int | None
    num_frames: int
    rgb_at: Location | None
    flow_at: Location | None
    codec: str
    bound: float

    def rgb(self, indices: Sequence[int] | None = None) -> "npt.NDArray[np.uint8]":
        """Frames by number, in any order, or all: uint8 (N, H, W, 3), RGB.

        Raises:
            ShardError: the shard does not hold what the index says, or is damaged.
            ValueError: the sample was read without stream rgb.
        """
        from kinetics_tools.media.decode import read_frames

        place = _place(self.rgb_at, self.key, RGB)
        with _no_damage(place, self.key):
            frames = read_frames(place.read(), indices)
        return _counted(frames, self.num_frames if indices is None else len(indices), place)

    def flow(self, indices: Sequence[int] | None = None) -> "npt.NDArray[np.float32]":
        """Fields by number, in any order, or all: float32 (N, H, W, 2), pixels per frame.

        Raises:
            ShardError: the shard does not hold what the index says, or is damaged.
            ValueError: the sample was read without stream flow.
        """
        return dequantise(self.codes(indices), bound=self.bound)

    def codes(self, indices: Sequence[int] | None = None) -> "npt.NDArray[np.uint8]":
        """Fields as they are stored, by number, in any order, or all: uint8 (N, H, W, 2).

        A code c is (c / 255 - 0.5) 2 `bound` pixels per frame; raises what `flow` raises.
        """
        place = _place(self.flow_at, self.key, "flow")
        with _no_damage(place, self.key):
            codes = lookup("flow codec", self.codec, CODECS).decode(place.read(), indices)
        return _counted(codes, self.num_frames - 1 if indices is None else len(indices), place)


def _place(location: Location | None, key: str, stream: str) -> Location:
    if location is None:
        raise ValueError(f"sample {key} was read without stream {stream}")
    return location


def _counted(
    frames: "npt.NDArray[np.uint8]", wanted: int, place: Location
) -> "npt.NDArray[np.uint8]":
    if len(frames) != wanted:
        raise ShardError(
            f"{place.shard}: {place.name} has {len(frames)} pictures, not {wanted}; rgb and flow "
            "shards do not match: give extract-flow again"
        )
    return frames


@contextmanager
def _no_damage(place: Location, key: str) -> Iterator[None]:
    """In this block a MediaError becomes a ShardError."""
    try:
        yield
    except MediaError as error:
        raise ShardError(f"{place.shard}, sample {key}: {error.detail}") from error


class ShardFolder:
    """A folder that extract-flow wrote.

    Attributes:
        folder: its path.
        labels: the dataset's full label list; the index is the label id.
        splits: names of the splits.
        flows: names of the flows present, "tvl1" for the stream "flow-tvl1".
        recipes: of each stream, with its `hash`.
    """

    def __init__(self, folder: Path | str) -> None:
        """Open the folder.

        Raises:
            ShardError: it has no dataset.json, or one of another schema version.
        """
        folder = Path(folder)
        path = folder / "dataset.json"
        if not path.exists():
            raise ShardError(
                f"{folder} holds no finished shards (no dataset.json); make them with: "
                f"extract-flow CLIPS {folder}"
            )
        dataset = read_json(path)
        check_schema(path, dataset)
        self.folder = folder
        self.labels: tuple[str, ...] = tuple(dataset["labels"])
        self.splits: tuple[str, ...] = tuple(sorted(dataset["splits"]))
        self.recipes: Mapping[str, Mapping[str, Any]] = dataset["recipes"]
        self._splits: Mapping[str, Mapping[str, Any]] = dataset["splits"]
        present: Counter[str] = Counter()
        for split in self._splits.values():
            present.update(split["present"])
        prefix = flow_stream("")
        self.flows: tuple[str, ...] = tuple(
            sorted(s.removeprefix(prefix) for s in present if s != RGB and present[s] > 0)
        )

    def flow_named(self, name: str | None = None) -> str:
        """The flow called `name`; without a name the only one here.

        Raises:
            UnknownNameError: no such flow here.
            ShardError: there is none here, or several and no name to tell which.
        """
        if name is not None:
            return lookup("flow", name, {flow: flow for flow in self.flows})
        if not self.flows:
            raise ShardError(f"{self.folder} holds no finished flow; give extract-flow again")
        if len(self.flows) > 1:
            there = ", ".join(self.flows)
            raise ShardError(f"{self.folder} holds the flows: {there}; say which with --flow NAME")
        return self.flows[0]

    def flow_bound(self, name: str) -> float:
        """The bound of the flow `name`, pixels: `flow() / bound` is in [-1, 1].

        Raises:
            UnknownNameError: no such flow here.
        """
        return float(self._flow_recipe(name)["bound"])

    def num_expected(self, split: str) -> int:
        """How many samples the split would have without gaps."""
        return int(lookup("split", split, self._splits)["expected"])

    def expected(self, split: str) -> Mapping[str, str]:
        """Keys that are expected but not present, each with the reason.

        Raises:
            UnknownNameError: no such split here.
        """
        gaps: Mapping[str, str] = lookup("split", split, self._splits)["gaps"]
        return gaps

    def samples(
        self, split: str, streams: Sequence[str] = (RGB, "flow"), *, flow: str = "tvl1"
    ) -> Sequence[Sample]:
        """The samples of a split, in the order of its shards.

        Args:
            split: one of `splits`.
            streams: "rgb", "flow" or both: what will be read of them.
            flow: name of the flow, one of `flows`.

        Raises:
            UnknownNameError: no such split or flow here.
            ShardError: some samples lack a stream asked for.
        """
        import pandas as pd

        lookup("split", split, self._splits)
        path = self.folder / split / "index.parquet"
        if not path.exists():
            raise ShardError(f"{path} is missing; write it with: extract-flow index {self.folder}")
        table = pd.read_parquet(path).astype(object)
        table = table.where(table.notna(), None)
        codec, bound = "", 0.0
        members = {}
        if RGB in streams:
            members[RGB] = RGB_EXT
        if "flow" in streams:
            recipe = self._flow_recipe(flow)
            codec, bound = str(recipe["codec"]), float(recipe["bound"])
            ext = lookup("flow codec", codec, CODECS).ext
            members[flow_stream(flow)] = f"flow.{ext}"
        for stream in members:
            self._refuse_gaps(table, split, stream)
        where = {
            stream: self._locations(table, split, stream, ext) for stream, ext in members.items()
        }
        nowhere: list[Location | None] = [None] * len(table)
        return [
            Sample(key, label, label_id, frames, rgb_at, flow_at, codec, bound)
            for key, label, label_id, frames, rgb_at, flow_at in zip(
                table["key"],
                table["label"],
                table["label_id"],
                table["frames"],
                where.get(RGB, nowhere),
                where.get(flow_stream(flow), nowhere),
                strict=True,
            )
        ]

    def _flow_recipe(self, name: str) -> Mapping[str, Any]:
        return lookup("flow", name, {flow: self.recipes[flow_stream(flow)] for flow in self.flows})

    def _refuse_gaps(self, table: "pd.DataFrame", split: str, stream: str) -> None:
        lacking = table["key"][table[f"{stream}_shard"].isna()]
        if len(lacking):
            raise ShardError(
                f"{self.folder / split}: rgb and {stream} shards do not match, {len(lacking)} of "
                f"{len(table)} samples have no {stream}, such as {lacking.iloc[0]}; give "
                f"extract-flow again with --name {stream.removeprefix(flow_stream(''))}"
            )

    def _locations(
        self, table: "pd.DataFrame", split: str, stream: str, ext: str
    ) -> list[Location | None]:
        places = (table[f"{stream}_{part}"] for part in PLACE_COLUMNS)
        return [
            Location(str(self.folder / split / shard), f"{key}.{ext}", offset, size, sha256)
            for key, shard, offset, size, sha256 in zip(table["key"], *places, strict=True)
        ]


def read_samples(
    folder: Path | str, split: str, streams: Sequence[str] = (RGB, "flow"), *, flow: str = "tvl1"
) -> Iterator[Sample]:
    """Yield the samples of a split in the order of its shards; see `ShardFolder.samples`.

    Raises:
        ShardError: the folder breaks the schema, or lacks what is asked for.
        UnknownNameError: no such split or flow there.
    """
    return iter(ShardFolder(folder).samples(split, streams, flow=flow))
