"""What random programs have exercised: variants of instructions, and what happens around each.

A cell counts instructions of one variant (an instruction with a format, a mode, a function, ...) in
one circumstance (a token awaited, a drain, a register in an address, ...). `universe` lists all
variants that the instruction set has, so that a cell nobody reached shows as zero.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tapeout.chip import Chip
from tapeout.isa import dma, mxu, seq, vpu
from tapeout.isa.fields import Bits, Kind
from tapeout.isa.instruction import REGISTRY, Instruction, When, register_numbers
from tapeout.isa.program import Program

CIRCUMSTANCES = (
    "plain", "waits", "posts", "conditional", "drain", "register", "in a loop", "behind a transfer",
)  # fmt: skip

_OPERANDS = ("a", "b", "c", "d")
_ROWS = (Kind.SPM_BF16, Kind.SPM_FP32, Kind.VMEM, Kind.ACC)


def universe(*chips: Chip) -> list[str]:
    """All variants that one of the chips has, in order."""
    formats = {f for chip in chips for f in dma.formats_of(chip)}
    return [
        *(f"seq.{name}" for name in ("halt", "load", "loop", "nop", "set")),
        *(f"seq.alu {op.name.lower()}" for op in seq.Alu),
        "mxu.load straight", "mxu.load transposed", "mxu.load part",
        *(f"mxu.matmul {mode.name.lower()}" for mode in mxu.Accumulate),
        "mxu.matmul outer", "mxu.matmul stride", "mxu.unload",
        *(f"vpu.map combine {c.name.lower()}" for c in vpu.Combine),
        *(f"vpu.map function {f.name.lower()}" for f in vpu.Function),
        *(f"vpu.map combine2 {c.name.lower()}" for c in vpu.Combine2),
        *(f"vpu.map mask {k.name.lower()}" for k in vpu.Mask),
        *(f"vpu.map reduce {r.name.lower()}" for r in vpu.Reduce),
        *(f"vpu.map reduce {r.name.lower()} accumulate"
          for r in vpu.Reduce if r not in (vpu.Reduce.NONE, vpu.Reduce.ARGMAX)),
        *(f"vpu.map {o} {k.name.lower()}" for o in _OPERANDS
          for k in (*_ROWS, Kind.ROW_SCALAR, Kind.IMMEDIATE)
          if (o, k) != ("a", Kind.ROW_SCALAR)),
        *(f"vpu.map dst {k.name.lower()}" for k in (Kind.NONE, *_ROWS)),
        "vpu.map roll", "vpu.map xor", "vpu.map window", "vpu.map tiles", "vpu.map one row",
        *(f"dma.load {f.name.lower()} spm" for f in dma.HbmFormat if f in formats),
        *(f"dma.{verb} {f.name.lower()} {m.name.lower()}{how}"
          for verb in ("load", "store")
          for f in (dma.HbmFormat.BF16, dma.HbmFormat.FP32)
          for m in dma.Memory
          for how in ("", " indexed")
          if (verb, m, how) != ("load", dma.Memory.SPM, "")),
    ]  # fmt: skip


class Coverage:
    """Counts of cells: `cells[variant, circumstance]`."""

    def __init__(self) -> None:
        self.cells: Counter[tuple[str, str]] = Counter()

    def add(self, program: Program, chip: Chip) -> None:
        """Counts the instructions of a program, each once however often it runs."""
        for queue, stream in program.streams.items():
            loops: list[int] = []  # ends of the bodies around
            transfers = False
            for pc, instruction in enumerate(stream):
                loops = [end for end in loops if end > pc]
                around = list(_circumstances(instruction))
                around += ["in a loop"] * bool(loops) + ["behind a transfer"] * transfers
                for variant in _variants(instruction, chip):
                    self.cells.update((variant, c) for c in around or ["plain"])
                if isinstance(instruction, seq.Loop):
                    loops.append(pc + 1 + instruction.length)
                transfers = queue.startswith("dma") and instruction.engine == "dma"

    def missing(self, *chips: Chip) -> list[tuple[str, str]]:
        """Cells that can happen on one of the chips and have not."""
        return [
            (variant, circumstance)
            for variant in universe(*chips)
            for circumstance in CIRCUMSTANCES
            if not self.cells[variant, circumstance] and not impossible(variant, circumstance)
        ]


def impossible(variant: str, circumstance: str) -> str:
    """Why a cell cannot be reached; empty where it can."""
    if circumstance == "behind a transfer" and not variant.startswith(("dma.", "seq.")):
        return "not an instruction of a dma queue"
    if circumstance == "register" and not _takes_register(variant):
        return "takes no register"
    if variant.startswith(("seq.set", "seq.load", "seq.alu")) and circumstance == "plain":
        return "writes a register, and so never names none"
    if variant == "seq.halt" and circumstance == "in a loop":
        return "a stream ends with it"
    return ""


def _takes_register(variant: str) -> bool:
    cls = next(c for c in REGISTRY.values() if variant.split()[0] == c.mnemonic)
    return any(not isinstance(s, Bits) or s.register for _, _, s in cls.layout())


def _circumstances(instruction: Instruction) -> Iterator[str]:
    if instruction.waits:
        yield "waits"
    if instruction.posts:
        yield "posts"
    if (instruction.waits and instruction.wait_when != When.ALWAYS) or (
        instruction.posts and instruction.post_when != When.ALWAYS
    ):
        yield "conditional"
    if instruction.drain:
        yield "drain"
    if any(register_numbers(instruction)):
        yield "register"


def _variants(i: Any, chip: Chip) -> Iterator[str]:
    name = i.mnemonic
    match i:
        case seq.AluOp():
            yield f"{name} {i.op.name.lower()}"
        case mxu.Load():
            yield f"{name} {'transposed' if i.transposed else 'straight'}"
            if (i.k.imm, i.n.imm) != (chip.mxu.rows, chip.mxu.cols) and not (i.k.reg or i.n.reg):
                yield f"{name} part"
        case mxu.Matmul():
            yield f"{name} {i.accumulate.name.lower()}"
            if i.outer > 1:
                yield f"{name} outer"
            if i.stride > 1:
                yield f"{name} stride"
        case vpu.Map():
            yield from _map_variants(i)
        case dma.Load() | dma.Store():
            how = " indexed" if i.indexed else ""
            yield f"{name} {i.format.name.lower()} {i.memory.name.lower()}{how}"
        case _:
            yield name


def _map_variants(i: vpu.Map) -> Iterator[str]:
    for kind in ("combine", "function", "combine2", "mask", "reduce"):
        yield f"vpu.map {kind} {getattr(i, kind).name.lower()}"
    if i.reduce_accumulate:
        yield f"vpu.map reduce {i.reduce.name.lower()} accumulate"
    for operand in (*_OPERANDS, "dst"):
        kind = getattr(i, operand).kind
        if kind != Kind.NONE or operand == "dst":
            yield f"vpu.map {operand} {kind.name.lower()}"
    conditions = {
        "roll": i.roll, "xor": i.xor, "window": i.lane_begin or i.lane_end,
        "tiles": i.tiles > 1, "one row": i.rows.imm == 1 and not i.rows.reg,
    }  # fmt: skip
    yield from (f"vpu.map {what}" for what, holds in conditions.items() if holds)
