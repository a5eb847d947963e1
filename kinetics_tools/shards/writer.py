"""Writing a folder of shards: the tars, the recipe that runs must agree on, the index.

A shard is done when its tar and, after it, its sidecar have their names. `dataset.json` and the
indices follow from the sidecars and can be written again at any time. `records` says which files
there are. The only importer of webdataset, which brings torch: it is imported where it writes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kinetics_tools.core.errors import OutError, ShardError
from kinetics_tools.core.files import digest, file_lock, publish, refuse_links
from kinetics_tools.media.recipe import all_parameters
from kinetics_tools.shards.index import NUM_CHECK_DIGITS, IndexPlace, IndexRow, write_rows
from kinetics_tools.shards.records import (
    RGB,
    DamagedRecordError,
    Dataset,
    ExpectedSplit,
    Failure,
    FolderRecipe,
    FolderRecords,
    ShardMember,
    Sidecar,
    SplitContents,
    shard_path,
    shards_present,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleContent:
    """A sample that goes into a shard: `ShardMember` says what the fields are.

    Attributes:
        path: file with the member's data.
        about: what its json says beside key, label, label_id and frames.
    """

    key: str
    label: str | None
    frames: int
    path: Path
    made_from: str
    about: Mapping[str, Any]


def write_shard(
    folder: Path,
    sidecar: Sidecar,
    contents: Iterable[SampleContent],
    *,
    ext: str,
    labels: Sequence[str],
) -> Sidecar:
    """Write a shard, the same bytes for the same contents: its tar, then its sidecar.

    Args:
        folder: of shards.
        sidecar: what is known before the tar is written.
        contents: in order.
        ext: of the videos or the flow.
        labels: of the dataset.

    Returns:
        the sidecar as it is written, with `size` and `members`.

    Raises:
        OSError: the disk is full; it names the shard.
    """
    import webdataset

    members = []
    shard = sidecar.shard(folder)
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
        located = tuple(_located(scratch, members, ext))
        sidecar = replace(sidecar, size=scratch.stat().st_size, members=located)
    sidecar.write(folder)
    return sidecar


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
        yield replace(member, offset=offsets[f"{member.key}.{ext}"])


# What runs must agree on


def register_recipes(records: FolderRecords, new: FolderRecipe) -> None:
    """Write down what this run makes in a folder, or check that it agrees with earlier runs.

    Args:
        records: of the folder.
        new: the recipes of the streams and the splits that this run makes; those of earlier runs
            are kept.

    Raises:
        OutError: shards there were made with other labels, another layout or another recipe.
        ShardError: they have another schema version.
    """
    with file_lock(records.folder / ".lock-recipe"):
        agreed = agree(records, new)
        _restore_recipe(records)
        if agreed != _recorded_recipe(records):
            agreed.write(records.folder)


def agree(records: FolderRecords, new: FolderRecipe) -> FolderRecipe:
    """What `register_recipes` writes down; it raises the same, and writes nothing."""
    folder = records.folder
    Dataset.check_version(folder)
    old = _agreed_recipe(records)
    if old is None:
        return new
    if shards_present(folder, RGB):
        if old.labels != new.labels:
            raise OutError(
                f"{folder}: its shards have another label list ({len(old.labels)} labels) "
                f"than this run ({len(new.labels)}); choose another OUT"
            )
        _refuse_change(folder, "the shards", asdict(old.layout), asdict(new.layout))
    for stream in sorted(old.recipes.keys() & new.recipes.keys()):
        if shards_present(folder, stream):
            recipes = old.recipes[stream].parameters, new.recipes[stream].parameters
            before, now = map(all_parameters, recipes) if stream == RGB else recipes
            _refuse_change(folder, stream, before, now)
    return replace(new, recipes={**old.recipes, **new.recipes}, splits={**old.splits, **new.splits})


def _recorded_recipe(records: FolderRecords) -> FolderRecipe | None:
    """What recipe.json says; None where it is lost or damaged."""
    try:
        return records.recipe()
    except DamagedRecordError:
        return None


def _restore_recipe(records: FolderRecords) -> FolderRecipe | None:
    """Write recipe.json again, where it is lost or damaged; as for `_agreed_recipe`."""
    recipe = _agreed_recipe(records)
    if recipe is not None and _recorded_recipe(records) is None:
        path = records.folder / "recipe.json"
        lost = "damaged" if path.exists() else "gone"
        recipe.write(records.folder)
        logger.info("%s was %s; it is written from dataset.json", path, lost)
    return recipe


def _agreed_recipe(records: FolderRecords) -> FolderRecipe | None:
    """What the shards in a folder were made with; None where there are none yet.

    recipe.json says it. Where that is lost or damaged, dataset.json and the sidecars do.

    Raises:
        OutError: none of them says it.
        ShardError: one of them has another schema version.
    """
    folder = records.folder
    recipe = _recorded_recipe(records)
    if recipe is not None or not shards_present(folder, RGB):
        return recipe
    try:
        dataset = Dataset.read(folder)
    except DamagedRecordError:
        dataset = None
    if dataset is None:
        lost = "damaged" if (folder / "recipe.json").exists() else "gone"
        raise OutError(
            f"{folder} holds shards, but its recipe.json is {lost}, and there is no whole "
            "dataset.json to write it from; choose another OUT"
        )
    return FolderRecipe(
        labels=dataset.labels,
        layout=dataset.layout,
        recipes=dataset.recipes,
        splits={
            split: _expected(records, split, contents.expected)
            for split, contents in dataset.splits.items()
        },
    )


def _expected(records: FolderRecords, split: str, num_samples: int) -> ExpectedSplit:
    """What a split will hold, by its sidecars."""
    shards = shards_present(records.folder, RGB, split)
    sidecars = filter(None, map(records.sidecar, shards))
    return ExpectedSplit(
        expected=num_samples,
        shards=max((int(shard.stem[-6:]) + 1 for shard in shards), default=0),
        keys=digest([key for sidecar in sidecars for key in sidecar.keys]),
    )


def _refuse_change(folder: Path, what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, now = dict(_flat(old)), dict(_flat(new))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            advice = "give the new flow its own --name, or " if what.startswith("flow-") else ""
            raise OutError(
                f"{folder}: {what} there: {name} = {before.get(name)}, in this run: "
                f"{name} = {now.get(name)}; use the same, or {advice}choose another OUT"
            )


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, inner


def remove_beyond(folder: Path, split: str, num_shards: int) -> None:
    """Remove the split's shards from number `num_shards` on: fewer keys are expected now."""
    for shard in shards_present(folder, "*", split):
        if int(shard.stem[-6:]) >= num_shards:
            shard.with_suffix(".json").unlink(missing_ok=True)
            shard.unlink(missing_ok=True)


# The index


def write_index(records: FolderRecords) -> Dataset:
    """Write `dataset.json` and the indices from the sidecars; return what dataset.json says.

    A shard that is not there, or not whole, is left out and logged; so is flow of a sample whose
    RGB has been made again since.

    Raises:
        ShardError: there are no shards, a shard was made with another recipe, or a sample is in
            two shards.
    """
    folder = records.folder
    no_shards = ShardError(f"{folder} holds no shards; make them with extract-flow")
    if not (folder / "recipe.json").exists() and not shards_present(folder, RGB):
        raise no_shards  # here, as the lock would make the folder
    refuse_links(folder)
    with file_lock(folder / ".lock-index"):
        records.refresh(())  # another part may have made a shard again, and have indexed it
        with file_lock(folder / ".lock-recipe"):
            recipe = _restore_recipe(records)
        if recipe is None:
            raise no_shards
        streams = [RGB, *sorted(recipe.recipes.keys() - {RGB})]
        splits = {}
        for split, expected in recipe.splits.items():
            rows, gaps = _index_split(records, recipe, split, streams)
            write_rows(folder / split / "index.parquet", rows, streams)
            splits[split] = SplitContents(
                expected=expected.expected,
                present={s: sum(s in row.places for row in rows) for s in sorted(streams)},
                gaps={key: failure.reason for key, failure in gaps.items()},
                gap_labels={key: each.label for key, each in gaps.items() if each.label},
            )
        dataset = Dataset(
            labels=recipe.labels, layout=recipe.layout, recipes=recipe.recipes, splits=splits
        )
        dataset.write(folder)
        return dataset


def _index_split(
    records: FolderRecords, recipe: FolderRecipe, split: str, streams: Sequence[str]
) -> tuple[list[IndexRow], dict[str, Failure]]:
    """The rows of a split's index, and its gaps by key."""
    folder = records.folder
    label_ids = {label: number for number, label in enumerate(recipe.labels)}
    rows: dict[str, IndexRow] = {}
    gaps: dict[str, Failure] = {}
    absent: list[str] = []
    for number in range(recipe.splits[split].shards):
        present = {}
        for stream in streams:
            shard = shard_path(folder, split, stream, number)
            sidecar = records.whole_sidecar(shard)
            if sidecar is None:
                absent.append(shard.name)
                continue
            if sidecar.recipe != recipe.recipes[stream].hash:
                raise ShardError(
                    f"{shard} was made with another recipe; move it away and run extract-flow"
                )
            present[stream] = sidecar
        rgb = present.pop(RGB, None)
        if rgb is not None:
            gaps |= rgb.failed
            own = {member.key: _row(rgb, member, label_ids) for member in rgb.members}
            for flow in present.values():
                _join(own, rgb, flow)
            for key in own.keys() & rows.keys():
                raise ShardError(
                    f"{folder / split}: sample {key} is in two shards; choose another OUT"
                )
            rows |= own
    if absent:
        logger.info(
            "%s: %d shards are left out of the index, such as %s: not made yet, or not whole",
            *(folder / split, len(absent), absent[0]),
        )
    return list(rows.values()), gaps


def _row(rgb: Sidecar, member: ShardMember, label_ids: Mapping[str, int]) -> IndexRow:
    if member.label is not None and member.label not in label_ids:
        raise ShardError(
            f"{rgb.split}, shard {rgb.number}: {member.key} has the label {member.label!r}, which "
            "recipe.json does not have; choose another OUT"
        )
    label_id = None if member.label is None else label_ids[member.label]
    return IndexRow(member.key, member.label, label_id, member.frames, {RGB: _place(rgb, member)})


def _place(sidecar: Sidecar, member: ShardMember) -> IndexPlace:
    shard = sidecar.shard(Path()).name
    return IndexPlace(shard, member.offset, member.size, member.sha256[:NUM_CHECK_DIGITS])


def _join(rows: Mapping[str, IndexRow], rgb: Sidecar, flow: Sidecar) -> None:
    """Add the flow's places to the rows of the samples whose RGB it was made from."""
    source = {member.key: (member.sha256, member.frames) for member in rgb.members}
    num_stale = 0
    for member in flow.members:
        if source.get(member.key) == (member.made_from, member.frames):
            rows[member.key].places[flow.stream] = _place(flow, member)
        else:
            num_stale += 1
    if num_stale:
        logger.info(
            "%s shard %d of %s: %d samples do not match the rgb shard and are left out",
            *(flow.stream, flow.number, flow.split, num_stale),
        )
