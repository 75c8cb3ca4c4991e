"""What the vector unit has for each of its sublanes: operands, their permutation, and lanes.

They are, or are made of, boxes (`rtl.boxes`): a unit of many lanes and sublanes is written in the
size of one of them.
"""

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tapeout.chip import Chip
from tapeout.isa.fields import Kind

from .boxes import box
from .decode import word_of
from .lane import Lane, lane_ports
from .map_rules import is_kind
from .order import MINUS_INFINITY
from .ports import join
from .walk import row_bits

SPM_KINDS = (Kind.SPM_BF16, Kind.SPM_FP32)
_OPERAND_LANES = 32  # a box has 65,536 bits of inputs at most


class OperandLanes(wiring.Component):
    """Some lanes of an operand's row at fp32, from what the memories give in this cycle.

    Ports:
        kind, row: of the operand. word: of a packed row or an immediate, for all lanes.
        spm, acc: rows by bank. vmem: the sublane's row.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip, self.lanes = chip, operand_lanes(chip)
        super().__init__(
            {
                "kind": In(Shape.cast(Kind)),
                "row": In(row_bits(chip)),
                "word": In(32),
                "spm": In(data.ArrayLayout(16 * self.lanes, chip.spm.banks_per_stripe)),
                "acc": In(data.ArrayLayout(32 * self.lanes, chip.vpu.sublanes)),
                "vmem": In(32 * self.lanes),
                "result": Out(32 * self.lanes),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes, bank = self.lanes, bank_of(self.row, self.chip.spm.banks_per_stripe)
        high, low = Signal(16 * lanes), Signal(16 * lanes)
        m.d.comb += [
            high.eq(word_of(self.spm.as_value(), bank, 16 * lanes)),
            low.eq(
                Mux(
                    is_kind(self, Kind.SPM_FP32),
                    word_of(self.spm.as_value(), bank | 1, 16 * lanes),
                    0,
                )
            ),
        ]
        with m.Switch(self.kind):
            with m.Case(*SPM_KINDS):
                halves = [
                    half.word_select(lane, 16) for lane in range(lanes) for half in (low, high)
                ]
                m.d.comb += self.result.eq(Cat(halves))
            with m.Case(Kind.VMEM):
                m.d.comb += self.result.eq(self.vmem)
            with m.Case(Kind.ACC):
                of_acc = bank_of(self.row, self.chip.vpu.sublanes)
                m.d.comb += self.result.eq(word_of(self.acc.as_value(), of_acc, 32 * lanes))
            with m.Case(Kind.ROW_SCALAR, Kind.IMMEDIATE):
                m.d.comb += self.result.eq(self.word.replicate(lanes))
        return m


class OperandRow(wiring.Component):
    """An operand's row at fp32, from what the memories give in this cycle.

    Ports:
        kind, row, value: of the operand. scalar_lane: of a packed row.
        spm, acc: rows by bank. vmem: the sublane's row.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        lanes = chip.lanes
        super().__init__(
            {
                "kind": In(Shape.cast(Kind)),
                "row": In(row_bits(chip)),
                "value": In(32),
                "scalar_lane": In(exact_log2(lanes)),
                "spm": In(data.ArrayLayout(16 * lanes, chip.spm.banks_per_stripe)),
                "acc": In(data.ArrayLayout(32 * lanes, chip.vpu.sublanes)),
                "vmem": In(32 * lanes),
                "result": Out(32 * lanes),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word, lanes = Signal(32), operand_lanes(self.chip)
        scalar = word_of(self.vmem, self.scalar_lane, 32)
        m.d.comb += word.eq(Mux(is_kind(self, Kind.ROW_SCALAR), scalar, self.value))
        for at in range(0, self.chip.lanes, lanes):
            part = OperandLanes(self.chip)
            m.submodules[f"lanes_{at}"] = box(platform, "vpu_operand", part, is_clocked=False)
            m.d.comb += [
                part.kind.eq(self.kind),
                part.row.eq(self.row),
                part.word.eq(word),
                *(mine.eq(row[16 * at : 16 * (at + lanes)])
                  for mine, row in zip(part.spm, self.spm, strict=True)),
                *(mine.eq(row[32 * at : 32 * (at + lanes)])
                  for mine, row in zip(part.acc, self.acc, strict=True)),
                part.vmem.eq(self.vmem[32 * at : 32 * (at + lanes)]),
                self.result[32 * at : 32 * (at + lanes)].eq(part.result),
            ]  # fmt: skip
        return m


class PermutedRow(wiring.Component):
    """Lane l of the result is lane ((l + roll) % lanes) ^ flip of `row`, where it is not masked.

    Ports:
        keeps: lanes from there on are -inf. drop: this lane is, too.
    """

    def __init__(self, chip: Chip) -> None:
        self.lanes = chip.lanes
        super().__init__(
            {
                "row": In(32 * chip.lanes),
                "roll": In(exact_log2(chip.lanes)),
                "flip": In(exact_log2(chip.lanes)),
                "keeps": In(chip.lanes.bit_length()),
                "drop": In(32),
                "result": Out(32 * chip.lanes),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes = self.lanes
        values: list[Value] = [self.row.word_select(lane, 32) for lane in range(lanes)]
        for level in range(exact_log2(lanes)):
            values = [
                Mux(self.flip[level], values[n ^ 1 << level], values[n]) for n in range(lanes)
            ]
            values = self._named(m, values, f"flip_{level}")
        for level in range(exact_log2(lanes)):
            moved = [values[(n + (1 << level)) % lanes] for n in range(lanes)]
            values = [Mux(self.roll[level], moved[n], values[n]) for n in range(lanes)]
            values = self._named(m, values, f"roll_{level}")
        for lane, value in enumerate(values):
            keeps = (lane < self.keeps) & (self.drop != lane)
            m.d.comb += self.result.word_select(lane, 32).eq(Mux(keeps, value, MINUS_INFINITY))
        return m

    @staticmethod
    def _named(m: Module, values: list[Value], name: str) -> list[Value]:
        row = Signal(32 * len(values), name=name)
        m.d.comb += row.eq(Cat(values))
        return [row.word_select(n, 32) for n in range(len(values))]


class Sublane(wiring.Component):
    """The lanes of one sublane; ports and their stages are those of `Lane`.

    Data of a lane becomes that of all, lane 0 lowest; what all lanes do alike comes once.
    """

    _DATA = ("a", "b", "c", "d", "is_valid", "fp32", "bf16", "rank", "summand")

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        ports = {}
        for name, member in lane_ports(chip).items():
            wide = Shape.cast(member.shape).width * chip.lanes
            ports[name] = member.flow(wide) if name in self._DATA else member
        super().__init__(ports)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for at in range(self.chip.lanes):
            lane = Lane(self.chip)
            m.submodules[f"lane_{at}"] = box(platform, "vpu_lane", lane)
            for name, member in lane_ports(self.chip).items():
                its, mine = Value.cast(getattr(lane, name)), getattr(self, name)
                mine = mine.word_select(at, len(its)) if name in self._DATA else mine
                join(m, member.flow, mine, its)
        return m


def bank_of(row: Value, banks: int) -> Value:
    """The bank that a row lies in."""
    return row[: exact_log2(banks)] if banks > 1 else C(0, 1)


def operand_lanes(chip: Chip) -> int:
    """The lanes of one `OperandLanes`."""
    return min(chip.lanes, _OPERAND_LANES)
