"""Blocks of random programs: single instructions, loops over registers, pipelines of two queues.

Values are drawn so that most blocks are legal; the grower throws the others away.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

from tapeout.chip import Chip
from tapeout.isa import Addr, Count, HbmAddr, Instruction, Kind, Operand, dma, mxu, seq, vpu
from tapeout.isa.instruction import When
from tapeout.isa.interp import Run
from tapeout.isa.program import channel_bit
from tapeout.isa.seq import Alu

from .arithmetic import Arithmetic
from .instructions import DMA0, MXU, VPU, Block
from .values import DATA


def loop_depths(stream: list[Instruction]) -> list[int]:
    """How many loops of the stream are around each of its instructions."""
    depths, ends = [], list[int]()
    for at, instruction in enumerate(stream):
        ends = [end for end in ends if end > at]
        depths.append(len(ends))
        if isinstance(instruction, seq.Loop):
            ends.append(at + 1 + instruction.length)
    return depths


def propose(
    rng: random.Random, chip: Chip, run: Run, *, spare_tokens: bool = True, arithmetic: bool = False
) -> Block:
    """One block, by chance, that may or may not be legal in the present state of the run.

    Args:
        spare_tokens: some blocks have tokens that order nothing.
        arithmetic: only blocks of values that are chosen for it, most of them functions.
    """
    maker = Maker(rng, chip, run)
    if arithmetic:
        made = [maker.cancel, maker.sums, maker.products, maker.specials, maker.sweep, maker.tell]
        return rng.choices(made, [2, 1, 1, 1, 5, 4])[0]()
    kinds: list[tuple[int, Callable[[], Block]]] = [
        (6, maker.one_load),
        (4, maker.one_store),
        (2, maker.indices_load),
        (8, maker.map),
        (4, maker.map_across),
        (6, maker.multiply),
        (2, maker.scalar),
        (2, maker.loop),
        (2, maker.registers_count),
        (1, maker.far_loop),
        (1, maker.pipeline),
        (2, maker.cancel),
        (2, maker.sums),
        (3, maker.sweep),
        (1, maker.tell),
        (2, maker.products),
        (1, maker.specials),
    ]
    if spare_tokens:
        kinds += [(3, maker.handshake), (2, maker.flood), (1, maker.burst)]
    return rng.choices([make for _, make in kinds], [weight for weight, _ in kinds])[0]()


def prologue(rng: random.Random, chip: Chip) -> list[Block]:
    """Data for the first operands: some stripes of spm, half of vmem, two stripes of acc."""
    spm, count = chip.spm.rows_per_stripe, 48
    shape: dict[str, Any] = {"lanes": chip.lanes, "rows": Count(count)}
    blocks = []
    for stripe in rng.sample(range(chip.spm.stripes), min(6, chip.spm.stripes)):
        load = dma.Load(
            hbm=HbmAddr(DATA, 64 * stripe),
            row=Addr(stripe * spm + rng.choice([0, max(0, spm - count)])),
            row_bytes=2 * chip.lanes,
            **shape,
        )
        blocks.append(Block({DMA0 + rng.randrange(chip.dma.queues): [load]}))
    vmem = dma.Load(
        hbm=HbmAddr(DATA, 2048),
        format=dma.HbmFormat.FP32,
        memory=dma.Memory.VMEM,
        row=Addr(0),
        row_bytes=4 * chip.lanes,
        **shape,
    )
    blocks.append(Block({DMA0: [vmem]}))
    for stripe in rng.sample(range(chip.acc.stripes), min(2, chip.acc.stripes)):
        first = stripe * chip.acc.rows_per_stripe
        first += rng.choice([0, max(0, chip.acc.rows_per_stripe - count)])
        copy = vpu.Map(
            rows=Count(count),
            a=Operand(Kind.VMEM, 0, row_stride=1),
            dst=Operand(Kind.ACC, first, row_stride=1),
        )
        blocks.append(Block({VPU: [copy]}))
    return blocks


class Maker(Arithmetic):
    """Draws blocks of instructions."""

    def one_load(self) -> Block:
        queue = self.dma_queue()
        return self.one(queue, self.load(queue))

    def one_store(self) -> Block:
        queue = self.dma_queue()
        return self.one(queue, self.store(queue))

    def indices_load(self) -> Block:
        return self.one(self.dma_queue(), self.indices())

    def map(self) -> Block:
        return self.one(VPU, self.chain())

    def map_across(self) -> Block:
        return self.one(VPU, self.chain(across=True))

    def scalar(self) -> Block:
        return self.one(self.rng.randrange(self.chip.queue_count), self.sequencing())

    # --- the array ---

    def multiply(self) -> Block:
        """A load with one or two matmuls, or with an unload."""
        rng = self.rng
        stream: list[Instruction] = [self.weights()]
        if rng.random() < 0.2:
            stream.append(mxu.Unload(dst=self.addr(MXU, self.row("acc"))))
        else:
            stream += [self.matmul() for _ in range(rng.choice([1, 1, 2]))]
        return Block({MXU: stream})

    # --- several instructions ---

    def body(self, queue: int) -> list[Instruction]:
        if queue == MXU:
            return self.multiply().streams[MXU]
        if queue == VPU:
            return [self.chain()]
        return [self.rng.choice([self.load, self.store])(queue)]

    def handshake(self) -> Block:
        """Tokens from any instruction of a queue to any of another, by loops or one by one."""
        rng = self.rng
        producer, consumer = rng.sample(range(self.chip.queue_count), 2)
        posts, waits = self.token(producer, consumer)
        tokens = rng.choice([1, 1, 1, 2, 3])
        streams: dict[int, list[Instruction]] = {}
        for queue, mask, when, channel in (
            (producer, "posts", "post_when", posts),
            (consumer, "waits", "wait_when", waits),
        ):
            stream, places, condition = self.times(queue, tokens)
            at = rng.choice(places)
            changes: dict[str, Any] = {mask: channel, when: condition}
            stream[at] = dataclasses.replace(stream[at], **changes)
            if rng.random() < 0.3:
                at = rng.randrange(len(stream))
                stream[at] = dataclasses.replace(stream[at], drain=True)
            streams[queue] = stream
        return Block(streams)

    def times(self, queue: int, count: int) -> tuple[list[Instruction], list[int], When]:
        """Instructions, the places in them, and the condition, that do something `count` times."""
        rng = self.rng
        bodies: list[list[Instruction]] = [[self.sequencing()], [seq.Nop()]]
        body = rng.choice([*[self.body(queue)] * 4, *bodies])
        if rng.random() < 0.3:
            body = [*body, self.sequencing()]
        forms = [(count, When.ALWAYS), (count + 1, When.NOT_FIRST)]
        if count == 1:
            trips = rng.choice([1, 2, 3])
            forms += [(trips, When.FIRST), (trips, When.LAST)]
            forms += [(0, When.ALWAYS), (0, rng.choice([When.FIRST, When.LAST]))]
        trips, when = rng.choice(forms)
        if not trips:
            return body, list(range(len(body))), when
        stream: list[Instruction] = [seq.Loop(count=Count(trips), length=len(body)), *body]
        if count == 1 and rng.random() < 0.2:
            return stream, [0], When.ALWAYS
        for _ in range(rng.choice([0, 0, *range(self.chip.seq.loop_depth)])):  # loops around it
            stream = [seq.Loop(count=Count(1), length=len(stream)), *stream]
        return stream, list(range(len(stream) - len(body), len(stream))), when

    def loop(self) -> Block:
        """Loops around each other, perhaps of no trips, whose register moves each time."""
        rng, queue = self.rng, self.rng.randrange(self.chip.queue_count)
        moving, counter = rng.sample(self.registers, 2)
        first = rng.randrange(4)
        self.moving = moving, first
        stream = self.body(queue)
        self.moving = None
        stream.append(seq.AluOp(dst=moving, a=moving, imm=rng.choice([0, 1, 2, 16])))
        rng.shuffle(stream)
        count = rng.choice([1, 2, 3, 0, -1])
        start: list[Instruction] = [seq.Set(dst=moving, value=first)]
        if count < 0 or rng.random() < 0.3:
            start.append(seq.Set(dst=counter, value=count))
            stream.insert(0, seq.Loop(count=Count(0, counter), length=len(stream)))
        else:
            stream.insert(0, seq.Loop(count=Count(count), length=len(stream)))
        for _ in range(1, rng.choice([1, 1, 1, *range(2, self.chip.seq.loop_depth + 1)])):
            if rng.random() < 0.3:
                stream.insert(0, self.sequencing())
            if rng.random() < 0.3:
                stream.append(seq.Nop())
            stream.insert(0, seq.Loop(count=Count(rng.choice([1, 1, 2])), length=len(stream)))
        return Block({queue: [*start, *stream]})

    def registers_count(self) -> Block:
        """Many registers come together in one, which says how often a loop runs."""
        rng, queue = self.rng, self.rng.randrange(self.chip.queue_count)
        sums = [Alu.ADD, Alu.SUB, Alu.MAX, Alu.MIN, Alu.MUL]
        count = rng.choice([6, len(self.registers)])
        dst, *others = rng.sample(self.registers, min(count, len(self.registers)))
        if count > 6:
            sums = [Alu.ADD, Alu.SUB]  # each of all registers changes the sum
        return self.one(
            queue,
            *(seq.Set(dst=b, value=rng.randrange(-9, 99)) for b in others if rng.random() < 0.2),
            *(seq.AluOp(op=rng.choice(sums), dst=dst, a=dst, b=b) for b in others),
            *(self.signs(dst) if rng.random() < 0.5 else ()),
            seq.AluOp(op=Alu.AND, dst=dst, a=dst, imm=7),
            seq.Loop(count=Count(0, dst), length=1),
            seq.Nop(),
            seq.Set(dst=rng.choice(self.registers), value=rng.randrange(-9, 99)),
        )

    def signs(self, dst: int) -> list[Instruction]:
        """The sign of a register, shifted in from the left, decides what it becomes."""
        rng = self.rng
        return [
            seq.AluOp(op=Alu.SHR, dst=dst, a=dst, imm=rng.randrange(1, 40)),
            seq.AluOp(op=rng.choice([Alu.MAX, Alu.MIN]), dst=dst, a=dst, imm=rng.randrange(-3, 4)),
        ]

    def far_loop(self) -> Block:
        """A loop that may be longer than the window of instructions, and jumps within it."""
        rng, seqs = self.rng, self.chip.seq
        queue = rng.randrange(self.chip.queue_count)
        line = seqs.fetch_line_instructions
        length, counts = rng.randrange(1, 2 * seqs.fetch_lines * line), [1, 2]
        if rng.random() < 0.5:  # just fits the window, or just does not
            begin = len(self.run.queues[queue].words) + 1
            length = (begin // line + seqs.fetch_lines) * line - begin + rng.choice([-1, 0, 0, 1])
            counts = [2, 3]
        body: list[Instruction] = [seq.Nop() for _ in range(length)]
        for _ in range(3):
            at = rng.randrange(length)
            body[at] = self.sequencing()
        if length > 3:
            at = rng.randrange(length - 2)
            inner = rng.randrange(1, length - at)
            body[at] = seq.Loop(count=Count(rng.choice([0, 1, 2])), length=min(inner, 40))
        return self.one(queue, seq.Loop(count=Count(rng.choice(counts)), length=length), *body)

    def flood(self) -> Block:
        """A channel as full as it gets: tokens of a whole loop before the first is awaited."""
        rng, per_pair = self.rng, self.chip.tokens.channels_per_pair
        producer, consumer = rng.sample(range(self.chip.queue_count), 2)
        there = [  # channels that hold nothing, and have not held much
            c for c in range(per_pair) if not self.run.channel(producer, consumer, c).posted
        ]
        number = rng.choice(there or [0])
        begins = (number + 1) % per_pair  # tells the consumer that the last token has been posted
        capacity = self.chip.tokens.capacity
        tokens = rng.choice([capacity, rng.randrange(1, capacity + 1)])

        def bit(queue: int, peer: int, channel: int) -> int:
            return 1 << channel_bit(queue, peer, channel, per_pair)

        give: list[Instruction] = [
            seq.Loop(count=Count(tokens), length=1),
            seq.Nop(posts=bit(producer, consumer, number)),
            seq.Nop(posts=bit(producer, consumer, begins)),
        ]
        take: list[Instruction] = [
            seq.Nop(waits=bit(consumer, producer, begins)),
            seq.Loop(count=Count(tokens), length=1),
            seq.Nop(waits=bit(consumer, producer, number)),
            seq.Nop(),
        ]
        return Block({producer: give, consumer: take})

    def burst(self) -> Block:
        """More instructions under way in an engine than may be, short ones, each with a token."""
        rng, producer = self.rng, self.rng.choice([MXU, VPU, self.dma_queue()])
        consumer = rng.choice([q for q in range(self.chip.queue_count) if q != producer])
        posts, waits = self.token(producer, consumer)
        count = min(2 * self.chip.seq.retire_entries, self.chip.tokens.capacity)
        stream: list[Instruction] = []
        if producer == MXU:
            stream.append(self.weights())
        for _ in range(count):
            if producer == MXU:
                src = self.addr(MXU, self.row("spm", 1))
                dst = self.addr(MXU, self.row("acc"))
                made: Instruction = mxu.Matmul(src=src, rows=Count(1), dst=dst, posts=posts)
            elif producer == VPU:
                a = Operand(Kind.VMEM, self.row("vmem", 1), row_stride=1)
                dst_row = Operand(Kind.VMEM, self.row("vmem"), row_stride=1)
                made = vpu.Map(rows=Count(1), a=a, dst=dst_row, posts=posts)
            else:
                made = dma.Load(
                    hbm=HbmAddr(DATA, 4 * rng.randrange(512)),
                    row=self.addr(producer, self.row("spm")),
                    lanes=self.lanes,
                    rows=Count(1),
                    row_bytes=2 * self.lanes,
                    posts=posts if rng.random() < 0.8 else 0,
                )
            stream.append(made)
        tokens = sum(i.posts != 0 for i in stream)
        take: list[Instruction] = [
            seq.Loop(count=Count(tokens), length=1),
            seq.Nop(waits=waits),
            seq.Nop(),
        ]
        return Block({producer: stream, consumer: take})

    def pipeline(self) -> Block:
        """A dma queue fills two slots in turn, mxu or vpu empties them, credits flow back."""
        rng, producer, consumer = self.rng, self.dma_queue(), self.rng.choice([MXU, VPU])
        stripe, per_pair = self.chip.spm.rows_per_stripe, self.chip.tokens.channels_per_pair
        full, free = rng.randrange(per_pair), rng.randrange(per_pair)
        ring, place = rng.sample(self.registers, 2)  # the slot in turn, the place in HBM
        slot = stripe * rng.randrange(self.chip.spm.stripes - 1)
        count, rows = rng.choice([1, 2, 5]), rng.randrange(1, self.chip.mxu.rows + 1)

        def bit(queue: int, peer: int, channel: int) -> int:
            return 1 << channel_bit(queue, peer, channel, per_pair)

        def next_slot(register: int) -> list[Instruction]:
            return [
                seq.AluOp(dst=register, a=register, imm=stripe),
                seq.AluOp(op=Alu.WRAP, dst=register, a=register, imm=2 * stripe),
            ]

        row_bytes = 2 * self.lanes
        fill = dma.Load(
            hbm=HbmAddr(DATA, 0, place),
            row=Addr(slot, ring),
            lanes=self.lanes,
            rows=Count(rows),
            row_bytes=row_bytes,
            waits=bit(producer, consumer, free),
            posts=bit(producer, consumer, full),
        )
        step = seq.AluOp(dst=place, a=place, imm=rows * row_bytes)
        feed = [fill, step, *next_slot(ring)]
        use: list[Instruction] = [
            vpu.Map(
                rows=Count(rows),
                a=Operand(Kind.SPM_BF16, slot, ring, row_stride=1),
                dst=Operand(rng.choice([Kind.ACC, Kind.VMEM]), self.row("acc") % 64, row_stride=1),
                waits=bit(consumer, producer, full),
                posts=bit(consumer, producer, free),
            )
        ]
        if consumer == MXU:
            use = [
                mxu.Load(
                    src=Addr(slot, ring),
                    k=Count(rows),
                    n=Count(self.lanes),
                    waits=bit(consumer, producer, full),
                    posts=bit(consumer, producer, free),
                ),
                self.matmul(),
            ]
        use += next_slot(ring)
        start = [seq.Nop(), seq.Set(dst=ring, value=0)]
        give = seq.Nop(posts=bit(consumer, producer, free))
        take = seq.Nop(waits=bit(producer, consumer, free))
        trips = seq.Loop(count=Count(count), length=len(feed))
        streams = {
            producer: [*start, seq.Set(dst=place, value=0), trips, *feed, take, take],
            consumer: [*start, give, give, seq.Loop(count=Count(count), length=len(use)), *use],
        }
        if rng.random() < 0.3:  # the second credit only after the first iteration
            streams[consumer] = [*start, give, seq.Loop(count=Count(count), length=len(use)), *use]
            streams[producer] = [*start, seq.Set(dst=place, value=0), trips, *feed, take]
        return Block(streams)
