"""HTTP: sizes, small files, and long streams that survive breaks. The only importer of requests.

What may pass within seconds (no answer, a broken connection, a server in trouble) is tried again
after a pause; what remains is a SourceError with its reason. Proxies are the environment's
(`http_proxy`, `https_proxy`, `no_proxy`).
"""

import io
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import kinetics_tools
from kinetics_tools.core.errors import KineticsError, Reason, SourceError
from kinetics_tools.core.files import publish

if TYPE_CHECKING:
    import requests

T = TypeVar("T")
logger = logging.getLogger(__name__)

TIMEOUT_S = 60.0  # without a byte
CONNECT_S = 15.0
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # before each further try
SLOW_S = 60.0  # of waiting for bytes, after which a server that drips is given up
MIN_BYTES_PER_S = 1000.0
MAX_PAUSE_S = 60.0  # of what a server asks for with Retry-After
MAX_FETCHED_BYTES = 2**30
CHUNK_BYTES = 2**18

_FIRST_ERROR = 400
_FIRST_SERVER_ERROR = 500
_PARTIAL = 206
_TOO_MANY = 429
_REASONS: Mapping[int, Reason] = {
    404: Reason.GONE,
    410: Reason.GONE,
    _TOO_MANY: Reason.RATE_LIMITED,
    451: Reason.GEO_BLOCKED,
}


@dataclass(frozen=True, slots=True)
class Remote:
    """What a server says of a file.

    Attributes:
        size: in bytes; None where it does not say.
        etag: its word for this version of the file: the ETag, else the date of the last change,
            else empty.
    """

    size: int | None
    etag: str


class _PassingError(SourceError):
    """A failure that may be over in seconds."""

    wanted_pause_s = 0.0  # what the server asked for


def size_of(
    address: str, *, timeout_s: float = TIMEOUT_S, pauses_s: Sequence[float] = PAUSES_S
) -> Remote:
    """Ask for a file's size and version (HEAD).

    Raises:
        SourceError: it cannot be had; `detail` names the address.
        KineticsError: `address` is none of HTTP.
    """

    def ask() -> Remote:
        with _translated(address), _ask("HEAD", address, timeout_s) as answer:
            return _remote(answer)

    return _patiently(ask, pauses_s)


def fetch(
    address: str,
    path: Path,
    *,
    timeout_s: float = TIMEOUT_S,
    pauses_s: Sequence[float] = PAUSES_S,
) -> None:
    """Fetch a small file (of at most 1 GiB) to `path`, which is there only when it is complete.

    Raises:
        SourceError: it cannot be had; `detail` names the address.
        KineticsError: `address` is none of HTTP.
        OSError: the disk is full.
    """
    with (
        open_stream(address, timeout_s=timeout_s, pauses_s=pauses_s) as stream,
        publish(path) as scratch,
        scratch.open("wb") as file,
    ):
        while piece := stream.read(CHUNK_BYTES):
            if stream.position > MAX_FETCHED_BYTES:
                detail = f"{_shown(address)} is larger than {MAX_FETCHED_BYTES} bytes"
                raise SourceError(Reason.SERVER, detail)
            file.write(piece)


def open_stream(
    address: str, *, timeout_s: float = TIMEOUT_S, pauses_s: Sequence[float] = PAUSES_S
) -> "Stream":
    """Begin to read a file of any length.

    Args:
        address: of HTTP.
        timeout_s: how long to wait for an answer and, in it, for the next byte.
        pauses_s: seconds to wait before each further try; a byte more than ever before starts
            the row anew.

    Raises:
        SourceError: it cannot be had; `detail` names the address.
        KineticsError: `address` is none of HTTP.
    """
    return Stream(address, timeout_s, pauses_s)


class _Speed:
    """Of a server's answers to one who waits for them; what the reader does between is not counted.

    A byte a minute would otherwise keep a connection alive for ever.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._waited_s = 0.0
        self._num_bytes = 0

    def read(self, answer: "requests.Response", most: int, address: str) -> bytes:
        """The next bytes of an answer, at least one, or none at its end."""
        start = time.monotonic()
        piece: bytes = answer.raw.read1(most, decode_content=False)
        self._waited_s += time.monotonic() - start
        self._num_bytes += len(piece)
        if piece and self._waited_s >= SLOW_S:
            if self._num_bytes < MIN_BYTES_PER_S * self._waited_s:
                detail = f"{_shown(address)}: {self._num_bytes} bytes in {self._waited_s:.0f} s"
                raise SourceError(Reason.NETWORK, detail)
            self._begin()
        return piece


class Stream(io.RawIOBase):
    """A file on a server, read once from its start to its end, in constant memory.

    A break is mended behind `read`: the file is asked for from the byte where it broke, or, where
    the server knows no ranges, from its start, and what was read before is skipped. Reading raises
    SourceError when that fails for good, when the file is another one by then, or when the server
    drips: less than MIN_BYTES_PER_S in SLOW_S of waiting.

    Attributes:
        remote: what the server said of the file when it was opened.
        position: how many bytes were read.
    """

    def __init__(self, address: str, timeout_s: float, pauses_s: Sequence[float]) -> None:
        super().__init__()
        self._address = address
        self._timeout_s = timeout_s
        self._pauses_s = pauses_s
        self._speed = _Speed()
        self.position = 0
        self._answer: requests.Response | None = None
        self._answer = _patiently(self._begin, pauses_s)

    def _begin(self) -> "requests.Response":
        with _translated(self._address):
            answer = _ask("GET", self._address, self._timeout_s)
        self.remote = _remote(answer)
        return answer

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read at least one byte into `buffer`, none only at the file's end."""
        view = memoryview(buffer).cast("B")
        piece = _patiently(lambda: self._piece(len(view)), self._pauses_s)
        if self.position == 0 and _is_page(piece):
            raise SourceError(Reason.SERVER, f"{_shown(self._address)} is an HTML page")
        view[: len(piece)] = piece
        self.position += len(piece)
        return len(piece)

    def close(self) -> None:
        """Hang up."""
        self._hang_up()
        super().close()

    def _hang_up(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _piece(self, most: int) -> bytes:
        """The next bytes; on any break the connection is given up, and the next call asks anew."""
        try:
            with _translated(self._address):
                if self._answer is None:
                    self._answer = self._resume()
                piece = self._speed.read(self._answer, most, self._address)
            if not piece and self.position < (self.remote.size or 0):
                raise _PassingError(
                    Reason.NETWORK,
                    f"{_shown(self._address)} broke off after {self.position} of "
                    f"{self.remote.size} bytes",
                )
        except SourceError:
            self._hang_up()
            raise
        return piece

    def _resume(self) -> "requests.Response":
        """The file from `position` on."""
        logger.debug("%s: going on at byte %d", self._address, self.position)
        wanted = {"Range": f"bytes={self.position}-"} if self.position else {}
        if wanted and self.remote.etag and not self.remote.etag.startswith("W/"):
            wanted["If-Range"] = self.remote.etag
        with ExitStack() as if_refused:
            answer = if_refused.enter_context(_ask("GET", self._address, self._timeout_s, wanted))
            self._check_same(answer)
            if answer.status_code != _PARTIAL:
                self._skip(answer)
            if_refused.pop_all()  # it stays open
        return answer

    def _check_same(self, answer: "requests.Response") -> None:
        now = _remote(answer)
        start: int | None = self.position
        if answer.status_code == _PARTIAL:
            start, size = _content_range(answer)
            now = Remote(size, now.etag)
        differs = any(
            new and old and new != old
            for new, old in ((now.size, self.remote.size), (now.etag, self.remote.etag))
        )
        if differs or start != self.position:
            raise SourceError(Reason.SERVER, f"{_shown(self._address)} changed while it was read")

    def _skip(self, answer: "requests.Response") -> None:
        left = self.position
        while left:
            piece = self._speed.read(answer, min(left, CHUNK_BYTES), self._address)
            if not piece:
                raise _PassingError(
                    Reason.NETWORK, f"{_shown(self._address)} broke off before byte {self.position}"
                )
            left -= len(piece)


def _patiently(attempt: Callable[[], T], pauses_s: Sequence[float]) -> T:
    """The first success of `attempt`, after failures that pass; the last of them is raised."""
    for pause_s in pauses_s:
        try:
            return attempt()
        except _PassingError as error:
            wanted_s = max(pause_s, min(error.wanted_pause_s, MAX_PAUSE_S))
            logger.info("%s; trying again in %.0f s", error.detail, wanted_s)
            time.sleep(wanted_s)
    return attempt()


def _ask(
    method: str, address: str, timeout_s: float, headers: Mapping[str, str] | None = None
) -> "requests.Response":
    """One request. Its answer is a file's, or else it is raised as a SourceError."""
    import requests  # 0.15 s; the commands' --help does without it

    ours = {
        "Accept-Encoding": "identity",  # the bytes as they are stored
        "User-Agent": f"kinetics-tools/{kinetics_tools.__version__}",
    }
    answer = requests.request(
        method,
        address,
        headers=ours | dict(headers or {}),
        stream=True,
        timeout=(min(timeout_s, CONNECT_S), timeout_s),
        allow_redirects=True,
    )
    error = _problem(answer, address)
    if error is not None:
        answer.close()
        raise error
    return answer


def _problem(answer: "requests.Response", address: str) -> SourceError | None:
    """Why an answer is no file's, or None."""
    status = answer.status_code
    if status < _FIRST_ERROR:
        if answer.headers.get("Content-Type", "").lower().startswith("text/html"):
            return SourceError(Reason.SERVER, f"{_shown(address)} is an HTML page")
        return None
    reason = _REASONS.get(status, Reason.SERVER)
    detail = f"{_shown(address)}: HTTP {status} {answer.reason or ''}".strip()
    if status < _FIRST_SERVER_ERROR and status != _TOO_MANY:
        return SourceError(reason, detail)
    error = _PassingError(reason, detail)
    asked = answer.headers.get("Retry-After", "")
    error.wanted_pause_s = float(asked) if asked.isdecimal() else 0.0
    return error


def _remote(answer: "requests.Response") -> Remote:
    size = answer.headers.get("Content-Length", "")
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    return Remote(int(size) if size.isdecimal() else None, version)


def _content_range(answer: "requests.Response") -> tuple[int | None, int | None]:
    """Where a part of a file begins, and how long the whole file is."""
    said = answer.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-\d+/(?:(\d+)|\*)", said)
    if found is None:
        return None, None
    return int(found[1]), int(found[2]) if found[2] else None


def _is_page(start: bytes) -> bool:
    return start.lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _shown(address: str) -> str:
    """An address as it may stand in a ledger that is passed on: without passwords and tokens."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


@contextmanager
def _translated(address: str) -> Iterator[None]:
    """In this block the errors of requests, and of urllib3 below it, become ours."""
    import requests
    import urllib3

    try:
        yield
    except (
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidSchema,
        requests.exceptions.InvalidURL,
    ) as error:
        raise KineticsError(
            f"{address!r} is not an address; it must begin with http:// or https://"
        ) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        detail = f"{_shown(address)}: {_words(error)}"
        raise _PassingError(Reason.NETWORK, detail) from error


def _words(error: BaseException) -> str:
    """What an error says at its core: requests wraps urllib3, which wraps the system's."""
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
