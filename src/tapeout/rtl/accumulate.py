"""What happens to the array's sums: rows written to acc, or added to what is there."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tapeout.chip import Chip

from .array import MINUS_ZERO, ONE
from .boxes import Delay, box
from .float import FusedMultiplyAdd
from .memory import acc_reads, acc_writes


class Add(wiring.Component):
    """x + y, rounded once, where y comes a cycle after x; the sum follows adder_stages + registers
    cycles after y."""

    x: In(32)
    y: In(32)
    sum: Out(32)

    def __init__(self, *, adder_stages: int, registers: int = 0) -> None:
        self.adder_stages, self.registers = adder_stages, registers
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.fma = fma = FusedMultiplyAdd(factor_bits=32, adder_stages=self.adder_stages)
        m.d.comb += [fma.a.eq(self.x), fma.b.eq(ONE), fma.c.eq(self.y)]
        result: Value = fma.result
        for k in range(self.registers):
            held = Signal(32, name=f"sum_{k}")
            m.d.sync += held.eq(result)
            result = held
        m.d.comb += self.sum.eq(result)
        return m


class Accumulator(wiring.Component):
    """Writes rows of sums to acc, or adds them to what is there:

    A row that comes in cycle c is read in c and written in c + accumulate_cycles - 1.

    Ports:
        comes, row, lanes, adds: a row of `sums`, where it goes, how many lanes of it count.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        super().__init__(
            {
                "comes": In(1),
                "row": In(acc_reads(chip).row_bits),
                "lanes": In(range(chip.lanes + 1)),
                "adds": In(1),
                "sums": In(data.ArrayLayout(32, chip.lanes)),
                "acc_read": Out(acc_reads(chip)),
                "acc_write": Out(acc_writes(chip)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        banks, lanes = self.chip.vpu.sublanes, self.chip.lanes
        bank = self.row[: exact_log2(banks)]
        for i in range(banks):
            m.d.comb += [
                self.acc_read.row[i].eq(self.row),
                self.acc_read.enable[i].eq(self.comes & self.adds & (bank == i)),
            ]
        # Read, sum and write: what is left of the cycles are registers behind the sum.
        stages = self.chip.mxu.accumulate_cycles - 2
        adder_stages = min(stages, FusedMultiplyAdd.STAGES[-1])
        order = Cat(self.comes, self.row, self.lanes, self.adds)
        read = Signal(len(order))
        m.d.sync += read.eq(order)
        read_bank = read[1 : 1 + len(bank)]
        before = Signal(lanes * 32)
        m.d.comb += before.eq(self.acc_read.data.as_value().word_select(read_bank, lanes * 32))
        written = Delay(len(order), stages, clears=True)
        m.submodules.written = written
        m.d.comb += written.input.eq(read)
        enable, row, count, _ = self._parts(written.output)
        result = []
        for lane in range(lanes):
            add = Add(adder_stages=adder_stages, registers=stages - adder_stages)
            m.submodules[f"add_{lane}"] = box(platform, "mxu_add", add)
            m.d.comb += [
                add.x.eq(self.sums[lane]),
                add.y.eq(Mux(read[-1], before.word_select(lane, 32), MINUS_ZERO)),
            ]
            result.append(add.sum)
        for i in range(banks):
            m.d.comb += [
                self.acc_write.row[i].eq(row),
                self.acc_write.enable[i].eq(enable & (row[: exact_log2(banks)] == i)),
                self.acc_write.data[i].eq(Cat(*result)),
                self.acc_write.mask[i].eq(Cat(count > lane for lane in range(lanes))),
            ]
        return m

    def _parts(self, order: Value) -> list[Value]:
        parts, at = [], 0
        for part in (self.comes, self.row, self.lanes, self.adds):
            parts.append(order[at : at + len(part)])
            at += len(part)
        return parts
