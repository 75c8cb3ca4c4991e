"""The shell around a core, on memory that answers late: programs, faults, errors, registers."""

from typing import Any

import numpy as np
import pytest
from rtl_chips import CHIPS

from tapeout.isa.assembler import assemble
from tapeout.isa.instruction import Fault
from tapeout.isa.interp import Interp
from tapeout.isa.program import Program
from tapeout.rtl.shell.registers import IDENTITY
from tapeout.rtl.shell.target import BusError, Ending, Shell
from tapeout.rtl.verification.programs import Case, random_program

pytestmark = pytest.mark.slow  # builds the shell, in minutes

CHIP = CHIPS["tiny"]
HBM_BYTES = 1 << 20
STATUS_RUNNING = 1


def differences(case: Case, shell: Shell) -> list[str]:
    """Where the shell leaves other bits than interp, of what the program has written."""
    interp = Interp(CHIP, hbm_bytes=HBM_BYTES)
    expected, bases = case.load(interp)
    interp.run(expected)
    handle, its_bases = case.load(shell)
    assert its_bases == bases
    ending = shell.run(handle)
    assert (ending.fault, ending.bus_error) == (Fault.NONE, False)
    found = [
        f"base {base}"
        for base, (address, nbytes, writable) in bases.items()
        if writable
        and not np.array_equal(
            np.asarray(interp.read(address, nbytes)), shell.read(address, nbytes)
        )
    ]
    for memory in ("spm", "vmem", "acc"):
        kind = np.uint16 if memory == "spm" else np.uint32
        mine, its = (np.ascontiguousarray(t.peek(memory)).view(kind) for t in (interp, shell))
        if ((mine != its) & interp.peek_written(memory)).any():
            found.append(memory)
    return found


@pytest.mark.parametrize("ready", [256, 100, 20])
@pytest.mark.parametrize("seed", range(6))
def test_random_programs_leave_the_bits_of_interp(seed: int, ready: int) -> None:
    shell = Shell(CHIP, ready=ready, seed=seed)
    assert differences(random_program(seed, CHIP), shell) == []


def run(source: str, shell: Shell) -> Ending:
    return shell.run(load(source, shell))


def load(source: str, shell: Shell) -> Any:
    program: Program = assemble(source, CHIP)
    return shell.load(program, {})


TRAP = ".queue vpu\n  seq.nop\n  seq.trap code=1\n  seq.halt\n"
GOOD = ".queue vpu\n  seq.nop\n  seq.halt\n"
ENDLESS = ".queue vpu\n  seq.nop waits=mxu.0\n  seq.halt\n.queue mxu\n  seq.halt\n"


def test_a_fault_is_reported_and_the_next_program_runs() -> None:
    shell = Shell(CHIP)
    ending = run(TRAP, shell)
    assert (ending.fault, ending.fault_queue, ending.fault_pc) == (Fault.TRAP, 1, 1)
    for _ in range(2):
        assert run(GOOD, shell).fault == Fault.NONE
    assert run(ENDLESS, shell).fault == Fault.DEADLOCK


def test_an_error_of_memory_ends_the_program() -> None:
    shell = Shell(CHIP, bad_from=0)
    assert run(GOOD, shell).bus_error


def test_a_stop_ends_a_program_that_memory_starves() -> None:
    shell = Shell(CHIP, ready=2)
    shell.start(load(GOOD, shell))
    assert shell.get("STATUS") & STATUS_RUNNING
    with pytest.raises(BusError):
        shell.set("Q0_COUNT", 1)
    shell.set("CONTROL", 2)
    for _ in range(10_000):
        if not shell.get("STATUS") & STATUS_RUNNING:
            break
    assert shell.get("STATUS") == 0
    assert shell.get("IRQ_STATUS") == 0
    shell.start(load(GOOD, shell))
    assert shell.finish().fault == Fault.NONE


def test_registers_keep_what_is_written_and_refuse_the_rest() -> None:
    shell = Shell(CHIP)
    assert shell.get("ID") == IDENTITY
    assert shell.get("QUEUES") == CHIP.queue_count
    shell.set("B3_ADDRESS_LOW", 0x12345678)
    shell.set("B3_ADDRESS_LOW", 0xAABBCCDD, strobes=0b0100)
    assert shell.get("B3_ADDRESS_LOW") == 0x12BB5678
    shell.set("B3_FLAGS", 0xFFFFFFFF)
    assert shell.get("B3_FLAGS") == 3
    for register in ("ID", "STATUS", 0xFFC):
        with pytest.raises(BusError):
            shell.set(register, 1)
    for register in ("CONTROL", 0xFFC):
        with pytest.raises(BusError):
            shell.get(register)
    assert shell.get("STATUS") == 0
