"""Which options of yt-dlp pass through to it, under its own names.

Written as NAME or NAME=VALUE, without dashes. What could run a program, write elsewhere or change
what a run is asked for is none of them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kinetics_tools.core.errors import KineticsError, unknown_name

# Options of our own commands too: each with what its value is called there; None takes none.
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
# What `--ytdlp-option` takes besides.
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
    """The option that a word names; underscores will do for its dashes, as in yt-dlp's Python."""
    return word.partition("=")[0].strip().removeprefix("--").replace("_", "-")


def refuse_unsafe(words: Sequence[str]) -> None:
    """Check that all words name options that pass through.

    Raises:
        KineticsError: one does not.
    """
    for word in words:
        name = name_of(word)
        if name not in PASSED_THROUGH and name not in FREE:
            known = unknown_name("option of yt-dlp", name, [*PASSED_THROUGH, *FREE])
            raise KineticsError(f"--ytdlp-option {name} does not pass through; {known}")


def settle(words: Sequence[str]) -> tuple[str, ...]:
    """The words as workers may use them, wherever they run: checked, with full paths.

    Raises:
        KineticsError: an option does not pass through, or its file is not there.
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
    """What a site takes for one visitor: two runs with equal answers share its patience.

    Args:
        words: settled.
    """
    return "\n".join(sorted(word for word in words if name_of(word) in _OF_IDENTITY))


def redacted(text: str) -> str:
    """A text whose addresses have lost what may be secret: the user, the password, the query."""
    return re.sub(r"(?<=://)[^\s/]*@|(?<=\S)\?[^\s'\")]+", "", text)
