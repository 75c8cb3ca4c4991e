"""One program on `interp`, `sim` and `rtl`: what differs, if anything does.

Compared are every byte of spm, vmem, acc and of the writable segments of HBM on all three, and
between `sim` and `rtl` the issue and retire cycle of every instruction and the cycles of the whole.
Where the program stops with a hardware error, `sim` and `rtl` must stop with the same code at the
same instruction. Programs that break a rule of the model alone (a race, a bank conflict, a read of
unwritten lanes) have no meaning in hardware: they are refused.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeout.chip import Chip
from tapeout.isa.errors import ProgramError
from tapeout.isa.fields import WORD_BYTES
from tapeout.isa.instruction import Fault, Instruction
from tapeout.isa.interp import Interp
from tapeout.isa.program import Program, channel_bit
from tapeout.rtl.target import HardwareDefect, Rtl
from tapeout.sim import Sim
from tapeout.sim.result import RunResult

from .programs import Case

HBM_BYTES = 1 << 20
LIMIT_CYCLES = 1 << 18  # a random program takes a hundredth; with a fault planted, perhaps eons
_MEMORIES = ("spm", "vmem", "acc")


class Unsound(ValueError):
    """Not to be compared: the program breaks a rule that only the model sees, so hardware may do
    anything, or it takes too long."""


@dataclass(frozen=True)
class Difference:
    """Two targets disagree.

    Attributes:
        what: in words: the place, and what each target has there.
    """

    what: str


@dataclass(frozen=True)
class Agreement:
    """All targets agree on a run.

    Attributes:
        instructions, cycles: of the run; no cycles where it stopped with an error.
        fault: the code that it stopped with.
    """

    instructions: int
    cycles: int
    fault: Fault = Fault.NONE


@dataclass(frozen=True)
class _Run:
    result: Any
    memory: dict[str, np.ndarray]
    error: ProgramError | None


@dataclass(frozen=True)
class Expected:
    """What a case does on `sim`, and on `interp` where no error stops it: the same bytes."""

    case: Case
    sim: _Run
    interp: _Run


def hardware(chip: Chip) -> Rtl:
    """The chip's core, for `compare`: it may run any number of cases."""
    return Rtl(chip, hbm_bytes=HBM_BYTES)


def compare(case: Case, rtl: Rtl) -> Agreement | Difference:
    """Runs a case on all three targets.

    Raises: Unsound.
    """
    wanted = expected(case)
    if isinstance(wanted, Difference):
        return wanted
    return compare_hardware(wanted, rtl)


def expected(case: Case) -> Expected | Difference:
    """Runs a case on `sim` and `interp`.

    Raises: Unsound.
    """
    target = Sim(case.chip, hbm_bytes=HBM_BYTES, limit_cycles=LIMIT_CYCLES)
    try:
        sim = _run(case, target, trace=True)
    except TimeoutError as error:
        raise Unsound(str(error)) from error
    if sim.error is not None:
        if sim.error.fault == Fault.NONE:
            raise Unsound(str(sim.error))
        return Expected(case, sim, sim)
    interp = _run(case, Interp(case.chip, hbm_bytes=HBM_BYTES))
    if interp.error is not None:
        return Difference(f"interp stops ({interp.error}), sim does not")
    if found := _compare_memory(interp.memory, sim.memory, "sim"):
        return Difference(found)
    return Expected(case, sim, interp)


def compare_hardware(
    wanted: Expected, rtl: Rtl, *, limit_cycles: int = LIMIT_CYCLES
) -> Agreement | Difference:
    """Runs a case on the hardware, which still holds what its last program left on the chip.

    Raises: Unsound.
    """
    sim = wanted.sim
    rtl.reset()
    rtl.limit_cycles = limit_cycles if sim.error is not None else sim.result.cycles + 1000
    try:
        its = _run(wanted.case, rtl)
    except (HardwareDefect, TimeoutError) as error:
        return Difference(f"the hardware: {error}")
    if sim.error is not None or its.error is not None:
        judged = _compare_errors(sim, its)
        if isinstance(judged, Difference) and _may_fit(wanted.case, sim.error):
            raise Unsound("the channel overflows unless tokens are taken in time")
        return judged
    found = (
        _compare_memory(wanted.interp.memory, its.memory, "rtl")
        or _compare_cycles(wanted.case, sim.result, its.result)
        or _compare_counters(sim.result, its.result)
    )
    if found:
        return Difference(found)
    return Agreement(len(sim.result.trace.pc), sim.result.cycles)


def _may_fit(case: Case, error: ProgramError | None) -> bool:
    """Whether the error is an overflow, and something takes tokens of the channel.

    `sim` asks that the producer knows of it; in hardware the tokens may have been taken in time.
    """
    if error is None or error.fault != Fault.TOKEN_OVERFLOW:
        return False
    names, per_pair = case.chip.queue_names, case.chip.tokens.channels_per_pair
    producer = names.index(error.queue)
    posts = _masks(case, error.queue, "posts")[error.pc]
    return any(
        posts >> channel_bit(producer, consumer, n, per_pair) & 1
        and any(
            waits >> channel_bit(consumer, producer, n, per_pair) & 1
            for waits in _masks(case, name, "waits")
        )
        for consumer, name in enumerate(names)
        if consumer != producer
        for n in range(per_pair)
    )


def _masks(case: Case, queue: str, name: str) -> list[int]:
    """The field `waits` or `posts` of each word of a queue, which need not be an instruction."""
    if queue not in case.program.streams:
        return []
    code = case.program.encode(queue)
    bit, spec = next((b, s) for n, b, s in Instruction.layout() if n == name)
    words = (code[at : at + WORD_BYTES] for at in range(0, len(code), WORD_BYTES))
    return [int.from_bytes(w, "little") >> bit & (1 << spec.width) - 1 for w in words]


def _run(case: Case, target: Any, **options: Any) -> _Run:
    handle, bases = case.load(target)
    try:
        result = target.run(handle, **options)
    except ProgramError as error:
        return _Run(None, {}, error)
    memory = {
        f"b{base}": np.asarray(target.read(address, nbytes))
        for base, (address, nbytes, writable) in bases.items()
        if writable
    }
    for name in _MEMORIES:
        content = np.ascontiguousarray(target.peek(name))
        memory[name] = content.view(np.uint16 if name == "spm" else np.uint32)
        if hasattr(target, "peek_written"):
            memory[f"{name} written"] = target.peek_written(name)
    return _Run(result, memory, None)


def _compare_memory(expected: dict[str, np.ndarray], got: dict[str, np.ndarray], name: str) -> str:
    """The first difference to interp's memory, of what the program has written."""
    for place, values in expected.items():
        if place.endswith(" written"):
            if place in got and not np.array_equal(values, got[place]):
                at = np.argwhere(values != got[place])[0]
                return (
                    f"{place[: -len(' written')]} {_place(at)} is written on one of interp, {name}"
                )
            continue
        differs = values != got[place]
        written = expected.get(f"{place} written")
        if written is not None:
            differs &= written
        if differs.any():
            at = tuple(np.argwhere(differs)[0])
            return (
                f"{place} {_place(at)}: interp has {int(values[at]):#x}, "
                f"{name} {int(got[place][at]):#x}; {int(differs.sum())} places differ"
            )
    return ""


def _place(at: Any) -> str:
    return f"byte {at[0]}" if len(at) == 1 else f"row {at[0]} lane {at[1]}"


def _compare_cycles(case: Case, sim: Any, rtl: Any) -> str:
    trace = sim.trace
    for number, queue in enumerate(case.chip.queue_names):
        mine, its = trace.queue == number, rtl.events[rtl.events["queue"] == number]
        if int(mine.sum()) != len(its):
            return f"{queue} issues {int(mine.sum())} instructions on sim, {len(its)} on rtl"
        for column in ("pc", "issue", "retire"):
            expected = getattr(trace, column)[mine]
            differs = np.flatnonzero(its[column] != expected)
            if len(differs):
                at = differs[0]
                where = _at(case.program, queue, int(trace.pc[mine][at]))
                return (
                    f"{column} of instruction {at} of {queue} ({where}): "
                    f"sim {expected[at]}, rtl {its[column][at]}"
                )
    if sim.cycles != rtl.cycles:
        return f"sim takes {sim.cycles} cycles, rtl {rtl.cycles}"
    return ""


def _compare_counters(sim: RunResult, rtl: RunResult) -> str:
    for name, mine in sim.queues.items():
        if mine != rtl.queues[name]:
            return f"counters of {name}: sim {mine}, rtl {rtl.queues[name]}"
    for name in rtl.bytes:
        if sim.bytes[name] != rtl.bytes[name]:
            return f"bytes {name}: sim {sim.bytes[name]}, rtl {rtl.bytes[name]}"
    if sim.hbm != rtl.hbm:
        return f"HBM: sim {sim.hbm}, rtl {rtl.hbm}"
    return ""


def _at(program: Program, queue: str, pc: int) -> str:
    return f"pc {pc}: {program.streams[queue][pc]}"


def _compare_errors(sim: _Run, rtl: _Run) -> Agreement | Difference:
    mine, its = (_stop(r.error) for r in (sim, rtl))
    if mine != its:
        return Difference(f"sim stops with {mine}, rtl with {its}")
    assert sim.error is not None
    return Agreement(0, 0, sim.error.fault)


def _stop(error: ProgramError | None) -> str:
    if error is None:
        return "no error"
    whole = error.fault in (Fault.DEADLOCK, Fault.TOKEN_LEFTOVER, Fault.TOKEN_OVERFLOW)
    return error.fault.name if whole else f"{error.fault.name} at {error.queue} pc {error.pc}"
