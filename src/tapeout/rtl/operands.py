"""Fields of an instruction with its registers read: what an engine takes from its sequencer.

Contract: `resolve` gives the values of `tapeout.isa.instruction.Resolved`, as `resolved_layout`
lays them out.
"""

from amaranth.hdl import Array, Shape, Value, signed, unsigned
from amaranth.lib import data

from tapeout.isa.fields import Addr, Bits, Count, HbmAddr, Operand, width_of
from tapeout.isa.instruction import HEADER, Instruction
from tapeout.isa.seq import REGISTER_BITS

from .decode import field

SUM_BITS = REGISTER_BITS + 2  # of a register and a field


def _companions(cls: type[Instruction]) -> set[str]:
    """Register fields that belong to another field."""
    names = {name for name, _, _ in cls.layout()}
    return {f"{name}_reg" for name in names} & names


def resolved_layout(cls: type[Instruction]) -> data.StructLayout:
    """The body's fields by name.

    Sums of a field and a register are signed, `SUM_BITS` wide; an `HbmAddr` is a struct of base
    and offset, an `Operand` one of kind, imm (with its register), tile_stride, row_stride and
    value (the bits of a constant).
    """
    sums = Shape.cast(signed(SUM_BITS))
    companions = _companions(cls)
    members: dict[str, object] = {}
    for name, _, spec in cls.layout():
        if name in HEADER or name in companions:
            continue
        if spec is Addr or spec is Count or f"{name}_reg" in companions:
            members[name] = sums
        elif spec is HbmAddr:
            members[name] = data.StructLayout({"base": 4, "offset": sums})
        elif spec is Operand:
            parts = Operand.LAYOUT
            members[name] = data.StructLayout(
                {
                    "kind": parts["kind"].width,
                    "imm": sums,
                    "tile_stride": parts["tile_stride"].width,
                    "row_stride": parts["row_stride"].width,
                    "value": 32,
                }
            )
        else:
            assert isinstance(spec, Bits)
            members[name] = (signed if spec.signed else unsigned)(width_of(spec))
    return data.StructLayout(members)


def resolve(view: data.View, word: Value, cls: type[Instruction], registers: Array) -> list:
    """Assignments of `word`'s fields, registers added, to `view` of `resolved_layout(cls)`."""
    companions = _companions(cls)

    def plus_register(name: str, part: str, register: str, register_part: str) -> Value:
        return field(word, cls, name, part) + registers[field(word, cls, register, register_part)]

    assignments = []
    for name, _, spec in cls.layout():
        if name in HEADER or name in companions:
            continue
        target = view[name]
        if spec is Addr or spec is Count:
            assignments.append(target.eq(plus_register(name, "imm", name, "reg")))
        elif f"{name}_reg" in companions:
            assignments.append(target.eq(plus_register(name, "", f"{name}_reg", "")))
        elif spec is HbmAddr:
            assignments += [
                target.base.eq(field(word, cls, name, "base")),
                target.offset.eq(plus_register(name, "offset", name, "reg")),
            ]
        elif spec is Operand:
            assignments += [
                target.kind.eq(field(word, cls, name, "kind")),
                target.imm.eq(plus_register(name, "imm", name, "reg")),
                target.tile_stride.eq(field(word, cls, name, "tile_stride")),
                target.row_stride.eq(field(word, cls, name, "row_stride")),
                target.value.eq(field(word, cls, name) >> Operand.VALUE_SHIFT),
            ]
        else:
            assignments.append(target.eq(field(word, cls, name)))
    return assignments
