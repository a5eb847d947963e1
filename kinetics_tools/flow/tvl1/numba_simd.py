"""SIMD vectors for Numba: sixteen float32 numbers as one value.

LLVM vectorises a loop only if it can prove that the arrays in it do not overlap. In loops over a
dozen planes it cannot. So vectors are explicit here: `load` reads sixteen numbers, `+ - * /` and
the functions below work on each of them, `store` writes them back. LLVM compiles them to the
instructions of the processor: one of AVX-512, two of AVX, four of NEON.

All functions are for use in compiled code only. Arrays are float32, one-dimensional, contiguous;
bounds are not checked.
"""

import operator
from collections.abc import Callable
from typing import Any

import llvmlite
import numba
import numba.extending
from llvmlite import binding, ir
from numba.extending import models

# Numba's own annotations do not cover these.
_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_lower_builtin: Callable[..., _Decorator] = numba.extending.lower_builtin
_type_callable: Callable[..., _Decorator] = numba.extending.type_callable
_register_model: Callable[..., Any] = numba.extending.register_model
# Decorates a function that writes the LLVM instructions of a call; its first argument is Numba's.
intrinsic: _Decorator = numba.extending.intrinsic
types: Any = numba.types
config: Any = numba.config

LANES = 16
_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)


class _Floats(types.Type):  # type: ignore[misc]  # Numba's
    """Numba's type of a vector of `width` numbers."""

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
    """Implement an operator of Python for two vectors by an instruction of LLVM."""

    @_type_callable(symbol)
    def choose(_context: Any) -> Any:
        return lambda a, b: a if isinstance(a, _Floats) and a == b else None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args, flags=("contract",))

    for kind in (floats, quarter):
        _lower_builtin(symbol, kind, kind)(lower)


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")
_define(operator.truediv, "fdiv")


def target() -> tuple[object, ...]:
    """Return all that decides the machine code besides the source: compiler and processor."""
    try:
        features = binding.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM cannot tell for this processor
        features = ""
    return (
        numba.__version__,
        llvmlite.__version__,
        binding.get_process_triple(),
        binding.get_host_cpu_name(),
        features,
        config.CPU_NAME,
        config.CPU_FEATURES,
    )


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
    """Set array[index : index + 16] to a vector, or 4 numbers to what `sample` returns."""

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
    """Return a vector of one float32 number."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[0], LANES)

    return floats(types.float32), lower


def _call(builder: Any, name: str, args: Any) -> Any:
    kind = args[0].type
    function_type = ir.FunctionType(kind, [kind] * len(args))
    function = builder.module.declare_intrinsic(f"llvm.{name}.v{kind.count}f32", fnty=function_type)
    return builder.call(function, args)


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once if the processor can."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, "fmuladd", args)

    return a(a, b, c), lower


@intrinsic
def sqrt(typing: Any, a: Any) -> Any:
    """Return the elementwise square root."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, "sqrt", args)

    return a(a), lower


@intrinsic
def minimum(typing: Any, a: Any, b: Any) -> Any:
    """Return the elementwise minimum; where equal, `b`."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return a(a, b), lower


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """Return the elementwise maximum; where equal, `b`."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return a(a, b), lower


@intrinsic
def floor(typing: Any, a: Any) -> Any:
    """Return the elementwise floor."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, "floor", args)

    return a(a), lower


@intrinsic
def arange(typing: Any, start: Any) -> Any:
    """Return start, start + 1 ... start + 15 for a float32."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        steps = ir.Constant(_VECTOR, [float(lane) for lane in range(LANES)])
        return builder.fadd(_splat(builder, args[0], LANES), steps)

    return floats(types.float32), lower


@intrinsic
def zero_tail(typing: Any, a: Any, num: Any) -> Any:
    """Return the first `num` (int64) numbers, and 0 for the rest."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lanes = ir.VectorType(_INT, LANES)
        count = builder.trunc(args[1], _INT)
        one = builder.insert_element(ir.Constant(lanes, ir.Undefined), count, ir.Constant(_INT, 0))
        limit = builder.shuffle_vector(one, one, ir.Constant(lanes, [0] * LANES))
        mask = builder.icmp_signed("<", ir.Constant(lanes, list(range(LANES))), limit)
        return builder.select(mask, args[0], ir.Constant(_VECTOR, [0.0] * LANES))

    return floats(floats, types.int64), lower


@intrinsic
def vector_sum(typing: Any, a: Any) -> Any:
    """Return the sum in float64, added pairwise: always in the same order."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        width = LANES
        value = builder.fpext(args[0], ir.VectorType(ir.DoubleType(), width))
        while width > 1:
            width //= 2
            value = _fold(builder, value, width)
        return builder.extract_element(value, ir.Constant(_INT, 0))

    return types.float64(floats), lower


# The functions below have one use each.

# OpenCV's cubic interpolation (a = -0.75): for each of the four neighbours the coefficients of 1,
# f, f^2 and f^3, where f is the position between the second neighbour (0) and the third (1).
_A = -0.75
_CUBIC = (
    (0.0, 1.0, 0.0, 0.0),
    (_A, 0.0, -_A, 0.0),
    (-2 * _A, -(_A + 3), 2 * _A + 3, _A),
    (_A, _A + 2, -(_A + 2), -_A),
)


@intrinsic
def cubic_weights(typing: Any, f: Any) -> Any:
    """Return the weights of the four neighbours, one vector each."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        weights = []
        for neighbour in range(4):
            factors = [ir.Constant(_VECTOR, [row[neighbour]] * LANES) for row in _CUBIC]
            weights.append(_polynomial(builder, args[0], factors))
        return context.make_tuple(builder, sig.return_type, weights)

    return types.UniTuple(floats, 4)(f), lower


def _polynomial(builder: Any, x: Any, factors: list[Any]) -> Any:
    value = factors[3]
    for factor in factors[2::-1]:
        value = _call(builder, "fmuladd", (value, x, factor))
    return value


@intrinsic
def sample(typing: Any, array: Any, place: Any, step: Any, corner: Any, row: Any) -> Any:
    """Interpolate an image of four values per pixel by OpenCV's cubic, at one position.

    Args:
        typing: Numba's typing context.
        array: float32; at `place`, `place + step` ... are seven numbers: column and row of the
            pixel up and left of the position, the distance from there to the right (0..1), and the
            weights of the four rows.
        place: int64.
        step: int64.
        corner: int64, index of the pixel up and left of pixel (0, 0).
        row: int64, numbers per row of the image.

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
        # The weight of each pixel four times, once per value.
        factors = [ir.Constant(_VECTOR, [w for w in line for _ in range(4)]) for line in _CUBIC]
        across = _polynomial(builder, _splat(builder, numbers[2], LANES), factors)
        value = builder.fmul(value, across)
        for width in (8, 4):
            value = _fold(builder, value, width)
        return value

    return quarter(array, types.int64, types.int64, types.int64, types.int64), lower


@intrinsic
def interpolate(typing: Any, array: Any, line: Any, column: Any, fraction: Any) -> Any:
    """Interpolate linearly between two neighbours of a line; return a float32 number.

    Args:
        typing: Numba's typing context.
        array: float32.
        line: int64, index of the line's first number.
        column: int64, index of the number of the first neighbour, counted from 0.
        fraction: int64, index of the distance from that neighbour, 0..1.
    """

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, line, column, fraction = args
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        column, fraction = (
            builder.load(builder.gep(data, [index])) for index in (column, fraction)
        )
        place = builder.add(line, builder.sext(builder.fptosi(column, _INT), line.type))
        one = ir.Constant(line.type, 1)
        a, b = (builder.load(builder.gep(data, [i])) for i in (place, builder.add(place, one)))
        return builder.fadd(a, builder.fmul(fraction, builder.fsub(b, a)), flags=("contract",))

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
def interleave_4(typing: Any, array: Any, index: Any, a: Any, b: Any, c: Any) -> Any:
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
def deinterleave(typing: Any, array: Any, index: Any) -> Any:
    """Return three vectors: numbers 0, 4, 8 ... of array[index:], numbers 1, 5 ..., 2, 6 ..."""

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

    return types.UniTuple(floats, 3)(array, index), lower


def _loads(builder: Any, data: Any, index: Any, num: int, step: Any) -> list[Any]:
    values = []
    for _ in range(num):
        place = builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())
        values.append(builder.load(place, align=4))
        index = builder.add(index, step)
    return values
