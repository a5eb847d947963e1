"""Where a video or a ready clip comes from. The only importer of yt-dlp.

A source is named on the command line: `youtube`, `url:TEMPLATE` with {youtube_id} in it, or
`dir:PATH`. It gives a file, or raises SourceError with the reason for which it could not.
"""

import errno
import importlib.metadata
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from kinetics_tools.errors import KineticsError, Reason, SourceError, lookup
from kinetics_tools.files import STORAGE_ERRNOS
from kinetics_tools.names import VIDEO_SUFFIXES

SOCKET_TIMEOUT_S = 30


class Source(Protocol):
    """One place to ask. Instances are values: they are sent to worker processes."""

    @property
    def name(self) -> str:
        """As named on the command line; the ledger's word for it."""

    def clip(self, key: str) -> Path | None:
        """The ready clip of a segment, where this source has one."""

    def video(self, youtube_id: str, into: Path) -> Path:
        """The whole video: fetched into the folder `into`, or a file that lies elsewhere.

        Raises:
            SourceError: it cannot be had.
            OSError: the disk is full.
        """


@dataclass(frozen=True, slots=True)
class Folder:
    """`dir:PATH`: `<key>.*` anywhere below it is a ready clip, `<youtube_id>.*` a video."""

    path: Path

    @property
    def name(self) -> str:
        """As named on the command line."""
        return f"dir:{self.path}"

    def clip(self, key: str) -> Path | None:
        """The ready clip of a segment, where the folder has one."""
        return _by_stem(self.path).get(key)

    def video(self, youtube_id: str, into: Path) -> Path:  # noqa: ARG002 - it is read in place
        """The video, where it lies."""
        found = _by_stem(self.path).get(youtube_id)
        if found is None:
            raise SourceError(Reason.GONE, f"no file {youtube_id}.* below {self.path}")
        return found


@cache
def _by_stem(folder: Path) -> Mapping[str, Path]:
    """All video files below a folder, by name without suffix. Read once a process."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    return {path.stem: path for path in reversed(files)}  # the first of equal names wins


@dataclass(frozen=True, slots=True)
class Web:
    """A source that yt-dlp fetches: any HTTP address, or YouTube.

    Attributes:
        name: as named on the command line.
        template: the address, with {youtube_id}. Always a full address: 3 % of ids begin with `-`.
        options: of yt-dlp.
    """

    name: str
    template: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def clip(self, key: str) -> Path | None:  # noqa: ARG002 - a web source has whole videos only
        """None: these sources have whole videos only."""
        return None

    def video(self, youtube_id: str, into: Path) -> Path:
        """The video, fetched into the folder `into`."""
        return _fetch(self.template.replace("{youtube_id}", youtube_id), into, self.options)


def _youtube(argument: str, options: Mapping[str, Any]) -> Source:
    if argument:
        raise KineticsError(f"--source youtube takes nothing behind a colon, not {argument!r}")
    # The smallest picture that still covers a short side of 256, with sound only where it is kept.
    sound = "+ba" if options.get("keep_audio") else ""
    chosen = {
        "format": f"bv*[height>=256][width>=256]{sound}/b[height>=256][width>=256]/bv*{sound}/b",
        "format_sort": ["+res", "fps~30", "br"],
        "allowed_extractors": ["youtube"],
    }
    return Web("youtube", "https://www.youtube.com/watch?v={youtube_id}", chosen | dict(options))


def _url(argument: str, options: Mapping[str, Any]) -> Source:
    if "{youtube_id}" not in argument or not re.match(r"https?://", argument):
        raise KineticsError(
            f"--source url:{argument} is not an http(s) address with {{youtube_id}} in it"
        )
    chosen = {"force_generic_extractor": True, "allowed_extractors": ["generic"]}
    return Web(f"url:{argument}", argument, chosen | dict(options))


def _dir(argument: str, options: Mapping[str, Any]) -> Source:  # noqa: ARG001 - a folder has none
    path = Path(argument).absolute()
    if not argument or not os.access(path, os.R_OK | os.X_OK) or not path.is_dir():
        raise KineticsError(f"--source dir:{argument} is not a folder that can be read")
    return Folder(path)


SOURCES: Mapping[str, Callable[[str, Mapping[str, Any]], Source]] = {
    "youtube": _youtube,
    "url": _url,
    "dir": _dir,
}


def make_source(named: str, options: Mapping[str, Any]) -> Source:
    """The source that a word of the command line names.

    Args:
        named: `youtube`, `url:TEMPLATE` or `dir:PATH`.
        options: of yt-dlp, for the sources that use it.

    Raises:
        UnknownNameError: no such source.
        KineticsError: its argument is unusable.
    """
    kind, _, argument = named.partition(":")
    return lookup("source", kind, SOURCES)(argument, options)


def parse_rate(text: str) -> int:
    """Bytes a second of a rate in yt-dlp's words, such as 50K or 4.2M.

    Raises:
        KineticsError: it is none.
    """
    from yt_dlp.utils import parse_bytes

    rate = parse_bytes(text)
    if not rate:
        raise KineticsError(f"--limit-rate {text!r} is not a rate such as 50K or 4.2M")
    return int(rate)


def versions() -> dict[str, str]:
    """Of the tools that fetch."""
    return {"yt-dlp": importlib.metadata.version("yt-dlp")}


class _Silent:
    """yt-dlp's messages come back in its exceptions; what it prints besides is not ours to show."""

    def debug(self, message: str) -> None:
        """Take and drop a line."""

    info = warning = error = debug


def _fetch(address: str, into: Path, options: Mapping[str, Any]) -> Path:
    import yt_dlp  # 1 s; the commands' --help and --dry-run do without it

    settings = {
        "outtmpl": {"default": str(into / "video.%(ext)s")},
        "quiet": True,
        "noprogress": True,
        "no_color": True,
        "logger": _Silent(),
        "cachedir": False,
        "noplaylist": True,
        "overwrites": True,
        "fixup": "never",  # the cut decodes everything again
        "socket_timeout": SOCKET_TIMEOUT_S,
    } | dict(options)
    try:
        with yt_dlp.YoutubeDL(settings) as downloader:
            facts = downloader.extract_info(address, download=True)
    except yt_dlp.utils.YoutubeDLError as error:
        cause = _cause(error)
        if isinstance(cause, OSError) and cause.errno in STORAGE_ERRNOS:
            raise OSError(cause.errno, os.strerror(cause.errno), str(into)) from error
        raise SourceError(_reason(error, cause), _words(error)) from error
    # The suffix is what the site says it is, not what we asked for.
    fetched = [Path(item["filepath"]) for item in (facts or {}).get("requested_downloads", [])]
    if not fetched or not fetched[0].is_file():
        raise SourceError(Reason.NO_FORMATS, f"yt-dlp gave no file for {address}")
    if fetched[0].stat().st_size == 0:
        raise SourceError(Reason.DAMAGED, "the server gave an empty file")
    return fetched[0]


def _cause(error: BaseException) -> BaseException:
    """The innermost exception: yt-dlp wraps the network's own."""
    seen: BaseException = error
    while True:
        info = getattr(seen, "exc_info", None)
        inner = info[1] if info else None
        inner = inner or getattr(seen, "cause", None) or seen.__cause__
        if not isinstance(inner, BaseException) or inner is seen:
            return seen
        seen = inner


def _words(error: BaseException) -> str:
    """yt-dlp's message, without its prefix and its advice to report a bug."""
    text = str(error).removeprefix("ERROR: ")
    text = re.split(r"; please report this issue|\. See +https?://", text)[0]
    return " ".join(text.split())[:400]


# YouTube's words through yt-dlp. The first match counts: a terminated account's video is gone too.
_MESSAGES: tuple[tuple[str, Reason], ...] = (
    (r"not a bot|captcha", Reason.BOT_CHECK),
    (r"try again later|rate.?limit|Too Many Requests", Reason.RATE_LIMITED),
    (r"terminated", Reason.TERMINATED),
    (r"copyright", Reason.COPYRIGHT),
    (r"members.only|available to this channel's members|Join this channel", Reason.MEMBERS_ONLY),
    (r"private", Reason.PRIVATE),
    (r"confirm your age|age.restricted|inappropriate for some users", Reason.AGE_GATED),
    (r"in your country|not available in your|geo.?restrict", Reason.GEO_BLOCKED),
    (r"No supported JavaScript runtime|challenge solving failed", Reason.NO_RUNTIME),
    (r"Requested format is not available|No video formats|Unsupported URL", Reason.NO_FORMATS),
    (r"Video unavailable|has been removed|no longer available|not available", Reason.GONE),
    (r"empty|Did not get any data|expected \d+ bytes|bytes read|incomplete", Reason.DAMAGED),
)
_STATUSES: Mapping[int, Reason] = {
    402: Reason.RATE_LIMITED,
    403: Reason.SERVER,  # of media addresses: they age, and a new one may do
    404: Reason.GONE,
    410: Reason.GONE,
    429: Reason.RATE_LIMITED,
    451: Reason.GEO_BLOCKED,
}
_FIRST_ERROR = 400


def _reason(error: BaseException, cause: BaseException) -> Reason:
    """The class of a failure: from the HTTP status where there is one, else from the words."""
    status = getattr(cause, "status", None)
    if isinstance(status, int) and status >= _FIRST_ERROR:
        return _STATUSES.get(status, Reason.SERVER)
    words = str(error)
    for pattern, reason in _MESSAGES:
        if re.search(pattern, words, re.IGNORECASE):
            return reason
    if isinstance(cause, OSError) and cause.errno == errno.ENOENT:
        return Reason.GONE
    return Reason.NETWORK
