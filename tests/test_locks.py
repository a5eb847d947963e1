"""File systems that cannot lock files, are read-only or fail: one line that names the folder."""

import errno
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from conftest import MakeVideo
from kinetics_bench.archs import build
from kinetics_bench.inference.networks import RUN, Request
from kinetics_tools.core import files
from outs import ask, real, segment, tell
from support import MediaServer, command, environment
from tiny import copy_of_shards, tiny_clips

# Loaded by every Python process: no such file system can be mounted without privileges.
SHIM = """
import builtins, fcntl, io, os
FOLDER, NUMBER = os.environ["BAD_FOLDER"], int(os.environ["BAD_ERRNO"])
flock, plain_open, plain_os_open = fcntl.flock, io.open, os.open

def bad_flock(file, operation):
    fd = file if isinstance(file, int) else file.fileno()
    if os.readlink(f"/proc/self/fd/{fd}").startswith(FOLDER):
        raise OSError(NUMBER, os.strerror(NUMBER))
    return flock(file, operation)

def read_only_open(file, mode="r", *args, **kwargs):
    is_there = isinstance(file, (str, os.PathLike)) and os.fspath(file).startswith(FOLDER)
    if is_there and set(mode) & set("wax+"):
        raise OSError(NUMBER, os.strerror(NUMBER), os.fspath(file))
    return plain_open(file, mode, *args, **kwargs)

def read_only_os_open(path, flags, *args, **kwargs):
    is_there = isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(FOLDER)
    if is_there and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        raise OSError(NUMBER, os.strerror(NUMBER), os.fspath(path))
    return plain_os_open(path, flags, *args, **kwargs)

if "BAD_IS_READ_ONLY" in os.environ:
    builtins.open = io.open = read_only_open
    os.open = read_only_os_open
else:
    fcntl.flock = bad_flock
"""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
BROKEN = (errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.EINVAL, errno.EBADF)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A folder on such a file system."""
    folder = tmp_path / "bad"
    folder.mkdir()
    (tmp_path / "shim").mkdir()
    (tmp_path / "shim" / "sitecustomize.py").write_text(SHIM)
    return folder


def run(
    bad: Path, name: str, *words: object, number: int = errno.ENOSYS, **more: str
) -> subprocess.CompletedProcess[str]:
    env: Mapping[str, str] = environment() | {
        "BAD_FOLDER": str(bad),
        "BAD_ERRNO": str(number),
        "PYTHONPATH": f"{bad.parent / 'shim'}{os.pathsep}{environment()['PYTHONPATH']}",
        "MPLCONFIGDIR": str(bad.parent),
        **more,
    }
    return subprocess.run(
        command(name, *words), capture_output=True, text=True, check=False, env=env
    )


def require_line(
    done: subprocess.CompletedProcess[str], folder: Path, number: int, remedy: str
) -> None:
    """The run ended with the line that names the folder, and with nothing but log lines before."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    said = f"error: {folder}: no file can be locked there ({os.strerror(number)}); {remedy}"
    assert done.stderr.splitlines()[-1] == said
    assert done.stderr.count("error:") == 1


@pytest.fixture
def table(media_server: MediaServer, make_video: MakeVideo, tmp_path: Path) -> Path:
    media_server.put("abc", make_video())
    path = tmp_path / "list.csv"
    path.write_text("label,youtube_id,time_start,time_end,split\na,abc,0,2,val\n")
    return path


@pytest.mark.parametrize("number", [*NO_LOCKS, *BROKEN])
def test_the_error_of_a_lock_names_its_folder(number: int, bad: Path, table: Path) -> None:
    words = (table, bad / "out", "--source", f"dir:{bad}")
    done = run(bad, "kinetics-download", *words, number=number)
    require_line(done, bad / "out", number, files.OTHER_FOLDER)


def test_a_download_names_the_folder_that_cannot_be_locked(
    bad: Path, table: Path, media_server: MediaServer, tmp_path: Path
) -> None:
    words = (table, tmp_path / "out", "--source", media_server.template)
    done = run(bad, "kinetics-download", *words, "--tmp-dir", bad / "tmp")
    require_line(done, bad / "tmp", errno.ENOSYS, files.OTHER_TMP_DIR)

    done = run(bad, "kinetics-download", *words, "--cache-dir", bad / "cache")
    require_line(done, bad / "cache" / "pace", errno.ENOSYS, files.OTHER_CACHE_DIR)
    assert not (tmp_path / "out" / ".scratch").exists()

    address = f"{media_server.address}/list.csv"
    official = ("kinetics400/val", tmp_path / "out", "--manifest-address", address)
    done = run(bad, "kinetics-download", *official, "--cache-dir", bad / "cache")
    require_line(done, bad / "cache" / "manifests", errno.ENOSYS, files.OTHER_CACHE_DIR)


def test_an_extraction_names_the_folder_that_cannot_be_locked(bad: Path, tmp_path: Path) -> None:
    done = run(bad, "extract-flow", tiny_clips(), bad / "out", number=errno.ENOLCK)
    require_line(done, bad / "out", errno.ENOLCK, files.OTHER_FOLDER)

    words = ("--tmp-dir", bad / "tmp", "--method", "opencv-tvl1")
    done = run(bad, "extract-flow", tiny_clips(), tmp_path / "out", *words)
    require_line(done, bad / "tmp", errno.ENOSYS, files.OTHER_TMP_DIR)

    done = run(bad, "extract-flow", "index", copy_of_shards(bad))
    require_line(done, bad / "shards", errno.ENOSYS, files.OTHER_FOLDER)

    shards = copy_of_shards(tmp_path)
    done = run(bad, "extract-flow", "export", shards, bad / "jpegs")
    require_line(done, bad / "jpegs", errno.ENOSYS, files.OTHER_FOLDER)


@pytest.mark.full
def test_a_benchmark_names_the_folder_that_cannot_be_locked(bad: Path, tmp_path: Path) -> None:
    shards = copy_of_shards(tmp_path)
    words = ("--arch", "i3d", "--stream", "rgb", "--data", shards, "--train-split", "all")
    done = run(bad, "run-benchmark", *words, "--work-dir", bad / "run")
    require_line(done, bad / "run", errno.ENOSYS, files.OTHER_FOLDER)

    done = run(bad, "run-benchmark", "evaluate", bad / "run")
    assert done.stderr.startswith(f"error: {bad / 'run'} holds no run; train one"), done.stderr
    request = {"arch": "i3d", "stream": "rgb", "recipe": "sample", "data": str(shards)}
    splits = {"train_split": "all", "test_split": "all"}
    files.write_json(bad / "run" / RUN, Request.from_json(request | splits).as_json())
    done = run(bad, "run-benchmark", "evaluate", bad / "run")
    require_line(done, bad / "run", errno.ENOSYS, files.OTHER_FOLDER)

    video = tiny_clips() / "left" / "ann_left.mp4"
    cache = ("--cache-dir", bad / "cache", "--stream", "rgb")
    done = run(bad, "run-benchmark", "predict", video, "--init", "imagenet", *cache)
    require_line(done, bad / "cache" / "weights", errno.ENOSYS, files.OTHER_CACHE_DIR)

    weights = tmp_path / "rgb.pt"
    torch.save(build("i3d", "rgb").state_dict(), weights)
    networks = ("--init", weights, "--stream", "rgb", "--device", "cpu", "--tmp-dir", bad / "tmp")
    videos = (video, video.with_name("ben_left.mp4"))
    for verb, more in (("predict", ()), ("features", ("--out", tmp_path / "features"))):
        done = run(bad, "run-benchmark", verb, *videos, *networks, *more)  # one line for both
        require_line(done, bad / "tmp", errno.ENOSYS, files.OTHER_TMP_DIR)


READ_ONLY: dict[str, str] = {"BAD_IS_READ_ONLY": "1"}


def test_a_read_only_disk_is_one_line_too(bad: Path, table: Path, tmp_path: Path) -> None:
    words = (table, bad, "--source", f"dir:{tmp_path}")
    done = run(bad, "kinetics-download", *words, number=errno.EROFS, **READ_ONLY)
    require_line(done, bad, errno.EROFS, files.OTHER_FOLDER)

    scratch = (tmp_path / "out", "--tmp-dir", bad, "--method", "opencv-tvl1")
    done = run(bad, "extract-flow", tiny_clips(), *scratch, number=errno.EROFS, **READ_ONLY)
    require_line(done, bad, errno.EROFS, files.OTHER_TMP_DIR)


@pytest.mark.parametrize(
    ("number", "more"), [(errno.ENOSYS, {}), (errno.EIO, {}), (errno.EROFS, READ_ONLY)]
)
def test_what_only_reads_needs_no_lock(
    number: int,
    more: dict[str, str],
    bad: Path,
    table: Path,
    media_server: MediaServer,
    make_video: MakeVideo,
) -> None:
    out, cache = bad / "out", bad / "cache"
    clip = segment("whole000001")
    ask(out, [clip])
    tell(out, [real(out, clip, make_video(seconds=2, fps="25"))])
    done = run(bad, "kinetics-download", "verify", out, number=number, **more)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 clips are whole, 0 must be made again\n"
    assert f"{out} is read without a lock: " in done.stderr

    words = (table, out, "--source", media_server.template, "--cache-dir", cache)
    done = run(bad, "kinetics-download", *words, "--check", number=number, **more)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "more"),
    [(errno.ENOSYS, {}), (errno.EIO, {}), (errno.EROFS, {"BAD_IS_READ_ONLY": "1"})],
)
def test_a_dry_run_says_which_folder_cannot_be_locked_as_its_run_would(
    number: int,
    more: dict[str, str],
    bad: Path,
    table: Path,
    media_server: MediaServer,
    tmp_path: Path,
) -> None:
    words = (table, bad / "out", "--source", f"dir:{tmp_path}", "--dry-run")
    done = run(bad, "kinetics-download", *words, number=number, **more)
    require_line(done, bad / "out", number, files.OTHER_FOLDER)
    done = run(
        bad, "extract-flow", tiny_clips(), bad / "a" / "b", "--dry-run", number=number, **more
    )
    require_line(done, bad / "a" / "b", number, files.OTHER_FOLDER)

    scratch = (tmp_path / "out", "--tmp-dir", bad / "tmp", "--dry-run")
    for name, what in (("kinetics-download", table), ("extract-flow", tiny_clips())):
        source = ("--source", f"dir:{tmp_path}") if what == table else ()
        done = run(bad, name, what, *scratch, *source, number=number, **more)
        require_line(done, bad / "tmp", number, files.OTHER_TMP_DIR)

    cache = ("--source", media_server.template, "--cache-dir", bad / "cache", "--dry-run")
    done = run(bad, "kinetics-download", table, tmp_path / "out", *cache, number=number, **more)
    require_line(done, bad / "cache" / "pace", number, files.OTHER_CACHE_DIR)
    assert not list(bad.iterdir())
    assert not (tmp_path / "out").exists()


def test_a_check_finds_that_a_folder_cannot_be_locked(
    bad: Path, table: Path, tmp_path: Path
) -> None:
    words = (table, tmp_path / "out", "--source", f"dir:{tmp_path}", "--cache-dir", bad)
    done = run(bad, "kinetics-download", *words, "--check")
    assert done.returncode == 2
    said = f"missing --cache-dir {bad}: no file can be locked there (Function not implemented): "
    assert said + files.OTHER_FOLDER in done.stdout.splitlines()


def test_a_report_needs_no_lock(bad: Path) -> None:
    ask(bad, [segment("never000001")])
    done = run(bad, "kinetics-download", "report", bad)
    assert done.returncode == 0, done.stderr
