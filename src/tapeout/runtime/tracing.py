"""A trace of a generation for Perfetto: its last prefill launch, then its last decode step.

The two are run again with the trace on, which changes nothing (`Session.run`), and stand behind
each other on one time line: the chip as process, its queues as tracks, tokens between queues as
arrows, and a track that names the launches. One microsecond of the trace is one chip cycle.
"""

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from .generate import Generation
from .session import Session

SUFFIXES = (".json", ".json.gz")
_GAP_CYCLES = 1000  # between the launches, to tell them apart
_TRACK = 1 << 20  # thread number of the launches' track, beyond those of queues


def write_generation_trace(
    path: Path, session: Session, generation: Generation, *, functional: bool = True
) -> None:
    """Writes the file, gzipped where its name ends in .gz; open it in ui.perfetto.dev."""
    with path.open("wb") as raw, _text(raw, path.suffix == ".gz") as file:
        file.write('{"displayTimeUnit":"ns","traceEvents":[\n')
        for number, event in enumerate(_events(session, generation, functional)):
            file.write((",\n" if number else "") + json.dumps(event, separators=(",", ":")))
        file.write("\n]}\n")


def _text(raw: BinaryIO, packed: bool) -> TextIO:
    binary = gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=4) if packed else raw
    return io.TextIOWrapper(cast(BinaryIO, binary), encoding="utf-8")


def _events(session: Session, generation: Generation, functional: bool) -> Iterator[dict[str, Any]]:
    from tapeout.sim.trace import trace_events

    chip = session.artifact.chip
    track = {"ph": "M", "pid": 1, "tid": _TRACK}
    yield {**track, "name": "thread_name", "args": {"name": "launches"}}
    yield {**track, "name": "thread_sort_index", "args": {"sort_index": -1}}
    named: set[tuple[str, int]] = set()  # the tracks of a launch depend on what overlaps in it
    start = flows = 0
    for kind, step in generation.last.items():
        stats = session.run(step.launch, functional=functional, trace=True).stats
        program = session.artifact.programs[kind].program
        launch = step.launch
        yield {
            "ph": "X", "name": f"{kind}: {len(launch.tokens)} tokens at position "
            f"{launch.args['position']}", "cat": "launch", "pid": 1, "tid": _TRACK,
            "ts": start, "dur": stats.cycles, "args": dict(launch.args),
        }  # fmt: skip
        events: Iterator[dict[str, Any]] = trace_events(stats.trace, program, chip)
        for event in events:
            if event["ph"] == "M":
                if (event["name"], event["tid"]) not in named:
                    named.add((event["name"], event["tid"]))
                    yield event
                continue
            event["ts"] += start
            if "id" in event:
                event["id"] += flows
            yield event
        flows += len(stats.trace.flow_from)
        start += stats.cycles + _GAP_CYCLES
