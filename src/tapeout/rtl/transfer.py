"""A transfer of the DMA engine as its issue sees it: what is wrong with it, and what its runs and
pieces need.

Contract: the faults of `tapeout.isa.dma`, and G of docs/timing.md ("Pieces").
"""

from collections.abc import Callable

from amaranth.hdl import Array, C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data
from amaranth.utils import exact_log2

from tapeout.chip import Chip
from tapeout.isa.dma import (
    BLOCK_ROWS,
    HbmFormat,
    Memory,
    alignment_bytes,
    formats_of,
    rows_per_cycle,
)
from tapeout.isa.fields import COUNT_MAX
from tapeout.isa.instruction import Fault

from .decode import any_of
from .fetch import ADDRESS_BITS
from .operands import SUM_BITS

COUNT_BITS = 16
PITCH_BITS = 40  # of outer_bytes; row_bytes takes 32
LANE_BITS = 9
ROW_BYTES_BITS = 11  # of lanes elements: 256 x 4 at most
UNIT_BITS = 14  # of a row or a group: 256 x 34 at most
ROW_BITS = 20
STRIDE_BITS = 12
WIDTHS = [4, 8, 16, 32]  # of elements in HBM

# What a run's pieces need, wherever they are worked on.
SHAPE = data.StructLayout(
    {
        "format": 4,
        "width": 2,  # of an element: 4, 8, 16 or 32 bits
        "is_block": 1,
        "scale_bytes": 3,
        "memory": 1,
        "lane": LANE_BITS,
        "lanes": LANE_BITS,
        "row": ROW_BITS,
        "rows": COUNT_BITS,
        "row_stride": STRIDE_BITS,
        "outer_rows": ROW_BITS,
        "row_bytes": ROW_BYTES_BITS,  # of HBM: elements or codes of a row
        "most_rows": 6,  # of a piece
    }
)
# What its segments need. A unit is a row, a group, an outer step or all, as far as they touch.
SEGMENTS = data.StructLayout(
    {
        "address": ADDRESS_BITS,  # of the first unit
        "unit_bytes": ADDRESS_BITS,
        "unit_step": 32,
        "units": COUNT_BITS,  # in an outer step
        "outer": COUNT_BITS,
        "outer_step": PITCH_BITS,
        "ends_touch": 1,  # the last unit of an outer step and the first of the next
        "indexed": 1,
        "index_row": ROW_BITS,
        "row_bytes": 32,  # pitch of indexed rows
        "low": ADDRESS_BITS,  # of the base's segment
        "high": ADDRESS_BITS,
    }
)


def is_one_of(value: Value, formats: list[HbmFormat]) -> Value:
    return any_of([value == int(f) for f in formats])


def by_format(value: Value, choose: Callable[[HbmFormat], Value | int]) -> Value:
    """`choose(format)` of the format that `value` holds; numbers without a format give anything."""
    known = {int(f): Value.cast(choose(f)) for f in HbmFormat}
    if not any(v.shape().signed for v in known.values()):  # slices of the choice need one width
        width = max(len(v) for v in known.values())
        known = {n: Cat(v, C(0, width - len(v))) for n, v in known.items()}
    first = next(iter(known.values()))
    return Array(known.get(n, first) for n in range(max(known) + 1))[value]


BLOCKS = [f for f in HbmFormat if f.format.is_block]
NIBBLES = [f for f in HbmFormat if f.format.bits == 4]
WORDS = [HbmFormat.BF16, HbmFormat.FP32]


class Issue:
    """The presented transfer: a row's bytes, from these an outer step's, those of all, and what is
    wrong, worked out in its `check_cycles` and held from `accept`, in the last of these, on.

    Attributes:
        fault: of `Fault`. moves: whether it has runs. is_store: it is one.
        shape, segments: as `SHAPE` and `SEGMENTS`.
    """

    def __init__(
        self, m: Module, chip: Chip, i: data.View, is_store: Value, base: data.View, accept: Value
    ) -> None:
        self.fault = Signal(4)
        self.moves, self.is_store = Signal(), Signal()
        self.shape = Signal(SHAPE)
        self.segments = Signal(SEGMENTS)
        self._chip, self._i, self._accept = chip, i, accept
        is_block = is_one_of(i.format, BLOCKS)
        pairs = (i.memory == Memory.SPM) & (i.format == HbmFormat.FP32)
        moves = Signal()
        m.d.sync += moves.eq((i.rows != 0) & (i.outer != 0))
        with m.If(accept):
            m.d.sync += [self.moves.eq(moves), self.is_store.eq(is_store)]

        # How far it reaches in HBM and in memory; counts are legal where that matters.
        rows, outer = i.rows.as_unsigned()[:COUNT_BITS], i.outer.as_unsigned()[:COUNT_BITS]
        units = Mux(is_block, rows >> exact_log2(BLOCK_ROWS), rows)
        unit = Signal(UNIT_BITS)
        step = Mux(is_block, unit, i.row_bytes)
        # Units, rows and outer steps but one.
        others, other_rows, other_steps = (
            Signal(COUNT_BITS, name=f"other_{n}") for n in ("units", "rows", "steps")
        )
        beyond = Signal(COUNT_BITS + 34)  # bytes of an outer step but its last unit
        span = Signal(COUNT_BITS + 34)  # of an outer step
        steps = Signal(COUNT_BITS + PITCH_BITS)
        reach = Signal(COUNT_BITS + PITCH_BITS + 2)  # of all
        end = Signal(signed(COUNT_BITS + PITCH_BITS + 4))
        m.d.comb += end.eq(i.hbm.offset + Mux(i.indexed, 0, reach))
        m.d.sync += [
            unit.eq(by_format(i.format, lambda f: i.lanes * _unit_bits_of_a_lane(f) >> 3)),
            others.eq(units - 1),
            other_steps.eq(outer - 1),
            beyond.eq(others * step),
            span.eq(beyond + unit),
            steps.eq(other_steps * i.outer_bytes),
            reach.eq(steps + beyond + unit),
        ]
        across, down, last = (
            Signal(signed(SUM_BITS + 4), name=n) for n in ("across", "down", "last")
        )
        m.d.sync += [
            other_rows.eq(rows - 1),
            across.eq(i.row + other_steps * i.outer_rows),
            down.eq(other_rows * i.row_stride + pairs),
            last.eq(across + down),
        ]
        self._judge(m, moves, is_store, is_block, pairs, base, end, last)
        self._describe(m, is_block, base, rows, outer, unit, step, units, span, reach)

    def _judge(
        self, m: Module, moves: Value, is_store: Value, is_block: Value, pairs: Value,
        base: data.View, end: Value, last: Value,
    ) -> None:  # fmt: skip
        i, chip = self._i, self._chip
        strides_odd = i.row[0] | i.row_stride[0] | i.outer_rows[0]
        pitches = i.hbm.offset.as_unsigned() | Mux(is_block, 0, i.row_bytes) | i.outer_bytes
        illegal = Signal()
        left_out = [f for f in HbmFormat if f not in formats_of(chip)]
        m.d.sync += illegal.eq(any_of([
            is_store & ~is_one_of(i.format, WORDS),
            *([is_one_of(i.format, left_out)] if left_out else []),
            (i.lanes == 0) | (i.lane + i.lanes > chip.lanes),
            *((n < 0) | (n > COUNT_MAX) for n in (i.rows, i.outer)),
            is_block & (i.rows[: exact_log2(BLOCK_ROWS)] != 0),
            is_block & i.indexed,
            is_one_of(i.format, NIBBLES) & i.lanes[0],
            (i.memory == Memory.VMEM) & ~is_one_of(i.format, WORDS),
            pairs & strides_odd,
            (pitches & by_format(i.format, lambda f: alignment_bytes(f) - 1)) != 0,
        ]))  # fmt: skip
        index_last = i.index_rows + ((i.rows - 1) >> exact_log2(chip.lanes))
        outside = ~base.is_given | (~i.indexed & ((i.hbm.offset < 0) | (end > base.bytes)))
        memory_rows = Mux(i.memory == Memory.SPM, chip.spm.rows, chip.vmem.rows)
        fault = Signal(4)
        with m.If(self._accept):
            m.d.sync += self.fault.eq(fault)
        with m.If(illegal):
            m.d.comb += fault.eq(Fault.ILLEGAL_OPERAND)
        with m.Elif(moves):
            with m.If(~base.is_given):
                m.d.comb += fault.eq(Fault.HBM_BOUNDS)
            with m.Elif(i.indexed & ((i.index_rows < 0) | (index_last >= chip.vmem.rows))):
                m.d.comb += fault.eq(Fault.VMEM_BOUNDS)
            with m.Elif(outside):
                m.d.comb += fault.eq(Fault.HBM_BOUNDS)
            with m.Elif(is_store & ~base.is_writable):
                m.d.comb += fault.eq(Fault.HBM_PROTECTION)
            with m.Elif((i.row < 0) | (last >= memory_rows)):
                m.d.comb += fault.eq(
                    Mux(i.memory == Memory.SPM, Fault.SPM_BOUNDS, Fault.VMEM_BOUNDS)
                )

    def _describe(
        self, m: Module, is_block: Value, base: data.View, rows: Value, outer: Value, unit: Value,
        step: Value, units: Value, span: Value, reach: Value,
    ) -> None:  # fmt: skip
        i, shape, segments = self._i, self.shape, self.segments
        given = ("format", "memory", "lane", "lanes", "row", "rows", "row_stride", "outer_rows")
        # Units that touch are one unit.
        inside = Signal()  # an outer step is one
        ends = ~i.indexed & (i.outer_bytes == span)
        m.d.sync += inside.eq(~i.indexed & ((step == unit) | (units == 1)))
        following = [
            *(getattr(shape, n).eq(getattr(i, n)) for n in given),
            shape.width.eq(by_format(i.format, lambda f: WIDTHS.index(f.format.bits))),
            shape.is_block.eq(is_block),
            shape.scale_bytes.eq(by_format(i.format, lambda f: f.format.scale_bytes)),
            shape.row_bytes.eq(by_format(i.format, lambda f: (i.lanes * f.format.bits) >> 3)),
            shape.most_rows.eq(self._most_rows()),
            segments.address.eq(base.address + i.hbm.offset),
            segments.unit_bytes.eq(Mux(inside, Mux(ends, reach, span), unit)),
            segments.unit_step.eq(step),
            segments.units.eq(Mux(inside, 1, units)),
            segments.outer.eq(Mux(inside & ends, 1, outer)),
            segments.outer_step.eq(i.outer_bytes),
            segments.ends_touch.eq(ends & ~inside),
            segments.indexed.eq(i.indexed),
            segments.index_row.eq(i.index_rows),
            segments.row_bytes.eq(i.row_bytes),
            segments.low.eq(base.address),
            segments.high.eq(base.address + base.bytes),
        ]
        with m.If(self._accept):
            m.d.sync += following

    def _most_rows(self) -> Value:
        """G: by format and memory, less where rows meet in banks."""
        i, chip = self._i, self._chip
        banks = chip.spm.banks_per_stripe
        spm = by_format(i.format, lambda f: rows_per_cycle(chip, f, Memory.SPM, 1))
        vmem = rows_per_cycle(chip, HbmFormat.FP32, Memory.VMEM, 1)
        apart: Value | int = 1  # banks / gcd(row_stride, banks): by the stride's lowest one
        for bit in reversed(range(exact_log2(banks))):
            apart = Mux(i.row_stride[bit], banks >> bit, apart)
        return Mux(
            i.memory == Memory.SPM,
            Mux(apart < spm, apart, spm),
            Mux(i.row_stride == 0, 1, vmem),
        )


def _unit_bits_of_a_lane(fmt: HbmFormat) -> int:
    """Bits of a lane's share of a row, or of a group with its scales."""
    f = fmt.format
    return 8 * f.scale_bytes + BLOCK_ROWS * f.bits if f.is_block else f.bits
