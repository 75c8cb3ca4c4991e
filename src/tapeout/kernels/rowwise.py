"""Elementwise programs with reductions along rows, over tensors in HBM.

A program computes over a domain of rows (one or more dimensions) and lanes (the last dimension).
Each of its nodes is one of three things: a *full* tensor [rows, width], a *stat* [rows] with a
number a row, or a *vector* [width] that all rows share. Rows come in blocks that fit half of vmem,
so that transfers of one block run beside the arithmetic of the other. Where a row is wider than
that, it comes in chunks of lanes, once for each level of reductions that depend on each other.
Large programs have their full tensors in stripes of spm instead, with blocks long enough to hide
what an instruction waits for (`WideBlock`).

An operand may have any strides. With a stride of 1 along the lanes, or 0, its rows come by DMA as
they are. Where columns are consecutive instead, a tile of them comes, and where nothing is,
elements come one a row. The vector unit packs them: a reduction of one lane writes lane m of a
packed row.
"""

from collections.abc import Callable
from dataclasses import replace

from tapeout.chip import Chip
from tapeout.isa import Kind
from tapeout.lang import Builder, ChipTooSmall, Tensor, ops
from tapeout.lang.builder import VMEM_BLOCK

from .rowblock import Block, Region, padded_rows
from .rowprogram import (
    COMBINES,
    FULL,
    SECOND_OF,
    STAT,
    VECTOR,
    Place,
    RowProgram,
    steps_of,
)
from .wideblock import WideBlock


def run(k: Builder, program: RowProgram) -> None:
    """Traces the program. ChipTooSmall where not even one row of one tile fits vmem."""
    if program.rows and program.width:
        with k.scope("rowwise"):
            _Rows(k, program).run()


def most_values(chip: Chip) -> int:
    """Values of which a block of one row and tile has room for each, beside packed rows."""
    half = chip.vmem.rows // 2 // VMEM_BLOCK * VMEM_BLOCK
    return max(2, (half - padded_rows(chip.lanes)) // VMEM_BLOCK - 2)


def fold(k: Builder, program: RowProgram, value: int, how: str, count: int, out: Place) -> None:
    """out = the sum or maximum of node `value` over the first `count` = dims[0] indices of rows.

    Args:
        program: without stores; its first dimension of rows is the one to fold.
        out: over the other dimensions (stride 0 in the first).
    """
    with k.scope("fold"):
        _Fold(k, program, value, how, count, out).run()


WIDE_ROWS = 2048  # rows of tiles of a value in spm: instructions long enough to hide latencies
LEAST_WIDE_ROWS = 1024  # where stripes are smaller; half of it is too little for spm
CHUNK_ROWS = 64  # rows of a block whose rows come in chunks


class _Rows:
    """Traces one program."""

    def __init__(self, k: Builder, program: RowProgram) -> None:
        self.k, self.p, self.lanes = k, program, k.chip.lanes
        self.tiles = -(-program.width // self.lanes)
        self.keep = {n for n, _ in program.stores}
        self.steps = steps_of(program, self.keep)
        self.level = self._levels()
        read = {a for step in self.steps for a in step.reads} | self.keep
        self.scalar_loads = [
            n for n, node in enumerate(program.nodes)
            if node.op == "load" and node.form == STAT and n in read
        ]  # fmt: skip
        places = {n: program.nodes[n].place for n in self.scalar_loads}
        self.still = [n for n, place in places.items() if place is not None and place.still]
        self.wide = min(WIDE_ROWS, k.chip.spm.rows_per_stripe // 2)
        self.turn = 0
        self.shared: set[int] = set()  # vectors that are loaded and computed once, for all blocks
        self.vectors: dict[int, Tensor] = {}

    def _levels(self) -> list[int]:
        """How many reductions, one after another, come before each node."""
        levels: list[int] = []
        for node in self.p.nodes:
            above = max((levels[a] for a in node.args if isinstance(a, int)), default=0)
            levels.append(above + (node.op == "reduce"))
        return levels

    # --- sizes ------------------------------------------------------------------------------------

    def run(self) -> None:
        k, p = self.k, self.p
        whole = k.tensor(Kind.VMEM, k.chip.vmem.rows // VMEM_BLOCK * VMEM_BLOCK, 1)
        self.shared = shared = self._shareable(whole.rows // 4)
        if p.rows * self.tiles > LEAST_WIDE_ROWS // 2:
            if self._spm_sizes()[1] < self.tiles:
                self.shared = set()  # vectors come in chunks, too
            if self._suits_spm():
                self._run_in_spm(whole)
                k.free(whole)
                return
            self.shared = shared
        first, room = whole.base, whole.rows
        reserved = self._vector_rows(self.shared)
        first, room = first + reserved, room - reserved
        half = room // 2 // VMEM_BLOCK * VMEM_BLOCK
        rows, chunk = self._sizes(room, half)
        blocks = [(a, min(a + rows, p.rows)) for a in range(0, p.rows, rows)]
        steps = len(blocks) * -(-self.tiles // chunk)
        if steps == 1:
            regions = [Region(k, first, room)]
        else:
            regions = [Region(k, first, half), Region(k, first + half, half)]
        if self.shared:
            self._make_vectors(Region(k, whole.base, first - whole.base))
        for number, (a, b) in enumerate(blocks):
            Block(self, regions, number, a, b, rows, chunk).run()
        k.free(whole)

    def _suits_spm(self) -> bool:
        """Every full value can have a stripe of spm for itself, and comes and goes by rows."""
        nodes, spm = self.p.nodes, self.k.places.spm
        places = [n.place for n in nodes if n.place is not None and n.form == FULL]
        places += [place for n, place in self.p.stores if nodes[n].form == FULL]
        free = sum(not used for used in spm.used.values())
        rows, chunk = self._spm_sizes()
        vectors = sum(n.form == VECTOR for n in nodes) * padded_rows(chunk)
        return (
            self._most_live() + 2 <= free
            and self.wide >= LEAST_WIDE_ROWS
            and all(p.strides[-1] == 1 or self.p.width == 1 for p in places)
            and not any(nodes[n].form == VECTOR for n in self.keep)
            and (bool(self.shared) or vectors <= self._room_for_vectors(rows))
        )

    def _room_for_vectors(self, rows: int) -> int:
        """Rows of vmem that a block of so many rows has beside its numbers a row."""
        numbers = (self._stats() + len(self.still)) * padded_rows(-(-rows // self.lanes))
        return self.k.chip.vmem.rows // 2 - padded_rows(self.lanes) - numbers

    def _spm_sizes(self) -> tuple[int, int]:
        """(rows of a block, tiles of a chunk) where full values lie in spm."""
        chunk, rows = self.tiles, max(1, self.wide // self.tiles)
        if rows < min(self.p.rows, CHUNK_ROWS):  # a row's chunks, of many rows
            rows = min(self.p.rows, CHUNK_ROWS)
            chunk = max(1, self.wide // rows)
        vectors = sum(n.form == VECTOR for n in self.p.nodes)
        if vectors and not self.shared and chunk < self.tiles:
            room = self._room_for_vectors(rows) // vectors // VMEM_BLOCK * VMEM_BLOCK
            chunk = max(1, min(chunk, room))
        count = -(-self.p.rows // min(rows, self.p.rows))
        return -(-self.p.rows // count), chunk

    def _run_in_spm(self, whole: Tensor) -> None:
        """Blocks of `wide` rows of tiles; vmem holds numbers a row and vectors."""
        rows, chunk = self._spm_sizes()
        regions = self._regions(whole, rows)
        for number, a in enumerate(range(0, self.p.rows, rows)):
            WideBlock(self, regions, number, a, min(a + rows, self.p.rows), rows, chunk).run()

    def _regions(self, whole: Tensor, rows: int) -> list[Region]:
        """Two halves of what vmem has beside vectors and numbers that all blocks of `rows` rows
        share, which then are there."""
        k, vectors = self.k, self._vector_rows(self.shared)
        numbers = VMEM_BLOCK + len(self.still) * padded_rows(-(-rows // self.lanes))
        reserved = vectors + numbers
        half = (whole.rows - reserved) // 2 // VMEM_BLOCK * VMEM_BLOCK
        if self.shared:
            self._make_vectors(Region(k, whole.base, vectors))
        if self.still:
            block = Block(self, [Region(k, whole.base + vectors, numbers)], 0, 0, rows, rows, 1)
            block.load_stats(self.still)
            self.vectors = block.held
        return [Region(k, whole.base + reserved + i * half, half) for i in range(2)]

    def _shareable(self, room: int) -> set[int]:
        """Vectors, where `room` rows of vmem hold them all and a row needs no chunks."""
        nodes = self.p.nodes
        found = {s.node for s in self.steps if s.form == VECTOR}
        found |= {a for s in self.steps for a in s.nodes if nodes[a].form == VECTOR}
        if found & self.keep or self._vector_rows(found) > room:
            return set()
        self.shared = found
        rows = self.k.chip.vmem.rows // VMEM_BLOCK * VMEM_BLOCK
        half = (rows - self._vector_rows(found)) // 2 // VMEM_BLOCK * VMEM_BLOCK
        return found if self._need(1, self.tiles) <= half else set()

    def _vector_rows(self, vectors: set[int]) -> int:
        """Rows of vmem for vectors, and to pack those whose elements lie apart."""
        places = [self.p.nodes[n].place for n in vectors]
        apart = any(p is not None and p.strides[-1] not in (0, 1) for p in places)
        packing = padded_rows(self.lanes) + VMEM_BLOCK if apart else 0
        return len(vectors) * padded_rows(self.tiles) + packing

    def _make_vectors(self, region: Region) -> None:
        block = Block(self, [region], 0, 0, 1, 1, self.tiles)
        span = (0, self.tiles)
        for n in sorted(self.shared):
            if self.p.nodes[n].op == "load":
                block.fetch(n, span)
        for step in self.steps:
            if step.form == VECTOR:
                block.step(step, span, first=True)
        self.vectors = block.held

    def _sizes(self, room: int, half: int) -> tuple[int, int]:
        """(rows of a block, tiles of a chunk): the largest that fit.

        Args:
            room: rows of vmem for the whole program as one block.
            half: for a block among others.
        """
        full, need = self._most_live(), self._need
        for limit, rows, tiles in ((room, self.p.rows, self.tiles), (half, 1, self.tiles)):
            if rows <= 1023 and need(rows, tiles) <= limit:
                if rows == self.p.rows:
                    return rows, tiles
                while rows < min(self.p.rows, 1023) and need(rows + 1, tiles) <= limit:
                    rows += 1
                return self._even(rows, tiles, half, need), tiles
        tiles = self.tiles
        while tiles > 1 and need(1, tiles) > half:
            tiles -= 1
        if need(1, tiles) > half:
            raise ChipTooSmall(
                f"an elementwise program with {full} values alive needs {need(1, tiles)} rows, "
                f"half of vmem has {half}: raise vmem.rows"
            )
        rows = 1
        while rows < self.p.rows and need(rows + 1, tiles) <= half and rows < VMEM_BLOCK:
            rows += 1
        return rows, tiles

    def _need(self, rows: int, tiles: int) -> int:
        """Rows of vmem for a block."""
        packed = self._stats() * -(-rows // self.lanes) + (self.lanes if self._packs() else 0)
        return self._most_live() * padded_rows(rows * tiles) + padded_rows(packed)

    def _even(self, rows: int, tiles: int, half: int, need: Callable[[int, int], int]) -> int:
        """Blocks of about the same size, in whole rows of packed stats where there are many."""
        count = -(-self.p.rows // rows)
        even = -(-self.p.rows // count)
        for unit in (self.lanes, VMEM_BLOCK):
            rounded = -(-even // unit) * unit
            if even > unit and need(rounded, tiles) <= half:
                return min(rounded, rows)
        return even

    def _stats(self) -> int:
        """Numbers a row that a block holds."""
        made = {s.node for s in self.steps if s.form == STAT and s.node >= 0}
        return len(made | {s.reduce for s in self.steps if s.reduce >= 0}) + len(self.scalar_loads)

    def _packs(self) -> bool:
        places = [n.place for n in self.p.nodes if n.place is not None]
        places += [place for _, place in self.p.stores]
        return any(p.strides[-1] not in (0, 1) for p in places) or bool(self.scalar_loads)

    def _most_live(self) -> int:
        """Full values and vectors that are alive at once (vectors count as full ones, except those
        that all blocks share)."""
        last: dict[int, int] = {}
        for at, step in enumerate(self.steps):
            last |= dict.fromkeys(step.nodes, at)
        for n in self.keep:
            last[n] = max(last.get(n, 0), len(self.steps))
        most = 1
        wide = [n.form != STAT and i not in self.shared for i, n in enumerate(self.p.nodes)]
        alive = {n for n in self.keep if wide[n] and self.p.nodes[n].op == "load"}
        for at, step in enumerate(self.steps):
            alive |= {a for a in step.nodes if wide[a]}
            if step.node >= 0 and wide[step.node]:
                alive.add(step.node)
            spare = any(  # a stat read where a row must stand
                isinstance(a, int) and self.p.nodes[a].form == STAT for a in step.operands
            )
            most = max(most, len(alive) + spare)
            alive = {n for n in alive if last.get(n, -1) > at}
        stored = {self.p.nodes[n].form for n in self.keep}
        return max(most, len(self.keep)) + (VECTOR in stored)

    def load_queue(self) -> int:
        """The queues that load, in turn."""
        queues = sorted({self.k.weights_queue, self.k.load_queue, self.k.vmem_queue})
        self.turn += 1
        return queues[self.turn % len(queues)]


class _Fold(_Rows):
    """Traces a reduction over rows: blocks are added to an accumulator, which is folded at last."""

    def __init__(
        self, k: Builder, program: RowProgram, value: int, how: str, count: int, out: Place
    ) -> None:
        program.stores = [(value, out)]
        super().__init__(k, program)
        self.value, self.how, self.fold, self.out = value, COMBINES[SECOND_OF[how]], count, out

    def run(self) -> None:
        k, p = self.k, self.p
        whole = k.tensor(Kind.VMEM, k.chip.vmem.rows // VMEM_BLOCK * VMEM_BLOCK, 1)
        kept = p.rows // self.fold
        if kept * self.tiles <= LEAST_WIDE_ROWS // 2 < p.rows * self.tiles:
            self.shared = self._shareable(whole.rows // 4)
            if self._suits_spm():
                self._fold_in_spm(whole, kept)
                k.free(whole)
                return
            self.shared = set()
        part = whole.rows // 3 // VMEM_BLOCK * VMEM_BLOCK
        rows, chunk = self._sizes(part, part)
        rows = rows // kept * kept if rows >= kept else rows
        sums = Region(k, whole.base + 2 * part, part)
        regions = [Region(k, whole.base + i * part, part) for i in range(2)]
        number = 0
        for first in range(0, self.tiles, chunk):
            span = (first, min(first + chunk, self.tiles))
            for at in range(0, kept, min(rows, kept)):
                size = min(rows, kept - at) if rows < kept else rows
                number = self._sum(regions, sums, number, span, at, size, kept)
        k.free(whole)

    def _fold_in_spm(self, whole: Tensor, kept: int) -> None:
        """Blocks of whole indices are added in acc."""
        k, p = self.k, self.p
        rows = min(p.rows, self.wide // self.tiles // kept * kept)
        regions = self._regions(whole, rows)
        sums = k.tensor(Kind.ACC, rows, p.width)
        for number, a in enumerate(range(0, p.rows, rows)):
            b = min(a + rows, p.rows)
            block = WideBlock(self, regions, number, a, b, rows, self.tiles)
            value = block.value(self.value, (0, self.tiles))
            part = replace(sums, rows=b - a)
            if number:
                ops.vector(k, part, value, dst=part, combine=self.how, rows=b - a)
            else:
                ops.vector(k, value, dst=part, rows=b - a)
            block.drop()
        left = rows // kept
        while left > 1:
            half = (left + 1) // 2
            move = (left - half) * kept
            high = k.tensor(Kind.SPM_FP32, move, p.width)  # a stripe of acc is read once
            ops.vector(k, sums.rows_from(half * kept, move), dst=high, rows=move)
            low = replace(sums, rows=move)
            ops.vector(k, low, high, dst=low, combine=self.how, rows=move)
            k.free(high)
            left = half
        out = k.tensor(Kind.SPM_FP32, kept, p.width)
        ops.vector(k, replace(sums, rows=kept), dst=out, rows=kept)
        last = WideBlock(self, regions, 0, 0, kept, kept, self.tiles)
        last._store(out, self.out, (0, self.tiles))
        k.free(out, sums)

    def _sum(
        self, regions: list[Region], sums: Region, number: int, span: tuple[int, int], at: int,
        size: int, kept: int,
    ) -> int:  # fmt: skip
        """Sums rows at.. of every index (all rows of several indices, where size allows it)."""
        k, p = self.k, self.p
        blocks = [(i * kept + at, i * kept + at + size) for i in range(self.fold)]
        if size >= kept:
            blocks = [(a, min(a + size, p.rows)) for a in range(0, p.rows, size)]
        acc: Tensor | None = None
        width = min(p.width - span[0] * self.lanes, (span[1] - span[0]) * self.lanes)
        for a, b in blocks:
            block = Block(self, regions, number, a, b, size, span[1] - span[0])
            number += 1
            value = block.value(self.value, span)
            if acc is None:
                acc = sums.tensor(b - a, span[1] - span[0], width, slot=1)
                ops.vector(k, value, dst=acc, rows=b - a)
            else:
                target = replace(acc, rows=b - a)
                ops.vector(k, target, value, dst=target, combine=self.how, rows=b - a)
            block.drop()
        assert acc is not None
        left = acc.rows // kept if size >= kept else 1
        while left > 1:
            half = (left + 1) // 2
            move = (left - half) * kept
            low, high = (
                replace(acc, rows=move),
                replace(acc, base=acc.base + half * kept, rows=move),
            )
            ops.vector(k, low, high, dst=low, combine=self.how, rows=move)
            left = half
        count = min(size, kept)
        last = Block(self, regions, number, at, at + count, size, span[1] - span[0])
        last._store(replace(acc, rows=count), self.out, span)
        sums.free(acc)
        return number
