"""Rows between memories and the lanes of the vector unit: operands in, results out, permutation."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data
from amaranth.utils import exact_log2

from tapeout.chip import Chip
from tapeout.isa.fields import Kind

from .map_rules import is_kind

SPM_KINDS = (Kind.SPM_BF16, Kind.SPM_FP32)


def present(m: Module, chip: Chip, operand: data.View, active: Value, ports: dict) -> None:
    """Enables the reads of an operand's rows in this cycle.

    Args:
        ports: of "spm", "acc" and "vmem"; position i of the first two is bank i, of vmem sublane i.
    """
    spm, acc, vmem = ports["spm"], ports["acc"], ports["vmem"]
    in_spm, pairs = is_kind(operand, *SPM_KINDS), is_kind(operand, Kind.SPM_FP32)
    in_vmem = is_kind(operand, Kind.VMEM, Kind.ROW_SCALAR)
    for k in range(chip.vpu.sublanes):
        row = operand.rows[k]
        m.d.comb += [vmem.enable[k].eq(active[k] & in_vmem), vmem.row[k].eq(row)]
        for bank in range(chip.spm.banks_per_stripe):
            mine = _holds(row, pairs, chip.spm.banks_per_stripe, bank)
            with m.If(active[k] & in_spm & mine):
                m.d.comb += [spm.enable[bank].eq(1), spm.row[bank].eq(_pair_row(row, pairs, bank))]
        for bank in range(chip.vpu.sublanes):
            mine = _bank_of(row, chip.vpu.sublanes) == bank
            with m.If(active[k] & is_kind(operand, Kind.ACC) & mine):
                m.d.comb += [acc.enable[bank].eq(1), acc.row[bank].eq(row)]


def came(
    m: Module, chip: Chip, name: str, operand: data.View, scalar_lanes: Value, ports: dict
) -> list[Signal]:
    """The operand's rows at fp32, by sublane, the cycle after they were asked for."""
    lanes, banks = chip.lanes, chip.spm.banks_per_stripe
    rows = []
    for k in range(chip.vpu.sublanes):
        row = Signal(32 * lanes, name=f"{name}_row_{k}")
        high, low = (Signal(16 * lanes, name=f"{name}_{n}_{k}") for n in ("high", "low"))
        scalar = ports["vmem"].data[k].word_select(scalar_lanes[k], 32)
        bank = _bank_of(operand.rows[k], banks)
        m.d.comb += [
            high.eq(ports["spm"].data[bank]),
            low.eq(Mux(is_kind(operand, Kind.SPM_FP32), ports["spm"].data[bank | 1], 0)),
        ]
        with m.Switch(operand.kind):
            with m.Case(*SPM_KINDS):
                halves = [
                    half.word_select(lane, 16) for lane in range(lanes) for half in (low, high)
                ]
                m.d.comb += row.eq(Cat(halves))
            with m.Case(Kind.VMEM):
                m.d.comb += row.eq(ports["vmem"].data[k])
            with m.Case(Kind.ACC):
                at = _bank_of(operand.rows[k], chip.vpu.sublanes)
                m.d.comb += row.eq(ports["acc"].data[at])
            with m.Case(Kind.ROW_SCALAR):
                m.d.comb += row.eq(scalar.replicate(lanes))
            with m.Case(Kind.IMMEDIATE):
                m.d.comb += row.eq(operand.value.replicate(lanes))
        rows.append(row)
    return rows


def store(
    m: Module, chip: Chip, tail: data.View, valid: Value, fp32: list[Value], bf16: list[Value],
    masks: list[Value], ports: dict,
) -> None:  # fmt: skip
    """Writes the rows of a step in this cycle.

    Args:
        fp32, bf16, masks: rows and their valid lanes, by sublane.
        ports: of "spm", "acc" and "vmem", as for operands.
    """
    spm, acc, vmem = ports["spm"], ports["acc"], ports["vmem"]
    lanes, banks, sublanes = chip.lanes, chip.spm.banks_per_stripe, chip.vpu.sublanes
    in_spm, pairs = is_kind(tail, *SPM_KINDS), is_kind(tail, Kind.SPM_FP32)
    for k in range(sublanes):
        row, writes = tail.rows[k], valid & tail.active[k]
        high = Cat(fp32[k].word_select(lane, 32)[16:] for lane in range(lanes))
        low = Cat(fp32[k].word_select(lane, 32)[:16] for lane in range(lanes))
        m.d.comb += [
            vmem.enable[k].eq(writes & is_kind(tail, Kind.VMEM)),
            vmem.row[k].eq(row),
            vmem.data[k].eq(fp32[k]),
            vmem.mask[k].eq(masks[k]),
        ]
        for bank in range(banks):
            mine = _holds(row, pairs, banks, bank)
            with m.If(writes & in_spm & mine):
                m.d.comb += [
                    spm.enable[bank].eq(1),
                    spm.row[bank].eq(_pair_row(row, pairs, bank)),
                    spm.data[bank].eq(Mux(pairs, low if bank % 2 else high, bf16[k])),
                    spm.mask[bank].eq(masks[k]),
                ]
        for bank in range(sublanes):
            mine = _bank_of(row, sublanes) == bank
            with m.If(writes & is_kind(tail, Kind.ACC) & mine):
                m.d.comb += [
                    acc.enable[bank].eq(1),
                    acc.row[bank].eq(row),
                    acc.data[bank].eq(fp32[k]),
                    acc.mask[bank].eq(masks[k]),
                ]


def permuted(m: Module, chip: Chip, name: str, row: Value, roll: Value, xor: Value) -> Value:
    """Lane l of the result is lane ((l + roll) % lanes) ^ xor of a row."""
    lanes = chip.lanes
    values: list[Value] = [row.word_select(lane, 32) for lane in range(lanes)]
    for level in range(exact_log2(lanes)):
        values = [Mux(xor[level], values[n ^ 1 << level], values[n]) for n in range(lanes)]
        values = _named(m, values, f"{name}_xor_{level}")
    for level in range(exact_log2(lanes)):
        moved = [values[(n + (1 << level)) % lanes] for n in range(lanes)]
        values = [Mux(roll[level], moved[n], values[n]) for n in range(lanes)]
        values = _named(m, values, f"{name}_roll_{level}")
    return Cat(values)


def _named(m: Module, values: list[Value], name: str) -> list[Value]:
    row = Signal(32 * len(values), name=name)
    m.d.comb += row.eq(Cat(values))
    return [row.word_select(n, 32) for n in range(len(values))]


def _bank_of(row: Value, banks: int) -> Value:
    return row[: exact_log2(banks)] if banks > 1 else C(0, 1)


def _pair_row(row: Value, pairs: Value, bank: int) -> Value:
    """The row itself, or the second of a pair in an odd bank."""
    return Cat(row[0] | pairs, row[1:]) if bank % 2 else row


def _holds(row: Value, pairs: Value, banks: int, bank: int) -> Value:
    """Whether a row, or the second one of a pair, lies in the bank."""
    own = _bank_of(row, banks) == bank
    return own | (pairs & (_bank_of(row, banks) == bank - 1)) if bank % 2 else own
