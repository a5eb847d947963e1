"""A mirror on loopback: real tarballs over real HTTP, with every way of going wrong asked of it."""

import contextlib
import gzip
import hashlib
import http.server
import io
import re
import socket
import struct
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

CHUNK = 65536
Content = tuple[str, bytes]
Member = tarfile.TarInfo | Content


@dataclass
class Served:
    """One file and how its server behaves.

    Attributes:
        content: its bytes.
        etag: None sends none.
        kind: its Content-Type.
        ranges: whether ranges of it can be asked for.
        shorter: bytes that lack at the end of each range.
        breaks: the n-th GET is cut off when it reaches this byte of the file (None: not).
        always_breaks: every GET is.
        statuses: the n-th GET is answered with this status (0: as it should be).
        headers: sent with those.
        hangs: nothing is ever answered.
        resets: whether a cut is a reset connection, or one that ends in good order.
        says_length: whether the answers have a Content-Length.
        head: whether HEAD is known.
        drips_s: a byte comes after each so many seconds (0: all at once).
    """

    content: bytes
    etag: str | None
    kind: str = "application/octet-stream"
    ranges: bool = True
    shorter: int = 0
    breaks: list[int | None] = field(default_factory=list)
    always_breaks: int | None = None
    statuses: list[int] = field(default_factory=list)
    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: bool = False
    resets: bool = True
    says_length: bool = True
    head: bool = True
    drips_s: float = 0


@dataclass
class MirrorServer:
    """What the server has, and what was asked of it.

    Attributes:
        address: its base.
        files: by path, with the leading slash, as the files are named: not quoted.
        requests: method, path and Range header of each request, in order.
        bytes_sent: of bodies, by path.
    """

    address: str = ""
    files: dict[str, Served] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    bytes_sent: Counter[str] = field(default_factory=Counter)

    def put(self, path: str, content: bytes, **manner: Any) -> Served:
        """Serve `content` as `path`; `manner` are fields of Served."""
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        self.files[path] = Served(content, **({"etag": etag} | manner))
        return self.files[path]

    def gets(self, path: str | None = None) -> list[str]:
        """The paths of the GET requests so far, of one path if given."""
        asked = [asked for method, asked, _ in self.requests if method == "GET"]
        return asked if path is None else [one for one in asked if one == path]


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the file that is asked for is told to."""

    server: "_Server"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def do_GET(self) -> None:
        self._serve("GET")

    def _serve(self, method: str) -> None:
        known = self.server.known
        known.requests.append((method, self.path, self.headers.get("Range")))
        served = known.files.get(unquote(self.path, errors="surrogateescape"))
        while served is not None and served.hangs:
            time.sleep(0.02)
        if served is None:
            self._head(404, None, 0)
        elif method == "HEAD":
            self._head(200 if served.head else 405, served, len(served.content))
        elif status := served.statuses.pop(0) if served.statuses else 0:
            self._head(status, served, 0)
        else:
            self._send(served)

    def _head(self, status: int, served: Served | None, size: int, part: str | None = None) -> None:
        headers: dict[str, str | None] = {"Content-Length": str(size), "Content-Range": part}
        if served is not None:
            headers |= {"Content-Type": served.kind, "ETag": served.etag}
            headers |= served.headers if status >= 400 else {}
            headers |= {} if served.says_length else {"Content-Length": None}
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def _send(self, served: Served) -> None:
        content, total = served.content, len(served.content)
        start, past = self._range(served)
        if start and start >= total:
            self._head(416, served, 0, f"bytes */{total}")
            return
        if (start, past) != (0, total):
            self._head(206, served, past - start, f"bytes {start}-{past - 1}/{total}")
        else:
            self._head(200, served, total)
        stop = served.breaks.pop(0) if served.breaks else served.always_breaks
        end = past if stop is None else min(stop, past)
        with contextlib.suppress(ConnectionError):  # a reader who has enough hangs up
            step = 1 if served.drips_s else CHUNK
            for position in range(start, end, step):
                time.sleep(served.drips_s)
                piece = content[position : min(position + step, end)]
                # Counted first: a reader who has it may look at the count at once.
                self.server.known.bytes_sent[self.path] += len(piece)
                self.wfile.write(piece)
        if stop is not None and served.resets:
            # As a cable that is pulled; what was sent arrives first.
            time.sleep(0.05)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _range(self, served: Served) -> tuple[int, int]:
        """The first byte that is asked for, and the one past the last."""
        total = len(served.content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not served.ranges:
            return 0, total
        if self.headers.get("If-Range", served.etag) != served.etag:
            return 0, total
        past = int(asked[2]) + 1 if asked[2] else total
        return int(asked[1]), min(past, total) - served.shorter


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, known: MirrorServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.known = known
        known.address = f"http://127.0.0.1:{self.server_port}"

    def shutdown_request(self, request: Any) -> None:
        """End the connection without the courtesy that would hide a reset."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are what this server is for."""


@contextlib.contextmanager
def serve() -> Iterator[MirrorServer]:
    """Run a server of what is put into it."""
    known = MirrorServer()
    server = _Server(known)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield known
    finally:
        for served in known.files.values():
            served.hangs = False
        server.shutdown()
        server.server_close()


def tarball(members: Sequence[Member], *, compressed: bool = True, pax: bool = False) -> bytes:
    """A tar of (name, bytes) and of bare headers (links and the like), compressed or plain."""
    buffer = io.BytesIO()
    form = tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                name, content = member
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    data = buffer.getvalue()
    return gzip.compress(data, 1, mtime=0) if compressed else data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """The header of a symbolic link, or of another thing without content."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info
