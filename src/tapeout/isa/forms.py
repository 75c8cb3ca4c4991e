"""Integer functions that closed forms of cycles may call; `tapeout.isa.native` has each in C++."""

import math
from functools import cache

from tapeout.numerics import functions


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def gcd(a: int, b: int) -> int:
    """Greatest common divisor; gcd(0, b) = b."""
    return math.gcd(a, b)


def rows_per_cycle(kind: int, stride: int, sublanes: int, banks: int) -> int:
    """Rows `stride` apart that an operand delivers in a cycle: a power of two, at most `sublanes`.

    In spm (kinds 1 and 2) they meet banks / gcd(stride, banks) of the banks of a stripe; an fp32
    row is a pair of rows in neighbouring banks, its stride counts both. In acc (kind 4), of as many
    banks as sublanes, likewise. Stride 0 is one row.
    """
    if stride == 0:
        return sublanes
    if kind == 1 or kind == 2:
        return min(sublanes, banks // gcd(stride, banks))
    if kind == 4:
        return sublanes // gcd(stride, sublanes)
    return sublanes


def function_steps(function: int) -> int:
    """Floating-point operations of `isa.vpu.Function`: none, then the functions of numerics."""
    return functions.step_count(functions.Function(function - 1)) if function else 0


@cache
def loop_cycles(slots: int, adder_stages: int) -> int:
    """From one pass through the vector unit's function pipeline to the next.

    Registers fill the slots' 2 + adder_stages cycles up to a number prime to every number of passes
    that occurs: rows that enter every `passes` cycles then never meet those that come round.
    """
    passes = {function_passes(1 + f, slots) for f in functions.Function}
    cycles = slots * (2 + adder_stages)
    while any(math.gcd(cycles, p) != 1 for p in passes):
        cycles += 1
    return cycles


def function_passes(function: int, slots: int) -> int:
    """How often a function runs through a pipeline of that many slots."""
    return max(1, ceil_div(function_steps(function), slots))
