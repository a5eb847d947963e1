"""Reading ahead: what comes slowly is fetched in a thread while what came before is worked on."""

import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Generic, TypeVar

T = TypeVar("T")
STOP_S = 2.0


def read_ahead(
    items: Generator[T | None, None, None],
    size: Callable[[T], int],
    *,
    max_items: int,
    max_bytes: int,
) -> Generator[T, None, None]:
    """Yield what a generator yields, while a thread runs it that far ahead.

    Args:
        items: run and closed in the thread. None is not passed on: it marks a moment at which the
            generator may be closed during work that gives nothing. What it raises is raised here,
            after the items before it.
        size: of an item, in bytes.
        max_items: how many may wait here.
        max_bytes: how large those may be together. One more item is in the thread's hands.
    """
    ahead = _Ahead(size, max_items, max_bytes)
    thread = threading.Thread(target=ahead.fill, args=(items,), daemon=True, name="read-ahead")
    thread.start()
    try:
        while ahead.wait():
            yield ahead.take()
    finally:
        ahead.stop()
        thread.join(STOP_S)  # one that waits for a dead server ends by itself


class _Ahead(Generic[T]):
    """What lies between the two threads."""

    def __init__(self, size: Callable[[T], int], max_items: int, max_bytes: int) -> None:
        self._size = size
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._waiting: deque[tuple[T, int]] = deque()
        self._num_bytes = 0
        self._is_stopped = False
        self._is_through = False
        self._error: BaseException | None = None

    def fill(self, items: Generator[T | None, None, None]) -> None:
        """What the thread does."""
        try:
            with closing(items):
                for item in items:
                    if not self._put(item):
                        break
        except BaseException as error:  # noqa: BLE001 - carried to the other thread, which raises it
            self._error = error
        finally:
            with self._changed:
                self._is_through = True
                self._changed.notify_all()

    def _put(self, item: T | None) -> bool:
        """Add an item when there is room; whether there is somebody to take more."""
        num_bytes = 0 if item is None else self._size(item)
        with self._changed:
            if item is not None:
                self._changed.wait_for(lambda: self._is_stopped or self._has_room(num_bytes))
                self._waiting.append((item, num_bytes))
                self._num_bytes += num_bytes
                self._changed.notify_all()
            return not self._is_stopped

    def _has_room(self, num_bytes: int) -> bool:
        if not self._waiting:
            return True
        return (
            len(self._waiting) < self._max_items and self._num_bytes + num_bytes <= self._max_bytes
        )

    def wait(self) -> bool:
        """Wait for the next item; whether there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_through)
            if not self._waiting and self._error is not None:
                raise self._error
            return bool(self._waiting)

    def take(self) -> T:
        """The next item."""
        with self._changed:
            item, num_bytes = self._waiting.popleft()
            self._num_bytes -= num_bytes
            self._changed.notify_all()
            return item

    def stop(self) -> None:
        """Say that nobody takes any more."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
