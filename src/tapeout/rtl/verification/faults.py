"""Faults planted in sound programs: one bit of one word flipped, which hardware mostly refuses."""

import random

from tapeout.isa.fields import WORD_BITS
from tapeout.isa.program import Program, Words

from .programs import Case


def with_fault(case: Case, seed: int) -> Case:
    """The case with one bit of one word flipped; it may still be sound, or break a model's rule."""
    rng = random.Random(seed)
    streams = dict(case.program.streams)
    queue = rng.choice(sorted(streams))
    raw = bytearray(case.program.encode(queue))
    word = rng.randrange(len(raw) * 8 // WORD_BITS)
    # Mostly where fields are: the bits above are reserved, and would all be refused alike.
    first, last = rng.choice([(0, 64), (64, 200), (0, WORD_BITS)])
    bit = word * WORD_BITS + rng.randrange(first, last)
    raw[bit // 8] ^= 1 << bit % 8
    streams[queue] = Words(bytes(raw))
    program = Program(case.program.chip, streams, case.program.segments)
    return Case(case.chip, program, case.segments)
