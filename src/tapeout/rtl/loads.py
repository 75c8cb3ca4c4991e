"""Stationary loads: reads of spm that bring weights to the array in its wave.

Cycles of both are in `tapeout.rtl.mxu`.
"""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tapeout.chip import Chip

from .array import SystolicArray
from .boxes import Delay
from .decode import word_of
from .memory import spm_reads
from .operands import SUM_BITS

SPM_STAGES = 2  # from the enable of a read to its row in a register


class StraightLoad(wiring.Component):
    """Reads the rows of straight loads as late as the array needs them:

    The order to load goes down the rows, `adder_stages` cycles each. Row k then waits for its slot,
    the cycles that are k // load_rows_per_cycle modulo the slots, and reads its row of spm. Rows of
    one slot lie in different banks, and in one bank every row has another slot.

    Ports:
        start, src, k: a load, at least as many cycles after the last as there are slots.
        spm: reads; row k of a load at position k % banks.
        write, weights: what goes into the array (see `SystolicArray`).
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.slots = -(-chip.mxu.rows // chip.mxu.load_rows_per_cycle)
        self.row_bits = spm_reads(chip).row_bits
        row_data = data.ArrayLayout(16, chip.mxu.cols)
        super().__init__(
            {
                "start": In(1),
                "src": In(self.row_bits),
                "k": In(range(chip.mxu.rows + 1)),
                "spm": Out(spm_reads(chip)),
                "write": Out(chip.mxu.rows),
                "weights": Out(data.ArrayLayout(row_data, chip.mxu.load_rows_per_cycle)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        rows, buses = self.chip.mxu.rows, self.chip.mxu.load_rows_per_cycle
        banks = self.chip.spm.banks_per_stripe
        slot = Signal(range(max(2, self.slots)))
        m.d.sync += slot.eq(Mux(slot == self.slots - 1, 0, slot + 1))
        order = Signal(Cat(self.start, self.src, self.k).shape())
        m.d.sync += order.eq(Cat(self.start, self.src, self.k))
        reads = []
        for k in range(rows):
            if k:
                order = self._down(m, k, order)
            reads.append(self._agent(m, k, order, slot == k // buses))
        enables = [Signal(name=f"enable_{bank}") for bank in range(banks)]
        sources = [Signal(self.row_bits, name=f"row_{bank}") for bank in range(banks)]
        for k, (read, row) in enumerate(reads):
            with m.If(read):
                m.d.comb += [enables[k % banks].eq(1), sources[k % banks].eq(row + k)]
        m.d.comb += self.spm.enable.eq(Cat(enables))
        m.d.comb += [self.spm.row[bank].eq(source) for bank, source in enumerate(sources)]
        held = Signal.like(self.spm.data.as_value(), name="held")
        m.d.sync += held.eq(self.spm.data)
        for k, (read, _) in enumerate(reads):
            came = Signal(SPM_STAGES, name=f"came_{k}")
            m.d.sync += came.eq(Cat(read, came))
            m.d.comb += self.write[k].eq(came[-1])
            with m.If(came[-1]):
                m.d.comb += self.weights[k % buses].eq(
                    held.word_select(k % banks, self.chip.lanes * 16)
                )
        return m

    def _down(self, m: Module, k: int, order: Value) -> Value:
        line = Delay(len(order), self.chip.mxu.adder_stages, clears=True)
        m.submodules[f"order_{k}"] = line
        m.d.comb += line.input.eq(order)
        return line.output

    def _agent(self, m: Module, k: int, order: Value, is_slot: Value) -> tuple[Signal, Value]:
        """(row k is read in this cycle, the load's first row)."""
        bits = self.row_bits
        waits, src, read = Signal(name=f"waits_{k}"), Signal(bits), Signal(name=f"read_{k}")
        comes = order[0] & (order[1 + bits :] > k)
        first = Mux(comes, order[1 : 1 + bits], src)
        m.d.comb += read.eq((comes | waits) & is_slot)
        m.d.sync += [src.eq(first), waits.eq((comes | waits) & ~is_slot)]
        return read, first


class TransposedLoad(wiring.Component):
    """Reads source rows of transposed loads, `rate` a cycle:

    Source row n, which becomes column n, goes to bus n % load_rows_per_cycle_transposed.

    Ports:
        start, src, stride, n, rate_log: a load, when the last one has read its rows; see
            `transposed_rate_log`.
    """

    def __init__(self, chip: Chip, array: SystolicArray) -> None:
        self.chip = chip
        self.buses = chip.mxu.load_rows_per_cycle_transposed
        self.bus = array.bus
        super().__init__(
            {
                "start": In(1),
                "src": In(signed(SUM_BITS)),
                "stride": In(12),
                "n": In(9),
                "rate_log": In(range(exact_log2(self.buses) + 1)),
                "spm": Out(spm_reads(chip)),
                "transposed": Out(data.ArrayLayout(self.bus, self.buses)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        banks, buses = self.chip.spm.banks_per_stripe, self.buses
        log_buses, log_banks = exact_log2(buses), exact_log2(banks)
        left, at = Signal(9), Signal(9)  # columns to come, the next one
        row, stride, log = Signal(SUM_BITS), Signal(12), Signal.like(self.rate_log)
        rate = Signal(range(buses + 1))
        m.d.comb += rate.eq(1 << log)
        with m.If(left > rate):
            m.d.sync += [left.eq(left - rate), at.eq(at + rate), row.eq(row + (stride << log))]
        with m.Else():
            m.d.sync += left.eq(0)
        with m.If(self.start):
            m.d.sync += [
                left.eq(self.n), at.eq(0), row.eq(self.src), stride.eq(self.stride),
                log.eq(self.rate_log),
            ]  # fmt: skip
        held = Signal.like(self.spm.data.as_value(), name="held")
        m.d.sync += held.eq(self.spm.data)
        for bus in range(buses):
            # Which of this cycle's columns comes on this bus: the one that is `bus` modulo buses.
            ahead = Signal(range(buses), name=f"ahead_{bus}")
            reads, source = Signal(name=f"reads_{bus}"), Signal(SUM_BITS, name=f"source_{bus}")
            m.d.comb += [
                ahead.eq(bus - at[:log_buses] if buses > 1 else 0),
                reads.eq((ahead < rate) & (ahead < left)),
                source.eq(row + ahead * stride),
            ]
            bank = source[:log_banks]
            for i in range(banks):
                with m.If(reads & (bank == i)):
                    m.d.comb += [self.spm.enable[i].eq(1), self.spm.row[i].eq(source)]
            tag = Cat(reads, ((at + ahead) >> log_buses)[: self.bus["column"].width], bank)
            first, second = (
                Signal(len(tag), name=f"tag_{bus}"),
                Signal(len(tag), name=f"tag2_{bus}"),
            )
            m.d.sync += [first.eq(tag), second.eq(first)]
            came = second[-log_banks:] if log_banks else C(0, 1)
            lanes = word_of(held, came, self.chip.lanes * 16)
            m.d.comb += self.transposed[bus].eq(
                Cat(second[: len(tag) - log_banks], lanes[: self.chip.mxu.rows * 16])
            )
        return m


def transposed_rate_log(m: Module, chip: Chip, stride: Value) -> Signal:
    """log2 of the rows that a transposed load reads a cycle: fewer than it has buses where an even
    stride meets banks twice."""
    log_buses = exact_log2(chip.mxu.load_rows_per_cycle_transposed)
    log_banks = exact_log2(chip.spm.banks_per_stripe)
    rate_log = Signal(range(log_buses + 1))
    zeros = Signal(range(log_banks + 1))  # at the stride's end
    m.d.comb += zeros.eq(log_banks)
    for bit in reversed(range(log_banks)):
        with m.If(stride[bit]):
            m.d.comb += zeros.eq(bit)
    m.d.comb += rate_log.eq(Mux(log_banks - zeros < log_buses, log_banks - zeros, log_buses))
    return rate_log
