"""`rtl`: runs programs on the verilated core, with the HBM model of `sim`."""

import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tapeout.chip import Chip
from tapeout.isa import errors
from tapeout.isa.fields import WORD_BYTES
from tapeout.isa.host import HostHbm
from tapeout.isa.instruction import Fault
from tapeout.isa.program import MAX_BASES, Program
from tapeout.sim.result import QueueReport, RunResult, queue_report

from .build import Elements, library
from .core import MEMORIES
from .sequencer import Stall

_DEFAULT_HBM_BYTES = 8 << 30  # address space; the host gives pages as they are touched
# Of tapeout::Hbm, in their order; of these, what a report does not name.
_HBM_COUNTERS = (
    "reads", "writes", "read_bytes", "write_bytes", "bursts",
    "row_hits", "row_conflicts", "activates", "refreshes", "turnarounds",
)  # fmt: skip
_UNREPORTED = ("read_bytes", "write_bytes", "bursts")
_EVENT = np.dtype([("queue", "<i4"), ("pc", "<i4"), ("issue", "<u8"), ("retire", "<u8")])


class HardwareDefect(RuntimeError):
    """The core did what no program may make it do."""


@dataclass(frozen=True)
class Loaded:
    """A program in HBM: its code's address and length in words by queue number, its bases."""

    program: Program
    code: list[tuple[int, int]]
    bases: dict[int, tuple[int, int, bool]]

    @classmethod
    def of(
        cls,
        program: Program,
        placed: list[tuple[int, bytes]],
        bases: dict[int, tuple[int, int, bool]],
    ) -> "Loaded":
        """From what `write_code` gave."""
        code = [(address, len(image) // WORD_BYTES) for address, image in placed]
        return cls(program, code, dict(bases))


@dataclass(frozen=True, kw_only=True)
class RtlResult(RunResult):
    """One run: what `sim` reports of it, but for what only a model can count.

    Attributes:
        events: structured array [instructions] of queue, pc, issue, retire, in order of issue.
    """

    events: np.ndarray = field(repr=False)


class Rtl(HostHbm):
    """One core with its HBM.

    Args:
        chip: the chip description.
        hbm_bytes: size of HBM; by default the chip's capacity, 8 GiB at most.
        limit_cycles: a run longer than this is given up.
        elements: what the array is simulated as.
        built: the core's library; by default built now or found in the cache.
    """

    def __init__(
        self,
        chip: Chip,
        *,
        hbm_bytes: int | None = None,
        limit_cycles: int = 1 << 32,
        elements: Elements = Elements.GATES,
        built: Path | None = None,
    ) -> None:
        self.chip, self.limit_cycles = chip, limit_cycles
        super().__init__(
            hbm_bytes or min(chip.hbm.capacity_bytes, _DEFAULT_HBM_BYTES), "hbm_bytes= makes room"
        )
        self._hbm = np.zeros(self.hbm_bytes, np.uint8)
        self._native = ctypes.CDLL(str(built or library(chip, elements=elements)))
        self._native.bench_create.restype = ctypes.c_void_p
        for name in ("bench_fault_pc", "bench_event_count"):
            getattr(self._native, name).restype = ctypes.c_uint64
        for name in ("bench_events", "bench_counts"):
            getattr(self._native, name).restype = ctypes.c_void_p
        self._native.bench_wrong.restype = ctypes.c_char_p
        self._bench = ctypes.c_void_p(self._native.bench_create())

    def __del__(self) -> None:
        if hasattr(self, "_bench"):
            self._native.bench_destroy(self._bench)

    def _bytes(self) -> np.ndarray:
        return self._hbm

    def watch(self, saif: Path) -> None:
        """Writes what each net does in every run from now on to a file, in the Switching Activity
        Interchange Format, two steps of time a cycle; for a library that `is_watched`."""
        self._native.bench_watch(self._bench, str(saif).encode())

    def load(self, program: Program, bases: dict[int, tuple[int, int, bool]]) -> Loaded:
        """Writes the code image to HBM and binds base registers to (address, bytes, writable).

        Raises:
            ValueError: a program for another chip, an unknown queue, or a segment without memory.
        """
        program.check_bindings(self.chip, bases)
        return Loaded.of(program, self.write_code(program, self.chip), bases)

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
            raise errors.too_long(self.limit_cycles)
        fault = Fault(self._native.bench_fault(self._bench))
        if fault != Fault.NONE:
            raise self._error(handle.program, fault)
        return self._result()

    def _result(self) -> RtlResult:
        names = self.chip.queue_names
        events = self._events()
        ends = np.zeros(len(names), np.int64)  # the last to issue is the halt
        np.maximum.at(ends, events["queue"], events["issue"].astype(np.int64) + 1)
        cycles = int(ends.max())
        width = Stall.TOKEN + len(names) + 2
        raw = ctypes.string_at(self._native.bench_counts(self._bench), 8 * width * len(names))
        counts = np.frombuffer(raw, np.uint64).reshape(len(names), width).tolist()
        bytes_, hbm = (ctypes.c_uint64 * 3)(), (ctypes.c_uint64 * 10)()
        self._native.bench_traffic(self._bench, bytes_, hbm)
        counters = dict(zip(_HBM_COUNTERS, hbm, strict=True))
        runs = counters["reads"] + counters["writes"]
        misses = runs - counters["row_hits"] - counters["row_conflicts"]
        return RtlResult(
            cycles=cycles,
            instructions=len(events),
            queues={
                name: self._queue_report(q, counts[q], events, int(ends[q]), cycles)
                for q, name in enumerate(names)
            },
            macs=None,
            mac_capacity=self.chip.macs_per_cycle * cycles,
            bytes=dict(zip(("hbm_read", "hbm_write", "hbm_fetch"), bytes_, strict=True)),
            hbm={n: c for n, c in counters.items() if n not in _UNREPORTED}
            | {"row_misses": misses},
            events=events,
        )

    def _queue_report(
        self, number: int, counts: list[int], events: np.ndarray, end: int, cycles: int
    ) -> QueueReport:
        names = self.chip.queue_names
        peers = [name for q, name in enumerate(names) if q != number]
        *stalls, occupied, runs = counts
        raw = {stall.name.lower(): stalls[stall] for stall in Stall if stall < Stall.TOKEN}
        awaited = dict(zip(peers, stalls[Stall.TOKEN :], strict=False))
        return queue_report(
            names,
            {
                **raw,
                "token": [awaited.get(name, 0) for name in names],
                "issued": int((events["queue"] == number).sum()),
                "busy": stalls[Stall.BUSY],
                "end_cycle": end,
                "occupied": occupied,
                "runs": runs,
            },
            cycles,
        )

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
