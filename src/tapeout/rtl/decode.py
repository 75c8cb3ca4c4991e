"""Fields of an instruction word as hardware sees them, and which words a queue refuses.

Contract: the same words are refused as by `tapeout.isa.instruction.decode` and the simulator's
loader: `Refusal.instruction` is `Fault.ILLEGAL_INSTRUCTION`, `Refusal.operand` is
`Fault.ILLEGAL_OPERAND`, judged in this order.
"""

from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from typing import Any

from amaranth.hdl import Array, C, Cat, Mux, Value

from tapeout.chip import Chip
from tapeout.isa.fields import WORD_BITS, Bits, Kind, Operand, width_of
from tapeout.isa.instruction import REGISTRY, Instruction

OPCODE_BITS = 8


def field(word: Value, cls: type[Instruction], name: str, part: str = "") -> Value:
    """The bits of a field, or of one part of a composite one; signed where the field is."""
    bit, spec = next((bit, spec) for n, bit, spec in cls.layout() if n == name)
    if part:
        for other, bits in spec.LAYOUT.items():
            if other == part:
                spec = bits
                break
            bit += bits.width
    value = word[bit : bit + width_of(spec)]
    return value.as_signed() if isinstance(spec, Bits) and spec.signed else value


def is_a(word: Value, cls: type[Instruction]) -> Value:
    """Whether the opcode is that of `cls`."""
    return word[:OPCODE_BITS] == cls.opcode


def any_of(conditions: list[Value]) -> Value:
    """True where one condition is; false where there is none."""
    return reduce(or_, conditions, C(0, 1))


def word_of(value: Value, index: Value, bits: int) -> Value:
    """Word `index` of so many bits: what `word_select` is, as a choice of words.

    Of a part, Amaranth makes every bit depend on every bit, which wide memories cannot afford.
    """
    return Array([value[at : at + bits] for at in range(0, len(value), bits)])[index]


@dataclass(frozen=True)
class Refusal:
    """Why a word cannot run on a queue; both are one bit."""

    instruction: Value
    operand: Value


def refusal(word: Value, chip: Chip, queue: str) -> Refusal:
    """What a decoder finds wrong with `word` on `queue`."""
    engine = "dma" if queue.startswith("dma") else queue
    known, operands = [], []
    for cls in REGISTRY.values():
        if cls.engine in (engine, "seq"):
            known.append(is_a(word, cls) & _well_formed(word, cls))
            operands.append(is_a(word, cls) & _bad_registers(word, cls, chip))
    channels = (chip.queue_count - 1) * chip.tokens.channels_per_pair
    masks = [field(word, Instruction, name)[channels:] for name in ("waits", "posts")]
    return Refusal(~any_of(known), any_of([*operands, *(m.any() for m in masks if len(m))]))


def _well_formed(word: Value, cls: type[Instruction]) -> Value:
    """Reserved bits are zero and enumerations hold members."""
    used = (1 << OPCODE_BITS) - 1
    rules = []
    for _, bit, spec in cls.layout():
        used |= ((1 << width_of(spec)) - 1) << bit
        rules += _members(word, bit, spec)
    reserved = [word[bit] for bit in range(WORD_BITS) if not used >> bit & 1]
    return ~Cat(reserved).any() & reduce(and_, rules, C(1, 1))


def _members(word: Value, bit: int, spec: Any) -> list[Value]:
    if spec is Operand:
        kind, rest = word[bit : bit + 4], word[bit + 4 : bit + width_of(spec)]
        unused = rest[32:]  # beside an immediate
        return [
            kind < len(Kind),
            ~((kind == Kind.IMMEDIATE) & unused.any()),
            ~((kind == Kind.NONE) & rest.any()),
        ]
    if not isinstance(spec, Bits) or spec.enum is None or len(spec.enum) == 1 << spec.width:
        return []
    value = word[bit : bit + spec.width]
    return [any_of([value == int(member) for member in spec.enum])]


def _bad_registers(word: Value, cls: type[Instruction], chip: Chip) -> Value:
    """A register that the chip has not, or a write to r0."""
    bad = []
    for name, _, spec in cls.layout():
        if isinstance(spec, Bits):
            if not spec.register:
                continue
            number = field(word, cls, name)
        else:
            number = field(word, cls, name, "reg")
            if spec is Operand:  # an immediate lies over it
                is_immediate = field(word, cls, name, "kind") == Kind.IMMEDIATE
                number = Mux(is_immediate, 0, number)
        if chip.seq.registers < 32:
            bad.append(number >= chip.seq.registers)
        if cls.engine == "seq" and name == "dst":
            bad.append(number == 0)
    return any_of(bad)
