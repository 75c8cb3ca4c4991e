"""Exact fp32 arithmetic of the ISA, in NumPy: the definition every other target is checked against.

Contract, for every operation here:
* operands are read with subnormals as zero of the same sign (DAZ);
* the exact result is rounded once, to nearest even;
* a result that is tiny after rounding (|r| < 2**-126 once rounded to 24 bits with an unbounded
  exponent, as x86 detects it) becomes zero of the same sign (FTZ);
* every NaN result is 0x7FC00000.

Arrays in, arrays out: float32 of any shape, broadcast like NumPy's. The integer operations take and
give uint32 bit patterns.
"""

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U32 = NDArray[np.uint32]

CANONICAL_NAN_BITS = 0x7FC00000
SIGN_BIT = 0x80000000
_MIN_NORMAL_BITS = 0x00800000
_INF_BITS = 0x7F800000
# The least magnitude that rounds to 2**-126 at 24 bits: half a quantum below, tie to even.
_LEAST_NOT_TINY = 2.0**-126 - 2.0**-151


def bits(x: F32) -> U32:
    """float32 as its uint32 bit pattern, any shape, no change of value."""
    return np.ascontiguousarray(x, np.float32).view(np.uint32).reshape(np.shape(x))


def from_bits(u: U32) -> F32:
    """uint32 bit pattern as float32, any shape, no change of value."""
    return np.ascontiguousarray(u, np.uint32).view(np.float32).reshape(np.shape(u))


def flush(x: F32) -> F32:
    """Subnormals become zero of the same sign; all else is kept, NaN payloads too."""
    u = bits(x)
    subnormal = (u & _INF_BITS) == 0
    return from_bits(np.where(subnormal, u & np.uint32(SIGN_BIT), u))


def canonical(x: F32) -> F32:
    """Every NaN becomes 0x7FC00000; all else is kept."""
    u = bits(x)
    return from_bits(np.where((u & 0x7FFFFFFF) > _INF_BITS, np.uint32(CANONICAL_NAN_BITS), u))


def _round_from_double(s: NDArray[np.float64]) -> F32:
    """One rounding of a float64 (exact, or rounded to odd) to fp32 with FTZ and canonical NaN."""
    s = np.where(np.abs(s) < _LEAST_NOT_TINY, np.copysign(0.0, s), s)
    return canonical(s.astype(np.float32))


def _sum_to_odd(p: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    """p + c rounded to odd at 53 bits, so that a later rounding to 24 bits is the only one felt.

    TwoSum gives the exact error e of the nearest sum s. Where e is not zero and s ends in an even
    bit, the odd neighbour on e's side is the answer.
    """
    s = np.asarray(p + c)
    back = s - p
    e = (p - (s - back)) + (c - back)
    s_bits = s.view(np.int64)
    step = np.where((e > 0) == (s > 0), 1, -1)
    inexact_even = ((e > 0) | (e < 0)) & (
        (s_bits & 1) == 0
    )  # false where e is NaN: s is Inf or NaN
    return (s_bits + np.where(inexact_even, step, 0)).view(np.float64)


def add_to_product(p: NDArray[np.float64], c: F32) -> F32:
    """p + c, rounded once, for the exact product p of two flushed fp32 and a flushed c."""
    return _round_from_double(_sum_to_odd(p, np.asarray(c).astype(np.float64)))


def fma(a: F32, b: F32, c: F32) -> F32:
    """a * b + c, rounded once. The product of two fp32 is exact in float64."""
    with np.errstate(all="ignore"):
        p = flush(a).astype(np.float64) * flush(b).astype(np.float64)
        return add_to_product(p, flush(c))


def mul(a: F32, b: F32) -> F32:
    """a * b, rounded once."""
    with np.errstate(all="ignore"):
        return _round_from_double(flush(a).astype(np.float64) * flush(b).astype(np.float64))


def add(a: F32, b: F32) -> F32:
    """a + b, rounded once. A tiny fp32 sum is always exact, so flushing after the sum is right."""
    with np.errstate(all="ignore"):
        return canonical(flush(np.asarray(flush(a) + flush(b))))


def sub(a: F32, b: F32) -> F32:
    """a - b, rounded once."""
    with np.errstate(all="ignore"):
        return canonical(flush(np.asarray(flush(a) - flush(b))))


def _pick(a: F32, b: F32, a_wins: NDArray[np.bool_], tie_bits: U32) -> F32:
    either_nan = np.isnan(a) | np.isnan(b)
    picked = np.where(a == b, tie_bits, np.where(a_wins, bits(a), bits(b)))
    return from_bits(np.where(either_nan, np.uint32(CANONICAL_NAN_BITS), picked))


def maximum(a: F32, b: F32) -> F32:
    """The larger; NaN if either is NaN; max(-0, +0) = +0."""
    a, b = np.broadcast_arrays(flush(a), flush(b))
    with np.errstate(all="ignore"):
        return _pick(a, b, a > b, bits(a) & bits(b))


def minimum(a: F32, b: F32) -> F32:
    """The smaller; NaN if either is NaN; min(-0, +0) = -0."""
    a, b = np.broadcast_arrays(flush(a), flush(b))
    with np.errstate(all="ignore"):
        return _pick(a, b, a < b, bits(a) | bits(b))


def iadd(a: U32, b: U32) -> U32:
    """a + b modulo 2**32."""
    return np.asarray(a, np.uint32) + np.asarray(b, np.uint32)


def isub(a: U32, b: U32) -> U32:
    """a - b modulo 2**32."""
    return np.asarray(a, np.uint32) - np.asarray(b, np.uint32)


def imul_low(a: U32, b: U32) -> U32:
    """The low 32 bits of the product."""
    return np.asarray(a, np.uint32) * np.asarray(b, np.uint32)


def imul_high(a: U32, b: U32) -> U32:
    """The high 32 bits of the unsigned product (Philox needs it)."""
    product = np.asarray(a, np.uint64) * np.asarray(b, np.uint64)
    return (product >> np.uint64(32)).astype(np.uint32)


def shift_left(a: U32, count: int) -> U32:
    """a << count, 0 <= count < 32."""
    return np.asarray(a, np.uint32) << np.uint32(count)


def shift_right(a: U32, count: int) -> U32:
    """a >> count with zeros moving in, 0 <= count < 32."""
    return np.asarray(a, np.uint32) >> np.uint32(count)


def shift_right_signed(a: U32, count: int) -> U32:
    """a >> count with copies of the sign moving in, 0 <= count < 32."""
    return (np.asarray(a, np.uint32).view(np.int32) >> np.int32(count)).view(np.uint32)
