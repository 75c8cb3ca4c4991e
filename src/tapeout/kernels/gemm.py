"""C = A @ B for matrices in HBM that do not fit the chip.

C is cut into blocks of `rows` x `columns` column tiles that stay in acc while K goes by in chunks
of `depth`: a chunk of A (moving) and one of B (stationary) come by DMA into rings of spm slots, and
`ops.matmul` goes over their tiles in hardware loops. Two acc buffers alternate: while the array
fills one, the vector unit applies the epilogue to the other (at least it casts it) and a DMA queue
stores the result. `choose` weighs the sizes.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tapeout.chip import Chip
from tapeout.isa import Kind
from tapeout.isa.dma import HbmFormat
from tapeout.isa.forms import ceil_div
from tapeout.lang import Builder, ChipTooSmall, HbmTensor, Tensor, ops

from .epilogue import Epilogue, Finish, plain
from .rings import Chunks, Rings
from .rows import STRIDE_MAX, load_rows, load_tiled, spans, spm_rows, store_rows

ISSUE_CYCLES = 2  # a load and a matmul
RUN_LATENCY_CYCLES = 60  # an HBM access beside request and response: the model's idle latency
RUN_OVERHEAD_BYTES = 1024  # a strided run costs about as much as this many more bytes: row misses
HBM_WEIGHT = 0.1  # of HBM time that is hidden: it costs energy, and others may need it
STEP_CYCLES = 20  # a chunk more costs instructions


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tile sizes: a block of C is rows x columns * lanes; `depth` is K of a chunk."""

    rows: int
    columns: int
    depth: int
    slots: int  # of each input ring
    cycles: float  # what the cost function expects

    def __str__(self) -> str:
        return (
            f"{self.rows} rows x {self.columns} column tiles, chunks of K = {self.depth}, "
            f"{self.slots} slots"
        )


def choose(
    chip: Chip, m: int, n: int, k: int, *, formats: Sequence[HbmFormat], tiled: bool, stripes: int
) -> Plan:
    """The cheapest sizes for [m, k] @ [k, n] that fit `stripes` stripes of spm. ChipTooSmall.

    Args:
        formats: of the tensors [m, n] that are stored, and of others that the epilogue loads.
    """
    best: Plan | None = None
    lanes, tall = chip.lanes, chip.mxu.rows
    tiles = ceil_div(n, lanes)
    depth_max = STRIDE_MAX // tall * tall
    depths = {min(tall << i, ceil_div(k, tall) * tall, depth_max) for i in range(12)}
    row_sizes = {ceil_div(m, ceil_div(m, 8 << i)) for i in range(10)}
    for rows, columns, depth in itertools.product(row_sizes, range(1, 9), depths):
        if columns > tiles or not _fits(chip, rows, columns, depth, formats):
            continue
        slots = _slots(chip, rows, columns, depth, formats, stripes)
        if slots < 2:
            continue
        cycles = _cost(chip, m, n, k, rows, columns, depth, formats, tiled)
        if best is None or cycles < best.cycles:
            best = Plan(rows=rows, columns=columns, depth=depth, slots=slots, cycles=cycles)
    if best is None:
        raise ChipTooSmall(
            f"no tile of a {m} x {n} x {k} product fits {stripes} stripes of "
            f"{chip.spm.rows_per_stripe} rows of spm and {chip.acc.stripes} of "
            f"{chip.acc.rows_per_stripe} of acc: raise spm.stripes (6 or more) or their rows"
        )
    return best


def _fits(
    chip: Chip, rows: int, columns: int, depth: int, formats: Sequence[HbmFormat]
) -> bool:  # fmt: skip
    wide = max(spm_rows(f) for f in formats)
    acc = 2 * ceil_div(rows * columns, chip.acc.rows_per_stripe) <= chip.acc.stripes
    return acc and rows * wide <= STRIDE_MAX


def _slots(
    chip: Chip, rows: int, columns: int, depth: int, formats: Sequence[HbmFormat], stripes: int
) -> int:  # fmt: skip
    """Slots an input ring may have: every slot has its stripes for itself."""
    per = chip.spm.rows_per_stripe
    a = ceil_div(rows * ceil_div(depth, chip.mxu.rows), per)
    b = ceil_div(depth * columns, per)
    c = sum(ceil_div(rows * columns * spm_rows(f), per) for f in formats)
    return min(4, (stripes - 2 * c) // (a + b))


def _cost(
    chip: Chip, m: int, n: int, k: int, rows: int, columns: int, depth: int,
    formats: Sequence[HbmFormat], tiled: bool,
) -> float:  # fmt: skip
    """Cycles: the slowest of array, HBM and each queue's runs, and what nothing hides.

    Not hidden: the first chunks, the array's latency, and the last block's way out.
    """
    mxu, lanes = chip.mxu, chip.lanes
    blocks, groups = ceil_div(m, rows), ceil_div(ceil_div(n, lanes), columns)
    passes = ceil_div(k, mxu.rows) * ceil_div(n, lanes)
    load = ceil_div(mxu.rows, mxu.load_rows_per_cycle)
    array = sum(
        passes * max(min(rows, m - at), load, mxu.accumulate_cycles, ISSUE_CYCLES)
        for at in range(0, m, rows)
    )
    out_bytes = sum(2 * spm_rows(f) for f in formats)
    width = min(n, columns * lanes)
    depth = min(depth, k)
    sides = [  # bytes in all, bytes of a run, bytes of the first chunk
        (2 * m * k * (1 if depth == k else groups), 2 * depth, 2 * rows * depth),
        (2 * k * n * blocks, 2 * depth * lanes if tiled else 2 * width, 2 * depth * width),
        (out_bytes * m * n, out_bytes * width, out_bytes * min(m, rows) * width),
    ]
    spent, slowest, ways = 0.0, 0.0, []
    for total, run, first in sides:
        rate, speed = run_rates(chip, run)
        slowest, spent = max(slowest, total / speed), spent + total / rate
        ways.append(first / speed)
    edges = max(ways[0], ways[1]) + ways[2] + 2 * _latency(chip)
    edges += ceil_div(rows * columns * out_bytes // 2, chip.vpu.sublanes)
    steps = blocks * groups * ceil_div(k, depth)
    return max(array, slowest, spent) + edges + HBM_WEIGHT * spent + STEP_CYCLES * steps


def _latency(chip: Chip) -> int:
    return chip.dma.request_cycles + chip.dma.response_cycles + RUN_LATENCY_CYCLES


def run_rates(chip: Chip, run: int) -> tuple[float, float]:
    """Bytes a cycle of HBM, and of one queue, for runs of that many bytes."""
    run = min(run, chip.hbm.interleave_bytes)
    rate = chip.hbm_bytes_per_cycle * run / (run + RUN_OVERHEAD_BYTES)
    return rate, min(rate, chip.dma.bytes_per_cycle, run, run * chip.dma.credits / _latency(chip))


def gemm(
    k: Builder,
    a: HbmTensor,
    b: HbmTensor,
    c: HbmTensor | None,
    shape: tuple[int, int, int],
    *,
    out: HbmFormat = HbmFormat.BF16,
    tiled: bool = False,
    plan: Plan | None = None,
    more: Sequence[tuple[HbmTensor, HbmTensor]] = (),
    transposed: bool = False,
    epilogue: Epilogue | None = None,
    others: Sequence[Sequence[tuple[HbmTensor, HbmTensor]]] = (),
) -> Plan:
    """C[M, N] = A[M, K] @ B[K, N] for shape = (M, N, K); the plan it followed.

    Args:
        a: bf16, row-major.
        b: bf16, row-major; with `tiled`, column tile by column tile (`Matrix`).
        c: written row-major as `out`: BF16, or FP32 as summed; None with an epilogue.
        plan: sizes to use instead of those of `choose`.
        more: pairs A', B' of the same shapes, whose products are added, in order.
        transposed: B is given as [N, K], row-major.
        epilogue: what is computed of the product and stored instead of it.
        others: pairs of further products of the same shape; theirs follow C in memory.
    """
    if others and c is None:
        raise ValueError("several products have no epilogue: give C")
    if tiled and transposed:
        raise ValueError("B is tiled or transposed, not both")
    if min(shape) < 1:
        raise ValueError(f"a product takes M, N, K of 1 or more, not {shape}")
    if out not in (HbmFormat.BF16, HbmFormat.FP32):
        raise ValueError(f"a product is stored as bf16 or fp32, not {out.name.lower()}")
    if (c is None) == (epilogue is None):
        raise ValueError("a product goes to C or into an epilogue: give one of them")
    if epilogue is None:
        assert c is not None
        epilogue = plain(shape[:2], c, out)
    if plan is None:
        stripes = len(k.places.spm.stripes)
        plan = choose(k.chip, *shape, formats=epilogue.formats, tiled=tiled, stripes=stripes)
    with k.scope("gemm"):
        products = [[(a, b), *more], *others]
        _Gemm(k, products, shape, epilogue, tiled, transposed, plan).run()
    return plan


class _Gemm:
    """Traces products of one shape, each a sum over terms."""

    def __init__(
        self, k: Builder, products: Sequence[Sequence[tuple[HbmTensor, HbmTensor]]],
        shape: tuple[int, int, int], epilogue: Epilogue, tiled: bool, transposed: bool, plan: Plan,
    ) -> None:  # fmt: skip
        self.k, self.products, self.plan = k, products, plan
        self.m, self.n, self.depth = shape
        self.tiled, self.transposed = tiled, transposed
        self.lanes, self.tall = k.chip.lanes, k.chip.mxu.rows
        self.rings = Rings(k)
        width = plan.columns * self.lanes
        tall_tiles = ceil_div(plan.depth, self.tall)
        make = self.rings.make
        self.finish = Finish(k, epilogue, plan.rows, width, self.rings)
        self.moving = Chunks(
            make(Kind.SPM_BF16, plan.rows, tall_tiles * self.lanes, plan.slots), self._load_a
        )
        self.stationary = Chunks(
            make(Kind.SPM_BF16, plan.depth, width, plan.slots, stationary=True), self._load_b
        )
        self.sums = make(Kind.ACC, plan.rows, width, 2)

    def run(self) -> None:
        plan, lanes = self.plan, self.lanes
        step = plan.columns * lanes
        turns = itertools.cycle(self.sums)
        for (number, terms), row, column in itertools.product(
            enumerate(self.products), range(0, self.m, plan.rows), range(0, self.n, step)
        ):
            self.finish.skip = number * self.m * self.n
            rows, width = min(plan.rows, self.m - row), min(step, self.n - column)
            acc = replace(next(turns), width=width)
            self.finish.fetch(row, rows, column, width)
            chunks = itertools.product(terms, range(0, self.depth, plan.depth))
            for chunk, ((a, b), at) in enumerate(chunks):
                depth = min(plan.depth, self.depth - at)
                x = self.moving.get(a, row, at, rows, depth)
                w = self.stationary.get(b, at, column, depth, width)
                ops.matmul(
                    self.k, acc, x, w, rows=rows, accumulate=chunk > 0,
                    transposed=self.transposed,
                )  # fmt: skip
            self.finish.store(acc, row, rows, column, width)
        self.rings.free()
        self.finish.free()

    def _load_a(
        self, slot: Tensor, a: HbmTensor, row: int, at: int, rows: int, depth: int
    ) -> Tensor:
        """A[row.., at..] as tiles of `mxu.rows` lanes."""
        x = replace(slot, rows=rows, width=ceil_div(depth, self.tall) * self.lanes)
        src = a.beyond(2 * (row * self.depth + at))
        load_rows(self.k, x, src, depth, self.tall, 2 * self.depth, queue=self.k.load_queue)
        return x

    def _load_b(
        self, slot: Tensor, b: HbmTensor, at: int, column: int, depth: int, width: int
    ) -> Tensor:
        """B[at.., column..] as column tiles of `depth` rows; transposed, as tiles of K."""
        if self.transposed:
            tiles = ceil_div(depth, self.tall)
            w = replace(slot, rows=width, width=tiles * self.lanes, tile_stride=width)
            src = b.beyond(2 * (column * self.depth + at))
            queue = self.k.weights_queue
            load_rows(self.k, w, src, depth, self.tall, 2 * self.depth, queue=queue)
            return replace(w, width=depth)
        w = replace(slot, rows=depth, width=width)
        queue = self.k.weights_queue
        if not self.tiled:
            src = b.beyond(2 * (at * self.n + column))
            load_rows(self.k, w, src, width, self.lanes, 2 * self.n, queue=queue)
            return w
        for first, tiles, span in spans(width, self.lanes):
            src = b.beyond(2 * (self.depth * (column + first * self.lanes) + at * span))
            load_tiled(self.k, w.tile(first, tiles), src, self.depth, queue=queue)
        return w


def transpose(k: Builder, src: HbmTensor, dst: HbmTensor, rows: int, columns: int) -> None:
    """dst [columns, rows] = src [rows, columns], bf16, by the array: a tile is loaded transposed
    and unloaded. NaN becomes canonical and subnormals zero, as everywhere on the chip.

    Tiles come and go in blocks: their rows are runs of HBM of several tiles."""
    lanes, tall = k.chip.lanes, k.chip.mxu.rows
    high, wide = _block_to_turn(k, rows, columns)
    rings = Rings(k)
    with k.scope("transpose"):
        sources = itertools.cycle(rings.make(Kind.SPM_BF16, high, wide // tall * lanes, 2))
        results = itertools.cycle(rings.make(Kind.SPM_BF16, wide, high, 2))
        sums = itertools.cycle(rings.make(Kind.ACC, lanes, lanes, 4))
        for r, c in itertools.product(range(0, rows, high), range(0, columns, wide)):
            n, m = min(high, rows - r), min(wide, columns - c)
            x = replace(next(sources), rows=n, width=ceil_div(m, tall) * lanes, tile_stride=n)
            y = replace(next(results), rows=m, width=n, tile_stride=m)
            load_rows(
                k, x, src.beyond(2 * (r * columns + c)), m, tall, 2 * columns, queue=k.load_queue
            )
            for i, j in itertools.product(range(0, n, lanes), range(0, m, tall)):
                acc, count, height = next(sums), min(lanes, n - i), min(tall, m - j)
                ops.load_stationary(
                    k, x.rows_from(i, count), j // tall, height, count, transposed=True
                )
                ops.unload(k, acc)
                part = y.tile(i // lanes).rows_from(j, height)
                ops.vector(k, acc, dst=part, rows=height, tiles=1, width=count)
            store_rows(
                k, y, dst.beyond(2 * (c * rows + r)), n, 2 * rows, HbmFormat.BF16,
                queue=k.store_queue,
            )  # fmt: skip
    rings.free()


def _block_to_turn(k: Builder, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns that `transpose` takes at once: about as many of both, in a stripe."""
    lanes, tall = k.chip.lanes, k.chip.mxu.rows
    tiles = k.chip.spm.rows_per_stripe // max(lanes, tall)
    high = wide = 1
    while True:
        grown = (high * 2, wide) if high <= wide else (high, wide * 2)
        fits = grown[0] * grown[1] <= tiles and max(grown) * max(lanes, tall) <= STRIDE_MAX
        if not fits:
            break
        high, wide = grown
    return min(high, ceil_div(rows, lanes)) * lanes, min(wide, ceil_div(columns, tall)) * tall


def tile_columns(b: np.ndarray, lanes: int) -> np.ndarray:
    """B [K, N] column tile by column tile, flat: the layout of `tiled`."""
    return np.concatenate([b[:, at : at + lanes].ravel() for at in range(0, b.shape[1], lanes)])


def gemm_reference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 A @ B."""
    return a.astype(np.float64) @ b.astype(np.float64)


def peak_cycles(chip: Chip, m: int, n: int, k: int) -> int:
    """Cycles at every multiplier busy in each."""
    return math.ceil(m * n * k / chip.macs_per_cycle)
