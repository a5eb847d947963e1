"""The lock of a run's folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from kinetics_tools.core.files import hold_lock, remove_leftovers


@contextlib.contextmanager
def locked(work_dir: Path) -> Iterator[None]:
    """Hold the lock of a work-dir for the block, without what killed runs left in it.

    With torchrun the first process holds it for all.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with hold_lock(work_dir):
        remove_leftovers(work_dir)
        yield
