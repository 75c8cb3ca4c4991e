"""`sim`: runs programs natively, bit for bit as `interp`, and counts cycles (docs/timing.md)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tapeout.chip import Chip
from tapeout.isa import errors
from tapeout.isa.fields import WORD_BYTES
from tapeout.isa.host import HostHbm
from tapeout.isa.instruction import Fault
from tapeout.isa.native import flatten
from tapeout.isa.program import Program

from . import _native
from .result import RunResult, queue_report
from .trace import TraceData, write_trace

_DEFAULT_HBM_BYTES = 64 << 30  # address space; the host gives pages as they are touched
_HOST_PAGE_BYTES = 2 << 20
_FAULT, _RACE, _BANK, _UNINITIALIZED, _LIMIT = range(5)  # sim::ErrorKind
_MODEL_ERRORS: dict[int, type[errors.ProgramError]] = {
    _RACE: errors.RaceError,
    _BANK: errors.BankError,
    _UNINITIALIZED: errors.UninitializedError,
}


@dataclass(frozen=True)
class Loaded:
    """A program in HBM: its code's address and length in words by queue, its base registers."""

    program: Program
    code: dict[str, tuple[int, int]]
    bases: dict[int, tuple[int, int, bool]]
    native: Any = field(repr=False)


class Sim(HostHbm):
    """One chip (one core of it) with its HBM.

    Args:
        chip: the chip description.
        checks: find races, bank conflicts and reads of unwritten lanes. Hardware errors (bounds,
            tokens, illegal operands) are found in any case.
        hbm_bytes: size of HBM; by default the chip's capacity, 64 GiB at most.
        limit_cycles: a run longer than this is given up.
    """

    def __init__(
        self,
        chip: Chip,
        *,
        checks: bool = True,
        hbm_bytes: int | None = None,
        limit_cycles: int = 1 << 62,
    ) -> None:
        super().__init__(
            hbm_bytes or min(chip.hbm.capacity_bytes, _DEFAULT_HBM_BYTES),
            "reset() frees them, hbm_bytes= makes room",
        )
        self.chip, self.checks, self.limit_cycles = chip, checks, limit_cycles
        native: Any = _native
        self._machine = native.Machine(
            flatten(chip), list(chip.queue_names), self.hbm_bytes, checks
        )
        self._hbm: np.ndarray = self._machine.hbm_view()

    # --- host side ---

    def reset(self) -> None:
        """Frees all of HBM; it reads as zero again."""
        whole = self._used // _HOST_PAGE_BYTES * _HOST_PAGE_BYTES
        self._machine.discard(0, whole)
        self._hbm[whole : self._used] = 0
        self._machine.touched(0, self._used)
        self._used = 0

    def write(self, address: int, data: bytes | np.ndarray) -> int:
        """Copies bytes (an array's bytes, in C order) to HBM; how many."""
        count = super().write(address, data)
        self._machine.touched(address, address + count)
        return count

    def _bytes(self) -> np.ndarray:
        return self._hbm

    def load(self, program: Program, bases: dict[int, tuple[int, int, bool]]) -> Loaded:
        """Writes the code image to HBM and binds base registers to (address, bytes, writable).

        Raises:
            ValueError: a program for another chip, an unknown queue, or a segment without memory.
        """
        names = self.chip.queue_names
        program.check_bindings(self.chip, bases)
        for address, nbytes, _ in bases.values():
            self._range(address, nbytes)
        placed = self.write_code(program, self.chip)
        code = {
            name: (address, len(image) // WORD_BYTES)
            for name, (address, image) in zip(names, placed, strict=True)
            if image
        }
        native = self._machine.load(
            [image for _, image in placed],
            [code.get(name, (0, 0))[0] for name in names],
            [(number, *base) for number, base in bases.items()],
        )
        return Loaded(program, code, dict(bases), native)

    # --- running ---

    def run(
        self,
        handle: Loaded,
        *,
        functional: bool = True,
        trace: bool | str | Path | None = None,
    ) -> RunResult:
        """Runs until every queue has halted; on-chip memory starts unwritten.

        Args:
            handle: what `load` gave.
            functional: compute values too. Without, cycles only: loads into vmem and seq.load are
                still done, as addresses and trip counts come from them; nothing else is.
            trace: True keeps a trace in the result; a path also writes it there, for Perfetto
                (gzip where the name ends in .gz).

        Raises:
            ProgramError: of the class that names the broken rule (`tapeout.isa.errors`).
            TimeoutError: the run takes more than `limit_cycles`.
        """
        traced = trace is not None and trace is not False
        raw = self._machine.run(handle.native, functional, traced, self.limit_cycles)
        if raw["error"] is not None:
            if raw["error"][0] == _LIMIT:
                raise errors.too_long(self.limit_cycles)
            raise self._error(handle.program, *raw["error"])
        names = self.chip.queue_names
        data = TraceData(**raw["trace"]) if traced else None
        if data is not None and not isinstance(trace, bool) and trace is not None:
            write_trace(Path(trace), data, handle.program, self.chip)
        return RunResult(
            cycles=raw["cycles"],
            instructions=raw["instructions"],
            queues={
                name: queue_report(names, queue, raw["cycles"])
                for name, queue in zip(names, raw["queues"], strict=True)
            },
            macs=raw["macs"],
            mac_capacity=self.chip.macs_per_cycle * raw["cycles"],
            bytes=raw["bytes"],
            hbm=raw["hbm"],
            trace=data,
        )

    def _error(
        self, program: Program, kind: int, fault: int, rule: str, queue: int, pc: int, cycle: int
    ) -> errors.ProgramError:
        cls = errors.BY_FAULT[Fault(fault)] if kind == _FAULT else _MODEL_ERRORS[kind]
        name = self.chip.queue_names[queue] if queue >= 0 else ""
        code = Fault(fault) if kind == _FAULT else Fault.NONE
        error = cls(rule, name, pc, program, fault=code)
        if cycle < 1 << 63:
            error.add_note(f"at cycle {cycle}")
        return error

    def peek(self, memory: str) -> np.ndarray:
        """Contents after a run: spm uint16, vmem and acc float32, [rows, lanes].

        Lanes that the run has not written hold anything.
        """
        return self._machine.peek(memory)

    def peek_written(self, memory: str) -> np.ndarray:
        """bool [rows, lanes]: what the last run has written; needs checks=True."""
        if not self.checks:
            raise ValueError("peek_written needs Sim(checks=True): writes are not recorded without")
        return self._machine.peek_written(memory).view(bool)
