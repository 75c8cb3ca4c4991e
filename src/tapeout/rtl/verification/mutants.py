"""Faults in the hardware itself: how many of them random programs find.

Contract: mutants are drawn at random over the Verilog of a core, the same for the same chip, number
and seed. All are in one core, a line each, which goes wrong where the core's input `mutant` has the
fault's number; with 0 it is the core that `verify` runs. A mutant is caught by the first program on
which the hardware and `sim` differ.

Not drawn from: macros of memories and delay lines, resets, and names for other signals.
"""

import ctypes
import dataclasses
import json
import multiprocessing
import random
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tapeout.chip import Chip, to_toml
from tapeout.rtl.apart import set_apart
from tapeout.rtl.boxes import Boxes
from tapeout.rtl.build import BENCH_SOURCES, apart_of, compiled, ports_of
from tapeout.rtl.core import Core
from tapeout.rtl.target import Rtl
from tapeout.rtl.verilog import modules

from .compare import (
    HBM_BYTES,
    LIMIT_CYCLES,
    Difference,
    Expected,
    Unsound,
    compare_hardware,
    expected,
)
from .equal import changes_nothing
from .faults import with_faults
from .programs import random_program
from .run import BLOCKS

_NUMBER_BITS = 16
_LIMIT_CYCLES = 1 << 15  # of a program that stops with an error
_NAME = r"(?:\\\S+ |[A-Za-z_]\w*)(?: ?\[[\d:]+\])?"
_CONSTANT = r"\d+'s?[hdb][0-9a-fA-F]+"
_OPERAND = rf"(?:\$signed\([^()]*\)|\{{[^{{}}?]*\}}|{_CONSTANT}|{_NAME}) ?"
_BINARY = re.compile(rf"({_OPERAND}) (>>>|<<|>>|[<>=!]=|[-+*&|^<>]) ({_OPERAND})")
_UNARY = re.compile(rf"([!~|&]) ({_OPERAND})")
_CHOICE = re.compile(rf"({_OPERAND}) \? ({_OPERAND}) : ({_OPERAND})")
_ASSIGN = re.compile(r"(  assign .*? = )(.*);")
_UPDATE = re.compile(rf"( +)({_NAME}) ?<= (.*);")
_SET = re.compile(rf"( {{6,}}{_NAME} ?= )({_CONSTANT});")
_CONDITION = re.compile(r"( +if )\((.*)\) begin")
# What a designer may mix up; an operator is replaced by one of the row's others.
_MIXED = (("+", "-"), ("&", "|", "^"), ("==", "!="), ("<", "<="), (">", ">="), ("<<", ">>"),
          (">>>", ">>"), ("*", "+"))  # fmt: skip
_MIXED_UNARY = {"!": "|", "~": "", "|": "&", "&": "|"}


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        number: from 1 on.
        kind: operator, operand, constant, condition or update.
        module: whose text has it, in each of its instances.
        line, becomes: of the Verilog, stripped.
        caught_by: the seed of the program that found it, and `what` differed; None: no program did.
        is_equal: none can (`equal.changes_nothing`).
    """

    number: int
    kind: str
    module: str
    line: str
    becomes: str
    caught_by: int | None = None
    what: str = ""
    is_equal: bool = False


@dataclass(frozen=True)
class _Site:
    """A place for a fault: line `at` of a module's text, which `becomes` with `good` and `bad`."""

    kind: str
    module: str
    at: int
    form: str  # with {} for the expression
    good: str
    bad: str


def mutate(text: str, macros: set[str], count: int, seed: int) -> tuple[str, list[Mutant]]:
    """The core's Verilog with `count` faults to select, and the faults.

    Args:
        macros: modules that have none.

    Raises: ValueError where there are fewer places.
    """
    rng = random.Random(seed)
    bodies = {name: body.splitlines() for name, body in modules(text)}
    by_kind: dict[str, list[_Site]] = {}
    for name in sorted(bodies.keys() - macros):
        for site in _sites(name, bodies[name], rng):
            by_kind.setdefault(site.kind, []).append(site)
    places = {(site.module, site.at) for sites in by_kind.values() for site in sites}
    if count > len(places):
        raise ValueError(f"{count} mutants: there are places for {len(places)}")
    mutants: list[Mutant] = []
    taken: set[tuple[str, int]] = set()
    while len(mutants) < count:
        site = rng.choice(by_kind[rng.choice(sorted(by_kind))])
        if (site.module, site.at) in taken:
            continue
        taken.add((site.module, site.at))
        number = len(mutants) + 1
        body = bodies[site.module]
        line, becomes = body[site.at].strip(), site.form.format(site.bad).strip()
        mutants.append(Mutant(number, site.kind, site.module, line, becomes))
        body[site.at] = site.form.format(f"({_select(number)}) ? ({site.bad}) : ({site.good})")
    for name in bodies.keys() - macros:
        bodies[name] = _with_input(bodies[name], bodies.keys() - macros)
    return "\n\n".join("\n".join(body) for body in bodies.values()) + "\n", mutants


def _select(number: object) -> str:
    return f"mutant == {_NUMBER_BITS}'d{number}"


def _sites(module: str, body: list[str], rng: random.Random) -> Iterator[_Site]:
    resets = False
    for at, line in enumerate(body):
        if resets or "$auto$" in line:
            resets = False
            continue
        if found := _CONDITION.fullmatch(line):
            resets = found[2].strip() == "rst"
            if not resets:
                form = _escaped(found[1]) + "({}) begin"
                yield _Site("condition", module, at, form, found[2], f"!({found[2]})")
        elif found := _ASSIGN.fullmatch(line):
            for kind, bad in _wrong(found[2], rng):
                yield _Site(kind, module, at, _escaped(found[1]) + "{};", found[2], bad)
        elif found := _SET.fullmatch(line):
            bad = _next(found[2])
            yield _Site("constant", module, at, _escaped(found[1]) + "{};", found[2], bad)
        elif found := _UPDATE.fullmatch(line):
            form = f"{found[1]}{_escaped(found[2])} <= {{}};"
            yield _Site("update", module, at, form, found[3], found[2])


def _wrong(right: str, rng: random.Random) -> Iterator[tuple[str, str]]:
    """(kind, expression) of what may stand there by mistake."""
    if found := _BINARY.fullmatch(right):
        a, operator, b = found.groups()
        others = [o for row in _MIXED if operator in row for o in row if o != operator]
        yield "operator", f"{a} {rng.choice(others)} {b}"
        if re.fullmatch(_CONSTANT, b.strip()):
            yield "constant", f"{a} {operator} {_next(b.strip())}"
    elif found := _UNARY.fullmatch(right):
        yield "operator", f"{_MIXED_UNARY[found[1]]} {found[2]}"
    elif found := _CHOICE.fullmatch(right):
        yield "operand", f"{found[1]} ? {found[3]} : {found[2]}"


def _next(constant: str) -> str:
    """One more, in as many bits."""
    width, value = constant.split("'")
    number = int(value.lstrip("s")[1:], {"h": 16, "d": 10, "b": 2}[value.lstrip("s")[0]])
    digits = f"h{(number + 1) % (1 << int(width)):x}"
    return f"{width}'{'s' if value.startswith('s') else ''}{digits}"


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _with_input(body: list[str], names: set[str]) -> list[str]:
    """The module with an input `mutant`, which its instances of `names` get, too."""
    end = next(at for at, line in enumerate(body) if line.endswith(");"))
    head = "\n".join(body[: end + 1]).replace("(", "(mutant, ", 1)
    lines = [head, f"  input [{_NUMBER_BITS - 1}:0] mutant;"]
    for line in body[end + 1 :]:
        found = re.fullmatch(r"  (\\\S+|\w+) +(?:\\\S+ |\w+) +\(", line)
        is_instance = found is not None and found[1].removeprefix("\\") in names
        lines.append(f"{line} .mutant(mutant)," if is_instance else line)
    return lines


def library(chip: Chip, count: int, seed: int) -> Path:
    """The shared library of a core with `count` faults to select.

    Raises: BuildError.
    """

    def files() -> dict[str, str]:
        core, boxes = Core(chip), Boxes()
        mutated, mutants = _mutated(core, boxes, count, seed)
        listed = json.dumps([dataclasses.asdict(m) for m in mutants])
        return {
            **set_apart(mutated, "core", apart_of(chip)),
            "core.vlt": boxes.verilator_configuration(),
            "ports.inc": f'{ports_of(core)}#define MUTANTS R"json({listed})json"\n',
        }

    parameters = f"{to_toml(chip)}\0{count}\0{seed}"
    shared = ("rtl/verification",)
    name = f"{chip.name}-mutants"
    apart = apart_of(chip)
    return compiled(name, "core", parameters, files, BENCH_SOURCES, shared=shared, apart=apart)


def _mutated(core: Core, boxes: Boxes, count: int, seed: int) -> tuple[str, list[Mutant]]:
    text = boxes.convert(core, "core")
    return mutate(text, {name for name, _ in modules(boxes.texts)}, count, seed)


class MutantRtl(Rtl):
    """A core with faults: `select` says which one it has, none at first."""

    def __init__(self, chip: Chip, built: Path) -> None:
        super().__init__(chip, hbm_bytes=HBM_BYTES, built=built)
        self._native.bench_mutants.restype = ctypes.c_char_p
        self.mutants = [Mutant(**m) for m in json.loads(self._native.bench_mutants())]

    def select(self, number: int) -> None:
        self._native.bench_select(self._bench, number)


def references(chip: Chip, programs: int, seed: int) -> list[tuple[int, Expected]]:
    """(seed, what it does) of the programs that `verify` runs, each with faults planted, too."""
    found = []
    for number in range(seed, seed + programs):
        case = random_program(number, chip, BLOCKS)
        for each in (case, *with_faults(case, number)):
            try:
                wanted = expected(each)
            except Unsound:
                continue
            if isinstance(wanted, Difference):
                raise AssertionError(f"interp and sim differ: {wanted.what}")
            found.append((number, wanted))
    return found


def hunt(
    chip: Chip,
    *,
    count: int,
    programs: int,
    seed: int = 0,
    jobs: int = 1,
    progress: Callable[[Sequence[Mutant]], None] | None = None,
) -> list[Mutant]:
    """Draws `count` faults and runs up to `programs` programs on each, until one finds it.

    Args:
        jobs: processes that do.

    Raises: AssertionError where a core without a fault differs.
    """
    built = library(chip, count, seed)
    sound = MutantRtl(chip, built)
    too_long = set()  # for one mutant after another
    for at, (number, each) in enumerate(references(chip, programs, seed)):
        if _difference(each, sound, _LIMIT_CYCLES) is None:
            continue
        found = _difference(each, sound, LIMIT_CYCLES)
        if found is not None:
            raise AssertionError(f"without a fault, program {number} differs: {found.what}")
        too_long.add(at)
    judged: list[Mutant] = []
    context = multiprocessing.get_context("spawn")
    start = (chip, built, programs, seed, too_long)
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=start) as pool:
        for mutant in pool.map(_judged, sound.mutants):
            judged.append(mutant)
            if progress is not None:
                progress(judged)
    return _with_equals(chip, judged, seed, jobs)


def _with_equals(chip: Chip, judged: list[Mutant], seed: int, jobs: int) -> list[Mutant]:
    """Those that nothing found are looked at: some change nothing."""
    if all(m.caught_by is not None for m in judged):
        return judged
    text, _ = _mutated(Core(chip), Boxes(), len(judged), seed)
    bodies = dict(modules(text))

    def looked_at(mutant: Mutant) -> Mutant:
        if mutant.caught_by is not None:
            return mutant
        good, bad = (_chosen(bodies[mutant.module], n) for n in (0, mutant.number))
        return dataclasses.replace(mutant, is_equal=changes_nothing(good, bad, bodies))

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(looked_at, judged))


def _chosen(body: str, number: int) -> str:
    """A module's text with the one fault, or 0: none."""
    return re.sub(
        rf"{_select('')}(\d+)", lambda found: "1'b1" if found[1] == str(number) else "1'b0", body
    )


@dataclass(frozen=True)
class _Here:
    """What this process hunts with."""

    chip: Chip
    built: Path
    wanted: list[tuple[int, Expected]]


_here: list[_Here] = []


def _begin(chip: Chip, built: Path, programs: int, seed: int, too_long: set[int]) -> None:
    wanted = [
        each for at, each in enumerate(references(chip, programs, seed)) if at not in too_long
    ]
    _here.append(_Here(chip, built, wanted))


def _judged(mutant: Mutant) -> Mutant:
    here = _here[0]
    rtl = MutantRtl(here.chip, here.built)
    rtl.select(mutant.number)
    for number, each in here.wanted:
        found = _difference(each, rtl, _LIMIT_CYCLES)
        if found is not None:
            return dataclasses.replace(mutant, caught_by=number, what=found.what)
    return mutant


def _difference(wanted: Expected, rtl: Rtl, limit_cycles: int) -> Difference | None:
    try:
        found = compare_hardware(wanted, rtl, limit_cycles=limit_cycles)
    except Unsound:
        return None
    return found if isinstance(found, Difference) else None
