"""Hardware loops of a sequencer."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tapeout.chip import Chip
from tapeout.isa.seq import REGISTER_BITS

from .fetch import PC_BITS

LOOP_BITS = REGISTER_BITS


class LoopStack(wiring.Component):
    """Hardware loops of a queue, outermost first:

    `pc` moves to `target` unless a body ends there that has iterations left; then to its begin. All
    loops whose bodies end there for the last time are left at once.
    """

    def __init__(self, chip: Chip) -> None:
        self.depth_max = chip.seq.loop_depth
        self.line_words = chip.seq.fetch_line_instructions
        self.lines = chip.seq.fetch_lines
        super().__init__(
            {
                "advance": In(1),
                "target": In(PC_BITS),
                "next_pc": Out(PC_BITS),
                "push": In(1),  # with `advance`: `target` is the first instruction of the body
                "push_end": In(PC_BITS),
                "push_count": In(LOOP_BITS),
                "pc": In(PC_BITS),
                "low_line": Out(PC_BITS),  # first line that is still needed
                "is_full": Out(1),
                "is_empty": Out(1),
                "outer_end": Out(PC_BITS),  # of the innermost body
                "is_first": Out(1),  # the innermost loop's iteration
                "is_last": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        n = self.depth_max
        begin = [Signal(PC_BITS, name=f"begin_{d}") for d in range(n)]
        end = [Signal(PC_BITS, name=f"end_{d}") for d in range(n)]
        left = [Signal(LOOP_BITS, name=f"left_{d}") for d in range(n)]  # iterations after this
        first = [Signal(name=f"first_{d}") for d in range(n)]
        is_open = Signal(n)  # from the outermost on
        m.d.comb += [self.is_full.eq(is_open[-1]), self.is_empty.eq(~is_open[0])]
        for d in range(n):  # the last that is open counts
            with m.If(is_open[d]):
                m.d.comb += [
                    self.outer_end.eq(end[d]),
                    self.is_first.eq(first[d]),
                    self.is_last.eq(left[d] == 0),
                ]

        # From the innermost loop outwards: leave it, go round, or stay inside.
        leaves: Value = C(1, 1)
        m.d.comb += self.next_pc.eq(self.target)
        next_open = Signal(n)
        m.d.comb += next_open.eq(is_open)
        for d in reversed(range(n)):
            ends = Signal(name=f"ends_{d}")
            m.d.comb += ends.eq(is_open[d] & leaves & (self.target == end[d]))
            with m.If(ends & (left[d] != 0)):
                m.d.comb += self.next_pc.eq(begin[d])
                with m.If(self.advance):
                    m.d.sync += [left[d].eq(left[d] - 1), first[d].eq(0)]
            with m.If(ends & (left[d] == 0)):
                m.d.comb += next_open[d].eq(0)
            leaves = Mux(is_open[d], ends & (left[d] == 0), leaves)
        with m.If(self.advance):
            m.d.sync += is_open.eq(next_open)
            with m.If(self.push):
                m.d.sync += is_open.eq(Cat(C(1, 1), is_open))
                for d in range(n):
                    below = is_open[d - 1] if d else C(1, 1)
                    with m.If(below & ~is_open[d]):
                        m.d.sync += [
                            begin[d].eq(self.target),
                            end[d].eq(self.push_end),
                            left[d].eq(self.push_count - 1),
                            first[d].eq(1),
                        ]

        # The outermost loop whose body fits the window keeps its lines. Whether one does is known a
        # cycle after it begins; until then `pc` is in its first line.
        m.d.comb += self.low_line.eq(self._line_of(self.pc))
        for d in reversed(range(n)):
            fits = Signal(name=f"fits_{d}")
            lines = self._line_of(end[d] - 1) - self._line_of(begin[d])
            m.d.sync += fits.eq(lines < self.lines)
            with m.If(is_open[d] & fits):
                m.d.comb += self.low_line.eq(self._line_of(begin[d]))
        return m

    def _line_of(self, pc: Value) -> Value:
        return pc >> exact_log2(self.line_words)
