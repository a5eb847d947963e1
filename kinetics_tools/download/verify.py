"""Decode every clip of an OUT again, and record those that are damaged, to be made again.

A clip is whole when its file has the bytes that the ledger names, and every frame of it decodes.
For a damaged clip a ledger line is written: the next run tries the sources for it again. Nothing is
deleted. A missing file needs no line, since every run looks for the files; so a disk that is not
mounted does not fill the ledger.
"""

from __future__ import annotations

import errno
from collections.abc import Container, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kinetics_tools.core import engine
from kinetics_tools.core.errors import MediaError, Reason
from kinetics_tools.core.files import file_digest, hold_lock_if_any
from kinetics_tools.core.units import Crash
from kinetics_tools.dataset import ledger
from kinetics_tools.dataset.layout import clip_files, clip_name, read_out
from kinetics_tools.dataset.ledger import FAILED, VERIFY, History, Line
from kinetics_tools.dataset.manifest import Segment, select
from kinetics_tools.media import decode


@dataclass(frozen=True, slots=True)
class ExpectedClip:
    """What the ledger says of a clip that is done.

    Attributes:
        key: of the clip.
        path: of its file, relative to OUT, with slashes.
        frames: of the clip.
        bytes: of the file.
        sha256: of the file, hex.
    """

    key: str
    path: str
    frames: int | None
    bytes: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What was found of one clip.

    Attributes:
        key: of the clip.
        path: of its file, relative to OUT.
        problem: why it must be made again; None for a whole clip.
        is_new: whether the ledger does not say so yet.
    """

    key: str
    path: str
    problem: str | None = None
    is_new: bool = False


@contextmanager
def verify(out: Path, *, splits: Sequence[str] = (), jobs: int = 1) -> Iterator[Verification]:
    """Begin to check every clip that the ledger has as done, and to record the damaged ones.

    The clips are checked while the verification is iterated over, inside the block.

        with verify(out) as run:
            for result in run:
                print(result.path, result.problem or "is whole")

    Args:
        out: a folder that kinetics-download filled.
        splits: only these; none for all.
        jobs: clips at once.

    Raises:
        ManifestError: `out` is not such a folder.
        UnknownNameError: no row of its manifest is in that split.
        OutError: a run or another verification uses `out`, or a ledger is broken.
    """
    manifest, _ = read_out(out)
    segments = select(manifest, splits=splits)
    folders = {segment.split for segment in segments} if splits else None
    with hold_lock_if_any(out), closing(Verification(out, segments, jobs, folders)) as run:
        yield run


class Verification:
    """A verification. Iterating over it checks each clip and yields the result, already recorded.

    One that is killed loses nothing; the next one starts over.

    Attributes:
        num_whole: clips so far that are as the ledger has them.
        num_damaged: clips so far that must be made again: damaged, missing, or found damaged by an
            earlier verification and not made since.
    """

    def __init__(
        self, out: Path, segments: Sequence[Segment], jobs: int, folders: Container[str] | None
    ) -> None:
        self._out = out
        self._folders = folders  # of the splits to check; None for all
        self._expected, self._known = _expected_clips(segments, ledger.read(out))
        self.num_whole, self.num_damaged = 0, len(self._known)
        self._ledger_of = ledger.done_in(out)
        self._results = _check_all(out, self._expected, jobs)

    def __len__(self) -> int:
        """How many clips there are to check."""
        return len(self._expected) + len(self._known)

    def __iter__(self) -> Iterator[CheckResult]:
        """Yield each clip's result."""
        yield from self._known
        for result in self._results:
            if result.is_new:
                _record(result, self._ledger_of[result.key])
            if result.problem is None:
                self.num_whole += 1
            else:
                self.num_damaged += 1
            yield result

    def close(self) -> None:
        """End the workers."""
        self._results.close()

    def untracked(self) -> list[str]:
        """Files among the clips that the ledger does not have as done, relative to OUT."""
        tracked = {clip.path for clip in self._expected} | {result.path for result in self._known}
        return [
            path
            for path in clip_files(self._out)
            if path not in tracked
            and (self._folders is None or path.split("/")[1] in self._folders)
        ]


def _expected_clips(
    segments: Iterable[Segment], histories: Mapping[str, History]
) -> tuple[list[ExpectedClip], list[CheckResult]]:
    """The clips to check, and the results that an earlier verification left."""
    expected, known = [], []
    for segment in segments:
        history = histories.get(segment.key, History())
        path = clip_name(segment)
        if history.done is not None:
            done = history.done
            expected.append(ExpectedClip(segment.key, path, done.frames, done.bytes, done.sha256))
        elif history.is_broken:
            problem = "was found damaged before, and has not been made again since"
            known.append(CheckResult(segment.key, path, problem))
    return expected, known


def _check_all(
    out: Path, clips: Sequence[ExpectedClip], jobs: int
) -> Generator[CheckResult, None, None]:
    work = partial(check, out=out)
    with closing(engine.run(clips, work, jobs=min(jobs, max(len(clips), 1)))) as finished:
        for clip, result in finished:
            if isinstance(result, Crash):
                yield CheckResult(clip.key, clip.path, result.detail, is_new=True)
            else:
                yield result


def check(clip: ExpectedClip, *, out: Path) -> CheckResult:
    """Compare a clip's file with what the ledger says of it, and decode all of it."""
    try:
        problem = _damage(out / clip.path, clip)
    except (FileNotFoundError, NotADirectoryError):
        return CheckResult(clip.key, clip.path, "is not there")
    return CheckResult(clip.key, clip.path, problem, is_new=problem is not None)


def _damage(path: Path, expected: ExpectedClip) -> str | None:
    try:
        num_bytes = path.stat().st_size
        if num_bytes != expected.bytes:
            return f"has {num_bytes} bytes, not {expected.bytes}"
        if file_digest(path) != expected.sha256:
            return "has other bytes than when it was made (SHA-256)"
        num_frames = decode.count_frames(path)
    except MediaError as error:
        return error.detail
    except OSError as error:
        if error.errno != errno.EIO:  # a bad sector is damage; a missing permission is not
            raise
        return f"cannot be read: {error.strerror}"
    if num_frames != expected.frames:
        return f"has {num_frames} frames, not {expected.frames}"
    return None


def _record(result: CheckResult, path: Path) -> None:
    # In the file of the clip's "done" line, it comes after that line whatever the clocks say. The
    # lock on OUT excludes all parts, so nobody else writes there.
    line = Line(
        key=result.key,
        status=FAILED,
        source=VERIFY,
        reason=Reason.DAMAGED,
        detail=result.problem or "",
    )
    with ledger.writer(path) as record:
        record.add(line)
