"""OUT, the folder that kinetics-download fills: its manifest, label list and clips."""

import os
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from kinetics_tools.core.errors import ManifestError, OutError
from kinetics_tools.core.files import file_lock, require_file, write_text
from kinetics_tools.core.keys import label_folder
from kinetics_tools.dataset.labels import read_labels
from kinetics_tools.dataset.manifest import Manifest, Segment, format_manifest, read_manifest

MISSING = "missing"  # reason of a clip that the ledger has as done, but whose file is lost


def read_out(out: Path) -> tuple[Manifest, tuple[str, ...]]:
    """The manifest of all clips expected in `out`, and the dataset's full label list.

    Raises:
        ManifestError: `out` is not such a folder, or its two lists are not of one dataset.
        OutError: one of the lists is not a file.
    """
    table, listed = out / "manifest.csv", out / "labels.txt"
    if not os.path.lexists(table):
        raise ManifestError(
            f"{out} holds no manifest.csv; give a folder that kinetics-download filled"
        )
    require_file(table)
    manifest = read_manifest(table)
    labels = _listed_labels(listed) or manifest.labels
    unknown = sorted(set(manifest.labels) - set(labels))
    if unknown:
        raise ManifestError(
            f"{listed} lacks {unknown[0]!r}, a label of {table}; these files are not of one dataset"
        )
    return manifest, labels


def _listed_labels(path: Path) -> tuple[str, ...]:
    """The labels that `labels.txt` has; none where no row has a label, or there is no such file."""
    if not os.path.lexists(path):
        return ()
    require_file(path)
    return read_labels(path) if path.stat().st_size > 0 else ()


def clip_files(out: Path) -> dict[str, int]:
    """The files in `clips/<split>/<label>` of `out`, with their sizes in bytes.

    Names are relative to `out`, with slashes. Hidden files are still being written and are skipped.
    """
    return {
        f"clips/{split.name}/{label.name}/{clip.name}": clip.stat().st_size
        for split in _entries(out / "clips")
        for label in _entries(split)
        for clip in _entries(label)
        if Path(clip).is_file()  # an entry's own raises for a loop of links
    }


def _entries(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """The entries of a folder, by name; none where it does not exist or is not a folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (e for e in entries if not e.name.startswith(".")), key=attrgetter("name")
            )
    except (FileNotFoundError, NotADirectoryError):
        return []


def clip_path(out: Path, segment: Segment) -> Path:
    """The path of a segment's clip in `out`."""
    return out / clip_name(segment)


def clip_name(segment: Segment) -> str:
    """The path of a segment's clip relative to OUT, with slashes."""
    return f"clips/{segment.split}/{label_folder(segment.label)}/{segment.key}.mp4"


def record_selection(out: Path, segments: Sequence[Segment], labels: tuple[str, ...]) -> None:
    """Add the segments to `out/manifest.csv` and put `labels` into `out/labels.txt`.

    The manifest of an OUT has the segments of all runs so far: a later run may add a split.

    Raises:
        OutError: OUT has another label list, or a row with the same key and another label or time.
    """
    with file_lock(out / ".lock-manifest"):
        for target, text in agree(out, segments, labels).items():
            if not target.exists() or target.read_text(encoding="utf-8") != text:
                write_text(target, text)


def agree(out: Path, segments: Sequence[Segment], labels: tuple[str, ...]) -> dict[Path, str]:
    """The files that `record_selection` writes; it raises the same, and writes nothing."""
    kept = out / "labels.txt"
    if (old := _listed_labels(kept)) and old != labels:
        if not set(labels) <= set(old):
            raise OutError(
                f"{kept} has {len(old)} labels, which are not this run's {len(labels)};"
                " name the full list with --labels, or choose another folder"
            )
        labels = old
    path = out / "manifest.csv"
    known = {s.key: s for s in read_manifest(path).segments} if path.exists() else {}
    for segment in segments:
        if known.setdefault(segment.key, segment) != segment:
            raise OutError(
                f"{path} has another row for {segment.key}; choose another folder for this list"
            )
    text = "".join(f"{label}\n" for label in labels)
    return {path: format_manifest(known.values()), kept: text}
