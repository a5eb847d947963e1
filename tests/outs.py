"""Folders as kinetics-download leaves them, made from ledger lines and files without a download."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from kinetics_tools.core.errors import Reason
from kinetics_tools.core.files import file_digest
from kinetics_tools.core.units import WHOLE, Part
from kinetics_tools.dataset import ledger
from kinetics_tools.dataset.layout import clip_path, record_selection
from kinetics_tools.dataset.ledger import DONE, FAILED, Line
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.media import decode


def segment(youtube_id: str, label: str | None = "yoga", split: str = "val") -> Segment:
    """Two seconds of a video, from its third second."""
    return Segment(
        youtube_id=youtube_id, start_s=Fraction(3), end_s=Fraction(5), label=label, split=split
    )


def failed(
    of: Segment, source: str, reason: Reason, time: str = "2026-01-01", detail: str = "no"
) -> Line:
    return Line(
        key=of.key,
        status=FAILED,
        source=source,
        reason=reason,
        detail=detail,
        seconds=1.0,
        time=f"{time}T00:00:00.000+00:00",
    )


def put(out: Path, of: Segment, content: bytes) -> Path:
    """A file where the segment's clip lies."""
    clip = clip_path(out, of)
    clip.parent.mkdir(parents=True, exist_ok=True)
    clip.write_bytes(content)
    return clip


def done(
    out: Path, of: Segment, source: str, content: bytes, time: str = "2026-01-02", frames: int = 50
) -> Line:
    """Put the clip there, and return its line."""
    clip = put(out, of, content)
    return Line(
        key=of.key,
        status=DONE,
        source=source,
        frames=frames,
        bytes=len(content),
        sha256=file_digest(clip),
        seconds=2.0,
        time=f"{time}T00:00:00.000+00:00",
    )


def real(out: Path, of: Segment, video: Path, time: str = "2026-01-02") -> Line:
    """A clip that decodes, and its line."""
    return done(out, of, "cvdf", video.read_bytes(), time=time, frames=decode.count_frames(video))


def tell(out: Path, lines: Iterable[Line], part: Part = WHOLE) -> Path:
    """Append to a part's ledger, with times as given; return it."""
    path = ledger.ledger_path(out, part)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(line.as_text() for line in lines)
    return path


def ask(out: Path, segments: Sequence[Segment]) -> None:
    """The OUT's manifest and label list."""
    labels = tuple(sorted({s.label for s in segments if s.label is not None}))
    record_selection(out, segments, labels)
