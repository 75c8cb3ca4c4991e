"""The engine of a DMA queue: transfers between HBM and spm or vmem.

Contract: `tapeout.isa.dma`, and the cycles of docs/timing.md ("Transfers"). Of
`dma.request_cycles`, `REQUEST_STAGES` pass before a request is at the ports; of
`dma.response_cycles`, `RESPONSE_STAGES` after data is at them.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from tapeout.chip import Chip
from tapeout.isa import dma
from tapeout.isa.dma import formats_of
from tapeout.isa.instruction import Fault

from . import load_path, store_path
from .fetch import ADDRESS_BITS
from .memory import spm_reads, spm_writes, vmem_reads, vmem_writes
from .operands import resolved_layout
from .pieces import RUN_BITS, PieceWalker
from .pipeline import delayed
from .runs import RunGenerator
from .sequencer import BASE, BASES, ENGINE, base_of
from .transfer import SHAPE, WORDS, Issue

REQUEST_STAGES = store_path.STAGES
RESPONSE_STAGES = load_path.STAGES - 1  # what the last piece writes is there when its run returns

DATA_PORTS = (
    "run_request", "run_address", "run_bytes", "run_is_store", "sends", "send_bytes", "send_data",
    "data_comes", "data", "data_take", "data_ends",
)  # fmt: skip
RUN = data.StructLayout({"bytes": RUN_BITS, "is_store": 1, "begins": 1, "is_last": 1})
REQUEST = data.StructLayout({"address": ADDRESS_BITS, "bytes": RUN_BITS, "is_store": 1})


class DmaEngine(wiring.Component):
    """A DMA queue's engine:

    A generator requests one run a cycle; the runs that are under way wait in order for their data,
    which is taken piece by piece. A store's run is requested when its last piece has left.

    Ports, besides those of `sequencer.ENGINE`:
        run_request, run_address, run_bytes, run_is_store: a run's request.
        sends, send_bytes, send_data: data of stores, in the order of runs, before the request.
        data_comes: the oldest run that has not ended has come (a store's: is done).
        data: its bytes that were not taken yet, from bit 0. data_take: how many are taken now.
        data_ends: with these, or none of a store's, the run ends.
        late_fault: of a transfer that has issued, by the index of a row.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        width = 8 * chip.dma.bytes_per_cycle
        vmem_rows = chip.dma.bytes_per_cycle // (4 * chip.lanes)
        names = ("opcode", "accept", "start", "fits", "fault", "done", "late_fault")
        super().__init__(
            {
                **{name: ENGINE[name].flip() for name in names},
                "load": In(resolved_layout(dma.Load)),
                "store": In(resolved_layout(dma.Store)),
                "bases": In(BASES),
                "spm_read": Out(spm_reads(chip)),
                "spm_write": Out(spm_writes(chip)),
                "vmem_read": Out(vmem_reads(chip, vmem_rows)),
                "vmem_write": Out(vmem_writes(chip, vmem_rows)),
                "vmem_index": Out(vmem_reads(chip, 1)),
                "run_request": Out(1),
                "run_address": Out(ADDRESS_BITS),
                "run_bytes": Out(RUN_BITS),
                "run_is_store": Out(1),
                "sends": Out(1),
                "send_bytes": Out(RUN_BITS),
                "send_data": Out(width),
                "data_comes": In(1),
                "data": In(width),
                "data_take": Out(RUN_BITS),
                "data_ends": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Both instructions have the same fields in the same places.
        operands = self.load
        base = Signal(BASE)
        m.d.sync += base.eq(base_of(self.bases, operands.hbm.base))
        issue = Issue(m, self.chip, operands, self.opcode == dma.Store.opcode, base, self.accept)
        begins = Signal()  # a transfer that moves something
        m.d.comb += [
            self.fault.eq(issue.fault),
            begins.eq(self.start & issue.moves),
        ]

        m.submodules.generator = generator = RunGenerator(self.chip)
        wiring.connect(m, generator.vmem_index, wiring.flipped(self.vmem_index))
        shape, stores, is_first = Signal(SHAPE), Signal(), Signal()
        with m.If(begins):
            m.d.sync += [shape.eq(issue.shape), stores.eq(issue.is_store), is_first.eq(1)]
        with m.Elif(generator.take):
            m.d.sync += is_first.eq(0)
        m.d.comb += [
            generator.start.eq(begins),
            generator.segments.eq(issue.segments),
            self.late_fault.eq(Mux(generator.outside, Fault.HBM_BOUNDS, Fault.NONE)),
            self.fits.eq(~generator.active | (generator.take & generator.is_last & ~stores)),
        ]

        returned = Signal()
        credit = self._credits(m, generator.take, returned)
        sent = self._send(m, generator, shape, stores, credit)
        m.d.comb += generator.take.eq(generator.is_there & credit & Mux(stores, sent, 1))
        self._request(m, generator, stores)
        run = Signal(RUN)
        m.d.comb += [
            run.bytes.eq(generator.bytes),
            run.is_store.eq(stores),
            run.begins.eq(is_first),
            run.is_last.eq(generator.is_last),
        ]
        ends, last_ends = self._take(m, run, generator.take, begins & ~issue.is_store, issue.shape)
        after = delayed(m, Cat(ends, last_ends), RESPONSE_STAGES + 1, "returned", resets=True)
        m.d.comb += returned.eq(after[0])
        self._finish(m, issue.moves, after[1])
        return m

    def _credits(self, m: Module, take: Value, returned: Value) -> Value:
        free = Signal(range(self.chip.dma.credits + 1), init=self.chip.dma.credits)
        m.d.sync += free.eq(free + returned - take)
        return free != 0

    def _send(
        self, m: Module, generator: RunGenerator, shape: data.View, stores: Value, credit: Value
    ) -> Value:
        """A store's pieces leave; true where the run's last one does."""
        m.submodules.store_walker = walker = PieceWalker(self.chip, formats=WORDS)
        m.submodules.store_path = path = store_path.StorePath(self.chip)
        for port in (self.spm_read, self.vmem_read):
            name = "spm_read" if port is self.spm_read else "vmem_read"
            wiring.connect(m, getattr(path, name), wiring.flipped(port))
        begins, inside, left = Signal(), Signal(), Signal(RUN_BITS)
        sends, ends = Signal(), Signal()
        m.d.comb += [
            sends.eq(generator.is_there & stores & credit),
            walker.shape.eq(shape),
            walker.begins.eq(begins),
            walker.run_left.eq(Mux(inside, left, generator.bytes)),
            walker.advance.eq(sends),
            ends.eq(walker.ends),
            path.takes.eq(sends),
            path.piece.eq(walker.piece),
            self.sends.eq(path.sends),
            self.send_bytes.eq(path.send_bytes),
            self.send_data.eq(path.send_data),
        ]
        with m.If(sends):
            m.d.sync += [
                begins.eq(0),
                inside.eq(~ends),
                left.eq(walker.left),
            ]
        with m.If(generator.start):
            m.d.sync += begins.eq(1)
        return ends

    def _request(self, m: Module, generator: RunGenerator, stores: Value) -> None:
        """Requests go out as late as data of stores; a store's a cycle after its last piece."""
        request, waiting = Signal(REQUEST), Signal(REQUEST)
        asks, waits = Signal(), Signal()
        m.d.comb += [
            request.address.eq(generator.address),
            request.bytes.eq(generator.bytes),
            request.is_store.eq(stores),
        ]
        m.d.sync += [waits.eq(generator.take & stores), waiting.eq(request)]
        m.d.comb += asks.eq(waits | (generator.take & ~stores))
        asked = Cat(asks, Mux(waits, waiting, request))
        out = delayed(m, asked, REQUEST_STAGES, "request", resets=True)
        held = Signal(REQUEST)
        m.d.comb += [
            held.eq(out[1:]),
            self.run_request.eq(out[0]),
            self.run_address.eq(held.address),
            self.run_bytes.eq(held.bytes),
            self.run_is_store.eq(held.is_store),
        ]

    def _take(
        self, m: Module, run: data.View, requested: Value, load_begins: Value, shape: data.View
    ) -> tuple[Value, Value]:
        """Runs end in order: (one does, and it is its transfer's last)."""
        m.submodules.runs = runs = SyncFIFOBuffered(width=RUN.size, depth=self.chip.dma.credits + 1)
        m.submodules.shapes = shapes = SyncFIFOBuffered(
            width=SHAPE.size, depth=self.chip.seq.retire_entries + 1
        )
        m.submodules.load_walker = walker = PieceWalker(self.chip, formats=formats_of(self.chip))
        m.submodules.load_path = path = load_path.LoadPath(self.chip)
        for name in ("spm_write", "vmem_write"):
            wiring.connect(m, getattr(path, name), wiring.flipped(getattr(self, name)))
        head, head_shape = Signal(RUN), Signal(SHAPE)
        inside, left = Signal(), Signal(RUN_BITS)
        takes, ends = Signal(), Signal()
        m.d.comb += [
            runs.w_en.eq(requested),
            runs.w_data.eq(run),
            shapes.w_en.eq(load_begins),
            shapes.w_data.eq(shape),
            head.eq(runs.r_data),
            head_shape.eq(shapes.r_data),
            takes.eq(runs.r_rdy & self.data_comes & ~head.is_store),
            walker.shape.eq(head_shape),
            walker.begins.eq(head.begins & ~inside),
            walker.run_left.eq(Mux(inside, left, head.bytes)),
            walker.advance.eq(takes),
            ends.eq(
                Mux(head.is_store, runs.r_rdy & self.data_comes,
                    takes & walker.ends)
            ),
            path.takes.eq(takes),
            path.piece.eq(walker.piece),
            path.data.eq(self.data),
            self.data_take.eq(Mux(takes, walker.piece.bytes, 0)),
            self.data_ends.eq(ends),
            runs.r_en.eq(ends),
            shapes.r_en.eq(ends & head.is_last & ~head.is_store),
        ]  # fmt: skip
        with m.If(takes):
            m.d.sync += [inside.eq(~ends), left.eq(walker.left)]
        return ends, ends & head.is_last

    def _finish(self, m: Module, moves: Value, last_returned: Value) -> None:
        """`done`, in order: a transfer without runs, behind others, when those are done."""
        m.submodules.transfers = transfers = SyncFIFO(width=1, depth=self.chip.seq.retire_entries)
        finished = Signal(range(self.chip.seq.retire_entries + 1))  # that wait behind others
        empty, counted = Signal(), Signal()
        at_once = self.start & ~moves & ~transfers.r_rdy
        m.d.comb += [
            transfers.w_en.eq(self.start & ~at_once),
            transfers.w_data.eq(~moves),
            empty.eq(transfers.r_rdy & transfers.r_data[0]),
            counted.eq(transfers.r_rdy & ~empty & ((finished != 0) | last_returned)),
            transfers.r_en.eq(empty | counted),
            self.done.eq(empty | counted | at_once),
        ]
        m.d.sync += finished.eq(finished + last_returned - counted)
