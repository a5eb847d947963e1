"""The paper's tables as data: what they have, what they lack, and what is not confirmed."""

import pytest

from kinetics_bench.archs.registry import ARCHS
from kinetics_bench.evaluation.paper import CELLS, SMALL_SETS, TESTED_ON, TRANSFERS, find

KEYS = [(c.table, c.arch, c.stream, c.data, c.init, c.transfer) for c in CELLS]


def test_each_cell_is_there_once_and_has_the_words_of_the_suite() -> None:
    assert len(set(KEYS)) == len(KEYS)
    for cell in CELLS:
        assert cell.stream in ("rgb", "flow", "joint")
        assert cell.arch in ARCHS
        assert cell.init in ("scratch", "imagenet")
        assert cell.transfer in TRANSFERS
        assert cell.top1 is None or 20 < cell.top1 < (cell.top5 or 100)
    # As many as the paper prints.
    assert [sum(cell.table == table for cell in CELLS) for table in TESTED_ON] == [31, 17, 54, 12]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (("i3d", "joint", "kinetics400", "imagenet"), [(2, 74.2, None), (3, 74.2, 91.3)]),
        (("i3d", "flow", "kinetics400", "scratch"), [(3, 61.5, 83.4)]),
        (("c3d", "rgb", "kinetics400", "scratch"), [(2, 56.1, None), (3, 56.1, None)]),
        (("c3d", "rgb", "hmdb51", "scratch", "full-ft"), [(4, 49.4, None)]),
        (("two-stream", "flow", "hmdb51", "imagenet"), [(2, 56.3, None)]),
        (("i3d", "joint", "hmdb51", "imagenet", "full-ft"), [(4, 81.2, None), (5, 80.7, None)]),
        (("i3d", "joint", "ucf101", "scratch"), [(4, 88.8, None)]),
        (("i3d", "flow", "hmdb51", "scratch", "full-ft"), [(5, 77.3, None)]),
        (("convnet-lstm", "rgb", "ucf101", "imagenet", "fixed"), [(4, None, None)]),
        (("c3d", "rgb", "ucf101", "imagenet"), []),
        (("convnet-lstm", "flow", "ucf101", "imagenet"), []),
        (("i3d", "joint", "weizmann", "scratch"), []),
    ],
)
def test_a_cell_has_the_papers_number(
    asked: tuple[str, ...], found: list[tuple[int, float | None, float | None]]
) -> None:
    assert [(cell.table, cell.top1, cell.top5) for cell in find(*asked)] == found


def test_a_number_that_two_tables_print_is_the_same_in_both() -> None:
    for cell in CELLS:
        same = find(cell.arch, cell.stream, cell.data, cell.init, cell.transfer)
        of_split_1 = {each.top1 for each in same if each.table != 5} - {None}
        assert len(of_split_1) <= 1, same


def test_transfer_is_of_the_small_sets_only() -> None:
    assert {cell.data for cell in CELLS if cell.transfer != "original"} == {*SMALL_SETS}
