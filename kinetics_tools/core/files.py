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
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, Self, TypeVar

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

# Errors of what the machine allows a process, and what the user can do.
LIMITS = {
    errno.EMFILE: "allow more open files (ulimit -n 1024)",
    errno.ENFILE: "the whole machine has no more; end other processes",
    errno.EAGAIN: "give fewer --jobs, or allow more processes (ulimit -u)",
    errno.ENOMEM: "give fewer --jobs",
}

COPY_BYTES = 2**20
MAX_JSON_BYTES = 2**28  # of a file that is read whole
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
            scratch.unlink(missing_ok=True)  # a link there would be followed
            yield scratch
            if path.is_dir() and not path.is_symlink():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _scratch_prefix() -> str:
    return f".part-{socket.gethostname()}-"


def remove_leftovers(folder: Path, *, deep: bool = True) -> None:
    """Remove the scratch files of processes of this host that ended.

    Args:
        folder: where they are.
        deep: look anywhere below `folder` too.
    """
    prefix = _scratch_prefix()
    for leftover in (folder.rglob if deep else folder.glob)(f"{prefix}*"):
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


@contextmanager
def open_own(path: Path, mode: str) -> Iterator[Any]:
    """Open a file that we made, or make it, to write: a link or a device there is refused.

    Args:
        path: of the file.
        mode: as for `open`; text is UTF-8.

    Raises:
        OutError: it is a link, a folder, a device or a pipe.
        OSError: it cannot be opened.
    """

    foreign = OutError(f"{path} is not a file of ours: a device or a pipe; remove it")

    def own(name: str, flags: int) -> int:
        try:
            fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a pipe without a reader, a device that is not there
                raise foreign from error
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise foreign
        return fd

    if path.is_symlink():  # said by O_NOFOLLOW, as by a loop of links above it, with ELOOP
        raise OutError(f"{path} is a link, through which another file would be written; remove it")
    with open(path, mode, encoding=None if "b" in mode else "utf-8", opener=own) as file:
        yield file


def require_file(path: Path) -> None:
    """Check that a path to be read is a file: a pipe would be waited for, a device has no end.

    Raises:
        OutError: it is a folder, a device, a pipe, or a link to nothing.
        OSError: there is none.
    """
    if path.is_symlink() and not path.exists():
        raise OutError(f"{path} is a link to nothing; remove it")
    if not stat.S_ISREG(path.stat().st_mode):
        raise OutError(f"{path} is not a file: a folder, a device or a pipe; move it away")


def refuse_links(out: Path) -> None:
    """Check that no folder in `out`, three levels deep, is a link to a folder elsewhere.

    Who gave us `out` may have put one there, and a run would write through it. `out` itself may be
    a link.

    Raises:
        OutError: it is.
    """
    root = real_path(out)
    folders = [out]
    for _ in range(3):  # as deep as our folders are: clips/SPLIT/LABEL
        entries = [entry for folder in folders for entry in _entries(folder)]
        for entry in entries:
            path = Path(entry)  # its is_dir is False for a loop of links
            if entry.is_symlink() and path.is_dir() and not real_path(path).is_relative_to(root):
                raise OutError(
                    f"{entry.path} is a link to a folder elsewhere, which a run does not write "
                    "through; replace it by a folder, or by a mount (mount --bind)"
                )
        folders = [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []  # another run's scratch; lost+found, where a run cannot write either


def move(scratch: Path, path: Path) -> None:
    """Rename a finished scratch file; on another file system, copy it."""
    make_folder(path.parent)
    try:
        scratch.replace(path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with publish(path) as beside:
            copy_file(scratch, beside)
        scratch.unlink()


def copy_file(source: Path, copy: Path) -> None:
    """Copy the bytes of a file. Errors of writing name `copy`: the source is not their cause."""
    with source.open("rb") as read, name_in_errors(copy), copy.open("wb") as written:
        shutil.copyfileobj(read, written, COPY_BYTES)


def write_text(path: Path, text: str) -> None:
    """Write `text` so that readers see the old file or the new one, never a part of it."""
    with publish(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON with sorted keys: equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path, advice: str = "move it away and run again") -> Any:
    """Read a JSON file that one of our commands wrote.

    Args:
        path: of the file.
        advice: what repairs it.

    Raises:
        FileNotFoundError: there is none.
        OutError: the file is not JSON (empty, cut off, without its contents after a power loss), or
            is larger than any of ours.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_JSON_BYTES:
        raise OutError(f"{path} is not a file of ours: a device, or too large; {advice}")
    return parse_json(path.read_bytes(), path, advice)


def parse_json(data: bytes, path: object, advice: str) -> Any:
    """The value of a JSON file: `read_json` of its bytes, where they come from elsewhere."""
    try:
        text = data.decode()
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a character, which could not be written again
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise OutError(f"{path} is not JSON ({error}); {advice}") from error


class Folder(Protocol):
    """A path, or the address of a folder elsewhere."""

    def joinpath(self, *names: str) -> Self:
        """The path of these names below it."""


F = TypeVar("F", bound=Folder)


def below(root: F, *names: str) -> F:
    """The path of these names below `root`: the one way to make a path of what a file says.

    Raises:
        ValueError: a name is not that of one file or folder, so the path might lead elsewhere.
    """
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"{name!r} is not the name of a file or folder")
    return root.joinpath(*names)


def digest(value: Any) -> str:
    """SHA-256, in hex, of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256, in hex, of a file's bytes."""
    with name_in_errors(path), path.open("rb") as file:
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


WHOLE_PART = "0-of-1"
PARTS_LOCK = ".lock-parts"  # says how many parts a running job has
# What the user can do where files cannot be locked.
OTHER_FOLDER = "choose a folder on another file system"
OTHER_TMP_DIR = "give --tmp-dir a folder on another file system"
OTHER_CACHE_DIR = "give --cache-dir a folder on another file system"


@contextmanager
def hold_lock(out: Path, part: str = WHOLE_PART) -> Iterator[None]:
    """Hold the lock of one part of the folder `out` for the block, at most while the process lives.

    Args:
        out: created unless it exists.
        part: "I-of-N". Parts with the same N may run together, parts with different N may not.

    Raises:
        NoLocksError: its file system has no locks, or is read-only.
        OutError: another run holds the lock (the message says which), `out` cannot be created, or
            a folder in it is a link to one elsewhere.
    """
    make_folder(out)
    with _hold_partition(out, part), _hold_part(out, part):
        refuse_links(out)
        yield


def require_free(out: Path, part: str = WHOLE_PART) -> None:
    """Check that `hold_lock` would get the lock now; nothing stays in `out`, which is not created.

    Raises:
        NoLocksError: its file system has no locks, or is read-only.
        OutError: another run holds the lock, or `out` cannot be created.
    """
    require_locks(out)
    with ExitStack() as stack:
        partition, own = (
            stack.enter_context(_open_lock(path, mode="r+")) if path.exists() else None
            for path in (out / PARTS_LOCK, out / f".lock-{part}")
        )
        refuse_links(out)
        if partition is not None:
            with contextlib.suppress(BlockingIOError):
                _lock(partition, fcntl.LOCK_EX | fcntl.LOCK_NB, out)
                return  # no part is running
            _require_same_count(partition, out, part)
        if own is not None:
            _lock_part(own, out, part)


@contextmanager
def hold_lock_if_any(out: Path) -> Iterator[None]:
    """The lock of the whole folder `out`, for a command that reads it.

    Where the folder can have no lock, the block runs without: no run of ours can fill it there.

    Raises:
        OutError: a run holds the lock.
    """
    with ExitStack() as stack:
        try:
            make_folder(out)
            stack.enter_context(_hold_partition(out, WHOLE_PART))
            stack.enter_context(_hold_part(out, WHOLE_PART))
        except (NoLocksError, PermissionError) as error:
            logger.warning("%s is read without a lock: %s", out, error)
        yield


@contextmanager
def _hold_partition(out: Path, part: str) -> Iterator[None]:
    """Share the lock on the number of parts; the first part to hold it writes the number."""
    with _open_lock(out / PARTS_LOCK) as file:
        with contextlib.suppress(BlockingIOError):
            _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, out)
            file.truncate(0)
            file.write(_count(part))
            file.flush()
        _lock(file, fcntl.LOCK_SH, out)
        _require_same_count(file, out, part)
        yield


def _count(part: str) -> str:
    return part.rpartition("-")[2]


def _require_same_count(file: IO[str], out: Path, part: str) -> None:
    """Raise OutError if the parts that run are of another number."""
    file.seek(0)
    running = file.read()
    if running != _count(part):
        raise OutError(
            f"{out} is in use by a job of {running} parts, this one is of {_count(part)}; "
            "wait for it, or choose another folder"
        )


@contextmanager
def _hold_part(out: Path, name: str) -> Iterator[None]:
    with _open_lock(out / f".lock-{name}") as file:
        _lock_part(file, out, name)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _lock_part(file: IO[str], out: Path, name: str) -> None:
    try:
        _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, out)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise OutError(
            f"{out} is in use by {holder} (part {name}); wait for it, or choose another folder"
        ) from error


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


def require_locks(folder: Path, remedy: str = OTHER_FOLDER) -> None:
    """Check that `folder` exists or can be made, and files in it locked; nothing stays there.

    Where it does not exist, the nearest folder above it is tried. `remedy` is as for `file_lock`.

    Raises:
        NoLocksError: its file system has no locks, or is read-only.
        OutError: it cannot be made.
        OSError: no file can be made.
    """
    nearest = nearest_existing(folder)
    if not nearest.is_dir():
        if nearest == folder.absolute():
            make_folder(folder)  # raises, and says why
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(dir=nearest))
        except FileNotFoundError as error:  # as below /proc
            raise OutError(f"{folder} cannot be made; choose another folder") from error
        except OSError as error:
            if error.errno in FULL_ERRNOS | ACCESS_ERRNOS | PATH_ERRNOS:
                raise OSError(error.errno, error.strerror, str(nearest)) from error
            raise _no_locks(folder, error, remedy) from error
        _lock(file, fcntl.LOCK_EX, folder, remedy)


def real_path(path: Path) -> Path:
    """The absolute path without links. A loop of links stays: whoever opens it gets an error."""
    return Path(os.path.realpath(path))


def nearest_existing(folder: Path) -> Path:
    """The absolute path of the folder, or of the nearest one above it that exists.

    Raises:
        OSError: no folder can have that path.
    """
    absolute = folder.absolute()
    if not os.path.lexists(absolute):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            absolute.lstat()
    return next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))


@contextmanager
def _open_lock(path: Path, remedy: str = OTHER_FOLDER, *, mode: str = "a+") -> Iterator[IO[str]]:
    """Open a lock file for the block; it is not locked yet."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_own(path, mode))
        except OSError as error:
            if error.errno in FULL_ERRNOS | ACCESS_ERRNOS | PATH_ERRNOS | LIMITS.keys():
                raise  # these concern this file, whose name they have, or this process
            raise _no_locks(path.parent, error, remedy) from error
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
    if home.is_symlink():
        raise OutError(f"{home} is a link to another folder; remove it")
    host = socket.gethostname()
    mine = home / f"{host}-{os.getpid()}"
    # Parts start and end at any time, and a new folder without a lock yet looks abandoned.
    lock = root / ".lock-scratch"
    owner = ExitStack()
    try:
        with file_lock(lock, remedy):
            for old in home.glob(f"{host}-*"):
                if not old.is_symlink():
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
