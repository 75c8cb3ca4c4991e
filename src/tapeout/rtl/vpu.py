"""The vector unit: `vpu.map` as a pipeline from memory to memory.

Stages of a step, in cycles from its first: 0 walk, 1 read, 2 select and widen, 3 permute and mask,
4 combine, then the functions, combine with d, cast, write. d and what the end of the pipeline has
to know wait in a queue while a function runs, once or several times through its slots.
"""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tapeout.chip import Chip
from tapeout.isa.vpu import Map, Reduce

from . import rows
from .boxes import box
from .functions import FunctionSequence, round_cycles
from .lane import Lane
from .map_rules import OPERANDS, map_fault
from .memory import (
    acc_reads,
    acc_writes,
    spm_reads,
    spm_writes,
    vmem_reads,
    vmem_writes,
)
from .operands import resolved_layout
from .order import MINUS_INFINITY
from .pipeline import ages, delayed
from .reduce import Reductions
from .walk import MapWalk, step_layout, tail_layout


class VectorUnit(wiring.Component):
    """The engine of the vpu queue; its ports are those of `sequencer.ENGINE` and row ports."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        sublanes = chip.vpu.sublanes
        ports: dict = {}
        for name in OPERANDS:
            ports |= {
                f"spm_{name}": Out(spm_reads(chip)),
                f"acc_{name}": Out(acc_reads(chip)),
                f"vmem_{name}": Out(vmem_reads(chip, sublanes)),
            }
        super().__init__(
            {
                "map": In(resolved_layout(Map)),
                "start": In(1),
                "fits": Out(1),
                "fault": Out(4),
                "latency": Out(32),
                "occupancy": Out(32),
                "now": In(32),
                **ports,
                "vmem_index": Out(vmem_reads(chip, 1)),
                "vmem_total": Out(vmem_reads(chip, 1)),
                "spm_dst": Out(spm_writes(chip)),
                "acc_dst": Out(acc_writes(chip)),
                "vmem_dst": Out(vmem_writes(chip, sublanes)),
                "vmem_result": Out(vmem_writes(chip, 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        chip, vpu = self.chip, self.chip.vpu
        m.submodules.walk = walk = MapWalk(chip)
        m.d.comb += [
            walk.map.eq(self.map),
            walk.start.eq(self.start),
            self.fits.eq(walk.fits),
            self.fault.eq(map_fault(m, chip, self.map)),
            self.occupancy.eq(walk.occupancy),
            self.latency.eq(
                walk.occupancy
                + vpu.depth_cycles
                + Mux(self.map.reduce != Reduce.NONE, chip.vpu_reduce_cycles, 0)
            ),
        ]
        entry = 5 + vpu.adder_stages  # the stage at which a value enters the functions
        valids = ages(m, walk.step.valid, entry, "valid", resets=True)
        held = ages(m, walk.step, entry, "step")
        steps = [data.View(step_layout(chip), each) for each in held]
        operands = self._operands(m, valids, steps)

        m.submodules.sequence = sequence = FunctionSequence(chip)
        m.d.comb += [
            sequence.enters.eq(valids[entry]),
            sequence.function.eq(steps[entry].function),
        ]
        tail, d = self._queue(m, valids[3], steps[3].tail, operands["d"], sequence.ends)

        # From here on: the stage of combine2, that of its result, and the write.
        add = vpu.adder_stages
        leaves = ages(m, sequence.ends, 3 + add, "leaves", resets=True)
        tails = [data.View(tail_layout(chip), t) for t in ages(m, tail, 2 + add, "tail")]
        ending, writing = tails[1 + add], tails[2 + add]
        valid = [self._valid_lanes(ending, k) for k in range(vpu.sublanes)]
        lanes = [self._lane(m, platform, lane, k) for k in range(vpu.sublanes)
                 for lane in range(chip.lanes)]  # fmt: skip
        for n, lane in enumerate(lanes):
            k, at = divmod(n, chip.lanes)
            m.d.comb += [
                lane.a.eq(operands["a"][k].word_select(at, 32)),
                lane.b.eq(operands["b"][k].word_select(at, 32)),
                lane.c.eq(operands["c"][k].word_select(at, 32)),
                lane.combine.eq(steps[4].combine),
                lane.combine_out.eq(steps[entry].combine),
                lane.enters.eq(sequence.enters),
                *(getattr(lane, f"code_{s}").eq(getattr(sequence, f"code_{s}"))
                  for s in range(vpu.function_steps)),
                lane.function.eq(sequence.result),
                lane.d.eq(d.word_select(n, 32)),
                lane.combine2.eq(tails[0].combine2),
                lane.combine2_out.eq(ending.combine2),
                lane.is_valid.eq(valid[k][at]),
                lane.squares.eq(ending.reduce.op == Reduce.SUMSQ),
                lane.by_index.eq(ending.reduce.op == Reduce.ARGMAX),
            ]  # fmt: skip

        def of_sublanes(port: str) -> list[Value]:
            each = [getattr(lane, port) for lane in lanes]
            return [Cat(each[k * chip.lanes : (k + 1) * chip.lanes]) for k in range(vpu.sublanes)]

        rows.store(
            m, chip, writing, leaves[3 + add], of_sublanes("fp32"), of_sublanes("bf16"),
            [self._valid_lanes(writing, k) for k in range(vpu.sublanes)],
            {name: getattr(self, f"{name}_dst") for name in ("spm", "acc", "vmem")},
        )  # fmt: skip
        m.submodules.reductions = reductions = Reductions(chip)
        wiring.connect(m, reductions.total, wiring.flipped(self.vmem_total))
        wiring.connect(m, reductions.result, wiring.flipped(self.vmem_result))
        m.d.comb += [
            reductions.control.eq(ending.reduce),
            *(reductions.summands[k].eq(v) for k, v in enumerate(of_sublanes("summand"))),
            *(reductions.ranks[k].eq(v) for k, v in enumerate(of_sublanes("rank"))),
        ]
        with m.If(~leaves[2 + add]):
            m.d.comb += reductions.control.op.eq(Reduce.NONE)
        return m

    def _lane(self, m: Module, platform: object, at: int, sublane: int) -> Lane:
        lane = Lane(self.chip)
        m.submodules[f"lane_{sublane}_{at}"] = box(platform, "vpu_lane", lane)
        return lane

    def _valid_lanes(self, tail: data.View, k: int) -> Value:
        """Bit by lane: sublane k has a value there that counts."""
        valid = [
            tail.active[k] & (lane >= tail.lane_begin) & (lane < tail.ends[k])
            for lane in range(self.chip.lanes)
        ]
        return Cat(valid)

    def _operands(
        self, m: Module, valids: list[Value], steps: list[data.View]
    ) -> dict[str, list[Value]]:
        """Rows by sublane: a, b and c at stage 4, d at stage 3."""
        chip, sublanes = self.chip, self.chip.vpu.sublanes
        active = Signal(sublanes)
        m.d.comb += active.eq(Mux(valids[1], steps[1].tail.active, 0))
        found: dict[str, list[Value]] = {}
        for name in OPERANDS:
            ports = {memory: getattr(self, f"{memory}_{name}") for memory in ("spm", "acc", "vmem")}
            rows.present(m, chip, getattr(steps[1], name), active, ports)
            came = rows.came(m, chip, name, getattr(steps[2], name), steps[2].scalar_lanes, ports)
            found[name] = [delayed(m, row, 1, f"{name}_{k}") for k, row in enumerate(came)]
        m.d.comb += [
            self.vmem_index.enable.eq(valids[1] & steps[1].drops),
            self.vmem_index.row[0].eq(steps[1].index_row),
        ]
        for name in ("b", "c"):
            found[name] = [
                delayed(m, row, 1, f"{name}_late_{k}") for k, row in enumerate(found[name])
            ]
        for k in range(sublanes):
            index = self.vmem_index.data[0].word_select(steps[2].scalar_lanes[k], 32)
            offset = Signal(32, name=f"offset_{k}")  # of the lane that is dropped
            m.d.comb += offset.eq(index - steps[2].first_lanes[k])
            drop = delayed(m, Mux(steps[2].drops, offset, ~0), 1, f"drop_{k}")
            step = steps[3]
            row = rows.permuted(m, chip, f"a_{k}", found["a"][k], step.roll, step.xor)
            masked = []
            for lane in range(chip.lanes):
                keeps = (lane < step.keeps[k]) & (drop != lane)
                masked.append(Mux(keeps, row.word_select(lane, 32), MINUS_INFINITY))
            found["a"][k] = delayed(m, Cat(masked), 1, f"a_late_{k}")
        return found

    def _queue(
        self, m: Module, enters: Value, tail: Value, d: list[Value], leaves: Value
    ) -> tuple[Value, Value]:
        """(tail, rows of d) of the step that leaves the functions, a cycle after."""
        vpu = self.chip.vpu
        layout = data.StructLayout(
            {"tail": tail_layout(self.chip), "d": 32 * self.chip.lanes * vpu.sublanes}
        )
        # Steps between entry and end: those of one round, and of the stages before.
        depth = 1 << (round_cycles(self.chip) + vpu.slot_cycles + 2).bit_length()
        m.submodules.waiting = memory = Memory(shape=layout, depth=depth, init=[])
        write, read = memory.write_port(), memory.read_port()
        last, first = Signal(range(depth)), Signal(range(depth))
        m.d.comb += [
            write.en.eq(enters),
            write.addr.eq(last),
            write.data.tail.eq(tail),
            write.data.d.eq(Cat(d)),
            read.en.eq(leaves),
            read.addr.eq(first),
        ]
        m.d.sync += [last.eq(last + enters), first.eq(first + leaves)]
        return read.data.tail, read.data.d
