"""On-chip memories of a core: spm and acc in stripes of banks, and vmem with many ports.

Contract: an engine reaches a memory through row ports. Position i of a port of spm or acc carries
only rows whose bank is i (row % banks), so every position is a wire to one column of banks; of all
ports, one at most is enabled at a bank in a cycle (spm: single-ported), or one read and one write
(acc). docs/timing.md's order of accesses grants it between engines, each engine its own.
"""

from collections.abc import Mapping

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tapeout.chip import Chip

from .boxes import box
from .decode import any_of
from .ram import Ram, RamShape

_OUTPUT_BITS = 1 << 16  # of one instance, in Amaranth's netlist


class RowPort(wiring.Signature):
    """A port of `count` rows a cycle, from the engine's side; `others` are its members for data."""

    def __init__(
        self, count: int, rows: int, lanes: int, element_bits: int, others: dict[str, wiring.Member]
    ) -> None:
        self.count, self.rows, self.lanes, self.element_bits = count, rows, lanes, element_bits
        self.row_bits = max(1, (rows - 1).bit_length())
        row = Out(data.ArrayLayout(self.row_bits, count))
        super().__init__({"enable": Out(count), "row": row, **others})


class RowReads(RowPort):
    """Reads; data comes in the next cycle."""

    def __init__(self, count: int, rows: int, lanes: int, element_bits: int) -> None:
        come = {"data": In(data.ArrayLayout(lanes * element_bits, count))}
        super().__init__(count, rows, lanes, element_bits, come)


class RowWrites(RowPort):
    """Writes; `mask` chooses lanes."""

    def __init__(self, count: int, rows: int, lanes: int, element_bits: int) -> None:
        go = {
            "data": Out(data.ArrayLayout(lanes * element_bits, count)),
            "mask": Out(data.ArrayLayout(lanes, count)),
        }
        super().__init__(count, rows, lanes, element_bits, go)


Ports = Mapping[str, RowReads | RowWrites]


def _position(port: RowReads | RowWrites) -> RowReads | RowWrites:
    """The part of a port that is one of its positions."""
    return type(port)(1, port.rows, port.lanes, port.element_bits)


def spm_reads(chip: Chip) -> RowReads:
    return RowReads(chip.spm.banks_per_stripe, chip.spm.rows, chip.lanes, 16)


def spm_writes(chip: Chip) -> RowWrites:
    return RowWrites(chip.spm.banks_per_stripe, chip.spm.rows, chip.lanes, 16)


def acc_reads(chip: Chip) -> RowReads:
    return RowReads(chip.vpu.sublanes, chip.acc.rows, chip.lanes, 32)


def acc_writes(chip: Chip) -> RowWrites:
    return RowWrites(chip.vpu.sublanes, chip.acc.rows, chip.lanes, 32)


def vmem_reads(chip: Chip, count: int) -> RowReads:
    return RowReads(count, chip.vmem.rows, chip.lanes, 32)


def vmem_writes(chip: Chip, count: int) -> RowWrites:
    return RowWrites(count, chip.vmem.rows, chip.lanes, 32)


class BankedMemory(wiring.Component):
    """Stripes of banks:

    Row r lies in stripe r // rows_per_stripe, there in bank r % banks, at place
    (r % rows_per_stripe) // banks.

    Args:
        name: of its modules.
    """

    def __init__(
        self, *, name: str, stripes: int, banks: int, rows_per_stripe: int, lanes: int,
        element_bits: int, ports: Ports,
    ) -> None:  # fmt: skip
        self.name = name
        self.stripes, self.banks, self.rows_per_stripe = stripes, banks, rows_per_stripe
        self.shape = RamShape(
            depth=-(-rows_per_stripe // banks), lanes=lanes, element_bits=element_bits
        )
        self.ports = ports
        super().__init__({name: In(port) for name, port in ports.items()})

    def ram_path(self, stripe: int, bank: int) -> str:
        """Where the macro of a bank lies in this memory."""
        return f"column_{bank}.box.stripe_{stripe}.macro"

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for bank in range(self.banks):
            column = BankColumn(
                stripes=self.stripes, banks=self.banks, rows_per_stripe=self.rows_per_stripe,
                shape=self.shape, ports=self.ports,
            )  # fmt: skip
            m.submodules[f"column_{bank}"] = box(platform, f"{self.name}_column", column)
            for name, signature in self.ports.items():
                for member, port in signature.members.items():
                    mine = getattr(getattr(self, name), member)[bank]
                    its = getattr(getattr(column, name), member)[0]
                    m.d.comb += its.eq(mine) if port.flow is Out else mine.eq(its)
        return m


class BankColumn(wiring.Component):
    """The banks of one number in all stripes:

    Ports: position `bank` of every row port, by its name.
    """

    def __init__(self, *, stripes: int, banks: int, rows_per_stripe: int, shape: RamShape,
                 ports: Ports) -> None:  # fmt: skip
        self.stripes, self.banks, self.rows_per_stripe = stripes, banks, rows_per_stripe
        self.shape, self.ports = shape, ports
        super().__init__({name: In(_position(port)) for name, port in ports.items()})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        rams = [Ram(self.shape) for _ in range(self.stripes)]
        hits = {name: self._hits(m, name) for name in self.ports}
        for stripe, ram in enumerate(rams):
            m.submodules[f"stripe_{stripe}"] = ram
            self._connect(m, ram, stripe, hits)
        for name, port in self.ports.items():
            if isinstance(port, RowReads):
                self._answer(m, name, hits[name], rams)
        return m

    def _hits(self, m: Module, name: str) -> Signal:
        """By stripe: this port is enabled and its row lies there."""
        port, size = getattr(self, name), self.rows_per_stripe
        hits = Signal(self.stripes, name=f"{name}_hits")
        for stripe in range(self.stripes):
            first = stripe * size
            inside = port.row[0] < first + size
            if first:
                inside &= port.row[0] >= first
            m.d.comb += hits[stripe].eq(port.enable & inside)
        return hits

    def _place(self, row: Value, stripe: int) -> Value:
        return (row - stripe * self.rows_per_stripe)[exact_log2(self.banks) :]

    def _connect(self, m: Module, ram: Ram, stripe: int, hits: dict[str, Signal]) -> None:
        reads = [n for n, p in self.ports.items() if isinstance(p, RowReads)]
        writes = [n for n, p in self.ports.items() if isinstance(p, RowWrites)]
        m.d.comb += ram.read0_enable.eq(any_of([hits[name][stripe] for name in reads]))
        for name in reads:
            with m.If(hits[name][stripe]):
                m.d.comb += ram.read0_row.eq(self._place(getattr(self, name).row[0], stripe))
        for name in writes:
            port = getattr(self, name)
            with m.If(hits[name][stripe]):
                m.d.comb += [
                    ram.write0_row.eq(self._place(port.row[0], stripe)),
                    ram.write0_data.eq(port.data[0]),
                    ram.write0_mask.eq(port.mask[0]),
                ]

    def _answer(self, m: Module, name: str, hits: Signal, rams: list[Ram]) -> None:
        came = Signal.like(hits, name=f"{name}_came")
        m.d.sync += came.eq(hits)
        for stripe, ram in enumerate(rams):
            with m.If(came[stripe]):
                m.d.comb += getattr(self, name).data[0].eq(ram.read0_data)


def scratchpad(chip: Chip, ports: Ports) -> BankedMemory:
    """spm; `ports` by name, of `spm_reads` and `spm_writes`."""
    return BankedMemory(
        name="spm", stripes=chip.spm.stripes, banks=chip.spm.banks_per_stripe,
        rows_per_stripe=chip.spm.rows_per_stripe, lanes=chip.lanes, element_bits=16, ports=ports,
    )  # fmt: skip


def accumulators(chip: Chip, ports: Ports) -> BankedMemory:
    """acc; `ports` by name, of `acc_reads` and `acc_writes`."""
    return BankedMemory(
        name="acc", stripes=chip.acc.stripes, banks=chip.vpu.sublanes,
        rows_per_stripe=chip.acc.rows_per_stripe, lanes=chip.lanes, element_bits=32, ports=ports,
    )  # fmt: skip


class VectorMemory(wiring.Component):
    """vmem:

    Any rows at any port; of several writes to a lane in one cycle the last port's stays. The lanes
    are dealt to macros, as few as Amaranth's limit on an instance's outputs allows.
    """

    def __init__(self, chip: Chip, ports: Ports) -> None:
        self.ports = ports
        count = {
            kind: sum(p.count for p in ports.values() if isinstance(p, kind))
            for kind in (RowReads, RowWrites)
        }
        self.lanes, reads = chip.lanes, max(1, count[RowReads])
        self.slices = 1
        while reads * 32 * self.lanes // self.slices >= _OUTPUT_BITS:
            self.slices *= 2
        self.shape = RamShape(
            depth=chip.vmem.rows, lanes=self.lanes // self.slices, element_bits=32,
            reads=reads, writes=max(1, count[RowWrites]),
        )  # fmt: skip
        super().__init__({name: In(port) for name, port in ports.items()})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for number in range(self.slices):
            ram = Ram(self.shape)
            m.submodules[self.slice_name(number)] = ram
            self._connect(m, ram, number * self.shape.lanes)
        return m

    def slice_name(self, number: int) -> str:
        return f"ram_{number}"

    def _connect(self, m: Module, ram: Ram, first_lane: int) -> None:
        """Lanes from `first_lane` on are those of `ram`."""
        lanes = slice(first_lane, first_lane + self.shape.lanes)
        bits = slice(32 * lanes.start, 32 * lanes.stop)
        reads, writes = 0, 0
        for name, signature in self.ports.items():
            port = getattr(self, name)
            for i in range(signature.count):
                if isinstance(signature, RowReads):
                    m.d.comb += [
                        getattr(ram, f"read{reads}_enable").eq(port.enable[i]),
                        getattr(ram, f"read{reads}_row").eq(port.row[i]),
                        port.data[i][bits].eq(getattr(ram, f"read{reads}_data")),
                    ]
                    reads += 1
                else:
                    m.d.comb += [
                        getattr(ram, f"write{writes}_row").eq(port.row[i]),
                        getattr(ram, f"write{writes}_data").eq(port.data[i][bits]),
                        getattr(ram, f"write{writes}_mask").eq(
                            Mux(port.enable[i], port.mask[i][lanes], 0)
                        ),
                    ]
                    writes += 1
