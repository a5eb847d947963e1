"""HTTP: sizes, small files, and long streams that survive breaks. The only importer of requests.

Failures that may be over within seconds (no answer, a broken connection, a server in trouble) are
tried again after a pause; one that stays is a SourceError with its reason. Proxies come from the
environment (`http_proxy`, `https_proxy`, `no_proxy`).
"""

from __future__ import annotations

import io
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import kinetics_tools
from kinetics_tools.core.errors import KineticsError, Reason, SourceError
from kinetics_tools.core.files import publish
from kinetics_tools.core.http_answers import (
    FIRST_ERROR,
    FIRST_SERVER_ERROR,
    PARTIAL_CONTENT,
    RANGE_NOT_SATISFIABLE,
    TOO_MANY_REQUESTS,
    ContentRange,
    StallGuard,
    content_range,
    retry_after_s,
    status_reason,
)

if TYPE_CHECKING:
    import requests

T = TypeVar("T")
logger = logging.getLogger(__name__)

TIMEOUT_S = 60.0  # without a byte
CONNECT_S = 15.0
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # before each retry
STALL_WINDOW_S = 60.0  # of waiting for bytes, over which throughput is measured
MAX_PAUSE_S = 60.0  # a server that asks for more with Retry-After is tried again after this
MAX_FETCHED_BYTES = 2**30
MAX_REDIRECTS = 20
CHUNK_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class Remote:
    """What a server says of a file.

    Attributes:
        size: in bytes; None where it does not say.
        etag: names this version of the file: the ETag, else the date of the last change, else
            empty.
    """

    size: int | None
    etag: str


class RetryableError(SourceError):
    """A failure that may be over in seconds, and was still there after all retries.

    Attributes:
        retry_after_s: how long the server asks to wait; 0 where it does not say.
    """

    retry_after_s = 0.0


def size_of(
    address: str, *, timeout_s: float = TIMEOUT_S, pauses_s: Sequence[float] = PAUSES_S
) -> Remote:
    """Ask for a file's size and version (HEAD).

    Raises:
        SourceError: the file is not available; `detail` names the address.
        KineticsError: `address` is not an HTTP address.
    """

    def ask() -> Remote:
        with _translated(address), _ask("HEAD", address, timeout_s) as answer:
            return _remote(answer)

    return _retried(ask, pauses_s)


def fetch(
    address: str,
    path: Path,
    *,
    timeout_s: float = TIMEOUT_S,
    pauses_s: Sequence[float] = PAUSES_S,
) -> None:
    """Fetch a small file (at most 1 GiB) to `path`, which exists only when it is complete.

    Raises:
        SourceError: the file is not available; `detail` names the address.
        KineticsError: `address` is not an HTTP address.
        OSError: the disk is full.
    """
    with (
        open_stream(address, timeout_s=timeout_s, pauses_s=pauses_s) as stream,
        publish(path) as scratch,
        scratch.open("wb") as file,
    ):
        while piece := stream.read(CHUNK_BYTES):
            if stream.position > MAX_FETCHED_BYTES:
                detail = f"{_without_secrets(address)} is larger than {MAX_FETCHED_BYTES} bytes"
                raise SourceError(Reason.SERVER, detail)
            file.write(piece)


def open_stream(
    address: str, *, timeout_s: float = TIMEOUT_S, pauses_s: Sequence[float] = PAUSES_S
) -> Stream:
    """Start to read a file of any length.

    Args:
        address: an HTTP address.
        timeout_s: how long to wait for an answer and, in it, for the next byte.
        pauses_s: seconds to wait before each retry; the retries start over when a new byte comes.

    Raises:
        SourceError: the file is not available; `detail` names the address.
        KineticsError: `address` is not an HTTP address.
    """
    return Stream(address, timeout_s, pauses_s)


def read_part(
    address: str,
    first: int,
    size: int,
    *,
    timeout_s: float = TIMEOUT_S,
    pauses_s: Sequence[float] = PAUSES_S,
) -> bytes:
    """Read `size` bytes of a file from byte `first` on; fewer where the file ends before.

    The connection stays open for the next part, in each thread.

    Raises:
        SourceError: the part is not available, or the server gives no parts of files; `detail`
            names the address.
        KineticsError: `address` is not an HTTP address.
    """
    if size == 0:
        return b""
    wanted = {"Range": f"bytes={first}-{first + size - 1}"}

    def attempt() -> bytes:
        with (
            _translated(address),
            _ask("GET", address, timeout_s, wanted, requester=_kept_session()) as answer,
        ):
            if answer.status_code == RANGE_NOT_SATISFIABLE:  # the file ends before
                return b""
            part = content_range(answer.headers.get("Content-Range"))
            _check_part(part, first, size, address)
            if part is None or answer.status_code != PARTIAL_CONTENT:
                detail = f"the server of {_without_secrets(address)} gives no parts of files"
                raise SourceError(Reason.SERVER, f"{detail} (no answer to Range)")
            return _read_all(answer, part.last - first + 1, address)

    return _retried(attempt, pauses_s)


def _check_part(part: ContentRange | None, first: int, size: int, address: str) -> None:
    """Raise SourceError if an answer holds another part than was asked for."""
    if part is None:
        return
    last = first + size - 1 if part.size is None else min(first + size, part.size) - 1
    if (part.first, part.last) != (first, last):
        raise SourceError(
            Reason.SERVER,
            f"the server of {_without_secrets(address)} gave bytes {part.first} to {part.last}, "
            f"not {first} to {last}",
        )


def _read_all(answer: requests.Response, size: int, address: str) -> bytes:
    """The first `size` bytes of an answer."""

    def error(said: str) -> SourceError:
        return RetryableError(Reason.NETWORK, f"{_without_secrets(address)}: {said}")

    guard, data = StallGuard(STALL_WINDOW_S), bytearray()

    def read() -> bytes:
        most = min(CHUNK_BYTES, size - len(data))
        piece: bytes = answer.raw.read1(most, decode_content=False)
        return piece

    while len(data) < size:
        piece = guard.read(read, error)
        if not piece:
            raise error(f"broke off after {len(data)} of {size} bytes")
        data += piece
    return bytes(data)


_kept = threading.local()


def _kept_session() -> requests.Session:
    """The session of this thread: its connections stay open, but not across a fork."""
    import requests

    if getattr(_kept, "pid", None) != os.getpid():
        _kept.pid, _kept.session = os.getpid(), requests.Session()
        _kept.session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))  # takes none
    session: requests.Session = _kept.session
    return session


class Stream(io.RawIOBase):
    """A file on a server, read once from its start to its end, in constant memory.

    A broken connection is repaired inside `read`: the file is requested again from the byte where
    it broke, or, where the server has no ranges, from its start, skipping what was read before.
    Reading raises SourceError when the retries fail, when the file has changed meanwhile, or when
    the server stays below minimum throughput for STALL_WINDOW_S.

    Attributes:
        remote: what the server said of the file when it was opened.
        position: how many bytes were read so far.
    """

    def __init__(self, address: str, timeout_s: float, pauses_s: Sequence[float]) -> None:
        super().__init__()
        self._address = address
        self._timeout_s = timeout_s
        self._pauses_s = pauses_s
        self._guard = StallGuard(STALL_WINDOW_S)
        self.position = 0
        self._answer: requests.Response | None = None
        self._answer = _retried(self._begin, pauses_s)

    def _begin(self) -> requests.Response:
        with _translated(self._address):
            answer = _ask("GET", self._address, self._timeout_s)
        self.remote = _remote(answer)
        return answer

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read at least one byte into `buffer`, none only at the file's end."""
        view = memoryview(buffer).cast("B")
        piece = _retried(lambda: self._piece(len(view)), self._pauses_s)
        if self.position == 0 and _is_page(piece):
            raise SourceError(Reason.SERVER, f"{_without_secrets(self._address)} is an HTML page")
        view[: len(piece)] = piece
        self.position += len(piece)
        return len(piece)

    def close(self) -> None:
        """Close the connection."""
        self._disconnect()
        super().close()

    def _disconnect(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _piece(self, most: int) -> bytes:
        """The next bytes. A failure closes the connection, and the next call opens another."""
        try:
            with _translated(self._address):
                if self._answer is None:
                    self._answer = self._resume()
                piece = self._read(self._answer, most)
            if not piece and self.position < (self.remote.size or 0):
                raise RetryableError(
                    Reason.NETWORK,
                    f"{_without_secrets(self._address)} broke off after {self.position} of "
                    f"{self.remote.size} bytes",
                )
        except SourceError:
            self._disconnect()
            raise
        return piece

    def _read(self, answer: requests.Response, most: int) -> bytes:
        def read() -> bytes:
            piece: bytes = answer.raw.read1(most, decode_content=False)
            return piece

        def error(said: str) -> SourceError:
            return SourceError(Reason.NETWORK, f"{_without_secrets(self._address)}: {said}")

        return self._guard.read(read, error)

    def _resume(self) -> requests.Response:
        """Request the file from `position` on."""
        logger.debug("%s: resuming at byte %d", self._address, self.position)
        wanted = {"Range": f"bytes={self.position}-"} if self.position else {}
        if wanted and self.remote.etag and not self.remote.etag.startswith("W/"):
            wanted["If-Range"] = self.remote.etag
        with ExitStack() as if_refused:
            answer = if_refused.enter_context(_ask("GET", self._address, self._timeout_s, wanted))
            self._check_same(answer)
            if answer.status_code != PARTIAL_CONTENT:
                self._skip(answer)
            if_refused.pop_all()  # it stays open
        return answer

    def _check_same(self, answer: requests.Response) -> None:
        now = _remote(answer)
        start: int | None = self.position
        if answer.status_code == PARTIAL_CONTENT:
            part = content_range(answer.headers.get("Content-Range"))
            start = part.first if part else None
            now = Remote(part.size if part else None, now.etag)
        differs = any(
            new and old and new != old
            for new, old in ((now.size, self.remote.size), (now.etag, self.remote.etag))
        )
        if differs or start != self.position:
            raise SourceError(
                Reason.SERVER, f"{_without_secrets(self._address)} changed while it was read"
            )

    def _skip(self, answer: requests.Response) -> None:
        left = self.position
        while left:
            piece = self._read(answer, min(left, CHUNK_BYTES))
            if not piece:
                raise RetryableError(
                    Reason.NETWORK,
                    f"{_without_secrets(self._address)} broke off before byte {self.position}",
                )
            left -= len(piece)


def _retried(attempt: Callable[[], T], pauses_s: Sequence[float]) -> T:
    """The first success of `attempt`, which is tried again after each pause."""
    for pause_s in pauses_s:
        try:
            return attempt()
        except RetryableError as error:
            wanted_s = max(pause_s, min(error.retry_after_s, MAX_PAUSE_S))
            logger.info("%s; trying again in %.0f s", error.detail, wanted_s)
            time.sleep(wanted_s)
    return attempt()


def _ask(
    method: str,
    address: str,
    timeout_s: float,
    headers: Mapping[str, str] | None = None,
    *,
    requester: requests.Session | None = None,
) -> requests.Response:
    """Send one request. An answer that does not hold a file is raised as a SourceError."""
    import requests  # takes 0.15 s, which --help does not need

    _require_usable(address)
    ours = {
        "Accept-Encoding": "identity",  # the bytes as they are stored
        "User-Agent": f"kinetics-tools/{kinetics_tools.__version__}",
    }
    place = address
    for _ in range(MAX_REDIRECTS + 1):
        try:
            answer = (requester or requests).request(
                method,
                place,
                headers=ours | dict(headers or {}),
                stream=True,
                timeout=(min(timeout_s, CONNECT_S), timeout_s),
                allow_redirects=False,  # requests would read a redirect's body, however long
            )
            if not answer.is_redirect:
                break
            answer.close()
            place = requests.compat.urljoin(place, answer.headers["Location"])
            odd = _address_problem(place, ("http", "https"))
            if odd is not None:
                raise ValueError(odd)
        except ValueError as error:  # the address itself can be used
            said = f"{_without_secrets(address)}, or what it redirects to, cannot be asked"
            raise SourceError(Reason.SERVER, f"{said}: {_innermost_message(error)}") from error
    else:
        detail = f"{_without_secrets(address)} redirects more than {MAX_REDIRECTS} times"
        raise SourceError(Reason.SERVER, detail)
    problem = _problem(answer, address)
    if problem is not None:
        answer.close()
        raise problem
    return answer


_PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


def _require_usable(address: str) -> None:
    """Raise KineticsError unless an address, and the environment's proxy for it, can be used."""
    import requests

    problem = _address_problem(address, ("http", "https"))
    if problem is None:
        try:
            requests.Request("GET", address).prepare()
        except ValueError as error:
            problem = _innermost_message(error)
    if problem is not None:
        shown = re.sub("//[^/]*@", "//", address)[:300]
        raise KineticsError(f"{shown!r} is not an address that can be asked: {problem}")
    # Only the one that is taken: the other variables, such as no_proxy, have forms of their own.
    proxy = requests.utils.select_proxy(address, requests.utils.get_environ_proxies(address))
    if proxy:
        full = proxy if "://" in proxy else f"http://{proxy}"
        problem = _address_problem(full, _PROXY_SCHEMES)
        if problem is None and full.startswith("socks") and find_spec("socks") is None:
            problem = "for SOCKS install PySocks"
        if problem is not None:
            raise KineticsError(
                "the proxy of the environment (http_proxy, https_proxy, all_proxy) cannot be used: "
                f"{problem}"
            )


def _address_problem(address: str, schemes: Sequence[str]) -> str | None:
    """What is wrong with an address; None if it can be asked."""
    try:
        parts = urlsplit(address)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError as error:  # of the port, or of an IPv6 address
        return str(error)
    if parts.scheme not in schemes:
        return f"it must begin with {' or '.join(f'{scheme}://' for scheme in schemes[:2])}"
    return None if has_host else "it names no server"


def _problem(answer: requests.Response, address: str) -> SourceError | None:
    """Why an answer does not hold a file, or None."""
    status = answer.status_code
    past_the_end = status == RANGE_NOT_SATISFIABLE and "Range" in answer.request.headers
    if status < FIRST_ERROR or past_the_end:
        if answer.headers.get("Content-Type", "").lower().startswith("text/html"):
            return SourceError(Reason.SERVER, f"{_without_secrets(address)} is an HTML page")
        return None
    reason = status_reason(status)
    detail = f"{_without_secrets(address)}: HTTP {status} {answer.reason or ''}".strip()
    if status < FIRST_SERVER_ERROR and status != TOO_MANY_REQUESTS:
        return SourceError(reason, detail)
    error = RetryableError(reason, detail)
    error.retry_after_s = retry_after_s(answer.headers.get("Retry-After")) or 0.0
    return error


def _remote(answer: requests.Response) -> Remote:
    size = answer.headers.get("Content-Length", "")
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    return Remote(int(size) if re.fullmatch("[0-9]{1,18}", size) else None, version)


def _is_page(start: bytes) -> bool:
    return start.lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _without_secrets(address: str) -> str:
    """An address without passwords and tokens: ledgers that hold it are passed on."""
    parts = urlsplit(address)  # `_require_usable` has split it before
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


@contextmanager
def _translated(address: str) -> Iterator[None]:
    """In this block errors of requests, and of urllib3 below it, become KineticsErrors."""
    import requests
    import urllib3

    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        detail = f"{_without_secrets(address)}: {_innermost_message(error)}"
        raise RetryableError(Reason.NETWORK, detail) from error


def _innermost_message(error: BaseException) -> str:
    """The innermost error's message: requests wraps urllib3's errors, which wrap the system's."""
    inner = error
    while True:
        deeper = getattr(inner, "reason", None) or next(
            (a for a in inner.args if isinstance(a, BaseException)), None
        )
        if not isinstance(deeper, BaseException):
            break
        inner = deeper
    text = re.sub(r"^.*?object at 0x[0-9a-f]+>: |^[A-Za-z]+\(.*?\): ", "", str(inner))
    return " ".join(text.split())[:200] or type(inner).__name__
