"""The scalar unit of a sequencer: `seq.alu` on 48-bit registers."""

from amaranth.hdl import Module, Mux, Shape, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tapeout.isa.seq import REGISTER_BITS, Alu


class ScalarAlu(wiring.Component):
    """Result of one scalar operation:

    x is r[a], y is r[b] + imm, one bit wider so that comparisons see all of it.
    """

    op: In(Shape.cast(Alu))
    x: In(signed(REGISTER_BITS))
    y: In(signed(REGISTER_BITS + 1))
    result: Out(signed(REGISTER_BITS))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        x, y, less = self.x, self.y, self.x < self.y
        shift = y[:6]
        results = {
            Alu.ADD: x + y,
            Alu.SUB: x - y,
            Alu.MUL: (x * y)[:REGISTER_BITS],
            Alu.SHL: (x << shift)[:REGISTER_BITS],
            Alu.SHR: x >> shift,
            Alu.AND: x & y,
            Alu.MIN: Mux(less, x, y),
            Alu.MAX: Mux(less, y, x),
            Alu.WRAP: Mux(less, x, x - y),
        }
        with m.Switch(self.op):
            for op, value in results.items():
                with m.Case(op):
                    m.d.comb += self.result.eq(value)
        return m
