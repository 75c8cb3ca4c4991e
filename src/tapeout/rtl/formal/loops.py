"""Properties of hardware loops."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data

from tapeout.rtl.loops import LoopStack

from .property import COMPONENT, Property

PC_BITS, COUNT_BITS = 4, 3  # of the free values; the stack's registers are wider

LOOP = data.StructLayout(
    {"is_open": 1, "begin": PC_BITS + 1, "end": PC_BITS + 1, "left": COUNT_BITS, "is_first": 1}
)


class Loops(Property):
    """A sequencer around the stack keeps the rules that it checks itself: a body has instructions,
    ends inside the body around it, counts from one on, and no more loops than places are open.

    The reference is a stack with the innermost loop on top, from which loops are taken until one
    goes round.
    """

    title = "a loop goes round as often as counted, its pc stays inside, loops nest"
    component = LoopStack

    def state(self, m: Module) -> None:
        m.submodules[COMPONENT] = loops = self.make(self.chip)
        pc = Signal(PC_BITS + 1, name="pc")
        advance, push = self.free(m, 1, "advance"), self.free(m, 1, "push")
        skips = self.free(m, 1, "skips")  # a loop of no iterations: the pc goes behind its body
        end = self.free(m, PC_BITS, "push_end")
        count = self.free(m, COUNT_BITS, "push_count")
        target = Signal(PC_BITS + 1, name="target")
        with m.If(skips):
            m.d.comb += target.eq(end)
        with m.Else():
            m.d.comb += target.eq(pc + 1)
        m.d.comb += [
            loops.pc.eq(pc),
            loops.advance.eq(advance),
            loops.target.eq(target),
            loops.push.eq(push),
            loops.push_end.eq(end),
            loops.push_count.eq(count),
        ]
        is_loop = push | skips
        outer_end = Signal(PC_BITS + 1, name="outer_end")
        with m.If(loops.is_empty):
            m.d.comb += outer_end.eq(1 << PC_BITS)
        with m.Else():
            m.d.comb += outer_end.eq(loops.outer_end)
        self.assume(m, ~(push & skips))
        self.assume(m, ~is_loop | ((end > pc + 1) & (end <= outer_end)))
        self.assume(m, ~push | ((count != 0) & ~loops.is_full))
        self.assume(m, pc < 1 << PC_BITS)  # the program has not ended
        next_pc = Signal(PC_BITS + 1, name="next_pc")  # the reference's
        with m.If(advance):
            m.d.sync += pc.eq(loops.next_pc)

        self._reference(m, pc, target, end, count, advance, push, next_pc)
        stack = self._stack
        top, n = stack[0], self.chip.seq.loop_depth
        self.claim(m, "next_pc", ~advance | (loops.next_pc == next_pc))
        self.claim(m, "stays_inside", ~top.is_open | ((pc >= top.begin) & (pc < top.end)))
        for k in range(n - 1):
            inner, outer = stack[k], stack[k + 1]
            self.claim(
                m, f"nests_{k}",
                ~outer.is_open | (inner.is_open & (inner.begin > outer.begin)
                                  & (inner.end <= outer.end)),
            )  # fmt: skip
        self.claim(m, "is_empty", loops.is_empty == ~top.is_open)
        self.claim(m, "is_full", loops.is_full == stack[n - 1].is_open)
        self.claim(m, "is_first", ~top.is_open | (loops.is_first == top.is_first))
        self.claim(m, "is_last", ~top.is_open | (loops.is_last == (top.left == 0)))
        self.claim(m, "outer_end", ~top.is_open | (loops.outer_end == top.end))
        self.claim(m, "low_line", loops.low_line <= pc // self.chip.seq.fetch_line_instructions)
        goes_round = advance & ~push & top.is_open & (next_pc == top.begin)
        self.reach(m, "goes_round", goes_round & (top.left == 1))
        self.reach(m, "is_full", loops.is_full)
        self.reach(m, "two_end_together",
                   advance & ~push & stack[1].is_open & (next_pc == top.end)
                   & (top.end == stack[1].end))  # fmt: skip

    def _reference(
        self, m: Module, pc: Signal, target: Signal, end: Signal, count: Signal,
        advance: Signal, push: Signal, next_pc: Signal,
    ) -> None:  # fmt: skip
        """Open loops, the innermost first."""
        n = self.chip.seq.loop_depth
        stack = self._stack = [Signal(LOOP, name=f"loop_{k}") for k in range(n)]
        leaves = [Signal(name=f"leaves_{k}") for k in range(n)]
        for k, loop in enumerate(stack):
            m.d.comb += leaves[k].eq(loop.is_open & (loop.end == target) & (loop.left == 0))
        m.d.comb += next_pc.eq(target)
        new = Signal(LOOP, name="new")
        m.d.comb += [
            new.is_open.eq(1), new.begin.eq(pc + 1), new.end.eq(end), new.left.eq(count - 1),
            new.is_first.eq(1),
        ]  # fmt: skip
        with m.If(advance & push):
            m.d.sync += [loop.eq(below) for loop, below in zip(stack, [new, *stack], strict=False)]
        with m.Elif(advance):
            for gone in range(n + 1):  # of the innermost
                kept = stack[gone:]
                stop = ~leaves[gone] if gone < n else 1
                with m.If(Cat(*leaves[:gone]).all() & stop):
                    for k in range(n):
                        m.d.sync += stack[k].eq(kept[k] if k < len(kept) else 0)
                    if kept:
                        with m.If(kept[0].is_open & (kept[0].end == target)):
                            m.d.comb += next_pc.eq(kept[0].begin)
                            m.d.sync += [
                                stack[0].left.eq(kept[0].left - 1),
                                stack[0].is_first.eq(0),
                            ]
