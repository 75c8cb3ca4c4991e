"""One lane of the vector unit: from the operands of a map to its value, at fp32."""

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tapeout.chip import Chip
from tapeout.isa.vpu import Combine, Combine2

from .float import Adder, FusedMultiplyAdd, Multiplier, parts_of
from .functions import FUNCTION, FunctionPipeline, code_ports
from .order import (
    RANK_OF_MINUS_INFINITY,
    RANK_OF_NAN,
    Comparison,
    bf16_of,
    canonical,
    flush,
    rank_of,
)
from .pipeline import delayed

COMBINE, COMBINE2 = Shape.cast(Combine), Shape.cast(Combine2)
_ONE, _MINUS_ONE, _MINUS_ZERO = (C(bits, 32) for bits in (0x3F800000, 0xBF800000, 0x80000000))


def lane_ports(chip: Chip) -> dict[str, wiring.Member]:
    """The ports of a `Lane`."""
    return {
        "a": In(32),
        "b": In(32),
        "c": In(32),
        "combine": In(COMBINE),
        "combine_out": In(COMBINE),
        "enters": In(1),
        "comes": In(1),
        **code_ports(chip),
        "ended": In(FUNCTION),
        "d": In(32),
        "combine2": In(COMBINE2),
        "combine2_out": In(COMBINE2),
        "is_valid": In(1),
        "squares": In(1),
        "by_index": In(1),
        "fp32": Out(32),
        "bf16": Out(16),
        "rank": Out(32),
        "summand": Out(32),
    }


class Lane(wiring.Component):
    """A lane's arithmetic:

    a, b, c --combine--> function --combine with d--> value, which is cast, and prepared to be
    reduced. Each port belongs to one stage, counted from that of `a`; with add = `adder_stages`
    and last = the stage of `combine2_out`:

    Ports:
        a, b, c, combine: stage 0. combine_out: `combine` at stage 1 + add, with `enters`.
        enters, comes, code_<slot>, ended: see `FunctionPipeline`; the function's result comes a
            cycle after `ended`, with d and combine2.
        combine2_out: `combine2` 1 + add cycles after it. The ports below come with it.
        is_valid: the value counts in a reduction. squares: its square is added up.
        by_index: ranks are those of argmax.
        fp32, bf16: of the value, for memory, a cycle after. rank: of the value, a cycle after.
        summand: what a sum takes, 1 + add cycles after.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        super().__init__(lane_ports(chip))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        combined = self._combine(m)
        m.submodules.function = f = FunctionPipeline(self.chip)
        m.d.comb += [f.enters.eq(self.enters), f.comes.eq(self.comes), f.x.eq(combined)]
        m.d.comb += f.ended.eq(self.ended)
        for name in code_ports(self.chip):
            m.d.comb += getattr(f, name).eq(getattr(self, name))
        value = Signal(32)
        m.d.comb += value.eq(self._combine2(m, f.result))

        # What memory takes.
        stored = Signal(32)
        m.d.comb += stored.eq(canonical(value))
        m.d.sync += [self.fp32.eq(stored), self.bf16.eq(bf16_of(stored))]

        # What reductions take; -0 and -inf change none.
        m.submodules.square = square = Multiplier(adder_stages=self.chip.vpu.adder_stages)
        m.d.comb += [
            square.a.eq(Mux(self.is_valid, value, _MINUS_ZERO)),
            square.b.eq(Mux(self.is_valid & self.squares, value, _ONE)),
            self.summand.eq(square.result),
        ]
        rank = Signal(32)
        m.d.comb += rank.eq(rank_of(value, zeros_are_equal=self.by_index))
        with m.If(parts_of(value).is_nan):
            m.d.comb += rank.eq(RANK_OF_NAN)
        with m.If(~self.is_valid):
            m.d.comb += rank.eq(Mux(self.by_index, 0, RANK_OF_MINUS_INFINITY))
        m.d.sync += self.rank.eq(rank)
        return m

    def _combine(self, m: Module) -> Value:
        """a, b and c combined, with `combine_out`."""
        a, b, c = self.a, self.b, self.c
        factor, addend = Signal(32), Signal(32)
        m.d.comb += [factor.eq(_ONE), addend.eq(b)]
        other, compared = Signal(32), Comparison(m, a, b, "compared")
        m.d.comb += other.eq(a)
        one_where = {
            Combine.GE: compared.is_above | compared.is_equal,
            Combine.GT: compared.is_above,
            Combine.EQ: compared.is_equal,
        }
        with m.Switch(self.combine):
            with m.Case(Combine.SUB):
                m.d.comb += addend.eq(_negative(b))
            with m.Case(Combine.RSUB):
                m.d.comb += factor.eq(_MINUS_ONE)
            with m.Case(Combine.MUL):
                m.d.comb += [factor.eq(b), addend.eq(_MINUS_ZERO)]
            with m.Case(Combine.FMA):
                m.d.comb += [factor.eq(b), addend.eq(c)]
            with m.Case(Combine.FMS):
                m.d.comb += [factor.eq(b), addend.eq(_negative(c))]
            with m.Case(Combine.MAX):
                m.d.comb += other.eq(compared.maximum)
            with m.Case(Combine.MIN):
                m.d.comb += other.eq(compared.minimum)
            with m.Case(Combine.SELECT):
                m.d.comb += other.eq(Mux(flush(c)[:31].any(), a, b))
            for op, holds in one_where.items():
                with m.Case(op):
                    m.d.comb += other.eq(Mux(holds, _ONE, C(0, 32)))
        m.submodules.combine = fma = FusedMultiplyAdd(
            factor_bits=32, adder_stages=self.chip.vpu.adder_stages
        )
        m.d.comb += [fma.a.eq(a), fma.b.eq(factor), fma.c.eq(delayed(m, addend, 1, "combine_c"))]
        beside = delayed(m, other, 1 + self.chip.vpu.adder_stages, "beside")
        combined = Signal(32)
        m.d.comb += combined.eq(beside)
        rounds = (Combine.ADD, Combine.SUB, Combine.RSUB, Combine.MUL, Combine.FMA, Combine.FMS)
        with m.Switch(self.combine_out), m.Case(*rounds):
            m.d.comb += combined.eq(fma.result)
        return combined

    def _combine2(self, m: Module, u: Value) -> Value:
        """The function's result u and d combined, with `combine2_out`."""
        d, stages = self.d, self.chip.vpu.adder_stages
        m.submodules.sum2 = total = Adder(stages=stages)
        m.submodules.product2 = product = Multiplier(adder_stages=stages)
        # What the step does not need rests at zero.
        terms = Signal(32), Signal(32)
        other, compared = Signal(32), Comparison(m, u, d, "compared2")
        m.d.comb += other.eq(u)
        with m.Switch(self.combine2):
            with m.Case(Combine2.ADD):
                m.d.comb += [terms[0].eq(u), terms[1].eq(d)]
            with m.Case(Combine2.SUB):
                m.d.comb += [terms[0].eq(u), terms[1].eq(_negative(d))]
            with m.Case(Combine2.RSUB):
                m.d.comb += [terms[0].eq(_negative(u)), terms[1].eq(d)]
            with m.Case(Combine2.MUL):
                m.d.comb += [product.a.eq(u), product.b.eq(d)]
            with m.Case(Combine2.MAX):
                m.d.comb += other.eq(compared.maximum)
            with m.Case(Combine2.MIN):
                m.d.comb += other.eq(compared.minimum)
        m.d.sync += [total.a.eq(terms[0]), total.b.eq(terms[1])]
        beside = delayed(m, other, 1 + stages, "beside2")
        value = Signal(32)
        m.d.comb += value.eq(beside)
        with m.Switch(self.combine2_out):
            with m.Case(Combine2.ADD, Combine2.SUB, Combine2.RSUB):
                m.d.comb += value.eq(total.result)
            with m.Case(Combine2.MUL):
                m.d.comb += value.eq(product.result)
        return value


def _negative(bits: Value) -> Value:
    return Cat(bits[:31], ~bits[31])
