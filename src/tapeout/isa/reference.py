"""Writes the ISA reference from the instruction classes: `python -m tapeout.isa.reference OUTDIR`.

One Markdown (MyST) page an engine and an index. Everything on a page comes from the class that
targets run and encode: nothing is written twice, and the same sources give the same bytes.
"""

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

from . import dma, forms, mxu, seq, vpu
from .fields import Addr, Bits, Count, HbmAddr, Kind, Operand, width_of
from .instruction import HEADER, REGISTRY, Fault, Instruction, When

ENGINES = {
    "mxu": (mxu, "Matrix unit"),
    "vpu": (vpu, "Vector unit"),
    "dma": (dma, "DMA"),
    "seq": (seq, "Sequencer"),
}
LONGEST_SOURCE = 14  # lines of `execute` shown; longer ones are described by the docstring

FAULTS = {
    Fault.ILLEGAL_INSTRUCTION: "unknown opcode, reserved bits set, or not for this queue",
    Fault.ILLEGAL_OPERAND: "a value against the rules above, a register or channel the chip lacks",
    Fault.SPM_BOUNDS: "a row outside spm",
    Fault.VMEM_BOUNDS: "a row outside vmem",
    Fault.ACC_BOUNDS: "a row outside acc",
    Fault.HBM_BOUNDS: "bytes outside the base's segment, or a base without one",
    Fault.HBM_PROTECTION: "a write to a read-only segment",
    Fault.TOKEN_OVERFLOW: "a post that the channel's capacity may not hold",
    Fault.TOKEN_LEFTOVER: "tokens left in a channel when all queues have halted",
    Fault.LOOP_DEPTH: "loops nested deeper than `seq.loop_depth`",
    Fault.TRAP: "always",
    Fault.DEADLOCK: "every queue waits for a token",
}
SPECS: dict[Any, str] = {
    Addr: "`imm`, `imm+rN` or `rN`: a row",
    Count: "`imm`, `imm+rN` or `rN`: a count",
    HbmAddr: "`bB[offset+rN]`: a byte of base B",
    Operand: "`kind[imm+rN:tile_stride:row_stride]` or `#constant`",
}


def pages() -> dict[str, str]:
    """Page text by file name."""
    out = {"index.md": "\n".join(_index())}
    for engine in ENGINES:
        out[f"{engine}.md"] = "\n".join(_page(engine))
    return {name: text.rstrip() + "\n" for name, text in out.items()}


def write(directory: Path) -> list[Path]:
    """Writes all pages; files that are already right keep their time stamps."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages().items():
        path = directory / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


# --- pages ---------------------------------------------------------------------------------------


def _index() -> Iterator[str]:
    yield from (
        "# Instruction set",
        "",
        "Every instruction is a word of 64 bytes, little-endian. Each queue runs its own stream; "
        "the queues meet only through tokens. `seq` instructions run on every queue.",
        "",
        "| mnemonic | opcode | what it does |",
        "|---|---|---|",
    )
    for opcode, cls in sorted(REGISTRY.items()):
        yield f"| [{cls.mnemonic}](#{_anchor(cls)}) | {opcode} | {_escape(_summary(cls))} |"
    yield from ("", "## Header", "", "All instructions share these fields.", "")
    yield from _encoding([row for row in Instruction.layout() if row[0] in HEADER], Instruction)
    yield from ("", "Waits and posts happen always, or by the innermost loop's iteration:", "")
    yield from _members(When)
    yield from (
        "",
        "## Operands",
        "",
        "| written | bits, from the least significant |",
        "|---|---|",
    )
    for spec, text in SPECS.items():
        parts = ", ".join(f"{part} {bits.width}" for part, bits in spec.LAYOUT.items())
        yield f"| {text} | {parts} |"
    yield from ("", _prose(Operand), "", "Kinds of vpu operands:", "")
    yield from _members(Kind)
    yield from ("", "## Faults", "", "| code | fault | when |", "|---|---|---|")
    for fault, text in FAULTS.items():
        yield f"| {fault.value} | `{fault.name.lower()}` | {text} |"
    yield from (
        "",
        "## Cycles",
        "",
        "Closed forms use these functions, rounding up as they say:",
        "",
    )
    yield from ("```python", inspect.getsource(forms).split('"""', 2)[2].strip(), "```", "")
    yield from ("```{toctree}", ":hidden:", "", *ENGINES, "```")


def _page(engine: str) -> Iterator[str]:
    module, title = ENGINES[engine]
    yield from (f"# {title}", "", _prose(module), "")
    for _, cls in sorted(REGISTRY.items()):
        if cls.engine == engine:
            yield from _instruction(cls)
    enums = [
        e
        for e in vars(module).values()
        if inspect.isclass(e) and issubclass(e, IntEnum) and e.__module__ == module.__name__
    ]
    for enum in enums:
        yield from (f"## {enum.__name__}", "", _prose(enum), "")
        yield from _members(enum)
        yield ""


def _instruction(cls: type[Instruction]) -> Iterator[str]:
    summary, rest = _summary(cls), _prose(cls).partition("\n\n")[2]
    yield from (f"({_anchor(cls)})=", "", f"## {cls.mnemonic}", "", summary, "")
    yield from ("### Syntax", "", "```text", *_syntax(cls), "```", "")
    yield from ("### Encoding", "", f"Bits 0 to 7 hold the opcode, {cls.opcode}.", "")
    yield from _encoding([row for row in cls.layout() if row[0] not in HEADER], cls)
    yield from ("", "### Operation", "", rest or summary, "")
    source = textwrap.dedent(inspect.getsource(cls.execute))
    source = source.removeprefix("@staticmethod\n").rstrip()
    if "execute" in vars(cls) and source.count("\n") < LONGEST_SOURCE:
        yield from ("```python", source, "```", "")
    yield from ("### Timing", "", *_timing(cls), "", "### Errors", "")
    yield "A word that does not decode is `illegal_instruction`; posts can be `token_overflow`."
    if cls.faults:
        yield from ("", "| fault | when |", "|---|---|")
    for fault in cls.faults:
        yield f"| `{fault.name.lower()}` | {FAULTS[fault]} |"
    yield from ("", "### Example", "", "```text", cls.example, "```", "")


def _syntax(cls: type[Instruction]) -> Iterator[str]:
    words = []
    for f in dataclasses.fields(cls):
        if f.name in HEADER:
            continue
        word = f.name if f.type is bool else f"{f.name}={_value_word(f.metadata['spec'])}"
        words.append(word if f.default is dataclasses.MISSING else f"[{word}]")
    lines = textwrap.wrap(" ".join([cls.mnemonic, *words, "[header]"]), 92, break_on_hyphens=False)
    yield lines[0]
    yield from ("    " + line for line in lines[1:])


def _value_word(spec: Any) -> str:
    if isinstance(spec, Bits):
        if spec.enum is not None:
            return spec.enum.__name__.lower()
        return "rN" if spec.register else "integer"
    return {Addr: "address", Count: "count", HbmAddr: "hbm", Operand: "operand"}[spec]


def _encoding(rows: list[tuple[str, int, Any]], cls: type[Instruction]) -> Iterator[str]:
    if not rows:
        yield "No fields of its own."
        return
    yield from ("| bits | field | holds | default |", "|---|---|---|---|")
    for name, bit, spec in rows:
        default = cls.__dataclass_fields__[name].default
        text = "required" if default is dataclasses.MISSING else f"`{_default(spec, default)}`"
        last = bit + width_of(spec) - 1
        span = f"{bit}" if last == bit else f"{bit} to {last}"
        yield f"| {span} | `{name}` | {_holds(spec)} | {text} |"


def _holds(spec: Any) -> str:
    if not isinstance(spec, Bits):
        return SPECS[spec]
    if spec.enum is not None:
        return ", ".join(f"{m.value} {m.name.lower()}" for m in spec.enum)
    if spec.register:
        return "a register"
    return "a flag" if spec.width == 1 else f"{'signed' if spec.signed else 'unsigned'} integer"


def _default(spec: Any, value: Any) -> str:
    if isinstance(spec, Bits) and spec.enum is not None:
        return spec.enum(value).name.lower()
    return str(value if isinstance(value, (Addr, Count, HbmAddr, Operand)) else int(value))


def _timing(cls: type[Instruction]) -> Iterator[str]:
    yield f"Issues {1 + cls.check_cycles} cycles after it is read at the earliest."
    yield ""
    if cls.engine == "dma" or cls is seq.Load:
        yield "No closed form: the memory system times it (docs: timing)."
        return
    for name in ("occupancy", "latency"):
        function = getattr(cls, name)
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        body = [s for s in tree.body if not isinstance(s, ast.Expr)]
        if len(body) == 1 and isinstance(body[0], ast.Return):
            assert body[0].value is not None
            yield f"{name} = `{ast.unparse(body[0].value)}` cycles"
        else:
            yield from (f"{name}, in cycles:", "", "```python")
            yield from (ast.unparse(s) for s in body)
            yield "```"
        yield ""


def _members(enum: type[IntEnum]) -> Iterator[str]:
    notes = _comments(enum)
    yield from ("| value | name | meaning |", "|---|---|---|")
    for member in enum:
        note = _escape(notes.get(member.name, ""))
        yield f"| {member.value} | `{member.name.lower()}` | {note} |"


def _comments(enum: type[IntEnum]) -> dict[str, str]:
    """The comment behind each member in the source."""
    out = {}
    for line in inspect.getsource(enum).splitlines():
        code, _, note = line.partition("#")
        out[code.split("=")[0].strip()] = note.strip()
    return out


def _prose(item: Any) -> str:
    return inspect.cleandoc(item.__doc__ or "")


def _summary(cls: type[Instruction]) -> str:
    return " ".join(_prose(cls).partition("\n\n")[0].split())


def _anchor(cls: type[Instruction]) -> str:
    return cls.mnemonic.replace(".", "-")


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tapeout.isa.reference OUTDIR")
    for path in write(Path(sys.argv[1])):
        print(path)
