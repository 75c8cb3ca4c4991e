"""The base of every instruction: header, registry, encoding.

A class per instruction holds all there is to know of it: fields (encoding), `execute` (semantics on
a `Core`, in NumPy), `occupancy` and `latency` (closed forms in cycles), and its docstring (the page
of the ISA reference). `occupancy` and `latency` are written in the subset of Python that
`tapeout.isa.native` translates to C++: parameters, arithmetic, comparisons, conditional
expressions, assignments, `if`, `return`, and `ceil_div`, `gcd`, `max`, `min`.
"""

# ruff: noqa: RUF009  (`declare` is `dataclasses.field` with a bit layout)

import dataclasses
import enum
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from .fields import (
    WORD_BITS,
    WORD_BYTES,
    Addr,
    Bits,
    Count,
    EncodingError,
    HbmAddr,
    Operand,
    declare,
    decode_field,
    encode_field,
    width_of,
)


class When(enum.IntEnum):
    """On which iteration of the innermost loop a wait, a post or an accumulation happens."""

    ALWAYS = 0
    FIRST = 1
    LAST = 2
    NOT_FIRST = 3


class Fault(enum.IntEnum):
    """Hardware errors: `sim` and `rtl` stop at the same instruction with the same code."""

    NONE = 0
    ILLEGAL_INSTRUCTION = 1  # unknown opcode, reserved bits set, not an instruction of this queue
    ILLEGAL_OPERAND = 2  # a field whose value the chip cannot run
    SPM_BOUNDS = 3
    VMEM_BOUNDS = 4
    ACC_BOUNDS = 5
    HBM_BOUNDS = 6  # outside its base's limit
    HBM_PROTECTION = 7  # a write to a read-only base
    TOKEN_OVERFLOW = 8
    TOKEN_LEFTOVER = 9  # halted with tokens that nobody took
    LOOP_DEPTH = 10
    TRAP = 11
    DEADLOCK = 12


class HardwareError(Exception):
    """An instruction that the hardware refuses: raised by `execute` with its code."""

    def __init__(self, fault: Fault, rule: str) -> None:
        super().__init__(rule)
        self.fault = fault


HEADER = ("waits", "posts", "drain", "wait_when", "post_when")
BODY_BIT = 64
REGISTRY: dict[int, type["Instruction"]] = {}
BY_MNEMONIC: dict[str, type["Instruction"]] = {}


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """Header common to all instructions."""

    mnemonic: ClassVar[str] = ""
    opcode: ClassVar[int] = -1
    engine: ClassVar[str] = ""  # "mxu", "vpu", "dma" or "seq" (runs on every queue)
    check_cycles: ClassVar[int] = 1  # after the cycle that reads its registers, before its issue
    faults: ClassVar[tuple[Fault, ...]] = ()  # that its execution can raise
    example: ClassVar[str] = ""  # a line of assembly

    waits: int = declare(Bits(24), 0)  # mask over the queue's incoming channels
    posts: int = declare(Bits(24), 0)  # mask over the queue's outgoing channels
    drain: bool = declare(Bits(1), False)
    wait_when: When = declare(Bits(2, enum=When), When.ALWAYS)
    post_when: When = declare(Bits(2, enum=When), When.ALWAYS)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.opcode < 0:
            return
        if cls.opcode in REGISTRY:
            raise TypeError(f"opcode {cls.opcode} is taken by {REGISTRY[cls.opcode].mnemonic}")
        REGISTRY[cls.opcode] = cls
        BY_MNEMONIC[cls.mnemonic] = cls

    @classmethod
    @cache
    def layout(cls) -> list[tuple[str, int, Any]]:
        """(name, first bit, spec) of every field; the opcode is bits 0..7, the body is from 64."""
        rows, bit = [], 8
        for f in dataclasses.fields(cls):
            if f.name not in HEADER:
                bit = max(bit, BODY_BIT)
            rows.append((f.name, bit, f.metadata["spec"]))
            bit += width_of(f.metadata["spec"])
        if bit > WORD_BITS:
            raise TypeError(f"{cls.mnemonic} takes {bit} bits of {WORD_BITS}")
        return rows

    def encode(self) -> bytes:
        """The instruction's 64 bytes, little-endian."""
        word = self.opcode
        for name, bit, spec in self.layout():
            word |= encode_field(f"{self.mnemonic}.{name}", spec, getattr(self, name)) << bit
        return word.to_bytes(WORD_BYTES, "little")

    @staticmethod
    def occupancy(chip: Any, i: Any) -> int:
        """Cycles until the engine's port takes the next instruction."""
        return 1

    @staticmethod
    def latency(chip: Any, i: Any, occupancy: int) -> int:
        """Cycles from issue to the last write."""
        return 1

    @staticmethod
    def execute(core: Any, i: Any) -> None:
        """What the instruction does to a core, given its resolved fields."""

    def __str__(self) -> str:
        from .assembler import format_instruction

        return format_instruction(self)


def decode(word: bytes) -> Instruction:
    """The instruction in 64 bytes.

    Raises:
        EncodingError: unknown opcode, reserved bits set, or a field outside its enumeration.
    """
    value = int.from_bytes(word, "little")
    cls = REGISTRY.get(value & 255)
    if cls is None:
        raise EncodingError(f"opcode {value & 255} is not an instruction")
    used, parts = 255, {}
    for name, bit, spec in cls.layout():
        mask = (1 << width_of(spec)) - 1
        parts[name] = decode_field(f"{cls.mnemonic}.{name}", spec, (value >> bit) & mask)
        used |= mask << bit
    if value & ~used:
        raise EncodingError(f"reserved bits of {cls.mnemonic} are set")
    for f in dataclasses.fields(cls):
        if f.type is bool:
            parts[f.name] = bool(parts[f.name])
    return cls(**parts)


def register_numbers(instruction: Instruction) -> list[int]:
    """The numbers of all registers that an instruction names, 0 where it names none."""
    numbers = []
    for name, _, spec in instruction.layout():
        value = getattr(instruction, name)
        if not isinstance(spec, Bits):
            numbers.append(value.reg)
        elif spec.register:
            numbers.append(value)
    return numbers


@cache
def _register_fields(opcode: int) -> list[tuple[str, Any]]:
    """(name, spec) of the fields to which a register is added."""
    layout = REGISTRY[opcode].layout()
    names = {name for name, _, _ in layout}
    return [
        (name, spec)
        for name, _, spec in layout
        if not isinstance(spec, Bits) or f"{name}_reg" in names
    ]


class Resolved:
    """An instruction whose registers have been read: what `execute` and the closed forms take.

    `Addr` and `Count` fields are integers, `HbmAddr` and `Operand` have their register added in,
    and a field with a companion `<name>_reg` has that register added.
    """

    def __init__(self, instruction: Instruction, registers: Any) -> None:
        self.mnemonic = instruction.mnemonic
        resolved = self.__dict__
        resolved.update(instruction.__dict__)
        for name, spec in _register_fields(instruction.opcode):
            value = resolved[name]
            if spec is Addr or spec is Count:
                resolved[name] = value.imm + registers[value.reg]
            elif spec is HbmAddr:
                resolved[name] = HbmAddr(value.base, value.offset + registers[value.reg])
            elif spec is not Operand:
                resolved[name] = value + registers[resolved[f"{name}_reg"]]
            elif value.reg:
                imm = value.imm + registers[value.reg]
                resolved[name] = dataclasses.replace(value, imm=imm, reg=0)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no field {name}")
