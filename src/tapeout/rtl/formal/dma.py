"""Properties of the port on which a DMA queue's runs become bursts.

Sizes are small: two runs are open at most, a run lies in two beats, where it may begin and end
inside, and a beat is two pieces. Addresses and counts of bytes have the chip's widths.
"""

from types import SimpleNamespace

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.utils import exact_log2

from tapeout.rtl.shell.dma import DmaPort

from .axi import ASK, AxiProperty
from .property import COMPONENT

CREDITS, PIECE_BYTES, BEAT_BYTES, UNIT_BYTES = 2, 2, 4, 8
BEAT_BITS, UNIT_BITS = exact_log2(BEAT_BYTES), exact_log2(UNIT_BYTES)


def _burst_of(address: Value, nbytes: Value) -> Value:
    """The address and the beats, 9 bits, of the burst that has a run's bytes."""
    beats = (address[:BEAT_BITS] + nbytes + BEAT_BYTES - 1) >> BEAT_BITS
    return Cat(C(0, BEAT_BITS), address[BEAT_BITS:], beats[:9], C(0, 9 - len(beats[:9])))


class _Runs(AxiProperty):
    """An engine keeps its rules: as many runs are open as there are credits; a run lies in an
    interleave unit; a store's bytes are sent before its request, from when a credit is free on; a
    run ends when it has come. When, and what is taken of loads, is free.

    A burst of loads is taken at any time and its beats come at any time, any number of them.
    """

    component = DmaPort

    def relies(self, m: Module, name: str, condition: Value) -> None:
        """Assumes of the component what `Loads` claims of it."""
        self.assume(m, condition)

    def _surround(self, m: Module) -> None:
        sizes = SimpleNamespace(
            hbm=SimpleNamespace(interleave_bytes=UNIT_BYTES),
            dma=SimpleNamespace(credits=CREDITS, bytes_per_cycle=PIECE_BYTES),
        )
        m.submodules[COMPONENT] = port = self.port = self.make(sizes, BEAT_BYTES)
        for name in (
            "launches", "run_request", "run_address", "run_bytes", "run_is_store", "sends",
            "send_bytes", "send_data", "data_take", "data_ends", "taken", "beat_comes", "beat",
            "beat_ends",
        ):  # fmt: skip
            signal = getattr(port, name)
            m.d.comb += signal.eq(self.free(m, signal.shape(), f"free_{name}"))
        self.aw_taken, self.w_taken = self.lets(m, "aw"), self.lets(m, "w")
        self.b_comes = self.comes(m, "b", ("id", "resp"))
        # A write is answered when its address and all of its data were taken.
        for name, more in (("addresses", self.aw_taken), ("data", self.w_taken & port.wlast)):
            owed = Signal(range(CREDITS + 2), name=f"unanswered_{name}")
            m.d.sync += owed.eq(owed + more - self.b_comes)
            self.assume(m, ~port.bvalid | (owed != 0))
        self.unmade = Signal(range(CREDITS + 1), name="unmade")  # runs without a burst
        self.address_is_new = self.appears(m, "aw")
        m.d.sync += self.unmade.eq(
            self.unmade + port.run_request - port.taken - self.address_is_new
        )
        self._engine(m)

        self.reads = Signal(range(CREDITS + 1), name="reads")  # bursts of loads under way
        m.d.sync += self.reads.eq(self.reads + port.taken - (port.beat_comes & port.beat_ends))
        self.assume(m, ~port.taken | port.asks)
        self.relies(m, "reads_bound", ~port.asks | (self.reads < CREDITS))
        self.assume(m, ~port.beat_comes | (self.reads != 0))

    def _engine(self, m: Module) -> None:
        port = self.port
        self.open = Signal(range(CREDITS + 1), name="open")
        self.sent = Signal(range(UNIT_BYTES + 1), name="sent")  # of the run that is being sent
        self.closes = port.run_request & port.run_is_store
        at = Mux(self.closes, 0, self.sent)
        total = at + Mux(port.sends, port.send_bytes[:2], 0)
        m.d.sync += [
            self.open.eq(self.open + port.run_request - port.data_ends),
            self.sent.eq(total),
        ]
        self.sent_at = at
        self.assume(m, ~port.run_request | (self.open != CREDITS))
        in_unit = port.run_address[:UNIT_BITS] + port.run_bytes <= UNIT_BYTES
        self.assume(m, ~port.run_request | ((port.run_bytes != 0) & in_unit))
        is_piece = (port.send_bytes != 0) & (port.send_bytes <= PIECE_BYTES)
        has_credit = self.open + port.run_request < CREDITS
        self.assume(m, ~port.sends | (is_piece & has_credit & (total <= UNIT_BYTES)))
        self.assume(m, ~self.closes | (port.run_bytes == self.sent))
        self.assume(m, ~port.run_request | port.run_is_store | (self.sent == 0))
        self.assume(m, ~port.data_ends | (port.data_comes & (self.open != 0)))
        self.relies(m, "ends_after_its_burst", ~port.data_ends | (self.open > self.unmade))


class Writes(_Runs):
    """A burst's data follows its address, one burst's at a time, in as many beats as AWLEN says;
    no write begins while a read before it is under way.
    """

    title = "writes keep the rules of AXI4: bursts in a page, of the beats told, WLAST on the last"

    def state(self, m: Module) -> None:
        self._surround(m)
        port = self.port
        address_is_new = self.gives(m, "aw", ASK)
        beat_is_new = self.gives(m, "w", ("data", "strb", "last"))
        self.bursts(m, "aw", BEAT_BYTES)

        owes = Signal(name="owes")  # beats, of a burst that is on AW or was
        length, beat = Signal(8, name="length"), Signal(8, name="beat")
        with m.If(beat_is_new):
            m.d.sync += [beat.eq(beat + 1), owes.eq(~port.wlast)]
        with m.If(address_is_new):
            m.d.sync += [owes.eq(1), length.eq(port.awlen), beat.eq(0)]
        self.claim(m, "a_burst_at_a_time", ~address_is_new | ~owes)
        self.claim(m, "w_is_of_a_burst", ~beat_is_new | owes)
        self.claim(m, "wlast", ~beat_is_new | (port.wlast == (beat == length)))
        in_unit = port.awaddr[:UNIT_BITS] + ((port.awlen + 1) << BEAT_BITS) <= UNIT_BYTES
        self.claim(m, "aw_in_unit", ~port.awvalid | in_unit)

        under_way = Signal(range(CREDITS + 2), name="under_way")
        m.d.sync += under_way.eq(under_way + self.aw_taken - self.b_comes)
        self.claim(m, "bound", under_way + port.awvalid <= self.open)
        self.claim(m, "is_idle", port.is_idle == ((under_way == 0) & ~port.awvalid))
        self.claim(m, "no_data_when_idle", ~port.is_idle | ~port.wvalid)
        self.claim(m, "fails", port.fails == (self.b_comes & port.bresp.any()))
        read = Signal(name="read")  # in the cycle before, which begins the burst
        m.d.sync += read.eq(self.reads != 0)
        self.claim(m, "no_write_passes_a_read", ~address_is_new | ~read)
        self._loads(m)
        self.reach(m, "two_beats", self.w_taken & port.wlast & (beat == 1))
        self.reach(m, "data_before_its_address",
                   self.w_taken & port.wlast & port.awvalid & ~port.awready)  # fmt: skip
        self.reach(m, "two_under_way", under_way == 2)
        self.reach(m, "answered", self.b_comes)

    def _loads(self, m: Module) -> None:
        """What `ReadPort` is asked for, as its property assumes: units are parts of pages."""
        port = self.port
        asked = Cat(port.address, port.beats)
        waits, was = Signal(name="asks_waits"), Signal(len(asked), name="asks_was")
        m.d.sync += [waits.eq(port.asks & ~port.taken), was.eq(asked)]
        self.claim(m, "asks_stays", ~waits | (port.asks & (asked == was)))
        is_whole = (port.beats != 0) & (port.address[:BEAT_BITS] == 0)
        fits = port.address[:UNIT_BITS] + (port.beats << BEAT_BITS) <= UNIT_BYTES
        self.claim(m, "asks_for_beats", ~port.asks | is_whole)
        self.claim(m, "asks_in_unit", ~port.asks | fits)


class Stores(_Runs):
    """Any one store, and any one byte of it, is followed from its first piece to the run's end."""

    title = "each byte of a store is written once, at its address, and answered before its end"
    depth = 11

    def state(self, m: Module) -> None:
        self._surround(m)
        port = self.port
        address_is_new = self.address_is_new
        beat_is_new = self.appears(m, "w")
        stores = Signal.like(self.open, name="stores")  # requested; without a burst, data, answer
        no_data, no_answer = (Signal.like(self.open, name=n) for n in ("no_data", "no_answer"))
        m.d.sync += [
            stores.eq(stores + self.closes - address_is_new),
            no_data.eq(no_data + self.closes - (beat_is_new & port.wlast)),
            no_answer.eq(no_answer + self.closes - self.b_comes),
        ]
        self.claim(m, "address_is_asked", ~address_is_new | (stores != 0))
        self.claim(m, "data_is_asked", ~beat_is_new | (no_data != 0))

        # The watched store.
        sending, requested, done = (Signal(name=n) for n in ("sending", "requested", "done"))
        choose, offset = self.free(m, 1, "choose"), self.fixed(m, range(UNIT_BYTES), "offset")
        starts = choose & port.sends & (self.sent_at == 0) & ~sending & ~requested
        value = Signal(8, name="value")
        address, nbytes = Signal.like(port.run_address), Signal(range(UNIT_BYTES + 1))
        beat = Signal(UNIT_BITS - BEAT_BITS, name="beat")
        ahead = {n: Signal.like(self.open, name=f"{n}_ahead") for n in ("aw", "w", "b", "runs")}
        its_piece = starts | (sending & port.sends & ~self.closes)
        for k in range(PIECE_BYTES):
            with m.If(its_piece & (self.sent_at + k == offset) & (port.send_bytes > k)):
                m.d.sync += value.eq(port.send_data.word_select(k, 8))
        addressed = Signal(name="addressed")
        its_address = requested & ~addressed & address_is_new & (ahead["aw"] == 0)
        written = Signal(name="written")
        its_beat = requested & ~written & beat_is_new & (ahead["w"] == 0)
        its_answer = requested & ~done & self.b_comes & (ahead["b"] == 0)
        at_head = requested & (ahead["runs"] == 0)
        with m.If(starts):
            m.d.sync += sending.eq(1)
        with m.If(sending & self.closes):
            m.d.sync += [
                sending.eq(0), requested.eq(1), addressed.eq(0), written.eq(0), done.eq(0),
                beat.eq(0), address.eq(port.run_address), nbytes.eq(port.run_bytes),
                ahead["aw"].eq(stores - address_is_new),
                ahead["w"].eq(no_data - (beat_is_new & port.wlast)),
                ahead["b"].eq(no_answer - self.b_comes),
                ahead["runs"].eq(self.open - port.data_ends),
            ]  # fmt: skip
        with m.Elif(requested):
            for name, event in (
                ("aw", address_is_new), ("w", beat_is_new & port.wlast), ("b", self.b_comes),
                ("runs", port.data_ends),
            ):  # fmt: skip
                m.d.sync += ahead[name].eq(ahead[name] - (event & (ahead[name] != 0)))
            m.d.sync += [
                addressed.eq(addressed | its_address),
                beat.eq(beat + its_beat),
                written.eq(written | (its_beat & port.wlast)),
                done.eq(done | its_answer),
            ]
            with m.If(at_head & port.data_ends):
                m.d.sync += requested.eq(0)

        skip = address[:BEAT_BITS]
        its_ask = Cat(port.awaddr, (port.awlen + 1)[:9]) == _burst_of(address, nbytes)
        self.claim(m, "address", ~its_address | its_ask)
        for lane in range(BEAT_BYTES):
            place = Cat(C(lane, BEAT_BITS), beat)
            is_its = (place >= skip) & (place < skip + nbytes)
            strobe, byte = port.wstrb[lane], port.wdata.word_select(lane, 8)
            self.claim(m, f"strobe_{lane}", ~its_beat | (strobe == is_its))
            is_watched = its_beat & strobe & (place == skip + offset)
            self.claim(m, f"byte_{lane}", ~is_watched | (byte == value))
        self.claim(m, "ends_when_answered", ~at_head | (port.data_comes == done))
        self.reach(m, "two_beats", its_beat & (beat == 1) & (offset + skip >= BEAT_BYTES))
        self.reach(m, "ends", at_head & port.data_ends)


class Loads(_Runs):
    """The engine takes no more than what has come of a run that it takes, and ends it with its last
    byte; beats come as many as were asked for.

    Any one load, and any one byte of it, is followed from its request to the engine.
    """

    title = "each byte of a load comes from its address, in order, before its run may end"
    depth = 10

    def relies(self, m: Module, name: str, condition: Value) -> None:
        self.claim(m, name, condition)

    def state(self, m: Module) -> None:
        self._surround(m)
        port = self.port
        burst_ends = port.beat_comes & port.beat_ends
        beat = Signal(UNIT_BITS - BEAT_BITS, name="beat")  # of the oldest burst
        with m.If(port.beat_comes):
            m.d.sync += beat.eq(Mux(port.beat_ends, 0, beat + 1))
        lengths = self._queue(m, "beats", port.beats[:2], port.taken, burst_ends, self.reads)
        self.assume(m, ~port.beat_comes | (port.beat_ends == (beat + 1 == lengths[0])))

        run = Cat(port.run_bytes[: UNIT_BITS + 1], port.run_is_store)
        head = self._queue(m, "run", run, port.run_request, port.data_ends, self.open)[0]
        nbytes, is_store = head[:-1], head[-1]
        at = Signal(range(UNIT_BYTES + 1), name="at")  # of the head, that were taken
        with m.If(port.data_ends):
            m.d.sync += at.eq(0)
        with m.Else():
            m.d.sync += at.eq(at + port.data_take[:2])
        takes = port.data_take != 0
        has_bytes = port.data_comes & ~is_store & (self.open != 0)
        in_run = (port.data_take <= PIECE_BYTES) & (at + port.data_take <= nbytes)
        self.assume(m, ~takes | (has_bytes & in_run))
        self.assume(m, is_store | (port.data_ends == (takes & (at + port.data_take == nbytes))))

        # The watched load.
        asked = port.run_request & ~port.run_is_store
        untaken, unread = (Signal.like(self.open, name=n) for n in ("untaken", "unread"))
        m.d.sync += [
            untaken.eq(untaken + asked - port.taken),
            unread.eq(unread + asked - burst_ends),
        ]
        watches, address = Signal(name="watches"), Signal.like(port.run_address, name="address")
        its_bytes = Signal(range(UNIT_BYTES + 1), name="its_bytes")
        choose, offset = self.free(m, 1, "choose"), self.fixed(m, range(UNIT_BYTES), "offset")
        ahead = {n: Signal.like(self.open, name=f"{n}_ahead") for n in ("asks", "beats", "runs")}
        is_taken, is_read, seen = (Signal(name=n) for n in ("is_taken", "is_read", "seen"))
        value = Signal(8, name="value")
        with m.If(asked & choose & ~watches):
            m.d.sync += [
                watches.eq(1), is_taken.eq(0), is_read.eq(0), seen.eq(0),
                address.eq(port.run_address), its_bytes.eq(port.run_bytes),
                ahead["asks"].eq(untaken - port.taken), ahead["beats"].eq(unread - burst_ends),
                ahead["runs"].eq(self.open - port.data_ends),
            ]  # fmt: skip
        its_burst = watches & ~is_taken & port.taken & (ahead["asks"] == 0)
        its_beat = watches & ~is_read & port.beat_comes & (ahead["beats"] == 0)
        at_head = watches & (ahead["runs"] == 0)
        with m.If(watches):
            for name, event in (
                ("asks", port.taken), ("beats", burst_ends), ("runs", port.data_ends),
            ):  # fmt: skip
                m.d.sync += ahead[name].eq(ahead[name] - (event & (ahead[name] != 0)))
            m.d.sync += [
                is_taken.eq(is_taken | its_burst),
                is_read.eq(is_read | (its_beat & port.beat_ends)),
            ]
            with m.If(at_head & port.data_ends):
                m.d.sync += watches.eq(0)
        skip = address[:BEAT_BITS]
        for lane in range(BEAT_BYTES):
            with m.If(its_beat & (Cat(C(lane, BEAT_BITS), beat) == skip + offset)):
                m.d.sync += [value.eq(port.beat.word_select(lane, 8)), seen.eq(1)]
        its_ask = Cat(port.address, port.beats) == _burst_of(address, its_bytes)
        self.claim(m, "burst", ~its_burst | its_ask)
        for k in range(PIECE_BYTES):
            here = at_head & (at + k == offset) & (port.data_take > k)
            byte = port.data.word_select(k, 8)
            self.claim(m, f"byte_{k}", ~here | (seen & (byte == value)))
        self.reach(m, "ends", at_head & port.data_ends & (at != 0))
        self.reach(m, "waits_for_the_one_before", watches & (ahead["runs"] != 0) & is_read)

    def _queue(
        self, m: Module, name: str, value: Value, enters: Value, leaves: Value, count: Signal
    ) -> list[Signal]:
        """The reference's: entries by age, of which there are `count`."""
        places = [Signal(len(value), name=f"{name}_{k}") for k in range(CREDITS)]
        for k, place in enumerate(places):
            with m.If(leaves & (k + 1 < CREDITS)):
                m.d.sync += place.eq(places[min(k + 1, CREDITS - 1)])
            with m.If(enters & (count - leaves == k)):
                m.d.sync += place.eq(value)
        return places
