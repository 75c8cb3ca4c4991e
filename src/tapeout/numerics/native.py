"""Prints the functions as C++: tables, and one template a function over a backend's lane type.

`python -m tapeout.numerics.native > functions_tables.inc` (the build runs this; needs NumPy only).
The text is included inside `namespace tapeout::math`. A backend `B` gives the types F, I, M and one
static function for each operation of `micro.OPERATIONS`; shifts take their count as a template
argument, `table` the array and its length.
"""

from tapeout.numerics.formats import Format
from tapeout.numerics.functions import Function, program
from tapeout.numerics.micro import OPERATIONS, MicroOp, MicroProgram
from tapeout.numerics.tables import TABLES

_TYPES = {"f": "F", "i": "I", "m": "M"}


def _expression(op: MicroOp) -> str:
    arguments = ", ".join(f"v{i}" for i in op.arguments)
    if op.name in ("const_f", "const_i"):
        return f"B::{op.name}(0x{op.immediate:08X}u)"
    if op.name in ("shl", "shr", "sar"):
        return f"B::template {op.name}<{op.immediate}>({arguments})"
    if op.name == "table":
        return f"B::template table<{len(TABLES[op.table])}>(kTable{op.table}, {arguments})"
    return f"B::{op.name}({arguments})"


def _function(program_: MicroProgram) -> str:
    lines = [
        "template <class B>",
        f"inline typename B::F fn_{program_.name}(const typename B::F input) {{",
    ]
    for i, op in enumerate(program_.operations):
        kind = OPERATIONS[op.name][1]
        value = "input" if op.name == "input" else _expression(op)
        lines.append(f"  const typename B::{_TYPES[kind]} v{i} = {value};")
    return "\n".join([*lines, f"  return v{len(program_.operations) - 1};", "}"])


def _table(name: str, entries: tuple[int, ...]) -> str:
    values = ", ".join(f"0x{e:08X}u" for e in entries)
    return (
        f"alignas(64) static constexpr std::uint32_t kTable{name}[{len(entries)}] = {{\n"
        f"    {values}}};"
    )


def native_tables() -> str:
    """The C++ text: enums of functions and formats, tables, functions, and an X-macro over them."""
    functions = ", ".join(f"{f.name} = {f.value}" for f in Function)
    formats = ", ".join(f"{f.name} = {f.value}" for f in Format)
    entries = " ".join(f"X({f.name}, {f.name.lower()})" for f in Function)
    return "\n\n".join(
        [
            "// Written by tapeout.numerics.native from the Python definition: do not edit.",
            f"enum class Function : int {{ {functions} }};",
            f"inline constexpr int kFunctionCount = {len(Function)};",
            f"#define TAPEOUT_FUNCTIONS(X) {entries}",
            f"enum class Format : int {{ {formats} }};",
            *(_table(name, entries) for name, entries in TABLES.items()),
            *(_function(program(f)) for f in Function),
            "",
        ]
    )


if __name__ == "__main__":
    print(native_tables(), end="")
