"""One lane of the DMA engine's dequantisers: a narrow code and its scales become bf16.

Contract: bit for bit `tapeout.numerics.formats.decode_rows`: the value is exact, rounded to fp32 and
from there to bf16, to nearest even each time; NaN is 0x7FC0.
"""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tapeout.isa.dma import HbmFormat

from .float import BIAS
from .transfer import by_format, is_one_of

NAN, INFINITY = 0x7FC0, 0x7F80
_F16_ONE = 0x3C00
_SUM_BITS = 49  # of fixed-point values in units of 2^-24: fp16 times 8 bits, plus fp16


def _minifloat(fmt: HbmFormat) -> tuple[int, int] | None:
    """(exponent bits, mantissa bits) of a format whose elements are small floats."""
    name = fmt.name.lower()
    return {"e4m3": (4, 3), "e5m2": (5, 2), "mxfp4": (2, 1)}.get(name.split("_")[-1])


class Dequantiser(wiring.Component):
    """A code times its scales, four cycles later:

    int8, q8_0 and q4_1 are fixed-point: an fp16 is at most 11 bits shifted by 0 to 29, so that
    d * q + m is exact before its two roundings. Small floats, with or without a power of two as
    scale, are exact in bf16.

    Ports:
        format: of `HbmFormat`, narrower than bf16. code: 4 or 8 bits, from bit 0.
        first, second: fp16 d and m, or e8m0 in `first`.
    """

    STAGES = 4

    format: In(4)
    code: In(8)
    first: In(16)
    second: In(16)
    result: Out(16)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        fixed = self._fixed(m)
        small = self._small(m)
        is_small = self.format_is_small()
        for stage in range(self.STAGES - 1):
            held = Signal(name=f"is_small_{stage}")
            m.d.sync += held.eq(is_small)
            is_small = held
        m.d.sync += self.result.eq(Mux(is_small, small, fixed))
        return m

    def format_is_small(self) -> Value:
        return is_one_of(self.format, [f for f in HbmFormat if _minifloat(f)])

    def _fixed(self, m: Module) -> Value:
        """int8, q8_0, q4_1: three registers, and what the fourth takes."""
        has_scale = self.format != HbmFormat.INT8
        nibble = self.format == HbmFormat.Q4_1
        d, low = _Half(Mux(has_scale, self.first, _F16_ONE)), _Half(self.second)
        q_sign = ~nibble & self.code[7]
        q = Mux(nibble, self.code[:4], Mux(q_sign, -self.code.as_signed(), self.code)[:8])
        sign = d.sign ^ q_sign
        low_sign = Mux(nibble, low.sign, sign)  # so that a zero keeps the product's
        product_inf = d.is_top & (d.fraction == 0)
        low_inf = nibble & low.is_top & (low.fraction == 0)
        nan = (
            d.is_top & ((d.fraction != 0) | (q == 0))
            | nibble & low.is_top & (low.fraction != 0)
            | product_inf & low_inf & (sign ^ low_sign)
        )
        first = self._registers(m, "product", {
            "product": d.significand * q,
            "shift": d.shift,
            "low": Mux(nibble, low.significand, 0),
            "low_shift": low.shift,
            "sign": sign,
            "low_sign": low_sign,
            "nan": nan,
            "inf": product_inf | low_inf,
            "inf_sign": Mux(product_inf, sign, low_sign),
        })  # fmt: skip

        wide = (first["product"] << first["shift"])[:_SUM_BITS]
        low_wide = (first["low"] << first["low_shift"])[:_SUM_BITS]
        total = Signal(signed(_SUM_BITS + 2), name="total")
        differ = first["sign"] ^ first["low_sign"]
        m.d.comb += total.eq(Mux(differ, wide - low_wide, wide + low_wide))
        negative = total < 0
        second = self._registers(m, "sum", {
            "magnitude": Mux(negative, -total, total)[:_SUM_BITS],
            "sign": Mux(total == 0, first["sign"] & first["low_sign"], first["sign"] ^ negative),
            "special": first["nan"] | first["inf"],
            "value": Mux(first["nan"], NAN, Cat(C(INFINITY, 15), first["inf_sign"])),
        })  # fmt: skip

        zeros = Signal(range(_SUM_BITS), name="zeros")
        for k in range(_SUM_BITS):  # the last assignment, of the highest one, counts
            with m.If(second["magnitude"][k]):
                m.d.comb += zeros.eq(_SUM_BITS - 1 - k)
        third = self._registers(m, "normal", {
            "normal": (second["magnitude"] << zeros)[:_SUM_BITS],
            "exponent": (BIAS - 24 + _SUM_BITS - 1 - zeros)[:8],
            **{name: second[name] for name in ("sign", "special", "value")},
        })  # fmt: skip

        normal = third["normal"]
        once, carry = _rounded(normal, 24)
        twice, carry_too = _rounded(once, 8)
        exponent = (third["exponent"] + carry + carry_too)[:8]
        is_zero = ~normal[-1]
        finite = Cat(
            Mux(is_zero, 0, twice[:7]), Mux(is_zero, 0, exponent), third["sign"]
        )
        return Mux(third["special"], third["value"], finite)

    def _small(self, m: Module) -> Value:
        """Small floats: three registers."""

        def of(part: int) -> Value:
            return by_format(self.format, lambda f: _small_parts(f, self.code)[part])

        sign, fraction, power, inf, nan = (of(part) for part in range(5))
        scale = Signal(signed(9), name="scale")
        m.d.comb += scale.eq(
            Mux(is_one_of(self.format, [f for f in HbmFormat if f.format.is_block]),
                self.first[:8] - 127, 0)
        )
        scale_nan = scale == 128
        first = self._registers(m, "small", {
            "sign": sign,
            "fraction": fraction,
            "power": (power + scale)[:11].as_signed(),
            "inf": inf,
            "nan": nan | scale_nan,
        })  # fmt: skip
        # Four bits of fraction, worth fraction * 2^power.
        zeros = Signal(2, name="small_zeros")
        for k in range(4):
            with m.If(first["fraction"][k]):
                m.d.comb += zeros.eq(3 - k)
        exponent = Signal(signed(12), name="small_exponent")
        m.d.comb += exponent.eq(first["power"] + 3 - zeros + BIAS)
        normal = (first["fraction"] << zeros)[:3]
        is_zero = (first["fraction"] == 0) | (exponent <= 0)
        value = Mux(
            first["nan"],
            NAN,
            Mux(
                first["inf"] | (~is_zero & (exponent >= 255)),
                Cat(C(INFINITY, 15), first["sign"]),
                Cat(C(0, 4), Mux(is_zero, 0, Cat(normal, exponent[:8])), first["sign"]),
            ),
        )
        second = self._registers(m, "small_value", {"value": value[:16]})
        return self._registers(m, "small_waits", second)["value"]

    @staticmethod
    def _registers(m: Module, name: str, values: dict[str, Value]) -> dict[str, Value]:
        held = {}
        for part, value in values.items():
            held[part] = Signal(Value.cast(value).shape(), name=f"{name}_{part}")
            m.d.sync += held[part].eq(value)
        return held


class _Half:
    """An fp16 taken apart: significand * 2^shift units of 2^-24."""

    def __init__(self, bits: Value) -> None:
        exponent = bits[10:15]
        self.fraction = bits[:10]
        self.sign = bits[15]
        self.is_top = exponent.all()
        self.significand = Cat(self.fraction, exponent.any())
        self.shift = Mux(exponent.any(), exponent - 1, 0)[:5]


def _small_parts(fmt: HbmFormat, code: Value) -> tuple[Value, ...]:
    """(sign, fraction, power, is Inf, is NaN) of a code, worth fraction * 2^power."""
    sizes = _minifloat(fmt)
    if sizes is None:
        return tuple(C(0, 1) for _ in range(5))
    exponent_bits, mantissa_bits = sizes
    bias = (1 << exponent_bits - 1) - 1
    mantissa = code[:mantissa_bits]
    exponent = code[mantissa_bits : mantissa_bits + exponent_bits]
    magnitude = code[: mantissa_bits + exponent_bits]
    fraction = Cat(mantissa, exponent.any())
    power = Mux(exponent.any(), exponent, 1) - bias - mantissa_bits
    inf, nan = {
        (4, 3): (C(0, 1), magnitude == 0x7F),
        (5, 2): (magnitude == 0x7C, magnitude > 0x7C),
        (2, 1): (C(0, 1), C(0, 1)),
    }[sizes]
    return code[mantissa_bits + exponent_bits], fraction, power, inf, nan


def _rounded(value: Value, bits: int) -> tuple[Value, Value]:
    """(the upper `bits` of a value whose top bit is set, rounded to nearest even; its carry)."""
    rest = len(value) - bits
    kept, half, below = value[rest:], value[rest - 1], value[: rest - 1]
    total = kept + (half & (below.any() | kept[0]))
    # After a carry all bits but the top one are zero.
    return Cat(total[: bits - 1], total[bits - 1] | total[bits])[:bits], total[bits]

