"""The machine that this process runs on: processors, processes, the clock, the folder for caches.

What only Linux has is asked for here, and each function says what it does elsewhere.
"""

import ctypes
import os
import sys
import time
from pathlib import Path

from kinetics_tools.core.errors import KineticsError

_CPU_INFO = Path("/proc/cpuinfo")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h


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


def num_processors() -> int:
    """The number of processors that this process may use.

    It is bound to them (Linux), else all of the machine's; at most as many as Slurm gave the task.
    """
    bound = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        bound = len(os.sched_getaffinity(0))
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(bound, int(granted)) if granted.isdecimal() else bound


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


def adopt_orphans() -> None:
    """From now on, processes whose parent ends become children of this one, which can await them.

    Of all processes below this one, on Linux. Elsewhere they become children of the system's first
    process, which takes note of their ends; on Linux it may be a container's, which does not.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


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
