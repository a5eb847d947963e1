"""Which options are passed to yt-dlp, under its own names.

Written as NAME or NAME=VALUE, without dashes. Options that could run a program, write elsewhere or
change which videos are fetched are not passed.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kinetics_tools.core.errors import KineticsError, unknown_name

# Options of kinetics-download too, with the name of their value; None for options without value.
PASSED_THROUGH: Mapping[str, str | None] = {
    "cookies": "FILE",
    "cookies-from-browser": "BROWSER[+KEYRING][:PROFILE][::CONTAINER]",
    "proxy": "URL",
    "source-address": "IP",
    "limit-rate": "RATE",
    "retries": "N",
    "retry-sleep": "[TYPE:]EXPR",
    "sleep-requests": "SECONDS",
    "sleep-interval": "SECONDS",
    "max-sleep-interval": "SECONDS",
    "extractor-args": "IE_KEY:ARGS",
    "impersonate": "CLIENT[:OS]",
    "js-runtimes": "RUNTIME[:PATH]",
    "no-check-certificates": None,
}
# Further options that `--ytdlp-option` takes.
FREE = frozenset(
    {
        "add-headers",
        "allow-dynamic-mpd",
        "ap-mso",
        "ap-password",
        "ap-username",
        "buffer-size",
        "client-certificate",
        "client-certificate-key",
        "client-certificate-password",
        "concurrent-fragments",
        "extractor-retries",
        "file-access-retries",
        "force-ipv4",
        "force-ipv6",
        "format",
        "format-sort",
        "format-sort-force",
        "fragment-retries",
        "geo-verification-proxy",
        "http-chunk-size",
        "ignore-dynamic-mpd",
        "legacy-server-connect",
        "netrc",
        "netrc-location",
        "no-js-runtimes",
        "no-prefer-free-formats",
        "no-remote-components",
        "password",
        "prefer-free-formats",
        "prefer-insecure",
        "remote-components",
        "resize-buffer",
        "skip-unavailable-fragments",
        "socket-timeout",
        "throttled-rate",
        "twofactor",
        "username",
        "video-password",
        "xff",
    }
)
_FILES = ("cookies", "netrc-location", "client-certificate", "client-certificate-key")
_OF_IDENTITY = (
    "cookies",
    "cookies-from-browser",
    "proxy",
    "source-address",
    "username",
    "netrc",
    "netrc-location",
    "force-ipv4",
    "force-ipv6",
)


def name_of(word: str) -> str:
    """The option that a word names; it may have underscores for dashes, as in yt-dlp's Python."""
    return word.partition("=")[0].strip().removeprefix("--").replace("_", "-")


def refuse_unsafe(words: Sequence[str]) -> None:
    """Check that all words name options that are passed to yt-dlp.

    Raises:
        KineticsError: one does not.
    """
    for word in words:
        name = name_of(word)
        if name not in PASSED_THROUGH and name not in FREE:
            known = unknown_name("option of yt-dlp", name, [*PASSED_THROUGH, *FREE])
            raise KineticsError(f"--ytdlp-option {name} is not passed to yt-dlp; {known}")


def settle(words: Sequence[str]) -> tuple[str, ...]:
    """The words checked and with full paths, as workers in other folders need them.

    Raises:
        KineticsError: an option is not passed to yt-dlp, or its file does not exist.
    """
    refuse_unsafe(words)
    return tuple(_settled(word) for word in words)


def _settled(word: str) -> str:
    name, (_, equals, value) = name_of(word), word.partition("=")
    if name in _FILES:
        path = Path(value).expanduser().resolve()
        if not path.exists():
            raise KineticsError(f"--{name} {value}: no such file")
        value = str(path)
    return f"{name}{equals}{value}"


def identity(words: Sequence[str]) -> str:
    """The options by which a site tells its users apart: runs with the same share a rate limit.

    Args:
        words: as `settle` returns them.
    """
    return "\n".join(sorted(word for word in words if name_of(word) in _OF_IDENTITY))


def redacted(text: str) -> str:
    """The text without what may be secret in its addresses: user, password and query."""
    return re.sub(r"(?<=://)[^\s/]*@|(?<=\S)\?[^\s'\")]+", "", text)
