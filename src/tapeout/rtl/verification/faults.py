"""Faults planted in sound programs: one that hardware mostly refuses.

Contract: the same for the same program and seed. The program may still be sound, or break a rule
that only the model sees.
"""

import random
from collections.abc import Iterator

from tapeout.chip import Chip
from tapeout.isa import Addr, Count, HbmAddr, Operand, seq
from tapeout.isa.errors import ProgramError
from tapeout.isa.fields import WORD_BITS, WORD_BYTES, Bits
from tapeout.isa.instruction import BODY_BIT, REGISTRY, Fault, Instruction
from tapeout.isa.program import Program, Words, channel_bit
from tapeout.sim import Sim

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
    streams = dict(case.program.streams)
    queue = rng.choice(sorted(streams))
    kind = rng.choices([_overflowing, _beyond, _flipped, _rewritten], [1, 2, 4, 5])[0]
    streams[queue] = kind(case, queue, rng)
    program = Program(case.program.chip, streams, case.program.segments)
    return Case(case.chip, program, case.segments)


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
    raw = bytearray(case.program.encode(queue))
    at = rng.randrange(len(raw) // WORD_BYTES) * WORD_BYTES
    word = int.from_bytes(raw[at : at + WORD_BYTES], "little")
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
    word = word & ~(mask << bit) | (value & mask) << bit
    raw[at : at + WORD_BYTES] = word.to_bytes(WORD_BYTES, "little")
    return Words(bytes(raw))


def _beyond(case: Case, queue: str, rng: random.Random) -> Words:
    """An address becomes the least one that is refused; where none is, a field another value."""
    raw = case.program.encode(queue)
    at = rng.randrange(len(raw) // WORD_BYTES)
    word = int.from_bytes(raw[at * WORD_BYTES : (at + 1) * WORD_BYTES], "little")
    places = list(_addresses(REGISTRY[word & 255]))
    if not places:
        return _rewritten(case, queue, rng)
    bit, width = rng.choice(places)

    def changed(value: int) -> Words:
        mask = (1 << width) - 1 << bit
        new = (word & ~mask | value << bit).to_bytes(WORD_BYTES, "little")
        return Words(raw[: at * WORD_BYTES] + new + raw[(at + 1) * WORD_BYTES :])

    def is_refused(value: int) -> bool:
        streams = {**case.program.streams, queue: changed(value)}
        program = Program(case.program.chip, streams, case.program.segments)
        target = Sim(case.chip, checks=False, hbm_bytes=1 << 20)
        handle, _ = Case(case.chip, program, case.segments).load(target)
        try:
            target.run(handle)
        except ProgramError as error:
            return error.fault in _BOUNDS and (error.queue, error.pc) == (queue, at)
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
    for _, bit, spec in cls.layout():
        for name, part in () if isinstance(spec, Bits) else spec.LAYOUT.items():
            if spec in (Addr, Operand, HbmAddr) and name in ("imm", "offset"):
                yield bit, part.width
            bit += part.width


def _fields(cls: type[Instruction]) -> Iterator[tuple[int, Bits]]:
    """(first bit, field) of an instruction, those of addresses and operands one by one."""
    for _, bit, spec in cls.layout():
        for part in [spec] if isinstance(spec, Bits) else spec.LAYOUT.values():
            yield bit, part
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
