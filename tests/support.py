"""Helpers of the tests: a server's contents, trees of files, the environment of commands."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kinetics_tools.core.files import publish

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


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


def tree(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Every file below a folder with its bytes.

    Left out are locks, what tasks tell each other, what is known of the disk, and names that hold
    `without`.
    """
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.name.startswith((".lock", ".digests"))
        and path.parent.name != ".mirror"
        and not any(word in path.name for word in without)
    }


# What a power loss or a careless hand leaves of a JSON file, by kind.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off": lambda whole: whole[: len(whole) // 2],
    "zeros": lambda whole: bytes(len(whole)),
    "brace": lambda _: b"{",
    "object": lambda _: b"{}",
    "list": lambda _: b"[]",
    "number": lambda _: b"3",
    "null": lambda _: b"null",
    "text": lambda _: b'"schema_version recipe"',
    "not UTF-8": lambda whole: whole[:-9] + b"\xff" + whole[-8:],
}


def damage_file(path: Path, kind: str) -> None:
    """Damage a file in one of the ways of DAMAGES."""
    path.write_bytes(DAMAGES[kind](path.read_bytes()))


def left_by_a_killed_process(path: Path) -> Path:
    """The scratch file that a process of this host leaves when it is killed while it writes."""
    with publish(path.with_name("x")) as scratch:
        name = scratch.name
        scratch.touch()
    path.with_name("x").unlink()
    left = path.with_name(name.replace(f"-{os.getpid()}-x", f"-99999999-{path.name}"))
    left.write_bytes(b"half")
    return left


def environment() -> dict[str, str]:
    """For commands started as processes: the tree under test, and no program on PATH."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": "/nonexistent"}


def command(name: str, *arguments: object) -> list[str]:
    """The words that start one of the three commands from the tree under test."""
    module = {
        "kinetics-download": "kinetics_tools.download.cli",
        "extract-flow": "kinetics_tools.extract.cli",
        "run-benchmark": "kinetics_bench.cli",
    }[name]
    return [sys.executable, "-c", f"from {module} import main; main()", *map(str, arguments)]


def run(*command: object) -> None:
    """Run a program that must succeed."""
    subprocess.run(list(map(str, command)), check=True)


def run_command(
    name: str, *arguments: object, cwd: Path | None = None, is_root: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run one of the three commands to its end; its output is kept.

    `is_root` False: without root's right to read every file.
    """
    rights = ("--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    needs_less = not is_root and os.geteuid() == 0
    first = (shutil.which("setpriv") or "setpriv", *rights) if needs_less else ()
    return subprocess.run(
        [*first, *command(name, *arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        cwd=cwd,
    )


def wait_until(condition: Callable[[], object], *, seconds: float = 30) -> None:
    """Return when `condition` is true; fail where it is not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def unpack_written_by_0_1(folder: Path) -> None:
    """Put the clips, the shards and the run that version 0.1 wrote into `folder`."""
    shutil.unpack_archive(ROOT / "tests" / "golden" / "written_by_0.1.tar.xz", folder)
