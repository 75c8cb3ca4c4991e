"""The matrix unit: stationary loads, moving rows, the array, and what goes into acc.

All of it runs at fixed distances from the issue of an instruction at cycle t; A is the first cycle
in which the array sees it, four after the issue:

    moving row m    spm read t + 1 + m, in the array A + m, summed A + m + mxu.latency_cycles,
                    written to acc mxu.accumulate_cycles - 1 cycles later
    straight load   row k: spm read in one of the cycles t + 1 + k p .. t + q + k p (p =
                    adder_stages, q = the load's cycles), in the element two cycles after it
    transposed      source row n: spm read t + 1 + n // rate, lane k in its row 2 + k p later

Row k of the array meets the first moving row of a pass that issued at t in cycle A + k p. A load
issues after the pass before it and q cycles (or its own) before the pass that uses it, so row k is
overwritten after the one and before the other.
"""

from amaranth.hdl import Array, C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tapeout.chip import Chip
from tapeout.isa import mxu
from tapeout.isa.fields import COUNT_MAX
from tapeout.isa.instruction import Fault

from .accumulate import Accumulator
from .array import ONE_BF16, SystolicArray
from .boxes import Delay
from .decode import word_of
from .loads import SPM_STAGES, StraightLoad, TransposedLoad, transposed_rate_log
from .memory import acc_reads, acc_writes, spm_reads
from .operands import SUM_BITS, resolved_layout
from .tokens import CYCLE_BITS


class MatrixUnit(wiring.Component):
    """The engine of queue mxu; see the top of this file for its pipeline.

    Ports: those of an engine (`sequencer.ENGINE`), its instructions, and ports to spm and acc.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.array = SystolicArray(chip)
        self._order = data.StructLayout(  # of a moving row on its way from spm into the array
            {
                "active": 1,
                "swap": 1,
                "unloads": 1,
                "at": (chip.mxu.rows - 1).bit_length(),
                "k": chip.mxu.rows.bit_length(),
                "bank": exact_log2(chip.spm.banks_per_stripe),
            }
        )
        self._tile = data.StructLayout(
            {"k": chip.mxu.rows.bit_length(), "n": chip.mxu.cols.bit_length()}
        )
        self._due = data.StructLayout(  # the instruction that was accepted last
            {
                "load": resolved_layout(mxu.Load),
                "rate_log": range(exact_log2(chip.mxu.load_rows_per_cycle_transposed) + 1),
                "matmul": resolved_layout(mxu.Matmul),
                "dst": signed(SUM_BITS),  # of a pass
                "is_load": 1,
                "is_unload": 1,
                "swaps": 1,  # the tile is the shadow's
                "adds": 1,
                "tile": self._tile,  # that a pass uses
                "total": 33,  # moving rows
                "rows": 33,  # of acc
                "load_cycles": CYCLE_BITS,
                "pass_cycles": CYCLE_BITS,
            }
        )
        super().__init__(
            {
                "opcode": In(8),
                "first_iteration": In(1),
                "accept": In(1),
                "start": In(1),
                "fits": Out(1),
                "fault": Out(4),
                "latency": Out(CYCLE_BITS),
                "occupancy": Out(CYCLE_BITS),
                "load": In(resolved_layout(mxu.Load)),
                "matmul": In(resolved_layout(mxu.Matmul)),
                "unload": In(resolved_layout(mxu.Unload)),
                "spm_load": Out(spm_reads(chip)),
                "spm_transposed": Out(spm_reads(chip)),
                "spm_moving": Out(spm_reads(chip)),
                "acc_read": Out(acc_reads(chip)),
                "acc_write": Out(acc_writes(chip)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.array = self.array
        m.submodules.straight = straight = StraightLoad(self.chip)
        m.submodules.transposed = transposed = TransposedLoad(self.chip, self.array)
        m.submodules.accumulator = accumulator = Accumulator(self.chip)
        wiring.connect(m, straight.spm, wiring.flipped(self.spm_load))
        wiring.connect(m, transposed.spm, wiring.flipped(self.spm_transposed))
        wiring.connect(m, accumulator.acc_read, wiring.flipped(self.acc_read))
        wiring.connect(m, accumulator.acc_write, wiring.flipped(self.acc_write))
        m.d.comb += [
            self.array.write.eq(straight.write),
            self.array.weights.eq(straight.weights),
            self.array.transposed.eq(transposed.transposed),
        ]
        is_load = self.opcode == mxu.Load.opcode
        is_unload = self.opcode == mxu.Unload.opcode
        is_pass = is_unload | (self.opcode == mxu.Matmul.opcode)

        # The tile in the shadow, and that of passes, as the instruction that is checked finds them.
        shadow, active, tile = Signal(self._tile), Signal(self._tile), Signal(self._tile)
        has_shadow, has_active = Signal(), Signal()
        m.d.comb += tile.eq(Mux(has_shadow, shadow, active))
        with m.If(self.accept & is_load):
            m.d.sync += [shadow.k.eq(self.load.k), shadow.n.eq(self.load.n), has_shadow.eq(1)]
        with m.If(self.accept & is_pass):
            m.d.sync += [active.eq(tile), has_active.eq(1), has_shadow.eq(0)]

        # What is worked out while it is checked: first products, then what follows from them.
        total, load_cycles, wave = Signal(33), Signal(CYCLE_BITS), Signal(CYCLE_BITS)
        least = self.chip.mxu.accumulate_cycles
        rows = Mux(is_unload, self.chip.mxu.rows, total)
        by_wave = (self.load.k - 1)[: len(tile.k)] * self.chip.mxu.adder_stages
        beyond = self.array.latency_cycles + self.chip.mxu.accumulate_cycles + 3
        rate_log = transposed_rate_log(m, self.chip, self.load.stride)
        by_rate = (self.load.n[:9] + (1 << rate_log) - 1) >> rate_log
        m.d.sync += [
            total.eq(self.matmul.rows[:17] * self.matmul.outer),
            load_cycles.eq(Mux(self.load.transposed, by_rate[:9], straight.slots)),
            wave.eq(Mux(self.load.transposed, 0, by_wave)),
        ]
        accumulate = Array(
            {
                mxu.Accumulate.WRITE: C(0, 1),
                mxu.Accumulate.ADD: C(1, 1),
                mxu.Accumulate.ADD_NOT_FIRST: ~self.first_iteration,
            }[mode]
            for mode in mxu.Accumulate
        )[self.matmul.accumulate]
        has_weights = has_shadow | has_active
        faults = [
            self._judge_load(m),
            self._judge_unload(m, has_weights, tile.k),
            self._judge_matmul(m, has_weights, total),
        ]
        due = Signal(self._due)
        with m.If(self.accept):
            m.d.sync += [
                due.load.eq(self.load),
                due.rate_log.eq(rate_log),
                due.matmul.eq(self.matmul),
                due.dst.eq(Mux(is_unload, self.unload.dst, self.matmul.dst)),
                due.is_load.eq(is_load),
                due.is_unload.eq(is_unload),
                due.swaps.eq(has_shadow),
                due.adds.eq(accumulate & ~is_unload),
                due.tile.eq(tile),
                due.total.eq(total),
                due.rows.eq(rows),
                due.load_cycles.eq(load_cycles),
                due.pass_cycles.eq(Mux(rows > least, rows, least)),
                self.latency.eq(Mux(is_load, load_cycles + 2 + wave, rows + beyond)),
                self.fault.eq(Mux(is_load, faults[0], Mux(is_unload, faults[1], faults[2]))),
            ]

        # What issues.
        starts_load, starts_pass = Signal(), Signal()
        m.d.comb += [
            starts_load.eq(self.start & due.is_load),
            starts_pass.eq(self.start & ~due.is_load),
            straight.start.eq(starts_load & ~due.load.transposed),
            straight.src.eq(due.load.src),
            straight.k.eq(due.load.k),
            transposed.start.eq(starts_load & due.load.transposed),
            transposed.src.eq(due.load.src),
            transposed.stride.eq(due.load.stride),
            transposed.n.eq(due.load.n),
            transposed.rate_log.eq(due.rate_log),
            self.occupancy.eq(Mux(due.is_load, due.load_cycles, due.pass_cycles)),
        ]
        load_left = self._port(m, "load_left", starts_load, due.load_cycles)
        pass_left = self._port(m, "pass_left", starts_pass, due.pass_cycles)
        unsettled = self._unsettled(m, starts_pass, due)
        m.d.comb += self.fits.eq(
            Mux(
                due.is_load,
                load_left == 0,
                (pass_left == 0) & (~due.swaps | (load_left == 0)) & ~unsettled,
            )
        )
        self._passes(m, starts_pass, due, accumulator)
        return m

    def _port(self, m: Module, name: str, starts: Value, cycles: Value) -> Signal:
        """Cycles until the port takes the next instruction."""
        left = Signal(CYCLE_BITS, name=name)
        with m.If(starts):
            m.d.sync += left.eq(cycles - 1)
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        return left

    def _unsettled(self, m: Module, starts: Value, due: data.View) -> Value:
        """Whether a pass that adds might read a row whose sum the last pass has not written yet.

        Rows in step with the last pass's, or behind them, come when their sums are there.
        """
        sums = due.rows + (self.chip.mxu.accumulate_cycles - 1)
        left = self._port(m, "settling", starts, sums)
        last_dst = Signal(signed(SUM_BITS))
        with m.If(starts):
            m.d.sync += last_dst.eq(due.dst)
        return due.adds & (left != 0) & (due.dst > last_dst)

    # --- what is refused ---

    def _judge_load(self, m: Module) -> Value:
        load, chip = self.load, self.chip
        fault, illegal, reach = Signal(4), Signal(), Signal(signed(SUM_BITS))
        last = load.src + reach
        aligned = load.src[: exact_log2(chip.spm.banks_per_stripe)] == 0
        m.d.sync += [
            reach.eq((Mux(load.transposed, load.n, load.k)[:9] - 1) * load.stride),
            illegal.eq(
                (load.k < 1) | (load.k > chip.mxu.rows) | (load.n < 1) | (load.n > chip.mxu.cols)
                | (load.stride == 0) | (~load.transposed & ((load.stride != 1) | ~aligned))
            ),
        ]  # fmt: skip
        with m.If(illegal):
            m.d.comb += fault.eq(Fault.ILLEGAL_OPERAND)
        with m.Elif((load.src < 0) | (last >= chip.spm.rows)):
            m.d.comb += fault.eq(Fault.SPM_BOUNDS)
        return fault

    def _judge_matmul(self, m: Module, has_weights: Value, total: Value) -> Value:
        it, chip = self.matmul, self.chip
        fault, illegal = Signal(4), Signal()
        across, down = Signal(signed(SUM_BITS + 4)), Signal(signed(SUM_BITS + 4))
        last, last_result = it.src + across + down, it.dst + total - 1
        m.d.sync += [
            across.eq((it.outer - 1) * it.outer_stride),
            down.eq((it.rows[:16] - 1) * it.stride),
            illegal.eq((it.rows < 1) | (it.rows > COUNT_MAX) | (it.outer == 0)),
        ]
        with m.If(illegal | (total > COUNT_MAX) | ~has_weights):
            m.d.comb += fault.eq(Fault.ILLEGAL_OPERAND)
        with m.Elif((it.src < 0) | (last >= chip.spm.rows)):
            m.d.comb += fault.eq(Fault.SPM_BOUNDS)
        with m.Elif((it.dst < 0) | (last_result >= chip.acc.rows)):
            m.d.comb += fault.eq(Fault.ACC_BOUNDS)
        return fault

    def _judge_unload(self, m: Module, has_weights: Value, k: Value) -> Value:
        fault, last = Signal(4), self.unload.dst + k - 1
        with m.If(~has_weights):
            m.d.comb += fault.eq(Fault.ILLEGAL_OPERAND)
        with m.Elif((self.unload.dst < 0) | (last >= self.chip.acc.rows)):
            m.d.comb += fault.eq(Fault.ACC_BOUNDS)
        return fault

    # --- passes ---

    def _passes(self, m: Module, starts: Value, due: data.View, accumulator: Accumulator) -> None:
        """Walks over the moving rows of a pass, one a cycle from the cycle after its issue on."""
        chip, it = self.chip, due.matmul
        unloads, swap, adds = Signal(), Signal(), Signal()
        left, inner_left, rows = Signal(16), Signal(16), Signal(16)
        row_bits = len(self.spm_moving.row[0])
        source, outer_source = Signal(row_bits), Signal(row_bits)
        stride, outer_stride = Signal(12), Signal(16)
        dst = Signal(len(accumulator.row))
        at = Signal(range(chip.mxu.rows))  # of an unload
        k_now, n_now = Signal.like(due.tile.k), Signal.like(due.tile.n)
        active = Signal()
        m.d.comb += active.eq(left != 0)
        with m.If(active):
            m.d.sync += [left.eq(left - 1), dst.eq(dst + 1), at.eq(at + 1), swap.eq(0)]
            with m.If(inner_left == 1):
                following = (outer_source + outer_stride)[:row_bits]
                m.d.sync += [
                    inner_left.eq(rows), source.eq(following), outer_source.eq(following),
                ]  # fmt: skip
            with m.Else():
                m.d.sync += [inner_left.eq(inner_left - 1), source.eq(source + stride)]
        with m.If(starts):
            m.d.sync += [
                unloads.eq(due.is_unload), swap.eq(due.swaps), adds.eq(due.adds),
                left.eq(Mux(due.is_unload, due.tile.k, due.total)),
                inner_left.eq(it.rows), rows.eq(it.rows),
                source.eq(it.src), outer_source.eq(it.src),
                stride.eq(it.stride), outer_stride.eq(it.outer_stride),
                dst.eq(due.dst),
                at.eq(0), k_now.eq(due.tile.k), n_now.eq(due.tile.n),
            ]  # fmt: skip
        banks = chip.spm.banks_per_stripe
        order = Signal(self._order)
        m.d.comb += [
            order.active.eq(active),
            order.swap.eq(active & swap),
            order.unloads.eq(unloads),
            order.at.eq(at),
            order.k.eq(k_now),
            order.bank.eq(source),
        ]
        for i in range(banks):
            m.d.comb += [
                self.spm_moving.row[i].eq(source),
                self.spm_moving.enable[i].eq(active & ~unloads & (order.bank == i)),
            ]
        self._into_array(m, order)
        # Where the sums go, beside the array.
        line = Delay(
            1 + len(dst) + len(n_now) + 1, SPM_STAGES + 1 + self.array.latency_cycles, clears=True
        )
        m.submodules.destinations = line
        m.d.comb += [
            line.input.eq(Cat(active, dst, n_now, adds)),
            Cat(accumulator.comes, accumulator.row, accumulator.lanes, accumulator.adds).eq(
                line.output
            ),
            accumulator.sums.eq(self.array.sums),
        ]

    def _into_array(self, m: Module, order: data.View) -> None:
        """The row that was read, with its lanes that count, or a one-hot row of an unload.

        It is read, held, and enters the array three cycles after its read.
        """
        lanes, rows = self.chip.lanes, self.chip.mxu.rows
        held = Signal.like(self.spm_moving.data.as_value(), name="held_moving")
        m.d.sync += held.eq(self.spm_moving.data)
        for stage in range(SPM_STAGES):
            follows = Signal(self._order, name=f"order_{stage}")
            m.d.sync += follows.eq(order)
            order = follows
        row = word_of(held, order.bank, lanes * 16)
        for k in range(rows):
            m.d.sync += [
                self.array.moving[k].eq(Mux(order.unloads, ONE_BF16, row.word_select(k, 16))),
                self.array.use[k].eq(order.active & Mux(order.unloads, order.at == k, order.k > k)),
            ]
        m.d.sync += self.array.swap.eq(order.swap)
