"""The lists of an OUT for other tools: which clips exist, which are missing, and why.

Fields of `clips.csv` and `missing.csv` are exact, even where a spreadsheet misreads them: 3 % of
ids begin with `-`, and an id with a quote before it is another id. Only `detail`, whose text may
come from a server, is changed where a spreadsheet would take it for a formula.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from kinetics_tools.core.errors import OutError
from kinetics_tools.core.files import write_text
from kinetics_tools.core.text import printable
from kinetics_tools.dataset.manifest import manifest_row
from kinetics_tools.dataset.manifest_formats import COLUMNS
from kinetics_tools.download.coverage import Coverage, SegmentStatus, State, reason_class

CLIPS = "clips.csv"
MISSING = "missing.csv"
CLIP_COLUMNS = (*COLUMNS, "path", "frames", "bytes", "sha256", "source")
GAP_COLUMNS = (*COLUMNS, "key", "state", "reason", "class", "source", "detail", "time")
_FORMULA = ("=", "+", "-", "@")


def write_lists(coverage: Coverage, folder: Path, *, root: Path | None = None) -> list[Path]:
    """Write all lists into `folder` and return their paths.

    - `<split>.txt`, for each split: one line `path label_id` per clip, the format of PySlowFast
      and mmaction2 (they split lines at spaces; our paths have none). The id is the label's index
      in `labels.txt`; a clip without label has its path only.
    - `clips.csv`: the clips, beginning with the columns of a manifest, so that it is one.
    - `missing.csv`: the missing clips, in the same way.

    Args:
        coverage: of an OUT.
        folder: made if it does not exist.
        root: OUT, for absolute paths; None for paths relative to OUT.

    Raises:
        OutError: the path of `root` has a space.
    """
    prefix = "" if root is None else f"{root.absolute().as_posix()}/"
    if any(letter.isspace() for letter in prefix):
        raise OutError(
            f"{prefix} has a space, at which readers of such lists split; leave --absolute out and "
            "set this folder as their path prefix, or move it"
        )
    clips = [s for s in coverage.statuses if s.state is State.PRESENT]
    gaps = [s for s in coverage.statuses if s.state is not State.PRESENT]
    texts = {
        CLIPS: _csv(CLIP_COLUMNS, (_clip_row(clip, prefix) for clip in clips)),
        MISSING: _csv(GAP_COLUMNS, map(_gap_row, gaps)),
    }
    ids = {label: str(at) for at, label in enumerate(coverage.labels)}
    for split in sorted({s.segment.split for s in coverage.statuses}):
        own = (clip for clip in clips if clip.segment.split == split)
        texts[f"{split}.txt"] = "".join(
            " ".join((prefix + clip.path, *_label_id(clip, ids))) + "\n" for clip in own
        )
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def _label_id(clip: SegmentStatus, ids: dict[str, str]) -> tuple[str, ...]:
    return () if clip.segment.label is None else (ids[clip.segment.label],)


def _clip_row(clip: SegmentStatus, prefix: str) -> Sequence[object]:
    row = manifest_row(clip.segment)
    return (*row, prefix + clip.path, clip.frames, clip.bytes, clip.sha256, clip.source)


def _gap_row(gap: SegmentStatus) -> Sequence[object]:
    state = gap.state.removesuffix(" gaps")
    why = (gap.segment.key, state, gap.reason, reason_class(gap.reason), gap.source)
    return (*manifest_row(gap.segment), *why, _one_line(gap.detail), gap.time)


def _one_line(text: str) -> str:
    line = printable(" ".join(text.split()))
    return f"'{line}" if line.startswith(_FORMULA) else line


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()
