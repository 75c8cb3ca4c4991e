"""Arithmetic on values, element by element, in what the vector unit has.

Helpers broadcast their arguments and take numbers. Accuracy where a function is made of others: the
error stated, in ulp of fp32, measured by tests/compiler.
"""

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from tapeout.compiler.values import Number, Shape, Value, expand, mapped, number

F32, BOOL = torch.float32, torch.bool
Input = Value | float | int

LOG2_E = math.log2(math.e)
LN_2 = math.log(2)
LARGE = float(2**22)  # from here on every fp32 has at most one bit behind the point
ROUNDER = 1.5 * 2.0**23  # adding it rounds to an integer


def shape_of(args: Sequence[Input]) -> Shape:
    """The shape that the arguments broadcast to."""
    return tuple(torch.broadcast_shapes(*[a.shape for a in args if isinstance(a, Value)]))


def apply(op: str, *args: Input, dtype: torch.dtype = F32) -> Value:
    """`op` of the arguments, broadcast."""
    shape = shape_of(args)
    values = [expand(a, shape) if isinstance(a, Value) else number(a, F32, shape) for a in args]
    return mapped(op, tuple(values), dtype)


def add(a: Input, b: Input) -> Value:
    return apply("add", a, b)


def total(values: Iterable[Value]) -> Value:
    """The sum of one value or more, from the first on."""
    return functools.reduce(add, values)


def sub(a: Input, b: Input) -> Value:
    return apply("sub", a, b)


def mul(a: Input, b: Input) -> Value:
    for x, factor in ((a, b), (b, a)):
        if isinstance(x, Value) and x.dtype == F32 and factor == 1 and isinstance(factor, float):
            return x
    return apply("mul", a, b)


def fma(a: Input, b: Input, c: Input) -> Value:
    """a * b + c, rounded once."""
    return apply("fma", a, b, c)


def maximum(a: Input, b: Input) -> Value:
    return apply("max", a, b)


def minimum(a: Input, b: Input) -> Value:
    return apply("min", a, b)


def where(c: Input, a: Input, b: Input) -> Value:
    """a where c is not zero, else b."""
    return apply("select", a, b, c)


def ge(a: Input, b: Input) -> Value:
    return apply("ge", a, b, dtype=BOOL)


def gt(a: Input, b: Input) -> Value:
    return apply("gt", a, b, dtype=BOOL)


def eq(a: Input, b: Input) -> Value:
    return apply("eq", a, b, dtype=BOOL)


def logical_not(a: Input) -> Value:
    return eq(a, 0.0)


def ne(a: Input, b: Input) -> Value:
    return logical_not(eq(a, b))


def negative(a: Input) -> Value:
    return apply("neg", a)


def absolute(a: Input) -> Value:
    return apply("abs", a)


def floor(a: Input) -> Value:
    return apply("floor", a)


def ceil(a: Input) -> Value:
    return negative(floor(negative(a)))


def trunc(a: Input) -> Value:
    return with_sign(floor(absolute(a)), a)


def with_sign(magnitude: Input, a: Input) -> Value:
    """`magnitude` with the sign of a (zero is positive)."""
    return where(gt(0.0, a), negative(magnitude), magnitude)


def round_even(a: Input) -> Value:
    """The nearest integer, ties to even."""
    near = with_sign(sub(add(absolute(a), ROUNDER), ROUNDER), a)
    return where(gt(LARGE, absolute(a)), near, a)


def sign(a: Input) -> Value:
    return sub(gt(a, 0.0), gt(0.0, a))


def is_nan(a: Input) -> Value:
    return logical_not(eq(a, a))


def is_inf(a: Input) -> Value:
    return eq(absolute(a), math.inf)


def reciprocal(a: Input) -> Value:
    known = a.value if isinstance(a, Number) else a
    if isinstance(known, (int, float)) and math.isfinite(known) and np.float32(known) != 0:
        shape = a.shape if isinstance(a, Number) else ()
        return number(float(np.float32(1) / np.float32(known)), F32, shape)
    return apply("recip", a)


def divide(a: Input, b: Input) -> Value:
    """a / b; 1.6 ulp."""
    if isinstance(b, (int, float)) and b != 0 and math.frexp(abs(b))[0] == 0.5:
        return mul(a, 1.0 / b)
    return mul(a, reciprocal(b))


def quotient(a: Input, b: Input) -> Value:
    """a / b with the error of the product taken out: exact where the quotient is."""
    r = reciprocal(b)
    q = mul(a, r)
    better = fma(fma(negative(q), b, a), r, q)
    return where(gt(math.inf, absolute(better)), better, q)  # not where q is not finite


def floor_divide(a: Input, b: Input) -> Value:
    """floor(a / b), exact for integers."""
    q = floor(quotient(a, b))
    rest = fma(negative(q), b, a)
    opposite = gt(0.0, mul(rest, b))  # the remainder has another sign than b: q is one too large
    too_small = ge(absolute(rest), absolute(b))
    step = sub(where(opposite, 0.0, too_small), opposite)
    exact = add(q, step)
    return where(gt(math.inf, absolute(rest)), exact, q)


def trunc_divide(a: Input, b: Input) -> Value:
    """a / b rounded toward zero, exact for integers."""
    q = floor_divide(absolute(a), absolute(b))
    return where(gt(0.0, mul(sign(a), sign(b))), negative(q), q)


def remainder(a: Input, b: Input) -> Value:
    """a - b * floor(a / b): has the sign of b."""
    return fma(negative(floor_divide(a, b)), b, a)


def fmod(a: Input, b: Input) -> Value:
    """a - b * trunc(a / b): has the sign of a."""
    return fma(negative(trunc_divide(a, b)), b, a)


def exp(a: Input, *, fast: bool = False) -> Value:
    """e^a; 1.7 ulp. `fast`: one step, an error of |a| more ulp."""
    if fast:
        return apply("exp2", mul(a, LOG2_E))
    hi_of, lo_of = _split(LOG2_E)
    x = maximum(minimum(a, 256.0), -256.0)
    hi = mul(x, hi_of)
    lo = fma(x, lo_of, fma(x, hi_of, negative(hi)))
    e = apply("exp2", hi)
    return where(gt(math.inf, e), fma(mul(lo, LN_2), e, e), e)


def exp_below(a: Input) -> Value:
    """e^a of a that are not above zero by more than rounding; 2.2 ulp."""
    hi_of, lo_of = _split(LOG2_E)
    x = maximum(a, -256.0)
    hi = mul(x, hi_of)
    lo = fma(x, lo_of, apply("fms", x, hi_of, hi))
    return mul(add(mul(lo, LN_2), 1.0), apply("exp2", hi))


def _split(x: float) -> tuple[float, float]:
    """x as the nearest fp32 and what is left."""
    hi = float(np.float32(x))
    return hi, float(np.float32(x - hi))


def log2(a: Input) -> Value:
    return apply("log2", a)


def log(a: Input) -> Value:
    return mul(log2(a), LN_2)


def log10(a: Input) -> Value:
    return mul(log2(a), math.log10(2))


def log1p(a: Input) -> Value:
    """log(1 + a), of small a too."""
    u = add(a, 1.0)
    d = sub(u, 1.0)
    y = mul(log(u), divide(a, d))
    y = where(eq(d, 0.0), a, y)
    return where(eq(u, math.inf), u, y)


def polynomial(x: Input, coefficients: Sequence[float]) -> Value:
    """Highest power first."""
    y: Input = coefficients[0]
    for c in coefficients[1:]:
        y = fma(y, x, c)
    assert isinstance(y, Value)
    return y


def expm1(a: Input) -> Value:
    small = polynomial(a, [1 / math.factorial(n) for n in range(9, 0, -1)])
    return where(gt(0.5, absolute(a)), mul(small, a), sub(exp(a), 1.0))


def sinh(a: Input) -> Value:
    x = absolute(a)
    square = mul(x, x)
    odd = polynomial(square, [1 / math.factorial(n) for n in (11, 9, 7, 5, 3, 1)])
    half = exp(mul(x, 0.5))
    large = sub(mul(mul(half, 0.5), half), mul(exp(negative(x)), 0.5))
    return where(gt(1.0, x), mul(odd, a), with_sign(large, a))


def cosh(a: Input) -> Value:
    x = absolute(a)
    half = exp(mul(x, 0.5))
    return add(mul(mul(half, 0.5), half), mul(exp(negative(x)), 0.5))


def tan(a: Input) -> Value:
    return divide(apply("sin", a), apply("cos", a))


# asin(x) = x + x^3 p(x^2) on [0, 1/2]; atan(x) = x + x^3 q(x^2) on [0, tan(pi/8)]: least squares at
# Chebyshev points, fitted where this module is imported.


def _fitted(f, high: float, degree: int) -> list[float]:
    """p of `degree` with f(x) = x + x^3 p(x^2) on (0, high]; highest power first."""
    t = (np.cos(np.pi * (np.arange(200) + 0.5) / 200) + 1) / 2 * high**2
    x = np.sqrt(t)
    return [float(c) for c in np.polyfit(t, (f(x) - x) / x**3, degree)]


_ASIN = _fitted(np.arcsin, 0.5, 6)
_ATAN = _fitted(np.arctan, math.tan(math.pi / 8), 5)


def _odd(x: Input, coefficients: Sequence[float]) -> Value:
    square = mul(x, x)
    return fma(mul(square, polynomial(square, coefficients)), x, x)


def asin(a: Input) -> Value:
    x = absolute(a)
    root = apply("sqrt", mul(sub(1.0, x), 0.5))
    y = where(ge(0.5, x), _odd(x, _ASIN), fma(_odd(root, _ASIN), -2.0, math.pi / 2))
    return with_sign(y, a)


def acos(a: Input) -> Value:
    x = absolute(a)
    root = apply("sqrt", mul(sub(1.0, x), 0.5))
    tail = mul(_odd(root, _ASIN), 2.0)
    far = where(gt(0.0, a), sub(math.pi, tail), tail)
    return where(ge(0.5, x), sub(math.pi / 2, _odd(a, _ASIN)), far)


def atan(a: Input) -> Value:
    x = absolute(a)
    large = gt(x, 1.0)
    x = where(large, reciprocal(x), x)
    upper = gt(x, math.tan(math.pi / 8))  # atan(x) = pi/4 + atan((x - 1) / (x + 1))
    z = where(upper, divide(sub(x, 1.0), add(x, 1.0)), x)
    y = _odd(z, _ATAN)
    y = where(upper, add(y, math.pi / 4), y)
    return with_sign(where(large, sub(math.pi / 2, y), y), a)


def atan2(y: Input, x: Input) -> Value:
    """The angle of (x, y); both infinite or zero as in IEEE 754, but for the sign of zero."""
    ax, ay = absolute(x), absolute(y)
    both = mul(is_inf(x), is_inf(y))
    ax, ay = where(both, 1.0, ax), where(both, 1.0, ay)
    steep = gt(ay, ax)
    small, large = where(steep, ax, ay), where(steep, ay, ax)
    t = atan(where(eq(large, 0.0), 0.0, divide(small, large)))
    t = where(steep, sub(math.pi / 2, t), t)
    t = where(gt(0.0, x), sub(math.pi, t), t)
    t = where(gt(0.0, y), negative(t), t)
    return where(is_nan(add(x, y)), where(both, t, math.nan), t)


def asinh(a: Input) -> Value:
    x = absolute(a)
    square = mul(x, x)
    y = log1p(add(x, divide(square, add(apply("sqrt", add(square, 1.0)), 1.0))))
    y = where(gt(x, 1e9), add(log(x), LN_2), y)
    return with_sign(y, a)


def acosh(a: Input) -> Value:
    t = sub(a, 1.0)
    y = log1p(add(t, apply("sqrt", fma(t, t, mul(t, 2.0)))))
    return where(gt(a, 1e9), add(log(a), LN_2), y)


def atanh(a: Input) -> Value:
    x = absolute(a)
    y = mul(log1p(divide(mul(x, 2.0), sub(1.0, x))), 0.5)
    return with_sign(y, a)


def power(a: Input, b: Input) -> Value:
    """a^b as 2^(b log2 |a|): the error grows with the exponent of the result, 2^-22 of it."""
    if isinstance(b, (int, float)):
        return _power_of(a, float(b))
    whole = eq(floor(b), b)
    odd = mul(whole, ne(floor(mul(b, 0.5)), mul(b, 0.5)))
    y = apply("exp2", mul(log2(absolute(a)), b))
    y = where(eq(b, 0.0), 1.0, where(eq(a, 1.0), 1.0, y))
    y = where(eq(absolute(a), 1.0), 1.0, y)
    negated = where(odd, negative(y), y)
    below = gt(0.0, a)
    finite = gt(math.inf, absolute(a))
    invalid = mul(mul(below, finite), logical_not(whole))
    return where(invalid, math.nan, where(below, negated, y))


def _power_of(a: Input, b: float) -> Value:
    if b == 0.5:
        return apply("sqrt", a)
    if b == -0.5:
        return apply("rsqrt", a)
    if not b.is_integer() or abs(b) > 16:
        return power(a, number(b, F32, shape_of([a])))
    if b == 0:
        return _ones(a)
    y: Value | None = None
    square: Input = a
    n = int(abs(b))
    while n:
        if n & 1:
            y = apply("copy", square) if y is None else mul(y, square)
        n >>= 1
        if n:
            square = mul(square, square)
    assert y is not None
    return reciprocal(y) if b < 0 else y


def _ones(a: Input) -> Value:
    return Number(shape_of([a]), F32, 1.0)
