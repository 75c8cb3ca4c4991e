"""sim against its references on random programs: bits with interp, cycles with a cycle stepper."""

import random

import numpy as np
import pytest
from test_isa_programs import without_one_token
from timing_reference import TimedRun

from tapeout.chip import Chip, load
from tapeout.isa.assembler import assemble
from tapeout.isa.errors import DeadlockError, ProgramError
from tapeout.isa.interp import Interp
from tapeout.rtl.verification.programs import Case, random_program
from tapeout.sim import Sim

HBM_BYTES = 1 << 20
CHIPS = {
    "tiny": load("tiny"),
    "wide": load("tiny", ["lanes=16", "mxu.cols=16", "dma.queues=3", "dma.bytes_per_cycle=64"]),
    "scarce": load(
        "tiny",
        ["dma.credits=2", "seq.fetch_lines=2", "seq.fetch_line_instructions=4",
         "hbm.interleave_bytes=128", "dma.bytes_per_cycle=40", "dma.dequant_elements_per_cycle=24"],
    ),
}  # fmt: skip


def outcome(case: Case, target: Interp | Sim) -> dict | type[ProgramError]:
    try:
        return case.run(target)
    except ProgramError as error:
        return type(error)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("seed", range(8))
def test_bits_of_interp(seed: int, chip: Chip) -> None:
    case = random_program(seed, chip)
    expected = case.run(Interp(chip, hbm_bytes=HBM_BYTES))
    got = case.run(Sim(chip, hbm_bytes=HBM_BYTES))
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.parametrize("seed", range(8))
def test_checks_change_nothing_and_timing_alone_gives_the_same_cycles(seed: int) -> None:
    case = random_program(seed, CHIPS["tiny"])
    results = []
    for checks in (True, False):
        sim = Sim(case.chip, checks=checks, hbm_bytes=HBM_BYTES)
        handle, _ = case.load(sim)
        results += [sim.run(handle), sim.run(handle, functional=False), sim.run(handle)]
    assert results[0] == results[3]  # with checks and without, both functional
    assert results[0].instructions > 50
    for report in results[0].queues.values():
        total = report.busy_cycles + report.stall_cycles + report.idle_cycles
        assert total == results[0].cycles


@pytest.mark.parametrize("seed", range(16))
def test_the_same_class_of_error_without_a_token(seed: int) -> None:
    broken = without_one_token(random_program(seed, blocks=6), random.Random(seed))
    if broken is None:
        pytest.skip("the program has no token outside loops")
    expected = outcome(broken, Interp(broken.chip, hbm_bytes=HBM_BYTES))
    got = outcome(broken, Sim(broken.chip, hbm_bytes=HBM_BYTES))
    assert got == expected if isinstance(expected, type) else isinstance(got, dict)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
@pytest.mark.parametrize("seed", range(6))
def test_cycles_of_the_stepper(seed: int, chip: Chip) -> None:
    case = random_program(seed, chip, blocks=12)
    sim = Sim(chip, hbm_bytes=HBM_BYTES)
    handle, _ = case.load(sim)
    result = sim.run(handle, trace=True)
    target = Interp(chip, hbm_bytes=HBM_BYTES)
    loaded, _ = case.load(target)
    slow = TimedRun(chip, target, loaded, handle.code)
    assert result.cycles == slow.cycles()
    trace = result.trace
    assert trace is not None
    for number, queue in enumerate(slow.queues):
        mine = trace.queue == number
        issued = list(zip(trace.pc[mine].tolist(), trace.issue[mine].tolist(), strict=True))
        assert issued == [(pc, entry.issue) for pc, entry in queue.events]
        assert trace.retire[mine].tolist() == [entry.retire for _, entry in queue.events]


@pytest.mark.parametrize("function", ["", " function=neg"])
def test_the_result_may_take_the_place_of_the_last_operand(function: str) -> None:
    """d is the result's row: it is read before the first combination's result goes anywhere."""
    where = f"dst=vmem[1:0:0]{function}"
    text = f"""
    .queue vpu
      vpu.map rows=1 a=#3.0 dst=vmem[0:0:0]
      vpu.map rows=1 a=#5.0 dst=vmem[1:0:0]
      seq.nop drain
      vpu.map rows=1 a=vmem[0:0:0] b=#2.0 combine=mul d=vmem[1:0:0] combine2=sub {where}
      seq.halt
    """
    rows = []
    for target in (Interp(CHIPS["tiny"], hbm_bytes=HBM_BYTES), Sim(CHIPS["tiny"])):
        target.run(target.load(assemble(text, CHIPS["tiny"]), {}))
        rows.append(target.peek("vmem")[1].tolist())
    assert rows[0] == rows[1] == [(-6.0 if function else 6.0) - 5.0] * 8


@pytest.mark.parametrize("seed", range(8))
def test_a_limit_of_cycles_stops_just_the_runs_that_are_longer(seed: int) -> None:
    case = random_program(seed, CHIPS["tiny"], blocks=8)
    sim = Sim(case.chip, hbm_bytes=HBM_BYTES)
    handle, _ = case.load(sim)
    whole = sim.run(handle)
    sim.limit_cycles = whole.cycles
    assert sim.run(handle) == whole
    for sim.limit_cycles in (whole.cycles - 1, whole.cycles // 2, 1):
        with pytest.raises(TimeoutError, match=f"not ended after {sim.limit_cycles} cycles"):
            sim.run(handle)


def test_a_deadlock_within_the_limit_is_a_deadlock() -> None:
    program = assemble(".queue mxu\n seq.nop waits=vpu.0\n seq.halt\n", CHIPS["tiny"])
    sim = Sim(CHIPS["tiny"], hbm_bytes=HBM_BYTES, limit_cycles=1000)
    with pytest.raises(DeadlockError):
        sim.run(sim.load(program, {}))
