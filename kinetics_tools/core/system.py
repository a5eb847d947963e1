"""The machine that this process runs on: its processors, the folder for caches."""

import os
from pathlib import Path

from kinetics_tools.core.errors import KineticsError


def cache_dir(chosen: Path | None = None) -> Path:
    """The folder of what outlives a run: the chosen one, else ours among the user's caches.

    Raises:
        KineticsError: the user has no home folder.
    """
    if chosen is not None:
        return chosen
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if root.is_absolute():  # by the XDG rules another one is to be ignored
        return root / "kinetics-tools"
    try:
        return Path.home() / ".cache" / "kinetics-tools"
    except RuntimeError as error:
        raise KineticsError("there is no home folder for a cache; give --cache-dir DIR") from error


def num_processors() -> int:
    """How many processors this process may use: it is bound to them, or Slurm's task has them."""
    bound = len(os.sched_getaffinity(0))
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(bound, int(granted)) if granted.isdecimal() else bound
