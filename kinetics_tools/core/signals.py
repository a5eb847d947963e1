"""The signals that stop a command, held back where one in the middle would leave things behind."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Ctrl-C; Ctrl-\; what batch systems send when time is up; a terminal or connection that is closed.
STOPPING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held() -> Iterator[None]:
    """In this block the signals in STOPPING wait; at its end their handlers are called.

    A process that is started in the block begins with them blocked; see `ignore_in_worker`.
    """
    waiting: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        waiting.append(number)

    # Python runs handlers in the main thread only, whichever thread the system interrupts.
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in STOPPING} if is_main else {}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            if handler is not None:  # None: one that is not Python's
                signal.signal(number, handler)
        for missed in waiting:
            signal.raise_signal(missed)


def ignore_in_worker() -> None:
    """Ignore them in a process that was started in `held`: the one that started it ends it."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
