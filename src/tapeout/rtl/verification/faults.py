"""Faults planted in sound programs: one that hardware mostly refuses.

Contract: the same for the same program and seed. The program may still be sound, or break a rule
that only the model sees.
"""

import random
from collections.abc import Iterator

from tapeout.isa import Count, seq
from tapeout.isa.fields import WORD_BITS
from tapeout.isa.instruction import Instruction
from tapeout.isa.program import Program, Words, channel_bit

from .programs import Case


def with_fault(case: Case, seed: int) -> Case:
    """The case with one bit of one word flipped, or with a channel that overflows."""
    rng = random.Random(seed)
    streams = dict(case.program.streams)
    queue = rng.choice(sorted(streams))
    if rng.random() < 0.1:
        streams[queue] = list(_overflowing(case, queue, rng))
    else:
        streams[queue] = _flipped(case, queue, rng)
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


def _overflowing(case: Case, queue: str, rng: random.Random) -> Iterator[Instruction]:
    """The stream with more posts to a channel, which nobody takes, than it holds."""
    names, tokens = case.chip.queue_names, case.chip.tokens
    producer = names.index(queue)
    consumer = rng.choice([q for q in range(len(names)) if q != producer])
    channel = rng.randrange(tokens.channels_per_pair)
    *stream, halt = case.program.streams[queue]
    yield from stream
    yield seq.Loop(count=Count(tokens.capacity + 1), length=1)
    yield seq.Nop(posts=1 << channel_bit(producer, consumer, channel, tokens.channels_per_pair))
    yield halt
