"""Attention over a KV cache: one kernel for prefill chunks and for decode.

Cache in HBM, bf16: K and V of a sequence are [kv_heads, context, head_dim]. Keys are taken in
blocks of one or more tiles of `lanes`: one for a chunk of many tokens, as many as fit on chip for
decode (`block_tiles`). A launch works on S new tokens a sequence that stand at `position`; they
must not cross a tile of the cache: position % lanes + S <= lanes. The block they lie in (older rows
from HBM, new rows from the vector unit) is attended first and sets the running statistics, then a
hardware loop whose trip count is position // block goes over the older blocks, as flash attention
does:

    s = q K^T;  m' = max(m, rowmax(s));  p = exp2(s - m');  a = exp2(m - m')
    l = l a + rowsum(p);  o = o a + p V;  at the end  o / l

where q was multiplied by `Shape.factor` = scale * log2 e when its heads were set apart. Within a
block the products of all tiles follow each other and the softmax passes over them at once, so that
a tile costs the array's time for it, not its latency.

Rows: with S = 1, row b * heads + h (a token of each sequence); with S > 1 and one sequence, row
h * S + s. Heads are kept apart in spm: head h starts at lane 0 of its own tiles.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from tapeout.chip import Chip
from tapeout.isa import Kind, Operand
from tapeout.isa.mxu import Accumulate
from tapeout.isa.vpu import Combine, Function, Reduce
from tapeout.lang import Builder, HbmTensor, Scalar, Tensor, ops

from .heads import HeadLayout, merge_heads

LOG2E = 1.4426950408889634
ROW_STRIDE_MAX = (1 << Operand.LAYOUT["row_stride"].width) - 1


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of an attention layer: `tokens` S a sequence; `heads` queries share `kv_heads`."""

    batch: int
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    scale: float

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def factor(self) -> float:
        """What queries are multiplied by, so that scores are exponents of two."""
        return float(np.float32(self.scale * LOG2E))

    @property
    def rows(self) -> int:
        """Moving rows of the projections: tokens of all sequences."""
        return self.batch * self.tokens


class UnsupportedShape(ValueError):
    """A shape that a kernel does not run: says the rule, the value and the way out."""


def check_shape(shape: Shape, lanes: int) -> None:
    """Raises UnsupportedShape where the kernel cannot run a shape."""
    d = shape.head_dim
    if d & (d - 1):
        raise UnsupportedShape(f"attention takes a head_dim that is a power of two, not {d}")
    if shape.batch > 1 and shape.tokens > 1:
        raise UnsupportedShape(
            f"attention takes one sequence of many tokens or many sequences of one token, not "
            f"batch {shape.batch} x tokens {shape.tokens}: prefill sequences one by one"
        )
    if shape.tokens > lanes:
        raise UnsupportedShape(f"a chunk of {shape.tokens} tokens exceeds lanes = {lanes}")
    if shape.context % lanes:
        raise UnsupportedShape(f"context {shape.context} must be a multiple of lanes = {lanes}")


def block_tiles(chip: Chip, shape: Shape, count: int) -> int:
    """Tiles of `lanes` keys in a block, a power of two: the most that the context has and that fit.

    K and V of a block, for `count` sequences, fit one stripe of spm, its scores one stripe of acc.
    """
    if shape.tokens > 1:
        return 1
    per_head = -(-shape.head_dim // chip.lanes) * chip.lanes
    keys = 2 * count * shape.kv_heads * per_head
    fit = min(chip.spm.rows_per_stripe // keys, chip.acc.rows_per_stripe // (count * shape.heads))
    if count > 1:  # new rows of sequences are a block apart: a stride of a vpu operand
        fit = min(fit, ROW_STRIDE_MAX // chip.lanes)
    wanted = -(-shape.context // chip.lanes)
    return min(1 << max(0, fit.bit_length() - 1), 1 << (wanted - 1).bit_length())


@dataclass(frozen=True)
class Cache:
    """K or V of one layer in HBM, bf16: [kv_heads, context, head_dim] a sequence.

    Sequences lie `sequence_bytes` apart.
    """

    hbm: HbmTensor
    sequence_bytes: int

    def offset(self, b: int) -> int:
        return b * self.sequence_bytes


class Attention:
    """Attention of one layer for sequences [first, first + count) of the batch.

    Use: make it, write new keys and values to `new_rows(0)` and `new_rows(1)`, then `start` and
    `finish`. Between the two the array may start another one: its products run while the vector
    unit is at this one's softmax.
    """

    def __init__(
        self, k: Builder, shape: Shape, keys: Cache, values: Cache, position: Scalar,
        tokens: Scalar | int, *, first: int = 0, count: int | None = None,
        tiles: int | None = None,
    ) -> None:  # fmt: skip
        """`tiles`: of `lanes` keys in a block, a power of two (default: `block_tiles`)."""
        check_shape(shape, k.chip.lanes)
        self.k, self.shape, self.first = k, shape, first
        self.count = shape.batch if count is None else count
        self.tokens = tokens
        lanes = k.chip.lanes
        self.tiles = block_tiles(k.chip, shape, self.count) if tiles is None else tiles
        self.block = self.tiles * lanes
        self.within = position & (self.block - 1)
        self.full = self.within >> int(math.log2(lanes))  # tiles before that of the new tokens
        self.older = position >> int(math.log2(self.block))
        self.position = position
        self.known = (position & (lanes - 1)) + tokens  # keys in the tile of the new tokens
        self.layout = HeadLayout(k, shape.head_dim)
        self.cache = (keys, values)
        self.row_bytes = shape.head_dim * 2
        # K and V of the current block: each [kv head][sequence][block rows]. They share a stripe:
        # nothing works on one while the other is filled, and a stripe each would halve the number
        # of chunks that fit.
        rows = self.count * shape.kv_heads * self.block
        self.held = k.tensor(Kind.SPM_BF16, 2 * rows, shape.head_dim)
        self.current = tuple(self.held.rows_from(side * rows, rows) for side in range(2))
        self._load_current()

    def _head_bytes(self) -> int:
        return self.shape.context * self.row_bytes

    def _load_current(self) -> None:
        """Older rows of the block that the new tokens lie in."""
        k, shape = self.k, self.shape
        start = self.older * (self.block * self.row_bytes)
        with k.scope("attention"):
            for cache, tile in zip(self.cache, self.current, strict=True):
                for b in range(self.count):
                    for g in range(shape.kv_heads):
                        at = cache.offset(self.first + b) + g * self._head_bytes()
                        ops.load(
                            k, tile.rows_from(self._row(g, b), self.block), cache.hbm.at(start, at),
                            rows=self.within, row_bytes=self.row_bytes,
                        )  # fmt: skip

    def _row(self, g: int, b: int) -> int:
        return (g * self.count + b) * self.block

    @property
    def head_stride(self) -> int:
        """Rows from one kv head to the next in the current block."""
        return self.count * self.block

    def new_rows(self, which: int) -> Tensor:
        """Where the vector unit writes new keys (0) or values (1): row of sequence b, token s."""
        t = self.current[which]
        stride = self.block if self.count > 1 else 1
        return replace(
            t, rows=self.count if self.shape.tokens == 1 else self.shape.tokens, row_stride=stride
        ).at(self.within)

    def store_new(self) -> None:
        """New rows go to the cache in HBM."""
        k, shape = self.k, self.shape
        where = self.position * self.row_bytes
        with k.scope("kv_store"):
            for cache, tile in zip(self.cache, self.current, strict=True):
                for b in range(self.count):
                    for g in range(shape.kv_heads):
                        at = cache.offset(self.first + b) + g * self._head_bytes()
                        ops.store(
                            k, tile.rows_from(self._row(g, b), shape.tokens).at(self.within),
                            cache.hbm.at(where, at), rows=self.tokens, row_bytes=self.row_bytes,
                        )  # fmt: skip

    # --- the flash loop ---------------------------------------------------------------------------

    def start(self, q: Tensor) -> None:
        """Takes the queries (heads apart: `split_heads`) and begins with their scores."""
        k, shape = self.k, self.shape
        self.q, self.decode = q, shape.tokens == 1
        total = self.count * shape.heads if self.decode else shape.heads * shape.tokens
        # One part of the heads is in the array while another is in the vector unit.
        self.parts = [list(range(shape.kv_heads))]
        if not self.decode:
            self.parts = [[g] for g in range(shape.kv_heads)]
        self.part_rows = total // len(self.parts)
        with k.scope("attention"):
            self.o = k.tensor(Kind.ACC, total, shape.head_dim)
            if self.decode:
                self.stats = [k.packed(total) for _ in range(5)]
            else:
                self.stats = [k.packed(shape.tokens, shape.heads) for _ in range(5)]
            self.m, self.l, self.mt, self.lt, self.alpha = self.stats
            self.p: list[Tensor] = []
            self.s: list[Tensor] = []
            for _ in range(min(2, len(self.parts))):
                self.p.append(
                    k.tensor(Kind.SPM_BF16, self.part_rows, self.block, avoid=(q, *self.p))
                )
                self.s.append(
                    k.tensor(Kind.ACC, self.part_rows, self.block, avoid=(self.o, *self.s))
                )
            self._current_scores(0)

    def finish(self, dst: Tensor, *, rows: Scalar | int) -> None:
        """dst [M, heads * d] (spm_bf16) = attention of the queries that it was started with."""
        k, shape = self.k, self.shape
        with k.scope("attention"):
            self._pipeline(self._current_scores, self._current_values)
            self._stat(self.m, dst=self.mt)
            self.store_new()
            if shape.context > self.block:
                self._older_blocks()
            self._divide(dst, rows)
            k.free(self.o, *self.s, *self.p, self.held)
            for t in self.stats:
                k.free_packed(t)

    def _buffers(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """(scores, p, sums) of part i."""
        s, p = self.s[i % len(self.s)], self.p[i % len(self.p)]
        return s, p, self.o.rows_from(i * self.part_rows, self.part_rows)

    def _stat(self, t: Tensor, *args, heads: range | None = None, **kwargs) -> None:
        """A map over packed statistics: of all rows, or of some heads."""
        if self.decode or heads is None:
            width = t.width if self.decode else self.tokens
            ops.vector(self.k, t, *args, width=width, **kwargs)
            return

        def some(x):
            return x.rows_from(heads[0], len(heads)) if isinstance(x, Tensor) else x

        kwargs = {n: some(x) for n, x in kwargs.items()}
        ops.vector(self.k, some(t), *(some(x) for x in args), width=self.tokens, **kwargs)

    def _heads(self, part: list[int]) -> range:
        group = self.shape.group
        return range(part[0] * group, (part[-1] + 1) * group)

    def _maps(self, part: list[int]) -> Iterator[tuple[int, int, Scalar | int]]:
        """(row within the part, head, row count) of vector work with one mask limit."""
        if self.decode:
            yield 0, 0, self.count * self.shape.heads
        else:
            for i, h in enumerate(self._heads(part)):
                yield i * self.shape.tokens, h, self.tokens

    def _scores(self, s: Tensor, part: list[int], keys: Tensor, n: Scalar | int) -> None:
        """s = q K^T for every sequence and kv head of a part: n keys of the tile at `keys`."""
        k, lay = self.k, self.layout
        for b in range(self.count):
            for g in part:
                for tile in range(lay.tiles):
                    kt = keys.rows_from(self._row(g, b), k.chip.lanes)
                    ops.load_stationary(k, kt, tile, lay.width, n, transposed=True)
                    mode = Accumulate.ADD if tile else Accumulate.WRITE
                    self._stream_group(s, part, b, g, tile, mode)

    def _stream_group(
        self, s: Tensor, part: list[int], b: int, g: int, tile: int, mode: Accumulate
    ) -> None:
        k, shape, q = self.k, self.shape, self.q
        base = q.base + tile * q.tile_stride
        if self.decode:
            # q rows: head * batch rows + sequence
            first = g * shape.group
            moving = replace(
                q, base=base + first * shape.batch + self.first + b, row_stride=shape.batch
            )
            ops.stream(k, s.rows_from(b * shape.heads + first, shape.group), moving,
                       rows=shape.group, accumulate=mode)  # fmt: skip
            return
        heads = self._heads(part)
        for h in range(g * shape.group, (g + 1) * shape.group):
            moving = replace(q, base=base + h * shape.tokens)
            at = (h - heads[0]) * shape.tokens
            ops.stream(k, s.rows_from(at, shape.tokens), moving, rows=self.tokens, accumulate=mode)

    def _weighted(
        self, p: Tensor, t: Tensor, part: list[int], values: Tensor, n: Scalar | int,
        mode: Accumulate,
    ) -> None:  # fmt: skip
        """t (+)= p V for every sequence and kv head of a part: n keys of the tile at `values`."""
        k, shape, lay = self.k, self.shape, self.layout
        head0 = self._heads(part)[0]
        for b in range(self.count):
            for g in part:
                for tile in range(lay.tiles):
                    vt = values.rows_from(self._row(g, b), k.chip.lanes)
                    ops.load_stationary(k, vt, tile, n, lay.width)
                    out = t.tile(tile)
                    first = g * shape.group
                    if self.decode:
                        at = b * shape.heads + first
                        ops.stream(k, out.rows_from(at, shape.group), p.rows_from(at, shape.group),
                                   accumulate=mode)  # fmt: skip
                        continue
                    for h in range(first, first + shape.group):
                        at = (h - head0) * shape.tokens
                        ops.stream(k, out.rows_from(at, 1), p.rows_from(at, 1), rows=self.tokens,
                                   accumulate=mode)  # fmt: skip

    def _pipeline(self, begin: Callable[[int], None], end: Callable[[int], None]) -> None:
        """begin(i) for part i + 1 runs ahead of end(i); begin(0) has been called."""
        for i in range(len(self.parts)):
            if i + 1 < len(self.parts):
                begin(i + 1)
            end(i)

    def _last(self, t: Tensor, step: int) -> Tensor:
        """The new tokens' tile of the current block, whose tiles lie `step` rows apart."""
        return t if self.tiles == 1 else t.at(self.full * step)

    def _before_last(self, t: Tensor, keys: Tensor, body: Callable[[Tensor, Tensor], None]) -> None:
        """Loops over the tiles before that one: body(tile of t, tile of keys or values)."""
        if self.tiles == 1:
            return
        with self.k.loop(self.full, (ops.MXU,)) as loop:
            rows, keys_rows = loop.var(0, t.tile_stride), loop.var(0, self.k.chip.lanes)
            body(t.at(rows), keys.at(keys_rows))

    def _current_scores(self, i: int) -> None:
        """Scores of a part against the block with the new tokens."""
        s, part, keys, lanes = (
            self._buffers(i)[0],
            self.parts[i],
            self.current[0],
            self.k.chip.lanes,
        )
        self._before_last(s, keys, lambda tile, before: self._scores(tile, part, before, lanes))
        last = self._last(s, s.tile_stride)
        self._scores(last, part, self._last(keys, lanes), self.known)

    def _current_values(self, i: int) -> None:
        """Softmax of those scores, masked: sets m, l and o."""
        k, lanes, part = self.k, self.k.chip.lanes, self.parts[i]
        below = (self.within, 1, 0 if self.decode else 1)
        s, p, o = self._buffers(i)
        for at, h, n in self._maps(part):
            ops.vector(k, s.rows_from(at, 1), rows=n, below=below, reduce=Reduce.MAX,
                       reduce_dst=self._packed_row(self.m, h))  # fmt: skip
        for at, h, n in self._maps(part):
            ops.vector(
                k, s.rows_from(at, 1), self._packed_row(self.m, h).scalars(),
                dst=p.rows_from(at, 1), combine=Combine.SUB, function=Function.EXP2, rows=n,
                below=below, reduce=Reduce.SUM, reduce_dst=self._packed_row(self.l, h),
            )  # fmt: skip
        values = self.current[1]
        last = self._last(p, p.tile_stride)
        self._weighted(last, o, part, self._last(values, lanes), self.known, Accumulate.WRITE)
        self._before_last(
            p, values,
            lambda tile, before: self._weighted(tile, o, part, before, lanes, Accumulate.ADD),
        )  # fmt: skip

    def _packed_row(self, t: Tensor, h: int) -> Tensor:
        return t if self.decode else t.rows_from(h, 1)

    def _older_blocks(self) -> None:
        k, shape, lanes = self.k, self.shape, self.k.chip.lanes
        half = self.count * shape.kv_heads * self.block
        ring, step = k.ring(2 * half, shape.head_dim, 2, avoid=(self.q, *self.p))
        sums = [
            k.tensor(Kind.ACC, self.part_rows, shape.head_dim, avoid=(self.o, *self.s))
            for _ in self.s
        ]
        queues = (ops.MXU, ops.VPU, k.load_queue)
        with k.loop(self.older, queues, ring=2, rings=(ring,)) as loop:
            here = ring.at(loop.var(0, step, wrap=2 * step))
            where = loop.var(0, self.block * self.row_bytes)
            for side, cache in enumerate(self.cache):
                for b in range(self.count):
                    for g in range(shape.kv_heads):
                        at = cache.offset(self.first + b) + g * self._head_bytes()
                        ops.load(
                            k, here.rows_from(side * half + self._row(g, b), self.block),
                            cache.hbm.at(where, at), row_bytes=self.row_bytes,
                        )  # fmt: skip

            def begin(i: int) -> None:
                for tile in range(self.tiles):
                    keys = here.rows_from(tile * lanes, lanes)
                    self._scores(self._buffers(i)[0].tile(tile), self.parts[i], keys, lanes)

            def end(i: int) -> None:
                t, o = sums[i % len(sums)], self._buffers(i)[2]
                self._older_part(i, t, here.rows_from(half, half))
                for at, h, n in self._maps(self.parts[i]):
                    ops.vector(
                        k, o.rows_from(at, 1), self._packed_row(self.alpha, h).scalars(),
                        t.rows_from(at, 1), dst=o.rows_from(at, 1), combine=Combine.FMA, rows=n,
                    )  # fmt: skip

            begin(0)
            self._pipeline(begin, end)
        k.free(*sums)
        k.free_ring(ring, step)

    def _older_part(self, i: int, t: Tensor, values: Tensor) -> None:
        """Softmax statistics and p of one part against one older block, and t = p V."""
        k, part = self.k, self.parts[i]
        s, p, _ = self._buffers(i)
        heads = self._heads(part)
        for at, h, n in self._maps(part):
            ops.vector(k, s.rows_from(at, 1), rows=n, reduce=Reduce.MAX,
                       reduce_dst=self._packed_row(self.mt, h), reduce_accumulate=True)  # fmt: skip
        for at, h, n in self._maps(part):
            ops.vector(
                k, s.rows_from(at, 1), self._packed_row(self.mt, h).scalars(),
                dst=p.rows_from(at, 1), combine=Combine.SUB, function=Function.EXP2, rows=n,
                reduce=Reduce.SUM, reduce_dst=self._packed_row(self.lt, h),
            )  # fmt: skip
        self._stat(self.m, self.mt, dst=self.alpha, combine=Combine.SUB, function=Function.EXP2,
                   heads=heads)  # fmt: skip
        lanes = self.k.chip.lanes
        for tile in range(self.tiles):
            mode = Accumulate.ADD if tile else Accumulate.WRITE
            self._weighted(
                p.tile(tile), t, part, values.rows_from(tile * lanes, lanes), lanes, mode
            )
        self._stat(self.mt, dst=self.m, heads=heads)
        self._stat(self.l, self.alpha, self.lt, dst=self.l, combine=Combine.FMA, heads=heads)

    def _divide(self, dst: Tensor, rows: Scalar | int) -> None:
        """dst = o / l, heads side by side again."""
        k, shape, o = self.k, self.shape, self.o
        self._stat(self.l, dst=self.l, function=Function.RECIP)
        for at, h, n in self._maps(list(range(shape.kv_heads))):
            ops.vector(k, o.rows_from(at, 1), self._packed_row(self.l, h).scalars(),
                       dst=o.rows_from(at, 1), combine=Combine.MUL, rows=n)  # fmt: skip
        if self.decode:
            into = dst.rows_from(self.first, self.count)
            merge_heads(k, o, into, self.layout, shape.heads, rows=self.count, head_stride=1,
                        row_stride=shape.heads)  # fmt: skip
        else:
            merge_heads(k, o, dst, self.layout, shape.heads, rows=rows, head_stride=shape.tokens,
                        row_stride=1)  # fmt: skip


def attention_reference(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float, start: int
) -> np.ndarray:
    """float64 causal attention.

    q [heads, S, d] stands at positions start..; keys and values are [kv_heads, T, d].
    """
    heads, tokens, _ = q.shape
    group = heads // keys.shape[0]
    out = np.empty(q.shape, np.float64)
    for h in range(heads):
        s = q[h].astype(np.float64) @ keys[h // group].astype(np.float64).T * scale
        late = np.arange(s.shape[1])[None, :] > start + np.arange(tokens)[:, None]
        s[late] = -np.inf
        p = np.exp(s - s.max(-1, keepdims=True))
        out[h] = p / p.sum(-1, keepdims=True) @ values[h // group].astype(np.float64)
    return out
