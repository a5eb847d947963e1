"""Files that are complete when they exist; locks, scratch folders, JSON and digests."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kinetics_tools.core.errors import OutError
from kinetics_tools.core.system import is_running

# Errors of a full or read-only disk, and of missing permissions. Any other is a bug and crashes.
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
STORAGE_ERRNOS = FULL_ERRNOS | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
# Errors of a path that cannot exist: below a file, too long, a loop of links, a folder as a file.
PATH_ERRNOS = frozenset(
    {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
)


@contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path`; it becomes `path` only if the block succeeds.

    The scratch name starts with a dot, contains the process id (a process must not publish one path
    twice at the same time) and keeps the suffix, from which ffmpeg picks the container.
    """
    make_folder(path.parent)
    scratch = path.with_name(f"{_scratch_prefix()}{os.getpid()}-{path.name}")
    try:
        with name_in_errors(path):
            yield scratch
            scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _scratch_prefix() -> str:
    return f".part-{socket.gethostname()}-"


def remove_leftovers(folder: Path) -> None:
    """Remove, anywhere below `folder`, the scratch files of processes of this host that ended."""
    prefix = _scratch_prefix()
    for leftover in folder.rglob(f"{prefix}*"):
        pid = leftover.name.removeprefix(prefix).partition("-")[0]
        if pid.isdecimal() and not is_running(int(pid)):
            leftover.unlink(missing_ok=True)


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """In this block an OSError without a file name, as of a full disk, gets the name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def move(scratch: Path, path: Path) -> None:
    """Rename a finished scratch file; on another file system, copy it."""
    make_folder(path.parent)
    try:
        scratch.replace(path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with publish(path) as beside:
            shutil.copyfile(scratch, beside)
        scratch.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` so that readers see the old file or the new one, never a part of it."""
    with publish(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON with sorted keys: equal values give equal bytes."""
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


def make_folder(folder: Path) -> Path:
    """Create the folder unless it exists; returns it.

    Raises:
        OutError: it is a file, or its file system allows no folders.
    """
    if folder.exists() and not folder.is_dir():
        raise OutError(f"{folder} is not a folder; choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # as below /proc
        raise OutError(f"{folder} cannot be made; choose another folder") from error
    return folder


@contextmanager
def hold_lock(out: Path, part: str = "0-of-1") -> Iterator[None]:
    """Hold the lock of one part of the folder `out` for the block, at most while the process lives.

    Args:
        out: created unless it exists.
        part: "I-of-N". Parts with the same N may run together, parts with different N may not.

    Raises:
        OutError: another run holds the lock (the message says which), or `out` cannot be created.
    """
    make_folder(out)
    with _hold_partition(out, part), _hold_part(out, part):
        yield


@contextmanager
def _hold_partition(out: Path, part: str) -> Iterator[None]:
    """Share the lock on the number of parts; the first part to hold it writes the number."""
    count = part.rpartition("-")[2]
    with (out / ".lock-parts").open("a+", encoding="utf-8") as file:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(count)
            file.flush()
        fcntl.flock(file, fcntl.LOCK_SH)
        file.seek(0)
        running = file.read()
        if running != count:
            raise OutError(
                f"{out} is in use by a job of {running} parts, this one is of {count}; "
                "wait for it, or choose another folder"
            )
        yield


@contextmanager
def _hold_part(out: Path, name: str) -> Iterator[None]:
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
def file_lock(path: Path) -> Iterator[None]:
    """Wait for the lock file `path` and hold it for the block: for short critical sections."""
    make_folder(path.parent)
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """Yield `root/.scratch/<host>-<pid>`, removed at the end of the block.

    Folders left by processes of this host that ended are removed first. The owner holds a lock
    file in its folder, so an old folder is removed even when its process id is in use again.
    """
    home = root / ".scratch"
    host = socket.gethostname()
    mine = home / f"{host}-{os.getpid()}"
    # Parts start and end at any time, and a new folder without a lock yet looks abandoned.
    lock = root / ".lock-scratch"
    with ExitStack() as stack:
        with file_lock(lock):
            for old in home.glob(f"{host}-*"):
                _remove_if_abandoned(old)
            mine.mkdir(parents=True, exist_ok=True)
            owner = stack.enter_context((mine / ".owner").open("a"))
            fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            yield mine
        finally:
            with file_lock(lock):
                shutil.rmtree(mine, ignore_errors=True)
                if not any(home.iterdir()):
                    home.rmdir()


def _remove_if_abandoned(folder: Path) -> None:
    try:
        with (folder / ".owner").open("a") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
