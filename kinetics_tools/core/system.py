"""The machine that this process runs on: processors, processes, the clock, the folder for caches.

What only Linux has is asked for here, and each function says what it does elsewhere.
"""

import contextlib
import ctypes
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kinetics_tools.core.errors import KineticsError

_CPU_INFO = Path("/proc/cpuinfo")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
END_S = 30.0  # how long killed processes may take to end, as on a disk that does not answer
logger = logging.getLogger(__name__)


_LIBRARIES = {
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
}


def cache_dir(chosen: Path | None = None) -> Path:
    """The folder for files that outlive a run: `chosen`, else ours among the user's caches.

    Raises:
        KineticsError: the user has no home folder.
    """
    if chosen is not None:
        return chosen
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if root.is_absolute():  # the XDG rules say to ignore any other
        return root / "kinetics-tools"
    try:
        return Path.home() / ".cache" / "kinetics-tools"
    except RuntimeError as error:
        raise KineticsError("there is no home folder for a cache; give --cache-dir DIR") from error


def contain_libraries(cache: Path) -> None:
    """Let libraries that are imported later keep their files in `cache`, as children inherit it.

    Else they write into the user's home and into $TMPDIR, where nothing of ours looks for it.
    """
    for name, folder in _LIBRARIES.items():
        os.environ.setdefault(name, str(cache / folder))


def num_processors() -> int:
    """The number of processors that this process may use.

    It is bound to them (Linux), else all of the machine's; at most as many as Slurm gave the task.
    """
    bound = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        bound = len(os.sched_getaffinity(0))
    granted = re.fullmatch("0*([1-9][0-9]{0,8})", os.environ.get("SLURM_CPUS_PER_TASK", ""))
    return min(bound, int(granted[1])) if granted else bound


def cpu_flags() -> frozenset[str]:
    """What the processor can do, in Linux's words, such as "avx512_bf16"; empty elsewhere."""
    if not _CPU_INFO.exists():
        return frozenset()
    return frozenset(_CPU_INFO.read_text(errors="replace").split())


def is_running(pid: int) -> bool:
    """Whether a process of this host has the id `pid`."""
    try:
        os.kill(pid, 0)  # sends nothing
    except PermissionError:
        return True  # another user's
    except (ProcessLookupError, OverflowError):
        return False
    return True


def open_memory_file() -> int:
    """Open a file in memory, without a name: its descriptor. Only the memory limits its size.

    Elsewhere than on Linux it is a temporary file without a name.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("kinetics-tools")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@contextmanager
def own_symbols_first() -> Iterator[None]:
    """Libraries loaded in the block use their own functions before those of other libraries.

    Only on Linux, where libraries that contain the same code can disturb each other.
    """
    before = sys.getdlopenflags()
    sys.setdlopenflags(before | getattr(os, "RTLD_DEEPBIND", 0))
    try:
        yield
    finally:
        sys.setdlopenflags(before)


def adopt_orphans() -> None:
    """From now on, processes whose parent ends become children of this one, which can await them.

    Of all processes below this one, on Linux. Elsewhere they become children of the system's first
    process, which takes note of their ends; on Linux it may be a container's, which does not.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def await_group(group: int) -> None:
    """Return when no process is left in a group that was killed.

    An orphan is in its group until its new parent has taken note of its end: this process, or the
    system's first one.
    """
    end = time.monotonic() + END_S
    while time.monotonic() < end:
        with contextlib.suppress(ChildProcessError):  # this process has no child there
            while os.waitpid(-group, os.WNOHANG) != (0, 0):
                pass
        try:
            os.killpg(group, 0)  # sends nothing
        except (ProcessLookupError, PermissionError):  # the latter is macOS, of dead ones
            return
        time.sleep(0.005)
    logger.warning("killed processes of group %d have not ended after %g s", group, END_S)


def boot_id() -> str:
    """The name of this boot of the host; empty where the system names none."""
    return _BOOT_ID.read_text(encoding="ascii").strip() if _has_boot_clock() else ""


def boot_time_s() -> float:
    """Seconds on a clock that all processes of the host share.

    They count from the boot that `boot_id` names, also while the host sleeps, and setting the wall
    clock does not move them. Where no boot is named, it is the wall clock: the only one that does
    not start over at a reboot.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) if _has_boot_clock() else time.time()


def _has_boot_clock() -> bool:
    return hasattr(time, "CLOCK_BOOTTIME") and _BOOT_ID.exists()
