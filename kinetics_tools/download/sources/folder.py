"""`dir:PATH`: videos and ready clips in a local folder."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kinetics_tools.core.errors import Reason, SourceError
from kinetics_tools.core.keys import VIDEO_SUFFIXES
from kinetics_tools.core.units import Part
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download.sources.base import (
    Footage,
    Opened,
    Source,
    SourceUnit,
    group_by_video,
)

UNIT_SEGMENTS = 4  # of a video: nothing is fetched, so its units may be small


@dataclass(frozen=True, slots=True)
class Folder(Source):
    """`<key>.*` anywhere below the folder is a ready clip, `<youtube_id>.*` a video."""

    path: Path
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"dir:{self.path}")  # the instance is frozen

    def units(
        self,
        segments: Sequence[Segment],
        part: Part,  # noqa: ARG002 - these are the part's segments already
        scratch: Path,  # noqa: ARG002 - files are read in place
    ) -> Generator[SourceUnit, None, None]:
        """Yield a few segments of a video at a time, with the files that exist for them."""
        files = self._by_stem()
        for own in group_by_video(segments):
            for start in range(0, len(own), UNIT_SEGMENTS):
                some = tuple(own[start : start + UNIT_SEGMENTS])
                ready = {s.key: files[s.key] for s in some if s.key in files}
                yield SourceUnit(some, ready, files.get(some[0].youtube_id))

    def _by_stem(self) -> Mapping[str, Path]:
        """All video files below the folder, by name without suffix."""
        files = sorted(
            path for path in self.path.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES
        )
        return {path.stem: path for path in reversed(files)}  # the first of equal names wins

    def open(self, unit: SourceUnit, into: Path) -> Opened:  # noqa: ARG002 - files are read in place
        """The unit's video in place."""
        return _InPlace(self.path, unit)


@dataclass(frozen=True, slots=True)
class _InPlace:
    folder: Path
    unit: SourceUnit

    def footage(self, segment: Segment) -> Iterator[Footage]:
        if self.unit.video is None:
            raise SourceError(Reason.GONE, f"no file {segment.youtube_id}.* below {self.folder}")
        yield Footage(self.unit.video)
