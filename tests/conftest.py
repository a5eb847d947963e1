"""What all tests share: real clips made by ffmpeg, a real HTTP server on loopback, real data."""

import http.server
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kinetics_tools import media

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
NO_SHARED = "needs the real data in ../shared/data, which is not beside this checkout"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips. `.ci/run` fails when this skips although the folder is there."""
    if not SHARED.is_dir():
        pytest.skip(NO_SHARED)
    return SHARED


@pytest.fixture(scope="session")
def ffmpeg() -> Path:
    """The ffmpeg that the product uses."""
    return media.find_ffmpeg()


@pytest.fixture(scope="session")
def recipe(ffmpeg: Path) -> media.ClipRecipe:
    """The default recipe of clips."""
    return media.ClipRecipe(ffmpeg=media.ffmpeg_version(ffmpeg))


MakeVideo = Callable[..., Path]


@pytest.fixture(scope="session")
def make_video(ffmpeg: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeVideo:
    """Make a video by ffmpeg's own test picture; equal requests share one file."""
    folder = tmp_path_factory.mktemp("videos")

    def make(
        *,
        seconds: float = 4,
        fps: str = "30",
        size: str = "128x96",
        name: str = "",
        options: tuple[str, ...] = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "60"),
        suffix: str = ".mp4",
        sound: bool = False,
    ) -> Path:
        title = name or f"{seconds}-{fps.replace('/', '_')}-{size}-{abs(hash(options))}-{sound}"
        path = folder / f"{title}{suffix}"
        if not path.exists():
            noise = ["-f", "lavfi", "-i", "sine"] if sound else []
            subprocess.run(
                [ffmpeg, "-loglevel", "error", "-f", "lavfi"]
                + ["-i", f"testsrc2=size={size}:rate={fps}", *noise, "-t", str(seconds)]
                + [*options, path],
                check=True,
            )
        return path

    return make


@dataclass
class MediaServer:
    """An HTTP server on loopback. Put files in; ask for /<status> to get that status."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    @property
    def template(self) -> str:
        """What `--source` takes."""
        return f"url:{self.address}/{{youtube_id}}.mp4"

    def put(self, name: str, content: Path | bytes) -> None:
        """Serve `content` as /<name>.mp4."""
        self.files[name] = content if isinstance(content, bytes) else content.read_bytes()


def _handler(server: MediaServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            server.requests.append(self.path)
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            name = self.path.removeprefix("/").removesuffix(".mp4")
            kind, _, rest = name.partition("-of-")
            data = server.files.get(name, server.files.get(rest))
            status = int(name[7:]) if name.startswith("status-") else 200 if data else 404
            if data == b"":
                status = 200
            self.send_response(status)
            is_page = data is not None and data.startswith(b"<")
            self.send_header("Content-Type", "text/html" if is_page else "video/mp4")
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if body and data is not None:
                self.wfile.write(data[: len(data) // 2] if kind == "half" else data)

    return Handler


@pytest.fixture
def media_server() -> Iterator[MediaServer]:
    """A fresh server: /<name>.mp4 as put, /half-of-<name>.mp4 cut off, /status-<n>.mp4, else 404."""
    known = MediaServer("")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(known))
    known.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield known
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test of ours talks to another machine."""
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


def tree(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Every file below a folder with its bytes; locks, and names that hold `without`, left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.name.startswith(".lock")
        and not any(word in path.name for word in without)
    }


def environment() -> dict[str, str]:
    """For commands started as processes: ours, without ffmpeg on PATH."""
    return os.environ | {"PYTHONPATH": str(ROOT)}
