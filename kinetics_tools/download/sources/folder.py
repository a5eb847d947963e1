"""`dir:PATH`: videos and ready clips that lie in a folder."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kinetics_tools.core.errors import Reason, SourceError
from kinetics_tools.core.keys import VIDEO_SUFFIXES
from kinetics_tools.core.units import Part
from kinetics_tools.dataset.ledger import History
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download.sources.base import Footage, Opened, SourceUnit, by_video

AT_ONCE = 4  # segments of a video: nothing is fetched, so its units may be small


@dataclass(frozen=True, slots=True)
class Folder:
    """`<key>.*` anywhere below the folder is a ready clip, `<youtube_id>.*` a video."""

    path: Path

    @property
    def name(self) -> str:
        """As named on the command line."""
        return f"dir:{self.path}"

    @property
    def by_video(self) -> bool:
        """Parts share it by video."""
        return True

    def wants(self, history: History) -> bool:  # noqa: ARG002 - it may have any clip
        """Whatever earlier sources lack."""
        return True

    def check(self, segments: Sequence[Segment]) -> None:
        """The folder was looked at when it was named."""

    def lockout(self) -> None:
        """Never: a folder is always open."""

    def units(
        self,
        segments: Sequence[Segment],
        part: Part,  # noqa: ARG002 - the caller has shared the videos out
        scratch: Path,  # noqa: ARG002 - files are read where they lie
    ) -> Generator[SourceUnit, None, None]:
        """Some segments of a video, with what the folder has for them."""
        files = self._by_stem()
        for own in by_video(segments):
            for start in range(0, len(own), AT_ONCE):
                some = tuple(own[start : start + AT_ONCE])
                ready = {s.key: files[s.key] for s in some if s.key in files}
                yield SourceUnit(some, ready, files.get(some[0].youtube_id))

    def _by_stem(self) -> Mapping[str, Path]:
        """All video files below the folder, by name without suffix."""
        files = sorted(
            path for path in self.path.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES
        )
        return {path.stem: path for path in reversed(files)}  # the first of equal names wins

    def open(self, unit: SourceUnit, into: Path) -> Opened:  # noqa: ARG002 - files are read in place
        """The video where it lies."""
        return _InPlace(self.path, unit)

    def versions(self) -> Mapping[str, str]:
        """No tool is used."""
        return {}


@dataclass(frozen=True, slots=True)
class _InPlace:
    folder: Path
    unit: SourceUnit

    def footage(self, segment: Segment) -> Iterator[Footage]:
        if self.unit.video is None:
            raise SourceError(Reason.GONE, f"no file {segment.youtube_id}.* below {self.folder}")
        yield Footage(self.unit.video)
