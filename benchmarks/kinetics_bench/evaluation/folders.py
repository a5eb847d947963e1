"""Where the evaluations of a run are kept: in its own folder, and in one beside for each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kinetics_bench.archs.registry import STREAMS
from kinetics_bench.evaluation.results import EVALUATION_PREFIX, RESULT, Result
from kinetics_bench.protocols import EvalProtocol
from kinetics_tools.core.errors import EvaluationError, OutError
from kinetics_tools.core.files import digest

CLIPS = "clips"  # the part of `contents_of` that is the same for all streams
BEST = "best"  # begins the names of evaluations of best.pt
MAX_NAME = 80
Contents = Mapping[str, Mapping[str, str]]


def evaluation_folder(
    work_dir: Path,
    words: Sequence[str],
    contents: Contents,
    protocol: EvalProtocol,
    *,
    best: bool = False,
) -> Path:
    """The folder of an evaluation that was not asked for in the words of the run's own.

    It is the folder that has this evaluation, if there is one: of the same clips, whatever the path
    of their shards or the name of their split. No result of another evaluation is overwritten.

    Args:
        work_dir: of the run.
        words: what differs from the run's own evaluation, as parts of a name.
        contents: stream -> `contents_of` its network.
        protocol: how clips are seen.
        best: the weights are those of best.pt, whose evaluations are apart from all others.
    """
    others = sorted(work_dir.glob(f"{EVALUATION_PREFIX}*"))
    alike = [each for each in others if each.name.startswith(EVALUATION_PREFIX + BEST) == best]
    name = "-".join(filter(None, (BEST, *words) if best else words)) or "again"
    if not best and name.startswith(BEST):  # as a split may be called
        name = f"of-{name}"
    for folder in alike if best else (work_dir, *alike):
        if any(_compared(folder, contents, protocol)) and _is_free(folder, contents, protocol):
            return folder
    named = work_dir / f"{EVALUATION_PREFIX}{name}"[:MAX_NAME]
    if _is_free(named, contents, protocol):
        return named
    return named.with_name(f"{named.name}-{digest(contents)[:8]}")


def _is_free(folder: Path, contents: Contents, protocol: EvalProtocol) -> bool:
    """Whether no row in a folder is of another evaluation."""
    return all(_compared(folder, contents, protocol))


def _compared(folder: Path, contents: Contents, protocol: EvalProtocol) -> list[bool]:
    """Of each row in a folder whether it is of this evaluation, maybe of another stream."""
    rows = (_read(folder / stream) for stream in STREAMS if (folder / stream / RESULT).exists())
    return [_is_of(row, contents, protocol) for row in rows if row is None or not _is_sum(row)]


def _read(folder: Path) -> Result | None:
    """The row in a folder; None if it cannot be read."""
    try:
        return Result.read(folder)
    except (OutError, EvaluationError):
        return None


def _is_sum(row: Result) -> bool:
    """Whether a row is of the sum of two others, which say what it is of."""
    return isinstance(row.data.identity, Mapping) and {*row.data.identity} <= {*STREAMS}


def _is_of(row: Result | None, contents: Contents, protocol: EvalProtocol) -> bool:
    if row is None or not isinstance(row.data.identity, Mapping):  # damaged, or of version 0.1
        return False
    if row.stream in contents:
        return contents[row.stream].items() <= row.data.identity.items()
    clips = {own[CLIPS] for own in contents.values()}
    return row.protocol.hash == protocol.hash and clips == {row.data.identity.get(CLIPS)}
