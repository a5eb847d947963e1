"""Writing the folder of shards: tars, their sidecars, the index.

A shard is done when its tar and, after it, its sidecar have their names. `dataset.json` and the
indices follow from the sidecars and can be written anew at any time. What lies where is said in
`shards`. The only importer of webdataset, which brings torch: it is imported where it writes.
"""

import hashlib
import json
import logging
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_tools.core.errors import OutError, ShardError
from kinetics_tools.core.files import digest, file_lock, publish, read_json, write_json
from kinetics_tools.shards.reader import (
    NUM_CHECK_DIGITS,
    PLACE_COLUMNS,
    RGB,
    SCHEMA_VERSION,
    check_schema,
    shard_path,
)

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


def _shards_present(folder: Path, stream: str, split: str = "*") -> list[Path]:
    return sorted(folder.glob(f"{split}/{stream}-{'[0-9]' * 6}.tar"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardMember:
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
        device: kind of device that computed it, "cpu" or "cuda"; empty for rgb.
    """

    stream: str
    split: str
    number: int
    size: int
    recipe: str
    inputs: str
    keys: tuple[str, ...]
    members: tuple[ShardMember, ...]
    failed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    device: str = ""

    @staticmethod
    def read(shard: Path) -> "Sidecar | None":
        """The sidecar of the tar `shard`; None if there is none.

        Raises:
            ShardError: it is of another schema version, or damaged.
        """
        path = shard.with_suffix(".json")
        try:
            value = read_json(path)
        except FileNotFoundError:  # or another part is just making the shard anew
            return None
        check_schema(path, value)
        try:
            members = tuple(ShardMember(**member) for member in value.pop("members"))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleContent:
    """A sample on its way into a shard: `ShardMember` says what the fields are.

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
    shard: Path, contents: Iterable[SampleContent], *, ext: str, labels: Sequence[str]
) -> tuple[int, tuple[ShardMember, ...]]:
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
    with publish(shard) as scratch:
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


def _about(content: SampleContent, labels: Sequence[str]) -> dict[str, Any]:
    label_id = None if content.label is None else labels.index(content.label)
    return {
        "key": content.key,
        "label": content.label,
        "label_id": label_id,
        "frames": content.frames,
        **content.about,
    }


def _member(content: SampleContent, data: bytes) -> ShardMember:
    return ShardMember(
        key=content.key,
        label=content.label,
        frames=content.frames,
        offset=0,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        made_from=content.made_from,
    )


def _located(shard: Path, members: Iterable[ShardMember], ext: str) -> Iterator[ShardMember]:
    with tarfile.open(shard, "r:") as tar:
        offsets = {info.name: info.offset_data for info in tar}
    for member in members:
        yield ShardMember(**asdict(member) | {"offset": offsets[f"{member.key}.{ext}"]})


# What runs must agree on, and what follows from the sidecars


def register_recipes(
    folder: Path,
    *,
    labels: Sequence[str],
    layout: Mapping[str, Any],
    recipes: Mapping[str, Mapping[str, Any]],
    splits: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write down what this run makes in `folder`, or check that it agrees with earlier runs.

    Args:
        folder: of shards.
        labels: the dataset's full label list.
        layout: what decides which keys share a shard.
        recipes: of the streams that this run makes.
        splits: `expected` samples, `shards`, and a digest of the `keys` of each split.

    Raises:
        OutError: shards there were made with other labels, another layout or another recipe.
        ShardError: they are of another schema version.
    """
    path = folder / "recipe.json"
    with file_lock(folder / ".lock-recipe"):
        old: dict[str, Any] = {"labels": [], "layout": {}, "recipes": {}, "splits": {}}
        dataset = folder / "dataset.json"
        if dataset.exists():
            check_schema(dataset, read_json(dataset))
        if path.exists():
            old = read_json(path)
            check_schema(path, old)
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


def keys_there(folder: Path, split: str) -> frozenset[str]:
    """The keys that the split's shards there were to hold, as their sidecars say."""
    sidecars = map(Sidecar.read, _shards_present(folder, RGB, split))
    return frozenset(key for sidecar in sidecars if sidecar is not None for key in sidecar.keys)


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
    with file_lock(folder / ".lock-index"):
        claims = read_json(path)
        check_schema(path, claims)
        splits = {}
        for split, expected in claims["splits"].items():
            table, gaps = _index_split(folder, split, expected["shards"], claims)
            index = folder / split / "index.parquet"
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
    absent: list[str] = []
    for number in range(num_shards):
        rgb = _sidecar_to_index(folder, split, RGB, number, claims)
        if rgb is None:
            absent.append(shard_path(folder, split, RGB, number).name)
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
            if flow is None:
                absent.append(shard_path(folder, split, stream, number).name)
            else:
                _join(own, rgb, flow)
        rows += own.values()
    if absent:
        logger.info(
            "%s: %d shards are left out of the index, such as %s: not made yet, or not whole",
            *(folder / split, len(absent), absent[0]),
        )
    names = ["key", "label", "label_id", "frames"]
    places = [f"{s}_{part}" for s in (RGB, *flows) for part in PLACE_COLUMNS]
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
        return None
    if sidecar.recipe != claims["recipes"][stream]["hash"]:
        raise ShardError(f"{shard} was made with another recipe; remove it and run extract-flow")
    return sidecar


def _columns(sidecar: Sidecar, member: ShardMember) -> dict[str, Any]:
    name = f"{sidecar.stream}-{sidecar.number:06d}.tar"
    return {
        f"{sidecar.stream}_shard": name,
        f"{sidecar.stream}_offset": member.offset,
        f"{sidecar.stream}_size": member.size,
        f"{sidecar.stream}_sha256": member.sha256[:NUM_CHECK_DIGITS],
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
