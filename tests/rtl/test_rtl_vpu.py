"""The hardware's vector unit against `interp` (every byte) and `sim` (every cycle)."""

from dataclasses import replace

import numpy as np
import pytest
from rtl_chips import CHIPS, PARAMS
from vector_maps import Maps

from tapeout.chip import Chip
from tapeout.isa import Addr, Count, Kind, Operand, Program, seq
from tapeout.isa.errors import ProgramError
from tapeout.isa.instruction import Instruction, Resolved
from tapeout.isa.interp import Core
from tapeout.isa.memory import HbmMemory, Log
from tapeout.isa.vpu import Combine, Combine2, Function, Map, Mask, Reduce
from tapeout.rtl.target import Rtl
from tapeout.sim import Sim

HBM_BYTES = 1 << 24


@pytest.fixture(scope="module", params=PARAMS)
def chip(request: pytest.FixtureRequest) -> Chip:
    return CHIPS[request.param]


@pytest.fixture
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


def broken(maps: Maps) -> Map:
    """A map with one or two fields that are wrong, most of the time."""
    rng, chip = maps.rng, maps.chip
    one = maps.draw()
    high, beyond = max(chip.spm.rows, chip.vmem.rows, chip.acc.rows), (1 << 20) - 2
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice(["a", "b", "c", "d", "dst"])
        operand = getattr(one, name)
        far = {"imm": rng.choice([chip.vmem.rows - 1, chip.acc.rows - 1, high - 1, high, beyond])}
        far |= rng.choice([{}, {"tile_stride": 1 << 13}, {"row_stride": 1022}, {"reg": 1}])
        changes: list[dict] = [
            {"tiles": 0},
            {"rows": Count(rng.choice([0, 65535]), rng.choice([0, 1, 2]))},
            {"width": Count(3, 1)},
            {"roll": chip.lanes},
            {"xor": chip.lanes},
            {"lane_begin": chip.lanes + 1},
            {"lane_end": chip.lanes + 1},
            {"reduce": rng.choice(list(Reduce)), "reduce_accumulate": rng.random() < 0.5},
            {"reduce_dst": Addr(rng.choice([0, chip.vmem.rows - 1, chip.vmem.rows]), 1)},
            {"mask": Mask.NOT_INDEX, "limit": rng.choice([-1, chip.vmem.rows - 1, chip.vmem.rows])},
            {"combine": rng.choice(list(Combine))},
            {"combine2": rng.choice(list(Combine2))},
            {name: Operand()},
            {name: Operand(Kind.ROW_SCALAR, 1)},
            {name: Operand(Kind.IMMEDIATE)},
            {name: Operand(rng.choice([Kind.SPM_FP32, Kind.SPM_BF16]), 3, 0, 2, 2)},
        ]
        if operand.kind not in (Kind.NONE, Kind.IMMEDIATE):
            changes += [{name: replace(operand, **far)}] * 8
        one = replace(one, **rng.choice(changes))
    return one


def outcome(target: Sim | Rtl, program: Program) -> tuple | None:
    """(fault, queue, pc) of the error that a program ends with."""
    try:
        target.run(target.load(program, {}))
    except ProgramError as error:
        return error.fault, error.queue, error.pc
    return None


def test_faults_of_sim(target: Rtl) -> None:
    chip, found = target.chip, set()
    maps = Maps(0, chip)
    sim = Sim(chip, checks=False, hbm_bytes=HBM_BYTES)
    for _ in range(400):
        one = broken(maps)
        start = [seq.Set(dst=1, value=maps.rng.choice([0, -5, -70_000])), seq.Set(dst=2, value=1)]
        program = Program(chip.name, {"vpu": [*start, one, seq.Halt()]})
        expected = outcome(sim, program)
        assert outcome(target, program) == expected, str(one)
        found.add(expected[0] if expected else None)
    assert found == {None, *Map.faults}
