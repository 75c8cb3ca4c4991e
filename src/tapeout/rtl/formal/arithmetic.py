"""Arithmetic for all operands: the pipelines give what IEEE 754 says, with the ISA's flushes.

Contract: the reference is floating point of SMT-LIB at 24 bits of significand and 10 of exponent,
which holds every sum of the chip's values without a subnormal: one rounding, then what is tiny
becomes zero and what is large infinite, and NaN is canonical (ISA, `numerics.arith`). Yosys writes
the component's cycles as SMT, z3 turns both into bits, and CaDiCaL shows that no operands tell them
apart.

How far the operands' exponents lie from each other decides by how much an alignment shifts. SAT is
fast where that is known, or only moves what ends up sticky; so the proof goes by distance.
"""

import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from amaranth.back import verilog
from amaranth.lib import wiring

from tapeout.chip import Chip
from tapeout.rtl import yosys
from tapeout.rtl.float import Adder, FusedMultiplyAdd

from .outcome import ALL_VALUES, INSTALL, FormalError, Outcome

_SCRIPT = """\
read_verilog top.v
hierarchy -top top
proc
flatten
opt -full
clean -purge
dffunmap
opt_clean -purge
write_smt2 -stbv -wires top.smt2
"""
# Values at 24 bits of significand: their exponents go from -510 to 511.
_REFERENCE = """\
(define-sort Wide () (_ FloatingPoint 10 24))
(define-fun flushed16 ((x (_ BitVec 16))) (_ BitVec 16)
  (ite (= ((_ extract 14 7) x) #x00) (concat ((_ extract 15 15) x) (_ bv0 15)) x))
(define-fun flushed32 ((x (_ BitVec 32))) (_ BitVec 32)
  (ite (= ((_ extract 30 23) x) #x00) (concat ((_ extract 31 31) x) (_ bv0 31)) x))
(define-fun wide16 ((x (_ BitVec 16))) Wide ((_ to_fp 10 24) RNE ((_ to_fp 8 8) (flushed16 x))))
(define-fun wide32 ((x (_ BitVec 32))) Wide ((_ to_fp 10 24) RNE ((_ to_fp 8 24) (flushed32 x))))
(define-fun exponent16 ((x (_ BitVec 16))) (_ BitVec 12)
  ((_ zero_extend 4) ((_ extract 14 7) x)))
(define-fun exponent32 ((x (_ BitVec 32))) (_ BitVec 12)
  ((_ zero_extend 4) ((_ extract 30 23) x)))
(define-fun ordinary ((exponent (_ BitVec 12))) Bool
  (and (not (= exponent #x000)) (not (= exponent #x0ff))))
(define-fun fp32 ((x Wide)) (_ BitVec 32)
  (let ((sign (ite (fp.isNegative x) #b1 #b0))
        (beyond (fp #b0 (_ bv639 10) (_ bv0 23)))   ; 2^128
        (least (fp #b0 (_ bv385 10) (_ bv0 23))))   ; 2^-126
    (ite (fp.isNaN x) #x7fc00000
    (ite (fp.geq (fp.abs x) beyond) (concat sign #xff (_ bv0 23))
    (ite (fp.lt (fp.abs x) least) (concat sign (_ bv0 31))
    (fp.to_ieee_bv ((_ to_fp 8 24) RNE x)))))))
"""


class Arithmetic(ABC):
    """A claim about a pipeline: its result is that of a formula, whatever goes in.

    Class attributes:
        title: what is claimed, in one line.
        component: the class under proof; a test hands a faulty one to the constructor.
        operands: (port, bits, cycle in which it is presented).
        formula: of the result, in SMT-LIB. distance: of two exponents, which decides the case.
        bounds: where one case ends and the next begins, rising.
    """

    title: ClassVar[str]
    component: ClassVar[type[wiring.Component]]
    operands: ClassVar[tuple[tuple[str, int, int], ...]]
    formula: ClassVar[str]
    distance: ClassVar[str]
    bounds: ClassVar[tuple[int, ...]]

    def __init__(self, chip: Chip, component: type[wiring.Component] | None = None) -> None:
        self.chip = chip
        self._component = component or self.component

    @abstractmethod
    def make(self) -> wiring.Component:
        """The component under proof."""

    @property
    @abstractmethod
    def cycles(self) -> int:
        """From the first operand to the result."""

    def cases(self) -> Iterator[str]:
        """Conditions, one of which holds for any operands."""
        ordinary = " ".join(f"(ordinary (exponent{bits} {n}))" for n, bits, _ in self.operands)
        yield f"(not (and {ordinary}))"
        for first, last in pairwise((None, *self.bounds, None)):
            inside = f"(and {ordinary}"
            if first is not None:
                inside += f" (bvsge {self.distance} (_ bv{first % (1 << 12)} 12))"
            if last is not None:
                inside += f" (bvslt {self.distance} (_ bv{last % (1 << 12)} 12))"
            yield f"{inside})"


class MultiplyAdd(Arithmetic):
    """An element of the array, whose factors are bf16."""

    title = "a * b + c of the array's elements is rounded once, for all operands"
    component = FusedMultiplyAdd
    operands = (("a", 16, 0), ("b", 16, 0), ("c", 32, 1))
    formula = "(fp.fma RNE (wide16 a) (wide16 b) (wide32 c))"
    distance = "(bvsub (bvadd (exponent16 a) (exponent16 b)) (bvadd (exponent32 c) #x07f))"
    bounds = (-45, -1, 0, 1, 2, 26)

    def make(self) -> wiring.Component:
        return self._component(factor_bits=16, adder_stages=self.chip.mxu.adder_stages)

    @property
    def cycles(self) -> int:
        return 1 + self.chip.mxu.adder_stages


class Add(Arithmetic):
    """The adders of reductions."""

    title = "a + b of the vector unit's reductions is rounded once, for all operands"
    component = Adder
    operands = (("a", 32, 0), ("b", 32, 0))
    formula = "(fp.add RNE (wide32 a) (wide32 b))"
    distance = "(bvsub (exponent32 a) (exponent32 b))"
    bounds = (-26, -1, 0, 1, 2, 26)

    def make(self) -> wiring.Component:
        return self._component(stages=self.chip.vpu.adder_stages)

    @property
    def cycles(self) -> int:
        return self.chip.vpu.adder_stages


def prove(arithmetic: Arithmetic, folder: Path) -> Outcome:
    """Proves the claim, case by case, in a folder for what the tools read and write.

    Raises: FormalError where a tool is missing or fails.
    """
    began = time.monotonic()
    for module, package in (("pyosys", "pyosys"), ("z3", "z3-solver"), ("pysat", "python-sat")):
        if importlib.util.find_spec(module) is None:
            raise FormalError(INSTALL.format(package))
    statement = _statement(arithmetic, folder)
    cases = tuple(arithmetic.cases())
    failed = None
    for case in cases:
        failed = failed or _counterexample(f"{statement}(assert {case})", arithmetic)
    return Outcome(
        method=ALL_VALUES,
        claims=cases,
        reaches=(),
        seconds=time.monotonic() - began,
        failed=failed,
    )


def _statement(arithmetic: Arithmetic, folder: Path) -> str:
    """SMT-LIB that has a solution where operands give a result other than the formula's."""
    (folder / "top.v").write_text(verilog.convert(arithmetic.make(), name="top"))
    code, log = yosys.run(_SCRIPT, folder)
    if code:
        raise FormalError(f"Yosys failed: {log.strip().splitlines()[-1]}")
    cycles = range(arithmetic.cycles + 1)
    lines = [
        (folder / "top.smt2").read_text(),
        _REFERENCE,
        *(f"(declare-const state{t} |top_s|)" for t in cycles),
        *(f"(assert (not (|top_n rst| state{t})))" for t in cycles),
        *(f"(assert (|top_t| state{t} state{t + 1}))" for t in cycles[:-1]),
        *(
            f"(define-fun {name} () (_ BitVec {bits}) (|top_n {name}| state{t}))"
            for name, bits, t in arithmetic.operands
        ),
        f"(define-fun given () (_ BitVec 32) (|top_n result| state{cycles[-1]}))",
        f"(define-fun wanted () (_ BitVec 32) (fp32 {arithmetic.formula}))",
        # Names for what a counterexample shows.
        *(f"(declare-const its_{n} (_ BitVec {bits}))(assert (= its_{n} {n}))"
          for n, bits in _shown(arithmetic)),
        "(assert (not (= given wanted)))",
    ]  # fmt: skip
    return "\n".join(lines)


def _shown(arithmetic: Arithmetic) -> list[tuple[str, int]]:
    return [*((n, bits) for n, bits, _ in arithmetic.operands), ("given", 32), ("wanted", 32)]


def _counterexample(statement: str, arithmetic: Arithmetic) -> str | None:
    """Operands that solve the statement, as text."""
    import z3
    from pysat.formula import CNF
    from pysat.solvers import Cadical195

    asked = z3.parse_smt2_string(statement)
    to_bits = ("simplify", "fpa2bv", "simplify", "propagate-values", "solve-eqs", "simplify",
               "bit-blast", "simplify", "tseitin-cnf")  # fmt: skip
    goal = z3.Goal()
    goal.add(*asked)
    (bits,) = z3.Then(*to_bits)(goal)
    if bits.inconsistent():
        return None
    with Cadical195(bootstrap_with=CNF(from_string=bits.dimacs())) as solver:
        if not solver.solve():
            return None
    # There are some: z3, which knows what the bits stand for, finds them again.
    again = z3.Then(*to_bits[:-1], "smt").solver()
    again.add(*asked)
    if again.check() != z3.sat:
        raise FormalError(f"CaDiCaL and z3 disagree on {arithmetic.title!r}")
    return _told(again.model(), _shown(arithmetic))


def _told(model: Any, shown: list[tuple[str, int]]) -> str:
    values = {}
    for name, bits in shown:
        found = next((model[d] for d in model.decls() if d.name() == f"its_{name}"), None)
        values[name] = f"{found.as_long() if found is not None else 0:#0{bits // 4 + 2}x}"
    given, wanted = values.pop("given"), values.pop("wanted")
    operands = ", ".join(f"{name} = {value}" for name, value in values.items())
    return f"{operands} gives {given}, not {wanted}"
