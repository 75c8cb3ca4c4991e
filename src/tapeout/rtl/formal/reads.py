"""Properties of the port on which a queue reads: scalar loads, instruction fetch, DMA loads."""

from dataclasses import replace

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.utils import exact_log2

from tapeout.isa.fields import WORD_BITS, WORD_BYTES
from tapeout.rtl.shell.axi import PAGE_BYTES
from tapeout.rtl.shell.reads import DMA_ID, FETCH_ID, LOAD_ID, ReadPort, fetch_places
from tapeout.rtl.shell.top import beat_bytes

from .axi import ASK, PAGE_BITS, AxiProperty
from .property import COMPONENT

CREDITS, FETCH_LINES = 2, 2  # the chip's may be more
LOAD_SIZE = 2  # log2 of a scalar load's bytes


class _Reads(AxiProperty):
    """A queue asks as it does: a scalar load when the one before has come; runs of fetch, all of so
    many words, as many as there are places; bursts of DMA, of whole beats in a page, as many as
    there are credits, each offered until it is taken.

    Memory answers in any order but that of one ID, and mixes bursts of different ones.
    """

    component = ReadPort

    def _surround(self, m: Module, size_bytes: int, words: int) -> None:
        chip = replace(
            self.chip,
            dma=replace(self.chip.dma, credits=CREDITS),
            seq=replace(self.chip.seq, fetch_lines=FETCH_LINES),
        )
        self.places, self.words = fetch_places(chip), words
        m.submodules[COMPONENT] = port = self.port = self.make(chip, size_bytes)
        m.d.comb += port.launches.eq(self.free(m, 1, "launches"))
        self.taken = self.lets(m, "ar")
        self.comes_now = self.comes(m, "r", ("id", "data", "resp", "last"))
        ends = self.comes_now & port.rlast

        # What each requester has asked for and not received; of that, what memory owes.
        self.open: dict[int, Signal] = {}
        self.owed: dict[int, Signal] = {}
        asks = {LOAD_ID: port.load_request, FETCH_ID: port.request, DMA_ID: port.dma_taken}
        most = {LOAD_ID: 1, FETCH_ID: self.places, DMA_ID: CREDITS}
        for key, name in ((LOAD_ID, "load"), (FETCH_ID, "fetch"), (DMA_ID, "dma")):
            here, its_end = port.arid == key, ends & (port.rid == key)
            self.open[key] = count = Signal(range(most[key] + 1), name=f"{name}_open")
            self.owed[key] = owed = Signal(range(most[key] + 1), name=f"{name}_owed")
            m.d.sync += [
                count.eq(count + asks[key] - its_end),
                owed.eq(owed + (self.taken & here) - its_end),
            ]
            self.assume(m, ~port.rvalid | (port.rid != key) | (owed != 0))
        self.assume(m, ~port.rvalid | (port.rid != 3))
        self._ask(m)
        beat = Signal(range(self.words + 1), name="fetch_beat")
        is_word = self.comes_now & (port.rid == FETCH_ID)
        with m.If(is_word):
            m.d.sync += beat.eq(Mux(port.rlast, 0, beat + 1))
        self.fetch_beat = beat
        self.assume(m, ~port.rvalid | (port.rid != LOAD_ID) | port.rlast)
        self.assume(m, ~is_word | (port.rlast == (beat == self.words - 1)))

    def _ask(self, m: Module) -> None:
        port = self.port
        free = ("load_request", "load_address", "request", "request_address", "dma_asks",
                "dma_address", "dma_beats")  # fmt: skip
        for name in free:
            signal = getattr(port, name)
            m.d.comb += signal.eq(self.free(m, signal.shape(), f"asks_{name}"))
        m.d.comb += port.request_words.eq(self.words)
        self.assume(m, ~port.load_request | (self.open[LOAD_ID] == 0))
        self.assume(m, ~port.request | (self.open[FETCH_ID] != self.places))
        self.assume(m, ~port.request | (port.request_address[: exact_log2(WORD_BYTES)] == 0))

        size = exact_log2(port.beat_bytes)
        asked = Cat(port.dma_address, port.dma_beats)
        waits, was = Signal(name="dma_waits"), Signal(len(asked), name="dma_was")
        m.d.sync += [waits.eq(port.dma_asks & ~port.dma_taken), was.eq(asked)]
        self.assume(m, ~waits | (port.dma_asks & (asked == was)))
        self.assume(m, ~port.dma_asks | (self.open[DMA_ID] != CREDITS))
        self.assume(m, ~port.dma_asks | (port.dma_address[:size] == 0))
        self.assume(m, ~port.dma_asks | (port.dma_beats != 0))
        room = PAGE_BYTES - port.dma_address[:PAGE_BITS]
        self.assume(m, ~port.dma_asks | (port.dma_beats << size <= room))


class Reads(_Reads):
    """Runs of fetch are aligned to their size.

    Every request is on AR once, as it was asked, without delay where AR is free; every answer goes
    to the requester of its ID. What waits and is under way is counted.
    """

    title = "reads keep the rules of AXI4: each request is made once, each answer reaches its asker"

    def state(self, m: Module) -> None:
        size, interleave = beat_bytes(self.chip), self.chip.hbm.interleave_bytes
        self._surround(
            m, size, min(self.chip.seq.fetch_line_instructions, interleave // WORD_BYTES)
        )
        port = self.port
        run_bytes = self.words * WORD_BYTES
        self.assume(m, ~port.request | (port.request_address[: exact_log2(run_bytes)] == 0))
        is_new = self.gives(m, "ar", ASK)
        self.bursts(m, "ar", size)

        is_load, is_fetch, is_dma = (port.arid == k for k in (LOAD_ID, FETCH_ID, DMA_ID))
        waiting = []  # asked before this cycle and not on AR; DMA asks when AR is free
        for key, name, asks in (
            (LOAD_ID, "load", port.load_request), (FETCH_ID, "fetch", port.request),
        ):  # fmt: skip
            count = Signal.like(self.open[key], name=f"{name}_waiting")
            made = is_new & (port.arid == key)
            m.d.sync += count.eq(count + asks - made)
            waiting.append(count != made)
            self.claim(m, f"{name}_is_asked", ~made | (count != 0))
        offered = Signal(name="dma_offered")
        free = Signal(name="free")  # AR was, and bursts might begin
        begins = Signal(name="begins")
        m.d.sync += [
            offered.eq(port.dma_taken),
            free.eq(port.launches & (~port.arvalid | port.arready)),
            begins.eq(Cat(*waiting, port.dma_asks).any()),
        ]
        address = Signal.like(port.load_address, name="load_address")
        with m.If(port.load_request):
            m.d.sync += address.eq(port.load_address)
        dma = Signal(len(port.dma_address) + 9, name="dma_asked")
        m.d.sync += dma.eq(Cat(port.dma_address, port.dma_beats))
        self.claim(m, "dma_is_made", offered == (is_new & is_dma))
        self.claim(m, "an_id", ~port.arvalid | is_load | is_fetch | is_dma)
        self.claim(m, "begins", is_new == (free & begins))
        ask = Cat(port.araddr, (port.arlen + 1)[:9], port.arsize)
        load = (port.araddr == address) & (port.arlen == 0) & (port.arsize == LOAD_SIZE)
        fetch = (port.arlen == self.words - 1) & (port.arsize == exact_log2(WORD_BYTES))
        self.claim(m, "load", ~(is_new & is_load) | load)
        self.claim(m, "fetch", ~(is_new & is_fetch) | fetch)
        self.claim(m, "dma", ~(is_new & is_dma) | (ask == Cat(dma, C(exact_log2(size), 3))))
        self._answers(m, is_load, is_fetch, is_dma)

    def _answers(self, m: Module, is_load: Value, is_fetch: Value, is_dma: Value) -> None:
        port = self.port
        under_way = []
        for key, name, here in (
            (LOAD_ID, "load", is_load), (FETCH_ID, "fetch", is_fetch), (DMA_ID, "dma", is_dma),
        ):  # fmt: skip
            count = self.owed[key] + (port.arvalid & here)
            under_way.append(count)
            self.claim(m, f"{name}_bound", count <= self.open[key])
        nothing = ~Cat(c.any() for c in under_way).any()
        self.claim(m, "is_idle", port.is_idle == nothing)
        came = Signal(name="came")
        came_id = Signal.like(port.rid, name="came_id")
        m.d.sync += [came.eq(self.comes_now), came_id.eq(port.rid)]
        self.claim(m, "value_comes", port.value_comes == (came & (came_id == LOAD_ID)))
        self.claim(m, "word_comes", port.comes == (came & (came_id == FETCH_ID)))
        is_beat = self.comes_now & (port.rid == DMA_ID)
        self.claim(m, "beat_comes", port.beat_comes == is_beat)
        passes = (port.beat == port.rdata) & (port.beat_ends == port.rlast)
        self.claim(m, "beat", ~is_beat | passes)
        self.claim(m, "fails", port.fails == (self.comes_now & port.rresp.any()))
        self.reach(m, "all_asked", (self.open[FETCH_ID] == self.places) & self.open[LOAD_ID])
        self.reach(m, "waits", port.arvalid & ~port.arready & is_dma)
        self.reach(m, "load_comes", port.value_comes)
        self.reach(m, "dma_before_fetch",
                   is_beat & port.rlast & (self.owed[FETCH_ID] != 0))  # fmt: skip


class Fetches(_Reads):
    """Beats hold two words, where a run, of two words, may begin with the second.

    Any one run of fetch, and a bit of one of its words, is followed from its request on.
    """

    title = "fetched words come in the order asked, from where their addresses say"
    depth = 10

    def state(self, m: Module) -> None:
        self._surround(m, 2 * WORD_BYTES, 2)
        port = self.port
        made = self.appears(m, "ar") & (port.arid == FETCH_ID)
        is_word = self.comes_now & (port.rid == FETCH_ID)
        ends = is_word & port.rlast
        waiting = Signal.like(self.open[FETCH_ID], name="waiting")  # not on AR
        m.d.sync += waiting.eq(waiting + port.request - made)

        watches, address = Signal(name="watches"), Signal.like(port.request_address)
        choose, word = self.free(m, 1, "choose"), self.fixed(m, 1, "word")
        bit = self.fixed(m, range(WORD_BITS), "bit")
        makes_ahead, words_ahead = Signal.like(waiting), Signal.like(waiting)
        is_made = Signal(name="is_made")
        with m.If(port.request & choose & ~watches):
            m.d.sync += [
                watches.eq(1), address.eq(port.request_address), is_made.eq(0),
                makes_ahead.eq(waiting - made), words_ahead.eq(self.open[FETCH_ID] - ends),
            ]  # fmt: skip
        with m.Elif(watches):
            with m.If(made):
                m.d.sync += [
                    makes_ahead.eq(makes_ahead - (makes_ahead != 0)),
                    is_made.eq(is_made | (makes_ahead == 0)),
                ]
            with m.If(ends):
                m.d.sync += [words_ahead.eq(words_ahead - 1), watches.eq(words_ahead != 0)]
        is_its_burst = watches & ~is_made & made & (makes_ahead == 0)
        is_its_word = watches & is_word & (words_ahead == 0) & (self.fetch_beat == word)
        self.claim(m, "address", ~is_its_burst | (port.araddr == address))
        place = address[exact_log2(WORD_BYTES)] ^ word
        came, value = Signal(name="its_word_came"), Signal(name="value")
        m.d.sync += [
            came.eq(is_its_word),
            value.eq(port.rdata.word_select(place, WORD_BITS).bit_select(bit, 1)),
        ]
        self.claim(m, "word", ~came | (port.comes & (port.comes_word.bit_select(bit, 1) == value)))

        lane, loaded = Signal(5, name="load_lane"), Signal(32, name="loaded")
        with m.If(port.load_request):
            m.d.sync += lane.eq(port.load_address[LOAD_SIZE:])
        m.d.sync += loaded.eq(port.rdata.word_select(lane, 32))
        self.claim(m, "value", ~port.value_comes | (port.value == loaded))
        self.reach(m, "second_run", watches & ends & (words_ahead == 1))
        self.reach(m, "word", came & word & (place == 0))
