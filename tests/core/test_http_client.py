"""HTTP against a server that breaks off, lies, stalls and changes its files."""

import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("address", ["list.txt", "ftp://host/list", "http://", "file:///etc/x"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(KineticsError, match="must begin with http") as caught:
        http_client.size_of(address)
    assert not isinstance(caught.value, SourceError)


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
