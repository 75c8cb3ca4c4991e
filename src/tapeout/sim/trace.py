"""Traces of a run as a Perfetto file: Chrome's JSON trace events.

The chip is a process, each queue a thread, each instruction a slice from issue to retire, each
token a flow from the instruction that posted it to the one that took it. Instructions of a queue
that overlap (a pass and the next load, transfers in flight) are laid out on further threads of the
queue, as slices of one thread must nest. One microsecond of the trace is one cycle.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tapeout.chip import Chip
from tapeout.isa.program import Program

_ROWS = 1024  # threads a queue may take


@dataclass(frozen=True, kw_only=True)
class TraceData:
    """Issued instructions and the tokens between them.

    Attributes:
        queue, pc: int32 [events], queue numbers and stream positions.
        issue, retire: uint64 [events], cycles.
        flow_from, flow_to: int32 [flows], events that posted and took a token.
        flow_channel: int32 [flows], channel within the pair of queues.
    """

    queue: np.ndarray
    pc: np.ndarray
    issue: np.ndarray
    retire: np.ndarray
    flow_from: np.ndarray
    flow_to: np.ndarray
    flow_channel: np.ndarray


def write_trace(path: Path, trace: TraceData, program: Program, chip: Chip) -> None:
    """Writes the trace, gzipped where the name ends in .gz; open it in ui.perfetto.dev."""
    lines = [json.dumps(e, separators=(",", ":")) for e in trace_events(trace, program, chip)]
    text = '{"displayTimeUnit":"ns","traceEvents":[\n' + ",\n".join(lines) + "\n]}\n"
    raw = text.encode()
    path.write_bytes(gzip.compress(raw, compresslevel=4) if path.suffix == ".gz" else raw)


def trace_events(trace: TraceData, program: Program, chip: Chip) -> Iterator[dict[str, object]]:
    """Trace events: names of processes and threads, slices in order of issue, flows."""
    names = chip.queue_names
    order = np.lexsort((trace.queue, trace.issue))
    threads = _threads(trace, order, len(names))
    yield _meta("process_name", 0, f"{chip.name} ({program.chip})")
    for thread in sorted(set(threads.tolist()) | {n * _ROWS for n in range(len(names))}):
        queue, row = divmod(thread, _ROWS)
        yield _meta("thread_name", thread, names[queue] + (f" overlap {row}" if row else ""))
        yield {"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": thread,
               "args": {"sort_index": thread}}  # fmt: skip
    for at in order:
        queue, pc = int(trace.queue[at]), int(trace.pc[at])
        issue, retire = int(trace.issue[at]), int(trace.retire[at])
        instruction = program.streams[names[queue]][pc]
        source = program.source(names[queue], pc)
        where = ""
        if source is not None:
            where = f"{source.layer}/{source.kernel} " if source.layer else f"{source.kernel} "
        args: dict[str, object] = {"pc": pc, "retire": retire}
        if source is not None and source.file:
            args["source"] = f"{source.file}:{source.line}"
        yield {"ph": "X", "name": where + instruction.mnemonic, "cat": instruction.engine,
               "pid": 1, "tid": int(threads[at]), "ts": issue, "dur": max(retire - issue, 1),
               "args": args}  # fmt: skip
    for number, (a, b) in enumerate(zip(trace.flow_from, trace.flow_to, strict=True)):
        poster, taker = names[int(trace.queue[a])], names[int(trace.queue[b])]
        name = f"{taker} <- {poster}.{int(trace.flow_channel[number])}"
        common = {"cat": "token", "name": name, "id": number, "pid": 1}
        # The arrow leaves within the poster's slice.
        sent = max(int(trace.retire[a]) - 1, int(trace.issue[a]))
        yield {**common, "ph": "s", "tid": int(threads[a]), "ts": sent}
        yield {**common, "ph": "f", "bp": "e", "tid": int(threads[b]), "ts": int(trace.issue[b])}


def _threads(trace: TraceData, order: np.ndarray, queues: int) -> np.ndarray:
    """int [events]: the first thread of the queue that is free at an event's issue."""
    free: list[list[int]] = [[0] for _ in range(queues)]
    threads = np.zeros(len(order), np.int64)
    for at in order:
        queue, issue = int(trace.queue[at]), int(trace.issue[at])
        rows = free[queue]
        row = next((r for r, cycle in enumerate(rows) if cycle <= issue), len(rows))
        if row == len(rows) and row < _ROWS:
            rows.append(0)
        row = min(row, _ROWS - 1)
        rows[row] = max(int(trace.retire[at]), issue + 1)
        threads[at] = queue * _ROWS + row
    return threads


def _meta(kind: str, thread: int, name: str) -> dict[str, object]:
    return {"ph": "M", "name": kind, "pid": 1, "tid": thread, "args": {"name": name}}
