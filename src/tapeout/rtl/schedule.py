"""How the vector unit's functions run on its fused multiply-adds, derived from micro-programs.

A micro-program's floating-point operations become steps, in program order, one for each slot of the
function pipeline; a function of more steps than slots passes through several times. Between steps
live only fp32 words in numbered registers: the operand (register 0) and results of steps. All else
(bit fields, comparisons, tables) is written as an expression over these registers, worked out in
the slot that needs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from tapeout.numerics.functions import Function, program
from tapeout.numerics.micro import FLOATING, MicroProgram

# ("register", number), ("constant", bits), or (operation, immediate, table, argument, ...).
Expression = tuple

_SIGN = 0x80000000
_ONE = ("constant", 0x3F800000)
_MINUS_ZERO = ("constant", _SIGN)


@dataclass(frozen=True)
class Step:
    """register := a * b + c, rounded once."""

    a: Expression
    b: Expression
    c: Expression
    register: int


@dataclass(frozen=True)
class Schedule:
    """A function: steps in order, then its result.

    Attributes:
        needed: before each step and, last, before the result: the registers still to be read.
    """

    steps: tuple[Step, ...]
    result: Expression
    needed: tuple[frozenset[int], ...]

    def passes(self, slots: int) -> int:
        """How often it runs through a pipeline of that many slots."""
        return max(1, -(-len(self.steps) // slots))


NOTHING = Schedule(steps=(), result=("register", 0), needed=(frozenset({0}),))


@cache
def schedule(function: Function) -> Schedule:
    """The schedule of one function."""
    return schedule_of(program(function))


def schedule_of(p: MicroProgram) -> Schedule:
    """The schedule of a micro-program."""
    order = [k for k, op in enumerate(p.operations) if op.name in FLOATING]
    wants = [*(p.operations[k].arguments for k in order), (len(p.operations) - 1,)]
    sources = [frozenset().union(*(_sources(p, v) for v in values)) for values in wants]
    last_use = {source: n for n, names in enumerate(sources) for source in names}

    place: dict[int, int] = {}  # register of a source that is alive
    before: list[Mapping[int, int]] = []  # each step, and the result, by source
    place |= {k: 0 for k, op in enumerate(p.operations) if op.name == "input"}
    for n, value in enumerate(order):
        place = {v: r for v, r in place.items() if last_use.get(v, -1) >= n}
        before.append(dict(place))
        kept = {r for v, r in place.items() if last_use[v] > n}
        place = {v: r for v, r in place.items() if r in kept}
        place[value] = next(r for r in range(len(place) + 1) if r not in kept)
    before.append({v: r for v, r in place.items() if last_use.get(v, -1) >= len(order)})
    steps = tuple(_step(p, k, before[n], before[n + 1].get(k, 0)) for n, k in enumerate(order))
    return Schedule(
        steps=steps,
        result=_expression(p, len(p.operations) - 1, before[-1]),
        needed=tuple(frozenset(b.values()) for b in before),
    )


def _sources(p: MicroProgram, value: int) -> frozenset[int]:
    """The operand and results of steps that a value is made of."""
    op = p.operations[value]
    if op.name == "input" or op.name in FLOATING:
        return frozenset({value})
    return frozenset().union(*(_sources(p, a) for a in op.arguments))


def _expression(p: MicroProgram, value: int, place: Mapping[int, int]) -> Expression:
    op = p.operations[value]
    if value in place:
        return ("register", place[value])
    if op.name in ("const_f", "const_i"):
        return ("constant", op.immediate)
    arguments = [_expression(p, a, place) for a in op.arguments]
    if op.name in ("as_int", "as_float"):
        return arguments[0]
    return (op.name, op.immediate, op.table, *arguments)


def _step(p: MicroProgram, value: int, place: Mapping[int, int], register: int) -> Step:
    """mul, add and sub are fused multiply-adds, too; a product keeps its sign beside minus zero."""
    op = p.operations[value]
    x, y, *rest = (_expression(p, a, place) for a in op.arguments)
    if op.name == "mul":
        return Step(x, y, _MINUS_ZERO, register)
    if op.name == "add":
        return Step(x, _ONE, y, register)
    if op.name == "sub":
        return Step(x, _ONE, ("ixor", 0, "", y, ("constant", _SIGN)), register)
    return Step(x, y, rest[0], register)
