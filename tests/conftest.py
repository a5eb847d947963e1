"""What all tests share: real clips made by ffmpeg, a real HTTP server on loopback, real data."""

import contextlib
import hashlib
import http.server
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from kinetics_tools.media import encode
from kinetics_tools.media.clips import Cut, cut
from kinetics_tools.media.recipe import ClipRecipe
from support import SHARED, MediaServer

# A shell that starts the tests in the background lets them ignore Ctrl-C, and so what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a GPU Triton's kernels are interpreted. Triton asks for this where a kernel is defined.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A slow example is no failure: the machine may be busy.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")

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
    return encode.find_ffmpeg()


@pytest.fixture(scope="session")
def recipe(ffmpeg: Path) -> ClipRecipe:
    """The default recipe of clips."""
    return ClipRecipe(ffmpeg=encode.ffmpeg_version(ffmpeg))


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
        options: str = "-c:v libx264 -preset ultrafast -g 60",
        suffix: str = ".mp4",
        sound: bool = False,
    ) -> Path:
        request = repr((seconds, fps, size, options, sound))
        path = folder / (hashlib.sha256(request.encode()).hexdigest()[:12] + suffix)
        if not path.exists():
            picture = ["-f", "lavfi", "-i", f"testsrc2=size={size}:rate={fps}"]
            noise = ["-f", "lavfi", "-i", "sine"] if sound else []
            command = [str(ffmpeg), "-loglevel", "error", *picture, *noise, "-t", str(seconds)]
            subprocess.run([*command, *options.split(), str(path)], check=True)
        return path

    return make


Cutter = Callable[[Path, object, object], tuple[Cut, Path]]


@pytest.fixture
def cutter(ffmpeg: Path, recipe: ClipRecipe, tmp_path: Path) -> Cutter:
    """Cuts [start, end) of a video, in seconds; returns the Cut and the clip."""

    def cut_segment(video: Path, start: object, end: object) -> tuple[Cut, Path]:
        clip = tmp_path / "clip.mp4"
        times = {"start_s": Fraction(str(start)), "end_s": Fraction(str(end))}
        return cut(video, clip, **times, recipe=recipe, binary=ffmpeg), clip

    return cut_segment


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
            status = 200 if data else 404
            if name.startswith("status-"):
                status = int(name.split("-")[1])
            if data == b"":
                status = 200
            self.send_response(status)
            is_page = data is not None and data.startswith(b"<")
            self.send_header("Content-Type", "text/html" if is_page else "video/mp4")
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if body and data is not None:
                with contextlib.suppress(ConnectionError):  # yt-dlp hangs up early
                    self.wfile.write(data[: len(data) // 2] if kind == "half" else data)

    return Handler


@pytest.fixture
def media_server() -> Iterator[MediaServer]:
    """A server of /<name>.mp4 as put, /half-of-<name>.mp4 cut off, /status-<n>[-*].mp4."""
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


@pytest.fixture(scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, _cache: Path) -> None:
    """No test reads or writes the user's own cache, nor do the commands that it starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(_cache))
