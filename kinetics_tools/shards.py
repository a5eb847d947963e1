"""The folder of shards: what lies in it, how it is written, and how it is read again.

    recipe.json                          what every run in this folder must agree on
    dataset.json                         what is here: labels, recipes, counts, gaps by split
    <split>/index.parquet                a row a sample: where its members lie
    <split>/rgb-000000.tar, .json        <key>.mp4 and <key>.json; its sidecar
    <split>/flow-<name>-000000.tar, .json   <key>.flow.<ext> and <key>.json, same keys, same order

A shard is done when its tar and, after it, its sidecar have their names. `dataset.json` and the
indices follow from the sidecars and can be written anew at any time. Plain webdataset reads the
tars. We read a member by its offset, and check the tar header in front of it and the digest of its
data: a shard that was changed, exchanged or damaged is an error, never a wrong sample. Nothing here
takes long to import; webdataset, which brings torch, is imported for writing only.
"""

import hashlib
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_tools.codecs import CODECS
from kinetics_tools.errors import MediaError, OutError, ShardError, lookup
from kinetics_tools.files import digest, exclusive, publish, read_json, write_json
from kinetics_tools.flow import dequantise

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
RGB = "rgb"
RGB_EXT = "mp4"
MISSING = "missing"
_HEADER_BYTES = 512  # of tar
_PLACE = ("shard", "offset", "size", "sha256")  # columns of each stream
_CHECK_DIGITS = 16  # of SHA-256, kept in the index: decoders paint over damage and say nothing


def flow_stream(name: str) -> str:
    """The stream of the flow called `name`."""
    return f"flow-{name}"


def shard_path(folder: Path, split: str, stream: str, number: int) -> Path:
    """Where a shard's tar lies; its sidecar has the suffix .json."""
    return folder / split / f"{stream}-{number:06d}.tar"


def _shards_present(folder: Path, stream: str, split: str = "*") -> list[Path]:
    return sorted(folder.glob(f"{split}/{stream}-{'[0-9]' * 6}.tar"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A sample's media member in a shard.

    Attributes:
        key: of the sample.
        label: class name, or None.
        frames: RGB frames of the sample, in a flow shard too.
        offset: bytes from the tar's start to the member's data.
        size: bytes of the data.
        sha256: of the data.
        made_from: SHA-256 of what it was made from: of a clip, or of the sample's RGB member.
    """

    key: str
    label: str | None
    frames: int
    offset: int
    size: int
    sha256: str
    made_from: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What is known of one shard.

    Attributes:
        stream: "rgb" or "flow-<name>".
        split: of all its samples.
        number: from 0.
        size: bytes of the tar.
        recipe: hash of the recipe.
        inputs: digest of everything it was made from.
        keys: expected, in order.
        members: of the samples present, in that order.
        failed: of the keys without a member: `reason` and `detail`.
    """

    stream: str
    split: str
    number: int
    size: int
    recipe: str
    inputs: str
    keys: tuple[str, ...]
    members: tuple[Member, ...]
    failed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @staticmethod
    def read(shard: Path) -> "Sidecar | None":
        """The sidecar of the tar `shard`; None if there is none.

        Raises:
            ShardError: it is of another schema version, or damaged.
        """
        path = shard.with_suffix(".json")
        if not path.exists():
            return None
        value = read_json(path)
        _check_schema(path, value)
        try:
            members = tuple(Member(**member) for member in value.pop("members"))
            return Sidecar(**value | {"keys": tuple(value["keys"]), "members": members})
        except (TypeError, KeyError) as error:
            raise ShardError(
                f"{path} is not a sidecar ({error}); remove it and give extract-flow again"
            ) from error

    def write(self, shard: Path) -> None:
        """Write the sidecar of the tar `shard`."""
        write_json(shard.with_suffix(".json"), {"schema_version": SCHEMA_VERSION} | asdict(self))

    def is_current(self, shard: Path, inputs: str) -> bool:
        """Whether the tar is there, whole, and made from `inputs`."""
        return self.inputs == inputs and shard.is_file() and shard.stat().st_size == self.size


def _check_schema(path: Path, value: Any) -> None:
    found = value.pop("schema_version", None) if isinstance(value, dict) else None
    if found != SCHEMA_VERSION:
        raise ShardError(
            f"{path} is of schema version {found}, this program reads {SCHEMA_VERSION}; "
            "make the shards again in another folder"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A sample on its way into a shard: `Member` says what the fields are.

    Attributes:
        path: file with the media member's data.
        about: what its json says beside key, label, label_id and frames.
    """

    key: str
    label: str | None
    frames: int
    path: Path
    made_from: str
    about: Mapping[str, Any]


def write_shard(
    shard: Path, contents: Iterable[Content], *, ext: str, labels: Sequence[str]
) -> tuple[int, tuple[Member, ...]]:
    """Write a tar, the same bytes for the same contents; return its size and its members.

    Args:
        shard: gets its name when all is written.
        contents: in order.
        ext: of the media members.
        labels: of the dataset.

    Raises:
        OSError: the disk is full; it names the shard.
    """
    import webdataset

    members = []
    # Never the new tar beside the old sidecar.
    shard.with_suffix(".json").unlink(missing_ok=True)
    _remove_leftovers(shard, shard.with_suffix(".json"))
    with naming(shard), publish(shard) as scratch:
        with (
            scratch.open("wb") as file,
            webdataset.TarWriter(
                file, user="", group="", mode=0o644, mtime=0, encoder=False
            ) as tar,
        ):
            for content in contents:
                data = content.path.read_bytes()
                text = json.dumps(_about(content, labels), sort_keys=True, ensure_ascii=False)
                tar.write({"__key__": content.key, ext: data, "json": text.encode()})
                members.append(_member(content, data))
        return scratch.stat().st_size, tuple(_located(scratch, members, ext))


def _remove_leftovers(*paths: Path) -> None:
    """Remove what killed writers of `paths` left beside them; no one else may be writing them."""
    for path in paths:
        for leftover in path.parent.glob(f".part-*-{path.name}"):
            leftover.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """In this block an OSError that names no file gets this one: a full disk does not say where."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _about(content: Content, labels: Sequence[str]) -> dict[str, Any]:
    label_id = None if content.label is None else labels.index(content.label)
    return {
        "key": content.key,
        "label": content.label,
        "label_id": label_id,
        "frames": content.frames,
        **content.about,
    }


def _member(content: Content, data: bytes) -> Member:
    return Member(
        key=content.key,
        label=content.label,
        frames=content.frames,
        offset=0,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        made_from=content.made_from,
    )


def _located(shard: Path, members: Iterable[Member], ext: str) -> Iterator[Member]:
    with tarfile.open(shard, "r:") as tar:
        offsets = {info.name: info.offset_data for info in tar}
    for member in members:
        yield Member(**asdict(member) | {"offset": offsets[f"{member.key}.{ext}"]})


# What runs must agree on, and what follows from the sidecars


def claim(
    folder: Path,
    *,
    labels: Sequence[str],
    layout: Mapping[str, Any],
    recipes: Mapping[str, Mapping[str, Any]],
    splits: Mapping[str, Mapping[str, int]],
) -> None:
    """Write down what this run makes in `folder`, or check that it agrees with earlier runs.

    Args:
        folder: of shards.
        labels: the dataset's full label list.
        layout: what decides which keys share a shard.
        recipes: of the streams that this run makes.
        splits: `expected` samples and `shards` of each split.

    Raises:
        OutError: shards there were made with other labels, another layout or another recipe.
        ShardError: they are of another schema version.
    """
    path = folder / "recipe.json"
    with exclusive(folder / ".lock-recipe"):
        _remove_leftovers(path)
        old: dict[str, Any] = {"labels": [], "layout": {}, "recipes": {}, "splits": {}}
        if path.exists():
            old = read_json(path)
            _check_schema(path, old)
        elif _shards_present(folder, RGB):
            raise OutError(
                f"{folder} holds shards, but its recipe.json is gone; choose another OUT"
            )
        if _shards_present(folder, RGB):
            if old["labels"] != list(labels):
                raise OutError(
                    f"{folder}: its shards have another label list ({len(old['labels'])} labels) "
                    f"than this run ({len(labels)}); choose another OUT"
                )
            _refuse_change(folder, "the shards", old["layout"], layout, "choose another OUT")
        for stream, recipe in recipes.items():
            if stream in old["recipes"] and _shards_present(folder, stream):
                way_out = "choose another OUT"
                if stream != RGB:
                    way_out = f"give the new flow its own --name, or {way_out}"
                _refuse_change(folder, stream, old["recipes"][stream], recipe, way_out)
        hashed = {stream: {**recipe, "hash": digest(recipe)} for stream, recipe in recipes.items()}
        new = {
            "schema_version": SCHEMA_VERSION,
            "labels": list(labels),
            "layout": dict(layout),
            "recipes": old["recipes"] | hashed,
            "splits": old["splits"] | dict(splits),
        }
        write_json(path, new)


def _refuse_change(
    folder: Path, what: str, old: Mapping[str, Any], new: Mapping[str, Any], way_out: str
) -> None:
    before, now = dict(_flat(old)), dict(_flat(new))
    before.pop("hash", None)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise OutError(
                f"{folder}: {what} there: {name} = {before.get(name)}, in this run: "
                f"{name} = {now.get(name)}; use the same, or {way_out}"
            )


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, inner


def remove_beyond(folder: Path, split: str, num_shards: int) -> None:
    """Remove the split's shards from number `num_shards` on: fewer keys are expected now."""
    for shard in _shards_present(folder, "*", split):
        if int(shard.stem[-6:]) >= num_shards:
            shard.with_suffix(".json").unlink(missing_ok=True)
            shard.unlink(missing_ok=True)


def write_index(folder: Path) -> dict[str, Any]:
    """Write `dataset.json` and the indices from the sidecars; return what dataset.json says.

    A shard that is not there, or not whole, is left out and logged; so is flow of a sample whose
    RGB has been made anew since.

    Raises:
        ShardError: nothing there to index, a shard of another recipe, or rgb and flow shards with
            different keys.
    """
    path = folder / "recipe.json"
    if not path.exists():
        raise ShardError(f"{folder} holds no shards (no recipe.json); make them with extract-flow")
    with exclusive(folder / ".lock-index"):
        claims = read_json(path)
        _check_schema(path, claims)
        splits = {}
        for split, expected in claims["splits"].items():
            table, gaps = _index_split(folder, split, expected["shards"], claims)
            index = folder / split / "index.parquet"
            _remove_leftovers(index, folder / "dataset.json")
            with publish(index) as scratch:
                table.to_parquet(scratch, index=False)
            present = {s: int(table[f"{s}_shard"].notna().sum()) for s in claims["recipes"]}
            splits[split] = {"expected": expected["expected"], "present": present, "gaps": gaps}
        dataset = {**claims, "schema_version": SCHEMA_VERSION, "splits": splits}
        write_json(folder / "dataset.json", dataset)
        return dataset


def _index_split(
    folder: Path, split: str, num_shards: int, claims: Mapping[str, Any]
) -> tuple["pd.DataFrame", dict[str, str]]:
    """A split's index, and the reason of each gap by key."""
    import pandas as pd

    label_ids = {label: number for number, label in enumerate(claims["labels"])}
    flows = sorted(claims["recipes"].keys() - {RGB})
    rows: list[dict[str, Any]] = []
    gaps: dict[str, str] = {}
    for number in range(num_shards):
        rgb = _sidecar_to_index(folder, split, RGB, number, claims)
        if rgb is None:
            continue
        gaps |= {key: failure["reason"] for key, failure in rgb.failed.items()}
        own = {
            member.key: {
                "key": member.key,
                "label": member.label,
                "label_id": None if member.label is None else label_ids[member.label],
                "frames": member.frames,
                **_columns(rgb, member),
            }
            for member in rgb.members
        }
        for stream in flows:
            flow = _sidecar_to_index(folder, split, stream, number, claims)
            if flow is not None:
                _join(own, rgb, flow)
        rows += own.values()
    names = ["key", "label", "label_id", "frames"]
    places = [f"{s}_{part}" for s in (RGB, *flows) for part in _PLACE]
    table = pd.DataFrame(rows, columns=[*names, *places])
    whole = [n for n in table.columns if n in names[2:] or n.endswith(("_offset", "_size"))]
    text = [n for n in table.columns if n not in whole]
    if table["key"].duplicated().any():
        twice = table["key"][table["key"].duplicated()].iloc[0]
        raise ShardError(f"{folder / split}: sample {twice} is in two shards; choose another OUT")
    return table.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(text, "string")), gaps


def _sidecar_to_index(
    folder: Path, split: str, stream: str, number: int, claims: Mapping[str, Any]
) -> Sidecar | None:
    shard = shard_path(folder, split, stream, number)
    sidecar = Sidecar.read(shard)
    if sidecar is None or not sidecar.is_current(shard, sidecar.inputs):
        logger.info("%s is not there, or not whole; it is left out of the index", shard)
        return None
    if sidecar.recipe != claims["recipes"][stream]["hash"]:
        raise ShardError(f"{shard} was made with another recipe; remove it and run extract-flow")
    return sidecar


def _columns(sidecar: Sidecar, member: Member) -> dict[str, Any]:
    name = f"{sidecar.stream}-{sidecar.number:06d}.tar"
    return {
        f"{sidecar.stream}_shard": name,
        f"{sidecar.stream}_offset": member.offset,
        f"{sidecar.stream}_size": member.size,
        f"{sidecar.stream}_sha256": member.sha256[:_CHECK_DIGITS],
    }


def _join(rows: Mapping[str, dict[str, Any]], rgb: Sidecar, flow: Sidecar) -> None:
    """Add the flow's columns to the rows of the samples whose RGB it was made from."""
    source = {member.key: (member.sha256, member.frames) for member in rgb.members}
    num_stale = 0
    for member in flow.members:
        if source.get(member.key) == (member.made_from, member.frames):
            rows[member.key].update(_columns(flow, member))
        else:
            num_stale += 1
    if num_stale:
        logger.info(
            "%s shard %d of %s: %d samples do not match the rgb shard and are left out",
            flow.stream,
            flow.number,
            flow.split,
            num_stale,
        )


# Reading


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
        from kinetics_tools.media import read_frames

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
        place = _place(self.flow_at, self.key, "flow")
        with _no_damage(place, self.key):
            codes = lookup("flow codec", self.codec, CODECS).decode(place.read(), indices)
        wanted = self.num_frames - 1 if indices is None else len(indices)
        return dequantise(_counted(codes, wanted, place), bound=self.bound)


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

    def __init__(self, folder: Path) -> None:
        """Open the folder.

        Raises:
            ShardError: it has no dataset.json, or one of another schema version.
        """
        path = folder / "dataset.json"
        if not path.exists():
            raise ShardError(
                f"{folder} holds no finished shards (no dataset.json); make them with: "
                f"extract-flow CLIPS {folder}"
            )
        dataset = read_json(path)
        _check_schema(path, dataset)
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
        places = (table[f"{stream}_{part}"] for part in _PLACE)
        return [
            Location(str(self.folder / split / shard), f"{key}.{ext}", offset, size, sha256)
            for key, shard, offset, size, sha256 in zip(table["key"], *places, strict=True)
        ]


def read_samples(
    folder: Path, split: str, streams: Sequence[str] = (RGB, "flow"), *, flow: str = "tvl1"
) -> Iterator[Sample]:
    """Yield the samples of a split in the order of its shards; see `ShardFolder.samples`.

    Raises:
        ShardError: the folder breaks the schema, or lacks what is asked for.
        UnknownNameError: no such split or flow there.
    """
    return iter(ShardFolder(folder).samples(split, streams, flow=flow))
