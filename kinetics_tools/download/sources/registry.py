"""The sources by name, as `--source` takes them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kinetics_tools.core.errors import KineticsError, lookup
from kinetics_tools.core.system import cache_dir
from kinetics_tools.download.sources import mirror, youtube
from kinetics_tools.download.sources.base import Source
from kinetics_tools.download.sources.folder import Folder
from kinetics_tools.download.sources.rate_limit import RateLimiter, rate_limit_path
from kinetics_tools.download.sources.ytdlp_options import identity, settle

HOUR_S = 3600
URL_LOCKOUT_S = 60  # a user's own server is tried again soon


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of all sources.

    Attributes:
        out: the folder to fill.
        cache_dir: the user's choice of a cache folder; None for the default.
        ytdlp: options of yt-dlp, as NAME or NAME=VALUE.
        keep_audio: whether clips keep their sound, so that it must be fetched.
        fetch: a name in FETCHES.
        videos_per_hour: YouTube's rate limit for one address or account.
        cvdf_base: address of the mirror.
        cvdf_lists: addresses of path lists of the mirror, by split; they replace or extend those
            of a known dataset.
        dataset: the known dataset whose full label list the manifest has, or None.
    """

    out: Path
    cache_dir: Path | None = None
    ytdlp: Sequence[str] = ()
    keep_audio: bool = False
    fetch: str = "auto"
    videos_per_hour: int = 240
    cvdf_base: str = mirror.OFFICIAL
    cvdf_lists: Mapping[str, str] = field(default_factory=dict)
    dataset: str | None = None

    @property
    def cache(self) -> Path:
        """The cache folder, for workers in other folders too."""
        return cache_dir(self.cache_dir).absolute()


def _youtube(argument: str, settings: Settings) -> tuple[Source, ...]:
    if argument:
        raise KineticsError(f"--source youtube takes nothing after a colon, not {argument!r}")
    limiter = RateLimiter(
        path=rate_limit_path(settings.cache, f"youtube\n{identity(settings.ytdlp)}"),
        interval_s=HOUR_S / settings.videos_per_hour,
        lockout_s=HOUR_S,
    )
    audio = settings.keep_audio
    return (youtube.youtube(settings.ytdlp, limiter, keep_audio=audio, fetch=settings.fetch),)


def _url(argument: str, settings: Settings) -> tuple[Source, ...]:
    limiter = RateLimiter(
        path=rate_limit_path(settings.cache, f"{argument}\n{identity(settings.ytdlp)}"),
        interval_s=0,
        lockout_s=URL_LOCKOUT_S,
    )
    audio = settings.keep_audio
    return (youtube.url(argument, settings.ytdlp, limiter, keep_audio=audio, fetch=settings.fetch),)


def _dir(argument: str, settings: Settings) -> tuple[Source, ...]:  # noqa: ARG001 - needs none
    path = Path(argument).absolute()
    if not argument or not os.access(path, os.R_OK | os.X_OK) or not path.is_dir():
        raise KineticsError(f"--source dir:{argument} is not a folder that can be read")
    return (Folder(path),)


def _cvdf(argument: str, settings: Settings) -> tuple[Source, ...]:
    if argument:
        raise KineticsError(
            f"--source cvdf takes nothing after a colon, not {argument!r}; give the address of "
            "a copy of the mirror by --cvdf-base"
        )
    return mirror.make(
        settings.cache,
        settings.out,
        base=settings.cvdf_base,
        lists=settings.cvdf_lists,
        is_kinetics400=settings.dataset == "kinetics400",
    )


SOURCES: Mapping[str, Callable[[str, Settings], tuple[Source, ...]]] = {
    "cvdf": _cvdf,
    "youtube": _youtube,
    "url": _url,
    "dir": _dir,
}


def make_sources(named: Sequence[str], settings: Settings) -> tuple[Source, ...]:
    """The chain of sources, each once.

    Args:
        named: `cvdf`, `youtube`, `url:TEMPLATE` or `dir:PATH`, in the order in which to try them.
        settings: their options.

    Raises:
        UnknownNameError: no such source.
        KineticsError: what follows a source's colon, or one of its options, cannot be used.
    """
    # For all kinds of source: an option that cannot be used is refused, not ignored.
    settings = replace(settings, ytdlp=settle(settings.ytdlp))
    chain: dict[str, Source] = {}
    for word in named:
        kind, _, argument = word.partition(":")
        for source in lookup("source", kind, SOURCES)(argument, settings):
            chain.setdefault(source.name, source)
    return tuple(chain.values())
