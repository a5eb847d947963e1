"""`--check`: what a long job needs and lacks, found before it instead of after it."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from kinetics_tools.core.console import size_text
from kinetics_tools.core.errors import MediaError, OutError, SourceError
from kinetics_tools.core.files import nearest_existing, require_locks
from kinetics_tools.download.sources import cookies, js_runtime
from kinetics_tools.media import encode
from kinetics_tools.media.clips import cut
from kinetics_tools.media.recipe import ClipRecipe

OLD_DAYS = 90  # YouTube changes every few weeks; what an older release reports is misleading
DISK_MARGIN = 1.1  # the estimate is not exact
INSTALL = 'pip install -U "yt-dlp[default,deno]"'
ADVICE: Mapping[str, str] = {
    "--cookies": cookies.ADVICE,
    "--cookies-from-browser": cookies.BROWSER_ADVICE,
    "--impersonate": 'pip install -U "yt-dlp[default,curl-cffi]"',
}


class Level(StrEnum):
    """What a finding means for the job."""

    OK = "ok"
    MISSING = "missing"  # the job would fail
    OLD = "old"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked: its level, what was found, and what to do about it."""

    level: Level
    what: str
    advice: str = ""

    def __str__(self) -> str:
        line = f"{self.level:8}{self.what}"
        return f"{line}: {self.advice}" if self.advice else line


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightJob:
    """What is to be checked.

    Attributes:
        out: the folder to fill. The check neither makes it nor writes to it.
        cache: the user's cache folder.
        tmp_dir: folder of scratch files; None for `out`.
        binary: the ffmpeg program.
        recipe: of the clips.
        needed_bytes: expected size of the finished clips.
        ytdlp: parameters of yt-dlp; None where no source uses it.
        is_youtube: whether one of the sources is YouTube.
        cookie_problem: why YouTube gets none of the user's cookies; None where it does, or there
            are none.
        lockout: why YouTube blocks this address or account; None where it does not.
    """

    out: Path
    cache: Path
    tmp_dir: Path | None = None
    binary: Path
    recipe: ClipRecipe
    needed_bytes: float = 0.0
    ytdlp: Mapping[str, Any] | None = None
    is_youtube: bool = False
    cookie_problem: str | None = None
    lockout: SourceError | None = None


def check(job: PreflightJob, *, today: date | None = None) -> list[Finding]:
    """Check everything that a job needs, without a request to any source.

    Args:
        job: what is to be done.
        today: the date; None for that of the clock.
    """
    found = [*_ffmpeg(job), *_folders(job), _space(job)]
    if job.ytdlp is not None:
        found += _options(job.ytdlp)
        if job.is_youtube:
            found += check_youtube(job.ytdlp, job.cookie_problem, today=today)
        else:
            found.append(_release(today))
    if job.is_youtube:
        found.append(_lockout(job.lockout))
    return found


def check_youtube(
    parameters: Mapping[str, Any], cookie_problem: str | None, *, today: date | None = None
) -> list[Finding]:
    """Check what yt-dlp needs for YouTube.

    Args:
        parameters: yt-dlp's own.
        cookie_problem: as in PreflightJob.
        today: the date; None for that of the clock.
    """
    found = [_release(today), _js_runtime(parameters), _solver(parameters)]
    if cookie_problem is not None:
        found.append(Finding(Level.WARNING, cookie_problem, cookies.ADVICE))
    return found


def is_ready(findings: Sequence[Finding]) -> bool:
    """Whether nothing is missing, so that the job can run."""
    return all(finding.level is not Level.MISSING for finding in findings)


def _ffmpeg(job: PreflightJob) -> Iterator[Finding]:
    """Whether the binary makes a clip: a build of the user's may lack the encoder."""
    what = f"ffmpeg {job.recipe.ffmpeg} ({job.binary})"
    grey = np.full((16, 16, 3), 128, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        video, clip = Path(folder, "video.mp4"), Path(folder, "clip.mp4")
        try:
            encode.write_video(video, [grey] * 10, fps=job.recipe.fps, binary=job.binary)
            cut(
                video,
                clip,
                start_s=Fraction(0),
                end_s=Fraction(10, job.recipe.fps),
                recipe=job.recipe,
                binary=job.binary,
            )
        except MediaError as error:
            yield Finding(
                Level.MISSING,
                f"{what} cannot make a clip ({error.detail})",
                "leave --ffmpeg out to use the included one",
            )
            return
    if re.match(r"n?8\.1\b", job.recipe.ffmpeg):
        what += ", with which yt-dlp's --download-sections hangs; it is not used here"
    yield Finding(Level.OK, what)


def _folders(job: PreflightJob) -> Iterator[Finding]:
    places = {"OUT": job.out, "--cache-dir": job.cache, "--tmp-dir": job.tmp_dir}
    for name, folder in places.items():
        if folder is None:
            continue
        try:
            require_locks(folder)
            yield Finding(Level.OK, f"{name} {folder} can be written")
        except OutError as error:
            what, _, advice = str(error).rpartition("; ")
            yield Finding(Level.MISSING, f"{name} {what}", advice)
        except OSError as error:
            yield Finding(
                Level.MISSING,
                f"{name} {folder} cannot be written ({error.strerror})",
                "choose another folder",
            )


def _space(job: PreflightJob) -> Finding:
    free = shutil.disk_usage(nearest_existing(job.out)).free
    what = f"{size_text(free)} free, about {size_text(job.needed_bytes)} needed at {job.out}"
    if free < job.needed_bytes * DISK_MARGIN:
        return Finding(Level.MISSING, what, "make room, or choose another OUT or fewer --classes")
    return Finding(Level.OK, what)


def _release(today: date | None) -> Finding:
    today = today or datetime.now(UTC).date()
    version, released = js_runtime.release()
    days = (today - released).days
    if days > OLD_DAYS:
        return Finding(Level.OLD, f"yt-dlp {version} is {days} days old", INSTALL)
    return Finding(Level.OK, f"yt-dlp {version}")


def _options(parameters: Mapping[str, Any]) -> Iterator[Finding]:
    """Options that yt-dlp rejects, or silently ignores, only when it is used."""
    for option in js_runtime.check_options(parameters):
        what = f"{option.name} {option.value}"
        if option.problem is None:
            yield Finding(Level.OK, what)
        else:
            problem = f"{what} cannot be used ({option.problem})"
            yield Finding(Level.MISSING, problem, ADVICE[option.name])


def _js_runtime(parameters: Mapping[str, Any]) -> Finding:
    found = js_runtime.js_runtimes(parameters)
    usable = [js for js in found if js.is_supported]
    for js in usable:
        if js.is_enabled:
            return Finding(Level.OK, f"JavaScript runtime {js.name} {js.version} ({js.path})")
    if usable:
        return Finding(
            Level.MISSING,
            f"{usable[0].name} {usable[0].version} is installed, but yt-dlp may not use it",
            f"add --js-runtimes {usable[0].name}",
        )
    if found:
        old = min(found, key=lambda js: not js.is_enabled)  # one that the user enabled, if any
        return Finding(
            Level.MISSING,
            f"{old.name} {old.version} ({old.path}) is too old a JavaScript runtime",
            f"yt-dlp needs {old.minimum} or later, or deno: {INSTALL}",
        )
    return Finding(Level.MISSING, "no JavaScript runtime for yt-dlp", f"install deno: {INSTALL}")


def _solver(parameters: Mapping[str, Any]) -> Finding:
    scripts = js_runtime.solver(parameters)
    if scripts.fits:
        return Finding(Level.OK, f"{js_runtime.SOLVER} {scripts.installed}")
    if scripts.may_be_fetched:
        return Finding(Level.OK, f"no fitting {js_runtime.SOLVER}; yt-dlp may fetch its scripts")
    has = f"{js_runtime.SOLVER} {scripts.installed} does not fit this yt-dlp"
    return Finding(
        Level.MISSING,
        f"no {js_runtime.SOLVER}, yt-dlp's solver scripts" if scripts.installed is None else has,
        f"{INSTALL}, which installs {scripts.wanted or 'the version that fits'}",
    )


def _lockout(lockout: SourceError | None) -> Finding:
    if lockout is None:
        return Finding(Level.OK, "YouTube is not blocking this address or account")
    return Finding(
        Level.WARNING,
        f"YouTube is blocking this address or account ({lockout})",
        "wait, or use the mirror: --source cvdf",
    )
