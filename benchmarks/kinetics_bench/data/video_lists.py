"""Lists of other people's videos: what weights were pre-trained on elsewhere."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kinetics_bench.data import list_lines
from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.core.keys import file_keys, source_video
from kinetics_tools.core.store import Address, is_address
from kinetics_tools.core.text import MAX_LIST_BYTES, decode_text, read_text
from kinetics_tools.dataset.manifest import Manifest, parse_manifest
from kinetics_tools.download import official_lists

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VideoList:
    """Videos, as `source_video` names them.

    Attributes:
        name: of the list, for tables.
        videos: YouTube ids, or UCF-101's and HMDB-51's groups.
    """

    name: str
    videos: frozenset[str]


def read_video_list(text: str, cache: Path) -> VideoList:
    """The videos of a list.

    Args:
        text: an official list's name, such as `kinetics700/train`, which is fetched once; or the
            path or address of a manifest, or of a text with a key, a YouTube id or a file's path a
            line. Numbers after it, such as a label, are ignored, and so are lines from `#`.
        cache: folder for fetched lists.

    Raises:
        KineticsError: it cannot be fetched or read, or names no video.
    """
    if official_lists.is_name(text):
        listed = official_lists.fetch(text, cache, skip_bad_rows=True).manifest
        return VideoList(text, _ids(listed, text))
    content = _content(text)
    if list_lines.is_manifest(content):
        data = content.encode("utf-8", "surrogateescape")
        videos = _ids(parse_manifest(data, text, skip_bad_rows=True, split="all"), text)
    else:
        entries = list_lines.entries(content, text)
        pattern = next((each for each in entries if set(each) & set("*?")), None)
        if pattern is not None:
            raise EvaluationError(
                f"{text} has the pattern {pattern!r}; a list of videos has a key or a YouTube id a "
                "line"
            )
        videos = frozenset(map(_video, entries))
    if not videos:
        raise EvaluationError(f"{text} names no video; a list has a key or a YouTube id a line")
    return VideoList(text if is_address(text) else Path(text).name, videos)


def _content(text: str) -> str:
    if not is_address(text):
        if not Path(text).exists():
            known = ", ".join(official_lists.ADDRESSES)
            raise EvaluationError(
                f"--pretrained-on {text}: no such file, and no official list ({known}, each also "
                "with /train, /val or /test)"
            )
        return read_text(Path(text), raises=EvaluationError)
    try:
        data = Address.of(text).read(MAX_LIST_BYTES)
    except FileNotFoundError as error:
        raise EvaluationError(f"--pretrained-on {text}: there is no such file") from error
    return decode_text(data, text, raises=EvaluationError)


def _ids(manifest: Manifest, where: str) -> frozenset[str]:
    if manifest.bad_rows:
        logger.warning("%s: %d rows cannot be read", where, len(manifest.bad_rows))
    return frozenset(segment.youtube_id for segment in manifest.segments)


def _video(entry: str) -> str:
    """The video of a line: of a file that of the key that follows from its name alone."""
    path = PurePosixPath(entry)
    return source_video(list_lines.as_key(file_keys([path])[path]))
