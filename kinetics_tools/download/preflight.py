"""What is missing or old, found before a long job instead of after it."""

import os
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
from kinetics_tools.core.errors import MediaError, SourceError
from kinetics_tools.download.sources import js_runtime
from kinetics_tools.media import encode
from kinetics_tools.media.cut import ClipRecipe, cut

OLD_DAYS = 90  # YouTube changes every few weeks; older releases fail in ways that look like others
SPARE = 1.1  # the disk estimate is no promise
INSTALL = 'pip install -U "yt-dlp[default,deno]"'


class Level(StrEnum):
    """How a finding bears on the job."""

    OK = "ok"
    MISSING = "missing"  # the job would fail
    OLD = "old"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, how it is, and what to do where it is not well."""

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
        out: the folder to fill. Nothing is written to it, nor is it made.
        cache: the user's cache folder.
        tmp_dir: where scratch files go, where that is not `out`.
        binary: the ffmpeg program.
        recipe: of the clips.
        needed_bytes: what the finished clips are expected to take.
        ytdlp: parameters of yt-dlp; None where no source uses it.
        is_youtube: whether it is YouTube that is asked.
        lockout: what the pace says of YouTube's refusals; None where it may be asked.
    """

    out: Path
    cache: Path
    tmp_dir: Path | None = None
    binary: Path
    recipe: ClipRecipe
    needed_bytes: float = 0.0
    ytdlp: Mapping[str, Any] | None = None
    is_youtube: bool = False
    lockout: SourceError | None = None


def check(job: PreflightJob, *, today: date | None = None) -> list[Finding]:
    """Look at everything that a job needs, without asking any source.

    Args:
        job: what is to be done.
        today: by default the clock's.
    """
    found = [*_ffmpeg(job), *_folders(job), _space(job)]
    if job.ytdlp is not None:
        found += _options(job.ytdlp)
        found += check_youtube(job.ytdlp, today=today) if job.is_youtube else [_release(today)]
    if job.is_youtube:
        found.append(_lockout(job.lockout))
    return found


def check_youtube(parameters: Mapping[str, Any], *, today: date | None = None) -> list[Finding]:
    """Look at what yt-dlp needs to be given videos by YouTube; `parameters` are its own."""
    return [_release(today), _js_runtime(parameters), _solver(parameters)]


def is_ready(findings: Sequence[Finding]) -> bool:
    """Whether nothing is missing, so that the job can run."""
    return all(finding.level is not Level.MISSING for finding in findings)


def _ffmpeg(job: PreflightJob) -> Iterator[Finding]:
    """Whether the binary makes a clip: a stranger's build may lack the encoder."""
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
                "leave --ffmpeg out to use our own",
            )
            return
    if re.match(r"n?8\.1\b", job.recipe.ffmpeg):
        what += ", with which yt-dlp's --download-sections hangs; our sections are fetched without"
    yield Finding(Level.OK, what)


def _folders(job: PreflightJob) -> Iterator[Finding]:
    places = {"OUT": job.out, "--cache-dir": job.cache, "--tmp-dir": job.tmp_dir}
    for name, folder in places.items():
        if folder is None:
            continue
        try:
            with tempfile.TemporaryFile(dir=_nearest(folder)):
                yield Finding(Level.OK, f"{name} {folder} can be written")
        except OSError as error:
            yield Finding(
                Level.MISSING,
                f"{name} {folder} cannot be written ({error.strerror})",
                "choose another folder",
            )


def _nearest(folder: Path) -> Path:
    """The folder itself, or the first above it that is there."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))


def _space(job: PreflightJob) -> Finding:
    free = shutil.disk_usage(_nearest(job.out)).free
    what = f"{size_text(free)} free, about {size_text(job.needed_bytes)} needed at {job.out}"
    if free < job.needed_bytes * SPARE:
        return Finding(Level.MISSING, what, "make room, choose another OUT, or fewer --classes")
    return Finding(Level.OK, what)


def _release(today: date | None) -> Finding:
    today = today or datetime.now(UTC).date()
    version, released = js_runtime.release()
    days = (today - released).days
    if days > OLD_DAYS:
        return Finding(Level.OLD, f"yt-dlp {version} is {days} days old", INSTALL)
    return Finding(Level.OK, f"yt-dlp {version}")


def _options(parameters: Mapping[str, Any]) -> Iterator[Finding]:
    """Options that yt-dlp would only refuse, or pass over in silence, when it is used."""
    path = parameters.get("cookiefile")
    if path is not None and not os.access(path, os.R_OK):
        # yt-dlp itself goes on without cookies then, and says nothing.
        yield Finding(Level.MISSING, f"--cookies {path} cannot be read", "give a cookies.txt file")
    elif path is not None:
        yield _accepted(parameters, "cookiefile", f"--cookies {path}", "export cookies.txt again")
    if parameters.get("cookiesfrombrowser"):
        browser = parameters["cookiesfrombrowser"][0]
        yield _accepted(
            parameters,
            "cookiesfrombrowser",
            f"--cookies-from-browser {browser}",
            "close the browser, or export a cookies.txt file for --cookies",
        )
    if parameters.get("impersonate") is not None:
        yield _accepted(
            parameters,
            "impersonate",
            f"--impersonate {parameters['impersonate']}",
            'pip install -U "yt-dlp[default,curl-cffi]"',
        )


def _accepted(parameters: Mapping[str, Any], name: str, what: str, advice: str) -> Finding:
    said = js_runtime.objection({name: parameters[name]})
    if said is None:
        return Finding(Level.OK, what)
    return Finding(Level.MISSING, f"{what} cannot be used ({said})", advice)


def _js_runtime(parameters: Mapping[str, Any]) -> Finding:
    found = js_runtime.js_runtimes(parameters)
    usable = [js for js in found if js.is_supported]
    for js in usable:
        if js.is_enabled:
            return Finding(Level.OK, f"JavaScript runtime {js.name} {js.version} ({js.path})")
    if usable:
        return Finding(
            Level.MISSING,
            f"{usable[0].name} {usable[0].version} is there, but yt-dlp may not use it",
            f"add --js-runtimes {usable[0].name}",
        )
    if found:
        old = min(found, key=lambda js: not js.is_enabled)  # the one that the user meant
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
        f"{INSTALL}, which brings {scripts.wanted or 'the version wanted'}",
    )


def _lockout(lockout: SourceError | None) -> Finding:
    if lockout is None:
        return Finding(Level.OK, "no refusal of YouTube stands against this identity")
    return Finding(
        Level.WARNING,
        f"YouTube is not asked now ({lockout})",
        "wait, or use the mirror: --source cvdf",
    )
