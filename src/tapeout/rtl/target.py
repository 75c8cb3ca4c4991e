"""`rtl`: runs programs on the verilated core, with the HBM model of `sim`.

Programs with instructions of an engine that the core has not yet (`core.ENGINES`) are refused.
"""

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapeout.chip import Chip
from tapeout.isa import errors
from tapeout.isa.fields import WORD_BYTES
from tapeout.isa.host import HostHbm
from tapeout.isa.instruction import REGISTRY, Fault
from tapeout.isa.program import MAX_BASES, Program

from .build import library
from .core import ENGINES, MEMORIES

_DEFAULT_HBM_BYTES = 1 << 30
_EVENT = np.dtype([("queue", "<i4"), ("pc", "<i4"), ("issue", "<u8"), ("retire", "<u8")])


class HardwareDefect(RuntimeError):
    """The core did what no program may make it do."""


class RtlUnsupported(ValueError):
    """A program with instructions that the hardware does not have yet."""


@dataclass(frozen=True)
class Loaded:
    """A program in HBM: its code's address and length in words by queue number, its bases."""

    program: Program
    code: list[tuple[int, int]]
    bases: dict[int, tuple[int, int, bool]]


@dataclass(frozen=True)
class RtlResult:
    """One run.

    Attributes:
        cycles: the last halt's issue cycle + 1.
        events: structured array [instructions] of queue, pc, issue, retire, in order of issue.
    """

    cycles: int
    events: np.ndarray = field(repr=False)


class Rtl(HostHbm):
    """One core with its HBM.

    Args:
        chip: the chip description.
        hbm_bytes: size of HBM; by default the chip's capacity, 1 GiB at most.
        limit_cycles: a run longer than this is given up.
    """

    def __init__(
        self, chip: Chip, *, hbm_bytes: int | None = None, limit_cycles: int = 1 << 32
    ) -> None:
        self.chip, self.limit_cycles = chip, limit_cycles
        super().__init__(
            hbm_bytes or min(chip.hbm.capacity_bytes, _DEFAULT_HBM_BYTES), "hbm_bytes= makes room"
        )
        self._hbm = np.zeros(self.hbm_bytes, np.uint8)
        self._native = ctypes.CDLL(str(library(chip)))
        self._native.bench_create.restype = ctypes.c_void_p
        for name in ("bench_fault_pc", "bench_event_count"):
            getattr(self._native, name).restype = ctypes.c_uint64
        self._native.bench_events.restype = ctypes.c_void_p
        self._native.bench_wrong.restype = ctypes.c_char_p
        self._bench = ctypes.c_void_p(self._native.bench_create())

    def __del__(self) -> None:
        if hasattr(self, "_bench"):
            self._native.bench_destroy(self._bench)

    def _bytes(self) -> np.ndarray:
        return self._hbm

    def load(self, program: Program, bases: dict[int, tuple[int, int, bool]]) -> Loaded:
        """Writes the code image to HBM and binds base registers to (address, bytes, writable).

        Raises:
            ValueError: a program for another chip, an unknown queue, or a segment without memory.
            RtlUnsupported: an instruction that the hardware does not have yet.
        """
        program.check_bindings(self.chip, bases)
        line_bytes = self.chip.seq.fetch_line_instructions * WORD_BYTES
        code = []
        for name in self.chip.queue_names:
            image = program.encode(name) if program.streams.get(name) else b""
            self._check_supported(name, image)
            address = self.allocate(-(-len(image) // line_bytes) * line_bytes)
            self.write(address, image)
            code.append((address, len(image) // WORD_BYTES))
        return Loaded(program, code, dict(bases))

    @staticmethod
    def _check_supported(queue: str, image: bytes) -> None:
        opcodes = np.frombuffer(image, np.uint8)[::WORD_BYTES]
        for pc, opcode in enumerate(opcodes.tolist()):
            cls = REGISTRY.get(opcode)
            engine = queue.rstrip("0123456789")
            if cls is not None and cls.engine == engine and engine not in ENGINES:
                raise RtlUnsupported(
                    f"the hardware has no {cls.engine} engine yet, which {cls.mnemonic} at pc {pc} "
                    f"of queue {queue} needs: run the program on sim"
                )

    def run(self, handle: Loaded) -> RtlResult:
        """Runs until every queue has halted.

        Raises:
            ProgramError: of the class that names the broken rule (`tapeout.isa.errors`).
            HardwareDefect: the core reached outside HBM, or the like.
            TimeoutError: the run takes more than `limit_cycles`.
        """
        bases = np.zeros((MAX_BASES, 4), np.uint64)
        for number, (address, nbytes, writable) in handle.bases.items():
            bases[number] = (address, nbytes, writable, 1)
        code = np.array(handle.code, np.uint64)
        ended = self._native.bench_run(
            self._bench,
            ctypes.c_void_p(self._hbm.ctypes.data),
            ctypes.c_uint64(len(self._hbm)),
            ctypes.c_void_p(bases.ctypes.data),
            ctypes.c_void_p(code.ctypes.data),
            ctypes.c_uint64(self.limit_cycles),
        )
        if ended < 0:
            raise HardwareDefect(self._native.bench_wrong(self._bench).decode())
        if not ended:
            raise TimeoutError(
                f"the program has not ended after {self.limit_cycles} cycles: raise limit_cycles"
            )
        fault = Fault(self._native.bench_fault(self._bench))
        if fault != Fault.NONE:
            raise self._error(handle.program, fault)
        events = self._events()
        cycles = int(events["issue"].max()) + 1 if len(events) else 0
        return RtlResult(cycles=cycles, events=events)

    def peek(self, memory: str) -> np.ndarray:
        """Contents now: spm uint16, vmem and acc float32, [rows, lanes]."""
        content = self._empty(memory)
        self._copy(memory, content, write=False)
        return content

    def poke(self, memory: str, content: np.ndarray) -> None:
        """Sets what `peek` gives; a test's way to fill a memory."""
        mine = self._empty(memory)
        mine[:] = content
        self._copy(memory, mine, write=True)

    def _empty(self, memory: str) -> np.ndarray:
        rows = getattr(self.chip, memory).rows
        return np.zeros((rows, self.chip.lanes), np.uint16 if memory == "spm" else np.float32)

    def _copy(self, memory: str, content: np.ndarray, *, write: bool) -> None:
        number = list(MEMORIES).index(memory)
        self._native.bench_copy(
            self._bench, number, ctypes.c_void_p(content.ctypes.data), int(write)
        )

    def _events(self) -> np.ndarray:
        count = self._native.bench_event_count(self._bench)
        raw = ctypes.string_at(self._native.bench_events(self._bench), count * _EVENT.itemsize)
        return np.frombuffer(raw, _EVENT)

    def _error(self, program: Program, fault: Fault) -> Any:
        queue = self._native.bench_fault_queue(self._bench)
        whole = fault in (Fault.DEADLOCK, Fault.TOKEN_LEFTOVER, Fault.TOKEN_OVERFLOW)
        name = "" if whole else self.chip.queue_names[queue]
        pc = -1 if whole else int(self._native.bench_fault_pc(self._bench))
        rule = f"the hardware stopped with {fault.name.lower()}"
        return errors.BY_FAULT[fault](rule, name, pc, program, fault=fault)
