"""The official lists of Kinetics, by name: fetched once, checked, kept in the user's cache.

A name is `kinetics400`, or `kinetics400/val` for one of its splits. What is published under a name
is an archive with a CSV for each split. The cache keeps those CSVs and a record of where they came
from; it is written only when all of it has been read and checked, so that what is in the cache is
used without asking the network again.
"""

import gzip
import logging
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from kinetics_tools.core import http_client
from kinetics_tools.core.errors import ManifestError, SourceError, lookup
from kinetics_tools.core.files import (
    digest,
    file_digest,
    file_lock,
    read_json,
    scratch_folder,
    write_json,
)
from kinetics_tools.dataset.labels import KNOWN_LABELS, known_labels
from kinetics_tools.dataset.manifest import SPLIT_ALIASES, Manifest, parse_manifest, read_manifest

logger = logging.getLogger(__name__)

ADDRESSES: Mapping[str, str] = {
    "kinetics400": "https://storage.googleapis.com/deepmind-media/Datasets/kinetics400.tar.gz",
    "kinetics600": "https://storage.googleapis.com/deepmind-media/Datasets/kinetics600.tar.gz",
    "kinetics700": "https://storage.googleapis.com/deepmind-media/Datasets/kinetics700.tar.gz",
    "kinetics700-2020": (
        "https://storage.googleapis.com/deepmind-media/Datasets/kinetics700_2020.tar.gz"
    ),
}
NUM_LABELS: Mapping[str, int] = {
    "kinetics400": 400,
    "kinetics600": 600,
    "kinetics700": 700,
    "kinetics700-2020": 700,
}
# Rows of the lists as published. Two test lists of Kinetics-400 go round: ActivityNet's without
# labels, and CVDF's. For the later sets the papers give rounded or other counts: theirs are
# recorded, not judged.
NUM_ROWS: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("kinetics400", "train"): (246_534,),
    ("kinetics400", "val"): (19_906,),
    ("kinetics400", "test"): (38_685, 39_805),
}
SPLITS = ("train", "val", "test")  # in the order in which a whole list gives its rows
MEMBERS: Mapping[str, str] = {
    "train.csv": "train",
    "validate.csv": "val",
    "val.csv": "val",
    "test.csv": "test",
}
MAX_BYTES = 2**30  # of an archive unpacked; the largest list has well under half of that
_GZIP = b"\x1f\x8b"
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialList:
    """An official list, or one split of it.

    Attributes:
        name: as asked for, such as "kinetics400" or "kinetics400/val".
        manifest: its rows.
        labels: all labels of the dataset, sorted, whatever splits were asked for.
        address: where it was fetched.
        sha256: of the file at that address, hex.
        rows: how many rows the list has, by split; of the splits asked for.
    """

    name: str
    manifest: Manifest
    labels: tuple[str, ...]
    address: str
    sha256: str
    rows: Mapping[str, int]

    def record(self, out: Path) -> None:
        """Add to `out/origin.json` where these rows came from."""
        path = out / "origin.json"
        dataset = self.name.partition("/")[0]
        with file_lock(out / ".lock-manifest"):
            known = read_json(path) if path.exists() else []
            for split, rows in sorted(self.rows.items()):
                line = {
                    "list": f"{dataset}/{split}",
                    "address": self.address,
                    "sha256": self.sha256,
                    "rows": rows,
                }
                if line not in known:
                    known.append(line)
            write_json(path, sorted(known, key=lambda line: (line["list"], line["sha256"])))


def is_name(text: str) -> bool:
    """Whether a word of the command line names an official list. A file is given as ./NAME."""
    dataset, _, split = text.partition("/")
    return dataset in ADDRESSES and split.isalpha() | (split == "")


def fetch(
    name: str,
    cache: Path,
    *,
    address: str | None = None,
    skip_bad_rows: bool = False,
    pauses_s: Sequence[float] = http_client.PAUSES_S,
) -> OfficialList:
    """An official list: from the cache, else fetched, checked and cached.

    Args:
        name: a dataset's name, or `NAME/SPLIT`.
        cache: the user's cache folder.
        address: in place of the official one: of such an archive, or of a CSV.
        skip_bad_rows: as in `read_manifest`.
        pauses_s: as in `web.fetch`.

    Raises:
        UnknownNameError: no such split.
        ManifestError: it cannot be fetched, is damaged, or is not the list that the name promises;
            or some rows asked for are bad.
    """
    dataset, slash, word = name.partition("/")
    official = lookup("list", dataset, ADDRESSES)
    known = {split: split for split in SPLITS}
    split = lookup("split", SPLIT_ALIASES.get(word, word), known) if slash else None
    address = official if address is None else address
    home = cache / "manifests"
    folder = home / f"{dataset}-{digest(address)[:8]}"
    with file_lock(home / f".lock-{folder.name}"):
        kept = _kept(folder)
        if kept is None:
            kept = _fetch(dataset, address, folder, split, pauses_s)
    if split is not None and split not in kept.splits:
        raise ManifestError(f"{address} has no {split} list; it has {', '.join(kept.splits)}")
    names = sorted(kept.splits, key=_rank) if split is None else [split]
    chosen = {name: kept.splits[name] for name in names}
    return OfficialList(
        name=name,
        manifest=_read(folder, dataset, chosen, skip_bad_rows=skip_bad_rows),
        labels=kept.labels,
        address=address,
        sha256=kept.sha256,
        rows={name: found.rows for name, found in chosen.items()},
    )


def _rank(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS)), split


@dataclass(frozen=True, slots=True)
class _Split:
    """Where the cache has a split: a CSV, its digest, and how many of its rows are the split's."""

    file: str
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class _Kept:
    """The cache's record of one address; `list.json` in the folder of its CSVs."""

    address: str
    sha256: str
    labels: tuple[str, ...]
    splits: Mapping[str, _Split]


def _kept(folder: Path) -> _Kept | None:
    """What the cache has in `folder`; None where that is nothing, or not what was put there."""
    path = folder / "list.json"
    if not path.is_file():
        return None
    value = read_json(path)
    splits = {name: _Split(**facts) for name, facts in value.pop("splits").items()}
    kept = _Kept(**value | {"labels": tuple(value["labels"])}, splits=splits)
    for split in splits.values():
        file = folder / split.file
        if not file.is_file() or file_digest(file) != split.sha256:
            logger.info("%s was changed; the list is fetched again", file)
            return None
    return kept


def _read(
    folder: Path, dataset: str, splits: Mapping[str, _Split], *, skip_bad_rows: bool
) -> Manifest:
    """The rows of some splits. They may share a file, and then others may be in it too."""
    read = []
    for file in dict.fromkeys(split.file for split in splits.values()):
        mine = [name for name, split in splits.items() if split.file == file]
        found = read_manifest(folder / file, skip_bad_rows=skip_bad_rows, split=mine[0])
        read.append(
            Manifest(
                tuple(s for s in found.segments if s.split in mine),
                found.bad_rows,
                found.num_duplicates,
            )
        )
    segments = tuple(segment for manifest in read for segment in manifest.segments)
    twice = [key for key, count in Counter(s.key for s in segments).items() if count > 1]
    if twice:
        raise ManifestError(
            f"{dataset} has {len(twice)} segments in two splits, the first is {twice[0]}; "
            f"ask for one split at a time, such as {dataset}/val, each into a folder of its own"
        )
    return Manifest(
        segments,
        tuple(row for manifest in read for row in manifest.bad_rows),
        sum(manifest.num_duplicates for manifest in read),
    )


def _fetch(
    dataset: str, address: str, folder: Path, split: str | None, pauses_s: Sequence[float]
) -> _Kept:
    """Fetch and check what is at `address`, and make `folder` of it."""
    with scratch_folder(folder.parent) as scratch:
        fetched, new = scratch / "fetched", scratch / "new"
        logger.info("fetching the list of %s from %s", dataset, address)
        try:
            http_client.fetch(address, fetched, pauses_s=pauses_s)
        except SourceError as error:
            raise ManifestError(
                f"{dataset} cannot be fetched ({error.reason}: {error.detail}); try "
                "again, name another --manifest-address, or give a CSV by its path"
            ) from error
        new.mkdir()
        kept = _unpack(dataset, address, fetched, new, split)
        write_json(new / "list.json", asdict(kept))
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
    return kept


def _unpack(dataset: str, address: str, fetched: Path, into: Path, split: str | None) -> _Kept:
    """Write the CSVs of a fetched file into a folder, and check that they are the list."""
    splits: dict[str, _Split] = {}
    labels: set[str] = set()
    for its_split, data in _lists(address, fetched):
        file = f"{its_split or 'list'}.csv"
        read = parse_manifest(
            data, f"{address}, {file}", skip_bad_rows=True, split=its_split or split
        )
        labels.update(read.labels)
        (into / file).write_bytes(data)
        for name, rows in _count(read).items():
            if name in splits:
                raise ManifestError(f"{address}: two of its lists have rows of the split {name}")
            splits[name] = _Split(file, file_digest(into / file), rows)
    if not splits:
        raise ManifestError(f"{address}: no {', '.join(sorted(MEMBERS))} is in this archive")
    for name, found in splits.items():
        _check_rows(dataset, name, found.rows, address)
    return _Kept(address, file_digest(fetched), _full(dataset, labels, address), splits)


def _lists(address: str, fetched: Path) -> Iterator[tuple[str | None, bytes]]:
    """Each list in a fetched file: the split that an archive's member is named for, its bytes."""
    with fetched.open("rb") as file:
        is_archive = file.read(len(_GZIP)) == _GZIP
    if not is_archive:
        yield None, fetched.read_bytes()
        return
    try:
        with gzip.open(fetched) as unzipped:
            stream = _Bounded(unzipped, address)
            # Members are read, never extracted: their paths say nothing to us but a base name.
            with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]  # only read() is used
                for member in archive:
                    split = MEMBERS.get(PurePosixPath(member.name).name)
                    is_plain = member.isreg() and not member.issparse()
                    content = archive.extractfile(member) if split and is_plain else None
                    if content is not None:
                        yield split, content.read()
            while stream.read(2**20):
                pass  # to the end, where gzip keeps its checksum
    except _DAMAGED as error:
        raise ManifestError(
            f"{address} is damaged or cut off ({error}); give the same command again"
        ) from error


class _Bounded:
    """A file that may give at most MAX_BYTES: a small archive can claim to hold anything."""

    def __init__(self, file: gzip.GzipFile, address: str) -> None:
        self._file = file
        self._left = MAX_BYTES
        self._address = address

    def read(self, size: int) -> bytes:
        """As of any file."""
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ManifestError(f"{self._address} unpacks to more than {MAX_BYTES >> 20} MiB")
        return data


def _count(read: Manifest) -> dict[str, int]:
    """Rows by split. Those that are no segment belong to the split of the others, if it is one."""
    counts = Counter(s.split for s in read.segments)
    if len(counts) == 1:
        (only,) = counts
        counts[only] += read.num_duplicates + len(read.bad_rows)
    return dict(counts)


def _check_rows(dataset: str, split: str, rows: int, address: str) -> None:
    expected = NUM_ROWS.get((dataset, split), (rows,))
    if rows not in expected:
        raise ManifestError(
            f"{address}: its {split} list has {rows} rows, {dataset}'s has "
            f"{' or '.join(map(str, expected))}; to use it nevertheless give the CSV by its path"
        )


def _full(dataset: str, found: set[str], address: str) -> tuple[str, ...]:
    """The dataset's whole label list. A list without labels leaves a known one as it is."""
    labels = tuple(sorted(found))
    known = known_labels(dataset) if dataset in KNOWN_LABELS else labels
    if not labels and known:
        return known
    if len(labels) != NUM_LABELS[dataset] or labels != known:
        odd = sorted(set(labels) ^ set(known))
        which = f", {odd[0]!r} for one is not in both" if odd else ""
        raise ManifestError(
            f"{address} has {len(labels)} labels, {dataset} has {NUM_LABELS[dataset]}{which}; "
            "to use it nevertheless give the CSV by its path, with --labels"
        )
    return labels
