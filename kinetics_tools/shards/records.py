"""What the files beside the shards say: a dataclass per file, with its one reader and one writer.

    recipe.json                          FolderRecipe: what every run in this folder must agree on
    dataset.json                         Dataset: the same, and what is present of each split
    <split>/index.parquet                IndexRow of `index`: where the members of a sample are
    <split>/rgb-000000.tar               <key>.mp4 and <key>.json of each sample
    <split>/rgb-000000.json              Sidecar of the tar with the same name
    <split>/flow-<name>-000000.tar       <key>.flow.<ext> and <key>.json, same keys, same order
    <split>/flow-<name>-000000.json      its Sidecar

The names of the fields are the names in the files: a change of one is a new schema version.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from kinetics_tools.core.errors import OutError, ShardError
from kinetics_tools.core.files import (
    MAX_JSON_BYTES,
    below,
    digest,
    parse_json,
    read_json,
    write_json,
)
from kinetics_tools.core.schema import (
    Count,
    Digest,
    Key,
    NumBytes,
    NumFrames,
    NumShards,
    Split,
    Stream,
    check_flow_parameters,
    check_label,
    check_labels,
    check_plain,
    parse,
)
from kinetics_tools.core.store import Address

T = TypeVar("T")

SCHEMA_VERSION = 1
RGB = "rgb"
RGB_EXT = "mp4"
_HEADER_BYTES = 512  # of tar


def flow_stream(name: str) -> str:
    """The stream of the flow `name`."""
    return f"flow-{name}"


def shard_path(folder: Path, split: str, stream: str, number: int) -> Path:
    """Path of a shard's tar; its sidecar has the suffix .json."""
    return below(folder, split, f"{stream}-{number:06d}.tar")


def shards_present(folder: Path, stream: str, split: str = "*") -> list[Path]:
    """The tars of a stream, sorted; `stream` and `split` are patterns."""
    return sorted(folder.glob(f"{split}/{stream}-{'[0-9]' * 6}.tar"))


class DamagedRecordError(ShardError):
    """A record is not what was written: empty, cut off, changed."""


def _read(
    path: Path | Address, what: str, advice: str, convert: Callable[[dict[str, Any]], T]
) -> T:
    """Read a record of this schema version.

    Raises:
        FileNotFoundError: there is none.
        DamagedRecordError: it is not a `what`.
        ShardError: it has another schema version.
    """
    try:
        value = (
            read_json(path, advice)
            if isinstance(path, Path)
            else parse_json(path.read(MAX_JSON_BYTES), path, advice)
        )
        version = value["schema_version"]
        record = convert(value) if version == SCHEMA_VERSION else None
    except OutError as error:
        raise DamagedRecordError(str(error)) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        says = str(error) if isinstance(error, ValueError) else repr(error)
        raise DamagedRecordError(f"{path} is not a {what} ({says}); {advice}") from error
    if record is None:
        raise ShardError(
            f"{path} has schema version {version!r:.40}, this program reads {SCHEMA_VERSION}; "
            "make the shards again in another folder"
        )
    return record


def _write(path: Path, value: Mapping[str, Any]) -> None:
    write_json(path, {"schema_version": SCHEMA_VERSION, **value})


def _without(values: Mapping[str, Any], **unsaid: Any) -> dict[str, Any]:
    """Fields without those that say nothing, so that files without gaps are as they always were."""
    return {name: each for name, each in values.items() if unsaid.get(name, ...) != each}


# One shard


MAX_REMOTE_BYTES = 2**31  # of a sample that is fetched; an hour of 340x256 has 0.2 GB


@dataclass(frozen=True, slots=True)
class Location:
    """Where the data of a member of a tar is.

    Attributes:
        shard: path of the tar, or its address elsewhere.
        name: of the member.
        offset: bytes from the tar's start to the data.
        size: bytes of the data.
        sha256: of the data, or its first digits.
    """

    shard: str | Address
    name: str
    offset: int
    size: int
    sha256: str

    def read(self) -> bytes:
        """The member's data.

        Raises:
            ShardError: there is no such shard, or this member is not there, or it is damaged.
        """
        try:
            if isinstance(self.shard, Address):
                return self._read_elsewhere(self.shard)
            return self._checked(self._read_file(Path(self.shard)))
        except FileNotFoundError as error:
            raise ShardError(f"{self.shard} is gone; {self._advice}") from error

    @property
    def _advice(self) -> str:
        """What repairs the shard."""
        if isinstance(self.shard, Address):
            return "copy the shards there again"
        return "run extract-flow again, or extract-flow index"

    def _read_file(self, shard: Path) -> bytes:
        """The header before the member, and its data."""
        if not shard.is_file():  # or a pipe, which would wait for ever
            raise FileNotFoundError(self.shard)
        with shard.open("rb") as file:
            end = min(self.offset + self.size, os.fstat(file.fileno()).st_size)
            file.seek(max(self.offset - _HEADER_BYTES, 0))
            return file.read(max(end - file.tell(), 0))

    def _read_elsewhere(self, shard: Address) -> bytes:
        """The data, from the cache if it is there."""
        if self.size > MAX_REMOTE_BYTES:
            raise ShardError(f"{shard}: {self.name} would have {self.size} bytes; {self._advice}")
        cache, name = shard.cache, f"{self.sha256}-{self.size}"
        kept = cache.get(name, self._is_whole, size=self.size) if cache else None
        if kept is not None:
            return kept
        first = max(self.offset - _HEADER_BYTES, 0)
        data = self._checked(shard.read_part(first, self.offset + self.size - first))
        if cache:
            cache.put(name, data)
        return data

    def _is_whole(self, data: bytes) -> bool:
        is_it = hashlib.sha256(data).hexdigest().startswith(self.sha256)
        return is_it and len(data) == self.size

    def _checked(self, data: bytes) -> bytes:
        """The data after its header."""
        try:
            header = tarfile.TarInfo.frombuf(data[:_HEADER_BYTES], "utf-8", "strict")
            is_it = (header.name, header.size) == (self.name, self.size)
        except (tarfile.HeaderError, UnicodeDecodeError):
            is_it = False
        if not is_it or len(data) < _HEADER_BYTES + self.size:
            raise ShardError(
                f"{self.shard} does not hold {self.name} where the index says; the shard was "
                f"changed after it was indexed: {self._advice}"
            )
        data = data[_HEADER_BYTES:]
        if not self._is_whole(data):
            raise ShardError(
                f"{self.shard}: {self.name} is damaged; move the shard away and {self._advice}"
            )
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardMember:
    """The video or the flow of a sample, in a shard.

    Attributes:
        key: of the sample.
        label: class name, or None.
        frames: RGB frames of the sample, in a flow shard too.
        offset: bytes from the tar's start to the member's data.
        size: bytes of the data.
        sha256: of the data.
        made_from: SHA-256 of what it was made from: of a clip, or of the sample's RGB member.
    """

    key: Key
    label: str | None
    frames: NumFrames
    offset: NumBytes
    size: NumBytes
    sha256: Digest
    made_from: str

    def __post_init__(self) -> None:
        check_label(self.label)

    def read(self, shard: Path, ext: str) -> bytes:
        """Its data; raises what `Location.read` raises."""
        name = f"{self.key}.{ext}"
        return Location(str(shard), name, self.offset, self.size, self.sha256).read()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a clip has no sample.

    Attributes:
        reason: a word of `core.errors.Reason`, or "missing".
        detail: the last words of the tool that failed.
        label: class of the clip, so that it can be counted; None: it has none, or the sidecar was
            written before this was noted.
    """

    reason: str
    detail: str
    label: str | None = None

    def __post_init__(self) -> None:
        check_label(self.label)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What is known about one shard.

    Attributes:
        stream: "rgb" or "flow-<name>".
        split: of all its samples.
        number: from 0.
        recipe: hash of the recipe.
        inputs: digest of everything it was made from.
        keys: expected, in order.
        failed: by key, why the other samples are not present.
        device: kind of device that computed it, "cpu" or "cuda"; empty for rgb.
        size: bytes of the tar; 0 before it is written.
        members: of the samples present, in the order of `keys`.
    """

    stream: Stream
    split: Split
    number: NumShards
    recipe: str
    inputs: str
    keys: tuple[Key, ...]
    failed: Mapping[Key, Failure] = field(default_factory=dict)
    device: str = ""
    size: NumBytes = 0
    members: tuple[ShardMember, ...] = ()

    def shard(self, folder: Path) -> Path:
        """Path of its tar, in a folder of shards."""
        return shard_path(folder, self.split, self.stream, self.number)

    @staticmethod
    def read(shard: Path) -> Sidecar | None:
        """The sidecar of the tar `shard`; None if there is none.

        Raises:
            ShardError: it has another schema version, or is damaged.
        """
        path = shard.with_suffix(".json")
        try:
            return _read(
                path,
                "sidecar",
                "move it away and run extract-flow again",
                partial(_parse_sidecar, shard=shard),
            )
        except FileNotFoundError:  # or another part is just making the shard again
            return None

    def write(self, folder: Path) -> None:
        """Write it beside its tar."""
        failed = {key: _without(asdict(why), label=None) for key, why in self.failed.items()}
        _write(self.shard(folder).with_suffix(".json"), asdict(self) | {"failed": failed})


def _parse_sidecar(value: dict[str, Any], shard: Path) -> Sidecar:
    sidecar = parse(value, Sidecar)
    if sidecar.shard(shard.parent.parent) != shard:
        raise ValueError(f"it is of {sidecar.shard(Path())}")
    if len({member.key for member in sidecar.members}) < len(sidecar.members):
        raise ValueError("a key is there twice")
    return sidecar


# The folder


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """What decides which keys share a shard.

    Attributes:
        samples_per_shard: expected keys per shard.
        seed: of the order of the keys.
    """

    samples_per_shard: Count
    seed: int


@dataclass(frozen=True, slots=True)
class StreamRecipe:
    """Every parameter that decides a stream's bytes.

    Attributes:
        parameters: as the recipe's `as_json` gives them.
        hash: SHA-256 of the parameters.
    """

    parameters: Mapping[str, Any]
    hash: str

    @property
    def codec(self) -> str:
        """Name of the codec of a flow stream."""
        return str(self.parameters["codec"])

    @property
    def bound(self) -> float:
        """Flow is clamped to +- so many pixels per frame."""
        return float(self.parameters["bound"])

    def differing(self, other: StreamRecipe) -> list[str]:
        """The parameters that differ in another recipe: `bound 20, there 5`."""
        names = sorted(self.parameters.keys() | other.parameters.keys())
        pairs = ((name, self.parameters.get(name), other.parameters.get(name)) for name in names)
        found = [f"{name} {here}, there {there}" for name, here, there in pairs if here != there]
        return found or ["hash"]

    @staticmethod
    def of(parameters: Mapping[str, Any]) -> StreamRecipe:
        """The recipe with these parameters."""
        return StreamRecipe(parameters, digest(parameters))

    @staticmethod
    def all_from_json(values: Any) -> dict[Stream, StreamRecipe]:
        """Read the recipes of a folder by stream; `hash` is one key among the parameters.

        Raises:
            ValueError: one of them is not a recipe, or there is none of rgb.
        """
        check_plain(values)
        recipes = {}
        for stream, value in parse(values, dict[Stream, dict[str, Any]]).items():
            parameters = {name: each for name, each in value.items() if name != "hash"}
            if stream != RGB:
                check_flow_parameters(parameters)
            stored = {"parameters": parameters, "hash": value.get("hash")}
            recipes[stream] = parse(stored, StreamRecipe)
        if RGB not in recipes:
            raise ValueError("it has no recipe of rgb")
        return recipes

    def as_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values, as it is stored."""
        return {**self.parameters, "hash": self.hash}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedSplit:
    """What a split will hold.

    Attributes:
        expected: samples, if none is missing.
        shards: of each stream.
        keys: digest of the expected keys.
    """

    expected: Count
    shards: NumShards
    keys: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderRecipe:
    """What every run in a folder of shards must agree on: recipe.json.

    Attributes:
        labels: the dataset's full label list; the index is the label id.
        layout: which keys share a shard.
        recipes: by stream.
        splits: by name.
    """

    labels: tuple[str, ...]
    layout: ShardLayout
    recipes: Mapping[Stream, StreamRecipe]
    splits: Mapping[Split, ExpectedSplit]

    def __post_init__(self) -> None:
        _check_folder(self)

    @staticmethod
    def read(folder: Path) -> FolderRecipe | None:
        """The folder's recipe.json; None if there is none.

        Raises:
            ShardError: it has another schema version, or is damaged.
        """
        try:
            read = partial(_parse_folder, record=FolderRecipe)
            return _read(folder / "recipe.json", "recipe", "choose another OUT", read)
        except FileNotFoundError:
            return None

    def write(self, folder: Path) -> None:
        """Write the folder's recipe.json."""
        splits = {name: asdict(split) for name, split in self.splits.items()}
        _write(folder / "recipe.json", _common(self) | {"splits": splits})


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitContents:
    """What a split holds.

    Attributes:
        expected: samples, if none were missing.
        present: samples of each stream.
        gaps: by key, the reason why a sample is missing.
        gap_labels: by key, the class of such a sample, where it is known.
    """

    expected: Count
    present: Mapping[Stream, Count]
    gaps: Mapping[Key, str]
    gap_labels: Mapping[Key, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What a folder of shards holds: dataset.json. The attributes are those of `FolderRecipe`."""

    labels: tuple[str, ...]
    layout: ShardLayout
    recipes: Mapping[Stream, StreamRecipe]
    splits: Mapping[Split, SplitContents]

    def __post_init__(self) -> None:
        _check_folder(self)

    @staticmethod
    def read(folder: Path | Address) -> Dataset | None:
        """The folder's dataset.json; None if there is none.

        Raises:
            ShardError: it has another schema version, or is damaged.
        """
        advice = f"write it with: extract-flow index {folder}"
        try:
            read = partial(_parse_folder, record=Dataset)
            return _read(folder / "dataset.json", "dataset", advice, read)
        except FileNotFoundError:
            return None

    @staticmethod
    def check_version(folder: Path) -> None:
        """Check the folder's dataset.json, if any, before it is written again from the sidecars.

        Raises:
            ShardError: it has another schema version.
        """
        with suppress(FileNotFoundError, DamagedRecordError):
            Dataset.read(folder)

    def write(self, folder: Path) -> None:
        """Write the folder's dataset.json."""
        splits = {
            name: _without(asdict(split), gap_labels={}) for name, split in self.splits.items()
        }
        _write(folder / "dataset.json", _common(self) | {"splits": splits})


def _check_folder(record: FolderRecipe | Dataset) -> None:
    check_labels(record.labels)
    unknown = {s for split in record.splits.values() for s in getattr(split, "present", {})}
    if not unknown <= record.recipes.keys():
        raise ValueError("a stream has no recipe")
    gaps = (getattr(split, "gap_labels", {}) for split in record.splits.values())
    if not {label for labels in gaps for label in labels.values()} <= {*record.labels}:
        raise ValueError("a gap has a label that is not one of the labels")


def _parse_folder(value: dict[str, Any], record: type[T]) -> T:
    """recipe.json or dataset.json, where the hash of a recipe is one of its parameters."""
    return parse({**value, "recipes": StreamRecipe.all_from_json(value.get("recipes"))}, record)


def _common(record: FolderRecipe | Dataset) -> dict[str, Any]:
    return {
        "labels": list(record.labels),
        "layout": asdict(record.layout),
        "recipes": {name: recipe.as_json() for name, recipe in record.recipes.items()},
    }


# What is read once

State = tuple[tuple[int, ...] | None, ...]  # of files: inode, time and size of each that is there


class FolderRecords:
    """The records of a folder of shards: each is read once, and again only after a change.

    At the size of Kinetics there are some 8,000 of them, and the disk may be shared; held in
    memory, they take about 350 MB.

    Attributes:
        folder: its path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._recipe: tuple[FolderRecipe | None, State] | None = None
        self._sidecars: dict[Path, tuple[Sidecar | None, State]] = {}

    def recipe(self) -> FolderRecipe | None:
        """What recipe.json says now; None if there is none.

        Raises:
            ShardError: it has another schema version, or is damaged.
        """
        state = _state(self.folder / "recipe.json")
        if self._recipe is None or self._recipe[1] != state:
            self._recipe = FolderRecipe.read(self.folder), state
        return self._recipe[0]

    def sidecar(self, shard: Path) -> Sidecar | None:
        """The sidecar of the tar `shard`, as it was when it was read; None if there was none.

        Raises:
            ShardError: it has another schema version, or is damaged.
        """
        if shard not in self._sidecars:
            state = _shard_state(shard)  # before it is read, so that no later change is overlooked
            self._sidecars[shard] = Sidecar.read(shard), state
        return self._sidecars[shard][0]

    def whole_sidecar(self, shard: Path) -> Sidecar | None:
        """The same; None also if the tar was not there, or not whole."""
        sidecar = self.sidecar(shard)
        _, tar = self._sidecars[shard][1]
        return None if sidecar is None or tar is None or tar[-1] != sidecar.size else sidecar

    def refresh(self, shards: Iterable[Path]) -> None:
        """Forget the sidecars of some shards, and those that changed since they were read."""
        for shard in shards:
            self._sidecars.pop(shard, None)
        for shard, (_, state) in list(self._sidecars.items()):
            if _shard_state(shard) != state:
                del self._sidecars[shard]


def _shard_state(shard: Path) -> State:
    return _state(shard.with_suffix(".json"), shard)


def _state(*paths: Path) -> State:
    return tuple(map(_stat, paths))


def _stat(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
