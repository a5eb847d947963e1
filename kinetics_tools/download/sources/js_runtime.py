"""What else yt-dlp needs to fetch from YouTube, found in the way that yt-dlp finds it.

YouTube sends a puzzle in JavaScript. yt-dlp solves it with a JavaScript runtime, which must be
installed, and with solver scripts that must fit yt-dlp's version.
"""

import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yt_dlp
import yt_dlp.dependencies
import yt_dlp.globals

from kinetics_tools.download.sources.cookies import CookiesError, read_cookies

SOLVER = "yt-dlp-ejs"
ONLY_ENABLED: Mapping[str, Any] = {"deno": {}}  # yt-dlp's own default
CHECKED_OPTIONS: Mapping[str, str] = {  # by the name of yt-dlp's parameter
    "cookiefile": "--cookies",
    "cookiesfrombrowser": "--cookies-from-browser",
    "impersonate": "--impersonate",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JsRuntime:
    """A JavaScript runtime that is installed.

    Attributes:
        name: yt-dlp's name of it: deno, node, quickjs or bun.
        path: of the program.
        version: as the program prints it.
        minimum: the first version that yt-dlp can use.
        is_supported: whether `version` is one that yt-dlp can use.
        is_enabled: whether yt-dlp's options allow it; deno needs no option.
    """

    name: str
    path: str
    version: str
    minimum: str
    is_supported: bool
    is_enabled: bool


@dataclass(frozen=True, slots=True)
class Solver:
    """The solver scripts.

    Attributes:
        installed: version of the package; None where it is not installed.
        wanted: the version that this yt-dlp was released with; None where that is unknown.
        may_be_fetched: whether options allow yt-dlp to fetch the scripts when it needs them.
    """

    installed: str | None
    wanted: str | None
    may_be_fetched: bool

    @property
    def fits(self) -> bool:
        """Whether yt-dlp takes the installed version: its first two numbers must be the same."""
        if self.installed is None or self.wanted is None:
            return self.installed is not None
        return self.installed.split(".")[:2] == self.wanted.split(".")[:2]


def release() -> tuple[str, date]:
    """yt-dlp's version, and the day of its release (a version is a date)."""
    version = yt_dlp.version.__version__
    year, month, day = (int(number) for number in version.split(".")[:3])
    return version, date(year, month, day)


def js_runtimes(parameters: Mapping[str, Any]) -> list[JsRuntime]:
    """The JavaScript runtimes that are installed.

    Args:
        parameters: of `yt_dlp.YoutubeDL`; `js_runtimes` has the enabled ones and their paths.
    """
    enabled = parameters.get("js_runtimes", ONLY_ENABLED)
    found = []
    for name, kind in yt_dlp.globals.supported_js_runtimes.value.items():
        facts = kind(path=(enabled.get(name) or {}).get("path")).info
        if facts is not None:
            found.append(
                JsRuntime(
                    name=name,
                    path=facts.path,
                    version=facts.version,
                    minimum=".".join(str(number) for number in kind.MIN_SUPPORTED_VERSION),
                    is_supported=facts.supported,
                    is_enabled=name in enabled,
                )
            )
    return found


def solver(parameters: Mapping[str, Any]) -> Solver:
    """The solver scripts that are installed, and those that this yt-dlp wants."""
    package = yt_dlp.dependencies.yt_dlp_ejs
    needs = " ".join(importlib.metadata.requires("yt-dlp") or ())
    wanted = re.search(rf"\b{SOLVER}==([0-9.]*[0-9])", needs)
    return Solver(
        installed=None if package is None else str(package.version),
        wanted=None if wanted is None else wanted[1],
        may_be_fetched=bool(parameters.get("remote_components")),
    )


@dataclass(frozen=True, slots=True)
class CheckedOption:
    """An option that yt-dlp itself checks only when it is used.

    Attributes:
        name: as on the command line.
        value: as on the command line.
        problem: why yt-dlp cannot use it; None where it can.
    """

    name: str
    value: str
    problem: str | None


def check_options(parameters: Mapping[str, Any]) -> Iterator[CheckedOption]:
    """Check those of yt-dlp's `parameters` that name cookies or a browser to impersonate."""
    for parameter, name in CHECKED_OPTIONS.items():
        value = parameters.get(parameter)
        if value is None:
            continue
        shown = value[0] if parameter == "cookiesfrombrowser" else value
        problem = _of_file(value) if parameter == "cookiefile" else _problem({parameter: value})
        yield CheckedOption(name, str(shown), problem)


def _of_file(cookies: str) -> str | None:
    try:
        read_cookies(Path(cookies))
    except CookiesError as error:
        return error.problem
    return None


def _problem(parameters: Mapping[str, Any]) -> str | None:
    """Why yt-dlp does not start with these parameters; None where it does."""
    settings = {"quiet": True, "logger": Silent(), "cachedir": False} | dict(parameters)
    try:
        _ = yt_dlp.YoutubeDL(settings).cookiejar
    except yt_dlp.utils.YoutubeDLError as error:
        said = " ".join(str(error).removeprefix("ERROR: ").split())
        return said.partition(". ")[0]  # the rest advises options of yt-dlp that we do not have
    return None


class Silent:
    """A logger for yt-dlp that prints nothing; its exceptions hold the messages that we show."""

    def debug(self, message: str) -> None:
        """Drop the message."""

    info = warning = error = debug
