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
from .pipeline import ages, delayed, taken
from .reduce import Reductions
from .sublane import OperandRow, PermutedRow, Sublane
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
                "accept": In(1),
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
            walk.accept.eq(self.accept),
            walk.start.eq(self.start),
            self.fits.eq(walk.fits),
            self.fault.eq(map_fault(m, chip, self.map, self.accept)),
            self.occupancy.eq(walk.occupancy),
            self.latency.eq(walk.latency),
        ]
        entry = 5 + vpu.adder_stages  # the stage at which a value enters the functions
        valids = ages(m, walk.step.valid, entry, "valid", resets=True)
        held = ages(m, walk.step, entry, "step")
        steps = [data.View(step_layout(chip), each) for each in held]
        operands = self._operands(m, platform, valids, steps)

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
        sublanes = [Sublane(chip) for _ in range(vpu.sublanes)]
        for k, sublane in enumerate(sublanes):
            m.submodules[f"sublane_{k}"] = box(platform, "vpu_sublane", sublane)
            m.d.comb += [
                *(getattr(sublane, name).eq(operands[name][k]) for name in ("a", "b", "c")),
                sublane.combine.eq(steps[4].combine),
                sublane.combine_out.eq(steps[entry].combine),
                sublane.enters.eq(sequence.enters),
                sublane.comes.eq(sequence.comes),
                *(getattr(sublane, f"code_{s}").eq(getattr(sequence, f"code_{s}"))
                  for s in range(vpu.function_steps)),
                sublane.ended.eq(sequence.result),
                sublane.d.eq(d.word_select(k, 32 * chip.lanes)),
                sublane.combine2.eq(tails[0].combine2),
                sublane.combine2_out.eq(ending.combine2),
                sublane.is_valid.eq(self._valid_lanes(ending, k)),
                sublane.squares.eq(ending.reduce.op == Reduce.SUMSQ),
                sublane.by_index.eq(ending.reduce.op == Reduce.ARGMAX),
            ]  # fmt: skip
        masks = [self._valid_lanes(writing, k) for k in range(vpu.sublanes)]
        rows.store(
            m, chip, writing, leaves[3 + add],
            [s.fp32 for s in sublanes], [s.bf16 for s in sublanes], masks,
            {name: getattr(self, f"{name}_dst") for name in ("spm", "acc", "vmem")},
        )  # fmt: skip
        m.submodules.reductions = reductions = Reductions(chip)
        wiring.connect(m, reductions.total, wiring.flipped(self.vmem_total))
        wiring.connect(m, reductions.result, wiring.flipped(self.vmem_result))
        m.d.comb += [
            reductions.control.eq(ending.reduce),
            *(reductions.summands[k].eq(s.summand) for k, s in enumerate(sublanes)),
            *(reductions.ranks[k].eq(s.rank) for k, s in enumerate(sublanes)),
        ]
        with m.If(~leaves[2 + add]):
            m.d.comb += reductions.control.op.eq(Reduce.NONE)
        return m

    def _valid_lanes(self, tail: data.View, k: int) -> Value:
        """Bit by lane: sublane k has a value there that counts."""
        valid = [
            tail.active[k] & (lane >= tail.lane_begin) & (lane < tail.ends[k])
            for lane in range(self.chip.lanes)
        ]
        return Cat(valid)

    def _operands(
        self, m: Module, platform: object, valids: list[Value], steps: list[data.View]
    ) -> dict[str, list[Value]]:
        """Rows by sublane: a, b and c at stage 4, d at stage 3.

        They stay where no step comes, whatever others read: so idle lanes are still.
        """
        chip, sublanes = self.chip, self.chip.vpu.sublanes
        active = Signal(sublanes)
        m.d.comb += active.eq(Mux(valids[1], steps[1].tail.active, 0))
        found: dict[str, list[Value]] = {}
        for name in OPERANDS:
            ports = {memory: getattr(self, f"{memory}_{name}") for memory in ("spm", "acc", "vmem")}
            rows.present(m, chip, getattr(steps[1], name), active, ports)
            operand = getattr(steps[2], name)
            found[name] = []
            for k in range(sublanes):
                row = OperandRow(chip)
                m.submodules[f"{name}_{k}"] = row
                m.d.comb += [
                    row.kind.eq(operand.kind),
                    row.row.eq(operand.rows[k]),
                    row.value.eq(operand.value),
                    row.scalar_lane.eq(steps[2].scalar_lanes[k]),
                    row.spm.eq(ports["spm"].data),
                    row.acc.eq(ports["acc"].data),
                    row.vmem.eq(ports["vmem"].data[k]),
                ]
                found[name].append(taken(m, row.result, valids[2], f"{name}_{k}"))
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
            drop = taken(m, Mux(steps[2].drops, offset, ~0), valids[2], f"drop_{k}")
            step = steps[3]
            permuted = PermutedRow(chip)
            m.submodules[f"permute_{k}"] = box(platform, "vpu_permute", permuted, is_clocked=False)
            m.d.comb += [
                permuted.row.eq(found["a"][k]),
                permuted.roll.eq(step.roll),
                permuted.flip.eq(step.xor),
                permuted.keeps.eq(step.keeps[k]),
                permuted.drop.eq(drop),
            ]
            found["a"][k] = delayed(m, permuted.result, 1, f"a_late_{k}")
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
