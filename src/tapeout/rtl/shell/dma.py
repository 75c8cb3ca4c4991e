"""Between a DMA engine and AXI: runs become bursts of whole beats, bytes are shifted in between."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tapeout.chip import Chip
from tapeout.rtl import shift
from tapeout.rtl.pieces import RUN_BITS
from tapeout.rtl.ports import join

from .axi import ADDRESS_BITS, INCREMENT, OKAY, write_channels

RUN = data.StructLayout({"address": ADDRESS_BITS, "bytes": RUN_BITS, "is_store": 1})


def run_beats(chip: Chip, beat_bytes: int) -> int:
    """Beats of the longest run: it lies within an interleave unit, where beats are aligned."""
    return max(1, chip.hbm.interleave_bytes // beat_bytes)


class LoadStream(wiring.Component):
    """Beats of bursts become the bytes of runs, one after the other without a gap.

    Ports:
        opens, skip, bytes: the next burst has `bytes` bytes for us, from byte `skip` of its first
            beat on.
        beat_comes, beat, beat_ends: a beat of the oldest burst; there is room for all.
        have: bytes that are there; data: these, from bit 0, `dma.bytes_per_cycle` at most.
        take: how many are taken now.
    """

    def __init__(self, chip: Chip, beat_bytes: int) -> None:
        self.chip, self.beat_bytes, self.piece_bytes = chip, beat_bytes, chip.dma.bytes_per_cycle
        self.room = self.piece_bytes + beat_bytes
        super().__init__(
            {
                "opens": In(1),
                "skip": In(exact_log2(beat_bytes)),
                "bytes": In(RUN_BITS),
                "beat_comes": In(1),
                "beat": In(8 * beat_bytes),
                "beat_ends": In(1),
                "have": Out(range(self.room + 1)),
                "data": Out(8 * self.piece_bytes),
                "take": In(RUN_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        size = self.beat_bytes
        credits = self.chip.dma.credits
        burst = data.StructLayout({"skip": exact_log2(size), "bytes": RUN_BITS})
        m.submodules.beats = beats = SyncFIFOBuffered(
            width=8 * size, depth=max(2, credits * run_beats(self.chip, size))
        )
        m.submodules.bursts = bursts = SyncFIFO(width=burst.size, depth=credits)
        head = Signal(burst)
        held = Signal(8 * self.room)
        m.d.comb += [
            beats.w_en.eq(self.beat_comes),
            beats.w_data.eq(self.beat),
            bursts.w_en.eq(self.opens),
            bursts.w_data.eq(Cat(self.skip, self.bytes)),
            head.eq(bursts.r_data),
            self.data.eq(held),
        ]
        inside, left = Signal(), Signal(RUN_BITS)  # of the burst at the head
        skip, its_left, useful = Signal(burst["skip"].shape), Signal(RUN_BITS), Signal(RUN_BITS)
        takes, kept = Signal(), Signal(range(self.room + 1))
        m.d.comb += [
            skip.eq(Mux(inside, 0, head.skip)),
            its_left.eq(Mux(inside, left, head.bytes)),
            useful.eq(Mux(its_left < size - skip, its_left, size - skip)),
            kept.eq(self.have - self.take),
            takes.eq(beats.r_rdy & bursts.r_rdy & (kept <= self.piece_bytes)),
            beats.r_en.eq(takes),
            bursts.r_en.eq(takes & (useful == its_left)),
        ]
        fresh = shift.right(m, "beat", beats.r_data, skip, 8, 8 * size) & _ones(useful, size)
        with m.If(takes):
            m.d.sync += [inside.eq(useful != its_left), left.eq(its_left - useful)]
        taken = self.take[: self.piece_bytes.bit_length()]
        shifted = shift.right(m, "held", held, taken, 8, 8 * self.room)
        placed = shift.left(m, "fresh", Mux(takes, fresh, 0), kept, 8, 8 * self.room)
        m.d.sync += [held.eq(shifted | placed), self.have.eq(kept + Mux(takes, useful, 0))]
        return m


def _ones(count: Value, size: int) -> Value:
    """A mask of `count` bytes among `size`."""
    return Cat((count > k).replicate(8) for k in range(size))


class StoreStream(wiring.Component):
    """Bytes of runs become W beats of bursts:

    Pieces are packed into rows, a run in rows of its own, until its burst is written.

    Ports, besides W:
        sends, send_bytes, send_data: a piece. closes: the run of the pieces before has ended.
        opens, skip, bytes: write a burst of a closed run's `bytes`, from byte `skip` of its first
            beat on; `is_free` says that the one before has been handed over.
    """

    def __init__(self, chip: Chip, beat_bytes: int) -> None:
        self.chip, self.beat_bytes, self.piece_bytes = chip, beat_bytes, chip.dma.bytes_per_cycle
        self.w = {n: p for n, p in write_channels(beat_bytes).items() if n.startswith("w")}
        super().__init__(
            {
                **self.w,
                "sends": In(1),
                "send_bytes": In(RUN_BITS),
                "send_data": In(8 * self.piece_bytes),
                "closes": In(1),
                "opens": In(1),
                "skip": In(exact_log2(beat_bytes)),
                "bytes": In(RUN_BITS),
                "is_free": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        size = self.piece_bytes
        rows_of_run = -(-self.chip.hbm.interleave_bytes // size)
        m.submodules.rows = rows = SyncFIFOBuffered(
            width=8 * size, depth=max(2, self.chip.dma.credits * rows_of_run)
        )
        self._pack(m, rows)
        self._write(m, rows)
        return m

    def _pack(self, m: Module, rows: SyncFIFOBuffered) -> None:
        """A row is full with bytes of one run, or its run has ended."""
        size = self.piece_bytes
        held, have = Signal(8 * size), Signal(range(size + 1))
        sent, total = Signal(range(size + 1)), Signal(range(2 * size + 1))
        joined = Signal(8 * 2 * size)
        piece = self.send_data & _ones(sent, size)
        m.d.comb += [
            sent.eq(Mux(self.sends, self.send_bytes, 0)),
            total.eq(have + sent),
            joined.eq(held | shift.left(m, "piece", piece, have, 8, 8 * 2 * size)),
        ]
        with m.If(self.closes):
            m.d.comb += [rows.w_en.eq(have != 0), rows.w_data.eq(held)]
            m.d.sync += [held.eq(piece), have.eq(sent)]
        with m.Elif(total > size):
            m.d.comb += [rows.w_en.eq(1), rows.w_data.eq(joined)]
            m.d.sync += [held.eq(joined[8 * size :]), have.eq(total - size)]
        with m.Else():
            m.d.sync += [held.eq(joined), have.eq(total)]

    def _write(self, m: Module, rows: SyncFIFOBuffered) -> None:
        size, beat = self.piece_bytes, self.beat_bytes
        held, have = Signal(8 * (size + beat)), Signal(range(size + beat + 1))
        fill, left = Signal(RUN_BITS), Signal(RUN_BITS)  # to come from rows; to hand over
        skip, need = Signal(exact_log2(beat)), Signal(range(beat + 1))
        came, takes, emits = Signal(range(size + 1)), Signal(), Signal()
        kept = Signal.like(have)
        m.d.comb += [
            self.is_free.eq(left == 0),
            need.eq(Mux(left < beat - skip, left, beat - skip)),
            emits.eq((left != 0) & (have >= need) & (~self.wvalid | self.wready)),
            kept.eq(have - Mux(emits, need, 0)),
            takes.eq(rows.r_rdy & (fill != 0) & (kept <= beat)),
            came.eq(Mux(takes, Mux(fill < size, fill, size), 0)),
            rows.r_en.eq(takes),
        ]
        row = rows.r_data & _ones(came, size)
        shifted = shift.right(m, "held", held, Mux(emits, need, 0), 8, len(held))
        placed = shift.left(m, "row", row, kept, 8, len(held))
        m.d.sync += [
            held.eq(shifted | placed),
            have.eq(kept + came),
            fill.eq(fill - came),
            left.eq(left - Mux(emits, need, 0)),
        ]
        with m.If(self.wready):
            m.d.sync += self.wvalid.eq(0)
        strobes, data_bytes = Cat(need > k for k in range(beat)), held & _ones(need, beat)
        placed_data = shift.left(m, "data", data_bytes, skip, 8, 8 * beat)
        placed_strobes = shift.left(m, "strobes", strobes, skip, 1, beat)
        with m.If(emits):
            m.d.sync += [
                self.wvalid.eq(1),
                self.wdata.eq(placed_data),
                self.wstrb.eq(placed_strobes),
                self.wlast.eq(need == left),
                skip.eq(0),
            ]
        with m.If(self.opens):
            m.d.sync += [fill.eq(self.bytes), left.eq(self.bytes), skip.eq(self.skip)]


class DmaPort(wiring.Component):
    """The runs of one DMA queue, in order:

    A store's burst begins when all reads before it have come, since AXI orders no write behind a
    read; a load's burst begins at once, since hardware has no load that depends on a store that is
    not done. A run ends in the engine when those before it have.

    Ports, besides AW, W and B: those of `rtl.dma.DATA_PORTS`, and
        asks, address, beats; taken; beat_comes, beat, beat_ends: bursts of loads, see `ReadPort`.
        launches: new bursts may begin. is_idle: no write is under way.
        fails: an answer reports an error, in this cycle.
    """

    def __init__(self, chip: Chip, beat_bytes: int) -> None:
        self.chip, self.beat_bytes = chip, beat_bytes
        width = 8 * chip.dma.bytes_per_cycle
        super().__init__(
            {
                **write_channels(beat_bytes),
                "run_request": In(1),
                "run_address": In(ADDRESS_BITS),
                "run_bytes": In(RUN_BITS),
                "run_is_store": In(1),
                "sends": In(1),
                "send_bytes": In(RUN_BITS),
                "send_data": In(width),
                "data_comes": Out(1),
                "data": Out(width),
                "data_take": In(RUN_BITS),
                "data_ends": In(1),
                "asks": Out(1),
                "address": Out(ADDRESS_BITS),
                "beats": Out(9),
                "taken": In(1),
                "beat_comes": In(1),
                "beat": In(8 * beat_bytes),
                "beat_ends": In(1),
                "launches": In(1),
                "is_idle": Out(1),
                "fails": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        credits, size_bits = self.chip.dma.credits, exact_log2(self.beat_bytes)
        m.submodules.asked = asked = SyncFIFO(width=RUN.size, depth=credits)
        m.submodules.loads = loads = LoadStream(self.chip, self.beat_bytes)
        m.submodules.stores = stores = StoreStream(self.chip, self.beat_bytes)
        new, run = Signal(RUN), Signal(RUN)
        m.d.comb += [
            new.address.eq(self.run_address),
            new.bytes.eq(self.run_bytes),
            new.is_store.eq(self.run_is_store),
            asked.w_en.eq(self.run_request),
            asked.w_data.eq(new),
            run.eq(asked.r_data),
        ]

        # The oldest run that has no burst yet.
        reading = Signal(range(credits + 1))  # bursts of loads under way
        beats, skip, writes = Signal(9), Signal(size_bits), Signal()
        m.d.comb += [
            skip.eq(run.address[:size_bits]),
            beats.eq((skip + run.bytes + (self.beat_bytes - 1)) >> size_bits),
            self.asks.eq(asked.r_rdy & ~run.is_store),
            self.address.eq(Cat(C(0, size_bits), run.address[size_bits:])),
            self.beats.eq(beats),
            writes.eq(
                asked.r_rdy & run.is_store & (reading == 0) & stores.is_free
                & (~self.awvalid | self.awready) & self.launches
            ),
            asked.r_en.eq(self.taken | writes),
            loads.opens.eq(self.taken),
            loads.skip.eq(skip),
            loads.bytes.eq(run.bytes),
            loads.beat_comes.eq(self.beat_comes),
            loads.beat.eq(self.beat),
            loads.beat_ends.eq(self.beat_ends),
            stores.opens.eq(writes),
            stores.skip.eq(skip),
            stores.bytes.eq(run.bytes),
            stores.closes.eq(self.run_request & self.run_is_store),
        ]  # fmt: skip
        m.d.sync += reading.eq(reading + self.taken - (self.beat_comes & self.beat_ends))
        for name in ("sends", "send_bytes", "send_data"):
            m.d.comb += getattr(stores, name).eq(getattr(self, name))
        self._write(m, stores, writes, beats)
        self._return(m, new, loads, writes)
        return m

    def _write(self, m: Module, stores: StoreStream, writes: Signal, beats: Signal) -> None:
        for name, member in stores.w.items():
            join(m, member.flow, getattr(self, name), getattr(stores, name))
        size_bits = exact_log2(self.beat_bytes)
        m.d.comb += [self.awburst.eq(INCREMENT), self.awsize.eq(size_bits)]
        with m.If(self.awready):
            m.d.sync += self.awvalid.eq(0)
        with m.If(writes):
            m.d.sync += [
                self.awvalid.eq(1),
                self.awaddr.eq(self.address),
                self.awlen.eq(beats - 1),
            ]

    def _return(self, m: Module, new: data.View, loads: LoadStream, writes: Signal) -> None:
        """What the engine sees of its oldest run."""
        credits = self.chip.dma.credits
        shape = data.StructLayout({"bytes": RUN_BITS, "is_store": 1})
        m.submodules.open = runs = SyncFIFO(width=shape.size, depth=credits)
        head, inside, rest = Signal(shape), Signal(), Signal(RUN_BITS)
        left, wanted = Signal(RUN_BITS), Signal(RUN_BITS)
        written, writing = Signal(range(credits + 1)), Signal(range(credits + 1))
        size = self.chip.dma.bytes_per_cycle
        m.d.comb += [
            runs.w_en.eq(self.run_request),
            runs.w_data.eq(Cat(new.bytes, new.is_store)),
            head.eq(runs.r_data),
            left.eq(Mux(inside, rest, head.bytes)),
            wanted.eq(Mux(left < size, left, size)),
            self.data_comes.eq(runs.r_rdy & Mux(head.is_store, written != 0, loads.have >= wanted)),
            self.data.eq(loads.data),
            loads.take.eq(self.data_take),
            runs.r_en.eq(self.data_ends),
            self.bready.eq(1),
            self.fails.eq(self.bvalid & (self.bresp != OKAY)),
            self.is_idle.eq(writing == 0),
        ]
        with m.If(self.data_take != 0):
            m.d.sync += [inside.eq(1), rest.eq(left - self.data_take)]
        with m.If(self.data_ends):
            m.d.sync += inside.eq(0)
        m.d.sync += [
            written.eq(written + self.bvalid - (self.data_ends & head.is_store)),
            writing.eq(writing + writes - self.bvalid),
        ]
