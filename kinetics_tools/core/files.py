"""Files that are complete when they exist; locks, scratch folders, JSON and digests."""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

from kinetics_tools.core import signals
from kinetics_tools.core.errors import OutError
from kinetics_tools.core.system import is_running

logger = logging.getLogger(__name__)
# Errors of a full, read-only or broken disk (ESTALE: its server has lost the file), and of missing
# permissions. Any other is a bug and crashes.
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
ACCESS_ERRNOS = frozenset({errno.EACCES, errno.EPERM})
STORAGE_ERRNOS = FULL_ERRNOS | ACCESS_ERRNOS | {errno.EROFS, errno.EIO, errno.ESTALE}
# Errors of a path that cannot exist: below a file, too long, a loop of links, a folder as a file.
PATH_ERRNOS = frozenset(
    {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
)

_REMOVALS = 20
_REMOVAL_PAUSE_S = 0.1


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


def read_json(path: Path, advice: str = "remove it and run again") -> Any:
    """Read a JSON file that one of our commands wrote.

    Args:
        path: of the file.
        advice: what repairs it.

    Raises:
        OutError: the file is not JSON: empty, cut off, or without its contents after a power loss.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise OutError(f"{path} is not JSON ({error}); {advice}") from error


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


class NoLocksError(OutError):
    """Files in a folder cannot be locked: an NFS or Lustre without locks, a read-only disk."""


# What the user can do then.
OTHER_FOLDER = "choose a folder on another file system"
OTHER_TMP_DIR = "give --tmp-dir a folder on another file system"
OTHER_CACHE_DIR = "give --cache-dir a folder on another file system"


@contextmanager
def hold_lock(out: Path, part: str = "0-of-1") -> Iterator[None]:
    """Hold the lock of one part of the folder `out` for the block, at most while the process lives.

    Args:
        out: created unless it exists.
        part: "I-of-N". Parts with the same N may run together, parts with different N may not.

    Raises:
        NoLocksError: its file system has no locks, or is read-only.
        OutError: another run holds the lock (the message says which), or `out` cannot be created.
    """
    make_folder(out)
    with _hold_partition(out, part), _hold_part(out, part):
        yield


@contextmanager
def hold_lock_if_any(out: Path) -> Iterator[None]:
    """The lock of the whole folder `out`, for a command that reads it.

    Where the folder can have no lock, the block runs without: no run of ours can fill it there.

    Raises:
        OutError: a run holds the lock.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(out))
        except (NoLocksError, PermissionError) as error:
            logger.warning("%s is read without a lock: %s", out, error)
        yield


@contextmanager
def _hold_partition(out: Path, part: str) -> Iterator[None]:
    """Share the lock on the number of parts; the first part to hold it writes the number."""
    count = part.rpartition("-")[2]
    with _open_lock(out / ".lock-parts") as file:
        with contextlib.suppress(BlockingIOError):
            _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, out)
            file.truncate(0)
            file.write(count)
            file.flush()
        _lock(file, fcntl.LOCK_SH, out)
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
    with _open_lock(out / f".lock-{name}") as file:
        try:
            _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, out)
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
def file_lock(path: Path, remedy: str = OTHER_FOLDER) -> Iterator[None]:
    """Wait for the lock file `path` and hold it for the block: for short critical sections.

    Args:
        path: created unless it exists.
        remedy: what the user can do where the folder can have no locks.

    Raises:
        NoLocksError: its file system has no locks, or is read-only.
    """
    make_folder(path.parent)
    with _open_lock(path, remedy) as file:
        _lock(file, fcntl.LOCK_EX, path.parent, remedy)
        yield


def require_locks(folder: Path) -> None:
    """Check that files in `folder` can be made and locked; nothing stays there.

    Raises:
        NoLocksError: its file system has no locks.
        OSError: no file can be made.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        _lock(file, fcntl.LOCK_EX, folder)


@contextmanager
def _open_lock(path: Path, remedy: str = OTHER_FOLDER) -> Iterator[TextIO]:
    """Open a lock file for the block; it is not locked yet."""
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        if error.errno in FULL_ERRNOS | ACCESS_ERRNOS | PATH_ERRNOS:
            raise  # these concern this file, whose name they have
        raise _no_locks(path.parent, error, remedy) from error
    with file:
        yield file


def _lock(file: IO[Any], operation: int, folder: Path, remedy: str = OTHER_FOLDER) -> None:
    """Lock an open file in `folder`: the only call of flock.

    Raises:
        BlockingIOError: another process holds the lock, and `operation` does not wait for it.
        NoLocksError: the file system has no locks, or none now.
    """
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        raise _no_locks(folder, error, remedy) from error


def _no_locks(folder: Path, error: OSError, remedy: str) -> NoLocksError:
    return NoLocksError(f"{folder}: no file can be locked there ({error.strerror}); {remedy}")


@contextmanager
def scratch_folder(root: Path, remedy: str = OTHER_TMP_DIR) -> Iterator[Path]:
    """Yield `root/.scratch/<host>-<pid>`, removed at the end of the block.

    Folders left by processes of this host that ended are removed first. The owner holds a lock
    file in its folder, so an old folder is removed even when its process id is in use again.
    `remedy` is as for `file_lock`.

    Raises:
        NoLocksError: the file system of `root` has no locks, or is read-only.
    """
    home = root / ".scratch"
    host = socket.gethostname()
    mine = home / f"{host}-{os.getpid()}"
    # Parts start and end at any time, and a new folder without a lock yet looks abandoned.
    lock = root / ".lock-scratch"
    owner = ExitStack()
    try:
        with file_lock(lock, remedy):
            for old in home.glob(f"{host}-*"):
                _remove_if_abandoned(old, remedy)
            mine.mkdir(parents=True, exist_ok=True)
            file = owner.enter_context(_open_lock(mine / ".owner", remedy))
            _lock(file, fcntl.LOCK_EX, mine, remedy)
        yield mine
    finally:
        with signals.held(), file_lock(lock, remedy):
            owner.close()  # NFS keeps the file of an open one, and so the folder
            _remove_folder(mine)
            with contextlib.suppress(OSError):  # folders of other runs are in it
                home.rmdir()


def _remove_if_abandoned(folder: Path, remedy: str = OTHER_TMP_DIR) -> None:
    try:
        with _open_lock(folder / ".owner", remedy) as owner:
            _lock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB, folder, remedy)
    except BlockingIOError:
        return
    _remove_folder(folder)


def _remove_folder(folder: Path) -> None:
    """Remove a folder in which a thread, or a process that is just dying, may still make files."""
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_REMOVAL_PAUSE_S)
    logger.warning("%s could not be removed; the next run tries again", folder)
