"""Rows between memories and the sublanes of the vector unit: operands in, results out."""

from amaranth.hdl import Cat, Module, Mux, Value
from amaranth.lib import data

from tapeout.chip import Chip
from tapeout.isa.fields import Kind

from .map_rules import is_kind
from .sublane import SPM_KINDS, bank_of


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
            mine = bank_of(row, chip.vpu.sublanes) == bank
            with m.If(active[k] & is_kind(operand, Kind.ACC) & mine):
                m.d.comb += [acc.enable[bank].eq(1), acc.row[bank].eq(row)]


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
            mine = bank_of(row, sublanes) == bank
            with m.If(writes & is_kind(tail, Kind.ACC) & mine):
                m.d.comb += [
                    acc.enable[bank].eq(1),
                    acc.row[bank].eq(row),
                    acc.data[bank].eq(fp32[k]),
                    acc.mask[bank].eq(masks[k]),
                ]


def _pair_row(row: Value, pairs: Value, bank: int) -> Value:
    """The row itself, or the second of a pair in an odd bank."""
    return Cat(row[0] | pairs, row[1:]) if bank % 2 else row


def _holds(row: Value, pairs: Value, banks: int, bank: int) -> Value:
    """Whether a row, or the second one of a pair, lies in the bank."""
    own = bank_of(row, banks) == bank
    return own | (pairs & (bank_of(row, banks) == bank - 1)) if bank % 2 else own
