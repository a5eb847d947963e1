"""Sixteen float32 numbers as one value inside Numba functions.

Numba leaves it to LLVM to find what can be done sixteen at a time. In loops over a dozen planes it
finds nothing, because any two might overlap. Here the program says it: `load` gives sixteen
numbers, `+ - * /` and the functions below work on each of them, `store` puts them back. LLVM makes
of it what the processor has: one AVX-512 instruction, two of AVX, four of NEON.

All functions are for use in compiled code only. Arrays are float32, one-dimensional, contiguous;
nothing is checked at their ends.
"""

import operator
from collections.abc import Callable
from typing import Any, ClassVar

import llvmlite
import numba.core.typing.templates
import numba.extending
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import ConcreteTemplate
from numba.extending import models

# Numba has types for some of its functions; these it has not, or not these.
_Inline = Callable[[Callable[..., Any]], Callable[..., Any]]
_signature: Callable[..., Any] = numba.core.typing.templates.signature
_infer_global: Callable[..., Any] = numba.core.typing.templates.infer_global
_register_model: Callable[..., Any] = numba.extending.register_model
_lower_builtin: Callable[..., Any] = numba.extending.lower_builtin
_declared: Callable[..., Any] = cgutils.get_or_insert_function
_tuple_of: Callable[..., Any] = types.UniTuple
# A function of this kind writes the LLVM instructions of its calls. Its first argument is Numba's.
intrinsic: _Inline = numba.extending.intrinsic

LANES = 16
LLVM_VERSION: str = llvmlite.__version__
_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_QUARTER = ir.VectorType(_FLOAT, 4)


class _Floats(types.Type):
    """The type, for Numba."""

    def __init__(self, width: int) -> None:
        super().__init__(name=f"Floats{width}")
        self.width = width


@_register_model(_Floats)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: _Floats) -> None:
        kind = ir.VectorType(_FLOAT, fe_type.width)
        super().__init__(manager, fe_type, kind)  # type: ignore[no-untyped-call]  # Numba's


floats = _Floats(LANES)
quarter = _Floats(4)


def _define(symbol: Callable[..., Any], instruction: str) -> None:
    """Let an operator of Python work on two vectors by an instruction of LLVM."""

    @_infer_global(symbol)
    class Template(ConcreteTemplate):
        cases: ClassVar = [_signature(kind, kind, kind) for kind in (floats, quarter)]

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args, flags=("contract",))

    for kind in (floats, quarter):
        _lower_builtin(symbol, kind, kind)(lower)


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")
_define(operator.truediv, "fdiv")


def _pointer(context: Any, builder: Any, sig: Any, args: Any, kind: Any) -> Any:
    array = context.make_array(sig.args[0])(context, builder, args[0])
    place = builder.gep(array.data, [args[1]])
    return builder.bitcast(place, kind.as_pointer())


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """Return array[index : index + 16]."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, sig, args, _VECTOR), align=4)

    return floats(array, index), lower


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Set array[index : index + 16]; or 4 numbers, of what `quarters` returns."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.VectorType(_FLOAT, value.width)
        builder.store(args[2], _pointer(context, builder, sig, args, kind), align=4)
        return context.get_dummy_value()

    return types.void(array, index, value), lower


def _splat(builder: Any, value: Any, width: int) -> Any:
    kind = ir.VectorType(_FLOAT, width)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INT, width), [0] * width))


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """Return sixteen times a float32."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[0], LANES)

    return floats(types.float32), lower


def _call(builder: Any, name: str, args: Any) -> Any:
    kind = args[0].type
    function = _declared(
        builder.module, ir.FunctionType(kind, [kind] * len(args)), f"llvm.{name}.v{kind.count}f32"
    )
    return builder.call(function, args)


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once where the processor can."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, "fmuladd", args)

    return a(a, b, c), lower


@intrinsic
def sqrt(typing: Any, a: Any) -> Any:
    """Return the square roots."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, "sqrt", args)

    return a(a), lower


@intrinsic
def low(typing: Any, a: Any, b: Any) -> Any:
    """Return the lower of each two."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return a(a, b), lower


@intrinsic
def high(typing: Any, a: Any, b: Any) -> Any:
    """Return the higher of each two."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return a(a, b), lower


@intrinsic
def floor(typing: Any, a: Any) -> Any:
    """Return the numbers rounded down."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, "floor", args)

    return a(a), lower


@intrinsic
def count_from(typing: Any, start: Any) -> Any:
    """Return start, start + 1 ... start + 15 for a float32."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        steps = ir.Constant(_VECTOR, [float(lane) for lane in range(LANES)])
        return builder.fadd(_splat(builder, args[0], LANES), steps)

    return floats(types.float32), lower


@intrinsic
def keep(typing: Any, a: Any, num: Any) -> Any:
    """Return the first `num` numbers (int64), the rest 0."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lanes = ir.VectorType(_INT, LANES)
        count = builder.trunc(args[1], _INT)
        one = builder.insert_element(ir.Constant(lanes, ir.Undefined), count, ir.Constant(_INT, 0))
        limit = builder.shuffle_vector(one, one, ir.Constant(lanes, [0] * LANES))
        mask = builder.icmp_signed("<", ir.Constant(lanes, list(range(LANES))), limit)
        return builder.select(mask, args[0], ir.Constant(_VECTOR, [0.0] * LANES))

    return floats(floats, types.int64), lower


@intrinsic
def total(typing: Any, a: Any) -> Any:
    """Return the sum, in float64 and added pairwise: always in the same order."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        width = LANES
        value = builder.fpext(args[0], ir.VectorType(ir.DoubleType(), width))
        while width > 1:
            width //= 2
            value = _fold(builder, value, width)
        return builder.extract_element(value, ir.Constant(_INT, 0))

    return types.float64(floats), lower


# What follows is of one use only, but made of the same stuff.

# Of the cubic that OpenCV interpolates by (a = -0.75): for each of the four neighbours the factors
# of 1, f, f^2 and f^3, f being the way from the second neighbour to the third.
_A = -0.75
_CUBIC = (
    (0.0, 1.0, 0.0, 0.0),
    (_A, 0.0, -_A, 0.0),
    (-2 * _A, -(_A + 3), 2 * _A + 3, _A),
    (_A, _A + 2, -(_A + 2), -_A),
)


@intrinsic
def cubic_weights(typing: Any, f: Any) -> Any:
    """Return the weights of the four neighbours, a vector each."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        weights = []
        for neighbour in range(4):
            factors = [ir.Constant(_VECTOR, [row[neighbour]] * LANES) for row in _CUBIC]
            weights.append(_polynomial(builder, args[0], factors))
        return context.make_tuple(builder, sig.return_type, weights)

    return _tuple_of(floats, 4)(f), lower


def _polynomial(builder: Any, x: Any, factors: list[Any]) -> Any:
    value = factors[3]
    for factor in factors[2::-1]:
        value = _call(builder, "fmuladd", (value, x, factor))
    return value


@intrinsic
def sample(typing: Any, array: Any, place: Any, step: Any, corner: Any, row: Any) -> Any:
    """Interpolate an image of four values a pixel by OpenCV's cubic, at one position.

    Args:
        typing: of Numba.
        array: float32; at `place`, `place + step` ... are seven numbers: column and row of the
            pixel on the upper left of the position, the way from there to the right (0..1), and
            the weights of the four rows.
        place: int64.
        step: int64.
        corner: index of the pixel on the upper left of pixel (0, 0).
        row: numbers in a row of the image.

    Returns:
        Four numbers.
    """

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, place, step, corner, row = args
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        numbers = []
        for _ in range(7):
            numbers.append(builder.load(builder.gep(data, [place])))
            place = builder.add(place, step)
        x, y = (builder.fptosi(number, _INT) for number in numbers[:2])
        x, y = (builder.sext(number, row.type) for number in (x, y))
        first = builder.add(builder.mul(y, row), builder.mul(x, ir.Constant(row.type, 4)))
        value = ir.Constant(_VECTOR, [0.0] * LANES)
        rows = _loads(builder, data, builder.add(corner, first), 4, row)
        for pixels, weight in zip(rows, numbers[3:], strict=True):
            value = _call(builder, "fmuladd", (pixels, _splat(builder, weight, LANES), value))
        # The weight of each pixel four times, one for each of its values.
        factors = [ir.Constant(_VECTOR, [w for w in line for _ in range(4)]) for line in _CUBIC]
        across = _polynomial(builder, _splat(builder, numbers[2], LANES), factors)
        value = builder.fmul(value, across)
        for width in (8, 4):
            value = _fold(builder, value, width)
        return value

    return quarter(array, types.int64, types.int64, types.int64, types.int64), lower


@intrinsic
def interpolate(typing: Any, array: Any, line: Any, column: Any, way: Any) -> Any:
    """Return the number between two neighbours of a line, as float32.

    Args:
        typing: of Numba.
        array: float32.
        line: int64, index of the line's first number.
        column: index of the number that says which is the first neighbour, from 0.
        way: index of the number that says how far it is from there to the next, 0..1.
    """

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, line, column, way = args
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        column, way = (builder.load(builder.gep(data, [index])) for index in (column, way))
        place = builder.add(line, builder.sext(builder.fptosi(column, _INT), line.type))
        one = ir.Constant(line.type, 1)
        a, b = (builder.load(builder.gep(data, [i])) for i in (place, builder.add(place, one)))
        return builder.fadd(a, builder.fmul(way, builder.fsub(b, a)), flags=("contract",))

    return types.float32(array, types.int64, types.int64, types.int64), lower


def _fold(builder: Any, value: Any, width: int) -> Any:
    """Add the upper half of a vector to its lower half."""
    halves = [
        builder.shuffle_vector(
            value, value, ir.Constant(ir.VectorType(_INT, width), list(range(s, s + width)))
        )
        for s in (0, width)
    ]
    return builder.fadd(*halves)


@intrinsic
def zip_4(typing: Any, array: Any, index: Any, a: Any, b: Any, c: Any) -> Any:
    """Set array[index : index + 64] to a[0], b[0], c[0], 0, a[1], b[1], c[1], 0 ..."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        wide = ir.VectorType(_FLOAT, 4 * LANES)
        none = ir.Constant(_VECTOR, [0.0] * LANES)
        order = ir.Constant(ir.VectorType(_INT, 2 * LANES), list(range(2 * LANES)))
        ab = builder.shuffle_vector(args[2], args[3], order)
        c0 = builder.shuffle_vector(args[4], none, order)
        mask = [lane + k * LANES for lane in range(LANES) for k in range(4)]
        zipped = builder.shuffle_vector(ab, c0, ir.Constant(ir.VectorType(_INT, 4 * LANES), mask))
        builder.store(zipped, _pointer(context, builder, sig, args, wide), align=4)
        return context.get_dummy_value()

    return types.void(array, index, floats, floats, floats), lower


@intrinsic
def unzip(typing: Any, array: Any, index: Any) -> Any:
    """Return three vectors: of array[index:], numbers 0, 4, 8 ..., numbers 1, 5 ..., 2, 6 ..."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        wide = ir.VectorType(_FLOAT, 4 * LANES)
        value = builder.load(_pointer(context, builder, sig, args, wide), align=4)
        parts = [
            builder.shuffle_vector(
                value,
                value,
                ir.Constant(ir.VectorType(_INT, LANES), list(range(k, 4 * LANES, 4))),
            )
            for k in range(3)
        ]
        return context.make_tuple(builder, sig.return_type, parts)

    return _tuple_of(floats, 3)(array, index), lower


def _exchange(builder: Any, values: list[Any], i: int, j: int) -> None:
    a, b = values[i], values[j]
    values[i], values[j] = _low(builder, a, b), _high(builder, a, b)


def _low(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _high(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _sort_5(builder: Any, values: list[Any]) -> list[Any]:
    """Sort elementwise, lowest first, by the nine exchanges that are known to do."""
    for i, j in ((0, 3), (1, 4), (0, 2), (1, 3), (0, 1), (2, 4), (1, 2), (3, 4), (2, 3)):
        _exchange(builder, values, i, j)
    return values


def _merge(builder: Any, a: list[Any], b: list[Any]) -> list[Any]:
    """Merge two elementwise sorted lists (Batcher's odd-even merge)."""
    if not (a and b):
        return [*a, *b]
    if len(a) == len(b) == 1:
        return [_low(builder, a[0], b[0]), _high(builder, a[0], b[0])]
    odd = _merge(builder, a[0::2], b[0::2])
    even = _merge(builder, a[1::2], b[1::2])
    merged = odd[:1]
    for x, y in zip(even, odd[1:], strict=False):
        merged += [_low(builder, x, y), _high(builder, x, y)]
    return merged + even[len(odd) - 1 :] + odd[len(even) + 1 :]


def _loads(builder: Any, data: Any, index: Any, num: int, step: Any) -> list[Any]:
    values = []
    for _ in range(num):
        place = builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())
        values.append(builder.load(place, align=4))
        index = builder.add(index, step)
    return values


def _stores(builder: Any, data: Any, index: Any, values: list[Any], step: Any) -> None:
    for value in values:
        place = builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())
        builder.store(value, place, align=4)
        index = builder.add(index, step)


@intrinsic
def sort_fives(typing: Any, array: Any, source: Any, to: Any, step: Any) -> Any:
    """Sort each number with the two on its left and the two on its right.

    The five numbers lowest first go to array[to], [to + step] ... [to + 4 step], 16 of each.
    """

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        first = builder.sub(args[1], ir.Constant(args[1].type, 2))
        values = _loads(builder, data, first, 5, ir.Constant(args[1].type, 1))
        _stores(builder, data, args[2], _sort_5(builder, values), args[3])
        return context.get_dummy_value()

    return types.void(array, source, to, step), lower


@intrinsic
def merge_fives(typing: Any, array: Any, a: Any, b: Any, to: Any, step: Any) -> Any:
    """Merge what `sort_fives` left at `a` and at `b` into ten at `to`."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        fives = [_loads(builder, data, index, 5, args[4]) for index in args[1:3]]
        _stores(builder, data, args[3], _merge(builder, *fives), args[4])
        return context.get_dummy_value()

    return types.void(array, a, b, to, step), lower


@intrinsic
def two_medians(
    typing: Any, array: Any, tens: Any, other_tens: Any, above: Any, below: Any, step: Any
) -> Any:
    """Return the medians of two windows of 25 that share 20 numbers.

    Args:
        typing: of Numba.
        array: float32.
        tens: index of ten sorted, as `merge_fives` left them.
        other_tens: of ten more; both windows hold these twenty.
        above: of five sorted, which only the first window holds.
        below: of five sorted, which only the second holds.
        step: between the indices of two that are sorted.
    """

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        a, b = (_loads(builder, data, index, 10, args[5]) for index in args[1:3])
        # The lower ten of the twenty, then the upper ten; each rises and falls (or falls and
        # rises), so that comparing its halves parts the five highest from the five lowest.
        lower_ten = [_low(builder, x, y) for x, y in zip(a, reversed(b), strict=True)]
        upper_ten = [_high(builder, x, y) for x, y in zip(a, reversed(b), strict=True)]
        top = [_high(builder, lower_ten[i], lower_ten[i + 5]) for i in range(5)]
        bottom = [_low(builder, upper_ten[i], upper_ten[i + 5]) for i in range(5)]
        middle = _sort_5(builder, top)[2:] + _sort_5(builder, bottom)[:3]  # ranks 8 to 13
        medians = []
        for index in args[3:5]:
            five = _loads(builder, data, index, 5, args[5])
            # The 13th of 25: i of the five, 13 - i of the twenty, in the best of all such ways.
            median = middle[5]
            for i in range(5):
                median = _low(builder, median, _high(builder, five[i], middle[4 - i]))
            medians.append(median)
        return context.make_tuple(builder, sig.return_type, medians)

    return _tuple_of(floats, 2)(array, tens, other_tens, above, below, step), lower
