"""Random programs of scalar instructions: registers, nested loops, scalar loads, tokens.

Tokens are placed in one order that all queues follow, so that programs end; a loop that posts meets
a loop of as many iterations that waits.
"""

import random
from typing import Any

import numpy as np

from tapeout.chip import Chip
from tapeout.isa import Count, HbmAddr, Program, Segment, seq
from tapeout.isa.instruction import Instruction, When
from tapeout.isa.program import channel_bit

TABLE_BYTES = 4096


class ScalarProgram:
    """`program` and the bytes of its only segment."""

    def __init__(self, seed: int, chip: Chip, blocks: int = 40) -> None:
        self.chip, self.rng = chip, random.Random(seed)
        self.streams: list[list[Instruction]] = [[] for _ in chip.queue_names]
        # Small values, so that many are useful as counts and addresses.
        self.table = np.random.default_rng(seed).integers(-3, 40, TABLE_BYTES // 4, np.int32)
        makers = [
            self.compute, self.witness, self.witness, self.load, self.loop, self.token,
            self.token_loop,
        ]  # fmt: skip
        for _ in range(blocks):
            self.rng.choice(makers)()
        for stream in self.streams:
            stream.append(seq.Halt())
        self.program = Program(
            chip=chip.name,
            streams=dict(zip(chip.queue_names, self.streams, strict=True)),
            segments=[Segment("table", 0, TABLE_BYTES, False)],
        )

    def run(self, target: Any, **options: Any) -> Any:
        address = target.allocate(TABLE_BYTES)
        target.write(address, self.table)
        handle = target.load(self.program, {0: (address, TABLE_BYTES, False)})
        return target.run(handle, **options)

    def queue(self) -> int:
        return self.rng.randrange(self.chip.queue_count)

    def register(self) -> int:
        return self.rng.randrange(1, min(self.chip.seq.registers, 8))

    def scalar(self) -> Instruction:
        """An instruction without tokens that cannot fail."""
        rng = self.rng
        kind = rng.random()
        drain = rng.random() < 0.05
        if kind < 0.2:
            return seq.Nop(drain=drain)
        if kind < 0.4:
            value = rng.choice([rng.randrange(-4, 40), rng.randrange(-(1 << 47), 1 << 47)])
            return seq.Set(dst=self.register(), value=value, drain=drain)
        return seq.AluOp(
            op=rng.choice(list(seq.Alu)), dst=self.register(), a=self.register(),
            b=rng.choice([0, self.register()]), imm=rng.choice([0, 1, 63, -1, 1 << 46]),
            drain=drain,
        )  # fmt: skip

    def compute(self) -> None:
        self.streams[self.queue()] += [self.scalar() for _ in range(self.rng.randrange(1, 9))]

    def witness(self) -> None:
        """Three bits of a result become a trip count, and so cycles: nothing else shows values."""
        r, shown = self.register(), 9
        self.streams[self.queue()] += [
            *(self.scalar() for _ in range(self.rng.randrange(2, 6))),
            seq.AluOp(
                op=self.rng.choice(list(seq.Alu)), dst=r, a=self.register(), b=self.register()
            ),
            seq.AluOp(op=seq.Alu.SHR, dst=shown, a=r, imm=self.rng.choice([0, 1, 23, 45])),
            seq.AluOp(op=seq.Alu.AND, dst=shown, a=shown, imm=7),
            seq.Loop(count=Count(0, shown), length=1),
            seq.Nop(),
        ]

    def load(self) -> None:
        at = self.rng.randrange(TABLE_BYTES // 4) * 4
        self.streams[self.queue()].append(seq.Load(dst=self.register(), src=HbmAddr(0, at)))

    def body(self, depth: int) -> list[Instruction]:
        out = [self.scalar() for _ in range(self.rng.randrange(1, 6))]
        if depth and self.rng.random() < 0.6:
            out += self.loop_of(depth - 1)
        if self.rng.random() < 0.5:
            out += [self.scalar() for _ in range(self.rng.randrange(1, 12))]
        return out

    def loop_of(self, depth: int) -> list[Instruction]:
        """A loop, its count from a register that a load or the loop's own code has set."""
        body = self.body(depth)
        count = self.rng.randrange(0, 6)
        if self.rng.random() < 0.3:  # a count from memory, -3 at least
            body_register = 9
            return [
                seq.Load(dst=body_register, src=HbmAddr(0, 4 * self.rng.randrange(64))),
                seq.AluOp(op=seq.Alu.MIN, dst=body_register, a=body_register, imm=5),
                seq.Loop(count=Count(0, body_register), length=len(body)),
                *body,
            ]
        return [seq.Loop(count=Count(count), length=len(body)), *body]

    def loop(self) -> None:
        self.streams[self.queue()] += self.loop_of(min(2, self.chip.seq.loop_depth - 1))

    def pair(self) -> tuple[int, int, int, int]:
        """(producer, consumer, post mask, wait mask) of a channel."""
        producer, consumer = self.rng.sample(range(self.chip.queue_count), 2)
        pairs = self.chip.tokens.channels_per_pair
        n = self.rng.randrange(pairs)
        post = 1 << channel_bit(producer, consumer, n, pairs)
        return producer, consumer, post, 1 << channel_bit(consumer, producer, n, pairs)

    def token(self) -> None:
        producer, consumer, post, wait = self.pair()
        when = [When.ALWAYS, When.FIRST, When.LAST]  # all hold outside loops
        self.streams[producer].append(
            seq.Nop(posts=post, post_when=self.rng.choice(when), drain=self.rng.random() < 0.1)
        )
        self.streams[consumer].append(seq.Nop(waits=wait, wait_when=self.rng.choice(when)))
        never = When.NOT_FIRST  # outside loops nothing is waited for or posted
        self.streams[producer].append(seq.Nop(posts=post, post_when=never))
        self.streams[consumer].append(seq.Nop(waits=wait, wait_when=never))

    def token_loop(self) -> None:
        producer, consumer, post, wait = self.pair()
        count = self.rng.randrange(1, 5)
        when = self.rng.choice(list(When))
        for queue, header in (
            (producer, {"posts": post, "post_when": when}),
            (consumer, {"waits": wait, "wait_when": when}),
        ):
            body = [self.scalar() for _ in range(self.rng.randrange(0, 4))]
            body.insert(self.rng.randrange(len(body) + 1), seq.Nop(**header))
            self.streams[queue] += [seq.Loop(count=Count(count), length=len(body)), *body]
