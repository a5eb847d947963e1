"""Slow iterators are read in a thread while earlier items are worked on.

`prefetch` reads ahead up to a limit; a `BackgroundReader` reads an item only when asked. Stopping
either waits at most STOP_S for the thread. A thread that is blocked longer, as by a dead server,
closes the iterator and ends when it is free.
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
    """A queue from other threads to this one, which can be waited for together with pipes.

    Attributes:
        wakeup_fd: a file descriptor, readable while the queue holds an item.
    """

    def __init__(self) -> None:
        self.wakeup_fd, self._notify_fd = os.pipe()  # holds one byte per item
        self._items: deque[T] = deque()
        self._is_open = True
        self._lock = threading.Lock()

    def put(self, item: T) -> None:
        """Add an item; one for a closed mailbox is dropped."""
        with self._lock:
            if self._is_open:
                self._items.append(item)
                os.write(self._notify_fd, b"\0")

    def take(self) -> T:
        """Remove and return the next item; waits for it."""
        os.read(self.wakeup_fd, 1)
        return self._items.popleft()

    def close(self) -> None:
        """Drop all later items, and close the file descriptors."""
        with self._lock:
            self._is_open = False
            os.close(self._notify_fd)
            os.close(self.wakeup_fd)


class BackgroundReader(Generic[T]):
    """Reads an iterator in a thread, one item per `ask`, so that its owner never waits for it.

    Attributes:
        wakeup_fd: a file descriptor, readable when `take` would not wait.
        exhausted: whether `take` has reported the end of the iterator.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._mailbox: Mailbox[tuple[T, ...] | BaseException] = Mailbox()
        self.wakeup_fd = self._mailbox.wakeup_fd
        self.exhausted = False
        self._is_reading = False
        self._is_stopped = False
        self._requests = threading.Semaphore(0)
        self._thread = threading.Thread(
            target=self._serve, args=(as_generator(items),), daemon=True, name="reader"
        )
        self._thread.start()

    def ask(self) -> None:
        """Let the thread read the next item, unless it is reading one or none is left."""
        if not (self._is_reading or self.exhausted):
            self._is_reading = True
            self._requests.release()

    def take(self) -> tuple[T, ...]:
        """The item asked for, or () at the end; raises what the iterator raised."""
        self._is_reading = False
        answer = self._mailbox.take()
        if isinstance(answer, BaseException):
            raise answer
        self.exhausted = not answer
        return answer

    def stop(self) -> None:
        """Read no more; the thread closes the iterator."""
        self._is_stopped = True
        self._requests.release()
        self._thread.join(STOP_S)
        self._mailbox.close()

    def _serve(self, items: Generator[T, None, None]) -> None:
        """Run in the thread: read one item per request."""
        try:
            with closing(items):
                while self._requests.acquire() and not self._is_stopped:
                    item = tuple(itertools.islice(items, 1))
                    self._mailbox.put(item)
                    if not item:
                        break
        except BaseException as error:  # noqa: BLE001 - carried to the other thread, which raises it
            self._mailbox.put(error)


def as_generator(items: Iterable[T]) -> Generator[T, None, None]:
    """Wrap any iterable in a generator; closing it closes `items` if that is a generator."""
    yield from items


@contextmanager
def background_reader(items: Iterable[T]) -> Iterator[BackgroundReader[T]]:
    """A BackgroundReader for the block, stopped at its end."""
    reader = BackgroundReader(items)
    try:
        yield reader
    finally:
        reader.stop()


def prefetch(
    items: Generator[T | None, None, None],
    size: Callable[[T], int],
    *,
    max_items: int,
    max_bytes: int,
) -> Generator[T, None, None]:
    """Yield what a generator yields, while a thread runs it ahead into a bounded buffer.

    Args:
        items: run and closed in the thread. None is dropped: a generator yields it so that it can
            be closed during long work without items. Its exception is raised here, after the items
            before it.
        size: returns the size of an item in bytes.
        max_items: the number of items in the buffer, at most.
        max_bytes: their size together, at most. A single item of any size is let in, and the thread
            holds one more outside the buffer.
    """
    buffer = _Buffer(size, max_items, max_bytes)
    thread = threading.Thread(target=buffer.fill, args=(items,), daemon=True, name="prefetch")
    thread.start()
    try:
        while buffer.wait():
            yield buffer.take()
    finally:
        buffer.stop()
        thread.join(STOP_S)


class _Buffer(Generic[T]):
    """A queue between two threads, bounded by number of items and bytes."""

    def __init__(self, size: Callable[[T], int], max_items: int, max_bytes: int) -> None:
        self._size = size
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._items: deque[tuple[T, int]] = deque()
        self._num_bytes = 0
        self._is_stopped = False
        self._is_exhausted = False
        self._error: BaseException | None = None

    def fill(self, items: Generator[T | None, None, None]) -> None:
        """Run in the thread: add items until there are none or `stop` is called."""
        try:
            with closing(items):
                for item in items:
                    if not self._put(item):
                        break
        except BaseException as error:  # noqa: BLE001 - carried to the other thread, which raises it
            self._error = error
        finally:
            with self._changed:
                self._is_exhausted = True
                self._changed.notify_all()

    def _put(self, item: T | None) -> bool:
        """Wait for room and add an item; returns whether more are wanted."""
        num_bytes = 0 if item is None else self._size(item)
        with self._changed:
            if item is not None:
                self._changed.wait_for(lambda: self._is_stopped or self._has_room(num_bytes))
                self._items.append((item, num_bytes))
                self._num_bytes += num_bytes
                self._changed.notify_all()
            return not self._is_stopped

    def _has_room(self, num_bytes: int) -> bool:
        if not self._items:
            return True
        return len(self._items) < self._max_items and self._num_bytes + num_bytes <= self._max_bytes

    def wait(self) -> bool:
        """Wait for the next item; returns whether there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._is_exhausted)
            if not self._items and self._error is not None:
                raise self._error
            return bool(self._items)

    def take(self) -> T:
        """Remove and return the next item."""
        with self._changed:
            item, num_bytes = self._items.popleft()
            self._num_bytes -= num_bytes
            self._changed.notify_all()
            return item

    def stop(self) -> None:
        """Want no more items; what is still added is never taken."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
