"""The instruction set: every instruction once, as a class.

`isa.mxu`, `isa.vpu`, `isa.dma`, `isa.seq` hold the classes; `isa.program.Program` holds a compiled
program; `isa.interp` is the slow target that defines what a program means.
"""

from . import dma, mxu, seq, vpu
from .fields import Addr, Count, EncodingError, HbmAddr, Kind, Operand
from .instruction import Fault, HardwareError, Instruction, Resolved, When, decode
from .program import Program, Segment, Source

__all__ = [
    "Addr",
    "Count",
    "EncodingError",
    "Fault",
    "HardwareError",
    "HbmAddr",
    "Instruction",
    "Kind",
    "Operand",
    "Program",
    "Resolved",
    "Segment",
    "Source",
    "When",
    "decode",
    "dma",
    "mxu",
    "seq",
    "vpu",
]
