"""The Triton kernels of TV-L1: what one program of each does, and nothing about the host.

No program reads what another program of the same launch writes: flow and dual field have two
buffers, and a pair is read from one and written to the other. So programs may run in any order.
There are no atomics: sums are computed in parts of fixed size and added in a fixed order, once per
pair and launch.

The tensors that host and kernels share, for B pairs of H x W:

    frames  float32 (B + 1, H, W)     pair b is frames b and b + 1
    u       float32 (3, B, 2, H, W)   the flow, x then y; sides 0 and 1, and the median of one
    p       float32 (2, B, 4, H, W)   the dual field times theta: along x of both parts of the
                                      flow, then along y
    data    float32 (B, 3, H, W)      the warped gradient, x then y, and the offset of the data term
    state   int32 (B, 4)              what the current launch does to each pair: the side (0 or 1)
                                      to which it writes the flow, or on which the flow stays; the
                                      number of steps, from 0; 1 if the pair has converged; 1 if
                                      the steps begin with the median
    sums    float64 (B, STEPS, parts) squared change of the flow, by step and by program

A step is an inner iteration.
"""

import triton
import triton.language as tl

# Whether the kernels run in Triton's interpreter: on a CPU, slowly. Triton decides it at import.
INTERPRETED: bool = triton.knobs.runtime.interpret

# Decorates functions that kernels call. The interpreter takes a millisecond to prepare each call of
# a jitted function; inside a kernel that it has prepared, a plain function does the same.
part_of_kernel = (lambda function: function) if INTERPRETED else triton.jit

# One compiled kernel for all sizes, without specialisation for multiples of 16 and so on.
SIZES = ["old_height", "old_width", "height", "width", "parts", "max_steps", "first"]
MIN_SQUARED_GRADIENT = tl.constexpr(2.0**-23)
SMOOTHED = tl.constexpr(2)


def _median_network() -> tuple[tuple[int, int], ...]:
    """Return the exchanges (low, high) that move the median of 25 values to place 12.

    Batcher's odd-even merge of five sorted fives, without the exchanges that do not affect place
    12. Place 5 i + j is row j of column i.
    """
    exchanges: list[tuple[int, int]] = []

    def merge(a: list[int], b: list[int]) -> list[int]:
        """Append the exchanges that merge the sorted places; return them, lowest value first."""
        if not (a and b):
            return a + b
        if len(a) == len(b) == 1:
            exchanges.append((a[0], b[0]))
            return a + b
        odd, even = merge(a[0::2], b[0::2]), merge(a[1::2], b[1::2])
        merged = odd[:1]
        for high, low in zip(odd[1:], even, strict=False):
            exchanges.append((low, high))
            merged += [low, high]
        return merged + even[len(odd) - 1 :] + odd[len(even) + 1 :]

    def sort(places: list[int]) -> list[int]:
        half = len(places) // 2
        return merge(sort(places[:half]), sort(places[half:])) if half else places

    columns = [sort(list(range(5 * i, 5 * i + 5))) for i in range(5)]
    left = merge(columns[0], columns[1])
    right = merge(merge(columns[2], columns[3]), columns[4])
    middle = merge(left, right)[12]
    seen, needed = {middle}, []
    for low, high in reversed(exchanges):
        if low in seen or high in seen:
            seen |= {low, high}
            needed.append((low, high))
    # Places may be renamed: the median shall end at place 12.
    name = {middle: 12, 12: middle}
    return tuple((name.get(a, a), name.get(b, b)) for a, b in reversed(needed))


MEDIAN_NETWORK = tl.constexpr(_median_network())
NUM_EXCHANGES = tl.constexpr(len(_median_network()))


@triton.jit(do_not_specialize=SIZES)
def resize(
    source, target, state, low_x, low_y, weight_x, weight_y,
    old_height, old_width, height, width, gain,
    BLOCK: tl.constexpr, SIDED: tl.constexpr,
):  # fmt: skip
    """Resize planes bilinearly; program (i, n) computes block i of plane n.

    The tables have, for each new column and row, the old one before it and the distance from that.
    With SIDED the planes are flow, two per pair, read from the side that `state` names.
    """
    plane = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < height * width
    y, x = place // width, place % width
    from_plane = plane
    if SIDED:
        side = tl.load(state + (plane // 2) * 4).to(tl.int64)
        from_plane += side * tl.num_programs(1)
    image = source + from_plane * old_height * old_width
    left = tl.load(low_x + x, inside, 0)
    above = tl.load(low_y + y, inside, 0)
    right = tl.minimum(left + 1, old_width - 1)
    below = tl.minimum(above + 1, old_height - 1)
    along_x = tl.load(weight_x + x, inside, 0.0)
    along_y = tl.load(weight_y + y, inside, 0.0)
    top = _between(image + above * old_width, left, right, along_x, inside)
    bottom = _between(image + below * old_width, left, right, along_x, inside)
    value = (top + along_y * (bottom - top)) * gain
    tl.store(target + plane * height * width + place, value, inside)


@part_of_kernel
def _between(row, left, right, weight, inside):
    a = tl.load(row + left, inside, 0.0)
    b = tl.load(row + right, inside, 0.0)
    return a + weight * (b - a)


@triton.jit(do_not_specialize=SIZES)
def warp(frames, u, data, state, height, width, BLOCK: tl.constexpr):
    """Linearise around the flow: warp image and gradient in one pass over a pixel's neighbourhood.

    Program (i, b) computes block i of pair b. Outside the image all is 0; the gradient inside it
    repeats the border. Both follow from loads at clamped places and weights that are 0 outside.
    """
    pair = tl.program_id(1).to(tl.int64)
    area = height * width
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < area
    side = tl.load(state + pair * 4).to(tl.int64)
    flow = u + (side * tl.num_programs(1) + pair) * 2 * area + place
    u_x = tl.load(flow, inside, 0.0)
    u_y = tl.load(flow + area, inside, 0.0)
    x, weights_x = _taps(place % width, u_x, width)
    y, weights_y = _taps(place // width, u_y, height)
    after = frames + (pair + 1) * area
    values = ()
    slopes = ()
    for i in tl.static_range(6):
        row = after + tl.minimum(tl.maximum(y + (i - 2), 0), height - 1) * width
        near = ()
        for j in tl.static_range(6):
            near = near + (tl.load(row + tl.minimum(tl.maximum(x + (j - 2), 0), width - 1)),)
        value = weights_x[0] * near[1]
        slope = weights_x[0] * (near[2] - near[0])
        for j in tl.static_range(1, 4):
            value += weights_x[j] * near[j + 1]
            slope += weights_x[j] * (near[j + 2] - near[j])
        values = values + (value,)
        slopes = slopes + (slope,)
    warped = weights_y[0] * values[1]
    g_x = weights_y[0] * slopes[1]
    g_y = weights_y[0] * (values[2] - values[0])
    for i in tl.static_range(1, 4):
        warped += weights_y[i] * values[i + 1]
        g_x += weights_y[i] * slopes[i + 1]
        g_y += weights_y[i] * (values[i + 2] - values[i])
    g_x *= 0.5
    g_y *= 0.5
    before = tl.load(frames + pair * area + place, inside, 0.0)
    error = warped - before - (g_x * u_x + g_y * u_y)
    to = data + pair * 3 * area + place
    tl.store(to, g_x, inside)
    tl.store(to + area, g_y, inside)
    tl.store(to + 2 * area, error * _slope(g_x, g_y), inside)


@part_of_kernel
def _slope(g_x, g_y):
    return -1.0 / tl.maximum(g_x * g_x + g_y * g_y, MIN_SQUARED_GRADIENT)


@part_of_kernel
def _taps(start, along, size):
    """Return the integer part of a position and the weights of the four taps around it.

    Far outside, all weights are 0; the position is clamped there so that it fits an int32.
    """
    position = tl.minimum(tl.maximum(start.to(tl.float32) + along, -3.0), size + 2.0)
    whole = tl.floor(position)
    part = position - whole
    first = whole.to(tl.int32)
    weights = (_far(part + 1.0), _near(part), _near(1.0 - part), _far(2.0 - part))
    masked = ()
    for i in tl.static_range(4):
        tap = first + (i - 1)
        masked = masked + (tl.where((tap >= 0) & (tap < size), weights[i], 0.0),)
    return first, masked


@part_of_kernel
def _near(x):
    """Return the cubic convolution weight (A = -0.75) at a distance of at most one pixel."""
    return (1.25 * x - 2.25) * x * x + 1.0


@part_of_kernel
def _far(x):
    """Return the cubic convolution weight at a distance of one to two pixels."""
    return ((-0.75 * x + 3.75) * x - 6.0) * x + 3.0


@triton.jit(do_not_specialize=SIZES)
def median(
    u, state, height, width, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the 5x5 median of each pixel, for pairs that have not converged.

    Program (i, b, c) computes block i of part c of pair b's flow. Borders repeat.
    """
    pair = tl.program_id(1).to(tl.int64)
    pairs = tl.num_programs(1)
    area = height * width
    fields = state + pair * 4
    source = 1 - tl.load(fields).to(tl.int64)
    # A converged pair may repeat steps, from a median that it already has.
    moves = (tl.load(fields + 1) > 0) & (tl.load(fields + 2) == 0)
    if moves:
        place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = place < area
        y, x = place // width, place % width
        part = tl.program_id(2)
        image = u + ((source * pairs + pair) * 2 + part) * area
        values = ()
        for i in tl.static_range(5):
            column = tl.minimum(tl.maximum(x + (i - 2), 0), width - 1)
            for j in tl.static_range(5):
                row = tl.minimum(tl.maximum(y + (j - 2), 0), height - 1)
                values = values + (tl.load(image + row * width + column, inside, 0.0),)
        for n in tl.static_range(NUM_EXCHANGES):
            values = _exchanged(values, MEDIAN_NETWORK[n][0], MEDIAN_NETWORK[n][1])
        target = u + ((SMOOTHED * pairs + pair) * 2 + part) * area
        tl.store(target + place, values[12], inside)


@part_of_kernel
def _exchanged(values, low: tl.constexpr, high: tl.constexpr):
    """Move the smaller of two values to place `low`, the larger one to `high`."""
    small = tl.minimum(values[low], values[high])
    large = tl.maximum(values[low], values[high])
    return _replaced(_replaced(values, low, small), high, large)


@part_of_kernel
def _replaced(values, place: tl.constexpr, value):
    return values[:place] + (value,) + values[place + 1 :]


@triton.jit(do_not_specialize=SIZES)
def judge(
    state, new_state, sums, limit, parts, max_steps, first,
    STEPS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Decide what the next launches of `median` and `iterate` do to a pair; program (b,) to pair b.

    It follows from the launch before. A pair has converged at the first step that changes the flow
    by at most the limit. If that was not the last step of the launch, the pair repeats the steps up
    to it from where that launch began; what they store is the answer.

    Args:
        parts: how many programs of `iterate` share a pair.
        max_steps: steps of a pair that has not converged, up to STEPS.
        first: 1 if these begin with the median.
    """
    pair = tl.program_id(0).to(tl.int64)
    fields = state + pair * 4
    side = tl.load(fields)
    last_steps = tl.load(fields + 1)
    converged = tl.load(fields + 2)
    smoothed = tl.load(fields + 3)
    reached = last_steps * 0
    if (converged == 0) & (last_steps > 0):
        most = tl.load(limit)
        totals = _totals(sums + pair * STEPS * parts, parts, STEPS, LANES)
        for k in tl.static_range(STEPS):
            is_first = (reached == 0) & (k < last_steps) & (totals[k] <= most)
            reached = tl.where(is_first, k + 1, reached)
    again = (reached > 0) & (reached < last_steps)
    converged = tl.where(reached > 0, 1, converged)
    steps = tl.where(again, reached, tl.where(converged == 1, 0, max_steps))
    source = tl.where(again, 1 - side, side)
    fields = new_state + pair * 4
    tl.store(fields, tl.where(steps > 0, 1 - source, side))
    tl.store(fields + 1, steps)
    tl.store(fields + 2, converged)
    tl.store(fields + 3, tl.where(again, smoothed, first))


@part_of_kernel
def _totals(numbers, num, STEPS: tl.constexpr, LANES: tl.constexpr):
    """Return the sums of STEPS rows of `num` float64 numbers, always added in the same order."""
    lane = tl.arange(0, LANES)
    totals = (tl.zeros((LANES,), tl.float64),) * STEPS
    for start in range(0, num, LANES):
        more = ()
        for k in tl.static_range(STEPS):
            row = numbers + k * num + start
            more = more + (totals[k] + tl.load(row + lane, lane < num - start, 0.0),)
        totals = more
    sums = ()
    for k in tl.static_range(STEPS):
        sums = sums + (tl.sum(totals[k], 0),)
    return sums


@triton.jit(do_not_specialize=SIZES)
def iterate(
    u, p, data, state, sums, height, width, reach, tau, push,
    STEPS: tl.constexpr, WIDTH: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """Take up to STEPS steps on a strip of WIDTH columns and BAND rows.

    Program (i, j, b) computes strip i, band j of pair b. It goes down the rows once; step k follows
    one row behind step k - 1, so a row is loaded and stored once for all steps, and the rows in
    between stay in registers. It also computes STEPS columns and rows around those that it stores,
    because with each step one more pixel from the edge becomes wrong.

    Args:
        push: tau / theta.
    """
    strip, band = tl.program_id(0), tl.program_id(1)
    pair = tl.program_id(2).to(tl.int64)
    pairs = tl.num_programs(2)
    parts = tl.num_programs(0) * tl.num_programs(1)
    area = height * width
    fields = state + pair * 4
    target = tl.load(fields).to(tl.int64)
    source = 1 - target
    steps = tl.load(fields + 1)
    slot = tl.where(tl.load(fields + 3) == 1, SMOOTHED, source)
    # It stores the columns from left to right - 1 and the rows from top to bottom - 1.
    left = strip * (WIDTH - 2 * STEPS)
    right = tl.minimum(left + WIDTH - 2 * STEPS, width)
    top = band * BAND
    bottom = tl.minimum(top + BAND, height)
    x = left - STEPS + tl.arange(0, WIDTH)
    changes = _walk(
        u + (slot * pairs + pair) * 2 * area + x,
        p + (source * pairs + pair) * 4 * area + x,
        data + pair * 3 * area + x,
        u + (target * pairs + pair) * 2 * area + x,
        p + (target * pairs + pair) * 4 * area + x,
        x, left, right, top, bottom, steps, height, width, reach, tau, push, STEPS, WIDTH,
    )  # fmt: skip
    part = band * tl.num_programs(0) + strip
    for k in tl.static_range(STEPS):
        tl.store(sums + (pair * STEPS + k) * parts + part, tl.sum(changes[k], 0), steps > 0)


@part_of_kernel
def _walk(
    u_from, p_from, data_from, u_to, p_to, x, left, right, top, bottom, steps,
    height, width, reach, tau, push, STEPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Go down the rows; return the squared changes of the flow, by step and column, float64."""
    area = height * width
    begin = tl.maximum(top - STEPS, 0)
    end = tl.where(steps > 0, bottom + STEPS, begin)
    load_end = tl.minimum(end, height)
    # Forward differences are 0 in the last column, and left of the image.
    has_right = (x >= 0) & (x < width - 1)
    zero = tl.zeros((WIDTH,), tl.float32)
    above = ((zero, zero, zero, zero, zero, zero, zero, zero, zero, zero),) * STEPS
    changes = (tl.zeros((WIDTH,), tl.float64),) * STEPS
    next_row = _load_row(u_from, p_from, data_from, x, begin, load_end, area, width)
    for y in range(begin, end):
        row = next_row
        # Prefetch: needed only for the next row, and loaded while this one is computed.
        next_row = _load_row(u_from, p_from, data_from, x, y + 1, load_end, area, width)
        new_above = ()
        new_changes = ()
        for k in tl.static_range(STEPS):
            across = has_right & (y > k)
            down = (y > k) & (y - k < height)
            active = (k < steps).to(tl.float32)
            row, last, change = _step(row, above[k], active, across, down, reach, tau, push, WIDTH)
            change = tl.where(_owned(x, y - k, left, right, top, bottom), change, 0.0)
            new_changes = new_changes + (changes[k] + change.to(tl.float64),)
            new_above = new_above + (last,)
        above = new_above
        changes = new_changes
        done = y - STEPS
        mask = _owned(x, done, left, right, top, bottom)
        for i in tl.static_range(2):
            tl.store(u_to + i * area + done * width, row[i], mask)
        for i in tl.static_range(4):
            tl.store(p_to + i * area + done * width, row[2 + i], mask)
    return changes


# The next two functions compare numbers with a bound that may be 0, instead of combining a row of
# booleans with a single one: the interpreter cannot use such a combination as a mask.


@part_of_kernel
def _owned(x, y, left, right, top, bottom):
    return (x >= left) & (x < tl.where((y >= top) & (y < bottom), right, 0))


@part_of_kernel
def _load_row(u, p, data, x, y, end, area, width):
    """Return flow (2), dual field (4), gradient (2), slope and offset of the data term of a row."""
    at = y * width
    mask = (x >= 0) & (x < tl.where(y < end, width, 0))
    g_x = tl.load(data + at, mask, 0.0)
    g_y = tl.load(data + area + at, mask, 0.0)
    return (
        tl.load(u + at, mask, 0.0),
        tl.load(u + area + at, mask, 0.0),
        tl.load(p + at, mask, 0.0),
        tl.load(p + area + at, mask, 0.0),
        tl.load(p + 2 * area + at, mask, 0.0),
        tl.load(p + 3 * area + at, mask, 0.0),
        g_x,
        g_y,
        _slope(g_x, g_y),
        tl.load(data + 2 * area + at, mask, 0.0),
    )


@part_of_kernel
def _step(row, above, active, across, down, reach, tau, push, WIDTH: tl.constexpr):
    """Take one step: the flow of `row`, and then the dual field of the row above it.

    Args:
        row: as `_load_row` returns it, before the step.
        above: the row above, whose flow is that after the step.
        active: 1.0; or 0.0, then nothing changes.
        across: where the row above has forward differences along x; elsewhere they are 0.
        down: whether it has forward differences along y.

    Returns:
        The row above after the step; `above` for the next row; the squared change of the flow.
    """
    u_x, u_y, px_x, px_y, py_x, py_y, g_x, g_y, slope, offset = row
    a_x, a_y, ax_x, ax_y, ay_x, ay_y, ag_x, ag_y, a_slope, a_offset = above
    # Data term: go along the gradient until the brightness error is 0, at most by `reach`.
    length = offset + slope * (g_x * u_x + g_y * u_y)
    length = tl.minimum(tl.maximum(length, -reach), reach)
    d_x = g_x * length + (px_x - _shifted(px_x, -1, WIDTH) + py_x - ay_x)
    d_y = g_y * length + (px_y - _shifted(px_y, -1, WIDTH) + py_y - ay_y)
    d_x *= active
    d_y *= active
    tau *= active
    push *= active
    u_x += d_x
    u_y += d_y
    # Dual field: ascend along the gradient of the flow, then shrink towards the unit ball.
    new_xx, new_yx = _ascend(a_x, u_x, ax_x, ay_x, across, down, tau, push, WIDTH)
    new_xy, new_yy = _ascend(a_y, u_y, ax_y, ay_y, across, down, tau, push, WIDTH)
    done = (a_x, a_y, new_xx, new_xy, new_yx, new_yy, ag_x, ag_y, a_slope, a_offset)
    last = (u_x, u_y, px_x, px_y, py_x, py_y, g_x, g_y, slope, offset)
    return done, last, d_x * d_x + d_y * d_y


@part_of_kernel
def _ascend(u, below, p_x, p_y, across, down, tau, push, WIDTH: tl.constexpr):
    """Return the dual field of one part of the flow after the step, in the row of `u`."""
    g_x = tl.where(across, _shifted(u, 1, WIDTH) - u, 0.0)
    g_y = tl.where(down, below - u, 0.0)
    scale = 1.0 / (1.0 + push * tl.sqrt(g_x * g_x + g_y * g_y))
    return (p_x + tau * g_x) * scale, (p_y + tau * g_y) * scale


@part_of_kernel
def _shifted(row, by: tl.constexpr, WIDTH: tl.constexpr):
    """Return, for each column, the value `by` columns further; the first or last one repeats.

    One program is one warp: with 32 columns this is one exchange of registers (a shuffle).
    """
    column = tl.arange(0, WIDTH) + by
    return tl.gather(row, tl.minimum(tl.maximum(column, 0), WIDTH - 1), 0)


@triton.jit(do_not_specialize=SIZES)
def answer(u, state, out, height, width, BLOCK: tl.constexpr):
    """Write the flow of each pair as (B, H, W, 2); program (i, b) writes block i of pair b."""
    pair = tl.program_id(1).to(tl.int64)
    area = height * width
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < area
    side = tl.load(state + pair * 4).to(tl.int64)
    flow = u + (side * tl.num_programs(1) + pair) * 2 * area + place
    target = out + (pair * area + place) * 2
    tl.store(target, tl.load(flow, inside, 0.0), inside)
    tl.store(target + 1, tl.load(flow + area, inside, 0.0), inside)
