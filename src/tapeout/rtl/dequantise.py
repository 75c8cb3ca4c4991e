"""One lane of the DMA engine's dequantisers: a narrow code and its scales become bf16.

Contract: bit for bit `tapeout.numerics.formats.decode_rows`: the value is exact, rounded to fp32
and from there to bf16, to nearest even each time; NaN is 0x7FC0.
"""

from collections.abc import Collection

from amaranth.hdl import Array, C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tapeout.isa.dma import HbmFormat

from .boxes import box
from .float import BIAS
from .pipeline import delayed
from .transfer import BLOCKS, NIBBLES, WORDS, is_one_of

NAN, INFINITY = 0x7FC0, 0x7F80
_F16_ONE = 0x3C00
_SUM_BITS = 49  # of fixed-point values in units of 2^-24: fp16 times 8 bits, plus fp16
_SMALL = [  # small floats: (exponent bits, mantissa bits), and the formats made of them
    ((4, 3), [HbmFormat.FP8_E4M3, HbmFormat.MXFP8_E4M3]),
    ((5, 2), [HbmFormat.FP8_E5M2, HbmFormat.MXFP8_E5M2]),
    ((2, 1), [HbmFormat.MXFP4]),
]

# A format as dequantisers see it: fixed-point codes (4 bits with a minimum, or 8), or small floats.
KIND = data.StructLayout({"is_small": 1, "small": 2, "is_scaled": 1, "is_nibble": 1,
                           "is_narrow": 1})  # fmt: skip


def kind_of(m: Module, fmt: Value, known: Collection[HbmFormat]) -> data.View:
    """The kind of a format, which is among those known; bf16 and fp32 have none."""
    kind = Signal(KIND, name="kind")
    m.d.comb += [
        kind.is_narrow.eq(~is_one_of(fmt, WORDS)),
        kind.is_scaled.eq(is_one_of(fmt, BLOCKS)),
        kind.is_nibble.eq(is_one_of(fmt, NIBBLES)),
    ]
    for number, (_, formats) in enumerate(_SMALL):
        with m.If(is_one_of(fmt, [f for f in formats if f in known])):
            m.d.comb += [kind.is_small.eq(1), kind.small.eq(number)]
    return kind


class Dequantiser(wiring.Component):
    """A code times its scales, five cycles later, of formats one of which is narrow:

    int8, q8_0 and q4_1 are fixed-point: an fp16 is at most 11 bits shifted by 0 to 29, so that
    d * q + m is exact before its two roundings. Small floats, with or without a power of two as
    scale, are exact in bf16.

    Ports:
        code: 4 or 8 bits, from bit 0. first, second: fp16 d and m, or e8m0 in `first`.
    """

    STAGES = 5

    def __init__(self, formats: Collection[HbmFormat]) -> None:
        self.formats = formats
        super().__init__(
            {
                "kind": In(KIND),
                "code": In(8),
                "first": In(16),
                "second": In(16),
                "result": Out(16),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        smalls = [f for _, formats in _SMALL for f in formats if f in self.formats]
        has_fixed = any(f not in (*WORDS, *smalls) for f in self.formats)
        if has_fixed and smalls:
            fixed, small = self._fixed(m), self._small(m)
            is_small = Signal(self.STAGES - 1)
            m.d.sync += [
                is_small.eq(Cat(self.kind.is_small, is_small)),
                self.result.eq(Mux(is_small[-1], small, fixed)),
            ]
        else:
            m.d.sync += self.result.eq(self._fixed(m) if has_fixed else self._small(m))
        return m

    def _fixed(self, m: Module) -> Value:
        """int8, q8_0, q4_1: four registers, and what the fifth takes."""
        nibble = self.kind.is_nibble if HbmFormat.Q4_1 in self.formats else C(0, 1)
        d, low = _Half(Mux(self.kind.is_scaled, self.first, _F16_ONE)), _Half(self.second)
        q_sign, q = Signal(), Signal(8)
        sign, low_sign = Signal(), Signal()
        product_inf, low_inf = Signal(), Signal()
        m.d.comb += [
            q_sign.eq(~nibble & self.code[7]),
            q.eq(Mux(nibble, self.code[:4], Mux(q_sign, -self.code, self.code))),
            sign.eq(d.sign ^ q_sign),
            low_sign.eq(Mux(nibble, low.sign, sign)),  # so that a zero keeps the product's
            product_inf.eq(d.is_top & (d.fraction == 0)),
            low_inf.eq(nibble & low.is_top & (low.fraction == 0)),
        ]
        nan = (
            d.is_top & ((d.fraction != 0) | (q == 0))
            | nibble & low.is_top & (low.fraction != 0)
            | product_inf & low_inf & (sign ^ low_sign)
        )
        factors = _registers(m, "factors", {
            "significand": d.significand,
            "q": q,
            "shift": d.shift,
            "low": Mux(nibble, low.significand, 0),
            "low_shift": low.shift,
            "sign": sign,
            "low_sign": low_sign,
            "nan": nan,
            "inf": product_inf | low_inf,
            "inf_sign": Mux(product_inf, sign, low_sign),
        })  # fmt: skip
        product = factors.pop("significand") * factors.pop("q")
        first = _registers(m, "product", {"product": product, **factors})

        wide, low_wide = Signal(_SUM_BITS), Signal(_SUM_BITS)
        total, reverse = Signal(signed(_SUM_BITS + 2)), Signal(_SUM_BITS)
        negative = Signal()
        m.d.comb += [
            wide.eq(first["product"] << first["shift"]),
            low_wide.eq(first["low"] << first["low_shift"]),
            total.eq(Mux(first["sign"] ^ first["low_sign"], wide - low_wide, wide + low_wide)),
            reverse.eq(low_wide - wide),
            negative.eq(total < 0),
        ]
        second = _registers(m, "sum", {
            "magnitude": Mux(negative, reverse, total)[:_SUM_BITS],
            "sign": Mux(total == 0, first["sign"] & first["low_sign"], first["sign"] ^ negative),
            "special": first["nan"] | first["inf"],
            "value": Mux(first["nan"], NAN, Cat(C(INFINITY, 15), first["inf_sign"])),
        })  # fmt: skip

        # The leading one goes to the top, by halves.
        normal: Value = second["magnitude"]
        zeros: list[Value] = []
        for size in (32, 16, 8, 4, 2, 1):
            empty, moved = Signal(name=f"empty_{size}"), Signal(_SUM_BITS, name=f"moved_{size}")
            m.d.comb += [
                empty.eq(normal[_SUM_BITS - size :] == 0),
                moved.eq(Mux(empty, Cat(C(0, size), normal), normal)),
            ]
            zeros.insert(0, empty)
            normal = moved
        third = _registers(m, "normal", {
            "normal": normal,
            "exponent": (BIAS - 24 + _SUM_BITS - 1 - Cat(zeros))[:8],
            **{name: second[name] for name in ("sign", "special", "value")},
        })  # fmt: skip

        once, carry = _rounded(m, "fp32", third["normal"], 24)
        twice, carry_too = _rounded(m, "bf16", once, 8)
        is_zero = ~third["normal"][-1]
        magnitude = Cat(twice[:7], (third["exponent"] + carry + carry_too)[:8])
        finite = Cat(Mux(is_zero, 0, magnitude), third["sign"])
        return Mux(third["special"], third["value"], finite)

    def _small(self, m: Module) -> Value:
        """Small floats: four registers."""
        parts = [_small_parts(self.code, *sizes) for sizes, _ in _SMALL]

        def of(part: int) -> Value:
            return Array(its[part] for its in parts)[self.kind.small]

        sign, fraction, power, inf, nan = (of(part) for part in range(5))
        scale = Signal(signed(9), name="scale")
        m.d.comb += scale.eq(Mux(self.kind.is_scaled, self.first[:8] - 127, 0))
        first = _registers(m, "small", {
            "sign": sign,
            "fraction": fraction,
            "power": power + scale,
            "inf": inf,
            "nan": nan | (scale == 128),
        })  # fmt: skip
        # Four bits of fraction, worth fraction * 2^power.
        zeros = Signal(2, name="small_zeros")
        for k in range(4):  # the last assignment, of the highest one, counts
            with m.If(first["fraction"][k]):
                m.d.comb += zeros.eq(3 - k)
        exponent, is_zero = Signal(signed(12), name="small_exponent"), Signal(name="small_is_zero")
        m.d.comb += [
            exponent.eq(first["power"] + 3 - zeros + BIAS),
            is_zero.eq((first["fraction"] == 0) | (exponent <= 0)),
        ]
        normal = (first["fraction"] << zeros)[:3]
        finite = Cat(C(0, 4), Mux(is_zero, 0, Cat(normal, exponent[:8])), first["sign"])
        is_inf = first["inf"] | (~is_zero & (exponent >= 255))
        value = Mux(is_inf, Cat(C(INFINITY, 15), first["sign"]), finite)
        value = Mux(first["nan"], NAN, value)[:16]
        return delayed(m, value, 3, "small_value", resets=True)


class DequantiserRow(wiring.Component):
    """A `Dequantiser` for each lane; data of a lane becomes that of all, lane 0 lowest."""

    def __init__(self, lanes: int, formats: Collection[HbmFormat]) -> None:
        self.lanes, self.formats = lanes, formats
        super().__init__(
            {
                "kind": In(KIND),
                "codes": In(8 * lanes),
                "first": In(16 * lanes),
                "second": In(16 * lanes),
                "results": Out(16 * lanes),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for lane in range(self.lanes):
            unit = Dequantiser(self.formats)
            m.submodules[f"lane_{lane}"] = box(platform, "dequantiser", unit)
            m.d.comb += [
                unit.kind.eq(self.kind),
                unit.code.eq(self.codes.word_select(lane, 8)),
                unit.first.eq(self.first.word_select(lane, 16)),
                unit.second.eq(self.second.word_select(lane, 16)),
                self.results.word_select(lane, 16).eq(unit.result),
            ]
        return m


class _Half:
    """An fp16 taken apart: significand * 2^shift units of 2^-24."""

    def __init__(self, bits: Value) -> None:
        exponent = bits[10:15]
        self.fraction = bits[:10]
        self.sign = bits[15]
        self.is_top = exponent.all()
        self.significand = Cat(self.fraction, exponent.any())
        self.shift = Mux(exponent.any(), exponent - 1, 0)[:5]


def _registers(m: Module, name: str, values: dict[str, Value]) -> dict[str, Value]:
    held = {}
    for part, value in values.items():
        held[part] = Signal(value.shape(), name=f"{name}_{part}")
        m.d.sync += held[part].eq(value)
    return held


def _small_parts(code: Value, exponent_bits: int, mantissa_bits: int) -> tuple[Value, ...]:
    """(sign, fraction, power, is Inf, is NaN) of a code, worth fraction * 2^power."""
    bias = (1 << exponent_bits - 1) - 1
    magnitude = code[: mantissa_bits + exponent_bits]
    exponent = magnitude[mantissa_bits:]
    fraction = Cat(magnitude[:mantissa_bits], exponent.any())
    power = Mux(exponent.any(), exponent, 1) - bias - mantissa_bits
    inf, nan = {
        (4, 3): (C(0, 1), magnitude == 0x7F),
        (5, 2): (magnitude == 0x7C, magnitude > 0x7C),
        (2, 1): (C(0, 1), C(0, 1)),
    }[exponent_bits, mantissa_bits]
    return code[mantissa_bits + exponent_bits], fraction, power, inf, nan


def _rounded(m: Module, name: str, value: Value, bits: int) -> tuple[Value, Value]:
    """(the upper `bits` of a value whose top bit is set, rounded to nearest even; its carry)."""
    rest = len(value) - bits
    kept, half, below = value[rest:], value[rest - 1], value[: rest - 1]
    total = Signal(bits + 1, name=f"{name}_rounded")
    m.d.comb += total.eq(kept + (half & (below.any() | kept[0])))
    # After a carry all bits but the top one are zero.
    return Cat(total[: bits - 1], total[bits - 1] | total[bits]), total[bits]
