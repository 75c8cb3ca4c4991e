"""Arithmetic for all operands: the pipelines give what IEEE 754 says, with the ISA's flushes.

Contract: the reference is floating point of SMT-LIB at 24 bits of significand and 10 of exponent,
which holds every sum of the chip's values without a subnormal: one rounding, then what is tiny
becomes zero and what is large infinite, and NaN is canonical (ISA, `numerics.arith`). Yosys writes
the component's cycles as SMT, z3 turns both into bits, and CaDiCaL shows that no operands tell them
apart.

How far the operands' exponents lie from each other decides by how much an alignment shifts. SAT is
fast where that is known, or only moves what ends up sticky; so the proof goes by distance.

A product of two significands of 24 bits is beyond SAT. There the component's one multiplication is
cut out: its factors are shown to be the operands' significands, and its product is any number from
2^46, the least, to the largest. What holds for each of them holds for the one it is.
"""

import importlib.util
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar

from amaranth.back import verilog
from amaranth.lib import wiring

from tapeout.chip import Chip
from tapeout.rtl import yosys
from tapeout.rtl.float import Adder, FusedMultiplyAdd, Multiplier

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
# Values at 48 bits, which hold a product of fp32. A sum is rounded to odd (towards zero, and where
# something was lost the last bit is set), after which rounding to 24 bits is as if there were one
# (Boldo, Melquiond: Emulation of FMA and correctly rounded sums, 2008).
_LONG_REFERENCE = """\
(define-sort Long () (_ FloatingPoint 11 48))
(define-fun sign32 ((x (_ BitVec 32))) (_ BitVec 1) ((_ extract 31 31) x))
(define-fun significand32 ((x (_ BitVec 32))) (_ BitVec 48)
  (concat #x000000 #b1 ((_ extract 22 0) x)))
(define-fun is-zero32 ((x (_ BitVec 32))) Bool (= (exponent32 x) #x000))
(define-fun is-inf32 ((x (_ BitVec 32))) Bool
  (and (= (exponent32 x) #x0ff) (= ((_ extract 22 0) x) (_ bv0 23))))
(define-fun is-nan32 ((x (_ BitVec 32))) Bool
  (and (= (exponent32 x) #x0ff) (not (is-inf32 x))))
(define-fun long-product ((a (_ BitVec 32)) (b (_ BitVec 32)) (product (_ BitVec 48))) Long
  (let ((sign (bvxor (sign32 a) (sign32 b)))
        (power (bvadd ((_ extract 10 0) (exponent32 a)) ((_ extract 10 0) (exponent32 b))
                      (_ bv769 11))))               ; 1023 - 2 * 127
    (ite (or (is-nan32 a) (is-nan32 b) (and (is-inf32 a) (is-zero32 b))
             (and (is-zero32 a) (is-inf32 b))) (_ NaN 11 48)
    (ite (or (is-inf32 a) (is-inf32 b)) (fp sign #b11111111111 (_ bv0 47))
    (ite (or (is-zero32 a) (is-zero32 b)) (fp sign (_ bv0 11) (_ bv0 47))
    (ite (= ((_ extract 47 47) product) #b1)
      (fp sign (bvadd power (_ bv1 11)) ((_ extract 46 0) product))
      (fp sign power (concat ((_ extract 45 0) product) #b0))))))))
(define-fun rounded-once ((x Long) (y Long)) Wide
  (let ((cut (fp.add RTZ x y)))
    (ite (or (fp.isNaN cut) (fp.isInfinite cut) (fp.eq (fp.add RTN x y) (fp.add RTP x y)))
      ((_ to_fp 10 24) RNE (fp.add RNE x y))
      ((_ to_fp 10 24) RNE ((_ to_fp 11 48) (bvor (fp.to_ieee_bv cut) (_ bv1 59)))))))
"""


class Arithmetic(ABC):
    """A claim about a pipeline: its result is that of a formula, whatever goes in.

    Class attributes:
        title: what is claimed, in one line.
        component: the class under proof; a test hands a faulty one to the constructor.
        operands: (port, bits, cycle in which it is presented).
        formula: of the result, in SMT-LIB. distance: of two exponents, which decides the case.
        bounds: where one case ends and the next begins, rising.
        factors: of the component's one multiplication, where it is cut out: each of 48 bits, of
            which the low 24 begin with a one. The formula has its product as `product`.
    """

    title: ClassVar[str]
    component: ClassVar[type[wiring.Component]]
    operands: ClassVar[tuple[tuple[str, int, int], ...]]
    formula: ClassVar[str]
    distance: ClassVar[str]
    bounds: ClassVar[tuple[int, ...]]
    factors: ClassVar[tuple[str, str] | None] = None

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


class VectorMultiplyAdd(Arithmetic):
    """A slot of a lane's functions, or its first combination: the factors are fp32."""

    title = "a * b + c of the vector unit is rounded once, for all operands and products"
    component = FusedMultiplyAdd
    operands = (("a", 32, 0), ("b", 32, 0), ("c", 32, 1))
    formula = "(rounded-once (long-product a b product) ((_ to_fp 11 48) RNE (wide32 c)))"
    distance = "(bvsub (bvadd (exponent32 a) (exponent32 b)) (bvadd (exponent32 c) #x07f))"
    bounds = (-80, -48, -1, 0, 1, 2, 26, 80)
    factors = ("(significand32 a)", "(significand32 b)")

    def make(self) -> wiring.Component:
        return self._component(factor_bits=32, adder_stages=self.chip.vpu.adder_stages)

    @property
    def cycles(self) -> int:
        return 1 + self.chip.vpu.adder_stages


class VectorMultiply(Arithmetic):
    """A lane's second combination, and its squares."""

    title = "a * b of the vector unit is rounded once, for all operands and products"
    component = Multiplier
    operands = (("a", 32, 0), ("b", 32, 0))
    formula = "((_ to_fp 10 24) RNE (long-product a b product))"
    distance = "(bvsub (exponent32 a) (exponent32 b))"
    bounds = ()
    factors = ("(significand32 a)", "(significand32 b)")

    def make(self) -> wiring.Component:
        return self._component(adder_stages=self.chip.vpu.adder_stages)

    @property
    def cycles(self) -> int:
        return 1 + self.chip.vpu.adder_stages


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
    component = (folder / "top.smt2").read_text()
    sort = re.compile(r"^\(define-sort \|top_s\| .*\n", re.MULTILINE)
    states = "".join(f"(declare-const state{t} |top_s|)\n" for t in cycles)
    component = sort.sub(lambda found: found[0] + states, component)
    claims, facts = ["(= given wanted)"], []
    if arithmetic.factors is not None:
        component = _without_product(component, len(cycles))
        claims += [f"(= (factor{n} state0) {f})" for n, f in enumerate(arithmetic.factors)]
        facts = [f"(assert (bvuge product {_hex48(1 << 46)}))",
                 f"(assert (bvule product {_hex48(((1 << 24) - 1) ** 2)}))"]  # fmt: skip
    lines = [
        component,
        _REFERENCE,
        _LONG_REFERENCE,
        *(f"(assert (not (|top_n rst| state{t})))" for t in cycles),
        *(f"(assert (|top_t| state{t} state{t + 1}))" for t in cycles[:-1]),
        *(
            f"(define-fun {name} () (_ BitVec {bits}) (|top_n {name}| state{t}))"
            for name, bits, t in arithmetic.operands
        ),
        f"(define-fun given () (_ BitVec 32) (|top_n result| state{cycles[-1]}))",
        f"(define-fun wanted () (_ BitVec 32) (fp32 {arithmetic.formula}))",
        # Names for what a counterexample shows.
        *(f"(declare-const its_{n} (_ BitVec {bits}))(assert (= its_{n} {value}))"
          for n, bits, value in _shown(arithmetic)),
        *facts,
        f"(assert (not (and {' '.join(claims)})))",
    ]  # fmt: skip
    return "\n".join(lines)


def _without_product(component: str, cycles: int) -> str:
    """The component with any number, a cycle, in place of its one product of 48 bits.

    `product` is that of the first cycle; `factor0` and `factor1` are its factors in a state.

    Raises: FormalError where it has another number of multiplications.
    """
    whole = r"^(\(define-fun (\S+) (.*) \(bvmul (\(concat #b0+1 .*)\)\).*)$"
    found = re.findall(whole, component, re.MULTILINE)
    if len(found) != 1:
        raise FormalError(f"expected one product of two significands, not {len(found)}")
    ((line, name, head, factors),) = found
    depths = accumulate((c == "(") - (c == ")") for c in factors)
    between = 1 + list(depths).index(0)
    products = ["product", *(f"product{t}" for t in range(1, cycles))]
    by_state = products[-1]
    for t in reversed(range(cycles - 1)):
        by_state = f"(ite (= state state{t}) {products[t]} {by_state})"
    lines = [
        *(f"(declare-const {product} (_ BitVec 48))" for product in products),
        f"(define-fun factor0 {head} {factors[:between]})",
        f"(define-fun factor1 {head} {factors[between:]})",
        f"(define-fun {name} {head} {by_state})",
    ]
    return component.replace(line, "\n".join(lines))


def _hex48(number: int) -> str:
    return f"#x{number:012x}"


def _shown(arithmetic: Arithmetic) -> list[tuple[str, int, str]]:
    """(name, bits, value) of what a counterexample shows."""
    shown = [(name, bits, name) for name, bits, _ in arithmetic.operands]
    if arithmetic.factors is not None:
        shown += [(f"factor{n}", 48, f"(factor{n} state0)") for n in (0, 1)]
        shown.append(("product", 48, "product"))
    return [*shown, ("given", 32, "given"), ("wanted", 32, "wanted")]


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


def _told(model: Any, shown: list[tuple[str, int, str]]) -> str:
    values = {}
    for name, bits, _ in shown:
        found = next((model[d] for d in model.decls() if d.name() == f"its_{name}"), None)
        values[name] = f"{found.as_long() if found is not None else 0:#0{bits // 4 + 2}x}"
    given, wanted = values.pop("given"), values.pop("wanted")
    operands = ", ".join(f"{name} = {value}" for name, value in values.items())
    return f"{operands} gives {given}, not {wanted}"
