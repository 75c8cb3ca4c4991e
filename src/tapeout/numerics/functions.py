"""The vector unit's functions of one fp32 operand: deterministic to the bit, a few ulp accurate.

Each is a micro-program (`micro.py`) of fused multiply-adds, bit operations and table look-ups with
the coefficients of `tables.py`. Operands are read with subnormals as zero; a tiny result is zero;
NaN in gives 0x7FC00000 out.

Largest error in ulp of the exact result, measured over the whole range and held by
tests/unit/test_numerics_functions.py, and how many fp32 adds and multiplies each takes:

=========  ====  =====  ==================================================================
function   ulp   steps  remarks
=========  ====  =====  ==================================================================
exp2       0.96  6
log2       1.62  8
recip      0.51  5
rsqrt      1.00  7
sqrt       0.51  7
tanh       1.30  21
erf        0.99  12
sigmoid    2.59  13
silu       2.81  14     for x >= -87; -0 from about -87.3 down
gelu       2.4   16     for x >= -1; below, 1 + erf cancels: absolute error 1.5e-7
gelu_tanh  2.8   16     for x >= -1; 12 ulp down to -4; absolute error below 0 is 4.1e-8
sin, cos   1.42  14     NaN beyond |x| = 2**17
floor      0     4
abs, neg   0     0
=========  ====  =====  ==================================================================
"""

from collections.abc import Callable
from enum import IntEnum
from functools import cache

import numpy as np

from tapeout.numerics import micro
from tapeout.numerics.arith import CANONICAL_NAN_BITS, F32
from tapeout.numerics.micro import Builder, MicroProgram, Value
from tapeout.numerics.tables import SCALARS, TABLES

_INF = 0x7F800000
_NAN = CANONICAL_NAN_BITS
_SIGN = 0x80000000
_MAGNITUDE = 0x7FFFFFFF
_ONE = 0x3F800000
_TWO_TO_126 = 0x7E800000
_EXP2_ROUNDER = 1.5 * 2.0**19  # its last bit is worth 1/16: adding it rounds to a sixteenth
_INTEGER_ROUNDER = 1.5 * 2.0**23
_SIN_COS_LIMIT = 2.0**17


class Function(IntEnum):
    """The functions; the number is the one the ISA and the native code use."""

    EXP2 = 0
    LOG2 = 1
    RECIP = 2
    RSQRT = 3
    SQRT = 4
    TANH = 5
    ERF = 6
    SIGMOID = 7
    SILU = 8
    GELU = 9
    GELU_TANH = 10
    SIN = 11
    COS = 12
    ABS = 13
    NEG = 14
    FLOOR = 15


class _Body:
    """A micro-program being written: the builder, and the flushed operand in its parts."""

    def __init__(self) -> None:
        self.b = Builder()
        raw = self.op("input")
        raw_bits = self.op("as_int", raw)
        raw_magnitude = self.op("iand", raw_bits, self.i(_MAGNITUDE))
        self.sign = self.op("iand", raw_bits, self.i(_SIGN))  # integer
        is_zero = self.op("less", raw_magnitude, self.i(0x00800000))
        zero = self.op("as_float", self.sign)
        self.x = self.op("select", is_zero, zero, raw)  # fp32
        self.bits = self.op("as_int", self.x)
        self.magnitude = self.op("iand", self.bits, self.i(_MAGNITUDE))  # integer

    def op(self, name: str, *arguments: Value, immediate: int = 0) -> Value:
        return self.b.op(name, *arguments, immediate=immediate)

    def i(self, bits: int) -> Value:
        return self.b.i(bits)

    def f(self, value: float) -> Value:
        return self.b.f(value)

    def i_of(self, value: float) -> Value:
        """The bits, as an integer, of a constant that is exact in fp32."""
        return self.i(int(np.float32(value).view(np.uint32)))

    def scalar(self, name: str, index: int = 0) -> Value:
        return self.b.f_bits(SCALARS[name][index])

    def minus_scalar(self, name: str, index: int = 0) -> Value:
        return self.b.f_bits(SCALARS[name][index] ^ _SIGN)

    def twice_scalar(self, name: str, index: int = 0) -> Value:
        return self.b.f_bits(SCALARS[name][index] + 0x00800000)

    def poly(self, name: str) -> list[Value]:
        return [self.b.f_bits(c) for c in SCALARS[name]]

    def lookup(self, name: str, terms: int, index: Value) -> list[Value]:
        """The segment's coefficients, lowest order first."""
        return [self.b.op("table", index, table=f"{name}_C{i}") for i in range(terms)]

    def horner(self, t: Value, coefficients: list[Value]) -> Value:
        """The polynomial in t, lowest order first, by fused multiply-adds."""
        result = coefficients[-1]
        for c in reversed(coefficients[:-1]):
            result = self.op("fma", result, t, c)
        return result

    def when(self, condition: Value, then: Value, otherwise: Value) -> Value:
        return self.op("select", condition, then, otherwise)

    def signed(self, magnitude: Value) -> Value:
        """A fp32 result with the operand's sign or-ed in."""
        return self.op("as_float", self.op("ior", self.op("as_int", magnitude), self.sign))

    def absolute(self) -> Value:
        return self.op("as_float", self.magnitude)

    def negated(self, value: Value) -> Value:
        flipped = self.op("ixor", self.op("as_int", value), self.i(_SIGN))
        return self.op("as_float", flipped)

    def is_zero(self) -> Value:
        return self.op("equal", self.magnitude, self.i(0))

    def is_negative(self) -> Value:
        """The sign bit is set (zero and NaN too)."""
        return self.op("less", self.bits, self.i(0))

    def clamp(self, value: Value, limit: float) -> Value:
        """A fp32 limited to +-limit, keeping its sign."""
        bits = self.op("as_int", value)
        magnitude = self.op("iand", bits, self.i(_MAGNITUDE))
        sign = self.op("iand", bits, self.i(_SIGN))
        at_limit = self.op("as_float", self.op("ior", sign, self.i_of(limit)))
        return self.when(self.op("less", self.i_of(limit), magnitude), at_limit, value)

    def exp2_scaled(self, x: Value, high: Value, low: Value | None) -> Value:
        """2**(x * (high + low)), where the product lies in [-127, 128).

        The product is cut into a multiple of 1/16 and an offset within +-1/32; the multiple's low
        four bits choose the segment, the rest is added to the exponent. A result below 2**-126
        comes out subnormal, which whoever reads it takes as zero.
        """
        rounder = self.f(_EXP2_ROUNDER)
        shifted = self.op("fma", x, high, rounder)
        offset = self.op("fma", x, high, self.op("sub", rounder, shifted))
        if low is not None:
            offset = self.op("fma", x, low, offset)
        k = self.op("as_int", shifted)
        segment = self.op("iand", k, self.i(15))
        mantissa = self.horner(offset, self.lookup("EXP2", 4, segment))
        exponent = self.op("shl", self.op("iand", k, self.i(0xFFFFFFF0)), immediate=19)
        return self.op("as_float", self.op("iadd", self.op("as_int", mantissa), exponent))

    def local_offset(self, bits: Value) -> Value:
        """Offset within +-1/32 from the centre of the mantissa's sixteenth."""
        low = self.op("ior", self.op("iand", bits, self.i(0x0007FFFF)), self.i(_ONE))
        return self.op("sub", self.op("as_float", low), self.f(1 + 1 / 32))

    def recip_positive(self, bits: Value) -> Value:
        """1 / v for the bits of a v >= 2**-126, Inf included; tiny results are +0.

        A quadratic over 16 segments gives 2**-16, one Newton step the rest.
        """
        segment = self.op("iand", self.op("shr", bits, immediate=19), self.i(15))
        guess = self.horner(self.local_offset(bits), self.lookup("RECIP", 3, segment))
        mantissa = self.op("ior", self.op("iand", bits, self.i(0x007FFFFF)), self.i(_ONE))
        minus_m = self.op("as_float", self.op("ior", mantissa, self.i(_SIGN)))
        residue = self.op("fma", minus_m, guess, self.f(1.0))
        refined = self.op("as_int", self.op("fma", guess, residue, guess))
        scaled = self.op("isub", refined, self.op("isub", bits, mantissa))
        is_tiny = self.op("less", self.i(_TWO_TO_126), bits)
        return self.when(is_tiny, self.f(0.0), self.op("as_float", scaled))

    def sigmoid_of_exp(self, e: Value) -> Value:
        """1 / (1 + e) for 0 <= e < 2**128."""
        return self.recip_positive(self.op("as_int", self.op("add", e, self.f(1.0))))

    def weighted(self, weight: Value) -> Value:
        """x * weight, and -0 where the weight is 0 (so that -Inf gives the limit -0, not NaN)."""
        vanished = self.op("equal", self.op("as_int", weight), self.i(0))
        return self.when(vanished, self.f(-0.0), self.op("mul", self.x, weight))


def _exp2(p: _Body) -> Value:
    result = p.exp2_scaled(p.x, p.f(1.0), None)
    overflows = p.op("less", p.i_of(np.nextafter(np.float32(128), np.float32(0))), p.bits)
    result = p.when(overflows, p.b.f_bits(_INF), result)
    below = p.op("less", p.i_of(126.0), p.op("ixor", p.bits, p.i(_SIGN)))  # x < -126
    return p.when(below, p.f(0.0), result)


def _log2(p: _Body) -> Value:
    """x = 2**e * m with m in [0.6875, 1.375); f = m * r - 1; e + log2(1 / r) + f * P(f)."""
    offset = p.op("isub", p.bits, p.i_of(0.6875))
    exponent = p.op("sar", offset, immediate=23)
    segment = p.op("iand", p.op("shr", offset, immediate=19), p.i(15))
    m = p.op("as_float", p.op("isub", p.bits, p.op("shl", exponent, immediate=23)))
    r = p.b.op("table", segment, table="LOG2_R")
    f = p.op("fma", m, r, p.f(-1.0))
    biased = p.op("as_float", p.op("iadd", exponent, p.i_of(_INTEGER_ROUNDER)))
    e = p.op("sub", biased, p.f(_INTEGER_ROUNDER))
    whole = p.op("add", e, p.b.op("table", segment, table="LOG2_L"))
    result = p.op("fma", f, p.horner(f, p.poly("LOG2_POLY")), whole)
    result = p.when(p.op("equal", p.bits, p.i(_INF)), p.b.f_bits(_INF), result)
    result = p.when(p.is_negative(), p.b.f_bits(_NAN), result)
    return p.when(p.is_zero(), p.b.f_bits(_INF | _SIGN), result)


def _recip(p: _Body) -> Value:
    result = p.recip_positive(p.magnitude)
    return p.signed(p.when(p.is_zero(), p.b.f_bits(_INF), result))


def _rsqrt_parts(p: _Body) -> tuple[Value, Value, Value]:
    """(m, guess of 1/sqrt(m), exponent bits above m), m in [0.5, 2) with an even exponent above."""
    segment = p.op("iand", p.op("shr", p.bits, immediate=19), p.i(31))
    guess = p.horner(p.local_offset(p.bits), p.lookup("RSQRT", 3, segment))
    m_bits = p.op("iadd", p.op("iand", p.bits, p.i(0x00FFFFFF)), p.i(0x3F000000))
    above = p.op("sar", p.op("isub", p.bits, m_bits), immediate=1)
    return p.op("as_float", m_bits), guess, above


def _root_specials(p: _Body, result: Value, at_zero: Value, at_inf: Value) -> Value:
    result = p.when(p.op("equal", p.bits, p.i(_INF)), at_inf, result)
    result = p.when(p.is_negative(), p.b.f_bits(_NAN), result)
    return p.when(p.is_zero(), at_zero, result)


def _rsqrt(p: _Body) -> Value:
    m, guess, above = _rsqrt_parts(p)
    minus_m_guess = p.op("mul", p.negated(m), guess)
    residue = p.op("fma", minus_m_guess, guess, p.f(1.0))
    refined = p.op("fma", p.op("mul", guess, p.f(0.5)), residue, guess)
    result = p.op("as_float", p.op("isub", p.op("as_int", refined), above))
    return _root_specials(p, result, p.signed(p.b.f_bits(_INF)), p.f(0.0))


def _sqrt(p: _Body) -> Value:
    m, guess, above = _rsqrt_parts(p)
    root = p.op("mul", m, guess)
    residue = p.op("fma", p.negated(root), root, m)
    refined = p.op("fma", residue, p.op("mul", guess, p.f(0.5)), root)
    result = p.op("as_float", p.op("iadd", p.op("as_int", refined), above))
    return _root_specials(p, result, p.x, p.b.f_bits(_INF))


def _tanh(p: _Body) -> Value:
    """Below 0.625 an odd polynomial; above, 1 - 2 / (1 + exp(2 |x|)), which is 1 from 10 on."""
    a = p.absolute()
    u = p.op("mul", a, a)
    small = p.op("fma", p.op("mul", u, a), p.horner(u, p.poly("TANH_POLY")), a)
    limited = p.clamp(a, 10.0)
    e = p.exp2_scaled(limited, p.twice_scalar("LOG2E", 0), p.twice_scalar("LOG2E", 1))
    large = p.op("fma", p.sigmoid_of_exp(e), p.f(-2.0), p.f(1.0))
    return p.signed(p.when(p.op("less", p.magnitude, p.i_of(0.625)), small, large))


def _erf_of(p: _Body, x: Value) -> Value:
    """An odd polynomial below 1/4, else quartics about multiples of 1/8 up to 31/8."""
    bits = p.op("as_int", x)
    magnitude = p.op("iand", bits, p.i(_MAGNITUDE))
    a = p.op("as_float", magnitude)
    small = p.op("fma", a, p.horner(p.op("mul", a, a), p.poly("ERF_POLY")), a)
    limited = p.clamp(a, 3.921875)
    rounder = p.f(2.0**20)
    shifted = p.op("add", limited, rounder)
    offset = p.op("sub", limited, p.op("sub", shifted, rounder))
    segment = p.op("iand", p.op("as_int", shifted), p.i(31))
    large = p.horner(offset, p.lookup("ERF", 5, segment))
    large = p.when(p.op("less", p.i_of(3.921875), magnitude), p.f(1.0), large)
    result = p.when(p.op("less", magnitude, p.i_of(0.25)), small, large)
    sign = p.op("iand", bits, p.i(_SIGN))
    return p.op("as_float", p.op("ior", p.op("as_int", result), sign))


def _erf(p: _Body) -> Value:
    return _erf_of(p, p.x)


def _sigmoid_parts(p: _Body) -> Value:
    """exp(-x), limited so that the sigmoid of x < -88 is exactly 0."""
    limited = p.clamp(p.x, 88.0)
    return p.exp2_scaled(limited, p.minus_scalar("LOG2E", 0), p.minus_scalar("LOG2E", 1))


def _sigmoid(p: _Body) -> Value:
    return p.sigmoid_of_exp(_sigmoid_parts(p))


def _silu(p: _Body) -> Value:
    return p.weighted(p.sigmoid_of_exp(_sigmoid_parts(p)))


def _gelu(p: _Body) -> Value:
    """x/2 * (1 + erf(x / sqrt(2)))."""
    h = p.op("add", _erf_of(p, p.op("mul", p.x, p.scalar("SQRT_HALF"))), p.f(1.0))
    return p.weighted(p.op("mul", h, p.f(0.5)))


def _gelu_tanh(p: _Body) -> Value:
    """x/2 * (1 + tanh(u)) = x * sigmoid(2 u), u = sqrt(2/pi) * (x + 0.044715 x**3)."""
    square = p.op("mul", p.x, p.x)
    slope = p.op("fma", square, p.scalar("GELU_TANH", 1), p.scalar("GELU_TANH", 0))
    exponent = p.clamp(p.op("mul", p.x, slope), 127.0)
    return p.weighted(p.sigmoid_of_exp(p.exp2_scaled(exponent, p.f(-1.0), None)))


def _sin_cos(p: _Body, quarter_turns: int) -> tuple[Value, Value]:
    """(sin of |x| + quarter_turns * pi/2 without its sign, that sign); pi/2 in three parts."""
    a = p.absolute()
    shifted = p.op("fma", a, p.scalar("TWO_OVER_PI"), p.f(_INTEGER_ROUNDER))
    minus_n = p.op("sub", p.f(_INTEGER_ROUNDER), shifted)
    f = a
    for part in range(3):
        f = p.op("fma", minus_n, p.scalar("HALF_PI", part), f)
    u = p.op("mul", f, f)
    sine = p.op("fma", p.op("mul", u, f), p.horner(u, p.poly("SIN_POLY")), f)
    cosine = p.horner(u, [p.f(1.0), p.f(-0.5), *p.poly("COS_POLY")])
    quadrant = p.op("iadd", p.op("as_int", shifted), p.i(quarter_turns))
    is_even = p.op("equal", p.op("iand", quadrant, p.i(1)), p.i(0))
    sign = p.op("shl", p.op("iand", quadrant, p.i(2)), immediate=30)
    return p.when(is_even, sine, cosine), sign


def _in_sin_cos_range(p: _Body, result_bits: Value) -> Value:
    beyond = p.op("less", p.i_of(_SIN_COS_LIMIT), p.magnitude)
    return p.when(beyond, p.b.f_bits(_NAN), p.op("as_float", result_bits))


def _sin(p: _Body) -> Value:
    """NaN beyond |x| = 2**17, where three parts of pi/2 no longer give the angle."""
    value, sign = _sin_cos(p, 0)
    both = p.op("ixor", sign, p.sign)
    return _in_sin_cos_range(p, p.op("ixor", p.op("as_int", value), both))


def _cos(p: _Body) -> Value:
    """NaN beyond |x| = 2**17, as for sin."""
    value, sign = _sin_cos(p, 1)
    return _in_sin_cos_range(p, p.op("ixor", p.op("as_int", value), sign))


def _abs(p: _Body) -> Value:
    return p.absolute()


def _neg(p: _Body) -> Value:
    return p.op("as_float", p.op("ixor", p.bits, p.i(_SIGN)))


def _floor(p: _Body) -> Value:
    """Round by adding and taking away 2**23 with x's sign, then step down where that went up."""
    rounder = p.signed(p.f(2.0**23))
    nearest = p.op("sub", p.op("add", p.x, rounder), rounder)
    went_up = p.op("less", p.i(0), p.op("as_int", p.op("sub", nearest, p.x)))
    step = p.when(went_up, p.f(1.0), p.f(0.0))
    floored = p.signed(p.op("sub", nearest, step))
    return p.when(p.op("less", p.magnitude, p.i_of(2.0**23)), floored, p.x)


_BODIES: dict[Function, Callable[[_Body], Value]] = {
    Function.EXP2: _exp2,
    Function.LOG2: _log2,
    Function.RECIP: _recip,
    Function.RSQRT: _rsqrt,
    Function.SQRT: _sqrt,
    Function.TANH: _tanh,
    Function.ERF: _erf,
    Function.SIGMOID: _sigmoid,
    Function.SILU: _silu,
    Function.GELU: _gelu,
    Function.GELU_TANH: _gelu_tanh,
    Function.SIN: _sin,
    Function.COS: _cos,
    Function.ABS: _abs,
    Function.NEG: _neg,
    Function.FLOOR: _floor,
}


@cache
def program(function: Function) -> MicroProgram:
    """The function's micro-program: NaN operands give the canonical NaN, all else its body."""
    p = _Body()
    result = _BODIES[function](p)
    is_nan = p.op("less", p.i(_INF), p.magnitude)
    p.when(is_nan, p.b.f_bits(_NAN), result)
    return MicroProgram(name=function.name.lower(), operations=tuple(p.b.operations))


def step_count(function: Function) -> int:
    """How many floating-point operations it takes."""
    return program(function).count(*micro.FLOATING)


def apply(function: Function, x: F32) -> F32:
    """The function of float32 of any shape, lane by lane."""
    return micro.evaluate(program(function), x, TABLES)


def _named(function: Function) -> Callable[[F32], F32]:
    def call(x: F32) -> F32:
        return apply(function, x)

    call.__name__ = call.__qualname__ = function.name.lower()
    call.__doc__ = f"{function.name.lower()} of float32 of any shape; see the module's table."
    return call


exp2 = _named(Function.EXP2)
log2 = _named(Function.LOG2)
recip = _named(Function.RECIP)
rsqrt = _named(Function.RSQRT)
sqrt = _named(Function.SQRT)
tanh = _named(Function.TANH)
erf = _named(Function.ERF)
sigmoid = _named(Function.SIGMOID)
silu = _named(Function.SILU)
gelu = _named(Function.GELU)
gelu_tanh = _named(Function.GELU_TANH)
sin = _named(Function.SIN)
cos = _named(Function.COS)
abs = _named(Function.ABS)
neg = _named(Function.NEG)
floor = _named(Function.FLOOR)
