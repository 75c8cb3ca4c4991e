"""Properties of the queues of data."""

from amaranth.hdl import Module, Signal
from amaranth.lib.fifo import SyncFIFOBuffered

from .property import COMPONENT, Property

WIDTH = 2


class Fifo(Property):
    """The FIFO of the DMA engine, a place deeper than its credits, of which each entry has one.
    Reads are free, also of an empty one: those have no effect.

    Any one entry is followed from its write to its read.
    """

    title = "a FIFO keeps order, and loses and invents nothing"
    component = SyncFIFOBuffered

    def state(self, m: Module) -> None:
        credits = self.chip.dma.credits
        m.submodules[COMPONENT] = fifo = self.make(width=WIDTH, depth=credits + 1)
        write, read = self.free(m, 1, "write"), self.free(m, 1, "read")
        value, choose = self.free(m, WIDTH, "value"), self.free(m, 1, "choose")
        m.d.comb += [fifo.w_en.eq(write), fifo.w_data.eq(value), fifo.r_en.eq(read)]
        level = Signal(range(credits + 1), name="level")
        enters, leaves = write, read & fifo.r_rdy
        m.d.sync += level.eq(level + enters - leaves)
        self.assume(m, ~write | (level != credits))
        self.claim(m, "has_room", ~write | fifo.w_rdy)
        self.claim(m, "has_entry", ~fifo.r_rdy | (level != 0))
        waited = Signal(name="waited")  # an entry that was there a cycle ago is at the head
        m.d.sync += waited.eq((level - leaves) != 0)
        self.claim(m, "comes", ~waited | fifo.r_rdy)

        watches, held = Signal(name="watches"), Signal(WIDTH, name="held")
        before = Signal.like(level, name="before")  # entries in front of it
        with m.If(enters & choose & ~watches):
            m.d.sync += [watches.eq(1), held.eq(value), before.eq(level - leaves)]
        with m.Elif(watches & leaves):
            m.d.sync += [before.eq(before - 1), watches.eq(before != 0)]
        here = watches & (before == 0)
        self.claim(m, "order", ~here | ~fifo.r_rdy | (fifo.r_data == held))
        self.reach(m, "full", level == credits)
        self.reach(m, "passes", here & leaves)
