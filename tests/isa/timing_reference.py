"""Cycle numbers by stepping every cycle: the rules of docs/timing.md once more, slowly.

`TimedRun` advances interp's run one cycle at a time. Values come from interp; memory latencies from
the HBM model, whose runs it presents in order of (arrival, requester).
"""

import copy
import dataclasses
import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tapeout.chip import Chip
from tapeout.isa import dma, mxu, seq, vpu
from tapeout.isa.instruction import Resolved
from tapeout.isa.interp import Interp, Loaded, Run
from tapeout.isa.sequencer import Queue
from tapeout.sim import _native


@dataclass
class Retiring:
    """An issued instruction; `earliest` is None until its retire cycle is known."""

    issue: int
    earliest: int | None
    posts: list[tuple[int, int, int]]
    takes_place: bool  # of the queue's seq.retire_entries
    retire: int = -1


@dataclass
class Fetch:
    low: int = 0
    next: int = 0
    generation: int = 0
    ready: dict[int, int] = field(default_factory=dict)
    line: int | None = None  # being requested, run by run
    line_generation: int = 0
    run: int = 0
    last_return: int = 0  # cycle from which the word that came last may issue


@dataclass
class Timed:
    """Timing state of one queue."""

    ahead: Queue  # pc and loops of what is read next
    next_read: int = 0
    read: int | None = None  # cycle of the read there, until its check is over
    checked: bool = False  # the instruction that issues next has been checked
    last_retire: int = 0
    retiring: list[Retiring] = field(default_factory=list)
    events: list[tuple[int, Retiring]] = field(default_factory=list)  # (pc, instruction)
    moved: int = -1  # cycle at which the pc reaches its new place
    held: bool = False
    end: int = 0
    fetch: Fetch = field(default_factory=Fetch)
    # DMA
    runs: deque = field(default_factory=deque)  # (address, bytes, cycles) to be requested
    store: bool = False
    transfer: Retiring | None = None
    take_up: int = 0  # cycle from which it may request
    in_flight: int = 0
    free: int = 0
    last_sent: int = 0
    returns: list[int | None] = field(default_factory=list)
    last_return: int = 0


def _ahead(queue: Queue) -> Queue:
    """Its pc and loops, to move on their own."""
    ahead = copy.copy(queue)
    ahead.loops = copy.deepcopy(queue.loops)
    return ahead


class TimedRun:
    def __init__(self, chip: Chip, target: Interp, handle: Loaded, code: dict[str, tuple]) -> None:
        self.chip = chip
        self.code = code
        target._core = type(target._core)(chip, target._hbm, target._log)
        target._hbm.bases = dict(handle.bases)
        self.run = Run(target, handle, None)
        self.bases = handle.bases
        self.hbm = _native.Hbm(dataclasses.asdict(chip.hbm), chip.clock_ghz)
        self.queues = [Timed(_ahead(q)) for q in self.run.queues]
        self.tokens: dict[tuple[int, int, int], deque[int]] = {}
        self.requests: list[tuple] = []
        self.serial = 0
        self.settled = self.last_dst = 0
        self.load_free = self.load_done = self.stream_free = self.after_stream = self.vpu_free = 0
        self.shadow = False

    def cycles(self, limit: int = 200_000) -> int:
        for cycle in range(limit):
            self._answer(cycle)
            for number in range(len(self.queues)):
                self._generate(cycle, number)
            for number, q in enumerate(self.run.queues):
                if self.queues[number].moved == cycle:
                    self._move_window(number)
                if not q.halted and not self.queues[number].held:
                    self._sequence(cycle, number)
            for number in range(len(self.queues)):
                self._fetch(cycle, number)
            if all(q.halted for q in self.run.queues):
                return max(q.end for q in self.queues)
        raise AssertionError(f"no end within {limit} cycles")

    # --- memory ---

    def _request(self, arrival: int, who: int, address: int, nbytes: int, write: bool, then: Any):
        self.serial += 1
        heapq.heappush(self.requests, (arrival, who, self.serial, address, nbytes, write, then))

    def _answer(self, cycle: int) -> None:
        while self.requests and self.requests[0][0] <= cycle:
            arrival, _, _, address, nbytes, write, then = heapq.heappop(self.requests)
            assert arrival == cycle
            then(self.hbm.access(arrival, address, nbytes, write))

    def _generate(self, cycle: int, number: int) -> None:
        q, d = self.queues[number], self.chip.dma
        if not q.runs or cycle < q.take_up:
            return
        index = len(q.returns)
        if index >= d.credits:
            back = q.returns[index - d.credits]
            if back is None or cycle < back + 1:
                return
        address, nbytes, width = q.runs.popleft()
        q.returns.append(None)
        arrival = cycle + d.request_cycles
        if q.store:
            q.last_sent = max(q.last_sent, cycle) + width
            arrival = q.last_sent + d.request_cycles
        if not q.runs:
            q.free = q.last_sent if q.store else cycle
        transfer, last, store = q.transfer, not q.runs, q.store

        def returned(done: int) -> None:
            back = done + d.response_cycles
            q.last_return = max(q.last_return, back) + (1 if store else width)
            q.returns[index] = q.last_return
            if last:
                transfer.earliest = q.last_return + 1
                self._retire(number)

        self._request(arrival, number, address, nbytes, store, returned)

    def _transfer_runs(self, i: Any, store: bool) -> list[tuple[int, int, int]]:
        fmt = i.format.format
        block = fmt.is_block
        unit = fmt.bytes_for(32 if block else 1, i.lanes)
        base = self.bases[i.hbm.base][0] + i.hbm.offset
        segments: list[list[int]] = []
        sections: dict[int, list[tuple[int, int]]] = {}  # of each segment: (row bytes, rows)
        lanes = self.chip.lanes
        codes = fmt.bits * i.lanes // 8
        for o in range(i.outer):
            for r in range(i.rows // 32 if block else i.rows):
                if block:
                    at = r * unit
                elif i.indexed:
                    row = self.run.core.vmem.values[i.index_rows + r // lanes]
                    at = int(row.view("<i4")[r % lanes]) * i.row_bytes
                else:
                    at = r * i.row_bytes
                start = base + o * i.outer_bytes + at
                if segments and segments[-1][1] == start and not i.indexed:
                    segments[-1][1] += unit
                else:
                    segments.append([start, start + unit])
                of_segment = sections.setdefault(len(segments), [])
                if block:
                    of_segment += [(unit - 32 * codes, 1), (codes, 32)]
                elif r > 0 and len(of_segment):
                    of_segment[-1] = (unit, of_segment[-1][1] + 1)
                else:
                    of_segment.append((unit, 1))
        runs = []
        cut = self.chip.hbm.interleave_bytes
        most = dma.rows_per_cycle(self.chip, i.format, i.memory, i.row_stride)
        for (start, end), rows in zip(segments, sections.values(), strict=True):
            at, left = 0, [n for _, n in rows]  # walks the rows piece by piece
            taken = 0  # bytes of the row at the head
            while start < end:
                stop = min(end, start // cut * cut + cut)
                nbytes, width = stop - start, 0
                while start < stop:
                    size = rows[at][0]
                    piece = min(stop - start, min(most, left[at]) * size - taken)
                    start, width = start + piece, width + 1
                    gone, taken = divmod(taken + piece, size)
                    left[at] -= gone
                    at += left[at] == 0
                runs.append((stop - nbytes, nbytes, width))
        return runs

    # --- instruction fetch ---

    def _line_bytes(self) -> int:
        return self.chip.seq.fetch_line_instructions * 64

    def _fetch(self, cycle: int, number: int) -> None:
        name = self.chip.queue_names[number]
        if name not in self.code:
            return
        f, s = self.queues[number].fetch, self.chip.seq
        address, count = self.code[name]
        lines = -(-count // s.fetch_line_instructions)
        if f.line is None:
            if f.next >= min(f.low + s.fetch_lines, lines):
                return
            f.line, f.run, f.line_generation = f.next, 0, f.generation
            f.next += 1
        first = address + f.line * self._line_bytes()
        cut = self.chip.hbm.interleave_bytes
        at = first if f.run == 0 else (first // cut + f.run) * cut
        end = min(first + self._line_bytes(), at // cut * cut + cut)
        generation = f.line_generation
        f.run += 1
        last = end == first + self._line_bytes()
        if last:
            f.line = None

        def came(done: int) -> None:
            words = (end - at) // 64
            f.last_return = max(f.last_return + words, done + self.chip.dma.response_cycles)
            if generation == f.generation:
                for k in range(words):
                    f.ready[(at - address) // 64 + k] = f.last_return - (words - 1 - k)

        who = 2 * len(self.queues) + number
        self._request(cycle + self.chip.dma.request_cycles, who, at, end - at, False, came)

    def _move_window(self, number: int) -> None:
        queue, f, s = self.queues[number].ahead, self.queues[number].fetch, self.chip.seq
        per = s.fetch_line_instructions
        if queue.pc >= len(queue.words):
            return
        low = queue.pc // per
        for frame in queue.loops:  # outermost first
            if (frame.end - 1) // per - frame.start // per < s.fetch_lines:
                low = min(low, frame.start // per)
                break
        if f.low <= low < f.low + s.fetch_lines:
            f.low = low
            return
        f.generation += 1
        f.ready.clear()
        f.low = f.next = low

    # --- sequencers ---

    def _retire(self, number: int) -> None:
        q = self.queues[number]
        while q.retiring and q.retiring[0].earliest is not None:
            first = q.retiring.pop(0)
            q.last_retire = first.retire = max(q.last_retire + 1, first.earliest)
            for channel in first.posts:
                visible = q.last_retire + self.chip.tokens.latency_cycles
                self.tokens.setdefault(channel, deque()).append(visible)

    def _port(self, cycle: int, number: int, instruction: Any) -> bool:
        if isinstance(instruction, mxu.Load):
            return cycle >= max(self.load_free, self.after_stream)
        if isinstance(instruction, mxu.Matmul | mxu.Unload):
            if isinstance(instruction, mxu.Matmul) and cycle < self.settled:
                queue = self.run.queues[number]
                first = not queue.loops or queue.loops[-1].iteration == 0
                adds = instruction.accumulate == mxu.Accumulate.ADD or (
                    instruction.accumulate == mxu.Accumulate.ADD_NOT_FIRST and not first
                )
                if adds and Resolved(instruction, queue.registers).dst > self.last_dst:
                    return False
            return cycle >= max(self.stream_free, self.load_done if self.shadow else 0)
        if isinstance(instruction, vpu.Map):
            return cycle >= self.vpu_free
        if isinstance(instruction, dma.Load | dma.Store):
            return not self.queues[number].runs and cycle >= self.queues[number].free
        return True

    def _sequence(self, cycle: int, number: int) -> None:
        queue, q = self.run.queues[number], self.queues[number]
        if q.checked:
            self._issue_if_due(cycle, number)
        if q.read is not None:
            instruction = self.run.fetch(q.ahead)
            if cycle >= q.read + instruction.check_cycles and not q.checked:
                q.read, q.checked = None, True
                if instruction.engine != "seq":
                    q.ahead.advance(q.ahead.pc + 1)
                    q.moved = q.next_read = cycle + 1
        elif q.held or (q.checked and self.run.fetch(queue).engine == "seq"):
            pass
        elif cycle >= max(q.next_read, q.fetch.ready.get(q.ahead.pc, 1 << 60)):
            q.read = cycle

    def _issue_if_due(self, cycle: int, number: int) -> None:
        queue, q = self.run.queues[number], self.queues[number]
        instruction = self.run.fetch(queue)
        awaited = []
        if queue.happens(instruction.wait_when):
            awaited = [(p, number, c) for p, c in self.run.peers(queue, instruction.waits)]
        for channel in awaited:
            waiting = self.tokens.get(channel)
            if not waiting or waiting[0] > cycle:
                return
        drains = instruction.drain or isinstance(instruction, seq.Halt)
        if drains and (q.retiring or q.last_retire > cycle):
            return
        if not self._port(cycle, number, instruction):
            return
        if self._takes_place(queue, instruction):
            held = [e for _, e in q.events if e.takes_place and not 0 <= e.retire < cycle]
            if len(held) >= self.chip.seq.retire_entries:
                return
        self._issue(cycle, number, instruction, awaited)

    @staticmethod
    def _takes_place(queue: Any, instruction: Any) -> bool:
        posts = instruction.posts and queue.happens(instruction.post_when)
        return bool(posts) or isinstance(instruction, dma.Load | dma.Store)

    def _issue(self, cycle: int, number: int, instruction: Any, awaited: list) -> None:
        queue, q, chip = self.run.queues[number], self.queues[number], self.chip
        for channel in awaited:
            self.tokens[channel].popleft()
        i = Resolved(instruction, queue.registers)
        posts = []
        if queue.happens(instruction.post_when):
            posts = [(number, p, c) for p, c in self.run.peers(queue, instruction.posts)]
        entry = Retiring(cycle, cycle + 1, posts, self._takes_place(queue, instruction))
        q.events.append((queue.pc, entry))
        q.checked = False
        cls = type(instruction)
        if instruction.engine in ("mxu", "vpu"):
            occupancy = cls.occupancy(chip, i)
            entry.earliest = cycle + cls.latency(chip, i, occupancy)
            if isinstance(instruction, mxu.Load):
                self.load_free = self.load_done = cycle + occupancy
                self.shadow = True
            elif isinstance(instruction, vpu.Map):
                self.vpu_free = cycle + occupancy
            else:
                self.stream_free, self.after_stream = cycle + occupancy, cycle + 1
                rows = i.outer * i.rows if isinstance(instruction, mxu.Matmul) else chip.mxu.rows
                self.settled = cycle + rows + chip.mxu.accumulate_cycles - 1
                self.last_dst = i.dst
                self.shadow = False
        elif isinstance(instruction, dma.Load | dma.Store):
            q.store = isinstance(instruction, dma.Store)
            q.runs = deque(self._transfer_runs(i, q.store))
            late = dma.INDEXED_TAKE_UP_CYCLES if i.indexed else dma.TAKE_UP_CYCLES
            q.take_up = cycle + late
            if q.runs:
                entry.earliest, q.transfer = None, entry
        elif isinstance(instruction, seq.Load):
            entry.earliest = None
            q.held = True

            def came(done: int) -> None:
                q.next_read = entry.earliest = done + chip.dma.response_cycles
                q.held = False
                q.ahead, q.moved = _ahead(queue), q.next_read
                self._retire(number)

            address = self.bases[i.src.base][0] + i.src.offset
            who = len(self.queues) + number
            self._request(cycle + chip.dma.request_cycles, who, address, 4, False, came)
        q.retiring.append(entry)
        assert self.run.step(queue)
        self._retire(number)
        if queue.halted:
            q.end = cycle + 1
        elif instruction.engine == "seq" and not q.held:
            q.ahead, q.moved = _ahead(queue), cycle + 1
            q.next_read = cycle + 1
