"""Decode every clip of an OUT once more, and have those that are damaged made again.

A clip is whole when its file has the bytes that the ledger has, and every frame of it decodes.
For one that is not, a ledger line says so: the next run asks the sources for it again. Nothing is
deleted. A file that is not there needs no line, for every run looks for the files; so a disk that
was not mounted does not become a record of losses.
"""

import errno
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kinetics_tools.core import engine
from kinetics_tools.core.errors import MediaError, Reason
from kinetics_tools.core.files import file_digest, hold_lock
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
        key: the clip's.
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
        key: the clip's.
        path: of its file, relative to OUT.
        problem: why it must be made again; None for a clip that is whole.
        is_new: whether the ledger must be told.
    """

    key: str
    path: str
    problem: str | None = None
    is_new: bool = False


Show = Callable[[Iterator[CheckResult], int], Iterable[CheckResult]]


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification found.

    Attributes:
        num_whole: clips that are as the ledger has them.
        num_damaged: clips that must be made again: damaged, not there, or found damaged by an
            earlier verification and not made since.
        untracked: files where clips lie that the ledger does not have as done, relative to OUT.
            They are left alone.
    """

    num_whole: int
    num_damaged: int
    untracked: tuple[str, ...]


def verify(out: Path, *, splits: Sequence[str] = (), jobs: int = 1, show: Show) -> Verification:
    """Check every clip that the ledger has as done, and record those that are damaged.

    Each is recorded when it is found: a verification that is killed has lost nothing, and the next
    one begins anew.

    Args:
        out: a folder that kinetics-download filled.
        splits: only these; none for all.
        jobs: clips at once.
        show: wraps the iterator of verdicts, given how many there will be, to show them.

    Raises:
        ManifestError: `out` is no such folder.
        UnknownNameError: no row of its manifest is in that split.
        OutError: a run or another verification is in it, or a ledger is broken.
    """
    manifest, _ = read_out(out)
    segments = select(manifest, splits=splits)
    with hold_lock(out):
        claims, known = _expected_clips(segments, ledger.read(out))
        recorded_in = ledger.done_in(out)
        num_damaged = 0
        with closing(_check_all(out, claims, jobs)) as checked:
            for verdict in show(itertools.chain(known, checked), len(known) + len(claims)):
                num_damaged += verdict.problem is not None
                if verdict.is_new:
                    _record(verdict, recorded_in[verdict.key])
        mentioned = {claim.path for claim in claims} | {verdict.path for verdict in known}
        folders = {segment.split for segment in segments} if splits else None
        untracked = tuple(
            path
            for path in clip_files(out)
            if path not in mentioned and (folders is None or path.split("/")[1] in folders)
        )
    num_whole = len(claims) + len(known) - num_damaged
    return Verification(num_whole, num_damaged, untracked)


def _expected_clips(
    segments: Iterable[Segment], histories: Mapping[str, History]
) -> tuple[list[ExpectedClip], list[CheckResult]]:
    """The clips to check, and the verdicts that are known from an earlier verification."""
    claims, known = [], []
    for segment in segments:
        history = histories.get(segment.key, History())
        path = clip_name(segment)
        if history.done is not None:
            done = history.done
            claims.append(ExpectedClip(segment.key, path, done.frames, done.bytes, done.sha256))
        elif history.is_broken:
            problem = "was found damaged before, and has not been made again since"
            known.append(CheckResult(segment.key, path, problem))
    return claims, known


def _check_all(
    out: Path, claims: Sequence[ExpectedClip], jobs: int
) -> Generator[CheckResult, None, None]:
    work = partial(check, out=out)
    with closing(engine.run(claims, work, jobs=min(jobs, max(len(claims), 1)))) as finished:
        for claim, result in finished:
            if isinstance(result, Crash):
                yield CheckResult(claim.key, claim.path, result.detail, is_new=True)
            else:
                yield result


def check(claim: ExpectedClip, *, out: Path) -> CheckResult:
    """Compare a clip's file with what the ledger says of it, and decode all of it."""
    try:
        problem = _damage(out / claim.path, claim)
    except (FileNotFoundError, NotADirectoryError):
        return CheckResult(claim.key, claim.path, "is not there")
    return CheckResult(claim.key, claim.path, problem, is_new=problem is not None)


def _damage(clip: Path, claim: ExpectedClip) -> str | None:
    try:
        num_bytes = clip.stat().st_size
        if num_bytes != claim.bytes:
            return f"has {num_bytes} bytes, not {claim.bytes}"
        if file_digest(clip) != claim.sha256:
            return "has other bytes than when it was made (SHA-256)"
        num_frames = decode.count_frames(clip)
    except MediaError as error:
        return error.detail
    except OSError as error:
        if error.errno != errno.EIO:  # a bad sector is damage; no permission is not
            raise
        return f"cannot be read: {error.strerror}"
    return None if num_frames == claim.frames else f"has {num_frames} frames, not {claim.frames}"


def _record(verdict: CheckResult, path: Path) -> None:
    # In the file of the line that it takes back, it comes after that line whatever the clocks say.
    # The lock on OUT is on all parts, so nobody else writes there.
    line = Line(
        key=verdict.key,
        status=FAILED,
        source=VERIFY,
        reason=Reason.DAMAGED,
        detail=verdict.problem or "",
    )
    with ledger.writer(path) as record:
        record.add(line)
