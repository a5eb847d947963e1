"""Files that are complete when they exist: publishing, locks, scratch folders, digests."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kinetics_tools.errors import OutError

# What a full, read-only or foreign disk answers. Anything else is a bug and stays a crash.
STORAGE_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
)


@contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path`; it becomes `path` only if the block succeeds.

    The scratch name starts with a dot, holds the process id (each name has one writer a process)
    and keeps the suffix, from which ffmpeg picks the container.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def move(scratch: Path, path: Path) -> None:
    """Give a finished scratch file its final name, across file systems if it must be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        scratch.replace(path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with publish(path) as beside:
            shutil.copyfile(scratch, beside)
        scratch.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never a half."""
    with publish(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON: sorted keys, one line feed at the end, the same bytes each time."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that one of our commands wrote.

    Raises:
        OutError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OutError(f"{path} is not JSON ({error}); remove it and run again") from error


def digest(value: Any) -> str:
    """SHA-256, in hex, of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256, in hex, of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def hold(out: Path, name: str = "0-of-1") -> Iterator[None]:
    """Hold the lock `name` of the folder `out` for the block. It ends with the process that has it.

    Raises:
        OutError: another run holds it; the message says which.
    """
    if out.exists() and not out.is_dir():
        raise OutError(f"{out} is not a folder; choose another OUT")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f".lock-{name}"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise OutError(
                f"{out} is in use by {holder} (part {name}); wait for it, or choose another folder"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait for and hold `path` as a lock file: for short steps that parts of a job do in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """Yield `root/.scratch/<host>-<pid>`, removed at the end of the block.

    Folders that dead processes of this host left behind are removed first. The owner holds a lock
    file in its folder, so a process id that is used again cannot keep an old folder alive.
    """
    home = root / ".scratch"
    host = socket.gethostname()
    for old in home.glob(f"{host}-*"):
        _remove_if_dead(old)
    mine = home / f"{host}-{os.getpid()}"
    mine.mkdir(parents=True, exist_ok=True)
    try:
        with (mine / ".owner").open("a") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            yield mine
    finally:
        shutil.rmtree(mine, ignore_errors=True)
        try:
            home.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise


def _remove_if_dead(folder: Path) -> None:
    try:
        with (folder / ".owner").open("a") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
    except FileNotFoundError:
        # Its owner is between mkdir and lock, or has just removed it.
        return
