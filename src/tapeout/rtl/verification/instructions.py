"""Single instructions of random programs, and what blocks of them are made of.

Values are drawn so that most instructions are legal where they come; the grower throws the others
away.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tapeout.chip import Chip
from tapeout.isa import Addr, Count, HbmAddr, Instruction, Kind, Operand, dma, mxu, seq, vpu
from tapeout.isa.interp import Run
from tapeout.isa.program import channel_bit
from tapeout.isa.seq import Alu

from .values import DATA, OUTPUT, TABLE

MXU, VPU, DMA0 = 0, 1, 2
INDEX_ROWS = 4  # the last rows of vmem hold indices; nothing else writes there


def stripes(chip: Chip) -> dict[str, int]:
    """Rows of a stripe, of the memories that have them."""
    return {"spm": chip.spm.rows_per_stripe, "acc": chip.acc.rows_per_stripe}


def edge(rng: random.Random, rows: int, offset: int) -> int:
    """`offset` from the first of so many rows, or from the last; often just there."""
    return rng.choice([0, offset, offset, offset, rows - 1 - offset, rows - 1])


@dataclass
class Block:
    """Instructions by queue; the first of each carries the tokens that the block may need."""

    streams: dict[int, list[Instruction]]


class Instructions:
    """Draws instructions for one queue after another."""

    def __init__(self, rng: random.Random, chip: Chip, run: Run) -> None:
        self.rng, self.chip, self.run = rng, chip, run
        self.lanes = chip.lanes
        self.vmem_rows = chip.vmem.rows - INDEX_ROWS
        self.registers = range(1, chip.seq.registers)
        self.moving: tuple[int, int] | None = None  # (a loop's register, its value at first)

    # --- blocks ---

    def one(self, queue: int, *instructions: Instruction) -> Block:
        return Block({queue: list(instructions)})

    def token(self, producer: int, consumer: int) -> tuple[int, int]:
        """Masks of a channel between the two: of the producer's posts, the consumer's waits."""
        per_pair = self.chip.tokens.channels_per_pair
        number = self.rng.randrange(per_pair)
        return (
            1 << channel_bit(producer, consumer, number, per_pair),
            1 << channel_bit(consumer, producer, number, per_pair),
        )

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

    def load(self, queue: int) -> Instruction:
        return self.transfer(queue, dma.Load, self.rng.choice(list(dma.HbmFormat)))

    def store(self, queue: int) -> Instruction:
        return self.transfer(
            queue, dma.Store, self.rng.choice([dma.HbmFormat.BF16, dma.HbmFormat.FP32])
        )

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

    def indices(self) -> Instruction:
        """A load of the rows that indexed transfers take their indices from."""
        return dma.Load(
            hbm=HbmAddr(TABLE, 4 * self.rng.randrange(32)),
            format=dma.HbmFormat.FP32,
            memory=dma.Memory.VMEM,
            row=Addr(self.vmem_rows),
            lanes=self.lanes,
            rows=Count(INDEX_ROWS),
            row_bytes=4 * self.lanes,
        )

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
        apart = [(24, 1), (1, 4), (40, 2), (span, 1), (span, 1)]
        if span == 1:  # one row of several tiles, which may come together
            apart = [(1, 1), (1, 4), (1, 4), (2, 1), (24, 1)]
        tile, step = rng.choice(apart if result else [*apart, (0, 1), (0, 0), (1, 0)])
        if pair == 2 and imm % 2:
            imm, reg = row, 0
        return Operand(kind, imm, reg, pair * tile, pair * step)

    def chain(self, *, across: bool = False) -> Instruction:
        """Any map; `across`: one row of several tiles, which come together as strides allow."""
        rng = self.rng
        rows_in = [Kind.SPM_BF16, Kind.SPM_FP32, Kind.VMEM, Kind.VMEM, Kind.ACC]
        others = [*rows_in, Kind.ROW_SCALAR, Kind.IMMEDIATE, Kind.IMMEDIATE]
        combine, combine2 = rng.choice(list(vpu.Combine)), rng.choice(list(vpu.Combine2))
        reduce = rng.choice([*[vpu.Reduce.NONE] * 4, *vpu.Reduce])
        mask = rng.choice([*[vpu.Mask.NONE] * 3, *vpu.Mask])
        rows = rng.choice([1, 1, 2, 4, 7, self.lanes + 3])
        tiles = rng.choice([1, 2, 3, 5] if rows == 1 else [1, 1, 2, 3])
        function = rng.choice([*[vpu.Function.NONE] * 8, *vpu.Function])
        stores = rows_in
        if across:
            rows, tiles, reduce = 1, rng.choice([2, 3, 5]), vpu.Reduce.NONE
            combine = rng.choice([combine, *vpu.TAKE_C])
        if function != vpu.Function.NONE and rng.random() < 0.6:  # each bit of the function counts
            tiles, rows = 1, 24
            combine, combine2 = rng.choice([combine, vpu.Combine.A]), vpu.Combine2.U
            stores = [Kind.VMEM, Kind.ACC, Kind.SPM_FP32]
        three = combine in vpu.TAKE_C
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
