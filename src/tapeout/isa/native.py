"""Writes the C++ side of the instruction set: `python -m tapeout.isa.native > isa_tables.inc`.

From the instruction classes come the decoded structs, the decoder with its checks of reserved bits
and enumerations, the resolved structs, and the closed forms of cycles (translated from the Python
of `occupancy` and `latency`). From the chip dataclasses comes `ChipParams`.
"""

import ast
import dataclasses
import enum
import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, get_type_hints

from tapeout.chip import spec

from . import dma, forms, mxu, seq, vpu
from .fields import WORD_BITS, Addr, Bits, Count, HbmAddr, Kind, Operand, width_of
from .instruction import REGISTRY, Fault, Instruction, When

HEADER = {"waits", "posts", "drain", "wait_when", "post_when"}
ENUMS: list[type[enum.IntEnum]] = [
    When, Fault, Kind, seq.Alu, mxu.Accumulate, vpu.Combine, vpu.Combine2, vpu.Function, vpu.Mask,
    vpu.Reduce, dma.Memory, dma.HbmFormat,
]  # fmt: skip


def _member(field: str) -> str:
    """A field's name in C++, where `xor` is a word of the language."""
    return f"{field}_" if field in ("xor", "and", "or", "not") else field


def struct_name(cls: type[Instruction]) -> str:
    """mxu.load -> MxuLoad"""
    return "".join(part.capitalize() for part in cls.mnemonic.split("."))


# --- translation of closed forms -----------------------------------------------------------------

_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}
_COMPARE = {ast.Gt: ">", ast.Lt: "<", ast.GtE: ">=", ast.LtE: "<=", ast.Eq: "==", ast.NotEq: "!="}
_FORMS = (forms.rows_per_cycle, forms.function_passes)  # translated, too
_CALLS = {
    "max",
    "min",
    "ceil_div",
    "gcd",
    "function_steps",
    "loop_cycles",
    *(f.__name__ for f in _FORMS),
}


def _expression(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=int() as value):
            return f"int64_t({int(value)})"
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return f"{_expression(value)}.{_member(attr)}"
        case ast.BinOp(left=left, op=ast.FloorDiv(), right=right):
            return f"floor_div({_expression(left)}, {_expression(right)})"
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return f"({_expression(left)} {_BINARY[type(op)]} {_expression(right)})"
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return f"(-{_expression(operand)})"
        case ast.BoolOp(op=op, values=values):
            sign = " && " if isinstance(op, ast.And) else " || "
            return "(" + sign.join(_expression(v) for v in values) + ")"
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            return f"({_expression(left)} {_COMPARE[type(op)]} {_expression(right)})"
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return f"(({_expression(test)}) ? {_expression(body)} : {_expression(orelse)})"
        case ast.Call(func=ast.Name(id=name), args=args) if name in _CALLS:
            parts = [f"int64_t({_expression(a)})" for a in args]
            if name in ("max", "min") and len(parts) > 2:
                return f"std::{name}({{{', '.join(parts)}}})"
            return f"{'std::' if name in ('max', 'min') else ''}{name}({', '.join(parts)})"
    raise TypeError(f"a closed form may not use {ast.unparse(node)!r}: see isa.instruction")


def _statements(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        match node:
            case ast.Expr(value=ast.Constant()):
                continue
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield f"const int64_t {name} = {_expression(value)};"
            case ast.Return(value=ast.expr() as value):
                yield f"return {_expression(value)};"
            case ast.If(test=test, body=inner, orelse=orelse):
                yield f"if ({_expression(test)}) {{"
                yield from _statements(inner)
                yield "}"
                if orelse:
                    yield "else {"
                    yield from _statements(orelse)
                    yield "}"
            case _:
                raise TypeError(f"a closed form may not use {ast.unparse(node)!r}")


def _body(function: Any) -> list[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    return ["  " + line for line in _statements(tree.body)]


def _forms() -> Iterator[str]:
    # Division of 32 bits takes the host half the time, and nearly every operand fits.
    yield "inline bool is_short(int64_t a, int64_t b) { return (uint64_t(a | b) >> 31) == 0; }"
    yield "inline int64_t floor_div(int64_t a, int64_t b) {"
    yield "  if (is_short(a, b)) return uint32_t(a) / uint32_t(b);"
    yield "  return a / b - ((a % b != 0) && ((a < 0) != (b < 0)));"
    yield "}"
    yield "inline int64_t ceil_div(int64_t a, int64_t b) {"
    yield "  if (is_short(a, b)) return (uint32_t(a) + uint32_t(b) - 1) / uint32_t(b);"
    yield "  return -floor_div(-a, b);"
    yield "}"
    yield "inline int64_t gcd(int64_t a, int64_t b) { return std::gcd(a, b); }"
    steps = ", ".join(str(forms.function_steps(f)) for f in vpu.Function)
    yield f"constexpr int64_t kFunctionSteps[] = {{{steps}}};"
    yield "inline int64_t function_steps(int64_t f) { return kFunctionSteps[f]; }"
    for form in _FORMS:
        arguments = ", ".join(f"int64_t {a}" for a in inspect.signature(form).parameters)
        yield f"inline int64_t {form.__name__}({arguments}) {{"
        yield from _body(form)
        yield "}"
    yield "inline int64_t loop_cycles(int64_t slots, int64_t adder_stages) {"
    yield "  for (int64_t cycles = slots * (2 + adder_stages);; ++cycles) {"
    yield "    bool is_prime = true;"
    yield "    for (const int64_t steps : kFunctionSteps)"
    yield "      is_prime &= gcd(cycles, std::max<int64_t>(1, ceil_div(steps, slots))) == 1;"
    yield "    if (is_prime) return cycles;"
    yield "  }"
    yield "}"


# --- structs -------------------------------------------------------------------------------------


def _chip_structs() -> Iterator[str]:
    keys: list[tuple[str, str]] = []

    def struct(cls: Any, name: str, prefix: str, indent: str) -> Iterator[str]:
        yield f"{indent}struct {name} {{"
        hints = get_type_hints(cls)
        for f in dataclasses.fields(cls):
            kind = hints[f.name]
            if dataclasses.is_dataclass(kind):
                yield from struct(
                    kind, f.name.capitalize() + "Params", f"{prefix}{f.name}.", indent + "  "
                )
                yield f"{indent}  {f.name.capitalize()}Params {f.name};"
            elif kind in (int, float):
                yield f"{indent}  {'int64_t' if kind is int else 'double'} {f.name} = 0;"
                keys.append((prefix + f.name, "int64_t" if kind is int else "double"))
        for derived in cls.DERIVED:
            yield f"{indent}  int64_t {derived} = 0;"
            keys.append((prefix + derived, "int64_t"))
        yield f"{indent}}};"

    yield from struct(spec.Chip, "ChipParams", "", "")
    yield "template <class Get> inline ChipParams chip_params(Get&& get) {"
    yield "  ChipParams p;"
    for key, kind in keys:
        yield f'  p.{key} = static_cast<{kind}>(get("{key}"));'
    yield "  return p;"
    yield "}"


def _enums() -> Iterator[str]:
    for cls in ENUMS:
        members = ", ".join(f"{m.name} = {m.value}" for m in cls)
        yield f"enum class {cls.__name__} : int64_t {{ {members} }};"
    opcodes = ", ".join(f"{struct_name(c)} = {op}" for op, c in sorted(REGISTRY.items()))
    yield f"enum class Op : uint8_t {{ {opcodes} }};"
    yield "inline const char* mnemonic(Op op) {"
    yield "  switch (op) {"
    for instruction in REGISTRY.values():
        yield f'    case Op::{struct_name(instruction)}: return "{instruction.mnemonic}";'
    yield '  }\n  return "?";\n}'
    yield "inline uint64_t check_cycles(Op op) {"
    yield "  switch (op) {"
    for instruction in REGISTRY.values():
        yield f"    case Op::{struct_name(instruction)}: return {instruction.check_cycles};"
    yield "  }\n  return 1;\n}"
    scalar = [f"op == Op::{struct_name(c)}" for c in REGISTRY.values() if c.engine == "seq"]
    yield f"inline bool is_scalar(Op op) {{ return {' || '.join(scalar)}; }}"
    yield "inline const char* fault_name(Fault f) {"
    yield "  switch (f) {"
    for fault in Fault:
        yield f'    case Fault::{fault.name}: return "{fault.name.lower()}";'
    yield '  }\n  return "?";\n}'


_UNUSED = "[[maybe_unused]]"
_RAW: dict[Any, str] = {
    Addr: "RawAddr",
    Count: "RawCount",
    HbmAddr: "RawHbm",
    Operand: "RawOperand",
}
_RESOLVED = {Addr: "int64_t", Count: "int64_t", HbmAddr: "HbmRef", Operand: "OperandRef"}


def _narrow(bits: Bits) -> str:
    """The smallest C++ type of a field: decoded programs stream through the host's caches."""
    size = next((n for n in (8, 16, 32) if bits.width <= n), 64)
    return f"{'' if bits.signed or size == 64 else 'u'}int{size}_t"


def _structs() -> Iterator[str]:
    for composite, name in _RAW.items():
        parts = [f"{_narrow(bits)} {part} = 0;" for part, bits in composite.LAYOUT.items()]
        value = " float value = 0;" if composite is Operand else ""
        yield f"struct {name} {{ {' '.join(parts)}{value} }};"
    yield "struct HbmRef { int base = 0; int64_t offset = 0; };"
    yield (
        "struct OperandRef { int64_t kind = 0; int64_t imm = 0; int64_t tile_stride = 0; "
        "int64_t row_stride = 0; float value = 0; };"
    )
    yield (
        "struct Header { uint32_t waits = 0, posts = 0; bool drain = false; "
        "When wait_when = When::ALWAYS, post_when = When::ALWAYS; };"
    )
    for cls in REGISTRY.values():
        name = struct_name(cls)
        fields = [(_member(n), s) for n, _, s in cls.layout() if n not in HEADER]
        yield f"struct {name} {{"
        for field, s in fields:
            yield f"  {_narrow(s) if isinstance(s, Bits) else _RAW[s]} {field}{{}};"
        yield f"}};\nstruct {name}Now {{"
        for field, s in fields:
            yield f"  {'int64_t' if isinstance(s, Bits) else _RESOLVED[s]} {field}{{}};"
        yield "};"
        yield f"inline {name}Now resolve({_UNUSED} const {name}& i, {_UNUSED} const int64_t* r) {{"
        yield f"  [[maybe_unused]] {name}Now n;"
        names = {f for f, _ in fields}
        for field, s in fields:
            if s in (Addr, Count):
                yield f"  n.{field} = i.{field}.imm + r[i.{field}.reg];"
            elif s is HbmAddr:
                yield f"  n.{field} = {{i.{field}.base, i.{field}.offset + r[i.{field}.reg]}};"
            elif s is Operand:
                yield f"  n.{field} = {{i.{field}.kind, i.{field}.imm + r[i.{field}.reg],"
                yield f"    i.{field}.tile_stride, i.{field}.row_stride, i.{field}.value}};"
            elif f"{field}_reg" in names:
                yield f"  n.{field} = i.{field} + r[i.{field}_reg];"
            else:
                yield f"  n.{field} = i.{field};"
        yield "  return n;\n}"
    bodies = ", ".join(struct_name(c) for c in REGISTRY.values())
    yield f"using Body = std::variant<{bodies}>;"
    yield "struct Instr { Op op = Op::SeqNop; Header header; Body body; };"


def _decoder() -> Iterator[str]:
    yield "inline uint64_t take(const uint64_t* w, int at, int width) {"
    yield "  uint64_t v = w[at >> 6] >> (at & 63);"
    yield "  if ((at & 63) + width > 64) v |= w[(at >> 6) + 1] << (64 - (at & 63));"
    yield "  return width == 64 ? v : v & ((uint64_t(1) << width) - 1);"
    yield "}"
    yield "inline int64_t take_signed(const uint64_t* w, int at, int width) {"
    yield "  return int64_t(take(w, at, width) << (64 - width)) >> (64 - width);"
    yield "}"
    yield "// Fills `out` from a word; false when the word is not an instruction."
    yield "inline bool decode(const uint8_t* word, Instr& out) {"
    yield "  uint64_t w[9]; std::memcpy(w, word, 64); w[8] = 0;"
    yield "  switch (w[0] & 255) {"
    for op, cls in sorted(REGISTRY.items()):
        name = struct_name(cls)
        used = 255
        for _, at, s in cls.layout():
            used |= ((1 << width_of(s)) - 1) << at
        yield f"  case {op}: {{"
        for k in range(WORD_BITS // 64):
            reserved = ~(used >> (64 * k)) & (2**64 - 1)
            if reserved:
                yield f"    if (w[{k}] & 0x{reserved:016x}ull) return false;"
        yield f"    {name} b; Header h; [[maybe_unused]] bool ok = true;"
        for field, at, s in cls.layout():
            target = f"h.{field}" if field in HEADER else f"b.{_member(field)}"
            yield from _take(field, target, at, s)
        yield "    if (!ok) return false;"
        yield f"    out.op = Op::{name}; out.header = h; out.body = b; return true;"
        yield "  }"
    yield "  default: return false;\n  }\n}"


def _take(field: str, target: str, at: int, s: Any) -> Iterator[str]:
    if isinstance(s, Bits):
        take = f"take{'_signed' if s.signed else ''}(w, {at}, {s.width})"
        if s.enum is not None:
            members = sum(1 << m.value for m in s.enum)
            if members != (1 << (1 << s.width)) - 1:
                yield f"    ok = ok && (0x{members:x}u >> take(w, {at}, {s.width}) & 1);"
            cast = f"{s.enum.__name__}({take})" if field in HEADER else take
            yield f"    {target} = {cast};"
        else:
            yield f"    {target} = {take};"
        return
    if s is Operand:
        yield f"    if (take(w, {at}, 4) == {int(Kind.IMMEDIATE)}) {{"
        rest = width_of(s) - Operand.VALUE_SHIFT - 32
        yield f"      {target}.kind = {int(Kind.IMMEDIATE)};"
        yield f"      ok = ok && take(w, {at + Operand.VALUE_SHIFT + 32}, {rest}) == 0;"
        yield f"      const uint32_t v = uint32_t(take(w, {at + Operand.VALUE_SHIFT}, 32));"
        yield f"      std::memcpy(&{target}.value, &v, 4);"
        yield "    } else {"
    for part, bits in s.LAYOUT.items():
        yield f"    {target}.{part} = take(w, {at}, {bits.width});"
        if bits.enum is not None:
            yield f"    ok = ok && {target}.{part} < {len(bits.enum)};"
        at += bits.width
    if s is Operand:
        yield (
            f"    ok = ok && ({target}.kind != 0 || ({target}.imm | {target}.reg | "
            f"{target}.tile_stride | {target}.row_stride) == 0);\n    }}"
        )


def _cycles() -> Iterator[str]:
    for cls in REGISTRY.values():
        if cls.engine not in ("mxu", "vpu", "seq"):
            continue
        name = struct_name(cls)
        given = f"{_UNUSED} const ChipParams& chip, {_UNUSED} const {name}Now& i"
        yield f"inline int64_t occupancy({given}) {{"
        yield from _body(cls.occupancy)
        yield "}"
        yield f"inline int64_t latency({given}, {_UNUSED} int64_t occupancy) {{"
        yield from _body(cls.latency)
        yield "}"


def tables() -> str:
    """The text of isa_tables.inc."""
    parts = [
        "// Written by `python -m tapeout.isa.native`. Do not edit.",
        "#pragma once",
        *(f"#include <{h}>" for h in ("algorithm", "cstdint", "cstring", "numeric", "variant")),
        "namespace tapeout::isa {",
        f"constexpr int kWordBytes = {WORD_BITS // 8};",
        f"constexpr uint64_t kTakeUpCycles = {dma.TAKE_UP_CYCLES};",
        f"constexpr uint64_t kIndexedTakeUpCycles = {dma.INDEXED_TAKE_UP_CYCLES};",
        *_enums(),
        *_chip_structs(),
        *_structs(),
        *_decoder(),
        *_forms(),
        *_cycles(),
        "}  // namespace tapeout::isa",
    ]
    return "\n".join(parts) + "\n"


def flatten(chip: spec.Chip) -> dict[str, float]:
    """The chip's numbers by dotted name, as `chip_params` asks for them."""
    out: dict[str, float] = {}

    def visit(value: Any, prefix: str) -> None:
        for f in dataclasses.fields(value):
            item = getattr(value, f.name)
            if dataclasses.is_dataclass(item):
                visit(item, f"{prefix}{f.name}.")
            elif isinstance(item, (int, float)):
                out[prefix + f.name] = item
        for derived in value.DERIVED:
            out[prefix + derived] = getattr(value, derived)

    visit(chip, "")
    return out


if __name__ == "__main__":
    sys.stdout.write(tables())
