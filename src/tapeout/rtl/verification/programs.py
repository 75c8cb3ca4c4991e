"""Random programs that are legal and free of races, for comparing targets bit by bit.

    case = random_program(seed)
    target = Interp(case.chip)            # or Sim
    outputs = case.run(target)            # {"b1": bytes, "spm": ..., "vmem": ..., "acc": ...}

A program grows block by block (`blocks`). Each block runs at once on a copy of the
definition's own state; where the checker finds an unordered access, the block gets a token from the
queue it names, or `drain`, and runs again; what is illegal for other reasons is thrown away. So
every program is sound by construction, and its tokens are about the fewest that it needs.
"""

import copy
import dataclasses
import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapeout.chip import Chip, load
from tapeout.isa import HbmAddr, Program, Segment, seq
from tapeout.isa.errors import ProgramError
from tapeout.isa.instruction import Instruction, When
from tapeout.isa.interp import Interp, Loaded, Run
from tapeout.isa.program import MAX_BASES, channel_bit

from . import values
from .blocks import loop_depths, prologue, propose
from .instructions import Block
from .values import DATA, OUTPUT, OUTPUT_BYTES, TABLE

OUTSIDE_LOOPS = (When.ALWAYS, When.FIRST, When.LAST)  # conditions that hold there


@dataclass
class Case:
    """A program with its HBM contents by base: (bytes, writable)."""

    chip: Chip
    program: Program
    segments: dict[int, tuple[bytes, bool]]

    def load(self, target: Any) -> tuple[Any, dict[int, tuple[int, int, bool]]]:
        """(handle, bases) with the segments written to fresh memory of the target."""
        bases = {}
        for base, (data, writable) in self.segments.items():
            address = target.allocate(len(data))
            target.write(address, data)
            bases[base] = (address, len(data), writable)
        return target.load(self.program, bases), bases

    def run(self, target: Any, **options: Any) -> dict[str, Any]:
        """What the program leaves: writable segments, and on-chip memories (0 where unwritten)."""
        handle, bases = self.load(target)
        target.run(handle, **options)
        out: dict[str, Any] = {}
        for base, (address, nbytes, writable) in bases.items():
            if writable:
                out[f"b{base}"] = np.asarray(target.read(address, nbytes)).tobytes()
        for memory in ("spm", "vmem", "acc"):
            bits = np.ascontiguousarray(target.peek(memory)).view(
                np.uint16 if memory == "spm" else np.uint32
            )
            out[memory] = np.where(target.peek_written(memory), bits, 0)
        return out


class Unordered(Exception):
    """The checker's finding at a queue's pc: queue `peer` has an access that nothing orders."""

    def __init__(self, queue: int, pc: int, peer: int) -> None:
        super().__init__(queue, pc, peer)
        self.queue, self.pc, self.peer = queue, pc, peer


class Trial(Run):
    """A run that grows: streams have no end, and findings come as `Unordered`."""

    def judge(self, queue: Any, mnemonic: str) -> None:
        finding = self.checker.check(queue.number, queue.issued, mnemonic, self.log.accesses)
        if finding is not None and finding.peer >= 0:
            raise Unordered(queue.number, queue.pc, finding.peer)
        if finding is not None or self.log.unwritten:
            raise ProgramError("not a legal block")

    def fork(self) -> "Trial":
        shared = (self.chip, self.decoded, self.program)
        return copy.deepcopy(self, {id(item): item for item in shared})

    def drain(self, streams: dict[int, list[Instruction]]) -> None:
        """Runs the streams' instructions, appended to the queues, to their end."""
        for number, stream in streams.items():
            self.queues[number].words += [i.encode() for i in stream]
            self.queues[number].halted = False
        moved = True
        while moved:
            moved = False
            for queue in self.queues:
                if queue.pc < len(queue.words) and self.step(queue):
                    moved = True
        if any(q.pc < len(q.words) for q in self.queues):
            raise AssertionError("a block of the generator deadlocks")


@dataclass
class Fix:
    """What a block needs to be sound: tokens (producer, consumer) at its entry, drains by place."""

    tokens: list[tuple[int, int]] = field(default_factory=list)
    drains: set[tuple[int, int]] = field(default_factory=set)


class Grower:
    """A program as it grows."""

    def __init__(
        self,
        chip: Chip,
        rng: random.Random,
        *,
        spare_tokens: bool = True,
        arithmetic: bool = False,
    ) -> None:
        self.chip, self.rng, self.spare_tokens = chip, rng, spare_tokens
        self.arithmetic = arithmetic
        drawn = np.random.default_rng(rng.randrange(1 << 32))
        self.segments = {
            DATA: (values.data(drawn), False),
            OUTPUT: (bytes(OUTPUT_BYTES), True),
            TABLE: (values.table(drawn), False),
        }
        target = Interp(chip, hbm_bytes=1 << 20)
        bases = {}
        for base, (raw, writable) in self.segments.items():
            address = target.allocate(len(raw))
            target.write(address, raw)
            bases[base] = (address, len(raw), writable)
        target._hbm.bases = bases
        self.run = Trial(target, Loaded(Program(chip.name, {}), {}, bases), None)
        self.streams: list[list[Instruction]] = [[] for _ in chip.queue_names]
        self.looped: list[dict[int, int]] = [{} for _ in chip.queue_names]  # pc: loop depth

    def grow(self) -> bool:
        """Adds one block; False if the proposal cannot be made sound."""
        block = propose(
            self.rng,
            self.chip,
            self.run,
            spare_tokens=self.spare_tokens,
            arithmetic=self.arithmetic,
        )
        return self.add(block)

    def add(self, block: Block) -> bool:
        """Makes a block sound and appends it, or drops it."""
        fix = Fix()
        if self.spare_tokens and self.rng.random() < 0.1:
            queue = self.rng.choice(list(block.streams))
            fix.drains.add((queue, self.rng.randrange(len(block.streams[queue]))))
        for _ in range(24):
            trial = self.run.fork()
            try:
                streams, changes = self._apply(trial, block, fix)
                trial.drain(streams)
            except Unordered as finding:
                if not self._mend(fix, finding):
                    return False
                continue
            except ProgramError:
                return False
            self._commit(trial, streams, changes)
            return True
        return False

    def _mend(self, fix: Fix, finding: Unordered) -> bool:
        at = finding.pc - len(self.streams[finding.queue])
        if finding.peer == finding.queue:
            place = (finding.queue, at)
            if place in fix.drains:
                return False
            fix.drains.add(place)
            return True
        token = (finding.peer, finding.queue)
        if token in fix.tokens or not self.streams[finding.peer]:
            return False  # the tokens of the block itself do not order it
        fix.tokens.append(token)
        return True

    def _apply(self, trial: Trial, block: Block, fix: Fix) -> Any:
        """(streams, changed tails) of the block with its fixes; posts to `trial`."""
        streams = {q: list(s) for q, s in block.streams.items()}
        for q, at in fix.drains:
            streams[q][at] = dataclasses.replace(streams[q][at], drain=True)
        changes: dict[tuple[int, int], Instruction] = {}
        per_pair = self.chip.tokens.channels_per_pair
        for producer, consumer in fix.tokens:
            pc = trial.checker.pcs[producer][-1]
            tail = changes.get((producer, pc), self.streams[producer][pc])
            free = [c for c in range(per_pair) if self._is_free(trial, producer, consumer, c, tail)]
            if not free:
                raise ProgramError("every channel of the pair is taken")
            channel = self.rng.choice(free)
            waits = 1 << channel_bit(consumer, producer, channel, per_pair)
            posts = 1 << channel_bit(producer, consumer, channel, per_pair)
            entry = streams[consumer][0]
            when = entry.wait_when if entry.waits else self.rng.choice(OUTSIDE_LOOPS)
            entry = dataclasses.replace(entry, waits=entry.waits | waits, wait_when=when)
            streams[consumer][0] = entry
            clock = trial.checker.clocks[producer].copy()
            clock[producer] = trial.queues[producer].issued
            link = trial.channel(producer, consumer, channel)
            link.clocks.append(clock)
            link.posted += 1
            in_loop = self.looped[producer].get(pc, 0)
            if in_loop:
                assert in_loop == 1, "tails of nested loops are followed by a nop"
                assert not tail.posts or tail.post_when == When.LAST
                tail = dataclasses.replace(tail, post_when=When.LAST)
            elif not tail.posts:
                tail = dataclasses.replace(tail, post_when=self.rng.choice(OUTSIDE_LOOPS))
            changes[producer, pc] = dataclasses.replace(tail, posts=tail.posts | posts)
        return streams, changes

    def _is_free(
        self, trial: Trial, producer: int, consumer: int, channel: int, tail: Instruction
    ) -> bool:
        bit = channel_bit(producer, consumer, channel, self.chip.tokens.channels_per_pair)
        posted = trial.channel(producer, consumer, channel).posted
        return not tail.posts >> bit & 1 and posted < self.chip.tokens.capacity - 8

    def _commit(self, trial: Trial, streams: Any, changes: Any) -> None:
        for (q, pc), instruction in changes.items():
            self.streams[q][pc] = instruction
        for q, stream in streams.items():
            start = len(self.streams[q])
            self.streams[q] += stream
            self.looped[q].update(enumerate(loop_depths(stream), start))
        self.run = trial
        for q in streams:
            pc = trial.checker.pcs[q][-1]
            tail = self.streams[q][pc]
            depth = self.looped[q].get(pc, 0)
            if depth > 1 or (depth == 1 and tail.posts) or self.rng.random() < 0.3:
                nop: list[Instruction] = [seq.Nop(drain=self.rng.random() < 0.3)]
                self.run.drain({q: nop})
                self.streams[q] += nop

    def finish(self) -> Case:
        """The program; its segments are bound to base registers drawn at random."""
        names = self.chip.queue_names
        halts = self._halts([q for q, stream in enumerate(self.streams) if stream])
        bases = dict(zip(self.segments, self.rng.sample(range(MAX_BASES), 3), strict=True))
        streams = {
            names[q]: [_rebased(i, bases) for i in (*self.streams[q], halt)]
            for q, halt in halts.items()
        }
        placed = {bases[b]: segment for b, segment in self.segments.items()}
        segments = [Segment(f"segment {b}", b, len(raw), w) for b, (raw, w) in placed.items()]
        return Case(self.chip, Program(self.chip.name, streams, segments), placed)

    def _halts(self, queues: list[int]) -> dict[int, seq.Halt]:
        """The halts of these queues, some of which wait for that of another."""
        rng, per_pair = self.rng, self.chip.tokens.channels_per_pair
        halts = {q: seq.Halt(drain=rng.random() < 0.2) for q in queues}
        order = rng.sample(queues, len(queues))
        for producer, consumer in itertools.pairwise(order):
            if not self.spare_tokens or rng.random() < 0.5:
                continue
            room = self.chip.tokens.capacity - 8
            free = [
                n for n in range(per_pair)
                if self.run.channel(producer, consumer, n).posted < room
            ]  # fmt: skip
            if not free:
                continue
            channel = rng.choice(free)
            post, wait = (rng.choice(OUTSIDE_LOOPS) for _ in range(2))
            halts[producer] = dataclasses.replace(
                halts[producer],
                posts=1 << channel_bit(producer, consumer, channel, per_pair),
                post_when=post,
            )
            halts[consumer] = dataclasses.replace(
                halts[consumer],
                waits=1 << channel_bit(consumer, producer, channel, per_pair),
                wait_when=wait,
            )
        return halts


def _rebased(instruction: Instruction, bases: dict[int, int]) -> Instruction:
    """The instruction with its base registers named as `bases` says."""
    changes: dict[str, Any] = {
        name: dataclasses.replace(value, base=bases[value.base])
        for name, _, spec in instruction.layout()
        if spec is HbmAddr
        for value in [getattr(instruction, name)]
    }
    return dataclasses.replace(instruction, **changes) if changes else instruction


def random_program(
    seed: int, chip: Chip | None = None, blocks: int = 25, *, spare_tokens: bool = True
) -> Case:
    """A program of `blocks` blocks, the same for the same seed and chip.

    Of four seeds one gives a program that computes with values chosen for it, and does little else.

    Args:
        spare_tokens: some tokens order nothing; otherwise each is one that the checker asked for.
    """
    grower = Grower(
        chip or load("tiny"),
        random.Random(seed),
        spare_tokens=spare_tokens,
        arithmetic=seed % 4 == 3,
    )
    for block in prologue(grower.rng, grower.chip):
        grower.add(block)
    left = blocks
    for _ in range(20 * blocks):
        left -= grower.grow()
        if left <= 0:
            break
    return grower.finish()
