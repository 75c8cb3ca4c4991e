"""Faults planted in sound programs: one that hardware mostly refuses.

Contract: the same for the same program and seed. The program may still be sound, or break a rule
that only the model sees.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from tapeout.chip import Chip
from tapeout.isa import Addr, Count, HbmAddr, Operand, seq
from tapeout.isa.errors import ProgramError
from tapeout.isa.fields import WORD_BITS, WORD_BYTES, Bits
from tapeout.isa.instruction import BODY_BIT, REGISTRY, Fault, Instruction
from tapeout.isa.program import Program, Words, channel_bit
from tapeout.sim import Sim

from .compare import HBM_BYTES, LIMIT_CYCLES
from .instructions import stripes
from .programs import Case

COUNT = 2  # faults planted in each program, one at a time
_BOUNDS = (Fault.SPM_BOUNDS, Fault.VMEM_BOUNDS, Fault.ACC_BOUNDS, Fault.HBM_BOUNDS)


def with_faults(case: Case, seed: int) -> list[Case]:
    """`COUNT` cases of one fault each."""
    return [with_fault(case, COUNT * seed + k) for k in range(COUNT)]


def with_fault(case: Case, seed: int) -> Case:
    """The case with one bit or one field of one word changed, with an address that reaches just
    beyond its memory, or with a channel that overflows."""
    rng = random.Random(seed)
    queue = rng.choice(sorted(case.program.streams))
    kind = rng.choices([_overflowing, _beyond, _flipped, _rewritten], [1, 2, 4, 5])[0]
    return _with_stream(case, queue, kind(case, queue, rng))


def _with_stream(case: Case, queue: str, stream: Sequence[Instruction]) -> Case:
    streams = {**case.program.streams, queue: stream}
    program = Program(case.program.chip, streams, case.program.segments)
    return Case(case.chip, program, case.segments)


def _word(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at * WORD_BYTES : (at + 1) * WORD_BYTES], "little")


def _with_field(raw: bytes, at: int, bit: int, width: int, value: int) -> Words:
    """Words of which the one at `at` has `value`, what fits of it, in `width` bits from `bit`."""
    mask = (1 << width) - 1
    word = _word(raw, at) & ~(mask << bit) | (value & mask) << bit
    begin = at * WORD_BYTES
    return Words(raw[:begin] + word.to_bytes(WORD_BYTES, "little") + raw[begin + WORD_BYTES :])


def _flipped(case: Case, queue: str, rng: random.Random) -> Words:
    raw = bytearray(case.program.encode(queue))
    word = rng.randrange(len(raw) * 8 // WORD_BITS)
    # Mostly where fields are: the bits above are reserved, and would all be refused alike.
    first, last = rng.choice([(0, 64), (64, 200), (0, WORD_BITS)])
    bit = word * WORD_BITS + rng.randrange(first, last)
    raw[bit // 8] ^= 1 << bit % 8
    return Words(bytes(raw))


def _rewritten(case: Case, queue: str, rng: random.Random) -> Words:
    """A field becomes a value of the edge of what is allowed, or another one."""
    raw = case.program.encode(queue)
    at = rng.randrange(len(raw) // WORD_BYTES)
    word = _word(raw, at)
    fields = list(_fields(REGISTRY[word & 255]))
    body = [field for field in fields if field[0] >= BODY_BIT]
    bit, spec = rng.choice(body if body and rng.random() < 0.8 else fields)
    mask = (1 << spec.width) - 1
    value = word >> bit & mask
    if spec.enum is not None:
        value = rng.randrange(len(spec.enum) + 2)
    elif spec.register:
        value = rng.randrange(case.chip.seq.registers + 2)
    else:
        edges = [0, 1, mask, mask >> 1, *(e + rng.randrange(-3, 2) for e in _edges(case.chip))]
        value = rng.choice([value + 1, value - 1, rng.choice(edges)])
    return _with_field(raw, at, bit, spec.width, value)


def _beyond(case: Case, queue: str, rng: random.Random) -> Words:
    """An address becomes the least one that is refused; where none is, a field another value."""
    raw = case.program.encode(queue)
    at = rng.randrange(len(raw) // WORD_BYTES)
    places = list(_addresses(REGISTRY[_word(raw, at) & 255]))
    if not places:
        return _rewritten(case, queue, rng)
    bit, width = rng.choice(places)

    def changed(value: int) -> Words:
        return _with_field(raw, at, bit, width, value)

    def is_refused(value: int) -> bool:
        target = Sim(case.chip, checks=False, hbm_bytes=HBM_BYTES, limit_cycles=LIMIT_CYCLES)
        handle, _ = _with_stream(case, queue, changed(value)).load(target)
        try:
            target.run(handle)
        except ProgramError as error:
            return error.fault in _BOUNDS and (error.queue, error.pc) == (queue, at)
        except TimeoutError:  # what it has read is the count of a loop
            pass
        return False

    low, high = 0, (1 << width - 1) - 1
    if not is_refused(high):
        return _rewritten(case, queue, rng)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_refused(middle) else (middle + 1, high)
    return changed(low)


def _addresses(cls: type[Instruction]) -> Iterator[tuple[int, int]]:
    """(first bit, width) of the parts of an instruction that say where a row or a byte is."""
    for spec, name, bit, part in _parts(cls):
        if spec in (Addr, Operand, HbmAddr) and name in ("imm", "offset"):
            yield bit, part.width


def _fields(cls: type[Instruction]) -> Iterator[tuple[int, Bits]]:
    """(first bit, field) of an instruction, those of addresses and operands one by one."""
    return ((bit, part) for _, _, bit, part in _parts(cls))


def _parts(cls: type[Instruction]) -> Iterator[tuple[Any, str, int, Bits]]:
    """(what it is of, name, first bit, field) of an instruction."""
    for field, bit, spec in cls.layout():
        for name, part in ({field: spec} if isinstance(spec, Bits) else spec.LAYOUT).items():
            yield spec, name, bit, part
            bit += part.width


def _edges(chip: Chip) -> list[int]:
    """Numbers that rules compare with."""
    memories = [chip.spm.rows, chip.vmem.rows, chip.acc.rows, *stripes(chip).values()]
    return [*memories, chip.lanes, chip.mxu.rows, chip.seq.loop_depth, chip.tokens.capacity]


def _overflowing(case: Case, queue: str, rng: random.Random) -> list[Instruction]:
    """The stream with more posts than it holds to a channel, if possible one that nobody takes."""
    names, tokens = case.chip.queue_names, case.chip.tokens
    producer = names.index(queue)
    consumer = rng.choice([q for q in range(len(names)) if q != producer])
    per_pair = tokens.channels_per_pair
    takers = case.program.streams.get(names[consumer], [])
    unused = [
        n
        for n in range(per_pair)
        if not any(i.waits >> channel_bit(consumer, producer, n, per_pair) & 1 for i in takers)
    ]
    channel = rng.choice(unused or range(per_pair))
    posts = 1 << channel_bit(producer, consumer, channel, per_pair)
    *stream, halt = case.program.streams[queue]
    loop = seq.Loop(count=Count(tokens.capacity + 1), length=1)
    return [*stream, loop, seq.Nop(posts=posts), halt]
