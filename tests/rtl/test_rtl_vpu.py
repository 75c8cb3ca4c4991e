"""The hardware's vector unit against `interp` (every byte) and `sim` (every cycle)."""

from dataclasses import replace

import numpy as np
import pytest
from vector_maps import Maps

from tapeout.chip import Chip, load
from tapeout.isa import Program, seq
from tapeout.isa.instruction import Instruction, Resolved
from tapeout.isa.interp import Core
from tapeout.isa.memory import HbmMemory, Log
from tapeout.isa.vpu import Combine, Combine2, Function, Map, Reduce
from tapeout.rtl.target import Rtl
from tapeout.sim import Sim

HBM_BYTES = 1 << 20
CHIPS = {"tiny": load("tiny")}


@pytest.fixture(scope="module", params=CHIPS.values(), ids=CHIPS)
def chip(request: pytest.FixtureRequest) -> Chip:
    return request.param


@pytest.fixture(scope="module")
def target(chip: Chip) -> Rtl:
    return Rtl(chip, hbm_bytes=HBM_BYTES, limit_cycles=200_000)


def expected_contents(
    chip: Chip, contents: dict[str, np.ndarray], stream: list[Instruction]
) -> dict[str, np.ndarray]:
    """What interp makes of the memories, one instruction after another."""
    log = Log()
    core = Core(chip, HbmMemory(1 << 12, log), log)
    for name, values in contents.items():
        memory = getattr(core, name)
        memory.values[:] = values
        memory.written[:] = True
    for instruction in stream:
        if isinstance(instruction, Map):
            Map.execute(core, Resolved(instruction, [0] * chip.seq.registers))
    return {name: getattr(core, name).values for name in contents}


def check(target: Rtl, contents: dict[str, np.ndarray], maps: list[Map]) -> None:
    """Runs maps on the vpu queue: memories as interp's, cycles as sim's."""
    chip = target.chip
    program = Program(chip.name, {"vpu": [*maps, seq.Halt()]})
    for name, values in contents.items():
        target.poke(name, values)
    got = target.run(target.load(program, {}))
    expected = expected_contents(chip, contents, maps)
    for name, values in expected.items():
        kind = np.uint16 if name == "spm" else np.uint32
        mine, its = target.peek(name).view(kind), np.ascontiguousarray(values).view(kind)
        wrong = [tuple(at) for at in np.argwhere(mine != its)[:8].tolist()]
        assert not wrong, (name, [(at, f"{mine[at]:x}", f"{its[at]:x}") for at in wrong])
    sim = Sim(chip, checks=False, hbm_bytes=HBM_BYTES)
    timed = sim.run(sim.load(program, {}), trace=True)
    assert timed.trace is not None
    for column in ("pc", "issue", "retire"):
        np.testing.assert_array_equal(
            got.events[column], getattr(timed.trace, column), err_msg=column
        )


@pytest.mark.parametrize("seed", range(60))
def test_one_after_another(seed: int, target: Rtl) -> None:
    maps = Maps(seed, target.chip)
    stream = [replace(maps.draw(), drain=True) for _ in range(12)]
    check(target, maps.contents(), stream)


@pytest.mark.parametrize("seed", range(60))
def test_overlapping_in_time(seed: int, target: Rtl) -> None:
    """What a map writes is read by none, so nothing has to drain; writes land in order."""
    maps = Maps(1000 + seed, target.chip)
    stream = [maps.draw(reduce=Reduce.NONE) for _ in range(12)]
    check(target, maps.contents(), stream)


@pytest.mark.parametrize("function", list(Function), ids=lambda f: f.name.lower())
def test_functions(function: Function, target: Rtl) -> None:
    maps = Maps(int(function), target.chip)
    stream = [replace(maps.draw(function=function), drain=n % 3 == 0) for n in range(12)]
    check(target, maps.contents(), [replace(m, drain=True) for m in stream])


@pytest.mark.parametrize("combine", list(Combine), ids=lambda f: f.name.lower())
def test_combinations(combine: Combine, target: Rtl) -> None:
    maps = Maps(int(combine), target.chip)
    for combine2 in Combine2:
        stream = [
            replace(maps.draw(combine=combine, combine2=combine2), drain=True) for _ in range(4)
        ]
        check(target, maps.contents(), stream)


@pytest.mark.parametrize("reduce", list(Reduce)[1:], ids=lambda f: f.name.lower())
def test_reductions(reduce: Reduce, target: Rtl) -> None:
    maps = Maps(int(reduce), target.chip)
    for _ in range(6):
        stream = [replace(maps.draw(reduce=reduce), drain=True) for _ in range(8)]
        check(target, maps.contents(), stream)
