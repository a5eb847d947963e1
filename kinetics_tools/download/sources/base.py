"""What a source is: it divides what is wanted of it into units, and gives footage for each.

A run asks its sources one after another. Of each it wants the segments that every earlier source
has failed to give. `units` runs in the process that leads the run and may read from the network as
it goes; `open` runs in worker processes.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from kinetics_tools.core.errors import SourceError
from kinetics_tools.core.units import Part
from kinetics_tools.dataset.ledger import History
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download.sources.rate_limit import LockedOut

# How a source that has whole videos gives a segment of one.
FETCHES: Mapping[str, str] = {
    "auto": "sections where that saves something, all of the video where that fails",
    "section": "sections only",
    "full": "whole videos only",
}


@dataclass(frozen=True, slots=True)
class SourceUnit:
    """The smallest share of a source's work: a video's segments, or one ready clip.

    Attributes:
        segments: what it may give.
        ready: the file of a ready clip, by key. One that lies in the run's scratch folder is
            removed when its clip is made.
        video: the file of the video, where the source has it at hand.
        error: the source already knows that it has none of these segments.
    """

    segments: tuple[Segment, ...]
    ready: Mapping[str, Path] = field(default_factory=dict)
    video: Path | None = None
    error: SourceError | None = None


@dataclass(frozen=True, slots=True)
class Footage:
    """A file that shows a segment: a whole video, or a section of one.

    Attributes:
        path: the file.
        zero_s: time of the file's first frame, in seconds, counted from the video's first frame.
        detail: what it is, for the record, such as "section of 134, 640x360".
    """

    path: Path
    zero_s: Fraction = Fraction(0)
    detail: str = ""


class Opened(Protocol):
    """A unit in the hands of a worker: its video is asked for once, whatever its segments."""

    def footage(self, segment: Segment) -> Iterator[Footage]:
        """Yield files that show the segment, the cheapest first; the next one is fetched only
        when the last one could not be cut.

        Raises:
            SourceError: there is none, or no further one.
            LockedOut: it was not asked for.
            OSError: the disk is full.
        """


class Source(Protocol):
    """One place to ask. Instances are values: they are sent to worker processes."""

    @property
    def name(self) -> str:
        """The ledger's word for it: as named on the command line, without secrets."""

    @property
    def by_video(self) -> bool:
        """Whether parts share its work by video; otherwise `units` itself shares it out, and is
        given what all parts want."""

    def wants(self, history: History) -> bool:
        """Whether this source could have a segment, after what earlier sources said of it."""

    def check(self, segments: Sequence[Segment]) -> None:
        """Before any source is asked: find out, without asking, what makes this one unusable.

        Args:
            segments: all of the job's.

        Raises:
            KineticsError: it cannot be used as it was asked for.
        """

    def lockout(self) -> LockedOut | None:
        """Why nothing may be asked of it now; None where it may be asked."""

    def units(
        self, segments: Sequence[Segment], part: Part, scratch: Path
    ) -> Generator[SourceUnit, None, None]:
        """Divide the segments that are wanted of this source.

        Args:
            segments: in manifest order, but last those for which it refused us last time.
            part: which share of the job this run does.
            scratch: a folder for files that units carry.

        Raises:
            SourceError: it cannot be reached at all.
            KineticsError: it cannot be used as it was asked for.
        """

    def open(self, unit: SourceUnit, into: Path) -> Opened:
        """Begin to fetch a unit's video into the empty folder `into`."""

    def versions(self) -> Mapping[str, str]:
        """Of the tools that fetch."""


def by_video(segments: Sequence[Segment]) -> list[list[Segment]]:
    """The segments of each video, videos in the order of their first segment."""
    videos: dict[str, list[Segment]] = {}
    for segment in segments:
        videos.setdefault(segment.youtube_id, []).append(segment)
    return list(videos.values())
