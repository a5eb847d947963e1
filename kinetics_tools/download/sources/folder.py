"""`dir:PATH`: videos and ready clips in a local folder."""

import errno
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from kinetics_tools.core.errors import KineticsError, Reason, SourceError
from kinetics_tools.core.keys import VIDEO_SUFFIXES
from kinetics_tools.core.units import Part
from kinetics_tools.dataset.manifest import Segment
from kinetics_tools.download.sources.base import (
    Footage,
    Source,
    SourceUnit,
    group_by_video,
    ready_clip,
)

UNIT_SEGMENTS = 4  # of a video: nothing is fetched, so its units may be small
_OF_THE_DISK = frozenset({"lost+found"})  # only the administrator can read it


@dataclass(frozen=True, slots=True)
class Folder(Source):
    """`<key>.*` anywhere below the folder is a ready clip, `<youtube_id>.*` a video.

    Of several such files all are tried, clips first, each in the order of their paths, until one
    can be used. What is absent may be there in the next run.
    """

    path: Path
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"dir:{self.path}")  # the instance is frozen

    def rehearse(self) -> None:
        """Look through the folder.

        Raises:
            KineticsError: a folder or a video cannot be read.
        """
        self._by_stem()

    def units(
        self,
        segments: Sequence[Segment],
        part: Part,  # noqa: ARG002 - these are the part's segments already
        scratch: Path,  # noqa: ARG002 - files are read in place
    ) -> Generator[SourceUnit, None, None]:
        """Yield a few segments of a video at a time, with the files that exist for them.

        Raises:
            KineticsError: a folder or a video cannot be read.
        """
        files = self._by_stem()
        for own in group_by_video(segments):
            videos = tuple(map(Footage, files.get(own[0].youtube_id, ())))
            found = {s.key: (*map(ready_clip, files.get(s.key, ())), *videos) for s in own}
            present = [s for s in own if found[s.key]]
            for start in range(0, len(present), UNIT_SEGMENTS):
                some = tuple(present[start : start + UNIT_SEGMENTS])
                yield SourceUnit(some, {s.key: found[s.key] for s in some})
            absent = tuple(s for s in own if not found[s.key])
            if absent:
                detail = f"no file {own[0].youtube_id}.* below {self.path}"
                yield SourceUnit(absent, error=SourceError(Reason.ABSENT, detail))

    def _by_stem(self) -> Mapping[str, Sequence[Path]]:
        """All video files below the folder, in the order of their paths, by name without suffix."""
        found: dict[str, list[Path]] = {}
        for path in sorted(self._videos()):
            found.setdefault(path.stem, []).append(path)
        return found

    def _videos(self) -> Iterator[Path]:
        """The video files below the folder. Links are followed; each folder is read once.

        Hidden folders are skipped: runs keep scratch files there.
        """
        seen = set()
        for folder, folders, names in os.walk(self.path, onerror=self._stop, followlinks=True):
            state = Path(folder).stat()
            is_new = (state.st_dev, state.st_ino) not in seen
            seen.add((state.st_dev, state.st_ino))
            deeper = (name for name in folders if not name.startswith(".") and is_new)
            folders[:] = sorted(set(deeper) - _OF_THE_DISK)
            for path in (Path(folder, name) for name in names if is_new):
                if path.suffix.lower() in VIDEO_SUFFIXES and self._is_file(path):
                    yield path

    def _is_file(self, path: Path) -> bool:
        try:
            if not path.is_file():
                return False
            if not os.access(path, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        except PermissionError as error:
            self._stop(error)
        return True

    def _stop(self, error: OSError) -> NoReturn:
        raise KineticsError(
            f"--source {self.name}: {error.filename} cannot be read ({error.strerror}); what it "
            "holds would be taken for absent"
        ) from error
