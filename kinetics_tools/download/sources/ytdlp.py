"""The only module that fetches with yt-dlp: its options, its errors, and remote files to seek in.

Where yt-dlp cannot give a video, or fails on a site's answer, a FetchError is raised; a full disk
stays an OSError, since it says nothing about the video. Importing this module imports yt-dlp
(0.3 s).
"""

from __future__ import annotations

import contextlib
import http.client
import io
import math
import os
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from optparse import OptParseError
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yt_dlp
from yt_dlp.networking.common import Request
from yt_dlp.networking.exceptions import HTTPError, RequestError, TransportError

from kinetics_tools.core.errors import PERMANENT, KineticsError, Reason
from kinetics_tools.core.files import STORAGE_ERRNOS
from kinetics_tools.core.http_answers import (
    FIRST_ERROR,
    PARTIAL_CONTENT,
    StallGuard,
    content_range,
    limits,
    retry_after_s,
    status_reason,
)
from kinetics_tools.download.sources.base import FetchError
from kinetics_tools.download.sources.cookies import BROWSER_ADVICE, read_cookies
from kinetics_tools.download.sources.js_runtime import Silent
from kinetics_tools.download.sources.youtube_answers import sentence_reason
from kinetics_tools.download.sources.ytdlp_options import name_of, redacted, refuse_unsafe

SOCKET_TIMEOUT_S = 30.0
MAX_PAGE_BYTES = 2**26  # of an answer that yt-dlp reads whole
FIRST_BLOCK = 64 * 1024  # bytes of the first request after a seek
LARGEST_BLOCK = 128 * 1024  # bytes of a later request; those after the read's end are wasted
RANGE_RETRIES = 3  # at most: for the whole video the user's own number holds
MAX_SAME_REQUESTS = 100  # for the same bytes, one after the other
_PAYMENT_REQUIRED = 402  # YouTube's answer to an address that asks too often
_NO_PROGRAM = "/dev/null/none"  # a path that cannot exist

Info = dict[str, Any]  # yt-dlp's "info dictionary" of a video or of a format


@dataclass(frozen=True, slots=True)
class RemoteVideo:
    """What a site says of a video, and what yt-dlp chose to fetch of it.

    Attributes:
        duration_s: seconds; None where the site does not say.
        format: the chosen format in the site's own names, and its size in pixels.
        info: as yt-dlp has it; only this module reads it.
    """

    duration_s: float | None
    format: str
    info: Info = field(repr=False)


def _remote_video(info: Info) -> RemoteVideo:
    name = info.get("format_id") or "?"
    width, height = info.get("width"), info.get("height")
    size = f", {width}x{height}" if width and height else ""
    return RemoteVideo(info.get("duration"), f"{name}{size}", info)


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The parameters that yt-dlp's own command line makes of these options.

    Args:
        words: options without dashes: NAME, or NAME=VALUE.

    Raises:
        KineticsError: not an option of yt-dlp, not a value that it takes, or one that could run a
            program or write elsewhere.
    """
    refuse_unsafe(words)
    return _parameters(words)


def _parameters(words: Sequence[str]) -> dict[str, Any]:
    try:
        return _parsed(words)
    except OptParseError as error:
        said = str(error).strip().rpartition("error: ")[2]
        raise KineticsError(
            f"yt-dlp does not take --{_offender(words)}: {' '.join(said.split())}"
        ) from error


def _parsed(words: Sequence[str]) -> dict[str, Any]:
    argv = ["--ignore-config", *(f"--{name_of(word)}{_value(word)}" for word in words)]
    with contextlib.redirect_stderr(io.StringIO()):
        parameters: dict[str, Any] = yt_dlp.parse_options(argv).ydl_opts
    return parameters


def _offender(words: Sequence[str]) -> str:
    """The option without which yt-dlp takes the rest, else all; without values, often secret."""
    for position, word in enumerate(words):
        with contextlib.suppress(OptParseError):
            _parsed([*words[:position], *words[position + 1 :]])
            return name_of(word)
    return ", --".join(map(name_of, words))


def _value(word: str) -> str:
    _, equals, value = word.partition("=")
    return equals + value


class _Downloader(yt_dlp.YoutubeDL):  # type: ignore[misc]  # yt-dlp ships no types
    """yt-dlp, with the network errors and warnings that it would only print.

    Where all ways to a video fail, yt-dlp's last exception does not say why.

    Attributes:
        failed: the last network error.
        warnings: its warnings.
        reached: the address to which the server redirected the first request.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self._last_request: tuple[object, int] = (None, 0)
        self.forget()
        super().__init__(dict(parameters))

    def forget(self) -> None:
        """Drop the errors and warnings of the last video."""
        self.failed: RequestError | None = None
        self.warnings: list[str] = []
        self.reached: str | None = None

    def urlopen(self, request: Any) -> Any:
        """Send a request; remember its error, or the address to which it was redirected."""
        self._end_endless(request)
        address = getattr(request, "url", request)
        try:
            response = super().urlopen(request)
        except RequestError as error:
            self.failed = error
            raise
        if self.reached is None or self.reached == address:
            self.reached = response.url
        response.fp = _GuardedBody(response.fp, self.params["socket_timeout"])
        return response

    def dl(self, *arguments: Any, **options: Any) -> Any:
        """Fetch a format, but not by ffmpeg, which ignores cookies, proxies and rate limits.

        yt-dlp may still use ffmpeg on the fetched files.
        """
        program = self.params["ffmpeg_location"]
        self.params["ffmpeg_location"] = _NO_PROGRAM
        try:
            return super().dl(*arguments, **options)
        finally:
            self.params["ffmpeg_location"] = program

    def _end_endless(self, request: Any) -> None:
        """yt-dlp requests for ever a last byte that a server promises and does not send.

        Raises:
            TransportError: the same bytes were requested too often.
        """
        headers = getattr(request, "headers", {})
        asked = (getattr(request, "url", request), headers.get("Range"))
        before, times = self._last_request
        self._last_request = asked, times + 1 if asked == before else 1
        if "Range" in headers and self._last_request[1] > MAX_SAME_REQUESTS:
            raise TransportError(f"bytes {headers['Range']} were promised and never came")

    def report_warning(self, message: str, *_: Any, **__: Any) -> None:
        """Store the warning."""
        self.warnings.append(str(message))


class _GuardedBody:
    """The body of a response, read through a StallGuard, and not without end."""

    def __init__(self, body: Any, window_s: float) -> None:
        self._body = body
        self._guard = StallGuard(window_s)
        self._left = limits().max_bytes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def read(self, count: int | None = None, **options: Any) -> bytes:
        """Up to `count` bytes, fewer only at the end; None for all.

        Raises:
            FetchError: they come below minimum throughput, which yt-dlp would try again ten times;
                or they are more than any video has.
        """
        if not hasattr(self._body, "read1"):  # curl's
            data: bytes = self._body.read(count, **options)
            self._count(data)
            return data
        pieces = []
        left = MAX_PAGE_BYTES + 1 if count is None else count
        while left > 0:
            read = partial(self._body.read1, int(min(left, LARGEST_BLOCK)), **options)
            piece = self._guard.read(read, partial(FetchError, Reason.NETWORK))
            if not piece:
                break
            self._count(piece)
            pieces.append(piece)
            left -= len(piece)
        if count is None and left == 0:  # all of it is a page, which is kept in memory
            raise FetchError(Reason.SERVER, f"a page is larger than {MAX_PAGE_BYTES} bytes")
        return b"".join(pieces)

    def _count(self, piece: bytes) -> None:
        self._left -= len(piece)
        if self._left < 0:
            most = f"{limits().max_bytes:.0f} bytes (KINETICS_TOOLS_MAX_BYTES)"
            raise FetchError(Reason.SERVER, f"the server sends more than {most}")


@cache
def session(words: tuple[str, ...]) -> Session:
    """This process's session with these options.

    Videos share it: the cookies that a site sets, the connections, and the site's script, which
    yt-dlp would otherwise fetch for each video.

    Raises:
        KineticsError: the options cannot be used.
    """
    return Session(words)


class Session:
    """Looks videos up, fetches them, and opens them as remote files."""

    def __init__(self, words: Sequence[str]) -> None:
        parameters = _parameters(words) | {
            "quiet": True,
            "noprogress": True,
            "no_color": True,
            "logger": Silent(),
            "noplaylist": True,
            "overwrites": True,
            "ignoreerrors": False,
            "extract_flat": False,
            "postprocessors": [],
            "fixup": "never",  # cutting decodes everything again
            "updatetime": False,
            "warn_when_outdated": False,
        }
        self._is_youtube = parameters["allowed_extractors"] == ["youtube"]
        if parameters["socket_timeout"] is None:
            parameters["socket_timeout"] = SOCKET_TIMEOUT_S
        if parameters["cachedir"] is None:
            parameters["cachedir"] = False
        self._has_cookies = bool(parameters["cookiefile"] or parameters["cookiesfrombrowser"])
        if parameters["cookiefile"] is not None:
            # Not the file itself: yt-dlp writes to it, and so would every worker.
            parameters["cookiefile"] = io.StringIO(read_cookies(Path(parameters["cookiefile"])))
        try:
            self._ydl = _Downloader(parameters)
        except (yt_dlp.utils.YoutubeDLError, OSError, ValueError) as error:
            raise KineticsError(f"yt-dlp cannot start: {_public_message(str(error))}") from error
        try:
            self._ydl.cookiejar  # noqa: B018 - read now: this opens a browser's cookies
        except yt_dlp.utils.YoutubeDLError as error:
            raise KineticsError(
                f"--cookies-from-browser {parameters['cookiesfrombrowser'][0]} cannot be used "
                f"({_public_message(str(error))}): {BROWSER_ADVICE}"
            ) from error

    def cookie_problem(self, address: str) -> str | None:
        """Why an address gets none of the user's cookies; None where it does, or there are none."""
        jar = self._ydl.cookiejar
        if not self._has_cookies or jar.get_cookies_for_url(address):
            return None
        host = urlsplit(address).hostname
        if any(f".{host}".endswith(f".{cookie.domain.lstrip('.')}") for cookie in jar):
            return f"the cookies for {host} have expired"
        return f"the cookies are not for {host}"

    def look_up(self, address: str) -> RemoteVideo:
        """What there is to fetch at an address; nothing is fetched yet.

        Raises:
            FetchError: there is no video, or not in the wanted formats; or the address is a page of
                a site that yt-dlp does not know, whose video may be an advertisement.
        """
        with self._translated(Path()):
            info: Info | None = self._ydl.extract_info(address, download=False)
        if not info or not (info.get("url") or info.get("requested_formats")):
            said = f"yt-dlp found no single video at {address}"
            raise FetchError(Reason.NO_FORMATS, _public_message(said))
        if info.get("extractor_key") == "Generic" and not self._is_video_itself(info):
            said = f"{address} is an HTML page or a playlist, not a video"
            raise FetchError(Reason.NO_FORMATS, _public_message(said))
        return _remote_video(info)

    def _is_video_itself(self, info: Info) -> bool:
        """Whether the address gave the video itself, not a page that names one."""
        without_user = re.sub(r"(?<=://)[^/]*@", "", str(info.get("url")))
        return bool(info.get("direct")) and without_user == self._ydl.reached

    def fetch(self, video: RemoteVideo, into: Path) -> Path:
        """Fetch all of a video into the folder `into`.

        Raises:
            FetchError: it did not arrive, or not whole.
            OSError: the disk is full.
        """
        folder = str(into).replace("%", "%%").replace("$", "$$")
        self._ydl.params["outtmpl"]["default"] = f"{folder}/video.%(ext)s"
        chosen = ("requested_formats", "requested_downloads")
        again = {name: value for name, value in video.info.items() if name not in chosen}
        with self._translated(into):
            done = self._ydl.process_ie_result(again, download=True)
        # The site decides the suffix.
        fetched = [Path(item["filepath"]) for item in done.get("requested_downloads", [])]
        if not fetched or not fetched[0].is_file():
            raise FetchError(Reason.NO_FORMATS, "yt-dlp gave no file")
        if fetched[0].stat().st_size == 0:
            raise FetchError(Reason.DAMAGED, "the server gave an empty file")
        return fetched[0]

    def remote_files(self, video: RemoteVideo) -> list[RemoteFile]:
        """The chosen formats as files that are read over the network: the picture, maybe the sound.

        Empty where they have no address of their own (fragments, live streams). It first sleeps as
        long as the site and the user's options want before a download.
        """
        formats = video.info.get("requested_formats") or [video.info]
        if not all(_is_direct(chosen) for chosen in formats):
            return []
        self._sleep_before(formats)
        return [RemoteFile(self, chosen) for chosen in formats]

    def _sleep_before(self, formats: Sequence[Info]) -> None:
        least_s = self._ydl.params.get("sleep_interval") or 0
        most_s = self._ydl.params.get("max_sleep_interval") or least_s
        available_at = max(chosen.get("available_at") or 0 for chosen in formats)
        time.sleep(max(random.uniform(least_s, most_s), available_at - time.time(), 0))

    def read_range(self, chosen: Info, start: int, count: int) -> tuple[bytes, int]:
        """Up to `count` bytes of a format from byte `start`, and the size of all of it in bytes.

        Raises:
            FetchError: they did not arrive.
        """
        with self._translated(Path()):
            return self._retried(chosen, start, count)

    def _retried(self, chosen: Info, start: int, count: int) -> tuple[bytes, int]:
        retries = min(self._ydl.params.get("retries") or 0, RANGE_RETRIES)
        start_s = time.monotonic()
        pause_s = self._ydl.params["retry_sleep_functions"].get("http")
        for attempt in range(int(retries) + 1):
            try:
                data, size = self._read_once(chosen, start, count)
                break
            except RequestError as error:
                if isinstance(error, HTTPError) or attempt == retries:
                    raise
            if pause_s is not None:
                time.sleep(pause_s(n=attempt))
        rate = self._ydl.params.get("ratelimit") or math.inf
        time.sleep(max(start_s + len(data) / rate - time.monotonic(), 0))
        return data, size

    def _read_once(self, chosen: Info, start: int, count: int) -> tuple[bytes, int]:
        headers = dict(chosen.get("http_headers") or {}) | {
            "Accept-Encoding": "identity",
            "Range": f"bytes={start}-{start + count - 1}",
        }
        with closing(self._ydl.urlopen(Request(chosen["url"], headers=headers))) as response:
            part = content_range(response.get_header("Content-Range"))
            is_partial = response.status == PARTIAL_CONTENT
            if not is_partial or part is None or part.size is None or part.first != start:
                raise FetchError(Reason.SERVER, "the server does not give parts of a file")
            data: bytes = response.read(count)
        expected = part.last - start + 1
        if len(data) != expected:
            raise RequestError(f"{len(data)} bytes read of {expected}")
        return data, part.size

    @contextmanager
    def _translated(self, into: Path) -> Iterator[None]:
        """In this block what yt-dlp raises becomes a FetchError, or the OSError of a full disk."""
        self._ydl.forget()
        try:
            yield
        except FetchError:
            raise
        # What a server sends can make an extractor raise any exception; it concerns one video.
        except Exception as error:
            cause = _cause(error)
            if isinstance(cause, OSError) and cause.errno in STORAGE_ERRNOS:
                raise OSError(cause.errno, os.strerror(cause.errno), str(into)) from error
            raise self._fetch_error(error, cause) from error

    def _fetch_error(self, error: Exception, cause: BaseException) -> FetchError:
        said = _public_message(str(error))
        if not isinstance(error, yt_dlp.utils.YoutubeDLError):
            said = f"yt-dlp failed on the response: {type(error).__name__}: {said}"
        if _ALL_WAYS_FAILED in said and self._ydl.failed is not None:
            cause = self._ydl.failed
            said = f"{said}: {_public_message(str(cause))}"
        reason = _reason(said, cause)
        if reason is Reason.NO_FORMATS and self._ydl.warnings:
            warning = _public_message(self._ydl.warnings[-1])
            said = f"{said} {warning}"
            if sentence_reason(warning) is Reason.NO_RUNTIME:
                reason = Reason.NO_RUNTIME
        status = getattr(cause, "status", None)
        if isinstance(status, int) and self._is_youtube and reason in PERMANENT:
            reason = Reason.SERVER  # YouTube says in words, not by a status, that it has no video
        return FetchError(
            reason,
            said,
            status=status if isinstance(status, int) else None,
            retry_after_s=(
                retry_after_s(cause.response.get_header("Retry-After"))
                if isinstance(cause, HTTPError)
                else None
            ),
        )


_ALL_WAYS_FAILED = "Failed to extract any player response"


def _is_direct(chosen: Info) -> bool:
    return (
        chosen.get("protocol") in ("http", "https")
        and not any(chosen.get(name) for name in ("fragments", "request_data", "impersonate"))
        and not chosen.get("is_live")
    )


class RemoteFile(io.RawIOBase):
    """The file of a format, of which only blocks that are read are fetched.

    Every request names the last byte of its block: otherwise the server would send more than is
    read.

    Attributes:
        num_read: number of bytes fetched.
    """

    def __init__(self, session: Session, chosen: Info) -> None:
        self._session = session
        self._chosen = chosen
        self._position = 0
        self._block, self._block_at = b"", 0
        self._block_size = FIRST_BLOCK
        self._size: int | None = None
        self.num_read = 0

    def readable(self) -> bool:
        """Whether it can be read: always, as `io.RawIOBase` asks."""
        return True

    def seekable(self) -> bool:
        """Whether any position can be read: always, by range requests."""
        return True

    def tell(self) -> int:
        """The position of the next read, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position of the next read; only a seek from the end may fetch, for the size."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        self._position = offset + (self._length() if start is None else start)
        return self._position

    def read(self, count: int = -1) -> bytes:
        """Up to `count` bytes, at most the rest of one block.

        Raises:
            FetchError: they did not arrive.
        """
        if self._size is not None and self._position >= self._size:
            return b""
        within = self._position - self._block_at
        if not 0 <= within < len(self._block):
            self._fetch_block()
            within = 0
        data = self._block[within:] if count < 0 else self._block[within : within + count]
        self._position += len(data)
        return data

    def _fetch_block(self) -> None:
        follows = self._block and self._position == self._block_at + len(self._block)
        self._block_size = min(self._block_size * 2, LARGEST_BLOCK) if follows else FIRST_BLOCK
        self._block, self._size = self._session.read_range(
            self._chosen, self._position, self._block_size
        )
        self._block_at = self._position
        self.num_read += len(self._block)

    def _length(self) -> int:
        if self._size is None:
            self._fetch_block()
        assert self._size is not None
        return self._size


def _cause(error: BaseException) -> BaseException:
    """The exception of the network library that yt-dlp wraps, else the innermost one."""
    seen: BaseException = error
    while not isinstance(seen, TransportError | HTTPError):
        info = getattr(seen, "exc_info", None)
        inner = info[1] if info else None
        inner = inner or getattr(seen, "cause", None) or seen.__cause__
        if not isinstance(inner, BaseException) or inner is seen:
            break
        seen = inner
    return seen


def _public_message(said: str) -> str:
    """yt-dlp's message for the ledger, which users publish: without its prefix, its advice to
    report a bug, secrets, and bytes that are not text."""
    text = re.sub(r"^(ERROR: )+", "", said).encode(errors="backslashreplace").decode()
    text = re.split(r"; please report this issue|\. See +https?://", text)[0]
    if "ffmpeg could not be found" in text:
        return "only ffmpeg could fetch this format, and it may not use the network here"
    return " ".join(redacted(text).split())[:400]


_OF_NETWORK = (TransportError, OSError, http.client.HTTPException)
_GIVEN_UP = "Got error: "  # yt-dlp's download, after all retries; it drops the exception
_BROKEN_OFF = r"file is empty|Did not get any data|expected \d+ bytes|bytes read|IncompleteRead"


def _reason(said: str, cause: BaseException) -> Reason:
    """The reason of a failure: from the HTTP status where there is one, else from the message."""
    status = getattr(cause, "status", None)
    if isinstance(status, int) and status >= FIRST_ERROR:
        return Reason.RATE_LIMITED if status == _PAYMENT_REQUIRED else status_reason(status)
    if re.search(_BROKEN_OFF, said, re.IGNORECASE):
        return Reason.DAMAGED
    if _GIVEN_UP in said and re.search(r"HTTP Error 5\d\d", said):
        return Reason.SERVER
    if _GIVEN_UP in said or isinstance(cause, _OF_NETWORK):
        return Reason.NETWORK
    # An unknown message of a site that was reached: a later yt-dlp may understand it.
    return sentence_reason(said) or Reason.NO_FORMATS
