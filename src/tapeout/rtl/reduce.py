"""Reductions of the vector unit: trees over lanes, then tiles joined in increasing order.

A sum or a maximum joins what the packed row in vmem holds from earlier tiles: read, add, write
back. A total still on its way back is taken from the adder's output. Argmax runs along the tiles of
one row, whose best it keeps in a register.
"""

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from tapeout.chip import Chip
from tapeout.isa.vpu import Map, Reduce

from .boxes import box
from .decode import word_of
from .float import Adder
from .memory import RowReads, RowWrites
from .order import MINUS_INFINITY, Comparison, value_of
from .pipeline import ages, delayed

_MINUS_ZERO = 0x80000000
_INDEX_BITS = 32


def reduce_control(chip: Chip) -> data.StructLayout:
    """What a step says to the reductions.

    op: NONE where the step reduces nothing. row, lane: of the packed row, for the first sublane;
    sublane k takes lane + k. active: sublanes with a row. starts: nothing was before (sum, max: of
    this row m; argmax: the first step of it). ends: argmax, the last step. tile: the first one.
    """
    tiles = next(spec for name, _, spec in Map.layout() if name == "tiles")
    return data.StructLayout(
        {
            "op": Shape.cast(Reduce),
            "row": range(chip.vmem.rows),
            "lane": ceil_log2(chip.lanes),
            "active": chip.vpu.sublanes,
            "starts": 1,
            "ends": 1,
            "tile": tiles.width,
        }
    )


class FoldSum(wiring.Component):
    """The sum over lanes, lane l with l + h for h = lanes/2 .. 1:

    `result` follows log2(lanes) x adder_stages cycles after `values`.
    """

    def __init__(self, chip: Chip) -> None:
        self.lanes, self.stages = chip.lanes, chip.vpu.adder_stages
        super().__init__({"values": In(32 * chip.lanes), "result": Out(32)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        values: list[Value] = [self.values.word_select(n, 32) for n in range(self.lanes)]
        while len(values) > 1:
            half = len(values) // 2
            sums: list[Value] = []
            for n in range(half):
                add = Adder(stages=self.stages)
                m.submodules[f"add_{half}_{n}"] = box(platform, f"add_{self.stages}", add)
                m.d.comb += [add.a.eq(values[n]), add.b.eq(values[n + half])]
                sums.append(add.result)
            values = sums
        m.d.comb += self.result.eq(values[0])
        return m


class FoldRank(wiring.Component):
    """The highest of several ranks and its index, the smallest if several: a cycle a level."""

    def __init__(self, count: int, index_bits: int) -> None:
        self.count, self.given_bits = count, index_bits
        self.levels = ceil_log2(count)
        super().__init__(
            {
                "ranks": In(32 * count),
                "indices": In(max(index_bits, 1) * count),  # below the number of the rank
                "rank": Out(32),
                "index": Out(index_bits + self.levels),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        n, given = self.count, self.given_bits
        ranks: list[Value] = [self.ranks.word_select(k, 32) for k in range(n)]
        indices: list[Value] = []
        for k in range(n):
            below = self.indices.word_select(k, given) if given else C(0, 0)
            indices.append(Cat(below, C(k, self.levels)))
        while len(ranks) > 1:
            half = len(ranks) // 2
            best_ranks: list[Value] = []
            best_indices: list[Value] = []
            for k in range(half):
                first, second = ranks[k], ranks[k + half]
                takes = Signal(name=f"takes_{half}_{k}")
                rank = Signal(32, name=f"rank_{half}_{k}")
                index = Signal(given + self.levels, name=f"index_{half}_{k}")
                m.d.comb += takes.eq(
                    (second > first) | ((second == first) & (indices[k + half] < indices[k]))
                )
                m.d.sync += [
                    rank.eq(Mux(takes, second, first)),
                    index.eq(Mux(takes, indices[k + half], indices[k])),
                ]
                best_ranks.append(rank)
                best_indices.append(index)
            ranks, indices = best_ranks, best_indices
        m.d.comb += [self.rank.eq(ranks[0]), self.index.eq(indices[0])]
        return m


class Reductions(wiring.Component):
    """All sublanes' reductions:

    `control` comes with the value's last stage (`Lane.combine2_out`), `ranks` a cycle and
    `summands` 1 + adder_stages cycles after; the result is written `Chip.vpu_reduce_cycles` + 1
    cycles after.

    Ports:
        summands, ranks: of lanes, sublane by sublane. total, result: the packed row in vmem.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        lanes, sublanes = chip.lanes, chip.vpu.sublanes
        super().__init__(
            {
                "control": In(reduce_control(chip)),
                "summands": In(data.ArrayLayout(32 * lanes, sublanes)),
                "ranks": In(data.ArrayLayout(32 * lanes, sublanes)),
                "total": Out(RowReads(1, chip.vmem.rows, lanes, 32)),
                "result": Out(RowWrites(1, chip.vmem.rows, lanes, 32)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        chip, lanes, sublanes = self.chip, self.chip.lanes, self.chip.vpu.sublanes
        add, levels = chip.vpu.adder_stages, ceil_log2(lanes)
        sum_age, rank_age = 1 + add + add * levels, 1 + levels
        best_age = rank_age + ceil_log2(sublanes)
        join_age = max(sum_age, best_age + 1 - add)
        write_age = join_age + add
        controls = ages(m, self.control, write_age + 1, "control", resets=True)

        def control(age: int) -> data.View:
            return data.View(reduce_control(chip), controls[age])

        # Over lanes.
        sums, maxima, ranks, indices = [], [], [], []
        for k in range(sublanes):
            fold = FoldSum(chip)
            m.submodules[f"sum_{k}"] = box(platform, "vpu_fold_sum", fold)
            m.d.comb += fold.values.eq(self.summands[k])
            sums.append(delayed(m, fold.result, join_age - sum_age, f"sum_{k}"))
            best = FoldRank(lanes, 0)
            m.submodules[f"rank_{k}"] = box(platform, "vpu_fold_rank", best)
            m.d.comb += best.ranks.eq(self.ranks[k])
            maxima.append(delayed(m, value_of(best.rank), join_age - rank_age, f"max_{k}"))
            ranks.append(best.rank)
            indices.append(best.index)

        # Tiles of sums and maxima.
        m.d.comb += [
            self.total.enable.eq(_joins(control(join_age - 1))),
            self.total.row[0].eq(control(join_age - 1).row),
        ]
        joining, leaving, left = control(join_age), control(write_age), control(write_age + 1)
        from_leaving = _joins(leaving) & _same_place(joining, leaving)
        from_left = _joins(left) & _same_place(joining, left)
        is_max, was_max = joining.op == Reduce.MAX, leaving.op == Reduce.MAX
        results: list[Value] = []
        for k in range(sublanes):
            result, old, total = (Signal(32, name=f"{n}_{k}") for n in ("result", "old", "total"))
            m.d.sync += old.eq(result)
            held = word_of(self.total.data[0], (joining.lane + k)[:levels], 32)
            m.d.comb += total.eq(Mux(from_leaving, result, Mux(from_left, old, held)))
            with m.If(joining.starts):
                m.d.comb += total.eq(Mux(is_max, MINUS_INFINITY, _MINUS_ZERO))
            join = Adder(stages=add)
            m.submodules[f"join_{k}"] = box(platform, f"add_{add}", join)
            m.d.comb += [join.a.eq(total), join.b.eq(sums[k])]
            larger = Comparison(m, total, maxima[k], f"join_{k}").maximum
            kept = delayed(m, larger, add, f"larger_{k}")
            m.d.comb += result.eq(Mux(was_max, kept, join.result))
            results.append(result)

        # Tiles of argmax.
        m.submodules.across = across = FoldRank(sublanes, levels)
        m.d.comb += [across.ranks.eq(Cat(ranks)), across.indices.eq(Cat(indices))]
        best_rank, best_index = Signal(32), Signal(_INDEX_BITS)
        finding = control(best_age)
        index = Signal(_INDEX_BITS)
        m.d.comb += index.eq((finding.tile << levels) + across.index)
        with m.If(finding.op == Reduce.ARGMAX):
            with m.If(finding.starts):
                m.d.sync += [best_rank.eq(across.rank), best_index.eq(index)]
                with m.If(across.rank == 0):
                    m.d.sync += best_index.eq(0)
            with m.Elif(across.rank > best_rank):
                m.d.sync += [best_rank.eq(across.rank), best_index.eq(index)]
        found = delayed(m, best_index, write_age - best_age - 1, "found")

        # The packed row.
        is_argmax = leaving.op == Reduce.ARGMAX
        m.d.comb += [
            self.result.enable.eq(_joins(leaving) | (is_argmax & leaving.ends)),
            self.result.row[0].eq(leaving.row),
            self.result.mask[0].eq(Mux(is_argmax, 1, leaving.active) << leaving.lane),
        ]
        values = Signal(data.ArrayLayout(32, sublanes))
        for k in range(sublanes):
            m.d.comb += values[k].eq(Mux(is_argmax, found, results[k]))
        for lane in range(lanes):
            sublane = (lane - leaving.lane)[: ceil_log2(sublanes)]
            value = values[sublane] if sublanes > 1 else values[0]
            m.d.comb += self.result.data[0].word_select(lane, 32).eq(value)
        return m


def _joins(control: data.View) -> Value:
    return (control.op != Reduce.NONE) & (control.op != Reduce.ARGMAX)


def _same_place(a: data.View, b: data.View) -> Value:
    return (a.row == b.row) & (a.lane == b.lane)
