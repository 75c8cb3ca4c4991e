"""What a run of `sim` reports: cycles, where each queue spent them, and what moved."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .trace import TraceData


@dataclass(frozen=True, kw_only=True)
class QueueReport:
    """One queue's cycles. busy_cycles + stall_cycles + idle_cycles is the run's cycle count.

    Attributes:
        instructions: issued instructions.
        busy_cycles: cycles in which the queue read an instruction, checked or issued it.
        stalls: cycles between issues by cause: "fetch" (instructions on their way), "token <queue>"
            (by the queue whose token was awaited), "port" (engine busy, or HBM credits), "drain",
            "memory" (values of seq.load).
        idle_cycles: cycles after its seq.halt.
        end_cycle: the halt's issue cycle + 1; 0 for a queue without a stream.
        occupied_cycles: cycles the engine's ports were taken (mxu: loads and passes may overlap).
        hbm_runs: DMA runs requested from HBM.
    """

    instructions: int
    busy_cycles: int
    stalls: dict[str, int]
    idle_cycles: int
    end_cycle: int
    occupied_cycles: int
    hbm_runs: int

    @property
    def stall_cycles(self) -> int:
        return sum(self.stalls.values())


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run.

    Attributes:
        cycles: the last halt's issue cycle + 1.
        instructions: issued, all queues.
        queues: reports by queue name.
        macs: multiply-accumulates on valid elements (k * n * rows of each pass); None on `rtl`,
            which does not count them.
        mac_capacity: macs_per_cycle * cycles.
        bytes: useful bytes by memory and direction: hbm_read and hbm_write (DMA and seq.load),
            hbm_fetch (instructions); on `sim` also spm_*, vmem_*, acc_* of valid lanes.
        hbm: row hits, misses, conflicts, activates, refreshes, turnarounds of the HBM model.
        trace: the issued instructions, where the run was traced.
    """

    cycles: int
    instructions: int
    queues: dict[str, QueueReport]
    macs: int | None
    mac_capacity: int
    bytes: dict[str, int]
    hbm: dict[str, int]
    trace: "TraceData | None" = field(default=None, repr=False)


def queue_report(names: tuple[str, ...], raw: dict[str, Any], cycles: int) -> QueueReport:
    """From the native counters of one queue."""
    stalls = {cause: raw[cause] for cause in ("fetch", "port", "drain", "memory") if raw[cause]}
    stalls |= {f"token {n}": c for n, c in zip(names, raw["token"], strict=True) if c}
    return QueueReport(
        instructions=raw["issued"],
        busy_cycles=raw["busy"],
        stalls=stalls,
        idle_cycles=cycles - raw["end_cycle"],
        end_cycle=raw["end_cycle"],
        occupied_cycles=raw["occupied"],
        hbm_runs=raw["runs"],
    )
