"""The names of things on disk: keys, split folders and label folders."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

MAX_KEY = 90
MAX_STEM = 80
MAX_FOLDER = 200
_KEY = re.compile(r"[A-Za-z0-9_-]+")
UNLABELLED = "unlabelled"
_CONTAINERS = "3gp avi flv m4v mkv mov mp4 mpeg mpg ts webm wmv"
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _CONTAINERS.split())


def is_key(text: str) -> bool:
    """Whether `text` may name a segment, clip, sample and prediction."""
    return len(text) <= MAX_KEY and _KEY.fullmatch(text) is not None


def file_keys(paths: Iterable[PurePosixPath]) -> dict[PurePosixPath, str]:
    """The key of each of a set's files that are not named by a manifest.

    A key is the file's stem with foreign characters replaced by `_` and cut to 80. Where that
    changed the name, or two files would share it, `-` and 8 hex digits of the relative path's
    SHA-256 follow.

    Args:
        paths: relative to the set's folder; all files of the set.
    """
    stems = {path: re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)[:MAX_STEM] for path in paths}
    uses = Counter(stems.values())
    return {
        path: stem if stem == path.stem and uses[stem] == 1 else f"{stem}-{_short_hash(path)}"
        for path, stem in stems.items()
    }


def _short_hash(path: PurePosixPath) -> str:
    return hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def label_folder(label: str | None) -> str:
    """The folder of a label's clips: spaces to underscores, nothing else changed."""
    return UNLABELLED if label is None else label.replace(" ", "_")


def label_problem(label: str) -> str | None:
    """Why `label` cannot name a folder, or None."""
    if not label.isprintable() or "/" in label or "\\" in label:
        return "a label may not hold slashes or control characters"
    if label.startswith(".") or label != label.strip():
        return "a label may not begin with a dot, nor begin or end with a space"
    if len(label.encode()) > MAX_FOLDER:
        return f"a label may not be longer than {MAX_FOLDER} bytes"
    return None
