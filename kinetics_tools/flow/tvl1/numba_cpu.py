"""TV-L1 on one core, compiled by Numba: the steps of `torch_reference`, sixteen pixels at a time.

What makes it fast: an inner iteration (a step) is one pass over memory, in which the dual field
follows one row behind the flow; the warp moves the image and its gradient with one set of weights;
the median shares sorted rows between windows. No memory is allocated on the way.

All memory of a pair is one float32 array, `s` below, and places in it are indices. A plane is an
image with rows of `stride` numbers: PAD of them left of the first pixel (always 0) and at least PAD
right of the last one (any value). Planes that are read together are interleaved by row, so that a
pass reads one stream:

    state   u          the flow along x
            ux, uy     the dual field of u, times theta, its parts along x and y
            v, vx, vy  the flow along y and its dual field
    term    gx, gy     gradient of the warped image
            rho        brightness error at zero flow
            slope      -1 / |gradient|^2

Above the first row of the state is a row of zeros.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import chain, pairwise
from queue import SimpleQueue
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kinetics_tools.flow.tvl1.numba_cache import compile_cached, compile_inline, load_or_compile
from kinetics_tools.flow.tvl1.numba_median import SCRATCH_ROWS, median_5x5
from kinetics_tools.flow.tvl1.numba_simd import (
    LANES,
    arange,
    cubic_weights,
    deinterleave,
    floor,
    fma,
    interleave_4,
    interpolate,
    load,
    maximum,
    minimum,
    sample,
    splat,
    sqrt,
    store,
    vector_sum,
    zero_tail,
)
from kinetics_tools.flow.tvl1.parameters import TVL1Params

Gray = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float32]

PAD = LANES
STATE_PLANES = 6
TERM_PLANES = 4
# Pixels of 0 on each side of the image that is warped: the reach of a cubic.
MARGIN = 4
MIN_SQUARED_GRADIENT = np.float32(2.0**-23)

logger = logging.getLogger(__name__)


class _Level(NamedTuple):
    """A level of the pyramid. `before` and `after` are the places of its two images."""

    height: int
    width: int
    stride: int
    before: int
    after: int


class _Places(NamedTuple):
    """The places of the memory that all levels use, one after another."""

    state: int
    term: int
    movable: int
    scratch: int


class _Plane(NamedTuple):
    """A single plane, with `step` numbers from row to row."""

    place: int
    step: int
    height: int
    width: int


class _Numbers(NamedTuple):
    """The parameters in the form that the steps use."""

    num_warps: int
    outer_iterations: int
    inner_iterations: int
    epsilon: float
    scale_step: float
    tau: np.float32
    tau_by_theta: np.float32
    reach: np.float32


@compile_inline
def _primal(s: Floats, here: int, term: int, level: _Level, numbers: _Numbers) -> Any:
    """Return u, v, their changes, and the part along y of both dual fields one row up."""
    n = level.stride
    above = here - STATE_PLANES * n
    u, v = load(s, here), load(s, here + 3 * n)
    gx, gy = load(s, term), load(s, term + n)
    # Along the gradient until the brightness error is 0, at most by `reach`.
    step = fma(gx, u, fma(gy, v, load(s, term + 2 * n))) * load(s, term + 3 * n)
    step = maximum(minimum(step, splat(numbers.reach)), splat(np.float32(-numbers.reach)))
    uy_above, vy_above = load(s, above + 2 * n), load(s, above + 5 * n)
    along_x, along_y = load(s, here + n), load(s, here + 2 * n)
    du = along_x - load(s, here + n - 1) + (along_y - uy_above)
    along_x, along_y = load(s, here + 4 * n), load(s, here + 5 * n)
    dv = along_x - load(s, here + 4 * n - 1) + (along_y - vy_above)
    return u, v, fma(gx, step, du), fma(gy, step, dv), uy_above, vy_above


@compile_inline
def _dual(s: Floats, here: int, below: Any, p_y: Any, n: int, numbers: _Numbers) -> None:
    """Move a dual field: ascend along the gradient of its flow, shrink towards the unit ball.

    The flow is at `here`, the dual field's part along x at `here + n`, its part along y (with value
    `p_y`) at `here + 2 n`. `below` is the flow one row down.
    """
    flow = load(s, here)
    right = load(s, here + 1) - flow
    down = below - flow
    one = splat(np.float32(1))
    norm = sqrt(fma(right, right, down * down))
    shrink = one / fma(splat(numbers.tau_by_theta), norm, one)
    tau = splat(numbers.tau)
    store(s, here + n, fma(tau, right, load(s, here + n)) * shrink)
    store(s, here + 2 * n, fma(tau, down, p_y) * shrink)


@compile_inline
def _row_step(
    s: Floats, here: int, term: int, level: _Level, numbers: _Numbers, first: bool
) -> Any:
    """Compute the flow of a row and, except for the first, the dual field of the row above.

    Returns:
        The sum of the squared changes of the flow.
    """
    n = level.stride
    above = here - STATE_PLANES * n
    change = splat(np.float32(0))
    for x in range(0, level.width, LANES):
        u, v, du, dv, uy_above, vy_above = _primal(s, here + x, term + x, level, numbers)
        if x + LANES > level.width:
            du, dv = zero_tail(du, level.width - x), zero_tail(dv, level.width - x)
        change = fma(du, du, fma(dv, dv, change))
        u, v = u + du, v + dv
        store(s, here + x, u)
        store(s, here + 3 * n + x, v)
        if not first:
            _dual(s, above + x, u, uy_above, n, numbers)
            _dual(s, above + 3 * n + x, v, vy_above, n, numbers)
    # The difference to the right neighbour is 0 in the last column.
    for flow in (here, here + 3 * n):
        s[flow + level.width] = s[flow + level.width - 1]
    return vector_sum(change)


@compile_inline
def _step(s: Floats, places: _Places, level: _Level, numbers: _Numbers) -> float:
    """Do one inner iteration; return the sum of the squared changes of the flow."""
    n = level.stride
    here, term = places.state, places.term
    change: float = _row_step(s, here, term, level, numbers, True)
    for _ in range(1, level.height):
        here += STATE_PLANES * n
        term += TERM_PLANES * n
        change += _row_step(s, here, term, level, numbers, False)
    for x in range(0, level.width, LANES):
        for flow in (here + x, here + 3 * n + x):
            _dual(s, flow, load(s, flow), load(s, flow + 2 * n), n, numbers)
    return change


@compile_inline
def _make_movable(s: Floats, level: _Level, movable: int) -> None:
    """Interleave `after`, its slopes along x and y, and a 0: four numbers per pixel."""
    step = (level.width + 2 * MARGIN) * 4
    s[movable : movable + (level.height + 2 * MARGIN) * step] = 0
    half = splat(np.float32(0.5))
    for y in range(level.height):
        row = level.after + y * level.stride
        above = row - min(y, 1) * level.stride
        below = row + min(level.height - 1 - y, 1) * level.stride
        s[row - 1] = s[row]
        s[row + level.width] = s[row + level.width - 1]
        to = movable + (y + MARGIN) * step + 4 * MARGIN
        for x in range(0, level.width, LANES):
            left = level.width - x  # what is beyond stays 0
            gx = half * (load(s, row + x + 1) - load(s, row + x - 1))
            gy = half * (load(s, below + x) - load(s, above + x))
            interleave_4(
                s,
                to + 4 * x,
                zero_tail(load(s, row + x), left),
                zero_tail(gx, left),
                zero_tail(gy, left),
            )


@compile_inline
def _warp_row(s: Floats, y: int, places: _Places, level: _Level) -> None:
    """Warp a row along the flow and compute its data term."""
    n = level.stride
    u = places.state + y * STATE_PLANES * n
    v = u + 3 * n
    place = places.scratch
    low_x, high_x = splat(np.float32(1 - MARGIN)), splat(np.float32(level.width + MARGIN - 3))
    high_y = splat(np.float32(level.height + MARGIN - 3))
    for x in range(0, level.width, LANES):
        to_x = maximum(minimum(arange(np.float32(x)) + load(s, u + x), high_x), low_x)
        to_y = maximum(minimum(splat(np.float32(y)) + load(s, v + x), high_y), low_x)
        column, row = floor(to_x), floor(to_y)
        store(s, place + x, column)
        store(s, place + n + x, row)
        store(s, place + 2 * n + x, to_x - column)
        w0, w1, w2, w3 = cubic_weights(to_y - row)
        store(s, place + 3 * n + x, w0)
        store(s, place + 4 * n + x, w1)
        store(s, place + 5 * n + x, w2)
        store(s, place + 6 * n + x, w3)
    warped = place + 7 * n
    step = (level.width + 2 * MARGIN) * 4
    corner = places.movable + (MARGIN - 1) * (step + 4)
    for x in range(level.width):
        store(s, warped + 4 * x, sample(s, place + x, n, corner, step))
    before = level.before + y * n
    term = places.term + y * TERM_PLANES * n
    for x in range(0, level.width, LANES):
        after, gx, gy = deinterleave(s, warped + 4 * x)
        known = fma(gx, load(s, u + x), gy * load(s, v + x))
        squared = maximum(fma(gx, gx, gy * gy), splat(MIN_SQUARED_GRADIENT))
        store(s, term + x, gx)
        store(s, term + n + x, gy)
        store(s, term + 2 * n + x, after - load(s, before + x) - known)
        store(s, term + 3 * n + x, splat(np.float32(-1)) / squared)


@compile_inline
def _resize(
    s: Floats, old: _Plane, new: _Plane, steps: tuple[float, float], factor: float, scratch: int
) -> None:
    """Resize a plane bilinearly, without smoothing, as cv2.resize does, and multiply it.

    `steps` is the distance of two new pixels in old ones, down and across.
    """
    num = max(old.width, new.width) + PAD
    columns, fractions, line = scratch, scratch + num, scratch + 2 * num
    for x in range(new.width):
        position = min(max((x + 0.5) * steps[1] - 0.5, 0.0), old.width - 1.0)
        s[columns + x] = np.floor(position)
        s[fractions + x] = position - np.floor(position)
    for y in range(new.height):
        position = min(max((y + 0.5) * steps[0] - 0.5, 0.0), old.height - 1.0)
        row = int(position)
        above = old.place + row * old.step
        below = old.place + min(row + 1, old.height - 1) * old.step
        fraction = splat(np.float32(position - row))
        for x in range(0, old.width, LANES):
            value = load(s, above + x)
            store(s, line + x, fma(fraction, load(s, below + x) - value, value))
        s[line + old.width] = s[line + old.width - 1]
        to = new.place + y * new.step
        for x in range(new.width):
            s[to + x] = np.float32(factor) * interpolate(s, line, columns + x, fractions + x)


@compile_inline
def _refine(s: Floats, level: _Level, places: _Places, numbers: _Numbers) -> int:
    """Refine the flow on one level; return the number of inner iterations."""
    limit = numbers.epsilon**2 * level.height * level.width
    size, steps = (level.height, level.width), (STATE_PLANES * level.stride, level.stride)
    num_steps = 0
    _make_movable(s, level, places.movable)
    for _ in range(numbers.num_warps):
        for y in range(level.height):
            _warp_row(s, y, places, level)
        moves = True
        outer = 0
        while moves and outer < numbers.outer_iterations:
            for plane in (places.state, places.state + 3 * level.stride):
                median_5x5(s, plane, size, steps, places.scratch)
            inner = 0
            while moves and inner < numbers.inner_iterations:
                moves = _step(s, places, level, numbers) > limit
                inner += 1
            num_steps += inner
            outer += 1
    return num_steps


@compile_inline
def _enlarge(s: Floats, small: _Level, level: _Level, places: _Places, scale_step: float) -> None:
    """Resize the flow of one level for the next finer one, whose dual field starts at 0."""
    num = small.height * small.stride
    for k in range(2):
        for y in range(small.height):
            row = places.state + (y * STATE_PLANES + 3 * k) * small.stride
            for x in range(0, small.width, LANES):
                store(s, places.term + k * num + y * small.stride + x, load(s, row + x))
    step = STATE_PLANES * level.stride
    s[places.state - PAD - step : places.state - PAD + level.height * step] = 0
    steps = (small.height / level.height, small.width / level.width)
    for k in range(2):
        old = _Plane(places.term + k * num, small.stride, small.height, small.width)
        new = _Plane(places.state + 3 * k * level.stride, step, level.height, level.width)
        _resize(s, old, new, steps, 1 / scale_step, places.scratch)


@compile_inline
def _level(levels: npt.NDArray[np.int64], number: int) -> _Level:
    row = levels[number]
    return _Level(row[0], row[1], row[2], row[3], row[4])


@compile_inline
def _read(frame: Gray, s: Floats, place: int, stride: int) -> None:
    for y in range(frame.shape[0]):
        for x in range(frame.shape[1]):
            s[place + y * stride + x] = frame[y, x]


@compile_inline
def _make_pyramid(s: Floats, fine: _Level, coarse: _Level, scratch: int, scale_step: float) -> None:
    """Compute the images of a level from those of the next finer one."""
    steps = (1 / scale_step, 1 / scale_step)
    for source, to in ((fine.before, coarse.before), (fine.after, coarse.after)):
        old = _Plane(source, fine.stride, fine.height, fine.width)
        new = _Plane(to, coarse.stride, coarse.height, coarse.width)
        _resize(s, old, new, steps, 1.0, scratch)


@compile_cached
def _solve(
    pair: tuple[Gray, Gray],
    s: Floats,
    levels: npt.NDArray[np.int64],
    places: _Places,
    numbers: _Numbers,
    flow: Flow,
) -> int:
    """Compute the flow of a pair; return its work: pixels times inner iterations."""
    finest = _level(levels, 0)
    _read(pair[0], s, finest.before, finest.stride)
    _read(pair[1], s, finest.after, finest.stride)
    for number in range(1, len(levels)):
        fine, coarse = _level(levels, number - 1), _level(levels, number)
        _make_pyramid(s, fine, coarse, places.scratch, numbers.scale_step)
    s[: places.term - PAD] = 0  # the state: zero flow
    work = 0
    for number in range(len(levels) - 1, -1, -1):
        level = _level(levels, number)
        if number + 1 < len(levels):
            _enlarge(s, _level(levels, number + 1), level, places, numbers.scale_step)
        work += _refine(s, level, places, numbers) * level.height * level.width
    for y in range(finest.height):
        row = places.state + y * STATE_PLANES * finest.stride
        for x in range(finest.width):
            flow[y, x, 0] = s[row + x]
            flow[y, x, 1] = s[row + 3 * finest.stride + x]
    return work


class Workspace:
    """Computes pairs of one size, one after another, in its own memory: 80 bytes per pixel.

    Args:
        height: of the frames.
        width: of the frames.
        parameters: of the method.

    Attributes:
        work: pixels times inner iterations of the last pair, over all levels.
    """

    def __init__(self, height: int, width: int, parameters: TVL1Params) -> None:
        end = 0

        def take(num: int) -> int:
            """Reserve `num` numbers; return the place of the first pixel, PAD after their start."""
            nonlocal end
            place, end = end + PAD, end + -(-num // LANES) * LANES
            return place

        self._size = (height, width)
        sizes = parameters.level_sizes(height, width)
        stride = -(-width // LANES) * LANES + 2 * PAD
        state = take((height + 1) * STATE_PLANES * stride) + STATE_PLANES * stride
        self._places = _Places(
            state=state,
            term=take(height * TERM_PLANES * stride),
            movable=take((height + 2 * MARGIN) * (width + 2 * MARGIN) * 4 + 4 * LANES),
            scratch=take(SCRATCH_ROWS * stride),
        )
        levels = []
        for h, w in sizes:
            stride = -(-w // LANES) * LANES + 2 * PAD
            levels.append(_Level(h, w, stride, take(h * stride), take(h * stride)))
        self._levels = np.array(levels, np.int64)
        memory = np.zeros(end + 2 * LANES, np.float32)
        # Aligned to a cache line, so that no vector crosses two.
        self._memory = memory[-(memory.ctypes.data // 4) % LANES :]
        self._numbers = _Numbers(
            num_warps=parameters.num_warps,
            outer_iterations=parameters.outer_iterations,
            inner_iterations=parameters.inner_iterations,
            epsilon=float(parameters.epsilon),
            scale_step=float(parameters.scale_step),
            tau=np.float32(parameters.tau),
            tau_by_theta=np.float32(parameters.tau / parameters.theta),
            reach=np.float32(parameters.lambda_ * parameters.theta),
        )
        self.work = 0

    def solve(self, before: Gray, after: Gray) -> Flow:
        """Return the flow of a pair of frames: float32 (H, W, 2).

        Args:
            before: uint8 (H, W), of this workspace's size.
            after: the frame that follows, of the same size.

        Raises:
            ValueError: a frame has another size or type.
        """
        for frame in (before, after):
            if frame.shape != self._size or frame.dtype != np.uint8:
                raise ValueError(f"uint8 {self._size} is needed, not {frame.dtype} {frame.shape}")
        prepare()
        flow = np.empty((*self._size, 2), np.float32)
        self.work = _solve(*self.arguments(before, after, flow))
        return flow

    def arguments(self, before: Gray, after: Gray, flow: Flow) -> tuple[Any, ...]:
        """Return the arguments with which `_solve` writes to `flow`: always of the same types."""
        pair = (_plain(before), _plain(after))
        return pair, self._memory, self._levels, self._places, self._numbers, flow


def _plain(frame: Gray) -> Gray:
    """Return the frame, or a copy if Numba has another type for it: read-only, slice, subclass."""
    return np.require(np.asarray(frame), None, ("C", "A", "W"))


@cache
def prepare() -> None:
    """Compile, or load what an earlier process compiled: some seconds, or a fraction of one.

    The machine code is stored in the folder __pycache__ beside this file or, if that cannot be
    written, in the user's cache folder (NUMBA_CACHE_DIR names another one), separately for each
    kind of processor, Numba and version of this package. Processes that compile at the same time do
    the same work and store the same result. If no folder can be written, each process compiles.
    """
    start = perf_counter()
    frame, flow = np.zeros((1, 1), np.uint8), np.empty((1, 1, 2), np.float32)
    load_or_compile(_solve, *Workspace(1, 1, TVL1Params()).arguments(frame, frame, flow))
    if _solve.stats.cache_misses:
        logger.info("compiled TV-L1 in %.0f s", perf_counter() - start)


def flows(frames: Iterator[Gray], parameters: TVL1Params, threads: int) -> Iterator[Flow]:
    """Yield the flow from each frame to the next, float32 (H, W, 2); one thread computes a pair.

    Memory: 80 bytes per pixel and thread, and `threads` + 2 frames and fields.

    Args:
        frames: uint8 (H, W), all of one size; at most `threads` + 1 are read ahead of the flow. An
            error that they raise comes after the flow of the frames before it.
        parameters: of the method.
        threads: how many pairs to compute at once; the flow does not depend on it.
    """
    pairs: Iterator[tuple[Gray, Gray]] = pairwise(frames)
    first = next(pairs, None)
    if first is None:
        return
    prepare()
    spaces: SimpleQueue[Workspace] = SimpleQueue()
    for _ in range(threads):
        height, width = first[0].shape
        spaces.put(Workspace(height, width, parameters))

    def solve(pair: tuple[Gray, Gray]) -> Flow:
        space = spaces.get()
        try:
            return space.solve(*pair)
        finally:
            spaces.put(space)

    pairs = chain([first], pairs)
    if threads == 1:
        yield from map(solve, pairs)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield from _in_order(pairs, lambda pair: pool.submit(solve, pair), threads)
    finally:
        pool.shutdown(cancel_futures=True)  # pairs that have not begun are not needed any more


def _in_order(
    pairs: Iterator[tuple[Gray, Gray]],
    submit: Callable[[tuple[Gray, Gray]], Future[Flow]],
    num: int,
) -> Iterator[Flow]:
    """Yield the flow of pairs in order, while `num` of them are computed."""
    waiting: deque[Future[Flow]] = deque()
    while True:
        try:
            pair = next(pairs, None)
        except Exception:
            while waiting:
                yield waiting.popleft().result()
            raise
        if pair is None:
            break
        waiting.append(submit(pair))
        if len(waiting) > num:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
