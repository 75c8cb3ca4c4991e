"""Reads of one queue on one AXI port: its scalar loads, instruction fetch and DMA loads."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tapeout.chip import Chip
from tapeout.isa.fields import WORD_BITS, WORD_BYTES

from .axi import ADDRESS_BITS, INCREMENT, OKAY, read_channels

LOAD_ID, FETCH_ID, DMA_ID = 0, 1, 2
CORE_READS = (
    "load_request", "load_address", "value_comes", "value",
    "request", "request_address", "request_words", "comes", "comes_word",
)  # fmt: skip
ASKED = data.StructLayout({"address": ADDRESS_BITS, "words": 9})


def fetch_places(chip: Chip) -> int:
    """Runs of instructions that can be under way.

    A window that starts anew finds at most the lines of the one before on their way: the jump there
    was in a line that had come, and lines come in order.
    """
    line_bytes = chip.seq.fetch_line_instructions * WORD_BYTES
    return 2 * chip.seq.fetch_lines * max(1, line_bytes // chip.hbm.interleave_bytes)


class ReadPort(wiring.Component):
    """AR and R of one queue:

    Requests wait in the order of each requester; scalar loads go before fetches, those before
    DMA. Every request has room for its answer, so R is always ready.

    Ports, besides AR and R:
        load_request, load_address; value_comes, value: as of `core`.
        request, request_address, request_words; comes, comes_word: as of `core`.
        dma_asks, dma_address, dma_beats: a burst of DMA, until `dma_taken`.
        beat_comes, beat: of those bursts, in order. beat_ends: with the last of a burst.
        launches: new bursts may begin.
        is_idle: none is under way. fails: an answer reports an error, in this cycle.
    """

    def __init__(self, chip: Chip, beat_bytes: int) -> None:
        self.chip, self.beat_bytes = chip, beat_bytes
        super().__init__(
            {
                **read_channels(beat_bytes),
                "load_request": In(1),
                "load_address": In(ADDRESS_BITS),
                "value_comes": Out(1),
                "value": Out(32),
                "request": In(1),
                "request_address": In(ADDRESS_BITS),
                "request_words": In(9),
                "comes": Out(1),
                "comes_word": Out(WORD_BITS),
                "dma_asks": In(1),
                "dma_address": In(ADDRESS_BITS),
                "dma_beats": In(9),
                "dma_taken": Out(1),
                "beat_comes": Out(1),
                "beat": Out(8 * beat_bytes),
                "beat_ends": Out(1),
                "launches": In(1),
                "is_idle": Out(1),
                "fails": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.lines = lines = SyncFIFO(width=ASKED.size, depth=fetch_places(self.chip))
        asked, line = Signal(ASKED), Signal(ASKED)
        load_waits, load_address = Signal(), Signal(ADDRESS_BITS)
        m.d.comb += [
            asked.address.eq(self.request_address),
            asked.words.eq(self.request_words),
            lines.w_en.eq(self.request),
            lines.w_data.eq(asked),
            line.eq(lines.r_data),
        ]
        free, begins = Signal(), Signal()
        m.d.comb += [
            free.eq(self.launches & (~self.arvalid | self.arready)),
            begins.eq(free & (load_waits | lines.r_rdy | self.dma_asks)),
            lines.r_en.eq(free & ~load_waits & lines.r_rdy),
            self.dma_taken.eq(free & ~load_waits & ~lines.r_rdy & self.dma_asks),
            self.arburst.eq(INCREMENT),
        ]
        with m.If(self.arready):
            m.d.sync += self.arvalid.eq(0)
        with m.If(begins):
            m.d.sync += self.arvalid.eq(1)
            with m.If(load_waits):
                m.d.sync += [
                    load_waits.eq(0),
                    self.arid.eq(LOAD_ID),
                    self.araddr.eq(load_address),
                    self.arlen.eq(0),
                    self.arsize.eq(2),
                ]
            with m.Elif(lines.r_rdy):
                m.d.sync += [
                    self.arid.eq(FETCH_ID),
                    self.araddr.eq(line.address),
                    self.arlen.eq(line.words - 1),
                    self.arsize.eq(exact_log2(WORD_BYTES)),
                ]
            with m.Else():
                m.d.sync += [
                    self.arid.eq(DMA_ID),
                    self.araddr.eq(self.dma_address),
                    self.arlen.eq(self.dma_beats - 1),
                    self.arsize.eq(exact_log2(self.beat_bytes)),
                ]
        with m.If(self.load_request):
            m.d.sync += [load_waits.eq(1), load_address.eq(self.load_address)]
        self._answers(m, begins, load_address, line, lines.r_en)
        return m

    def _answers(
        self, m: Module, begins: Signal, load_address: Signal, line: data.View, line_begins: Signal
    ) -> None:
        arrives, ends = Signal(), Signal()
        under_way = Signal(range(fetch_places(self.chip) + self.chip.dma.credits + 2))
        m.d.comb += [
            self.rready.eq(1),
            arrives.eq(self.rvalid),
            ends.eq(arrives & self.rlast),
            self.is_idle.eq(under_way == 0),
            self.fails.eq(arrives & (self.rresp != OKAY)),
            self.beat_comes.eq(arrives & (self.rid == DMA_ID)),
            self.beat.eq(self.rdata),
            self.beat_ends.eq(self.rlast),
        ]
        m.d.sync += under_way.eq(under_way + begins - ends)
        lane = load_address[2 : exact_log2(self.beat_bytes)]
        m.d.sync += [
            self.value_comes.eq(arrives & (self.rid == LOAD_ID)),
            self.value.eq(self.rdata.word_select(lane, 32)),
            self.comes.eq(arrives & (self.rid == FETCH_ID)),
        ]
        words = self.beat_bytes // WORD_BYTES
        if words == 1:
            m.d.sync += self.comes_word.eq(self.rdata)
            return
        # A word lies where its address says; the first words of bursts wait in order.
        bits = exact_log2(words)
        m.submodules.firsts = firsts = SyncFIFO(width=bits, depth=fetch_places(self.chip))
        inside, at, place = Signal(), Signal(bits), Signal(bits)
        is_word = arrives & (self.rid == FETCH_ID)
        low = exact_log2(WORD_BYTES)
        m.d.comb += [
            firsts.w_en.eq(line_begins),
            firsts.w_data.eq(line.address[low : low + bits]),
            firsts.r_en.eq(is_word & self.rlast),
            place.eq(Mux(inside, at, firsts.r_data)),
        ]
        with m.If(is_word):
            m.d.sync += [inside.eq(~self.rlast), at.eq(place + 1)]
        m.d.sync += self.comes_word.eq(self.rdata.word_select(place, WORD_BITS))
