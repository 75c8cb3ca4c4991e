"""`interp`: the slow target that defines what a program means, in NumPy and without a clock.

Queues advance one instruction at a time, in any order that tokens allow: `schedule` picks which. A
program without races gives the same memories under every schedule; one with a race is an error
under every schedule (see `checker`). Reads of unwritten lanes are reported unless a race explains
them.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tapeout.chip import Chip

from . import seq
from .checker import Checker
from .errors import BY_FAULT, DeadlockError, ProgramError, UninitializedError
from .fields import WORD_BYTES
from .host import HostHbm
from .instruction import Fault, HardwareError, Instruction, Resolved
from .memory import HbmMemory, Log, RowMemory
from .program import Program, channel_peer
from .sequencer import Channel, LoopFrame, Queue, decode_for

E = TypeVar("E", bound=ProgramError)
Trace = Callable[[str, int, Instruction], None]
SCHEDULES = ("round-robin", "random")


@dataclass(frozen=True)
class RunResult:
    """Instructions issued, in all and by queue name."""

    instructions: int
    queues: dict[str, int]


@dataclass(frozen=True)
class Loaded:
    """A program in HBM: its code's address and length in words by queue, its base registers."""

    program: Program
    code: dict[str, tuple[int, int]]
    bases: dict[int, tuple[int, int, bool]]


class Core:
    """What `Instruction.execute` sees: memories, stationary weights, the loop's iteration."""

    def __init__(self, chip: Chip, hbm: HbmMemory, log: Log) -> None:
        self.chip, self.hbm = chip, hbm
        lanes = chip.lanes
        self.spm = RowMemory("spm", chip.spm.rows, lanes, np.uint16, Fault.SPM_BOUNDS, log)
        self.vmem = RowMemory("vmem", chip.vmem.rows, lanes, np.float32, Fault.VMEM_BOUNDS, log)
        self.acc = RowMemory("acc", chip.acc.rows, lanes, np.float32, Fault.ACC_BOUNDS, log)
        self.shadow: np.ndarray | None = None  # bf16 bits [k, n], loaded and not yet swapped in
        self.stationary: np.ndarray | None = None
        self.first_iteration = True  # of the running queue's innermost loop
        self.registers: list[int] = []  # of the running queue

    def lanes_below(self, count: int, lanes: int) -> np.ndarray:
        """bool [count, chip.lanes], true for the first `lanes` lanes."""
        return np.broadcast_to(np.arange(self.chip.lanes) < lanes, (count, self.chip.lanes))


class Interp(HostHbm):
    """The interp target: see TARGET in the package docs. One instance is one chip with its HBM.

    Args:
        chip: the chip description.
        checks: find races, bank conflicts and reads of unwritten lanes.
        hbm_bytes: size of HBM; the chip's capacity by default (memory is taken as it is used).
    """

    def __init__(self, chip: Chip, *, checks: bool = True, hbm_bytes: int | None = None) -> None:
        super().__init__(hbm_bytes or chip.hbm.capacity_bytes, "reset() frees them")
        self.chip, self.checks = chip, checks
        self._log = Log()
        self._hbm = HbmMemory(self.hbm_bytes, self._log)
        self._core = Core(chip, self._hbm, self._log)
        self._decoded: dict[tuple[str, bytes], Instruction | HardwareError] = {}

    # --- host side ---

    def allocate(self, nbytes: int, align: int = 4096) -> int:
        """The HBM address of `nbytes` fresh bytes, zero until written."""
        address = super().allocate(nbytes, align)
        self._hbm.grow(self._used)
        return address

    def _bytes(self) -> np.ndarray:
        return self._hbm.data

    def load(self, program: Program, bases: dict[int, tuple[int, int, bool]]) -> Loaded:
        """Writes the code image to HBM and binds base registers to (address, bytes, writable).

        Raises:
            ValueError: a program for another chip, an unknown queue, or a segment without memory.
        """
        program.check_bindings(self.chip, bases)
        for address, nbytes, _ in bases.values():
            self._range(address, nbytes)
        code = {}
        for name, stream in program.streams.items():
            image = program.encode(name)
            address = self.allocate(len(image))
            self.write(address, image)
            code[name] = (address, len(stream))
        return Loaded(program, code, dict(bases))

    def peek(self, memory: str) -> np.ndarray:
        """Contents after a run: spm uint16, vmem and acc float32, [rows, lanes]."""
        return self._memory(memory).values.copy()

    def peek_written(self, memory: str) -> np.ndarray:
        """bool [rows, lanes]: what the last run has written."""
        return self._memory(memory).written.copy()

    def _memory(self, name: str) -> RowMemory:
        memories = {m.name: m for m in (self._core.spm, self._core.vmem, self._core.acc)}
        if name not in memories:
            raise ValueError(f"no memory {name!r}: {', '.join(memories)}")
        return memories[name]

    # --- running ---

    def run(
        self,
        handle: Loaded,
        *,
        trace: Trace | None = None,
        schedule: str = "round-robin",
        seed: int = 0,
    ) -> RunResult:
        """Runs until every queue has halted; on-chip memory starts unwritten.

        Args:
            handle: what `load` gave.
            trace: called with (queue name, pc, instruction) as each instruction issues.
            schedule: "round-robin", or "random": a random queue for a random number of steps.
            seed: of the random schedule.

        Raises:
            ProgramError: of the class that names the broken rule (`tapeout.isa.errors`).
        """
        if schedule not in SCHEDULES:
            raise ValueError(f"no schedule {schedule!r}: {', '.join(SCHEDULES)}")
        self._core = Core(self.chip, self._hbm, self._log)
        self._hbm.bases = dict(handle.bases)
        run = Run(self, handle, trace)
        picks = _round_robin(run.queues) if schedule == "round-robin" else _random(run.queues, seed)
        return run.until_halted(picks)


def _round_robin(queues: list[Queue]) -> Iterator[tuple[Queue, int]]:
    while True:
        for queue in queues:
            yield queue, 1


def _random(queues: list[Queue], seed: int) -> Iterator[tuple[Queue, int]]:
    choose = random.Random(seed)
    while True:
        yield choose.choice(queues), choose.choice((1, 1, 2, 8, 64, 1 << 20))


class Run:
    """One run of one program: `step` issues one instruction of one queue."""

    def __init__(self, target: Interp, handle: Loaded, trace: Trace | None) -> None:
        chip = target.chip
        self.chip, self.core, self.log, self.trace = chip, target._core, target._log, trace
        self.program, self.decoded = handle.program, target._decoded
        self.checks = target.checks
        self.checker = Checker(chip)
        self.channels: dict[tuple[int, int, int], Channel] = {}
        self.unwritten: UninitializedError | None = None
        self.queues = []
        for number, name in enumerate(chip.queue_names):
            address, count = handle.code.get(name, (0, 0))
            image = target._hbm.data[address : address + count * WORD_BYTES].tobytes()
            words = [image[at : at + WORD_BYTES] for at in range(0, len(image), WORD_BYTES)]
            self.queues.append(Queue(number, name, words, chip.seq.registers))

    def until_halted(self, picks: Iterator[tuple[Queue, int]]) -> RunResult:
        try:
            blocked: set[int] = set()
            while not all(q.halted for q in self.queues):
                queue, steps = next(picks)
                while steps and not queue.halted and self.step(queue):
                    steps -= 1
                    blocked.clear()
                if queue.halted or steps:
                    blocked.add(queue.number)
                if len(blocked) == len(self.queues) and not all(q.halted for q in self.queues):
                    raise self.deadlock()
            self.leftover()
        except ProgramError as error:
            # A race explains a read of unwritten lanes; what followed such a read explains nothing.
            if self.unwritten is not None and error.kind != "race":
                raise self.unwritten from None
            raise
        if self.unwritten is not None:
            raise self.unwritten
        counts = {q.name: q.issued for q in self.queues}
        return RunResult(sum(counts.values()), counts)

    def step(self, queue: Queue) -> bool:
        """Issues one instruction; False if it waits for a token."""
        try:
            instruction = self.fetch(queue)
            if not self.take_tokens(queue, instruction):
                return False
            queue.issued += 1
            self.checker.pcs[queue.number].append(queue.pc)
            if instruction.drain or isinstance(instruction, seq.Halt):
                self.checker.clocks[queue.number, queue.number] = queue.issued - 1
            if self.trace is not None:
                self.trace(queue.name, queue.pc, instruction)
            posts = instruction.posts if queue.happens(instruction.post_when) else 0
            self.execute(queue, instruction)
            self.post_tokens(queue, posts)
        except HardwareError as error:
            raise self.error(BY_FAULT[error.fault], str(error), queue, fault=error.fault) from None
        return True

    def fetch(self, queue: Queue) -> Instruction:
        if queue.pc >= len(queue.words):
            raise HardwareError(
                Fault.ILLEGAL_INSTRUCTION, "the stream ended without seq.halt: end it with one"
            )
        key = (queue.name, queue.words[queue.pc])
        if key not in self.decoded:
            self.decoded[key] = decode_for(self.chip, queue.number, key[1])
        found = self.decoded[key]
        if isinstance(found, HardwareError):
            raise found
        return found

    def take_tokens(self, queue: Queue, instruction: Instruction) -> bool:
        if not instruction.waits or not queue.happens(instruction.wait_when):
            return True
        channels = [
            self.channel(p, queue.number, c) for p, c in self.peers(queue, instruction.waits)
        ]
        if not all(channel.clocks for channel in channels):
            return False
        clock = self.checker.clocks[queue.number]
        for channel in channels:
            np.maximum(clock, channel.clocks.popleft(), out=clock)
            channel.taken_by.append(queue.issued + 1)
        return True

    def post_tokens(self, queue: Queue, mask: int) -> None:
        if not mask:
            return
        clock = self.checker.clocks[queue.number].copy()
        clock[queue.number] = queue.issued
        for peer, number in self.peers(queue, mask):
            channel = self.channel(queue.number, peer, number)
            before = channel.posted - self.chip.tokens.capacity  # the token that must be gone
            if before >= 0 and not (
                before < len(channel.taken_by)
                and channel.taken_by[before] <= self.checker.clocks[queue.number, peer]
            ):
                raise HardwareError(
                    Fault.TOKEN_OVERFLOW,
                    f"channel {self.channel_name(queue.number, peer, number)} holds "
                    f"{self.chip.tokens.capacity} tokens (tokens.capacity): before posting token "
                    f"{channel.posted}, {queue.name} must know that token {before} was taken",
                )
            channel.posted += 1
            channel.clocks.append(clock)

    def peers(self, queue: Queue, mask: int) -> Iterator[tuple[int, int]]:
        per_pair = self.chip.tokens.channels_per_pair
        for bit in range(mask.bit_length()):
            if mask >> bit & 1:
                yield channel_peer(queue.number, bit, per_pair)

    def channel(self, producer: int, consumer: int, number: int) -> Channel:
        return self.channels.setdefault((producer, consumer, number), Channel())

    def channel_name(self, producer: int, consumer: int, number: int) -> str:
        names = self.chip.queue_names
        return f"{names[consumer]} <- {names[producer]}.{number}"

    def execute(self, queue: Queue, instruction: Instruction) -> None:
        i = Resolved(instruction, queue.registers)
        following = queue.pc + 1
        top = queue.loops[-1] if queue.loops else None
        self.core.first_iteration = top is None or top.iteration == 0
        self.log.clear()
        if isinstance(instruction, seq.Loop):
            following = self.enter_loop(queue, i)
        elif isinstance(instruction, seq.Halt):
            queue.halted = True
        else:
            self.core.registers = queue.registers
            type(instruction).execute(self.core, i)
        if self.checks:
            self.judge(queue, instruction.mnemonic)
        if not queue.halted:
            queue.advance(following)

    def enter_loop(self, queue: Queue, i: Resolved) -> int:
        """The pc after seq.loop."""
        start, end = queue.pc + 1, queue.pc + 1 + i.length
        outer = queue.loops[-1].end if queue.loops else len(queue.words)
        if i.length < 1 or end > outer:
            raise HardwareError(
                Fault.ILLEGAL_OPERAND,
                f"seq.loop: a body of {i.length} instructions must hold one at least and fit the "
                f"{outer - start} left in the {'enclosing body' if queue.loops else 'stream'}",
            )
        if i.count <= 0:
            return end
        if len(queue.loops) == self.chip.seq.loop_depth:
            raise HardwareError(
                Fault.LOOP_DEPTH,
                f"loops nest {self.chip.seq.loop_depth} deep at most (seq.loop_depth): unroll one",
            )
        queue.loops.append(LoopFrame(start, end, i.count))
        return start

    def judge(self, queue: Queue, mnemonic: str) -> None:
        finding = self.checker.check(queue.number, queue.issued, mnemonic, self.log.accesses)
        if finding is not None:
            raise self.error(finding.error, finding.rule, queue)
        if self.log.unwritten and self.unwritten is None:
            self.unwritten = self.error(UninitializedError, self.log.unwritten, queue)

    def error(self, cls: type[E], rule: str, queue: Queue, *, fault: Fault = Fault.NONE) -> E:
        return cls(rule, queue.name, queue.pc, self.program, fault=fault)

    def deadlock(self) -> DeadlockError:
        lines, first = [], None
        for queue in self.queues:
            if queue.halted:
                continue
            first = first or queue
            waits = self.fetch(queue).waits
            awaited = [
                self.channel_name(peer, queue.number, number)
                for peer, number in self.peers(queue, waits)
                if not self.channel(peer, queue.number, number).clocks
            ]
            lines.append(f"pc {queue.pc}: {', '.join(awaited)}")
        assert first is not None
        return self.error(
            DeadlockError,
            "every queue that has not halted waits for a token nobody will post: "
            + "; ".join(lines),
            first,
            fault=Fault.DEADLOCK,
        )

    def leftover(self) -> None:
        for (producer, consumer, number), channel in sorted(self.channels.items()):
            if channel.clocks:
                raise BY_FAULT[Fault.TOKEN_LEFTOVER](
                    f"all queues halted and {len(channel.clocks)} tokens are left in channel "
                    f"{self.channel_name(producer, consumer, number)}: add a wait or drop a post",
                    self.chip.queue_names[producer],
                    program=self.program,
                    fault=Fault.TOKEN_LEFTOVER,
                )
