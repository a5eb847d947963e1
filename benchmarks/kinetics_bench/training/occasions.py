"""When a training writes its checkpoint: after so many steps or seconds, and when a signal asks.

SIGUSR1 asks for a checkpoint after the step that is computed just now. SIGTERM asks for one too,
and the training then ends as it does without one; a second SIGTERM ends it at once. Batch systems
send them before they kill.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Saving:
    """How often a checkpoint is written, besides those at the end of each epoch.

    Attributes:
        steps: so many optimizer steps after the one before; 0: any number.
        seconds: so long after the one before, at least; 0: any time.
        keep: how many stay: checkpoint.pt, and those before it as checkpoint-STEP.pt.
    """

    steps: int = 0
    seconds: float = 0.0
    keep: int = 1


def saving_named(every: str, keep: int) -> Saving:
    """The saving of `--checkpoint-every` (steps, or minutes as `10min`) and how many stay."""
    if every.endswith("min"):
        return Saving(seconds=60 * float(every.removesuffix("min")), keep=keep)
    return Saving(steps=int(every), keep=keep)


EVERY_TEN_MINUTES: Final = Saving(seconds=600.0)


class Occasions:
    """What asks this process for a checkpoint."""

    def __init__(self, saving: Saving) -> None:
        """Begin to count now."""
        self._saving = saving
        self._asked = False
        self._stopping = False
        self._before: dict[int, Any] = {}
        self.saved()

    def saved(self) -> None:
        """Count from now on: a checkpoint was written."""
        self._asked = False
        self._steps = 0
        self._began_s = time.monotonic()

    def after_step(self, *, is_main: bool) -> tuple[bool, bool]:
        """Whether this process asks for a checkpoint after this step, and whether to end then.

        Args:
            is_main: only one of several processes looks at the clock.
        """
        self._steps += 1
        saving = self._saving
        is_due = 0 < saving.steps <= self._steps or (
            is_main and 0 < saving.seconds <= time.monotonic() - self._began_s
        )
        return self._asked or self._stopping or is_due, self._stopping

    def stop(self) -> None:
        """End as SIGTERM ends the process without this class."""
        self._restore()
        self._stopping = False
        signal.raise_signal(signal.SIGTERM)

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """In this block the signals ask; in other threads than the main one there are none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for number in (signal.SIGTERM, signal.SIGUSR1):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            self._restore()
        if self._stopping:  # it came after the last step
            signal.raise_signal(signal.SIGTERM)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self._asked = True
        elif self._stopping:
            self.stop()
        else:
            self._stopping = True

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
