"""A bare core for tests of single instructions, and a one-call run for whole programs."""

from typing import Any

import numpy as np

from tapeout.chip import Chip, load
from tapeout.isa import Program, seq
from tapeout.isa.instruction import Fault, Instruction, Resolved
from tapeout.isa.interp import Core, Interp
from tapeout.isa.memory import HbmMemory, Log

TINY = load("tiny")


def bare_core(chip: Chip = TINY, hbm: bytes = b"") -> Core:
    """A core whose base b0 is these bytes, writable."""
    log = Log()
    memory = HbmMemory(1 << 20, log)
    memory.grow(len(hbm))
    memory.data[: len(hbm)] = np.frombuffer(hbm, np.uint8)
    memory.bases = {0: (0, len(hbm), True)}
    core = Core(chip, memory, log)
    core.registers = [0] * chip.seq.registers
    return core


def execute(core: Core, instruction: Instruction, **registers: int) -> None:
    """Runs one instruction with registers r1=..., ..."""
    values = [registers.get(f"r{n}", 0) for n in range(core.chip.seq.registers)]
    type(instruction).execute(core, Resolved(instruction, values))


def run(
    chip: Chip,
    streams: dict[str, list[Instruction]],
    hbm: bytes = bytes(4096),
    writable: bool = True,
    checks: bool = True,
    **options: Any,
) -> Interp:
    """Runs a program whose base b0 is these bytes; each stream gets its `seq.halt`."""
    target = Interp(chip, checks=checks, hbm_bytes=1 << 22)
    address = target.allocate(len(hbm))
    target.write(address, hbm)
    program = Program(chip.name, {q: [*s, seq.Halt()] for q, s in streams.items()})
    target.run(target.load(program, {0: (address, len(hbm), writable)}), **options)
    return target


def fill(memory: Any, rows: Any, values: np.ndarray) -> None:
    """Sets whole rows and marks them written."""
    memory.values[rows] = values
    memory.written[rows] = True


__all__ = ["TINY", "Fault", "bare_core", "execute", "fill", "run"]
