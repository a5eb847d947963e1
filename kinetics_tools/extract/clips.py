"""The clips that extract-flow's CLIPS holds, and those that it should hold.

CLIPS is a folder that kinetics-download filled: the manifest says which clips are expected, and the
ledger why some are missing. Or it has one folder of videos per class, such as UCF-101's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kinetics_tools.core.errors import PERMANENT, ManifestError, lookup
from kinetics_tools.core.files import file_digest
from kinetics_tools.core.keys import VIDEO_SUFFIXES, file_keys
from kinetics_tools.dataset import ledger
from kinetics_tools.dataset.layout import MISSING, clip_path, read_out

ALL = "all"  # the split of a folder of class folders


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A clip that is expected.

    Attributes:
        key: its name.
        label: class name, or None.
        split: of its sample.
        path: of its file.
        source: the path relative to CLIPS.
        sha256: of the file; None if the clip is missing.
        reason: why it would be missing.
        frames: their number, as the ledger says, or None.
    """

    key: str
    label: str | None
    split: str
    path: Path
    source: str
    sha256: str | None
    reason: str = MISSING
    frames: int | None = None


@dataclass(frozen=True, slots=True)
class ClipSet:
    """All clips that are expected, and the dataset's full label list."""

    labels: tuple[str, ...]
    clips: tuple[Clip, ...]


def read_clips(root: Path, splits: Sequence[str] = (), *, out: Path | None = None) -> ClipSet:
    """Read what a folder of clips holds, and what it should hold.

    Args:
        root: a folder that kinetics-download filled, or one with a folder of videos per class.
        splits: only these; empty for all.
        out: folder of the shards; it may not lie among the class folders.

    Raises:
        ManifestError: it is neither; the message says what was looked for.
        UnknownNameError: it has no such split.
    """
    if not root.is_dir():
        raise ManifestError(
            f"{root} is not a folder; give kinetics-download's OUT, or a folder of class folders"
        )
    if out is not None and out.resolve() == root.resolve():
        raise ManifestError(f"{out} is both CLIPS and OUT; choose another OUT")
    if (root / "manifest.csv").is_file():
        return _downloaded(root, splits)
    _check_splits(splits, (ALL,))
    if out is not None and root.resolve() in out.resolve().parents:
        raise ManifestError(f"{out} lies in {root}, whose folders are classes; choose another OUT")
    return _class_folders(root)


def _check_splits(splits: Iterable[str], present: Iterable[str]) -> None:
    """Raise UnknownNameError for a split that is not among `present`."""
    known = {split: split for split in present}
    for split in splits:
        lookup("split", split, known)


def _downloaded(root: Path, splits: Sequence[str]) -> ClipSet:
    manifest, labels = read_out(root)
    _check_splits(splits, {segment.split for segment in manifest.segments})
    histories = ledger.read(root)
    clips = []
    for segment in manifest.segments:
        if splits and segment.split not in splits:
            continue
        path = clip_path(root, segment)
        history = histories.get(segment.key, ledger.History())
        clips.append(
            Clip(
                key=segment.key,
                label=segment.label,
                split=segment.split,
                path=path,
                source=path.relative_to(root).as_posix(),
                sha256=_clip_digest(path, history),
                reason=_gap_reason(history),
                frames=history.done.frames if history.done else None,
            )
        )
    return ClipSet(labels, tuple(clips))


def _clip_digest(path: Path, history: ledger.History) -> str | None:
    if history.is_broken or not path.is_file():
        return None
    done = history.done
    if done is not None and done.sha256 and done.bytes == path.stat().st_size:
        return done.sha256
    return file_digest(path)


def _gap_reason(history: ledger.History) -> str:
    """The reason, if it is permanent: every change of a reason makes the shard again."""
    return history.main_reason if history.main_reason in PERMANENT else MISSING


def _class_folders(root: Path) -> ClipSet:
    looked_for = (
        f"looked for manifest.csv (kinetics-download's OUT), and for class folders of videos "
        f"({', '.join(sorted(VIDEO_SUFFIXES))})"
    )
    try:
        entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
        loose = [entry for entry in entries if _is_video(entry)]
        if loose:
            raise ManifestError(
                f"{root}: {len(loose)} videos such as {loose[0].name} are in no class folder; "
                "put each into the folder of its class, or give the folder above"
            )
        found = {
            folder.name: [f for f in sorted(folder.iterdir()) if _is_video(f)]
            for folder in entries
            if folder.is_dir()
        }
    except OSError as error:
        raise ManifestError(f"{root} cannot be read: {error.strerror}; {looked_for}") from error
    if not found:
        raise ManifestError(f"{root} holds no clips; {looked_for}")
    for name, videos in found.items():
        if not videos and any(each.is_dir() for each in (root / name).iterdir()):
            raise ManifestError(
                f"{root / name} holds folders and no video; if it is a split whose folders are "
                f"classes, give {root / name}, and for each split another OUT"
            )
        if not videos:
            raise ManifestError(
                f"{root / name} is a class folder without a video; remove it, or {looked_for}"
            )
    for path in (f for videos in found.values() for f in videos):
        if not path.as_posix().isprintable():
            raise ManifestError(
                f"{root}: the name of {str(path)!a} is not printable UTF-8 text; rename it"
            )
    sources = {PurePosixPath(name, f.name): f for name, videos in found.items() for f in videos}
    keys = file_keys(sources)
    clips = (
        Clip(
            key=keys[source],
            label=source.parts[0],
            split=ALL,
            path=path,
            source=str(source),
            sha256=file_digest(path) if path.is_file() else None,
        )
        for source, path in sources.items()
    )
    return ClipSet(tuple(sorted(found)), tuple(clips))


def _is_video(path: Path) -> bool:
    # A broken link (a disk that is not mounted) is a missing clip.
    is_there = path.is_file() or path.is_symlink()
    return path.suffix.lower() in VIDEO_SUFFIXES and is_there
