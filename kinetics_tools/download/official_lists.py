"""The official lists of Kinetics, by name: fetched once, checked, kept in the user's cache.

A name is `kinetics400`, or `kinetics400/val` for one of its splits. The file published for a
dataset is an archive with one CSV per split. The cache holds those CSVs and a record of their
origin. It is written only after everything was read and checked, so a cached list is used without
the network.
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
from kinetics_tools.core.errors import ManifestError, OutError, SourceError, lookup
from kinetics_tools.core.files import (
    OTHER_CACHE_DIR,
    digest,
    file_digest,
    file_lock,
    read_json,
    scratch_folder,
    write_json,
)
from kinetics_tools.core.keys import require_own_folders
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
# Rows of the lists as published. Two versions of Kinetics-400's test list exist: ActivityNet's
# without labels, and CVDF's. For the later datasets the papers give rounded or other counts, so
# their rows are counted but not checked.
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
ORIGINS = "origin.json"
MAX_BYTES = 2**30  # of an unpacked archive; the largest list has well under half of that
_GZIP = b"\x1f\x8b"
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialList:
    """An official list, or one split of it.

    Attributes:
        name: as the user gave it, such as "kinetics400" or "kinetics400/val".
        manifest: its rows.
        labels: all labels of the dataset, sorted, also for one split.
        address: from which it was fetched.
        sha256: of the file at that address, hex.
        rows: number of rows in the list, by split; only the splits that `name` means.
    """

    name: str
    manifest: Manifest
    labels: tuple[str, ...]
    address: str
    sha256: str
    rows: Mapping[str, int]

    def record(self, out: Path) -> None:
        """Add the origin of these rows to `out/origin.json`.

        Raises:
            OutError: that file is not ours.
        """
        path = out / ORIGINS
        dataset = self.name.partition("/")[0]
        with file_lock(out / ".lock-manifest"):
            origins = dict.fromkeys(read_origins(path))
            for split, rows in sorted(self.rows.items()):
                origins[Origin(f"{dataset}/{split}", self.address, self.sha256, rows)] = None
            in_order = sorted(origins, key=lambda origin: (origin.list, origin.sha256))
            write_json(path, [asdict(origin) for origin in in_order])


@dataclass(frozen=True, slots=True)
class Origin:
    """Where rows of an OUT came from: an entry of its `origin.json`.

    Attributes:
        list: an official list's split, such as "kinetics400/val".
        address: from which it was fetched.
        sha256: of the file at that address, hex.
        rows: number of rows in that split's list.
    """

    list: str
    address: str
    sha256: str
    rows: int


def read_origins(path: Path) -> list[Origin]:
    """The entries of an `origin.json`; none where there is no such file.

    Raises:
        OutError: it is not one of ours.
    """
    if not path.exists():
        return []
    try:
        return [Origin(**entry) for entry in read_json(path)]
    except TypeError as error:
        raise OutError(f"{path} is not a list of origins ({error}); move it away") from error


def is_name(text: str) -> bool:
    """Whether MANIFEST names an official list. A file of that name is given as ./NAME."""
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
        address: of such an archive, or of a CSV, instead of the official one.
        skip_bad_rows: as in `read_manifest`.
        pauses_s: as in `http_client.fetch`.

    Raises:
        UnknownNameError: no such split.
        ManifestError: it cannot be fetched, is damaged, or is not the list that `name` means; or
            some of its rows are bad.
    """
    dataset, slash, word = name.partition("/")
    official = lookup("list", dataset, ADDRESSES)
    known = {split: split for split in SPLITS}
    split = lookup("split", SPLIT_ALIASES.get(word, word), known) if slash else None
    address = official if address is None else address
    home = cache / "manifests"
    folder = home / f"{dataset}-{digest(address)[:8]}"
    cached = _read_cached(folder)
    if cached is None:
        with file_lock(home / f".lock-{folder.name}", OTHER_CACHE_DIR):
            # Another run may have fetched it while this one waited.
            cached = _read_cached(folder) or _fetch(dataset, address, folder, split, pauses_s)
    if split is not None and split not in cached.splits:
        raise ManifestError(f"{address} has no {split} list; it has {', '.join(cached.splits)}")
    names = sorted(cached.splits, key=_rank) if split is None else [split]
    chosen = {name: cached.splits[name] for name in names}
    return OfficialList(
        name=name,
        manifest=_read(folder, dataset, chosen, skip_bad_rows=skip_bad_rows),
        labels=cached.labels,
        address=address,
        sha256=cached.sha256,
        rows={name: found.rows for name, found in chosen.items()},
    )


def _rank(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS)), split


@dataclass(frozen=True, slots=True)
class _Split:
    """A split in the cache: its CSV, that file's SHA-256, and how many of its rows are of it."""

    file: str
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class _CachedList:
    """What the cache has of one address: `list.json` in the folder of its CSVs."""

    address: str
    sha256: str
    labels: tuple[str, ...]
    splits: Mapping[str, _Split]


def _read_cached(folder: Path) -> _CachedList | None:
    """What the cache has in `folder`; None where it has nothing, or its files were changed."""
    path = folder / "list.json"
    if not path.is_file():
        return None
    try:
        value = read_json(path)
        cached = _CachedList(
            address=value["address"],
            sha256=value["sha256"],
            labels=tuple(value["labels"]),
            splits={name: _Split(**facts) for name, facts in value["splits"].items()},
        )
    except (OutError, TypeError, KeyError, AttributeError) as error:
        logger.info("%s is damaged (%s); the list is downloaded again", path, error)
        return None
    for split in cached.splits.values():
        file = folder / split.file
        if not file.is_file() or file_digest(file) != split.sha256:
            logger.info("%s was changed; the list is downloaded again", file)
            return None
    return cached


def _read(
    folder: Path, dataset: str, splits: Mapping[str, _Split], *, skip_bad_rows: bool
) -> Manifest:
    """The rows of some splits. Splits may share a file, also with other splits."""
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
            f"give one split at a time, such as {dataset}/val, each into a folder of its own"
        )
    return Manifest(
        segments,
        tuple(row for manifest in read for row in manifest.bad_rows),
        sum(manifest.num_duplicates for manifest in read),
    )


def _fetch(
    dataset: str, address: str, folder: Path, split: str | None, pauses_s: Sequence[float]
) -> _CachedList:
    """Fetch and check the list at `address`, and store it in `folder`."""
    with scratch_folder(folder.parent, OTHER_CACHE_DIR) as scratch:
        fetched, new = scratch / "fetched", scratch / "new"
        logger.info("downloading the list of %s from %s", dataset, address)
        try:
            http_client.fetch(address, fetched, pauses_s=pauses_s)
        except SourceError as error:
            raise ManifestError(
                f"{dataset} cannot be downloaded ({error.reason}: {error.detail}); try again, or "
                "give a CSV by its path (kinetics-download: or another --manifest-address)"
            ) from error
        new.mkdir()
        cached = _unpack(dataset, address, fetched, new, split)
        write_json(new / "list.json", asdict(cached))
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
    return cached


def _unpack(
    dataset: str, address: str, fetched: Path, into: Path, split: str | None
) -> _CachedList:
    """Write the CSVs of a fetched file into a folder, and check that they are the dataset's."""
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
        raise ManifestError(f"{address}: this archive has no {', '.join(sorted(MEMBERS))}")
    for name, found in splits.items():
        _check_rows(dataset, name, found.rows, address)
    full = _full_labels(dataset, labels, address)
    return _CachedList(address, file_digest(fetched), full, splits)


def _lists(address: str, fetched: Path) -> Iterator[tuple[str | None, bytes]]:
    """Yield each list in a fetched file: the split that its name means (None: a CSV), its bytes."""
    with fetched.open("rb") as file:
        is_archive = file.read(len(_GZIP)) == _GZIP
    if not is_archive:
        yield None, fetched.read_bytes()
        return
    try:
        with gzip.open(fetched) as unzipped:
            stream = _Bounded(unzipped, address)
            # Members are read, never extracted: of their paths only the base name is used.
            with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]  # only read() is used
                for member in archive:
                    split = MEMBERS.get(PurePosixPath(member.name).name)
                    is_plain = member.isreg() and not member.issparse()
                    content = archive.extractfile(member) if split and is_plain else None
                    if content is not None:
                        yield split, content.read()
            while stream.read(2**20):
                pass  # to the end, where gzip has its checksum
    except _DAMAGED as error:
        raise ManifestError(
            f"{address} is damaged or cut off ({error}); rerun the same command"
        ) from error


class _Bounded:
    """A file of which at most MAX_BYTES can be read: a small archive can unpack to any size."""

    def __init__(self, file: gzip.GzipFile, address: str) -> None:
        self._file = file
        self._left = MAX_BYTES
        self._address = address

    def read(self, size: int) -> bytes:
        """Read `size` bytes, fewer only at the end.

        Raises:
            ManifestError: more than MAX_BYTES were read.
        """
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ManifestError(f"{self._address} unpacks to more than {MAX_BYTES >> 20} MiB")
        return data


def _count(read: Manifest) -> dict[str, int]:
    """Rows by split. Where all are of one split, duplicates and bad rows count there."""
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
            f"{' or '.join(map(str, expected))}; to use it anyway, give the CSV by its path"
        )


def _full_labels(dataset: str, found: set[str], address: str) -> tuple[str, ...]:
    """The dataset's full label list: the labels found, else a known dataset's own."""
    labels = tuple(sorted(found))
    known = known_labels(dataset) if dataset in KNOWN_LABELS else labels
    if not labels and known:
        return known
    if len(labels) != NUM_LABELS[dataset] or labels != known:
        odd = sorted(set(labels) ^ set(known))
        which = f", {odd[0]!r} is only in one of them" if odd else ""
        raise ManifestError(
            f"{address} has {len(labels)} labels, {dataset} has {NUM_LABELS[dataset]}{which}; "
            "to use it anyway, give the CSV by its path, with --labels"
        )
    require_own_folders(labels)
    return labels
