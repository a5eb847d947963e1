"""HTTP against a server that breaks off, lies, stalls and changes its files."""

import contextlib
import http.server
import random
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_tools.core import http_client
from kinetics_tools.core.errors import KineticsError, Reason, SourceError
from mirror import MirrorServer, serve
from support import tree, wait_until

CONTENT = random.Random(0).randbytes(1_000_000)
QUICK = {"timeout_s": 5.0, "pauses_s": (0.0, 0.0)}


@pytest.fixture
def mirror_server() -> Iterator[MirrorServer]:
    with serve() as server:
        yield server


def read(address: str, **options: object) -> bytes:
    with http_client.open_stream(address, **(QUICK | options)) as stream:  # type: ignore[arg-type]
        return stream.read()


def test_a_file_comes_whole_and_says_its_size_and_version(mirror_server: MirrorServer) -> None:
    served = mirror_server.put("/a", CONTENT)
    remote = http_client.Remote(len(CONTENT), str(served.etag))
    assert http_client.size_of(mirror_server.address + "/a") == remote
    with http_client.open_stream(mirror_server.address + "/a") as stream:
        assert stream.remote == remote
        assert stream.read(10) == CONTENT[:10]
        assert stream.position == 10
        assert stream.read() == CONTENT[10:]
        assert stream.read(10) == b""


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("resets", [True, False])
def test_a_broken_connection_is_resumed(
    mirror_server: MirrorServer, ranges: bool, resets: bool
) -> None:
    served = mirror_server.put("/a", CONTENT, ranges=ranges, resets=resets)
    served.breaks += [300_000, 650_000, 650_000]
    assert read(mirror_server.address + "/a") == CONTENT
    assert len(mirror_server.gets("/a")) == 4
    if ranges:
        assert [asked for _, _, asked in mirror_server.requests][1:3] == [
            "bytes=300000-",
            "bytes=650000-",
        ]
        assert mirror_server.bytes_sent["/a"] == len(CONTENT)  # no byte twice


def test_without_a_length_the_end_is_where_the_server_ends(mirror_server: MirrorServer) -> None:
    mirror_server.put("/a", CONTENT, says_length=False)
    with http_client.open_stream(mirror_server.address + "/a") as stream:
        assert stream.remote.size is None
        assert stream.readall() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_always_breaks_is_a_network_error(
    mirror_server: MirrorServer, ranges: bool
) -> None:
    mirror_server.put("/a", CONTENT, always_breaks=300_000, ranges=ranges)
    with pytest.raises(SourceError) as caught:
        read(mirror_server.address + "/a")
    assert caught.value.reason is Reason.NETWORK
    assert len(mirror_server.gets("/a")) == 3  # one try, and as many more as there are pauses


def test_any_number_of_breaks_is_resumed_while_new_bytes_come(mirror_server: MirrorServer) -> None:
    mirror_server.put("/a", CONTENT, breaks=list(range(50_000, 1_000_000, 50_000)))
    assert read(mirror_server.address + "/a") == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_parts_of_two_versions_of_a_file_are_never_joined(
    mirror_server: MirrorServer, ranges: bool
) -> None:
    mirror_server.put("/a", CONTENT, breaks=[300_000])
    with http_client.open_stream(
        mirror_server.address + "/a", timeout_s=5, pauses_s=(0.0,)
    ) as stream:
        stream.read(10)
        mirror_server.put("/a", CONTENT[::-1], ranges=ranges)
        with pytest.raises(SourceError, match="changed while it was read"):
            while stream.read(100_000):
                pass


def test_without_a_version_a_change_of_size_is_noticed(mirror_server: MirrorServer) -> None:
    mirror_server.put("/a", CONTENT, etag=None, breaks=[300_000])
    with http_client.open_stream(
        mirror_server.address + "/a", timeout_s=5, pauses_s=(0.0,)
    ) as stream:
        stream.read(10)
        mirror_server.put("/a", CONTENT[:-1], etag=None)
        with pytest.raises(SourceError, match="changed while it was read"):
            stream.readall()


@pytest.mark.parametrize(
    ("status", "reason", "tries"),
    [
        (403, Reason.SERVER, 1),
        (404, Reason.GONE, 1),
        (410, Reason.GONE, 1),
        (429, Reason.RATE_LIMITED, 3),
        (500, Reason.SERVER, 3),
        (503, Reason.SERVER, 3),
    ],
)
def test_each_status_has_its_reason(
    mirror_server: MirrorServer, status: int, reason: Reason, tries: int
) -> None:
    mirror_server.put("/a", CONTENT, statuses=[status] * 9)
    with pytest.raises(SourceError, match=f"/a: HTTP {status}") as caught:
        read(mirror_server.address + "/a")
    assert caught.value.reason is reason
    assert len(mirror_server.gets("/a")) == tries


def test_a_server_that_recovers_is_tried_again(mirror_server: MirrorServer) -> None:
    mirror_server.put("/a", CONTENT, statuses=[503, 429], headers={"Retry-After": "0"})
    assert read(mirror_server.address + "/a") == CONTENT


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "text/plain"])
def test_an_html_page_in_place_of_a_file_is_an_error(
    mirror_server: MirrorServer, kind: str, tmp_path: Path
) -> None:
    mirror_server.put("/a", b"\n<!DOCTYPE html><p>Sign in to this network", kind=kind)
    with pytest.raises(SourceError, match="is an HTML page") as caught:
        http_client.fetch(mirror_server.address + "/a", tmp_path / "a")
    assert caught.value.reason is Reason.SERVER
    assert tree(tmp_path) == {}


def test_a_server_that_never_answers_is_given_up(mirror_server: MirrorServer) -> None:
    mirror_server.put("/a", CONTENT, hangs=True)
    for ask in (http_client.size_of, http_client.open_stream):
        with pytest.raises(SourceError, match="timed out") as caught:
            ask(mirror_server.address + "/a", timeout_s=0.2, pauses_s=(0.0,))
        assert caught.value.reason is Reason.NETWORK
    wait_until(lambda: len(mirror_server.requests) == 4)  # it records them in a thread of its own


def test_a_refused_connection_is_a_network_error(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/a"
    with pytest.raises(SourceError, match=r"/a: .*[Cc]onnection refused") as caught:
        http_client.fetch(address, tmp_path / "a", pauses_s=())
    assert caught.value.reason is Reason.NETWORK


def test_a_fetched_file_is_there_only_when_complete(
    mirror_server: MirrorServer, tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "list.txt"
    mirror_server.put("/list", b"old")
    http_client.fetch(mirror_server.address + "/list", path)
    mirror_server.put("/list", CONTENT, always_breaks=10)
    with pytest.raises(SourceError, match=r"/list: "):
        http_client.fetch(mirror_server.address + "/list", path, timeout_s=5, pauses_s=(0.0,))
    assert tree(tmp_path) == {"deep/list.txt": b"old"}


def test_a_small_file_that_does_not_end_is_an_error(
    mirror_server: MirrorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "MAX_FETCHED_BYTES", 500_000)
    mirror_server.put("/a", CONTENT, says_length=False)
    with pytest.raises(SourceError, match="/a is larger than 500000 bytes"):
        http_client.fetch(mirror_server.address + "/a", tmp_path / "a")
    assert tree(tmp_path) == {}


def test_an_empty_file_is_a_file(mirror_server: MirrorServer, tmp_path: Path) -> None:
    mirror_server.put("/a", b"")
    http_client.fetch(mirror_server.address + "/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b""


def test_errors_name_no_password_and_no_token(mirror_server: MirrorServer) -> None:
    host = mirror_server.address.removeprefix("http://")
    with pytest.raises(SourceError) as caught:
        http_client.size_of(f"http://me:hidden@{host}/none?token=secret")
    assert caught.value.detail == f"http://{host}/none: HTTP 404 Not Found"


@pytest.mark.parametrize("where", ["in the file", "in what is read again"])
def test_a_server_below_minimum_throughput_is_given_up(
    mirror_server: MirrorServer, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(http_client, "STALL_WINDOW_S", 0.2)
    served = mirror_server.put("/a", CONTENT, drips_s=0.01)
    if where == "in what is read again":
        served.ranges, served.drips_s, served.breaks = False, 0, [300_000]
    with http_client.open_stream(
        mirror_server.address + "/a", timeout_s=5, pauses_s=(0.0,)
    ) as stream:
        stream.read(10)
        served.drips_s = 0.01
        with pytest.raises(
            SourceError, match=r"/a: \d+ bytes in 0 s, below minimum throughput"
        ) as caught:
            stream.readall()
    assert caught.value.reason is Reason.NETWORK


def test_a_slow_reader_is_not_taken_for_a_slow_server(
    mirror_server: MirrorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "STALL_WINDOW_S", 0.2)
    mirror_server.put("/a", CONTENT[:300])
    with http_client.open_stream(mirror_server.address + "/a") as stream:
        for number in range(3):
            time.sleep(0.1)
            assert stream.read(100) == CONTENT[100 * number : 100 * number + 100]


class _Redirect(http.server.BaseHTTPRequestHandler):
    """Redirects to the address that is asked for, quoted."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", unquote(self.path[1:]))
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture(scope="module")
def redirecting() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Redirect) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


ODD_ADDRESSES = [
    *("file:///etc/passwd", "ftp://host/x", "javascript:1", "//", "/", "http://", "http://[::1"),
    *("http://host:99999999/", "http://host:x/", "http://%00/", "http:///x", "http://127.0.0.1:1/"),
]


@pytest.mark.parametrize("to", ODD_ADDRESSES)
def test_a_redirect_to_nowhere_is_the_servers_failure(to: str, redirecting: str) -> None:
    with pytest.raises(SourceError) as caught:
        http_client.size_of(redirecting + quote(to, safe=""), timeout_s=5, pauses_s=())
    assert caught.value.reason in (Reason.SERVER, Reason.NETWORK)
    assert caught.value.detail.startswith(redirecting)
    assert "\n" not in caught.value.detail


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("file:///etc/passwd", "it must begin with http:// or https://"),
        ("host/x", "it must begin with http:// or https://"),
        ("http://", "it names no server"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://me:SECRET@host:99999999/", "Port out of range 0-65535"),
        ("http://me:SECRET@a b/", "contains invalid character ' '"),
    ],
)
def test_an_address_that_cannot_be_asked_says_why(address: str, problem: str) -> None:
    with pytest.raises(KineticsError) as caught:
        http_client.size_of(address)
    assert not isinstance(caught.value, SourceError)
    assert problem in str(caught.value)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("proxy", "problem"),
    [
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://host:99999999", "Port out of range 0-65535"),
        ("host:x", "Port could not be cast"),
        ("file:///x", "it must begin with http://"),
        ("socks5://host:1", "for SOCKS install PySocks"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_as_such(
    proxy: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(http_client, "find_spec", lambda _: None)  # some environment may have it
    with pytest.raises(KineticsError, match="proxy of the environment") as caught:
        http_client.size_of("http://host.invalid/a")
    assert problem in str(caught.value)


def test_only_the_proxy_that_is_taken_matters(
    mirror_server: MirrorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror_server.put("/a", CONTENT)
    monkeypatch.setenv("http_proxy", mirror_server.address)  # it takes whole addresses for paths
    for name, value in {
        "no_proxy": "localhost,127.0.0.1,::1",
        "all_proxy": "socks://127.0.0.1:1080/",
        "ftp_proxy": "ftp://host:x",
        "my_proxy": "/usr/bin/x",
    }.items():
        monkeypatch.setenv(name, value)
    assert http_client.size_of(mirror_server.address + "/a").size == len(CONTENT)


class _LongRedirect(http.server.BaseHTTPRequestHandler):
    """Redirects, with a body that never ends, to /end, and from there to itself."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        is_end = self.path == "/end"
        self.send_response(200 if is_end else 302)
        self.send_header("Location", "loop" if "loop" in self.path else "/end")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for _ in range(1 if is_end else 2_000):  # 128 MiB, which would be noticed
                self.wfile.write(b"x" * 2**16)


def test_the_body_of_a_redirect_is_not_read() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _LongRedirect) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert read(f"{address}/begin") == b"x" * 2**16
        with pytest.raises(SourceError, match="redirects more than 20 times"):
            read(f"{address}/loop")
        server.shutdown()


class _Answers(socketserver.StreamRequestHandler):
    """Answers every request with the same bytes."""

    answer = b""

    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        with contextlib.suppress(ConnectionError):
            self.wfile.write(_Answers.answer)


NUMBERS = (b"-1", b"0", b"3", b"3, 4", b"9" * 5000, b"1e3", "\u0663".encode())
RANGES = (b"bytes 0-2/3", b"bytes 1-2/3", b"bytes 0-" + b"9" * 5000 + b"/*", b"bytes */*")
WORDS = (b"", b"x", b"\xff\0\x1b[31m", b"chunked", b"gzip", b"text/html", b"a" * 70_000)
PLACES = (b"http://[::1", b"file:///etc/passwd", b"Mon, 99 Foo 9 9:9:9")
LENGTHS = (b"Content-Length", b"Content-Range", b"Transfer-Encoding", b"Retry-After")
NAMES = (b"Content-Type", b"Content-Encoding", b"ETag", b"Last-Modified", b"Location", b"\xff", b"")
GOOD = (b"200 OK", b"206 Partial", b"204 No", b"302 Found", b"100 Go on")
BAD = (b"404 \x1b[31mred", b"429 Wait", b"503 Off", b"99999 x", b"20", b"", b"-1 x")
CHUNKS = (b"F" * 5000 + b"\r\nabc", b"-1\r\nabc", b"3\r\nabc\r\n0\r\n\r\n")

ODD_VALUES = st.sampled_from(NUMBERS + RANGES + WORDS + PLACES)
ODD_NAMES = st.sampled_from(LENGTHS + NAMES)
ODD_STATUSES = st.sampled_from(GOOD + BAD)
ODD_BODIES = st.sampled_from((b"", b"abc", *CHUNKS))


def try_odd_answers(num_examples: int) -> None:
    @settings(max_examples=num_examples, deadline=None)
    @given(
        ODD_STATUSES, st.lists(st.tuples(ODD_NAMES, ODD_VALUES), max_size=4), ODD_BODIES,
        st.sampled_from([b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/9.9 ", b""]),
    )  # fmt: skip
    def one(status: bytes, headers: list[tuple[bytes, bytes]], body: bytes, version: bytes) -> None:
        lines = [version + status, *(name + b": " + value for name, value in headers)]
        _Answers.answer = b"\r\n".join(lines) + b"\r\n\r\n" + body
        for use in (http_client.size_of, read):
            try:
                use(address, timeout_s=2.0, pauses_s=(0.0,))
            except SourceError as error:
                assert "\n" not in error.detail
                assert len(error.detail) < 1000

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/a"
        one()
        server.shutdown()


def test_no_answer_of_a_server_is_a_crash() -> None:
    try_odd_answers(150)


@pytest.mark.full
def test_no_answer_of_many_is_a_crash() -> None:
    try_odd_answers(4000)
