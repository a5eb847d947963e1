"""The 5x5 median filter of the Numba backend, by sorting networks, sixteen pixels at a time.

Each row is sorted in windows of five once; the fives of two rows are merged once for all output
rows that use both. The array `s`, places and planes are those of `numba_cpu`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from kinetics_tools.flow.tvl1.numba_cache import compile_inline
from kinetics_tools.flow.tvl1.numba_simd import LANES, load, maximum, minimum, store

Floats = npt.NDArray[np.float32]

# Rows of scratch memory: the row that is sorted, four rows of sorted fives, two of sorted tens.
SCRATCH_ROWS = 1 + 4 * 5 + 2 * 10


@compile_inline
def median_5x5(
    s: Floats, plane: int, size: tuple[int, int], steps: tuple[int, int], scratch: int
) -> None:
    """Replace a plane by its 5x5 median, in place, two rows at a time. Borders repeat.

    Rows 2k and 2k + 1 share four rows of their windows: pair k, which is rows 2k - 1 and 2k, and
    pair k + 1. The window of the first one also has row 2k - 2, that of the second one row 2k + 3.

    Args:
        s: float32 (N,), the memory.
        plane: index of the plane's first pixel.
        size: height and width of the plane, pixels.
        steps: numbers from row to row, of the plane and of the scratch memory. The latter is at
            least the width, rounded up to a multiple of 16, and 4.
        scratch: index of SCRATCH_ROWS rows of scratch memory, with 2 numbers before them.
    """
    (height, width), (step, n) = size, steps
    last = height - 1
    odd = scratch + n
    evens = odd + 5 * n  # the last three even rows
    tens = evens + 15 * n  # the last two pairs
    for k in range(-1, last // 2 + 3):
        even = evens + (k + 1) % 3 * 5 * n
        _sort_row(s, plane + min(max(2 * k - 1, 0), last) * step, scratch, odd, width, n)
        y = 2 * (k - 2)
        for x in range(0, width if 0 <= y <= last else 0, LANES):
            middle = _middle_6(s, tens + x, n)
            store(s, plane + y * step + x, _median_25(middle, _load_5(s, even + x, n)))
            if y < last:
                store(s, plane + (y + 1) * step + x, _median_25(middle, _load_5(s, odd + x, n)))
        _sort_row(s, plane + min(max(2 * k, 0), last) * step, scratch, even, width, n)
        for x in range(0, width, LANES):
            _merge_fives(s, odd + x, even + x, tens + k % 2 * 10 * n + x, n)


@compile_inline
def _sort_row(s: Floats, row: int, line: int, fives: int, width: int, n: int) -> None:
    """Sort each pixel of a row with the two on its left and the two on its right.

    The five are stored lowest first in five rows from `fives` on; `line` is scratch memory.
    """
    for x in range(0, width, LANES):
        store(s, line + x, load(s, row + x))
    for border in range(1, 3):
        s[line - border] = s[row]
        s[line + width - 1 + border] = s[row + width - 1]
    for x in range(0, width, LANES):
        _store_5(s, fives + x, n, _sort_5(*_load_5(s, line + x - 2, 1)))


@compile_inline
def _load_5(s: Floats, place: int, n: int) -> Any:
    return (
        load(s, place),
        load(s, place + n),
        load(s, place + 2 * n),
        load(s, place + 3 * n),
        load(s, place + 4 * n),
    )


@compile_inline
def _store_5(s: Floats, place: int, n: int, values: Any) -> None:
    store(s, place, values[0])
    store(s, place + n, values[1])
    store(s, place + 2 * n, values[2])
    store(s, place + 3 * n, values[3])
    store(s, place + 4 * n, values[4])


@compile_inline
def _order(a: Any, b: Any) -> Any:
    return minimum(a, b), maximum(a, b)


@compile_inline
def _sort_5(a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    """Sort elementwise, lowest first, by the network of nine exchanges."""
    a, d = _order(a, d)
    b, e = _order(b, e)
    a, c = _order(a, c)
    b, d = _order(b, d)
    a, b = _order(a, b)
    c, e = _order(c, e)
    b, c = _order(b, c)
    d, e = _order(d, e)
    c, d = _order(c, d)
    return a, b, c, d, e


@compile_inline
def _merge_fives(s: Floats, first: int, second: int, to: int, n: int) -> None:
    """Merge the sorted fives at `first` and at `second` into ten (Batcher's odd-even merge)."""
    a, b, c, d, e = _load_5(s, first, n)
    f, g, h, i, j = _load_5(s, second, n)
    a, f = _order(a, f)
    e, j = _order(e, j)
    e, f = _order(e, f)
    c, h = _order(c, h)
    c, e = _order(c, e)
    h, f = _order(h, f)
    b, g = _order(b, g)
    d, i = _order(d, i)
    d, g = _order(d, g)
    b, c = _order(b, c)
    d, e = _order(d, e)
    g, h = _order(g, h)
    i, f = _order(i, f)
    _store_5(s, to, n, (a, b, c, d, e))
    _store_5(s, to + 5 * n, n, (g, h, i, f, j))


@compile_inline
def _middle_6(s: Floats, tens: int, n: int) -> Any:
    """Return the ranks 8 to 13 of two sorted tens, which follow each other at `tens`.

    The lower ten of the twenty numbers are a bitonic sequence, as are the upper ten: comparing
    their halves splits them into the five lowest and the five highest.
    """
    a, f = _part(s, tens, n, 0)
    b, g = _part(s, tens, n, 1)
    c, h = _part(s, tens, n, 2)
    d, i = _part(s, tens, n, 3)
    e, j = _part(s, tens, n, 4)
    _, _, a, b, c = _sort_5(a, b, c, d, e)
    f, g, h, _, _ = _sort_5(f, g, h, i, j)
    return a, b, c, f, g, h


@compile_inline
def _part(s: Floats, tens: int, n: int, i: int) -> Any:
    """Return one of the five highest of the lower ten and one of the five lowest of the upper."""
    a, b = load(s, tens + i * n), load(s, tens + (i + 5) * n)
    c, d = load(s, tens + (19 - i) * n), load(s, tens + (14 - i) * n)
    return maximum(minimum(a, c), minimum(b, d)), minimum(maximum(a, c), maximum(b, d))


@compile_inline
def _median_25(middle: Any, five: Any) -> Any:
    """Return the median of twenty numbers, given their ranks 8 to 13, and five sorted ones.

    It is the 13th of 25: the lowest, over i from 0 to 5, of the maxima of the i-th of the five and
    the (13 - i)-th of the twenty.
    """
    median = minimum(middle[5], maximum(five[0], middle[4]))
    median = minimum(median, maximum(five[1], middle[3]))
    median = minimum(median, maximum(five[2], middle[2]))
    median = minimum(median, maximum(five[3], middle[1]))
    return minimum(median, maximum(five[4], middle[0]))
