"""What yt-dlp needs besides itself to fetch from YouTube, as yt-dlp itself finds it.

YouTube asks its visitors to solve a puzzle in JavaScript: yt-dlp hands it to a runtime that must be
installed beside it, with solver scripts that must fit its version.
"""

import contextlib
import importlib.metadata
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import yt_dlp
import yt_dlp.dependencies
import yt_dlp.globals

SOLVER = "yt-dlp-ejs"
ONLY_ENABLED: Mapping[str, Any] = {"deno": {}}  # yt-dlp's own default


@dataclass(frozen=True, slots=True, kw_only=True)
class JsRuntime:
    """A JavaScript runtime that is installed.

    Attributes:
        name: yt-dlp's name of it: deno, node, quickjs or bun.
        path: of the program.
        version: as it says.
        minimum: the first version that yt-dlp can use.
        is_supported: whether `version` is one that yt-dlp can use.
        is_enabled: whether yt-dlp's options let it be used; only deno is without being named.
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
        installed: version of the package, None where it is not there.
        wanted: the version that this yt-dlp was released with, None where it does not say.
        may_be_fetched: whether options let yt-dlp fetch the scripts when it needs them.
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
    """yt-dlp's version, and the day of its release: its versions are dates."""
    version = yt_dlp.version.__version__
    year, month, day = (int(number) for number in version.split(".")[:3])
    return version, date(year, month, day)


def js_runtimes(parameters: Mapping[str, Any]) -> list[JsRuntime]:
    """The JavaScript runtimes that are there, found as yt-dlp finds them.

    Args:
        parameters: of `yt_dlp.YoutubeDL`; `js_runtimes` says which are enabled, and their paths.
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
    """The solver scripts that are there, and those that this yt-dlp wants."""
    package = yt_dlp.dependencies.yt_dlp_ejs
    needs = " ".join(importlib.metadata.requires("yt-dlp") or ())
    wanted = re.search(rf"\b{SOLVER}==([0-9.]*[0-9])", needs)
    return Solver(
        installed=None if package is None else str(package.version),
        wanted=None if wanted is None else wanted[1],
        may_be_fetched=bool(parameters.get("remote_components")),
    )


def objection(parameters: Mapping[str, Any]) -> str | None:
    """What yt-dlp itself has against its options of cookies and impersonation; None for nothing."""
    settings = {"quiet": True, "logger": Silent(), "cachedir": False} | dict(parameters)
    try:
        # Never closed: closing writes the cookies back to the user's file. And its warnings show
        # whole lines of that file, which are secrets.
        with contextlib.redirect_stderr(io.StringIO()):
            _ = yt_dlp.YoutubeDL(settings).cookiejar
    except yt_dlp.utils.YoutubeDLError as error:
        said = " ".join(str(error).removeprefix("ERROR: ").split())
        return said.partition(". ")[0]  # advice to use options of yt-dlp that we have not
    return None


class Silent:
    """yt-dlp's messages come back in its exceptions; what it prints besides is not ours to show."""

    def debug(self, message: str) -> None:
        """Take and drop a line."""

    info = warning = error = debug
