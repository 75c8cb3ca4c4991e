"""Blocks of random programs: single instructions, loops over registers, pipelines of two queues.

Values are drawn so that most blocks are legal; the grower throws the others away.
"""

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tapeout.chip import Chip
from tapeout.isa import Addr, Count, HbmAddr, Instruction, Kind, Operand, dma, mxu, seq, vpu
from tapeout.isa.instruction import When
from tapeout.isa.interp import Run
from tapeout.isa.program import channel_bit
from tapeout.isa.seq import Alu

DATA, OUTPUT, TABLE = 0, 1, 2  # base registers
MXU, VPU, DMA0 = 0, 1, 2
CANCELLING_OFFSET, CANCELLING_BYTES = 16384, 3072  # in the data; see `programs`
INDEX_ROWS = 4  # the last rows of vmem hold indices; nothing else writes there


@dataclass
class Block:
    """Instructions by queue; the first of each carries the tokens that the block may need."""

    streams: dict[int, list[Instruction]]


def loop_depths(stream: list[Instruction]) -> list[int]:
    """How many loops of the stream are around each of its instructions."""
    depths, ends = [], list[int]()
    for at, instruction in enumerate(stream):
        ends = [end for end in ends if end > at]
        depths.append(len(ends))
        if isinstance(instruction, seq.Loop):
            ends.append(at + 1 + instruction.length)
    return depths


def propose(rng: random.Random, chip: Chip, run: Run, *, spare_tokens: bool = True) -> Block:
    """One block, by chance, that may or may not be legal in the present state of the run.

    Args:
        spare_tokens: some blocks have tokens that order nothing.
    """
    maker = Maker(rng, chip, run)
    kinds: list[tuple[int, Callable[[], Block]]] = [
        (4, maker.load),
        (2, maker.store),
        (2, maker.indices),
        (9, maker.map),
        (6, maker.multiply),
        (2, maker.scalar),
        (2, maker.loop),
        (2, maker.registers_count),
        (1, maker.far_loop),
        (1, maker.pipeline),
        (1, maker.cancel),
    ]
    if spare_tokens:
        kinds += [(3, maker.handshake), (1, maker.flood)]
    return rng.choices([make for _, make in kinds], [weight for weight, _ in kinds])[0]()


def stripes(chip: Chip) -> dict[str, int]:
    """Rows of a stripe, of the memories that have them."""
    return {"spm": chip.spm.rows_per_stripe, "acc": chip.acc.rows_per_stripe}


def edge(rng: random.Random, rows: int, offset: int) -> int:
    """`offset` from the first of so many rows, or from the last; often just there."""
    return rng.choice([0, offset, offset, offset, rows - 1 - offset, rows - 1])


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


class Maker:
    """Draws instructions for one queue after another."""

    def __init__(self, rng: random.Random, chip: Chip, run: Run) -> None:
        self.rng, self.chip, self.run = rng, chip, run
        self.lanes = chip.lanes
        self.vmem_rows = chip.vmem.rows - INDEX_ROWS
        self.registers = range(1, chip.seq.registers)
        self.moving: tuple[int, int] | None = None  # (a loop's register, its value at first)

    # --- values ---

    def dma_queue(self) -> int:
        return DMA0 + self.rng.randrange(self.chip.dma.queues)

    def split(self, queue: int, value: int, bits: int) -> tuple[int, int]:
        """(imm, register) of a value, through a register of the queue where one suits."""
        if self.moving is not None and self.rng.random() < 0.5:
            register, least = self.moving
            if least <= value < 1 << bits:
                return value - least, register
        registers = self.run.queues[queue].registers
        suits = [r for r in self.registers if 0 < registers[r] <= value < 1 << bits]
        if suits and self.rng.random() < 0.5:
            register = self.rng.choice(suits)
            return value - registers[register], register
        return value, 0

    def addr(self, queue: int, value: int) -> Addr:
        return Addr(*self.split(queue, value, 20))

    def count(self, queue: int, value: int) -> Count:
        return Count(*self.split(queue, value, 16))

    def hbm(self, queue: int, base: int, offset: int) -> HbmAddr:
        return HbmAddr(base, *self.split(queue, offset, 40))

    def row(self, memory: str, written: int = 0, even: bool = False) -> int:
        """A row; with `written`, preferably the first of that many with data."""
        values = {"spm": self.run.core.spm, "vmem": self.run.core.vmem, "acc": self.run.core.acc}
        rows: Any = values[memory].written.all(axis=1)
        limit = self.vmem_rows if memory == "vmem" else len(rows)
        stripe = stripes(self.chip).get(memory, limit)
        for _ in range(20):
            start = self.rng.randrange(0, limit, stripe)
            start += edge(self.rng, stripe, self.rng.randrange(min(48, stripe)))
            start = min(start - start % 2 if even else start, limit - 1)
            if not written or rows[start : start + written].all():
                return start
        return start

    # --- single instructions ---

    def one(self, queue: int, *instructions: Instruction) -> Block:
        return Block({queue: list(instructions)})

    def load(self) -> Block:
        queue, rng = self.dma_queue(), self.rng
        return self.one(queue, self.transfer(queue, dma.Load, rng.choice(list(dma.HbmFormat))))

    def store(self) -> Block:
        queue = self.dma_queue()
        fmt = self.rng.choice([dma.HbmFormat.BF16, dma.HbmFormat.FP32])
        return self.one(queue, self.transfer(queue, dma.Store, fmt))

    def transfer(self, queue: int, cls: type, fmt: dma.HbmFormat) -> Instruction:
        rng, is_load = self.rng, cls is dma.Load
        wide = fmt in (dma.HbmFormat.BF16, dma.HbmFormat.FP32)
        memory = dma.Memory.VMEM if wide and rng.random() < 0.4 else dma.Memory.SPM
        pairs = memory == dma.Memory.SPM and fmt == dma.HbmFormat.FP32
        lanes = self.lanes if rng.random() < 0.6 else rng.randrange(1, self.lanes + 1)
        lanes += lanes % 2 if fmt.format.bits < 8 else 0
        rows = 32 * rng.randrange(3) if fmt.format.is_block else rng.randrange(13)
        indexed = wide and rng.random() < 0.3
        outer = rng.choice([1, 1, 1, 0, 2, 3])
        size = 1 if fmt.format.is_block else fmt.format.bytes_for(1, lanes)
        row = self.row(memory.name.lower(), 0 if is_load else (2 if pairs else 1) * rows, pairs)
        unit = dma.alignment_bytes(fmt)
        if rng.random() < 0.02:
            unit = 1
        return cls(
            hbm=self.hbm(queue, DATA if is_load else OUTPUT, rng.randrange(0, 2048) // unit * unit),
            format=fmt,
            memory=memory,
            row=self.addr(queue, row),
            lane=rng.randrange(self.lanes - lanes + 1),
            lanes=lanes,
            rows=self.count(queue, rows),
            row_bytes=rng.choice([size, size, size, 2 * size, size + unit, 0, unit]),
            row_stride=(2 if pairs else 1) * rng.choice([1, 1, 1, 2, 3]),
            outer=self.count(queue, outer),
            outer_bytes=rng.choice([0, 100, 700, rows * size, (rows + 1) * size]),
            outer_rows=rng.choice([0, 16, 40]),
            indexed=indexed,
            index_rows=Addr(self.vmem_rows if indexed else 0),
        )

    def indices(self) -> Block:
        queue = self.dma_queue()
        return self.one(
            queue,
            dma.Load(
                hbm=HbmAddr(TABLE, 4 * self.rng.randrange(32)),
                format=dma.HbmFormat.FP32,
                memory=dma.Memory.VMEM,
                row=Addr(self.vmem_rows),
                lanes=self.lanes,
                rows=Count(INDEX_ROWS),
                row_bytes=4 * self.lanes,
            ),
        )

    def scalar(self) -> Block:
        queue = self.rng.randrange(self.chip.queue_count)
        return self.one(queue, self.sequencing())

    def sequencing(self) -> Instruction:
        """What any queue can run, loops excepted."""
        rng = self.rng
        dst, a, b = (rng.choice(self.registers) for _ in range(3))
        a, b = rng.choice([0, a]), rng.choice([0, b])
        makes: list[Callable[[], Instruction]] = [
            lambda: seq.Set(dst=dst, value=rng.choice([0, 1, 3, 8, 16, 40, -1, -(2**47)])),
            lambda: seq.AluOp(
                op=rng.choice(list(Alu)), dst=dst, a=a, b=b, imm=rng.randrange(-3, 9)
            ),
            lambda: seq.Load(dst=dst, src=HbmAddr(TABLE, 4 * rng.randrange(64))),
            lambda: seq.Load(dst=dst, src=HbmAddr(OUTPUT, 4 * rng.randrange(512))),
            lambda: seq.Nop(drain=True),
        ]
        return rng.choice(makes)()

    def operand(self, kinds: list[Kind], span: int, result: bool = False) -> Operand:
        """An operand over about `span` rows."""
        rng, kind = self.rng, self.rng.choice(kinds)
        if kind == Kind.NONE:
            return Operand()
        if kind == Kind.IMMEDIATE:
            value = rng.choice([0.0, -0.0, 1.0, 0.125, -3.0, float("inf"), float("nan"), 2.0**-126])
            return Operand(kind, value=value)
        pair = 2 if kind == Kind.SPM_FP32 else 1
        memory = {Kind.SPM_BF16: "spm", Kind.SPM_FP32: "spm", Kind.ACC: "acc"}.get(kind, "vmem")
        row = self.row(memory, 0 if result else pair * span, pair == 2)
        imm, reg = self.split(VPU, row, 20)
        apart = [(24, 1), (1, 4), (40, 2)]
        tile, step = rng.choice(apart if result else [*apart, (0, 1), (0, 0), (1, 0)])
        if pair == 2 and imm % 2:
            imm, reg = row, 0
        return Operand(kind, imm, reg, pair * tile, pair * step)

    def map(self) -> Block:
        return self.one(VPU, self.chain())

    def chain(self) -> Instruction:
        rng = self.rng
        rows_in = [Kind.SPM_BF16, Kind.SPM_FP32, Kind.VMEM, Kind.VMEM, Kind.ACC]
        others = [*rows_in, Kind.ROW_SCALAR, Kind.IMMEDIATE, Kind.IMMEDIATE]
        combine, combine2 = rng.choice(list(vpu.Combine)), rng.choice(list(vpu.Combine2))
        reduce = rng.choice([*[vpu.Reduce.NONE] * 4, *vpu.Reduce])
        mask = rng.choice([*[vpu.Mask.NONE] * 3, *vpu.Mask])
        tiles, rows = rng.choice([1, 1, 2, 3]), rng.choice([1, 2, 4, 7, self.lanes + 3])
        function = rng.choice([*[vpu.Function.NONE] * 8, *vpu.Function])
        stores = rows_in
        if function != vpu.Function.NONE and rng.random() < 0.6:  # each bit of the function counts
            tiles, rows = 1, 24
            combine, combine2 = rng.choice([combine, vpu.Combine.A]), vpu.Combine2.U
            stores = [Kind.VMEM, Kind.ACC, Kind.SPM_FP32]
        three = combine in (vpu.Combine.FMA, vpu.Combine.FMS, vpu.Combine.SELECT)
        a = self.operand([*rows_in, *([] if mask else [Kind.IMMEDIATE])], rows)
        stores = [*stores, *([Kind.NONE] if reduce else [])]
        dst = a if rng.random() < 0.2 else self.operand(stores, rows, result=True)
        full = tiles * self.lanes
        index = self.vmem_rows if mask == vpu.Mask.NOT_INDEX else rng.randrange(-2, full + 2)
        return vpu.Map(
            tiles=tiles,
            rows=self.count(VPU, rows),
            width=self.count(VPU, rng.choice([0, 0, full, rng.randrange(full + 1)])),
            a=a,
            b=self.operand(others, rows) if combine != vpu.Combine.A else Operand(),
            c=self.operand(others, rows) if three else Operand(),
            d=self.operand(others, rows) if combine2 != vpu.Combine2.U else Operand(),
            dst=dst if dst.kind != Kind.IMMEDIATE else Operand(Kind.VMEM, row_stride=1),
            roll=rng.choice([0, 0, rng.randrange(self.lanes)]),
            xor=rng.choice([0, 0, rng.randrange(self.lanes)]),
            lane_begin=rng.choice([0, 0, 0, rng.randrange(self.lanes + 1)]),
            lane_end=rng.choice([0, 0, 0, rng.randrange(self.lanes + 1)]),
            combine=combine,
            function=function,
            combine2=combine2,
            mask=mask,
            limit=index,
            limit_step=rng.randrange(2) if mask == vpu.Mask.BELOW else 0,
            reduce=reduce,
            reduce_dst=self.addr(VPU, self.row("vmem")) if reduce else Addr(),
            reduce_accumulate=reduce not in (vpu.Reduce.NONE, vpu.Reduce.ARGMAX)
            and rng.random() < 0.3,
        )

    def cancel(self) -> Block:
        """A chain over three rows whose sum cancels, and the load that brings them."""
        rng, part, row_bytes = self.rng, CANCELLING_BYTES // 3, 4 * self.lanes
        rows = max(1, min(16, self.vmem_rows // 3, part // row_bytes))
        queue, start = self.dma_queue(), rng.randrange(self.vmem_rows - 3 * rows + 1)
        first = rng.randrange(0, max(1, part - rows * row_bytes + 1), 4)
        load = dma.Load(
            hbm=HbmAddr(DATA, CANCELLING_OFFSET + first),
            format=dma.HbmFormat.FP32,
            memory=dma.Memory.VMEM,
            row=self.addr(queue, start),
            lanes=self.lanes,
            rows=Count(rows),
            row_bytes=row_bytes,
            outer=Count(3),
            outer_bytes=part,
            outer_rows=rows,
        )
        a, b, c = (Operand(Kind.VMEM, start + k * rows, row_stride=1) for k in range(3))
        chains: list[dict[str, Any]] = [
            {"combine": vpu.Combine.FMA, "a": a, "b": b, "c": c},
            {"combine": vpu.Combine.ADD, "a": a, "b": c},
            {"combine": vpu.Combine.MUL, "a": a, "b": b, "combine2": vpu.Combine2.ADD, "d": c},
        ]
        dst = self.operand([Kind.VMEM, Kind.ACC, Kind.SPM_FP32], rows, result=True)
        chain = vpu.Map(rows=Count(rows), dst=dst, **rng.choice(chains))
        return Block({queue: [load], VPU: [chain]})

    def multiply(self) -> Block:
        """A load with one or two matmuls, or with an unload."""
        rng = self.rng
        stream: list[Instruction] = [self.weights()]
        if rng.random() < 0.2:
            stream.append(mxu.Unload(dst=self.addr(MXU, self.row("acc"))))
        else:
            stream += [self.matmul() for _ in range(rng.choice([1, 1, 2]))]
        return Block({MXU: stream})

    def weights(self) -> Instruction:
        rng, transposed = self.rng, self.rng.random() < 0.4
        k, n = rng.randrange(1, self.chip.mxu.rows + 1), rng.randrange(1, self.lanes + 1)
        row = self.row("spm", n if transposed else k)
        if not transposed:
            row -= row % self.chip.spm.banks_per_stripe
        return mxu.Load(
            src=self.addr(MXU, row),
            stride=rng.choice([1, 1, 1, 2]) if transposed else 1,
            k=self.count(MXU, k),
            n=self.count(MXU, n),
            transposed=transposed,
        )

    def matmul(self) -> Instruction:
        rng, rows = self.rng, self.rng.choice([1, 2, 5, 12])
        return mxu.Matmul(
            src=self.addr(MXU, self.row("spm", rows)),
            stride=rng.choice([1, 1, 1, 2, 3]),
            rows=self.count(MXU, rows),
            outer=rng.choice([1, 1, 2]),
            outer_stride=rng.choice([0, 3, 8]),
            dst=self.addr(MXU, self.row("acc")),
            accumulate=rng.choice([mxu.Accumulate.WRITE, *mxu.Accumulate]),
        )

    # --- several instructions ---

    def body(self, queue: int) -> list[Instruction]:
        if queue == MXU:
            return self.multiply().streams[MXU]
        if queue == VPU:
            return [self.chain()]
        make = self.rng.choice([self.load, self.store])
        return next(iter(make().streams.values()))

    def handshake(self) -> Block:
        """Tokens from any instruction of a queue to any of another, by loops or one by one."""
        rng, per_pair = self.rng, self.chip.tokens.channels_per_pair
        producer, consumer = rng.sample(range(self.chip.queue_count), 2)
        number, tokens = rng.randrange(per_pair), rng.choice([1, 1, 1, 2, 3])
        posts = 1 << channel_bit(producer, consumer, number, per_pair)
        waits = 1 << channel_bit(consumer, producer, number, per_pair)
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
        bodies: list[list[Instruction]] = [self.body(queue), [self.sequencing()], [seq.Nop()]]
        body = rng.choice(bodies)
        if rng.random() < 0.3:
            body = [*body, self.sequencing()]
        forms = [(count, When.ALWAYS), (count + 1, When.NOT_FIRST)]
        if count == 1:
            trips = rng.choice([1, 2, 3])
            forms += [(trips, When.FIRST), (trips, When.LAST), *[(0, When.ALWAYS)] * 2]
        trips, when = rng.choice(forms)
        if not trips:
            return body, list(range(len(body))), when
        loop: Instruction = seq.Loop(count=Count(trips), length=len(body))
        if count == 1 and rng.random() < 0.2:
            return [loop, *body], [0], When.ALWAYS
        return [loop, *body], list(range(1, 1 + len(body))), when

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
        dst, *others = rng.sample(self.registers, min(6, len(self.registers)))
        return self.one(
            queue,
            *(seq.AluOp(op=rng.choice(sums), dst=dst, a=dst, b=b) for b in others),
            seq.AluOp(op=Alu.AND, dst=dst, a=dst, imm=7),
            seq.Loop(count=Count(0, dst), length=1),
            seq.Nop(),
            seq.Set(dst=rng.choice(self.registers), value=rng.randrange(-9, 99)),
        )

    def far_loop(self) -> Block:
        """A loop that may be longer than the window of instructions, and jumps within it."""
        rng, seqs = self.rng, self.chip.seq
        queue = rng.randrange(self.chip.queue_count)
        length = rng.randrange(1, 2 * seqs.fetch_lines * seqs.fetch_line_instructions)
        body: list[Instruction] = [seq.Nop() for _ in range(length)]
        for _ in range(3):
            at = rng.randrange(length)
            body[at] = self.sequencing()
        if length > 3:
            at = rng.randrange(length - 2)
            inner = rng.randrange(1, length - at)
            body[at] = seq.Loop(count=Count(rng.choice([0, 1, 2])), length=min(inner, 40))
        return self.one(queue, seq.Loop(count=Count(rng.choice([1, 2])), length=length), *body)

    def flood(self) -> Block:
        """A channel as full as it gets: tokens of a whole loop before the first is awaited."""
        rng, per_pair = self.rng, self.chip.tokens.channels_per_pair
        producer, consumer = rng.sample(range(self.chip.queue_count), 2)
        there = [  # channels that hold nothing, and have not held much
            c for c in range(per_pair) if not self.run.channel(producer, consumer, c).posted
        ]
        number = rng.choice(there or [0])
        begins = (number + 1) % per_pair  # tells the consumer that the last token has been posted
        tokens = rng.randrange(1, self.chip.tokens.capacity + 1)

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
