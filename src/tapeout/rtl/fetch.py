"""Instruction fetch of one queue: a window of lines of its stream, requested in order."""

from amaranth.hdl import C, Cat, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tapeout.chip import Chip
from tapeout.isa.fields import WORD_BITS, WORD_BYTES

ADDRESS_BITS = 40
PC_BITS = 32


FETCH: dict = {
    "active": In(1),
    "code_base": In(ADDRESS_BITS),
    "count": In(PC_BITS),
    "low": In(PC_BITS),
    "pc": In(PC_BITS),
    "next_pc": In(PC_BITS),
    "word": Out(WORD_BITS),
    "has_word": Out(1),
    "request": Out(1),
    "request_address": Out(ADDRESS_BITS),
    "request_words": Out(9),
    "comes": In(1),
    "comes_word": In(WORD_BITS),
}


class FetchUnit(wiring.Component):
    """Window of instruction lines:

    Lines [low, low + fetch_lines) are held or on their way. A run of a line is requested each cycle
    while lines are missing; its words come back in the order of requests, one a cycle, and may be
    issued from the cycle after they came. Where `low` leaves the window, the window starts anew:
    words of lines requested before are dropped when they come.

    Ports:
        active: the program runs; the first request is made in the first such cycle.
        code_base, count: the stream's address (a multiple of a line) and its instructions, which
            stand since the cycle before the first active one.
        low: first line that is still needed.
        pc, next_pc: of this cycle and the next; `word` is the instruction at `pc`.
        has_word: it has come.
        request, request_address, request_words: a run of consecutive words, in this cycle.
        comes, comes_word: the next word of the runs requested.
    """

    def __init__(self, chip: Chip) -> None:
        self.lines = chip.seq.fetch_lines
        self.line_words = chip.seq.fetch_line_instructions
        # Lines and interleave units are powers of two, and lines are aligned: runs are all alike.
        self.run_words = min(self.line_words, chip.hbm.interleave_bytes // WORD_BYTES)
        self.runs = self.line_words // self.run_words  # of a line
        super().__init__(FETCH)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        line_bits = exact_log2(self.line_words)
        window_bits = exact_log2(self.lines) + line_bits
        count_lines = Signal(PC_BITS)
        m.d.sync += count_lines.eq((self.count + self.line_words - 1) >> line_bits)

        base, following = Signal(PC_BITS), Signal(PC_BITS)  # the window's first line; to request
        line = Signal(PC_BITS)  # that was requested last
        run = Signal(range(max(self.runs, 2)))  # of it, the next
        outstanding, drop = Signal(PC_BITS), Signal(PC_BITS)  # words to come; of those, to drop
        filled = Signal(PC_BITS)  # instructions below have come

        # Whether the window starts anew is known late: what follows is worked out both ways.
        restarts, goes_on, begins = Signal(), Signal(), Signal()
        inside = run != 0  # a line that has begun is requested to its end
        m.d.comb += [
            restarts.eq(
                self.active
                & ~((self.low >= base) & (self.low < base + self.lines))
                & (self.low < count_lines)
            ),
            goes_on.eq((following < self.low + self.lines) & (following < count_lines)),
            begins.eq(self.active & ~inside & (restarts | goes_on)),
        ]
        asked = Mux(inside, line, Mux(restarts, self.low, following))
        m.d.comb += [
            self.request.eq(begins | inside),
            self.request_address.eq(
                self.code_base
                + Cat(
                    C(0, exact_log2(self.run_words * WORD_BYTES)),
                    run[: exact_log2(self.runs)],
                    asked,
                )
            ),
            self.request_words.eq(self.run_words),
        ]
        with m.If(self.request):
            m.d.sync += [line.eq(asked), run.eq(run + 1 if self.runs > 1 else 0)]
        with m.If(self.active):
            m.d.sync += [
                base.eq(self.low),
                following.eq(Mux(restarts, self.low + ~inside, following + (goes_on & ~inside))),
                outstanding.eq(outstanding + Mux(begins, self.line_words, 0) - self.comes),
            ]
        is_current = self.comes & (drop == 0)
        keeps = is_current & ~restarts
        with m.If(restarts):
            m.d.sync += [
                drop.eq(outstanding - self.comes),
                filled.eq(self.low << line_bits),
            ]
        with m.Elif(self.comes):
            m.d.sync += [drop.eq(drop - (drop != 0)), filled.eq(filled + is_current)]

        m.submodules.window = window = memory.Memory(
            shape=WORD_BITS, depth=1 << window_bits, init=[]
        )
        write = window.write_port()
        read = window.read_port(transparent_for=(write,))
        m.d.comb += [
            write.addr.eq(filled),
            write.data.eq(self.comes_word),
            write.en.eq(keeps),
            read.addr.eq(self.next_pc),
            self.word.eq(read.data),
            self.has_word.eq(self.active & (self.pc < filled) & ~restarts),
        ]
        return m
