"""The walk of a vector map: from the instruction to steps of rows."""

from amaranth.hdl import C, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from tapeout.chip import Chip
from tapeout.isa.fields import Kind
from tapeout.isa.vpu import Combine, Combine2, Function, Map, Mask, Reduce

from .map_rules import OPERANDS, ROWS, MapCost, is_kind
from .operands import resolved_layout
from .reduce import reduce_control

_SUM_BITS = 52  # of sums of an operand's fields


def row_bits(chip: Chip) -> int:
    """Bits of a row of any memory."""
    return ceil_log2(max(chip.spm.rows, chip.vmem.rows, chip.acc.rows))


def tail_layout(chip: Chip) -> data.StructLayout:
    """What a step carries to its end.

    kind, rows: of the result, by sublane. active: sublanes with a row. lane_begin, ends: lanes
    lane_begin <= l < ends of a sublane are valid.
    """
    sublanes, lane = chip.vpu.sublanes, chip.lanes.bit_length()
    return data.StructLayout(
        {
            "kind": Shape.cast(Kind),
            "rows": data.ArrayLayout(row_bits(chip), sublanes),
            "active": sublanes,
            "lane_begin": lane,
            "ends": data.ArrayLayout(lane, sublanes),
            "combine2": Shape.cast(Combine2),
            "reduce": reduce_control(chip),
        }
    )


def step_layout(chip: Chip) -> data.StructLayout:
    """A step: what its rows need until their values enter the function, and `tail`.

    a, b, c, d: kind, rows by sublane, the bits of an immediate. scalar_lanes: of packed rows, by
    sublane. keeps: lanes from there on become -inf. drops: the lane does too that `index_row`
    names in lane scalar_lanes, counted from first_lanes. roll, xor: of operand a.
    """
    sublanes, lane = chip.vpu.sublanes, chip.lanes.bit_length()
    operand = data.StructLayout(
        {
            "kind": Shape.cast(Kind),
            "rows": data.ArrayLayout(row_bits(chip), sublanes),
            "value": 32,
        }
    )
    return data.StructLayout(
        {
            "valid": 1,
            **dict.fromkeys(OPERANDS, operand),
            "scalar_lanes": data.ArrayLayout(exact_log2(chip.lanes), sublanes),
            "keeps": data.ArrayLayout(lane, sublanes),
            "drops": 1,
            "index_row": ceil_log2(chip.vmem.rows),
            "first_lanes": data.ArrayLayout(32, sublanes),
            "roll": exact_log2(chip.lanes),
            "xor": exact_log2(chip.lanes),
            "combine": Shape.cast(Combine),
            "function": Shape.cast(Function),
            "tail": tail_layout(chip),
        }
    )


class MapWalk(wiring.Component):
    """Steps of one map after another:

    A map that starts in cycle t gives its first step in cycle t + 1. In steps go the rows of an
    outer index, `MapCost.step_log2` of them at once; there may be steps without rows at the end.

    Ports:
        map, accept: the instruction, and that it is held from the next cycle on, `Map.check_cycles`
            after it is presented at the earliest.
        start: it issues. fits: it may. occupancy, latency: its cycles.
        step: in this cycle, if it is valid.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        super().__init__(
            {
                "map": In(resolved_layout(Map)),
                "accept": In(1),
                "start": In(1),
                "fits": Out(1),
                "occupancy": Out(32),
                "latency": Out(32),
                "step": Out(step_layout(chip)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        cost = MapCost(m, self.chip, self.map, self.accept)
        left = Signal(32)  # cycles until the port is free
        m.d.comb += [
            self.occupancy.eq(cost.occupancy),
            self.latency.eq(cost.latency),
            self.fits.eq(left == 0),
        ]
        with m.If(self.start):
            m.d.sync += left.eq(cost.occupancy - 1)
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)

        # The instruction that issues next; that which is walked, and where.
        due = Signal(resolved_layout(Map), reset_less=True)
        with m.If(self.accept):
            m.d.sync += due.eq(self.map)
        i = Signal(resolved_layout(Map), reset_less=True)
        held = {
            name: Signal(getattr(cost, name).shape(), name=name, reset_less=True)
            for name in ("along_tiles", "inner", "outer", "step_log2", "passes", "apart")
        }
        busy, turn = Signal(), Signal.like(cost.passes)
        inner, outer, steps = Signal(17), Signal(16), Signal.like(cost.apart)
        fires, ends, size = Signal(), Signal(), Signal(range(self.chip.vpu.sublanes + 1))
        m.d.comb += [
            size.eq(C(1) << held["step_log2"]),
            fires.eq(busy & (turn == 0)),
            ends.eq((inner + size >= held["inner"]) & (steps + 1 >= held["apart"])),
        ]
        with m.If(busy):
            m.d.sync += turn.eq(Mux(turn + 1 == held["passes"], 0, turn + 1))
        with m.If(fires):
            m.d.sync += inner.eq(inner + size)
            with m.If(steps + 1 < held["apart"]):
                m.d.sync += steps.eq(steps + 1)
            with m.If(ends):
                m.d.sync += [inner.eq(0), steps.eq(0), outer.eq(outer + 1)]
                with m.If(outer + 1 == held["outer"]):
                    m.d.sync += busy.eq(0)
        with m.If(self.start):
            m.d.sync += [busy.eq(1), turn.eq(0), inner.eq(0), outer.eq(0), steps.eq(0)]
            m.d.sync += [i.eq(due), *(held[name].eq(getattr(cost, name)) for name in held)]

        rows = {name: self._rows(m, name, due, i, held, fires, ends) for name in ROWS}
        self._step(m, i, held, fires, inner, outer, rows)
        return m

    def _rows(
        self, m: Module, name: str, due: data.View, i: data.View, held: dict[str, Signal],
        fires: Value, ends: Value,
    ) -> list[Value]:  # fmt: skip
        """Rows of an operand or result in this step, by sublane; a packed one moves with t only."""
        bits = row_bits(self.chip)
        given, o = getattr(due, name), getattr(i, name)
        base, first = Signal(bits, name=f"{name}_base"), Signal(bits, name=f"{name}_first")
        strides = Signal(14, name=f"{name}_inner"), Signal(14, name=f"{name}_outer")
        inner, outer = strides
        by_row = Mux(is_kind(o, Kind.ROW_SCALAR), 0, o.row_stride)
        m.d.comb += [
            inner.eq(Mux(held["along_tiles"], o.tile_stride, by_row)),
            outer.eq(Mux(held["along_tiles"], by_row, o.tile_stride)),
        ]
        with m.If(fires):
            m.d.sync += base.eq(base + (inner << held["step_log2"]))
            with m.If(ends):
                m.d.sync += [base.eq(first + outer), first.eq(first + outer)]
        with m.If(self.start):
            m.d.sync += [base.eq(given.imm), first.eq(given.imm)]
        return [base + inner * k for k in range(self.chip.vpu.sublanes)]

    def _step(
        self, m: Module, i: data.View, held: dict[str, Signal], fires: Value, inner: Value,
        outer: Value, rows: dict[str, list[Value]],
    ) -> None:  # fmt: skip
        chip, step = self.chip, self.step
        lanes, sublanes = chip.lanes, chip.vpu.sublanes
        lane_bits = exact_log2(lanes)
        along = held["along_tiles"]
        m0, t0 = Mux(along, outer, inner)[:16], Mux(along, inner, outer)[:16]
        packed = m0 >> lane_bits
        m.d.comb += [
            step.valid.eq(fires),
            step.drops.eq(i.mask == Mask.NOT_INDEX),
            step.index_row.eq(i.limit + packed),
            step.roll.eq(i.roll),
            step.xor.eq(i.xor),
            step.combine.eq(i.combine),
            step.function.eq(i.function),
            step.tail.kind.eq(i.dst.kind),
            step.tail.lane_begin.eq(i.lane_begin),
            step.tail.combine2.eq(i.combine2),
        ]
        for name in OPERANDS:
            o, mine = getattr(i, name), getattr(step, name)
            within = Mux(is_kind(o, Kind.ROW_SCALAR), packed, 0)
            m.d.comb += [mine.kind.eq(o.kind), mine.value.eq(o.value)]
            m.d.comb += [mine.rows[k].eq(row + within) for k, row in enumerate(rows[name])]
        for k in range(sublanes):
            t, row = t0 + Mux(along, k, 0), m0 + Mux(along, 0, k)
            first = Signal(32, name=f"first_{k}")
            valid, kept = (Signal(signed(_SUM_BITS), name=f"{n}_{k}") for n in ("valid", "kept"))
            end = Signal(lane_bits + 1, name=f"end_{k}")
            m.d.comb += [
                first.eq(t << lane_bits),
                step.tail.rows[k].eq(rows["dst"][k]),
                step.tail.active[k].eq(
                    (inner + k < held["inner"]) & (k < C(1) << held["step_log2"])
                ),
                step.scalar_lanes[k].eq(row),
                step.first_lanes[k].eq(first),
                valid.eq(Mux(i.width == 0, lanes, i.width - first)),
                end.eq(Mux(i.lane_end == 0, lanes, i.lane_end)),
                step.tail.ends[k].eq(_limited(valid, end)),
                kept.eq(
                    Mux(
                        i.mask == Mask.BELOW,
                        i.limit + (row & i.limit_step.replicate(17)) - first,
                        lanes,
                    )
                ),
                step.keeps[k].eq(_limited(kept, lanes)),
            ]

        # Only argmax returns to a row m step by step.
        r = step.tail.reduce
        is_argmax = i.reduce == Reduce.ARGMAX
        begins = Mux(is_argmax, inner == 0, (t0 == 0) & ~i.reduce_accumulate)
        m.d.comb += [
            r.op.eq(Mux(step.tail.active[0], i.reduce, Reduce.NONE)),
            r.row.eq(i.reduce_dst + packed),
            r.lane.eq(m0),
            r.active.eq(step.tail.active),
            r.starts.eq(begins),
            r.ends.eq(inner + (C(1) << held["step_log2"]) >= held["inner"]),
            r.tile.eq(t0),
        ]


def _limited(value: Value, most: Value | int) -> Value:
    """A signed value within 0 .. most."""
    return Mux(value < 0, 0, Mux(value > most, most, value))
