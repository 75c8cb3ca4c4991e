"""Blocks of rows of an elementwise program on chip: what `rowwise` cuts a program into.

A `Block` has its tensors in a region of vmem (`wideblock.WideBlock` has full ones in stripes of spm
and acc). It loads what steps read, runs them, and stores what is kept, chunk of lanes by chunk
where a row does not fit.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from tapeout.isa import Kind, dma
from tapeout.isa.vpu import Combine, Combine2, Function, Reduce
from tapeout.lang import Builder, ChipTooSmall, HbmTensor, Tensor, ops
from tapeout.lang.builder import VMEM_BLOCK

from .rowprogram import (
    COMBINES,
    COMMUTE,
    FULL,
    FUNCTIONS,
    REDUCES,
    SECOND,
    STAT,
    VECTOR,
    Arg,
    Place,
    RowProgram,
    Step,
    merged,
    pieces,
)
from .rows import STRIDE_MAX, move_rows, transfer

LEAST_TURNED = 8  # rows and lanes of what is turned on chip


class Region:
    """First-fit blocks of a range of vmem rows."""

    def __init__(self, k: Builder, first: int, rows: int) -> None:
        self.k, self.first, self.rows = k, first, rows
        self.used: list[tuple[int, int]] = []

    def tensor(self, rows: int, tiles: int, width: int, *, slot: int = 0) -> Tensor:
        """[rows, width] with `tiles` tiles, in a place of `slot` rows from the bottom, or from the
        top (0). ChipTooSmall."""
        need = padded_rows(max(slot, rows * tiles)) if slot else rows * tiles
        at = self._from_bottom(need) if slot else self._from_top(need)
        if at < 0 or at + need > self.rows:
            raise ChipTooSmall(
                f"vmem has no room for {need} rows of an elementwise block: raise vmem.rows "
                f"(now {self.k.chip.vmem.rows})"
            )
        self.used.append((at, at + need))
        base = self.first + at
        blocks = range(base // VMEM_BLOCK, -(-(base + need) // VMEM_BLOCK))
        return Tensor(
            kind=Kind.VMEM, base=base, rows=rows, width=width, tile_stride=rows, row_stride=1,
            lanes=self.k.chip.lanes, resources=frozenset(("vmem", b) for b in blocks),
        )  # fmt: skip

    def _from_bottom(self, need: int) -> int:
        at = 0
        for low, high in sorted(self.used):
            if low - at >= need:
                break
            at = high
        return at

    def _from_top(self, need: int) -> int:
        end = self.rows
        for low, high in sorted(self.used, reverse=True):
            if end - high >= need:
                break
            end = low
        return end - need

    def free(self, t: Tensor) -> None:
        at = t.base - self.first
        self.used = [u for u in self.used if u[0] != at]


def padded_rows(rows: int) -> int:
    """Rows in whole blocks, by which vmem is ordered."""
    return -(-rows // VMEM_BLOCK) * VMEM_BLOCK


class Traced(Protocol):
    """What a `Block` is a part of."""

    k: Builder
    p: RowProgram
    lanes: int
    tiles: int
    steps: list[Step]
    keep: set[int]
    vectors: dict[int, Tensor]  # that all blocks share
    level: list[int]  # how many reductions, one after another, come before each node
    scalar_loads: list[int]

    def load_queue(self) -> int:
        """The queue of the next load."""
        ...


class Block:
    """Rows [a, b) of a program."""

    def __init__(
        self, rows: Traced, regions: list[Region], number: int, a: int, b: int, size: int,
        chunk: int,
    ) -> None:  # fmt: skip
        self.outer, self.k, self.p, self.lanes = rows, rows.k, rows.p, rows.lanes
        self.a, self.b, self.size, self.chunk = a, b, size, chunk
        self.count = b - a
        self.held: dict[int, Tensor] = dict(rows.vectors)
        self.region = regions[number % len(regions)]

    def run(self) -> None:
        outer = self.outer
        self.load_stats()
        spans = [(t, min(t + self.chunk, outer.tiles)) for t in range(0, outer.tiles, self.chunk)]
        if len(spans) == 1:
            self._pass(outer.steps, spans[0], first=True, level=-1)
        else:
            self._chunked(spans)
        for n, place in self.p.stores:
            if self.p.nodes[n].form == STAT:
                self._store_stat(self.held[n], place)
        self.drop()

    def value(self, n: int, span: tuple[int, int]) -> Tensor:
        """Node n over tiles [span), on chip until `drop`."""
        self.load_stats()
        self._pass(self.outer.steps, span, first=True, level=-1, sink=True)
        return self._full(n, span)

    def free(self, t: Tensor) -> None:
        self.region.free(t)

    def drop(self) -> None:
        """Frees what `value` left."""
        for n in [n for n in self.held if n not in self.outer.vectors]:
            self.free(self.held.pop(n))

    def _chunked(self, spans: list[tuple[int, int]]) -> None:
        """Level by level: what its reductions and stores need, chunk by chunk."""
        outer, nodes = self.outer, self.p.nodes
        for level in range(max(outer.level) + 1):
            for step in outer.steps:
                if step.form == STAT and outer.level[step.node] == level:
                    self.step(step, (0, 1), first=True)
            wanted = {
                s.node if s.node >= 0 else -1 - s.reduce
                for s in outer.steps
                if s.form != STAT
                and (
                    (s.reduce >= 0 and outer.level[s.reduce] == level + 1)
                    or (s.node in outer.keep and outer.level[s.node] == level)
                )
            }
            only_moved = any(
                nodes[n].op == "load" and nodes[n].form != STAT and outer.level[n] == level
                for n in outer.keep
            )  # fmt: skip
            if not wanted and not only_moved:
                continue
            chosen: list[Step] = []
            needed: set[int] = set()
            for step in reversed(outer.steps):
                if step.form == STAT:
                    continue
                key = step.node if step.node >= 0 else -1 - step.reduce
                if key in wanted or step.node in needed:
                    chosen.insert(0, step)
                    needed |= {a for a in step.nodes if nodes[a].form != STAT}
            for number, span in enumerate(spans):
                self._pass(chosen, span, first=number == 0, level=level)

    # --- one pass over lanes ----------------------------------------------------------------------

    def _pass(
        self, steps: list[Step], span: tuple[int, int], *, first: bool, level: int,
        sink: bool = False,
    ) -> None:  # fmt: skip
        """Runs steps over tiles [span). level < 0: all of the program at once.

        Args:
            sink: what the program would store stays on chip.
        """
        nodes, outer = self.p.nodes, self.outer
        last: dict[int, int] = {}
        for at, step in enumerate(steps):
            last |= dict.fromkeys(step.nodes, at)
        kept = {
            n for n in outer.keep
            if nodes[n].form != STAT and (level < 0 or outer.level[n] == level)
        }  # fmt: skip
        for n in kept:  # loads that are only stored
            if nodes[n].op == "load":
                self.fetch(n, span)
        local = set(kept)
        for at, step in enumerate(steps):
            if step.node in outer.vectors:
                continue
            for a in step.nodes:
                if a not in self.held:
                    self.fetch(a, span)
                if nodes[a].form != STAT and a not in outer.vectors:
                    local.add(a)
            self.step(step, span, first=first, level=level)
            if step.node >= 0 and step.form != STAT:
                local.add(step.node)
            for n in [n for n in local if n in self.held and n not in kept]:
                if last.get(n, -1) <= at:
                    self.free(self.held.pop(n))
                    local.discard(n)
        if sink:
            return
        for n, place in self.p.stores:
            if n in kept:
                self._store(self._full(n, span), place, span)
        for n in kept:
            self.free(self.held.pop(n))
        if self.outer.tiles > self.chunk:
            assert all(nodes[n].form == STAT for n in self.held)

    def _width(self, span: tuple[int, int]) -> int:
        return min(self.p.width - span[0] * self.lanes, (span[1] - span[0]) * self.lanes)

    def _tensor(self, form: str, span: tuple[int, int]) -> Tensor:
        if form == STAT:
            depth = -(-self.count // self.lanes)
            t = self.region.tensor(depth, 1, self.lanes)
            return replace(t, rows=1, width=self.count, tile_stride=1)
        tiles = span[1] - span[0]
        rows = self.count if form == FULL else 1
        slot = self.size * self.chunk  # all of one size: nothing falls between
        return self.region.tensor(rows, tiles, self._width(span), slot=slot)

    def fetch(self, n: int, span: tuple[int, int]) -> None:
        """Loads node n."""
        node = self.p.nodes[n]
        assert node.place is not None, (n, node)
        t = self._tensor(node.form, span)
        rows = (self.a, self.b) if node.form == FULL else (0, 1)
        self._load(t, node.place, rows, span)
        self.held[n] = t

    def _full(self, n: int, span: tuple[int, int]) -> Tensor:
        """A vector as it is stored: once a row."""
        t = self.held[n]
        if self.p.nodes[n].form == VECTOR:
            wide = self._tensor(FULL, span)
            ops.vector(self.k, t.shared(), dst=wide, rows=self.count, tiles=t.tiles, width=t.width)
            self.free(self.held[n])
            self.held[n] = wide
            return wide
        return t

    # --- arithmetic -------------------------------------------------------------------------------

    def _operand(self, a: Arg, form: str) -> Tensor | float:
        if not isinstance(a, int):
            return a
        t, own = self.held[a], self.p.nodes[a].form
        if own == form:
            return t
        return t.scalars() if own == STAT else t.shared()

    def step(self, step: Step, span: tuple[int, int], *, first: bool, level: int = -1) -> None:
        k, nodes = self.k, self.p.nodes
        operands = [self._operand(a, step.form) for a in step.operands]
        combine = COMBINES[step.combine] if step.combine else Combine.A
        spare: list[Tensor] = []
        rows, tiles, width = self.count, span[1] - span[0], self._width(span)
        if step.form == STAT:
            rows, tiles, width = 1, -(-self.count // self.lanes), self.count
        elif step.form == VECTOR:
            rows = 1

        def is_row(x: Tensor | float) -> bool:
            return not isinstance(x, Tensor) or x.kind != Kind.ROW_SCALAR

        if not is_row(operands[0]):
            if step.combine in COMMUTE and is_row(operands[1]):
                operands[0], operands[1] = operands[1], operands[0]
            elif step.combine == "sub" and is_row(operands[1]):
                operands[0], operands[1] = operands[1], operands[0]
                combine = Combine.RSUB
            else:
                wide = self._tensor(FULL, span)
                ops.vector(
                    k, 1.0, operands[0], dst=wide, combine=Combine.MUL, rows=rows, tiles=tiles,
                    width=width,
                )  # fmt: skip
                spare.append(wide)
                operands[0] = wide
        dst = None
        if step.node >= 0:
            dst = self._result(step, span)
        stat = None
        if step.reduce >= 0 and (level < 0 or self.outer.level[step.reduce] == level + 1):
            if step.reduce not in self.held:
                self.held[step.reduce] = self._tensor(STAT, span)
            stat = self.held[step.reduce]
        if dst is None and stat is None:
            raise AssertionError("a step without a result")
        d = None if step.d is None else self._operand(step.d, step.form)
        operands, d = self._apart(operands, d, spare, span)
        b, c = ([*operands[1:], None, None])[:2]
        rounds = step.node >= 0 and nodes[step.node].op == "bf16"
        rounds = rounds and dst is not None and dst.kind == Kind.VMEM
        target = dst
        if rounds:
            target = k.tensor(Kind.SPM_BF16, rows * tiles, self.lanes)
            target = replace(target, rows=rows, width=tiles * self.lanes, tile_stride=rows)
        how = REDUCES[nodes[step.reduce].how] if stat is not None else Reduce.NONE
        lead = operands[0]
        ops.vector(
            k, lead, b, c, d, dst=target, combine=combine,
            function=FUNCTIONS[step.function] if step.function else Function.NONE,
            combine2=SECOND[step.second] if step.second else Combine2.U,
            rows=rows, tiles=tiles, width=width, reduce=how, reduce_dst=stat,
            reduce_accumulate=stat is not None and not first,
        )  # fmt: skip
        if rounds:
            assert target is not None
            ops.vector(k, target, dst=dst, rows=rows, tiles=tiles, width=width)
            k.free(replace(target, rows=rows * tiles, width=self.lanes, tile_stride=rows * tiles))
        for t in spare:
            self.free(t)

    def _apart(
        self, operands: list[Tensor | float], d: Tensor | float | None, spare: list[Tensor],
        span: tuple[int, int],
    ) -> tuple[list[Tensor | float], Tensor | float | None]:  # fmt: skip
        """Operands that one instruction can read; copies of some go to `spare`."""
        return operands, d

    def _result(self, step: Step, span: tuple[int, int]) -> Tensor:
        if step.node not in self.held:
            self.held[step.node] = self._tensor(step.form, span)
        return self.held[step.node]

    # --- transfers --------------------------------------------------------------------------------

    def _load(self, t: Tensor, place: Place, rows: tuple[int, int], span: tuple[int, int]) -> None:
        *strides, lane = place.strides
        first = span[0] * self.lanes * lane
        if lane in (0, 1):
            self._rows_of(t, place, rows, strides, first, load=True)
        elif self._lies_turned(place, rows, t.width):
            self._turned(t, place, rows, first)
        elif rows[1] - rows[0] >= t.width:
            self._columns(t, place, rows, first, load=True)
        else:
            for m in range(*rows):  # the elements of a row, one a row, are packed
                packed = replace(t, base=t.base + m - rows[0], rows=1)
                self._gather(packed, place, first + self._element(m, strides), lane, t.width)

    def _columns(
        self, t: Tensor, place: Place, rows: tuple[int, int], first: int, *, load: bool
    ) -> None:
        """Column by column: element m of a column is row m of a lane."""
        *strides, lane = place.strides
        for w in range(t.width):
            column = replace(t.tile(w // self.lanes), width=1)
            self._rows_of(
                column, place, rows, strides, first + w * lane, load=load, lane=w % self.lanes
            )

    def _lies_turned(self, place: Place, rows: tuple[int, int], width: int) -> bool:
        """Columns, not rows, are consecutive, and there is enough of both."""
        *strides, lane = place.strides
        n, step = merged(self.p.dims, strides)[-1]
        return lane > 1 and step == 1 and min(n, rows[1] - rows[0], width) >= LEAST_TURNED

    def _turned(self, t: Tensor, place: Place, rows: tuple[int, int], first: int) -> None:
        """Rows whose columns come as rows, tile by tile; a reduction of one lane is a row then."""
        *strides, lane = place.strides
        row = 0
        for at, n, _, outer, outer_step in pieces(*rows, merged(self.p.dims, strides)):
            for o, a in itertools.product(range(outer), range(0, n, self.lanes)):
                count = min(self.lanes, n - a)
                for w in range(0, t.width, self.lanes):
                    high = min(self.lanes, t.width - w)
                    src = place.at(first + at + o * outer_step + a + w * lane)
                    columns = self.region.tensor(high, 1, count)
                    ops.load(
                        self.k, columns, src, queue=self.outer.load_queue(), format=place.format,
                        row_bytes=lane * place.size,
                    )  # fmt: skip
                    for m in range(count):
                        ops.vector(
                            self.k, columns, lanes=(m, m + 1), reduce=Reduce.MAX,
                            reduce_dst=t.rows_from(row + m, 1).tile(w // self.lanes),
                        )  # fmt: skip
                    self.region.free(columns)
                row += count

    def _gather(self, packed: Tensor, place: Place, at: int, stride: int, width: int) -> None:
        """Row 0 of `packed` = `width` elements, `stride` apart."""
        for w in range(0, width, self.lanes):
            n = min(self.lanes, width - w)
            scratch = self.region.tensor(n, 1, 1)
            self._rows_of(scratch, place, (0, n), [stride], at + w * stride, load=True, dims=(n,))
            self._pack(scratch, packed.tile(w // self.lanes), n)
            self.region.free(scratch)

    def _pack(self, column: Tensor, packed: Tensor, count: int) -> None:
        """Lanes of row 0 of `packed` = lane 0 of `count` rows."""
        ops.vector(
            self.k, column, rows=count, tiles=1, width=1, reduce=Reduce.MAX, reduce_dst=packed
        )

    def _store(self, t: Tensor, place: Place, span: tuple[int, int]) -> None:
        *strides, lane = place.strides
        rows, first = (self.a, self.b), span[0] * self.lanes * lane
        if lane == 1 or t.width == 1:
            self._rows_of(t, place, rows, strides, first, load=False)
        else:
            self._columns(t, place, rows, first, load=False)

    def load_stats(self, numbers: Sequence[int] | None = None) -> None:
        """Numbers a row that the program loads, but those that all blocks share."""
        for n in self.outer.scalar_loads if numbers is None else numbers:
            if n not in self.held:
                self._load_stat(n)

    def _load_stat(self, n: int) -> None:
        """A number a row: the same everywhere, packed as it lies, or element by element."""
        place = self.p.nodes[n].place
        assert place is not None
        t = self._tensor(STAT, (0, 1))
        self.held[n] = t
        if place.still:
            self._everywhere(t, place)
            return
        if self._lies_packed(place):
            self._packed_rows(t, place, self.a, load=True)
            return
        for column, packed, rows in self._packs_of(t):
            self._rows_of(column, place, rows, list(place.strides[:-1]), 0, load=True)
            self._pack(column, packed, column.rows)

    def _everywhere(self, t: Tensor, place: Place) -> None:
        """All lanes of t = one number."""
        one = self.region.tensor(1, 1, 1)
        self._rows_of(one, place, (0, 1), [0], 0, load=True, dims=(1,))
        for row in range(-(-self.count // self.lanes)):
            ops.vector(
                self.k, 1.0, one.scalars(), dst=replace(t, base=t.base + row), combine=Combine.MUL,
                rows=1, tiles=1, width=self.lanes,
            )  # fmt: skip
        self.region.free(one)

    def _store_stat(self, t: Tensor, place: Place) -> None:
        if self._lies_packed(place):
            self._packed_rows(t, place, self.a, load=False)
            return
        for column, packed, rows in self._packs_of(t):
            ops.vector(
                self.k, 1.0, packed.scalars(), dst=column, combine=Combine.MUL, rows=column.rows,
                tiles=1, width=1,
            )  # fmt: skip
            self._rows_of(column, place, rows, list(place.strides[:-1]), 0, load=False)

    def _lies_packed(self, place: Place) -> bool:
        """The numbers of all rows follow each other in HBM."""
        dims = merged(self.p.dims, place.strides[:-1])
        return len(dims) == 1 and dims[0][1] == 1

    def _packs_of(self, t: Tensor) -> Iterator[tuple[Tensor, Tensor, tuple[int, int]]]:
        """A column for each packed row of t, that row, and which rows of the domain they are."""
        for m in range(0, self.count, self.lanes):
            here = min(self.lanes, self.count - m)
            column = self.region.tensor(here, 1, 1)
            low = self.a + m
            yield column, replace(t, base=t.base + m // self.lanes), (low, low + here)
            self.region.free(column)

    def _packed_rows(self, t: Tensor, place: Place, element: int, *, load: bool) -> None:
        move = ops.load if load else ops.store
        queue = self.outer.load_queue() if load else self.k.store_queue
        move(
            self.k, replace(t, rows=1, width=self.count, tile_stride=1), place.at(element),
            queue=queue, format=place.format, rows=1, row_bytes=0,
            tile_bytes=self.lanes * place.size,
        )  # fmt: skip

    def _element(self, row: int, strides: list[int]) -> int:
        """Offset of a row of the domain."""
        at = 0
        for n, s in zip(reversed(self.p.dims), reversed(strides), strict=True):
            row, i = divmod(row, n)
            at += i * s
        return at

    def _rows_of(
        self, t: Tensor, place: Place, rows: tuple[int, int], strides: list[int], first: int, *,
        load: bool, lane: int = 0, dims: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        """Moves rows of the domain (of `dims`) from or to rows 0.. of t.

        Args:
            first: an offset in elements.
        """
        dims = dims or self.p.dims
        size, m = place.size, 0
        queue = self.outer.load_queue() if load else self.k.store_queue
        move = ops.load if load else ops.store
        for at, n, step, outer, outer_step in pieces(*rows, merged(dims, strides)):
            for o in range(outer):
                part = t.rows_from(m, n)
                src = place.at(first + at + o * outer_step)
                if outer > 1 and t.tiles == 1:
                    tile_stride = n * t.row_stride
                    part = replace(part, tile_stride=tile_stride, width=outer * self.lanes)
                    self._move_runs(part, t.width, src, queue, place, step, outer_step, load, lane)
                    m += n * outer
                    break
                if t.tiles > 1 and t.tile_stride <= STRIDE_MAX:
                    move_rows(
                        self.k, dma.Load if load else dma.Store, part, src, t.width, self.lanes,
                        step * size, queue, place.format,
                    )  # fmt: skip
                    m += n
                    continue
                move(
                    self.k, part, src, queue=queue, format=place.format, row_bytes=step * size,
                    tile_bytes=self.lanes * size, lane=lane,
                )  # fmt: skip
                m += n

    def _move_runs(
        self, t: Tensor, width: int, src: HbmTensor, queue: int, place: Place, step: int,
        outer_step: int, load: bool, lane: int,
    ) -> None:  # fmt: skip
        """Runs of rows as one transfer: the tiles of t are runs here. What lies nearer in HBM goes
        first."""
        rows = (t.rows, step * place.size, t.row_stride)
        runs = (t.tiles, outer_step * place.size, t.tile_stride)
        inner, outer = rows, runs
        if outer_step < step and t.tile_stride <= STRIDE_MAX:
            inner, outer = runs, rows
        transfer(
            self.k, dma.Load if load else dma.Store, t, src, queue=queue, fmt=place.format,
            lane=lane, lanes=width, inner=inner, outer=outer,
        )  # fmt: skip
