"""Slow iterators are read in a thread while earlier items are worked on.

`prefetch` reads ahead up to a limit; a `BackgroundReader` reads only what it is asked for. A reader
that stops waits at most STOP_S for the thread: a thread that waits for a dead server ends later,
by itself, and closes the iterator there.
"""

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")
STOP_S = 2.0


class Mailbox(Generic[T]):
    """What other threads leave for this one.

    Attributes:
        wakeup_fd: a file descriptor, readable while something lies in the box: it can be waited for
            beside pipes.
    """

    def __init__(self) -> None:
        self.wakeup_fd, self._ring_fd = os.pipe()  # holds one byte per item
        self._items: deque[T] = deque()
        self._is_open = True
        self._changing = threading.Lock()

    def put(self, item: T) -> None:
        """Leave an item; one for a closed box is dropped."""
        with self._changing:
            if self._is_open:
                self._items.append(item)
                os.write(self._ring_fd, b"\0")

    def take(self) -> T:
        """The next item, when the wakeup_fd has rung."""
        os.read(self.wakeup_fd, 1)
        return self._items.popleft()

    def close(self) -> None:
        """Take no more."""
        with self._changing:
            self._is_open = False
            os.close(self._ring_fd)
            os.close(self.wakeup_fd)


class BackgroundReader(Generic[T]):
    """Takes items in a thread, one whenever it is asked to: a slow one keeps nobody waiting.

    Attributes:
        wakeup_fd: a file descriptor, readable when `take` has an answer.
        exhausted: whether `take` has said that there are no more.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._box: Mailbox[tuple[T, ...] | BaseException] = Mailbox()
        self.wakeup_fd = self._box.wakeup_fd
        self.exhausted = False
        self._is_asked = False
        self._is_stopped = False
        self._requests = threading.Semaphore(0)
        self._thread = threading.Thread(
            target=self._serve, args=(each(items),), daemon=True, name="taker"
        )
        self._thread.start()

    def ask(self) -> None:
        """Let the thread take the next item, unless it is at it or there are no more."""
        if not (self._is_asked or self.exhausted):
            self._is_asked = True
            self._requests.release()

    def take(self) -> tuple[T, ...]:
        """The item asked for, or none when there are no more; raises what the items raised."""
        self._is_asked = False
        answer = self._box.take()
        if isinstance(answer, BaseException):
            raise answer
        self.exhausted = not answer
        return answer

    def stop(self) -> None:
        """Ask for no more; what the items come from is closed in the thread."""
        self._is_stopped = True
        self._requests.release()
        self._thread.join(STOP_S)
        self._box.close()

    def _serve(self, items: Generator[T, None, None]) -> None:
        """What the thread does."""
        try:
            with closing(items):
                while self._requests.acquire() and not self._is_stopped:
                    item = tuple(itertools.islice(items, 1))
                    self._box.put(item)
                    if not item:
                        break
        except BaseException as error:  # noqa: BLE001 - carried to the other thread, which raises it
            self._box.put(error)


def each(items: Iterable[T]) -> Generator[T, None, None]:
    """A generator of any iterable's items; a generator is closed with it."""
    yield from items


@contextmanager
def background_reader(items: Iterable[T]) -> Iterator[BackgroundReader[T]]:
    """Take items in a thread for the block."""
    taker = BackgroundReader(items)
    try:
        yield taker
    finally:
        taker.stop()


def prefetch(
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
    ahead = _Buffer(size, max_items, max_bytes)
    thread = threading.Thread(target=ahead.fill, args=(items,), daemon=True, name="read-ahead")
    thread.start()
    try:
        while ahead.wait():
            yield ahead.take()
    finally:
        ahead.stop()
        thread.join(STOP_S)


class _Buffer(Generic[T]):
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
