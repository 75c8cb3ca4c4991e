"""Micro-programs: a function of one fp32 operand as straight-line code over a few exact operations.

A function is written once, against `Builder`, and becomes a `MicroProgram`: a list of operations in
static single assignment. NumPy evaluates it here (the definition), `tapeout.numerics.native` prints
it as C++, and hardware can sequence it. So the order of operations, hence every bit, is the same
everywhere.

Values have one of three kinds: `f` a fp32 lane, `i` the same 32 bits as an integer, `m` a truth
value. There is no loop, no branch and no division.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapeout.numerics import arith
from tapeout.numerics.arith import F32

# name -> (kinds of the arguments, kind of the result, meaning)
OPERATIONS: Mapping[str, tuple[str, str, str]] = {
    "input": ("", "f", "the operand"),
    "const_f": ("", "f", "a constant, given by its bits"),
    "const_i": ("", "i", "a constant"),
    "fma": ("fff", "f", "a * b + c, rounded once"),
    "mul": ("ff", "f", "a * b"),
    "add": ("ff", "f", "a + b"),
    "sub": ("ff", "f", "a - b"),
    "as_int": ("f", "i", "the bits, unchanged"),
    "as_float": ("i", "f", "the bits, unchanged"),
    "iadd": ("ii", "i", "a + b modulo 2**32"),
    "isub": ("ii", "i", "a - b modulo 2**32"),
    "iand": ("ii", "i", "bitwise and"),
    "ior": ("ii", "i", "bitwise or"),
    "ixor": ("ii", "i", "bitwise exclusive or"),
    "shl": ("i", "i", "shift left by the immediate"),
    "shr": ("i", "i", "shift right by the immediate, zeros in"),
    "sar": ("i", "i", "shift right by the immediate, sign in"),
    "less": ("ii", "m", "a < b as signed integers"),
    "equal": ("ii", "m", "a == b"),
    "select": ("mff", "f", "b where a holds, else c"),
    "table": ("i", "f", "the table's entry at the index"),
}

FLOATING = ("fma", "mul", "add", "sub")  # operations that round


@dataclass(frozen=True)
class Value:
    """One result of a micro-program: its position in the list and its kind."""

    index: int
    kind: str


@dataclass(frozen=True, kw_only=True)
class MicroOp:
    """One operation. `immediate` is a constant's bits or a shift count; `table` a table's name."""

    name: str
    arguments: tuple[int, ...] = ()
    immediate: int = 0
    table: str = ""


@dataclass(frozen=True, kw_only=True)
class MicroProgram:
    """A function's operations in order; the last one is the result."""

    name: str
    operations: tuple[MicroOp, ...]

    def count(self, *names: str) -> int:
        """How many operations have one of these names (`count("fma", "mul")` sizes a datapath)."""
        return sum(op.name in names for op in self.operations)


@dataclass
class Builder:
    """Collects the operations of one micro-program; constants are kept once."""

    operations: list[MicroOp] = field(default_factory=list)
    _kinds: list[str] = field(default_factory=list)
    _constants: dict[tuple[str, int], Value] = field(default_factory=dict)

    def _append(self, op: MicroOp) -> Value:
        arguments, result, _ = OPERATIONS[op.name]
        kinds = "".join(self._kinds[i] for i in op.arguments)
        if kinds != arguments:
            raise TypeError(
                f"micro-operation {op.name} takes kinds {arguments!r}, and was given {kinds!r}: "
                f"convert with as_int or as_float"
            )
        self.operations.append(op)
        self._kinds.append(result)
        return Value(len(self.operations) - 1, result)

    def op(self, name: str, *arguments: Value, immediate: int = 0, table: str = "") -> Value:
        """Append one operation; see OPERATIONS for names, kinds and meanings."""
        indices = tuple(a.index for a in arguments)
        return self._append(MicroOp(name=name, arguments=indices, immediate=immediate, table=table))

    def _constant(self, name: str, bits: int) -> Value:
        key = (name, bits)
        if key not in self._constants:
            self._constants[key] = self._append(MicroOp(name=name, immediate=bits))
        return self._constants[key]

    def f(self, value: float) -> Value:
        """A fp32 constant; the value must be exact in fp32."""
        if float(np.float32(value)) != value:
            raise ValueError(f"constant {value!r} is not exact in fp32: put its bits in tables.py")
        return self._constant("const_f", int(np.float32(value).view(np.uint32)))

    def f_bits(self, bits: int) -> Value:
        """A fp32 constant given by its bits."""
        return self._constant("const_f", bits)

    def i(self, bits: int) -> Value:
        """An integer constant, 0 <= bits < 2**32."""
        return self._constant("const_i", bits)


_EVALUATE: Mapping[str, Callable[..., Any]] = {
    "fma": arith.fma,
    "mul": arith.mul,
    "add": arith.add,
    "sub": arith.sub,
    "as_int": arith.bits,
    "as_float": arith.from_bits,
    "iadd": arith.iadd,
    "isub": arith.isub,
    "iand": np.bitwise_and,
    "ior": np.bitwise_or,
    "ixor": np.bitwise_xor,
    "less": lambda a, b: np.asarray(a).view(np.int32) < np.asarray(b).view(np.int32),
    "equal": np.equal,
    "select": lambda m, a, b: arith.from_bits(np.where(m, arith.bits(a), arith.bits(b))),
}
_EVALUATE_SHIFT: Mapping[str, Callable[..., Any]] = {
    "shl": arith.shift_left,
    "shr": arith.shift_right,
    "sar": arith.shift_right_signed,
}


def evaluate(program: MicroProgram, x: F32, tables: Mapping[str, Sequence[int]]) -> F32:
    """Run a micro-program on float32 of any shape; the NumPy meaning of every operation."""
    values: list[Any] = []
    for op in program.operations:
        arguments = [values[i] for i in op.arguments]
        if op.name == "input":
            value: Any = np.atleast_1d(np.asarray(x, np.float32))
        elif op.name == "const_f":
            value = np.array([op.immediate], np.uint32).view(np.float32)
        elif op.name == "const_i":
            value = np.array([op.immediate], np.uint32)
        elif op.name == "table":
            entries = np.array(tables[op.table], np.uint32).view(np.float32)
            value = entries[arguments[0]]
        elif op.name in _EVALUATE_SHIFT:
            value = _EVALUATE_SHIFT[op.name](arguments[0], op.immediate)
        else:
            value = _EVALUATE[op.name](*arguments)
        values.append(value)
    return np.asarray(values[-1]).reshape(np.shape(x))
