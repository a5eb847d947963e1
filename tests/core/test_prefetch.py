"""Prefetching: items keep their order, the buffer its bounds, errors surface."""

import threading
from collections.abc import Generator
from contextlib import closing
from multiprocessing.connection import wait

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_tools.core.prefetch import Mailbox, background_reader, prefetch


def counted(sizes: list[int | None], log: list[int]) -> Generator[int | None, None, None]:
    """Yield the sizes themselves, and log how many have been made."""
    for made, size in enumerate(sizes, start=1):
        log.append(made)
        yield size


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 100)), max_size=40),
    st.integers(1, 5),
    st.integers(0, 150),
)
def test_all_items_come_in_order_and_few_lie_waiting(
    sizes: list[int | None], max_items: int, max_bytes: int
) -> None:
    log: list[int] = []
    taken: list[int] = []
    items = prefetch(
        counted(sizes, log), lambda size: size, max_items=max_items, max_bytes=max_bytes
    )
    for item in items:
        taken.append(item)
        real = [size for size in sizes[: log[-1]] if size is not None]
        # Waiting, and one in the thread's hands; what is taken makes room at once.
        assert len(real) - len(taken) <= max_items + 1
        waiting = real[len(taken) : -1]
        assert len(waiting) <= 1 or sum(waiting) <= max_bytes
    assert taken == [size for size in sizes if size is not None]


def test_an_error_comes_after_what_was_made_before_it() -> None:
    def items() -> Generator[int | None, None, None]:
        yield 1
        yield 2
        raise OSError(28, "No space left on device", "here")

    taken = []
    with pytest.raises(OSError, match="No space"):
        for item in prefetch(items(), int, max_items=5, max_bytes=100):
            taken.append(item)
    assert taken == [1, 2]


@pytest.mark.parametrize("item", [1, None])
def test_closing_the_iterator_closes_the_generator(item: int | None) -> None:
    closed = threading.Event()

    def items() -> Generator[int | None, None, None]:
        try:
            yield 1
            while True:
                yield item
        finally:
            closed.set()

    with closing(prefetch(items(), int, max_items=2, max_bytes=100)) as items_ahead:
        assert next(items_ahead) == 1
        assert not closed.is_set()
    assert closed.is_set()


def test_a_reader_reads_one_item_per_request() -> None:
    log: list[int] = []
    with background_reader(counted([5, 6, 7], log)) as reader:
        assert not wait([reader.wakeup_fd], timeout=0.1)
        assert log == []
        reader.ask()
        reader.ask()  # it is reading already
        wait([reader.wakeup_fd])
        assert reader.take() == (5,)
        assert not wait([reader.wakeup_fd], timeout=0.1)
        assert log == [1]


def test_a_reader_reports_the_end() -> None:
    with background_reader([5]) as reader:
        for answer in ((5,), ()):
            assert not reader.exhausted
            reader.ask()
            wait([reader.wakeup_fd])
            assert reader.take() == answer
        assert reader.exhausted


def test_items_for_a_closed_mailbox_are_dropped() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.close()
    mailbox.put(1)
