"""What is written beside the Verilog: the register map in three forms, and the guide."""

import json
from collections.abc import Mapping

from tapeout.rtl.ram import RamShape

from . import axi
from .registers import BASE_STEP, BASES, QUEUE_STEP, QUEUES, Register, RegisterMap
from .top import CONTROL_PREFIX, TOP, Top, beat_bytes, port_prefix


def map_markdown(registers: RegisterMap) -> str:
    """The map as a table, one row a register."""
    lines = [
        f"# Registers of {registers.chip.name}",
        "",
        "32 bits each, little endian, on the AXI4-Lite port. *ro* is read, *rw* written while no",
        "program runs or, where it says so, at any time; a 1 written to *wo* is an order, to",
        "*rw1c* it clears the bit. Other addresses, and writes that are not allowed, are answered",
        "with SLVERR.",
        "",
        "| offset | name | access | bits | meaning |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for r in registers.registers:
        for number, f in enumerate(r.fields):
            bits = f"{f.low + f.width - 1}:{f.low}" if f.width > 1 else f"{f.low}"
            name = f.name if len(r.fields) > 1 else ""
            head = f"0x{r.offset:03x} | {r.name} | {r.access}" if not number else " | |"
            what = f"{name}: {f.doc}" if name else f.doc
            lines.append(f"| {head} | {bits} | {what}{_constant(r)} |")
    return "\n".join([*lines, ""])


def _constant(register: Register) -> str:
    return "" if register.constant is None else f" (0x{register.constant:x})"


def map_json(registers: RegisterMap) -> str:
    """The map for programs."""
    found = [
        {
            "name": r.name,
            "offset": r.offset,
            "access": r.access.value,
            "constant": r.constant,
            "description": r.doc,
            "fields": [
                {"name": f.name, "low": f.low, "width": f.width, "description": f.doc}
                for f in r.fields
            ],
        }
        for r in registers.registers
    ]
    return json.dumps({"chip": registers.chip.name, "registers": found}, indent=2) + "\n"


def c_header(registers: RegisterMap) -> str:
    """Offsets and masks as C macros."""
    lines = [f"/* Registers of {registers.chip.name}. */", "#ifndef TAPEOUT_REGISTERS_H",
             "#define TAPEOUT_REGISTERS_H", ""]  # fmt: skip
    for r in registers.registers:
        lines.append(f"#define TAPEOUT_{r.name} 0x{r.offset:03x}u")
        for f in r.fields if len(r.fields) > 1 else ():
            name = f"TAPEOUT_{r.name}_{f.name.upper()}"
            lines += [
                f"#define {name}_SHIFT {f.low}",
                f"#define {name}_MASK 0x{((1 << f.width) - 1) << f.low:x}u",
            ]
    lines += [
        "",
        f"#define TAPEOUT_QUEUE(q) (0x{QUEUES:x}u + 0x{QUEUE_STEP:x}u * (q)) /* Q<q>_CODE_LOW */",
        f"#define TAPEOUT_BASE(b) (0x{BASES:x}u + 0x{BASE_STEP:x}u * (b)) /* B<b>_ADDRESS_LOW */",
        "",
        "#endif",
        "",
    ]
    return "\n".join(lines)


def guide(top: Top, memories: Mapping[RamShape, int]) -> str:
    """How to build the chip into a system."""
    chip = top.chip
    masters = "\n".join(
        f"| `{port_prefix(q)}*` | {name} | "
        f"{'AR, R, AW, W, B' if name.startswith('dma') else 'AR, R'} |"
        for q, name in enumerate(chip.queue_names)
    )
    macros = "\n".join(
        f"| `{shape.name}` | {count} | {shape.depth} | {shape.lanes} x {shape.element_bits} | "
        f"{shape.reads} | {shape.writes} |"
        for shape, count in memories.items()
    )
    return f"""\
# {chip.name}: {chip.description}

`{TOP}` is one core with its ports. `files.f` lists all Verilog (IEEE 1364-2005);
`chip.toml` is the chip it was made from, `registers.md` the register map.

    verilator --lint-only -f files.f --top-module {TOP}

## Clock and reset

One clock, `clk` ({chip.clock_ghz:g} GHz in the chip file); all ports belong to it. `rst` is
synchronous and active high: one cycle is enough, with all AXI ports of the system in reset too.

## Ports

| port | queue | channels |
|---|---|---|
{masters}

AXI4 masters, {8 * beat_bytes(chip)} bits wide, addresses of {axi.ADDRESS_BITS} bits, IDs of
{axi.ID_BITS}. Bursts are INCR, at most {_longest(top)} beats, and cross no multiple of
{chip.hbm.interleave_bytes} bytes. A port has several reads under way, of IDs 0 (scalar loads, 4
bytes), 1 (instructions) and 2 (DMA), and writes of ID 0. Answers may come at any time and, between
IDs, in any order. `rready` and `bready` are always set. All masters see one memory; a write that
has been answered is seen by every read that begins after.

`{CONTROL_PREFIX}*` is an AXI4-Lite slave of 32 bits with 4 KiB of registers; `irq` is a level.

## Running a program

1. Write each queue's code to memory at a multiple of 4096, up to a multiple of
   {chip.seq.fetch_line_instructions * 64} bytes: whole lines are fetched.
2. Write `Q<q>_CODE_LOW`, `_HIGH` and `Q<q>_COUNT` of every queue, 0 instructions for one without
   code, and the five registers of each base that the program names.
3. Write `IRQ_ENABLE`, then 1 to `CONTROL`.
4. At the interrupt, read `STATUS` (and `FAULT_PC`), write back what `IRQ_STATUS` says, and start
   the next program: the core is made as new before. `CONTROL` = 2 stops a program.

An error answer from memory ends the program with `STATUS.bus_error`.

## Memory macros

`memories/` holds a model of each; put wrappers around a foundry's memories in their place. A read
that is enabled in a cycle gives its row in the next one, as it was before that cycle's writes;
`write<i>_mask` has a bit for each lane.

| module | count | rows | lanes x bits | read ports | write ports |
|---|---|---|---|---|---|
{macros}
"""


def _longest(top: Top) -> int:
    chip = top.chip
    return max(
        chip.hbm.interleave_bytes // beat_bytes(chip),
        min(chip.seq.fetch_line_instructions, chip.hbm.interleave_bytes // 64),
        1,
    )
