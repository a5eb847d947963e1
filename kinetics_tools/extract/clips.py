"""The clips that extract-flow's CLIPS holds, and those that it should hold.

CLIPS is a folder that kinetics-download filled: the manifest says which clips are expected, and the
ledger why some are missing. Or it has one folder of videos per class, such as UCF-101's; or one
folder per split (`train`, `val`, `test`), each with one folder of videos per class.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from kinetics_tools.core.errors import PERMANENT, ManifestError, lookup
from kinetics_tools.core.files import real_path
from kinetics_tools.core.keys import VIDEO_SUFFIXES, file_keys
from kinetics_tools.dataset import ledger
from kinetics_tools.dataset.layout import MISSING, clip_path, read_out
from kinetics_tools.extract.digests import DigestStore

logger = logging.getLogger(__name__)
ALL = "all"  # the split of a folder of class folders
TRAIN = "train"
_SPLITS = {  # by the beginnings of their folders' names
    "training": TRAIN,
    "train": TRAIN,
    "validation": "val",
    "validate": "val",
    "valid": "val",
    "val": "val",
    "testing": "test",
    "test": "test",
}
# `videos_train` is mmaction's, `train_256` that of resized copies.
_SPLIT_FOLDER = re.compile(rf"(?:videos_)?({'|'.join(_SPLITS)})(?:_[0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A clip that is expected.

    Attributes:
        key: its name.
        label: class name, or None.
        split: of its sample.
        path: of its file.
        source: the path relative to CLIPS.
        sha256: of the file; None if the clip is missing, or cannot be read.
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


def read_clips(
    root: Path,
    splits: Sequence[str] = (),
    *,
    out: Path | None = None,
    digests: DigestStore | None = None,
) -> ClipSet:
    """Read what a folder of clips holds, and what it should hold.

    Args:
        root: a folder that kinetics-download filled; or one with a folder of videos per class,
            whose clips are of split `all`; or one with a folder of such folders per split.
        splits: only these; empty for all.
        out: folder of the shards; it may not lie among the class folders.
        digests: those that are known, of files whose digest no ledger says.

    Raises:
        ManifestError: it is neither; the message says what was looked for.
        UnknownNameError: it has no such split.
    """
    if not root.is_dir():
        raise ManifestError(
            f"{root} is not a folder; give kinetics-download's OUT, or a folder of class folders"
        )
    place = real_path(root)
    if out is not None and real_path(out) == place:
        raise ManifestError(f"{out} is both CLIPS and OUT; choose another OUT")
    if os.path.lexists(root / "manifest.csv"):
        return _downloaded(root, splits, digests or DigestStore())
    if out is not None and place in real_path(out).parents:
        raise ManifestError(
            f"{out} lies in {root}, whose folders are classes or splits; choose another OUT"
        )
    return _in_class_folders(root, splits, digests or DigestStore())


def _check_splits(splits: Iterable[str], present: Iterable[str]) -> None:
    """Raise UnknownNameError for a split that is not among `present`."""
    known = {split: split for split in present}
    for split in splits:
        lookup("split", split, known)


def _downloaded(root: Path, splits: Sequence[str], digests: DigestStore) -> ClipSet:
    manifest, labels = read_out(root)
    _log_untrained((segment.split, segment.label) for segment in manifest.segments)
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
                sha256=_recorded_digest(path, history),
                reason=_gap_reason(history),
                frames=history.done.frames if history.done else None,
            )
        )
    unknown = {
        clip.source: clip.path
        for clip in clips
        if clip.sha256 is None and not histories.get(clip.key, ledger.History()).is_broken
    }
    found = digests.find(unknown)
    return ClipSet(
        labels,
        tuple(replace(each, sha256=found.get(each.source, each.sha256)) for each in clips),
    )


def _recorded_digest(path: Path, history: ledger.History) -> str | None:
    """The digest that the ledger says of a file, if it has the size that it says."""
    done = history.done
    if done is None or not done.sha256 or history.is_broken or not path.is_file():
        return None
    return done.sha256 if done.bytes == path.stat().st_size else None


def _gap_reason(history: ledger.History) -> str:
    """The reason, if it is permanent: every change of a reason makes the shard again."""
    return history.main_reason if history.main_reason in PERMANENT else MISSING


def _in_class_folders(root: Path, splits: Sequence[str], digests: DigestStore) -> ClipSet:
    """The clips of a folder of class folders, or of split folders of them.

    Labels and keys follow from all splits, whichever are asked for.
    """
    try:
        folders = _split_folders(root) or {ALL: root}
        _check_splits(splits, folders)
        classes = {split: _classes(folder) for split, folder in folders.items()}
        chosen = splits or tuple(folders)
        _refuse_unusable(root, {split: folders[split] for split in chosen}, classes)
    except OSError as error:
        raise ManifestError(f"{root} cannot be read: {error.strerror}; {_LOOKED_FOR}") from error
    labelled = [(split, name) for split, own in classes.items() for name in own if own[name]]
    _log_untrained(labelled)
    sources = {
        PurePosixPath(path.relative_to(root)): (split, name, path)
        for split, own in classes.items()
        for name, videos in own.items()
        for path in videos
    }
    # The split is no part of a key, so that official lists find it, unless two splits share a path.
    within = {
        source: PurePosixPath(path.relative_to(folders[split]))
        for source, (split, _, path) in sources.items()
    }
    uses = Counter(within.values())
    named = {source: own if uses[own] == 1 else source for source, own in within.items()}
    keys = file_keys(named.values())
    wanted = {str(source): path for source, (split, _, path) in sources.items() if split in chosen}
    found = digests.find(wanted)
    clips = (
        Clip(
            key=keys[named[source]],
            label=name,
            split=split,
            path=path,
            source=str(source),
            sha256=found[str(source)],
        )
        for source, (split, name, path) in sources.items()
        if split in chosen
    )
    return ClipSet(tuple(sorted({name for _, name in labelled})), tuple(clips))


_LOOKED_FOR = (
    f"looked for manifest.csv (kinetics-download's OUT), for class folders of videos "
    f"({', '.join(sorted(VIDEO_SUFFIXES))}), and for split folders (train, val, test) of class "
    "folders"
)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split, by its name; none where the folders of `root` are classes.

    Raises:
        ManifestError: two folders are of one split, or videos lie beside the split folders.
    """
    named: dict[str, list[Path]] = {}
    others = []
    for folder in _folders(root):
        match = _SPLIT_FOLDER.fullmatch(folder.name)
        if match:
            named.setdefault(_SPLITS[match[1].lower()], []).append(folder)
        else:
            others.append(folder)
    if not any(_holds_classes(folder) for own in named.values() for folder in own):
        return {}  # a class may be called train
    for split, own in named.items():
        if len(own) > 1:
            raise ManifestError(
                f"{own[0]} and {own[1]} are both split {split}; move one of them out of {root}"
            )
    for folder in others:
        if _videos(folder) or _holds_classes(folder):
            raise ManifestError(
                f"{folder} holds videos beside {min(named.values())[0].name}, a split folder; "
                "put each into the folder of its class in its split"
            )
        logger.info("%s holds no class folders, and is left out", folder)
    return {split: folder for split, (folder,) in named.items()}


def _holds_classes(folder: Path) -> bool:
    """Whether there are class folders of videos, and no videos beside them."""
    return not _videos(folder) and any(map(_videos, _folders(folder)))


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The videos of each class, by its name."""
    return {each.name: _videos(each) for each in _folders(folder)}


def _refuse_unusable(
    root: Path, folders: Mapping[str, Path], classes: Mapping[str, Mapping[str, Sequence[Path]]]
) -> None:
    """Raise ManifestError where the class folders of some splits are not what was meant.

    A class may lack videos in one split, but not in all.
    """
    for split, folder in folders.items():
        loose = _videos(folder)
        if loose:
            raise ManifestError(
                f"{folder}: {len(loose)} videos such as {loose[0].name} are in no class folder; "
                "put each into the folder of its class"
                + (", or give the folder above" if folder == root else ", or leave that split out")
            )
        if not any(classes[split].values()) and (folder != root or not classes[split]):
            raise ManifestError(f"{folder} holds no clips; {_LOOKED_FOR}")
        for name, videos in classes[split].items():
            if videos:
                continue
            if _folders(folder / name):
                raise ManifestError(
                    f"{folder / name} holds folders and no video; if it is a split, "
                    f"rename it train, val or test; {_LOOKED_FOR}"
                )
            if not any(own.get(name) for own in classes.values()):
                raise ManifestError(
                    f"{folder / name} is a class folder without a video; if it is no class, move "
                    f"it out of {folder}; {_LOOKED_FOR}"
                )
        for path in (path for videos in classes[split].values() for path in videos):
            if not path.as_posix().isprintable():
                raise ManifestError(
                    f"{root}: the name of {str(path)!a} is not printable UTF-8 text; rename it"
                )


def _log_untrained(labelled: Iterable[tuple[str, str | None]]) -> None:
    """Say which classes only other splits than `train` have: no network learns them."""
    splits: dict[str | None, set[str]] = {}
    for split, label in labelled:
        splits.setdefault(label, set()).add(split)
    if not any(TRAIN in own for own in splits.values()):
        return
    lacking = sorted(label for label, own in splits.items() if label and TRAIN not in own)
    if lacking:
        logger.warning(
            "%d classes have no clip in %s, such as %s (in %s): a network cannot learn them",
            *(len(lacking), TRAIN, lacking[0], ", ".join(sorted(splits[lacking[0]]))),
        )


def _folders(folder: Path) -> list[Path]:
    return [each for each in _visible(folder) if each.is_dir()]


def _videos(folder: Path) -> list[Path]:
    return [each for each in _visible(folder) if _is_video(each)]


def _visible(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if not each.name.startswith("."))


def _is_video(path: Path) -> bool:
    # A broken link (a disk that is not mounted) is a missing clip.
    is_there = path.is_file() or path.is_symlink()
    return path.suffix.lower() in VIDEO_SUFFIXES and is_there
