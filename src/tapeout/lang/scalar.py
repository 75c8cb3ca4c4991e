"""Scalars that a program reads at launch, and expressions over them.

A `Scalar` is a value every queue can compute for itself: an argument of the launch, or arithmetic
on scalars and integers. A queue that uses one loads the arguments and evaluates the expression
once, at its start. A `LoopVar` is a register that advances once an iteration of a loop.
"""

from dataclasses import dataclass

from tapeout.isa.seq import Alu


@dataclass(frozen=True)
class Scalar:
    """A launch-time value: `Arg` or `Expr`. Integers mix in."""

    def __add__(self, other: "Scalar | int") -> "Scalar":
        return Expr(Alu.ADD, self, other)

    def __sub__(self, other: "Scalar | int") -> "Scalar":
        return Expr(Alu.SUB, self, other)

    def __mul__(self, other: "Scalar | int") -> "Scalar":
        return Expr(Alu.MUL, self, other)

    def __lshift__(self, other: int) -> "Scalar":
        return Expr(Alu.SHL, self, other)

    def __rshift__(self, other: int) -> "Scalar":
        return Expr(Alu.SHR, self, other)

    def __and__(self, other: int) -> "Scalar":
        return Expr(Alu.AND, self, other)

    def minimum(self, other: "Scalar | int") -> "Scalar":
        return Expr(Alu.MIN, self, other)

    def maximum(self, other: "Scalar | int") -> "Scalar":
        return Expr(Alu.MAX, self, other)


@dataclass(frozen=True)
class Arg(Scalar):
    """The int32 at word `index` of the launch arguments."""

    index: int
    name: str = ""


@dataclass(frozen=True)
class Expr(Scalar):
    """`op(a, b)`; b may be an integer."""

    op: Alu
    a: Scalar
    b: Scalar | int


@dataclass(frozen=True)
class LoopVar:
    """Starts at `init`, grows by `step` an iteration; with `wrap` it returns to `init` before
    reaching `init + wrap` (a ring)."""

    loop: int
    init: "Scalar | int"
    step: "Scalar | int"
    wrap: int = 0
    key: int = 0


Value = Scalar | LoopVar | int


def offset(value: Value | None, imm: int) -> tuple[int, "Scalar | LoopVar | None"]:
    """Splits a value into an immediate and a register part, with `imm` added."""
    if value is None:
        return imm, None
    if isinstance(value, int):
        return imm + value, None
    return imm, value
