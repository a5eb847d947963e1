"""Lists of other people's clips: what a line of them names, whoever reads them.

keys             one per line; or YouTube ids; lines from # are left out
mmaction2        `PATH LABEL`, `PATH FRAMES LABEL` and the like; a comma or semicolon may stand
                 for the space
Kinetics' lists  a manifest: a CSV with the columns youtube_id, time_start, time_end, or JSON
"""

from __future__ import annotations

import re
from typing import Final

from kinetics_tools.core.errors import EvaluationError
from kinetics_tools.dataset.manifest_formats import ALIASES

MAX_LINE: Final = 4096
_NUMBERS: Final = re.compile(r"(?:[\s,;]+[0-9]+)+$")  # after a path: frames, labels
_TIMES: Final = re.compile("(?P<video>[A-Za-z0-9_-]{11})_(?P<start>[0-9]{1,6})_(?P<end>[0-9]{1,6})")


def is_manifest(text: str) -> bool:
    """Whether a list has the columns of a manifest, or is the JSON of the official archives."""
    first = next(iter(_lines(text).values()), "")
    columns = {word.strip(' "') for word in first.split(",")}
    return first.startswith("{") or "youtube_id" in {ALIASES.get(word, word) for word in columns}


def entries(text: str, name: str) -> tuple[str, ...]:
    """The keys, YouTube ids and paths in a list that is no manifest, each once, in its order.

    Args:
        text: of the list.
        name: of it, for errors.

    Raises:
        EvaluationError: a line is too long.
    """
    lines = _lines(text)
    for at, line in lines.items():
        if len(line) > MAX_LINE:
            raise EvaluationError(f"{name}, line {at}, has {len(line)} characters: it is no list")
    return tuple(dict.fromkeys(_NUMBERS.sub("", line) for line in lines.values()))


def as_key(stem: str) -> str:
    """The key of a clip of Kinetics whose times have no zeros in front; others as they are."""
    match = _TIMES.fullmatch(stem)
    if match is None:
        return stem
    return f"{match['video']}_{int(match['start']):06d}_{int(match['end']):06d}"


def _lines(text: str) -> dict[int, str]:
    """The lines by number, from 1, without comments and empty ones."""
    lines = {at: line.strip() for at, line in enumerate(text.splitlines(), 1)}
    return {at: line for at, line in lines.items() if line and not line.startswith("#")}
