"""What happens to the array's sums: rows written to acc, or added to what is there."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tapeout.chip import Chip

from .array import MINUS_ZERO
from .boxes import Delay, box
from .decode import word_of
from .float import Adder, FusedMultiplyAdd
from .memory import acc_reads, acc_writes


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
        m.d.comb += before.eq(word_of(self.acc_read.data.as_value(), read_bank, lanes * 32))
        written = Delay(len(order), stages, clears=True)
        m.submodules.written = written
        m.d.comb += written.input.eq(read)
        enable, row, count, _ = self._parts(written.output)
        result = []
        for lane in range(lanes):
            adder = Adder(stages=adder_stages)
            m.submodules[f"add_{lane}"] = box(platform, "mxu_add", adder)
            m.d.sync += adder.a.eq(self.sums[lane])
            m.d.comb += adder.b.eq(Mux(read[-1], before.word_select(lane, 32), MINUS_ZERO))
            result.append(adder.result)
        late = Delay(lanes * 32, stages - adder_stages)
        m.submodules.late = late
        m.d.comb += late.input.eq(Cat(*result))
        for i in range(banks):
            m.d.comb += [
                self.acc_write.row[i].eq(row),
                self.acc_write.enable[i].eq(enable & (row[: exact_log2(banks)] == i)),
                self.acc_write.data[i].eq(late.output),
                self.acc_write.mask[i].eq(Cat(count > lane for lane in range(lanes))),
            ]
        return m

    def _parts(self, order: Value) -> list[Value]:
        parts, at = [], 0
        for part in (self.comes, self.row, self.lanes, self.adds):
            parts.append(order[at : at + len(part)])
            at += len(part)
        return parts
