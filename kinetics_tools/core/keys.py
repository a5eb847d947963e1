"""Names on disk: keys and label folders."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from pathlib import PurePosixPath

from kinetics_tools.core.errors import KineticsError

MAX_KEY = 90
MAX_STEM = 80
MAX_FOLDER = 200
_KEY = re.compile(r"[A-Za-z0-9_-]+")
# Keys of files may end with a hash of their path.
_KINETICS = re.compile("(?P<video>[A-Za-z0-9_-]{11})_[0-9]{6}_[0-9]{6}")
_UCF101 = re.compile(r"(?P<video>v_\w+_g[0-9]{2})_c[0-9]{2}(-[0-9a-f]{8})?")
_HMDB51 = re.compile(
    "(?P<video>.+)_[fhlu]_(cm|nm)_np[0-9]_(ba|fr|le|ri)_(bad|goo|med)_[0-9]+(-[0-9a-f]{8})?"
)
UNLABELLED = "unlabelled"
_CONTAINERS = (
    "3g2 3gp asf avi divx f4v flv m2ts m4v mkv mov mp4 mpe mpeg mpg mts mxf nut ogv ts vob webm wmv"
)
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _CONTAINERS.split())


def is_key(text: str) -> bool:
    """Whether `text` can be the key of a segment, clip, sample and prediction."""
    return len(text) <= MAX_KEY and _KEY.fullmatch(text) is not None


def file_keys(paths: Iterable[PurePosixPath]) -> dict[PurePosixPath, str]:
    """The keys of files that no manifest names.

    A key is the file's stem, in which characters outside `[A-Za-z0-9_-]` become `_`, cut to 80.
    Where that changed the stem, or two files would have the same key, `-` and 8 hex digits of the
    SHA-256 of the relative path follow.

    Args:
        paths: all files of a set, relative to its folder.
    """
    stems = {path: _clean_stem(path) for path in paths}
    uses = Counter(stems.values())
    return {
        path: stem if stem == path.stem and uses[stem] == 1 else _hashed_key(path)
        for path, stem in stems.items()
    }


def candidate_keys(path: PurePosixPath) -> Iterator[str]:
    """Yield every key that `file_keys` may give this video, the likeliest first.

    The file may have been stored with any suffix of a video, and its set may hold other files.
    """
    stem = _clean_stem(path)
    if stem == path.stem:
        yield stem
    yield _hashed_key(path)
    for suffix in _suffix_spellings():
        yield _hashed_key(path.with_suffix(suffix))


@cache
def _suffix_spellings() -> tuple[str, ...]:
    """Each suffix of a video, in each mixture of small and capital letters."""
    return tuple(
        "".join(letters)
        for suffix in sorted(VIDEO_SUFFIXES)
        for letters in product(*({letter: 0, letter.upper(): 0} for letter in suffix))
    )


def _clean_stem(path: PurePosixPath) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)[:MAX_STEM]


def _hashed_key(path: PurePosixPath) -> str:
    return f"{_clean_stem(path)}-{_short_hash(path)}"


def _short_hash(path: PurePosixPath) -> str:
    return hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def source_video(key: str, label: str | None = None) -> str:
    """Which video a clip was cut from, as far as its key says; of other keys the key itself.

    A YouTube id of Kinetics' keys; the group of UCF-101's (`v_Archery_g07`), whose clips are of one
    video; the film of HMDB-51's, whose tags (body, camera, people, direction, quality, number)
    follow the action.

    Args:
        key: of the clip.
        label: its class, which is part of HMDB-51's names.
    """
    for form in (_KINETICS, _UCF101):
        if match := form.fullmatch(key):
            return match["video"]
    if match := _HMDB51.fullmatch(key):
        return match["video"].removesuffix(f"_{label_folder(label)}")
    return key


def name_part(text: str) -> str:
    """A text as a readable part of a folder's name, at most 40 characters."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-.")[:40]


def label_folder(label: str | None) -> str:
    """The name of a label's folder of clips: the label with underscores for spaces."""
    return UNLABELLED if label is None else label.replace(" ", "_")


def require_own_folders(labels: Iterable[str]) -> None:
    """Check that no two labels share a folder of clips.

    Labels that differ only in spaces and underscores do. So do, on the file systems of some
    computers, labels that differ only in case or in how an accent is written. Rows without label
    have a folder too.

    Raises:
        KineticsError: two labels do, or a label is named as the folder of rows without label.
    """
    owners = {_folded(UNLABELLED): "no label"}
    for label in labels:
        owner = owners.setdefault(_folded(label_folder(label)), repr(label))
        if owner != repr(label):
            raise KineticsError(
                f"clips with {owner} and with {label!r} would share a folder; rename that label in "
                "all lists"
            )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def label_problem(label: str) -> str | None:
    """Why `label` cannot name a folder, or None."""
    if not label.isprintable() or "/" in label or "\\" in label:
        return "a label may not hold slashes, control characters, or bytes that are not UTF-8"
    if label.startswith(".") or label != label.strip():
        return "a label may not start with a dot, nor start or end with a space"
    if len(label.encode()) > MAX_FOLDER:
        return f"a label may not be longer than {MAX_FOLDER} bytes"
    return None
