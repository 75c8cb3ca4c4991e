"""Traces of a run as a Perfetto file: Chrome's JSON trace events.

The chip is a process, each queue a thread, each instruction a slice from issue to retire, each token
a flow from the instruction that posted it to the one that took it. One microsecond of the trace is
one cycle.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tapeout.chip import Chip
from tapeout.isa.program import Program


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
    opened = gzip.open(path, "wt", compresslevel=4) if path.suffix == ".gz" else path.open("w")
    with opened as file:
        file.write('{"displayTimeUnit":"ns","traceEvents":[\n')
        for number, event in enumerate(trace_events(trace, program, chip)):
            file.write((",\n" if number else "") + json.dumps(event, separators=(",", ":")))
        file.write("\n]}\n")


def trace_events(trace: TraceData, program: Program, chip: Chip) -> Iterator[dict[str, object]]:
    """Trace events: names of processes and threads, slices in order of issue, flows."""
    names = chip.queue_names
    yield _meta("process_name", 0, f"{chip.name} ({program.chip})")
    for number, name in enumerate(names):
        yield _meta("thread_name", number, name)
        yield {"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": number,
               "args": {"sort_index": number}}  # fmt: skip
    for at in np.lexsort((trace.queue, trace.issue)):
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
               "pid": 1, "tid": queue, "ts": issue, "dur": max(retire - issue, 1),
               "args": args}  # fmt: skip
    for number, (a, b) in enumerate(zip(trace.flow_from, trace.flow_to, strict=True)):
        poster, taker = names[int(trace.queue[a])], names[int(trace.queue[b])]
        name = f"{taker} <- {poster}.{int(trace.flow_channel[number])}"
        common = {"cat": "token", "name": name, "id": number, "pid": 1}
        # The arrow leaves within the poster's slice.
        sent = max(int(trace.retire[a]) - 1, int(trace.issue[a]))
        yield {**common, "ph": "s", "tid": int(trace.queue[a]), "ts": sent}
        yield {**common, "ph": "f", "bp": "e", "tid": int(trace.queue[b]),
               "ts": int(trace.issue[b])}  # fmt: skip


def _meta(kind: str, thread: int, name: str) -> dict[str, object]:
    return {"ph": "M", "name": kind, "pid": 1, "tid": thread, "args": {"name": name}}
