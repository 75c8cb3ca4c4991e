"""Blocks of random programs whose values are chosen for arithmetic: what cancels, rounds or is
treated apart, and arguments of all magnitudes."""

import dataclasses
from collections.abc import Callable
from typing import Any

from tapeout.isa import Addr, Count, HbmAddr, Instruction, Kind, Operand, dma, mxu, vpu

from .instructions import MXU, VPU, Block, Instructions
from .values import ARGUMENTS, DATA, FACTORS, SPECIALS, TELLING_OF, TERMS, UNITS, Region


class Arithmetic(Instructions):
    """Draws blocks of arithmetic."""

    def on(self, region: Region, rows: int, chain: Callable[[list[Operand], int], Instruction],
           *, parts: int = 1) -> Block:  # fmt: skip
        """A map of rows of a region, and the load that brings them.

        Args:
            rows: from each of so many `parts` of the region; fewer where memory has no room.
            chain: makes the map, of operands that read the parts, and their rows.
        """
        rng, part, row_bytes = self.rng, region.bytes // parts // 4 * 4, 4 * self.lanes
        rows = max(1, min(rows, self.vmem_rows // (parts + 1), part // row_bytes))
        queue, start = self.dma_queue(), rng.randrange(self.vmem_rows - parts * rows + 1)
        first = rng.randrange(0, max(1, part - rows * row_bytes + 1), 4)
        posts, waits = self.token(queue, VPU)
        load = dma.Load(
            hbm=HbmAddr(DATA, region.offset + first),
            format=dma.HbmFormat.FP32,
            memory=dma.Memory.VMEM,
            row=self.addr(queue, start),
            lanes=self.lanes,
            rows=Count(rows),
            row_bytes=row_bytes,
            outer=Count(parts),
            outer_bytes=part,
            outer_rows=rows,
            posts=posts,
        )
        operands = [Operand(Kind.VMEM, start + k * rows, row_stride=1) for k in range(parts)]
        use = dataclasses.replace(chain(operands, rows), waits=waits)
        return Block({queue: [load], VPU: [use]})

    def exact(self) -> Operand:
        """A result in fp32, where each bit counts: rows behind each other."""
        kind = self.rng.choice([Kind.VMEM, Kind.ACC, Kind.SPM_FP32])
        pair = 2 if kind == Kind.SPM_FP32 else 1
        memory = {Kind.SPM_FP32: "spm", Kind.ACC: "acc", Kind.VMEM: "vmem"}[kind]
        return Operand(kind, self.row(memory, even=pair == 2), row_stride=pair)

    def cancel(self) -> Block:
        """A chain over three rows whose sum cancels."""

        def chain(operands: list[Operand], rows: int) -> Instruction:
            a, b, c = operands
            chains: list[dict[str, Any]] = [
                {"combine": vpu.Combine.FMA, "a": a, "b": b, "c": c},
                {"combine": vpu.Combine.ADD, "a": a, "b": c},
                {"combine": vpu.Combine.MUL, "a": a, "b": b, "combine2": vpu.Combine2.ADD, "d": c},
                {"combine": vpu.Combine.A, "a": a, "combine2": vpu.Combine2.ADD, "d": c},
            ]
            return vpu.Map(rows=Count(rows), dst=self.exact(), **self.rng.choice(chains))

        return self.on(FACTORS, 24, chain, parts=3)

    def specials(self) -> Block:
        """A chain over three rows of values that arithmetic treats apart."""
        rng = self.rng

        def chain(operands: list[Operand], rows: int) -> Instruction:
            a, b, c = operands
            combine, combine2 = rng.choice(list(vpu.Combine)), rng.choice(list(vpu.Combine2))
            return vpu.Map(
                rows=Count(rows),
                combine=combine,
                a=a,
                b=b if combine != vpu.Combine.A else Operand(),
                c=c if combine in vpu.TAKE_C else Operand(),
                combine2=combine2,
                d=rng.choice([b, c]) if combine2 != vpu.Combine2.U else Operand(),
                dst=self.exact(),
            )

        return self.on(SPECIALS, 24, chain, parts=3)

    def sums(self) -> Block:
        """Sums over lanes, over tiles and with an accumulator, that cancel."""
        rng, tiles = self.rng, self.rng.choice([1, 1, 2, 3])

        def chain(operands: list[Operand], rows: int) -> Instruction:
            each = max(1, rows // tiles)
            return vpu.Map(
                tiles=tiles if rows > tiles else 1,
                rows=Count(each),
                a=dataclasses.replace(operands[0], tile_stride=each),
                reduce=rng.choice(
                    [vpu.Reduce.SUM, vpu.Reduce.SUM, vpu.Reduce.SUMSQ, vpu.Reduce.MAX]
                ),
                reduce_dst=self.addr(VPU, self.row("vmem")),
                reduce_accumulate=rng.random() < 0.3,
                dst=self.exact() if tiles == 1 else Operand(),
            )

        return self.on(TERMS, 24, chain)

    def sweep(self) -> Block:
        """A function of many values of all magnitudes."""
        return self.over(self.rng.choice(list(vpu.Function)), ARGUMENTS, 48)

    def tell(self) -> Block:
        """A function of the arguments that tell each of its constants from its neighbours."""
        function, region = self.rng.choice(list(TELLING_OF.items()))
        return self.over(vpu.Function[function.name], region, region.bytes // (4 * self.lanes))

    def over(self, function: vpu.Function, region: Region, rows: int) -> Block:
        def chain(operands: list[Operand], rows: int) -> Instruction:
            a, dst = operands[0], self.exact()
            return vpu.Map(rows=Count(rows), a=a, function=function, dst=dst)

        return self.on(region, rows, chain)

    def products(self) -> Block:
        """Sums of few products that cancel, with each other and with what acc holds."""
        rng, chip = self.rng, self.chip
        k, rows = rng.choice([1, 2, 2, 3]), 8
        k = min(k, chip.mxu.rows)
        queue, banks = self.dma_queue(), chip.spm.banks_per_stripe
        posts, waits = self.token(queue, MXU)
        start = rng.randrange((chip.spm.rows - k - 2 * rows) // banks) * banks
        row_bytes = 2 * self.lanes
        most = UNITS.bytes - (k + 2 * rows) * row_bytes
        load = dma.Load(
            hbm=HbmAddr(DATA, UNITS.offset + rng.randrange(0, max(1, most), 2)),
            row=self.addr(queue, start),
            lanes=self.lanes,
            rows=Count(k + 2 * rows),
            row_bytes=row_bytes,
            posts=posts,
        )
        weights = mxu.Load(
            src=self.addr(MXU, start),
            k=Count(k),
            n=Count(self.lanes),
            waits=waits,
        )
        dst = self.row("acc")
        passes = [
            mxu.Matmul(
                src=Addr(start + k + at * rows), rows=Count(rows), dst=Addr(dst), accumulate=mode
            )
            for at, mode in enumerate((mxu.Accumulate.WRITE, mxu.Accumulate.ADD))
        ]
        return Block({queue: [load], MXU: [weights, *passes]})
