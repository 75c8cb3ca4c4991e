"""Errors of a running program, the same classes from every target.

Hardware errors carry a `Fault` code: `sim` and `rtl` stop at the same instruction with the same
code. Model errors (race, bank, uninitialized) are what hardware would do wrong in silence; `interp`
and `sim` find them.
"""

from collections.abc import Sequence

from .fields import EncodingError
from .instruction import Fault, Instruction
from .program import Program


class ProgramError(Exception):
    """A program that broke a rule: names queue, pc, instruction and kernel source line.

    Attributes:
        queue: name of the queue.
        pc: index in the queue's stream.
        rule: what was broken, with the values.
        fault: the hardware's code, `Fault.NONE` for a model error.
    """

    kind = "error"

    def __init__(
        self,
        rule: str,
        queue: str = "",
        pc: int = -1,
        program: Program | None = None,
        *,
        fault: Fault = Fault.NONE,
    ) -> None:
        self.rule, self.queue, self.pc, self.fault = rule, queue, pc, fault
        where = ""
        if pc >= 0:
            where = f"{queue} pc {pc}"
            if program is not None and pc < len(program.streams.get(queue, [])):
                where += f": {_text(program.streams[queue], pc)}"
                source = program.source(queue, pc)
                where += f" [{source}]" if source else ""
            where = f" at {where}"
        super().__init__(f"{self.kind}: {rule}{where}")


def too_long(limit_cycles: int) -> TimeoutError:
    """What a target raises that gives up a run."""
    return TimeoutError(
        f"the program has not ended after {limit_cycles} cycles: raise limit_cycles"
    )


def _text(stream: Sequence[Instruction], pc: int) -> str:
    """The instruction, or what a word that is none has wrong."""
    try:
        return str(stream[pc])
    except EncodingError as error:
        return f"no instruction ({error})"


class RaceError(ProgramError):
    """Two accesses to one row, at least one a write, that no token orders."""

    kind = "race"


class BankError(ProgramError):
    """Two unordered accesses to one single-ported stripe of banks."""

    kind = "bank"


class UninitializedError(ProgramError):
    """A read of lanes that nothing has written."""

    kind = "uninitialized read"


class DeadlockError(ProgramError):
    """Queues that wait for tokens nobody will post; lists each queue's pc and channel."""

    kind = "deadlock"


class BoundsError(ProgramError):
    """An address outside its memory or its segment, or a write to a read-only segment."""

    kind = "out of bounds"


class TokenError(ProgramError):
    """A token channel that overflowed, or held tokens when all queues had halted."""

    kind = "token"


class IllegalError(ProgramError):
    """An illegal instruction or operand."""

    kind = "illegal"


class TrapError(ProgramError):
    """`seq.trap` ran."""

    kind = "trap"


BY_FAULT: dict[Fault, type[ProgramError]] = {
    Fault.ILLEGAL_INSTRUCTION: IllegalError,
    Fault.ILLEGAL_OPERAND: IllegalError,
    Fault.SPM_BOUNDS: BoundsError,
    Fault.VMEM_BOUNDS: BoundsError,
    Fault.ACC_BOUNDS: BoundsError,
    Fault.HBM_BOUNDS: BoundsError,
    Fault.HBM_PROTECTION: BoundsError,
    Fault.TOKEN_OVERFLOW: TokenError,
    Fault.TOKEN_LEFTOVER: TokenError,
    Fault.LOOP_DEPTH: IllegalError,
    Fault.TRAP: TrapError,
    Fault.DEADLOCK: DeadlockError,
}
