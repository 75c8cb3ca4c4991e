"""Bits of fp32 that need no rounding: zeros for subnormals, one NaN, the order of values.

A rank is 32 bits that compare as unsigned numbers like the values they stand for.
"""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value

from .float import CANONICAL_NAN, parts_of

MINUS_INFINITY = 0xFF800000
RANK_OF_MINUS_INFINITY = 0x007FFFFF
RANK_OF_NAN = 0xFFFFFFFF


def flush(bits: Value) -> Value:
    """A subnormal becomes zero, its sign kept."""
    return Cat(Mux(parts_of(bits).is_zero, C(0, 31), bits[:31]), bits[31])


def canonical(bits: Value) -> Value:
    """What a store writes: `flush`, and one NaN for all."""
    return Mux(parts_of(bits).is_nan, C(CANONICAL_NAN, 32), flush(bits))


def bf16_of(bits: Value) -> Value:
    """The bf16 of a canonical fp32, rounded to nearest even."""
    return (bits + 0x7FFF + bits[16])[16:32]


def rank_of(bits: Value, *, zeros_are_equal: Value | int = 0) -> Value:
    """The rank of an fp32 that is no NaN; -0 lies below +0 unless `zeros_are_equal`."""
    is_zero = parts_of(bits).is_zero
    is_negative = bits[31] & ~(is_zero & zeros_are_equal)
    magnitude = Mux(is_zero, C(0, 31), bits[:31])
    return Cat(Mux(is_negative, ~magnitude, magnitude), ~is_negative)


def value_of(rank: Value) -> Value:
    """The fp32 of a rank; the canonical NaN for that of NaN."""
    value = Cat(Mux(rank[31], rank[:31], ~rank[:31]), ~rank[31])
    return Mux(rank == RANK_OF_NAN, C(CANONICAL_NAN, 32), value)


class Comparison:
    """Two fp32 compared, subnormals as zeros:

    `maximum` and `minimum` are NaN where an operand is, and order the zeros; `is_above`, `is_equal`
    are false where an operand is NaN, and have equal zeros.
    """

    def __init__(self, m: Module, a: Value, b: Value, name: str) -> None:
        is_nan, first = Signal(name=f"{name}_is_nan"), Signal(name=f"{name}_first")
        rank_a, rank_b = Signal(32, name=f"{name}_rank_a"), Signal(32, name=f"{name}_rank_b")
        both_zero = parts_of(a).is_zero & parts_of(b).is_zero
        m.d.comb += [
            is_nan.eq(parts_of(a).is_nan | parts_of(b).is_nan),
            rank_a.eq(rank_of(a)),
            rank_b.eq(rank_of(b)),
            first.eq(rank_a > rank_b),
        ]
        nan = C(CANONICAL_NAN, 32)
        self.maximum = Mux(is_nan, nan, Mux(first, flush(a), flush(b)))
        self.minimum = Mux(is_nan, nan, Mux(first, flush(b), flush(a)))
        self.is_above = first & ~both_zero & ~is_nan
        self.is_equal = ((rank_a == rank_b) | both_zero) & ~is_nan
