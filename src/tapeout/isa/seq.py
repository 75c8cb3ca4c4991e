"""Sequencer instructions: they run on every queue and touch only its registers and its flow."""

# ruff: noqa: RUF009  (`declare` is `dataclasses.field` with a bit layout)

import enum
from dataclasses import dataclass

import numpy as np

from .fields import REGISTER, Bits, Count, HbmAddr, declare
from .instruction import Fault, HardwareError, Instruction

REGISTER_BITS = 48


def wrap_register(value: int) -> int:
    """A register's value: 48 bits, two's complement."""
    value &= (1 << REGISTER_BITS) - 1
    return value - (1 << REGISTER_BITS) if value >> (REGISTER_BITS - 1) else value


class Alu(enum.IntEnum):
    """Operations of `seq.alu`; x is r[a], y is r[b] + imm."""

    ADD = 0  # x + y
    SUB = 1  # x - y
    MUL = 2  # x * y
    SHL = 3  # x << (y & 63)
    SHR = 4  # x >> (y & 63), arithmetic
    AND = 5  # x & y
    MIN = 6
    MAX = 7
    WRAP = 8  # x if x < y else x - y: a ring's next slot


def alu(op: Alu, x: int, y: int) -> int:
    """The result of `seq.alu`, wrapped to 48 bits."""
    if op == Alu.ADD:
        r = x + y
    elif op == Alu.SUB:
        r = x - y
    elif op == Alu.MUL:
        r = x * y
    elif op == Alu.SHL:
        r = x << (y & 63)
    elif op == Alu.SHR:
        r = x >> (y & 63)
    elif op == Alu.AND:
        r = x & y
    elif op == Alu.MIN:
        r = min(x, y)
    elif op == Alu.MAX:
        r = max(x, y)
    else:
        r = x if x < y else x - y
    return wrap_register(r)


@dataclass(frozen=True, kw_only=True)
class Nop(Instruction):
    """Does nothing but wait, drain and post: the carrier of tokens that no other instruction
    carries.

    With `drain`, it is the fence of its queue.
    """

    mnemonic = "seq.nop"
    opcode = 1
    engine = "seq"
    example = "seq.nop waits=dma0.0,vpu.1 posts=dma1.0 drain"


@dataclass(frozen=True, kw_only=True)
class Set(Instruction):
    """r[dst] = value.

    Writing r0 is an illegal operand.
    """

    mnemonic = "seq.set"
    opcode = 2
    engine = "seq"
    faults = (Fault.ILLEGAL_OPERAND,)
    example = "seq.set dst=r1 value=4096"

    dst: int = declare(REGISTER)
    value: int = declare(Bits(48, signed=True), 0)

    @staticmethod
    def execute(core, i) -> None:
        core.registers[i.dst] = i.value


@dataclass(frozen=True, kw_only=True)
class AluOp(Instruction):
    """r[dst] = op(r[a], r[b] + imm), wrapped to 48 bits."""

    mnemonic = "seq.alu"
    opcode = 3
    engine = "seq"
    faults = (Fault.ILLEGAL_OPERAND,)
    example = "seq.alu op=wrap dst=r1 a=r1 imm=8192"

    op: Alu = declare(Bits(4, enum=Alu), Alu.ADD)
    dst: int = declare(REGISTER)
    a: int = declare(REGISTER, 0)
    b: int = declare(REGISTER, 0)
    imm: int = declare(Bits(48, signed=True), 0)

    @staticmethod
    def execute(core, i) -> None:
        core.registers[i.dst] = alu(i.op, core.registers[i.a], core.registers[i.b] + i.imm)


@dataclass(frozen=True, kw_only=True)
class Load(Instruction):
    """r[dst] = the int32 at an HBM address, sign-extended.

    The address is a multiple of 4, else an illegal operand (bases are multiples of 4). The queue
    holds until the value has come; the memory system times it.
    """

    mnemonic = "seq.load"
    opcode = 4
    engine = "seq"
    faults = (
        Fault.ILLEGAL_OPERAND,
        Fault.HBM_BOUNDS,
    )
    example = "seq.load dst=r4 src=b3[16+r2] waits=dma0.0"

    dst: int = declare(REGISTER)
    src: HbmAddr = declare(HbmAddr)

    @staticmethod
    def execute(core, i) -> None:
        if i.src.offset % 4:
            raise HardwareError(
                Fault.ILLEGAL_OPERAND,
                f"seq.load takes an address that is a multiple of 4, not {i.src}",
            )
        raw = core.hbm.read(i.src.base, np.array([i.src.offset]), 4)
        core.registers[i.dst] = int(raw.view("<i4")[0, 0])


@dataclass(frozen=True, kw_only=True)
class Loop(Instruction):
    """Runs the next `length` instructions `count` times; none if count is zero or less.

    Loops nest up to `seq.loop_depth`. Jumping back costs no cycle. A body must not be empty and
    must end inside the enclosing body.
    """

    mnemonic = "seq.loop"
    opcode = 5
    engine = "seq"
    faults = (
        Fault.ILLEGAL_OPERAND,
        Fault.LOOP_DEPTH,
    )
    example = "seq.loop count=r4 length=3"

    count: Count = declare(Count)
    length: int = declare(Bits(16))


@dataclass(frozen=True, kw_only=True)
class Trap(Instruction):
    """Stops the chip with `Fault.TRAP` and this code."""

    mnemonic = "seq.trap"
    opcode = 6
    engine = "seq"
    faults = (Fault.TRAP,)
    example = "seq.trap code=7"

    code: int = declare(Bits(16), 0)

    @staticmethod
    def execute(core, i) -> None:
        raise HardwareError(Fault.TRAP, f"seq.trap with code {i.code}")


@dataclass(frozen=True, kw_only=True)
class Halt(Instruction):
    """Ends the queue's program once all its instructions have retired.

    Tokens left in a channel when every queue has halted are `Fault.TOKEN_LEFTOVER`.
    """

    mnemonic = "seq.halt"
    opcode = 7
    engine = "seq"
    faults = (Fault.TOKEN_LEFTOVER,)
    example = "seq.halt"
