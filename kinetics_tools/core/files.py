"""Files that are complete when they exist: publishing, locks, scratch folders, digests."""

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

# What a full, read-only or foreign disk answers. Anything else is a bug and stays a crash.
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
STORAGE_ERRNOS = FULL_ERRNOS | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
# A path that cannot be: below a file, a folder in place of a file, too long, a loop of links.
PATH_ERRNOS = frozenset(
    {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
)


@contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path`; it becomes `path` only if the block succeeds.

    The scratch name starts with a dot, names the process (each name has one writer a process) and
    keeps the suffix, from which ffmpeg picks the container.
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
    """Remove, anywhere below `folder`, what killed processes of this host were publishing."""
    prefix = _scratch_prefix()
    for leftover in folder.rglob(f"{prefix}*"):
        pid = leftover.name.removeprefix(prefix).partition("-")[0]
        if pid.isdecimal() and not is_running(int(pid)):
            leftover.unlink(missing_ok=True)


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """In this block an OSError that names no file gets this one: a full disk does not say where."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def move(scratch: Path, path: Path) -> None:
    """Give a finished scratch file its final name, across file systems if it must be."""
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


def make_folder(folder: Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        OutError: it is a file, or its file system takes no folders.
    """
    if folder.exists() and not folder.is_dir():
        raise OutError(f"{folder} is not a folder; choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # such as below /proc
        raise OutError(f"{folder} cannot be made; choose another folder") from error
    return folder


@contextmanager
def hold_lock(out: Path, part: str = "0-of-1") -> Iterator[None]:
    """Hold a part's lock of the folder `out` for the block. It ends with the process that has it.

    Args:
        out: made if it is not there.
        part: "I-of-N". Parts of one N may run together, parts of another N may not beside them.

    Raises:
        OutError: another run holds it; the message says which. Or it cannot be made.
    """
    make_folder(out)
    with _hold_partition(out, part), _hold_part(out, part):
        yield


@contextmanager
def _hold_partition(out: Path, part: str) -> Iterator[None]:
    """Share the lock on how many parts there are; the first one there says how many."""
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
    """Wait for and hold `path` as a lock file: for short steps that parts of a job do in turn."""
    make_folder(path.parent)
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
    mine = home / f"{host}-{os.getpid()}"
    # Parts start and end at any time: between its mkdir and its lock a folder looks dead.
    in_turn = root / ".lock-scratch"
    with ExitStack() as stack:
        with file_lock(in_turn):
            for old in home.glob(f"{host}-*"):
                _remove_if_dead(old)
            mine.mkdir(parents=True, exist_ok=True)
            owner = stack.enter_context((mine / ".owner").open("a"))
            fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            yield mine
        finally:
            with file_lock(in_turn):
                shutil.rmtree(mine, ignore_errors=True)
                if not any(home.iterdir()):
                    home.rmdir()


def _remove_if_dead(folder: Path) -> None:
    try:
        with (folder / ".owner").open("a") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
