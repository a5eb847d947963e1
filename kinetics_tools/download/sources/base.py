"""What a source is: it divides the segments that a run wants into units, and has videos for each.

A run tries its sources one after another, each for the segments that every earlier source has
failed to give. `units` runs in the process that leads the run, and may download as it goes; `open`
runs in worker processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, Protocol

from kinetics_tools.core.errors import Reason, SourceError
from kinetics_tools.core.units import Part
from kinetics_tools.dataset.ledger import History
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download.sources.rate_limit import LockedOut

# How a source of whole videos gives a segment of one.
FETCHES: Mapping[str, str] = {
    "auto": "sections where that downloads less, the whole video where a section fails",
    "section": "sections only",
    "full": "whole videos only",
}


@dataclass(frozen=True, slots=True)
class Footage:
    """A file that shows a segment: a whole video, a section of one, or a ready clip.

    Attributes:
        path: the file.
        zero_s: time of the file's first frame, in seconds from the video's first frame.
        detail: what the file is, for the ledger, such as "section of 134, 640x360".
        is_clip: whether it is the segment itself, from its first frame to its last.
    """

    path: Path
    zero_s: Fraction = Fraction(0)
    detail: str = ""
    is_clip: bool = False


def ready_clip(path: Path) -> Footage:
    """A file that is the segment itself."""
    return Footage(path, detail="as-found", is_clip=True)


@dataclass(frozen=True, slots=True)
class SourceUnit:
    """The smallest share of a source's work: segments of one video, or one clip of a mirror.

    Attributes:
        segments: what it may give.
        files: the files on disk that may show a segment, by key, in the order in which they are
            tried. Those in the run's scratch folder are removed when the unit is done.
        error: why the source has none of these segments, where that is known already.
    """

    segments: tuple[Segment, ...]
    files: Mapping[str, tuple[Footage, ...]] = field(default_factory=dict)
    error: SourceError | None = None


class FetchError(SourceError):
    """A site did not give a video.

    Attributes:
        status: the HTTP status, where a server answered.
        retry_after_s: seconds of the server's Retry-After; None where it sent none.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(reason, detail)
        self.status = status
        self.retry_after_s = retry_after_s


class Opened(Protocol):
    """A unit that a worker has opened: its video is requested once, for all its segments."""

    def footage(self, segment: Segment) -> Iterator[Footage]:
        """Yield files that show the segment, the best or the cheapest first.

        The next file is fetched only when the last one could not be used.

        Raises:
            SourceError: there is no file, or no further one.
            LockedOut: the site was not asked, because it blocks this address or account.
            OSError: the disk is full.
        """


@dataclass(frozen=True, slots=True)
class _OnDisk:
    """A unit whose files are there."""

    unit: SourceUnit

    def footage(self, segment: Segment) -> Iterator[Footage]:
        yield from self.unit.files[segment.key]


class Source(ABC):
    """One place to get clips from. Instances are values: they are sent to worker processes.

    The defaults are those of a source that may have any segment, can always be tried, has the files
    of its units on disk, and uses no tool of its own.

    Attributes:
        name: of the source in the ledger: as given on the command line, without secrets.
        by_video: True where the run shares the source's work among parts by video. False where
            `units` does, so that it is given what all parts want.
    """

    __slots__ = ()
    name: str
    by_video: ClassVar[bool] = True

    @abstractmethod
    def units(
        self, segments: Sequence[Segment], part: Part, scratch: Path
    ) -> Generator[SourceUnit, None, None]:
        """Divide the segments that are wanted of this source.

        Args:
            segments: in manifest order, but last those for which the site blocked us last time.
            part: the part of the job that this run does.
            scratch: a folder for files that units carry.

        Raises:
            SourceError: the source cannot be reached at all.
            KineticsError: it cannot be used as the command line says.
            OSError: the disk is full.
        """

    def open(self, unit: SourceUnit, into: Path) -> Opened:  # noqa: ARG002 - for those that fetch
        """Begin to fetch a unit's video into the empty folder `into`."""
        return _OnDisk(unit)

    def wants(self, history: History) -> bool:  # noqa: ARG002 - for those that choose
        """Whether this source may have a segment with this history."""
        return True

    def check(self, segments: Sequence[Segment]) -> None:  # noqa: B027 - most need no check
        """Find out before the run, without any request, whether the source can be used.

        Args:
            segments: all of the job's.

        Raises:
            KineticsError: it cannot be used as the command line says.
        """

    def rehearse(self) -> None:  # noqa: B027 - most have nothing to look at
        """Look, without any request, whether the first step of a run that uses it would succeed.

        Raises:
            KineticsError: it would not.
        """

    def lockout(self) -> LockedOut | None:
        """Why the source may not be tried now; None where it may."""
        return None

    def versions(self) -> Mapping[str, str]:
        """Versions of the tools that fetch, by name."""
        return {}


def group_by_video(segments: Sequence[Segment]) -> list[list[Segment]]:
    """The segments of each video, videos in the order of their first segment."""
    videos: dict[str, list[Segment]] = {}
    for segment in segments:
        videos.setdefault(segment.youtube_id, []).append(segment)
    return list(videos.values())
