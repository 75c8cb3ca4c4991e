"""Floating point of the chip as hardware: the fused multiply-add of array and vector unit, the add.

Contract: bit for bit `tapeout.numerics.arith.fma` and `add`: subnormal operands are zero, the
product is exact, one rounding to nearest even follows the sum, what is tiny after rounding is zero,
and NaN is 0x7FC00000.
"""

from dataclasses import dataclass

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

EXPONENT_BITS, FRACTION_BITS, BIAS = 8, 23, 127
SIGNIFICAND_BITS = FRACTION_BITS + 1
CANONICAL_NAN = 0x7FC00000
_GUARD_BITS = 3  # below both operands: enough for one rounding after a cancellation of one bit
_POWER = signed(EXPONENT_BITS + 3)  # exponents of products
_LEAST = -(1 << EXPONENT_BITS + 1)  # that of a zero: below all others


@dataclass(frozen=True)
class Parts:
    """An operand taken apart; a subnormal is a zero."""

    sign: Value
    power: Value  # the exponent, biased; of a zero _LEAST
    significand: Value  # with its leading one; 0 for a zero
    is_zero: Value
    is_inf: Value
    is_nan: Value


def parts_of(bits: Value, fraction_bits: int = FRACTION_BITS) -> Parts:
    """The parts of an fp32, or of a bf16 where `fraction_bits` is 7."""
    fraction = bits[:fraction_bits]
    exponent = bits[fraction_bits : fraction_bits + EXPONENT_BITS]
    is_zero, is_top = exponent == 0, exponent.all()
    return Parts(
        sign=bits[fraction_bits + EXPONENT_BITS],
        power=Mux(is_zero, _LEAST, exponent),
        significand=Mux(is_zero, 0, Cat(fraction, C(1, 1))),
        is_zero=is_zero,
        is_inf=is_top & (fraction == 0),
        is_nan=is_top & (fraction != 0),
    )


class FusedMultiplyAdd(wiring.Component):
    """a * b + c, rounded once:

    The product is exact and registered; `c` joins it a cycle later, and the result follows
    `adder_stages` cycles after `c`: alignment (with three stages), sum, normalisation and rounding.

    Ports:
        a, b: fp32, or bf16 where `factor_bits` is 16. c, result: fp32.
    """

    STAGES = (1, 2, 3)

    def __init__(self, *, factor_bits: int, adder_stages: int) -> None:
        if factor_bits not in (16, 32) or adder_stages not in self.STAGES:
            raise ValueError(
                f"a fused multiply-add has factors of 16 or 32 bits and 1 to 3 adder stages, not "
                f"{factor_bits} and {adder_stages}"
            )
        self.fraction_bits = factor_bits - 1 - EXPONENT_BITS
        self.adder_stages = adder_stages
        super().__init__(
            {"a": In(factor_bits), "b": In(factor_bits), "c": In(32), "result": Out(32)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        x = _product(m, self.a, self.b, self.fraction_bits)
        m.d.sync += self.result.eq(_sum(m, x, _addend_of(self.c), self.adder_stages))
        return m


class Multiplier(wiring.Component):
    """a * b of fp32, rounded once, when a `FusedMultiplyAdd` would give it.

    Contract: bit for bit `tapeout.numerics.arith.mul`.
    """

    def __init__(self, *, adder_stages: int) -> None:
        self.adder_stages = adder_stages
        super().__init__({"a": In(32), "b": In(32), "result": Out(32)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        x = _product(m, self.a, self.b, FRACTION_BITS)
        # Of two significands from 1 to below 2 the product is below 4.
        above_2 = x.significand[x.fraction_bits + 1]
        special = Mux(x.is_nan, CANONICAL_NAN, Cat(C(0x7F800000, 31), x.sign))
        state: dict[str, Value] = {
            "normal": Mux(above_2, x.significand, x.significand << 1)[: x.fraction_bits + 2],
            "power": x.power + above_2,
            "sign": x.sign,
            "is_special": x.is_nan | x.is_inf,
            "special": special,
        }
        for stage in range(1, self.adder_stages):
            state = {n: _register(m, value, f"{n}_{stage}") for n, value in state.items()}
        m.d.sync += self.result.eq(_packed(m, **state))
        return m


class Adder(wiring.Component):
    """a + b, rounded once: the result follows `stages` cycles after its operands.

    Contract: bit for bit `tapeout.numerics.arith.add`.

    Ports:
        a, b, result: fp32.
    """

    def __init__(self, *, stages: int) -> None:
        self.stages = stages
        super().__init__({"a": In(32), "b": In(32), "result": Out(32)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.sync += self.result.eq(_sum(m, _addend_of(self.a), _addend_of(self.b), self.stages))
        return m


@dataclass(frozen=True, kw_only=True)
class _Addend:
    """One operand of a sum; the significand's point is `fraction_bits` from its right."""

    sign: Value
    power: Value
    significand: Value
    is_inf: Value
    is_nan: Value
    fraction_bits: int


def _addend_of(bits: Value) -> _Addend:
    p = parts_of(bits)
    return _Addend(
        sign=p.sign, power=p.power, significand=p.significand, is_inf=p.is_inf, is_nan=p.is_nan,
        fraction_bits=FRACTION_BITS,
    )  # fmt: skip


def _product(m: Module, a: Value, b: Value, fraction_bits: int) -> _Addend:
    """The exact product, registered."""
    x, y = (parts_of(v, fraction_bits) for v in (a, b))
    x_bits, y_bits = (Cat(v[:fraction_bits], C(1, 1)) for v in (a, b))  # of what is no zero
    product_bits = 2 * (fraction_bits + 1)
    is_zero = x.is_zero | y.is_zero
    power = Signal(_POWER)
    m.d.comb += power.eq(Mux(is_zero, _LEAST, x.power + y.power - BIAS))
    product = {
        "significand": Mux(is_zero, 0, x_bits * y_bits)[:product_bits],
        "power": power,
        "sign": x.sign ^ y.sign,
        "is_inf": x.is_inf | y.is_inf,
        "is_nan": x.is_nan | y.is_nan | (x.is_inf & y.is_zero) | (x.is_zero & y.is_inf),
    }
    product = {name: _register(m, value, f"product_{name}") for name, value in product.items()}
    return _Addend(**product, fraction_bits=product_bits - 2)


def _register(m: Module, value: Value, name: str) -> Signal:
    held = Signal(Value.cast(value).shape(), name=name)
    m.d.sync += held.eq(value)
    return held


def _sum(m: Module, x: _Addend, c: _Addend, stages: int) -> Value:
    """x + c as fp32, to be registered: with the result's register, `stages` cycles in all."""
    # Alignment: the operand of the smaller power moves right; what it loses is sticky.
    fraction = max(x.fraction_bits, c.fraction_bits) + _GUARD_BITS
    width = fraction + 2
    wide_x = x.significand << (fraction - x.fraction_bits)
    wide_c = c.significand << (fraction - c.fraction_bits)
    x_power, c_power = Signal(_POWER), Signal(_POWER)
    distance, reverse_distance = (
        Signal(signed(_POWER.width + 1), name=n) for n in ("distance", "reverse_distance")
    )
    m.d.comb += [
        x_power.eq(x.power),
        c_power.eq(c.power),
        distance.eq(x_power - c_power),
        reverse_distance.eq(c_power - x_power),
    ]
    c_is_big = distance < 0
    big, small = Signal(width), Signal(width)
    by, sticky = Signal(range(width + 1)), Signal()
    shifted = Signal(2 * width)
    magnitude = Mux(c_is_big, reverse_distance, distance)
    m.d.comb += [
        big.eq(Mux(c_is_big, wide_c, wide_x)),
        small.eq(Mux(c_is_big, wide_x, wide_c)),
        by.eq(Mux(magnitude > width, width, magnitude)),
        shifted.eq((small << width) >> by),
        sticky.eq(shifted[:width].any()),
    ]
    # A special result is decided here and goes beside the sum.
    is_nan = x.is_nan | c.is_nan | (x.is_inf & c.is_inf & (x.sign ^ c.sign))
    is_inf = x.is_inf | c.is_inf
    special = Signal(32)
    m.d.comb += special.eq(
        Mux(is_nan, CANONICAL_NAN, Cat(C(0x7F800000, 31), Mux(x.is_inf, x.sign, c.sign)))
    )
    state: dict[str, Value] = {
        "big": big,
        "small": Cat(sticky, shifted[width:]),
        "power": Mux(c_is_big, c_power, x_power),
        "big_sign": Mux(c_is_big, c.sign, x.sign),
        "subtracts": x.sign ^ c.sign,
        "is_special": is_nan | is_inf,
        "special": special,
    }
    if stages == 3:
        state = {name: _register(m, value, f"aligned_{name}") for name, value in state.items()}

    # The sum; of a difference both ways, of which the positive one counts.
    total, reverse = Signal(signed(width + 3)), Signal(width + 2)
    wide_big = state["big"] << 1
    m.d.comb += [
        total.eq(Mux(state["subtracts"], wide_big - state["small"], wide_big + state["small"])),
        reverse.eq(state["small"] - wide_big),
    ]
    is_negative, positive = Signal(), Signal(width + 2)
    m.d.comb += [is_negative.eq(total < 0), positive.eq(Mux(is_negative, reverse, total))]
    state = {
        "sum": positive,
        "power": state["power"],
        # A zero that is the difference of equals is positive.
        "sign": Mux(
            total == 0,
            state["big_sign"] & ~state["subtracts"],
            state["big_sign"] ^ is_negative,
        ),
        "is_special": state["is_special"],
        "special": state["special"],
    }
    if stages >= 2:
        state = {name: _register(m, value, f"sum_{name}") for name, value in state.items()}
    return _round(m, state, width + 2)


def _round(m: Module, state: dict[str, Value], width: int) -> Value:
    """The fp32 of a sum of `width` bits whose leading bit has the biased exponent power + 2."""
    zeros, normal = Signal(ceil_log2(width)), Signal(width)
    m.d.comb += [
        zeros.eq(_leading_zeros(state["sum"])),
        normal.eq((state["sum"] << zeros)[:width]),
    ]
    return _packed(
        m, normal=normal, power=state["power"] + 2 - zeros, sign=state["sign"],
        is_special=state["is_special"], special=state["special"],
    )  # fmt: skip


def _leading_zeros(bits: Value) -> Value:
    """The zeros before the first one; of a zero, any number. The higher half decides the top bit of
    the count, and which half's count is below it."""

    def halved(bits: Value) -> tuple[Value, Value]:  # (count, whether all are zero)
        if len(bits) == 2:
            return ~bits[1], ~bits.any()
        half = len(bits) // 2
        (low, low_is_zero), (high, high_is_zero) = halved(bits[:half]), halved(bits[half:])
        count = Cat(Mux(high_is_zero, low, high), high_is_zero)
        return count, high_is_zero & low_is_zero

    return halved(Cat(C(0, (1 << ceil_log2(len(bits))) - len(bits)), bits))[0]


def _packed(
    m: Module, *, normal: Value, power: Value, sign: Value, is_special: Value, special: Value
) -> Value:
    """The fp32 nearest to `normal`, or what is special; its leading one has the biased exponent
    `power`.
    """
    width = len(normal)
    kept = normal[width - SIGNIFICAND_BITS :]
    half, below = normal[width - SIGNIFICAND_BITS - 1], normal[: width - SIGNIFICAND_BITS - 1]
    up = half & (below.any() | kept[0])
    significand = Signal(SIGNIFICAND_BITS + 1)
    m.d.comb += significand.eq(kept + up)
    # A carry, of which all other bits are zero, comes late: the exponent waits for it both ways.
    carry = significand[SIGNIFICAND_BITS]
    without, beyond = Signal(signed(EXPONENT_BITS + 4)), Signal(signed(EXPONENT_BITS + 4))
    m.d.comb += [without.eq(power), beyond.eq(power + 1)]
    is_tiny = ~normal[-1] | Mux(carry, beyond <= 0, without <= 0)
    top = (1 << EXPONENT_BITS) - 1
    overflows = Mux(carry, beyond >= top, without >= top)
    exponent = Mux(carry, beyond, without)
    finite = Cat(
        Mux(is_tiny | overflows, 0, significand[:FRACTION_BITS]),
        Mux(is_tiny, 0, Mux(overflows, C(0xFF, EXPONENT_BITS), exponent[:EXPONENT_BITS])),
        sign,
    )
    return Mux(is_special, special, finite)
