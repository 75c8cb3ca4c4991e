"""What a vector map costs and which maps are refused, as logic.

Contract: `Map.occupancy`, and the fault that `tapeout.isa.interp` finds in it first. They are
worked out in the `Map.check_cycles` in which the map is presented: products, then their sums, then
what follows; that is held from `accept`, in the last of these, on.
"""

from collections.abc import Sequence

from amaranth.hdl import C, Module, Mux, Signal, Value, signed
from amaranth.lib import data
from amaranth.utils import exact_log2

from tapeout.chip import Chip
from tapeout.isa.fields import COUNT_MAX, Kind
from tapeout.isa.instruction import Fault
from tapeout.isa.vpu import TAKE_C, Combine, Combine2, Function, Mask, Reduce

from .decode import any_of
from .functions import round_cycles, schedule_for

OPERANDS = ("a", "b", "c", "d")
ROWS = (*OPERANDS, "dst")  # what addresses rows
_ROW_BITS = 52  # of any row that an instruction can name


def is_kind(operand: data.View, *kinds: Kind) -> Value:
    return any_of([operand.kind == kind for kind in kinds])


class MapCost:
    """The shape of a map's walk and the cycles of its port, in registers:

    Attributes:
        along_tiles: tiles are walked innermost, else rows.
        inner, outer: counts of the two.
        step_log2: log2 of the rows of a step.
        passes: cycles of a step, each a pass through the function pipeline.
        apart: steps between two of one row m, at least.
        occupancy: cycles until the next map may issue. latency: until this one has retired.
    """

    def __init__(self, m: Module, chip: Chip, i: data.View, accept: Value) -> None:
        vpu = chip.vpu
        along, inner, outer = Signal(), Signal(16), Signal(16)
        rows, tiles = i.rows[:16], i.tiles
        along_tiles = (i.reduce == Reduce.ARGMAX) | ((i.rows == 1) & (i.reduce == Reduce.NONE))
        m.d.sync += [
            along.eq(along_tiles),
            inner.eq(Mux(along_tiles, tiles, rows)),
            outer.eq(Mux(along_tiles, rows, tiles)),
        ]

        step_log2 = Signal(range(exact_log2(vpu.sublanes) + 1))
        most = exact_log2(vpu.sublanes)
        shares: list[Value] = []  # step_log2 <= n is ruled out, by n
        for n in range(most):
            limits = []
            for name in ROWS:
                o = getattr(i, name)
                stride = Mux(along_tiles, o.tile_stride, o.row_stride)
                for kinds, banks in (
                    ((Kind.SPM_BF16, Kind.SPM_FP32), chip.spm.banks_per_stripe),
                    ((Kind.ACC,), vpu.sublanes),
                ):
                    free = exact_log2(banks) - n  # trailing zeros that leave 2**n banks
                    if free > 0:
                        meets = (stride[:free] == 0) & (stride != 0)
                        limits.append(is_kind(o, *kinds) & meets)
                    else:
                        limits.append(is_kind(o, *kinds) & (stride != 0))
            shares.append(any_of(limits))
        m.d.sync += step_log2.eq(most)
        for n in reversed(range(most)):
            with m.If(shares[n]):
                m.d.sync += step_log2.eq(n)

        turns = {f: schedule_for(f).passes(vpu.function_steps) for f in Function}
        passes = Signal(range(max(turns.values()) + 1))
        apart = Signal(range(vpu.adder_stages + 1))
        around = Signal(range(max(turns.values()) * round_cycles(chip)))
        around_after = Signal(32)
        joins = (i.reduce != Reduce.NONE) & (i.reduce != Reduce.ARGMAX) & (tiles > 1)
        with m.Switch(i.function):
            for f, p in turns.items():
                with m.Case(f):
                    m.d.sync += [
                        passes.eq(p),
                        apart.eq(Mux(joins, -(-vpu.adder_stages // p), 1)),
                        around.eq((p - 1) * round_cycles(chip)),
                    ]
        full, inner_steps, steps, cycles = Signal(17), Signal(17), Signal(33), Signal(32)
        after = Signal(range(vpu.depth_cycles + chip.vpu_reduce_cycles + 1))
        m.d.comb += [
            full.eq((inner + (C(1) << step_log2) - 1) >> step_log2),
            cycles.eq(steps * passes),
        ]
        m.d.sync += [
            inner_steps.eq(Mux(full < apart, apart, full)),
            steps.eq(outer * inner_steps),
            after.eq(vpu.depth_cycles + Mux(i.reduce != Reduce.NONE, chip.vpu_reduce_cycles, 0)),
            around_after.eq(around + after),
        ]

        def held(value: Value, name: str) -> Signal:
            register = Signal.like(value, name=name)
            with m.If(accept):
                m.d.sync += register.eq(value)
            return register

        self.along_tiles = held(along, "along_tiles")
        self.inner, self.outer = held(inner, "inner"), held(outer, "outer")
        self.step_log2 = held(step_log2, "step_log2")
        self.passes, self.apart = held(passes, "passes"), held(apart, "apart")
        self.occupancy = held((cycles + around)[:32], "occupancy")
        self.latency = held((cycles + around_after)[:32], "latency")


def map_fault(m: Module, chip: Chip, i: data.View, accept: Value) -> Value:
    """The `Fault` of a map, `Fault.NONE` where it is sound; held from `accept` on."""
    fault, found, is_illegal = Signal(4), Signal(4), Signal()
    m.d.sync += is_illegal.eq(_is_illegal(chip, i))
    with m.If(accept):
        m.d.sync += fault.eq(found)
    rules: Sequence[tuple[Value, Fault]] = [
        (is_illegal, Fault.ILLEGAL_OPERAND),
        *((beyond, fault) for beyond, fault in _bounds(m, chip, i)),
    ]
    for holds, code in reversed(rules):
        with m.If(holds):
            m.d.comb += found.eq(code)
    return fault


def _is_illegal(chip: Chip, i: data.View) -> Value:
    takes_c = any_of([i.combine == op for op in TAKE_C])
    uses = {"b": i.combine != Combine.A, "c": takes_c, "d": i.combine2 != Combine2.U}
    rules = [
        i.tiles == 0,
        (i.rows < 1) | (i.rows > COUNT_MAX),
        i.width < 0,
        is_kind(i.a, Kind.NONE, Kind.ROW_SCALAR),
        is_kind(i.dst, Kind.ROW_SCALAR, Kind.IMMEDIATE),
        (i.reduce == Reduce.ARGMAX) & i.reduce_accumulate,
        is_kind(i.dst, Kind.NONE) & (i.reduce == Reduce.NONE),
        (i.mask != Mask.NONE) & is_kind(i.a, Kind.IMMEDIATE),
        (i.roll >= chip.lanes) | (i.xor >= chip.lanes),
        (i.lane_begin > chip.lanes) | (i.lane_end > chip.lanes),
        *(is_kind(getattr(i, name), Kind.NONE) == used for name, used in uses.items()),
    ]
    for name in ROWS:
        o = getattr(i, name)
        odd = o.imm[0] | o.tile_stride[0] | o.row_stride[0]
        rules.append(is_kind(o, Kind.SPM_FP32) & odd)
    return any_of(rules)


def _bounds(m: Module, chip: Chip, i: data.View) -> list[tuple[Value, Fault]]:
    """(whether rows of it are outside, the fault) of each operand and result, in interp's order."""
    tiles, rows = i.tiles - 1, i.rows[:16] - 1
    packed = rows >> exact_log2(chip.lanes)
    spm, vmem, acc = chip.spm.rows, chip.vmem.rows, chip.acc.rows

    def outside(first: Value, last: Value, count: int) -> Value:
        return (first < 0) | (last >= count)

    found: list[tuple[Value, Fault]] = [
        ((i.mask == Mask.NOT_INDEX) & outside(i.limit, i.limit + packed, vmem), Fault.VMEM_BOUNDS)
    ]
    for name in ROWS:
        o = getattr(i, name)
        across, down, whole, scalars = (
            Signal(signed(_ROW_BITS), name=f"{name}_{n}")
            for n in ("across", "down", "last", "last_packed")
        )
        m.d.sync += [
            across.eq(tiles * o.tile_stride),
            down.eq(rows * o.row_stride),
            whole.eq(o.imm + across + down),
            scalars.eq(o.imm + across + packed),
        ]
        found += [
            (is_kind(o, Kind.SPM_BF16) & outside(o.imm, whole, spm), Fault.SPM_BOUNDS),
            (is_kind(o, Kind.SPM_FP32) & outside(o.imm, whole + 1, spm), Fault.SPM_BOUNDS),
            (is_kind(o, Kind.VMEM) & outside(o.imm, whole, vmem), Fault.VMEM_BOUNDS),
            (is_kind(o, Kind.ACC) & outside(o.imm, whole, acc), Fault.ACC_BOUNDS),
            (is_kind(o, Kind.ROW_SCALAR) & outside(o.imm, scalars, vmem), Fault.VMEM_BOUNDS),
        ]
    last = i.reduce_dst + packed
    reduces = (i.reduce != Reduce.NONE) & outside(i.reduce_dst, last, vmem)
    return [*found, (reduces, Fault.VMEM_BOUNDS)]
