"""Causal self-attention of a whole sequence: Q, K, V [heads, S, d] bf16 in HBM to O bf16.

Blocks of `rows` queries go over key tiles of the array's height with an online softmax, three
passes of the vector unit a score row:

    s = q K^T;  m' = max(m, rowmax(s) c);  p = exp2(s c - m');  t = p V
    a = exp2(m - m');  l = l a + rowsum(p);  o = o a + t;  at the end  o / l     (c = scale log2 e)

The tiles of all blocks form one series of steps. The array gets the scores of step u + 1 before
the values of step u, so that the softmax of a step runs while the array works on its neighbours;
scores, probabilities and statistics have two buffers. Tiles above the diagonal are left out; a tile
on it is masked, and queries above it do not move.
Heads are a hardware loop; short ones, and query heads of one key-value head, are traced together.
"""

from dataclasses import dataclass, replace

import numpy as np

from tapeout.chip import Chip
from tapeout.isa import Kind
from tapeout.isa.dma import HbmFormat
from tapeout.isa.forms import ceil_div
from tapeout.isa.mxu import Accumulate
from tapeout.isa.vpu import Combine, Combine2, Function, Reduce
from tapeout.lang import Builder, ChipTooSmall, HbmTensor, LoopVar, Tensor, ops

from .attention import LOG2E
from .rows import STRIDE_MAX, load_rows, store_rows

UNROLLED_STEPS = 256  # of heads traced together: between iterations of the loop the array drains
VPU_STEP = 8  # instructions of the vector unit a step, at most
LOOP_LENGTH_MAX = (
    64000  # instructions of a loop's body: a field of 16 bits; longer ones are unrolled
)


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """Q and O are [heads, tokens, head_dim], K and V [kv_heads, tokens, head_dim], bf16."""

    heads: int
    kv_heads: int
    tokens: int
    head_dim: int
    scale: float

    def __post_init__(self) -> None:
        if min(self.heads, self.kv_heads, self.tokens, self.head_dim) < 1:
            raise ValueError(f"attention takes sizes of 1 or more, not {self}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads = {self.heads} must be a multiple of kv_heads = {self.kv_heads}"
            )

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def head_bytes(self) -> int:
        return 2 * self.tokens * self.head_dim

    @property
    def useful_macs(self) -> int:
        """Of scores and values on and below the diagonal."""
        return self.heads * self.tokens * (self.tokens + 1) * self.head_dim


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Queries of a block, keys of a chunk that comes at once, slots of the ring of chunks."""

    rows: int
    keys: int
    slots: int
    outputs: int  # acc buffers of o
    heads: int  # key-value heads traced together: one iteration of the loop over heads


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One key tile of one block: queries [trim, rows) from `start`, `keys` keys from `key`."""

    head: int
    start: int
    rows: int
    trim: int
    key: int
    keys: int

    @property
    def first(self) -> bool:
        return self.key == 0

    @property
    def moving(self) -> int:
        return self.rows - self.trim

    @property
    def below(self) -> tuple[int, int, int] | None:
        """The mask of a tile that the diagonal meets: lane < limit + query."""
        limit = self.start + self.trim - self.key + 1
        return None if limit >= self.keys else (0, limit, 1)


def choose(chip: Chip, seq: Sequence, stripes: int) -> Plan:
    """The largest blocks that fit `stripes` stripes of spm, and acc. ChipTooSmall."""
    lanes, tall = chip.lanes, chip.mxu.rows
    dk, dv = ceil_div(seq.head_dim, tall), ceil_div(seq.head_dim, lanes)
    per_acc, per_spm = chip.acc.rows_per_stripe, chip.spm.rows_per_stripe
    most = min(STRIDE_MAX, chip.acc.rows, ceil_div(seq.tokens, lanes) * lanes) // lanes
    for blocks in range(most, 0, -1):
        rows = blocks * lanes
        values = ceil_div(rows * dv, per_acc)
        free = chip.acc.stripes - 2 * ceil_div(rows, per_acc) - values
        outputs = min(2, free // values)
        fixed = 2 * ceil_div(rows * dk, per_spm) + 2 * ceil_div(rows, per_spm)
        ring = (stripes - fixed - ceil_div(rows * dv, per_spm)) // 2  # keys and values apart
        keys = min(2 * tall, per_spm // max(dk, dv), STRIDE_MAX) // tall * tall
        if outputs < 1 or ring < 2 or keys < tall:
            continue
        count = ceil_div(seq.tokens, rows)  # blocks of about equal size
        even = ceil_div(ceil_div(seq.tokens, count), lanes) * lanes
        steps = seq.group * sum(
            ceil_div(min(start + even, seq.tokens), tall) for start in range(0, seq.tokens, even)
        )
        fits = max(2 * (dk + dv), VPU_STEP) * steps < LOOP_LENGTH_MAX
        heads = max(
            h for h in range(1, seq.kv_heads + 1)
            if seq.kv_heads % h == 0 and (h == 1 or h * steps <= UNROLLED_STEPS)
        ) if fits else seq.kv_heads  # fmt: skip
        return Plan(rows=even, keys=keys, slots=min(4, ring), outputs=outputs, heads=heads)
    raise ChipTooSmall(
        f"no block of attention with head_dim {seq.head_dim} fits {stripes} stripes of "
        f"{per_spm} rows of spm and {chip.acc.stripes} of {per_acc} of acc: raise spm.stripes "
        f"(7 or more), acc.stripes (4 or more) or the rows of a stripe"
    )


def flash_attention(
    k: Builder,
    q: HbmTensor,
    keys: HbmTensor,
    values: HbmTensor,
    o: HbmTensor,
    seq: Sequence,
    *,
    plan: Plan | None = None,
) -> Plan:
    """o = softmax(q keys^T scale, causal) values; the plan it followed."""
    if plan is None:
        plan = choose(k.chip, seq, len(k.places.spm.stripes))
    with k.scope("flash_attention"):
        flash = _Flash(k, (q, keys, values, o), seq, plan)
        if seq.kv_heads == plan.heads:
            flash.heads(None, None)
        else:
            queues = sorted({ops.MXU, ops.VPU, k.weights_queue, k.load_queue, k.store_queue})
            size = plan.heads * seq.head_bytes
            with k.loop(seq.kv_heads // plan.heads, tuple(queues)) as loop:
                flash.heads(loop.var(0, seq.group * size), loop.var(0, size))
        flash.free()
    return plan


class _Flash:
    """Traces the steps of `plan.heads` key-value heads."""

    def __init__(
        self, k: Builder, hbm: tuple[HbmTensor, ...], seq: Sequence, plan: Plan
    ) -> None:  # fmt: skip
        self.k, self.seq, self.plan = k, seq, plan
        self.q_hbm, self.k_hbm, self.v_hbm, self.o_hbm = hbm
        self.lanes, self.tall, d = k.chip.lanes, k.chip.mxu.rows, seq.head_dim
        self.factor = float(np.float32(seq.scale * LOG2E))
        self.dk, self.dv = ceil_div(d, self.tall), ceil_div(d, self.lanes)
        self.taken: tuple[Tensor, ...] = ()
        rows, tiles = plan.rows, self.dv * self.lanes
        self.queries = self._tensors(Kind.SPM_BF16, rows, self.dk * self.lanes, 2)
        self.p = self._tensors(Kind.SPM_BF16, rows, self.lanes, 2)
        (self.out,) = self._tensors(Kind.SPM_BF16, rows, tiles, 1)
        # Loads of keys are transposed, of values straight: a stripe serves one kind at a time.
        self.keys = self._tensors(Kind.SPM_BF16, plan.keys, self.dk * self.lanes, plan.slots)
        self.values = self._tensors(Kind.SPM_BF16, plan.keys, tiles, plan.slots)
        self.s = self._tensors(Kind.ACC, rows, self.lanes, 2)
        (self.t,) = self._tensors(Kind.ACC, rows, tiles, 1)
        self.o = self._tensors(Kind.ACC, rows, tiles, plan.outputs)
        self.m, self.sums, self.alpha = ([k.packed(rows) for _ in range(2)] for _ in range(3))
        self.top, self.total = k.packed(rows), k.packed(rows)
        self.held: dict[int, int] = {}  # slot -> first row in K and V of the chunk in it
        self.turn = 0

    def _tensors(self, kind: Kind, rows: int, width: int, count: int) -> list[Tensor]:
        """Tensors in stripes of their own: queues then work on them at the same time."""
        made = []
        for _ in range(count):
            made.append(self.k.tensor(kind, rows, width, avoid=self.taken))
            self.taken = (*self.taken, made[-1])
        return made

    def free(self) -> None:
        self.k.free(*self.taken)
        for t in (*self.m, *self.sums, *self.alpha, self.top, self.total):
            self.k.free_packed(t)

    def heads(self, q_at: LoopVar | None, kv_at: LoopVar | None) -> None:
        """All steps; the loop variables are byte offsets of the first head."""
        if q_at is not None and kv_at is not None:
            self.q_hbm, self.o_hbm = self.q_hbm.at(q_at), self.o_hbm.at(q_at)
            self.k_hbm, self.v_hbm = self.k_hbm.at(kv_at), self.v_hbm.at(kv_at)
        steps = self._steps()
        block = -1
        before: tuple[int, _Step, Tensor, int] | None = None
        for u, step in enumerate(steps):
            if step.first:
                block += 1
                self._load_queries(step, block)
            keys, values = self._chunk(step)
            self._scores(u, step, block, keys)
            self._softmax(u, step)
            if before is not None:
                self._values(*before)
            before = u, step, values, block
        assert before is not None
        self._values(*before)

    def _steps(self) -> list[_Step]:
        seq, tall, lanes = self.seq, self.tall, self.lanes
        steps = []
        for head in range(seq.group * self.plan.heads):
            for start in range(0, seq.tokens, self.plan.rows):
                rows = min(self.plan.rows, seq.tokens - start)
                for key in range(0, start + rows, tall):
                    trim = max(0, key - start) // lanes * lanes
                    keys = min(tall, start + rows - key)
                    steps.append(
                        _Step(head=head, start=start, rows=rows, trim=trim, key=key, keys=keys)
                    )
        return steps

    # --- transfers --------------------------------------------------------------------------------

    def _load_queries(self, step: _Step, block: int) -> None:
        d = self.seq.head_dim
        q = replace(self.queries[block % 2], rows=step.rows)
        src = replace(self.q_hbm, offset=self._row(self.q_hbm, step))
        load_rows(self.k, q, src, d, self.tall, 2 * d, queue=self.k.load_queue)

    def _row(self, hbm: HbmTensor, step: _Step) -> int:
        return hbm.offset + step.head * self.seq.head_bytes + 2 * step.start * self.seq.head_dim

    def _chunk(self, step: _Step) -> tuple[Tensor, Tensor]:
        """The slots with the step's keys and its values, loaded unless they are there."""
        d, size = self.seq.head_dim, self.plan.keys
        key = step.key // size * size
        first = step.head // self.seq.group * self.seq.tokens + key
        for number, row in self.held.items():
            if row == first:
                return self.keys[number], self.values[number]
        number = self.turn % len(self.keys)
        self.turn += 1
        self.held[number] = first
        slot = self.keys[number], self.values[number]
        for part, hbm, tile in zip(
            slot, (self.k_hbm, self.v_hbm), (self.tall, self.lanes), strict=True
        ):
            src = hbm.beyond(2 * first * d)
            rows = replace(part, rows=min(size, self.seq.tokens - key))
            load_rows(self.k, rows, src, d, tile, 2 * d, queue=self.k.weights_queue)
        return slot

    # --- one step ---------------------------------------------------------------------------------

    def _scores(self, u: int, step: _Step, block: int, keys: Tensor) -> None:
        """s = q K^T."""
        k, d = self.k, self.seq.head_dim
        q = self.queries[block % 2].rows_from(step.trim, step.moving)
        s = self.s[u % 2].rows_from(step.trim, step.moving)
        tile = keys.rows_from(step.key % self.plan.keys, step.keys)
        for i in range(self.dk):
            depth = min(self.tall, d - i * self.tall)
            ops.load_stationary(k, tile, i, depth, step.keys, transposed=True)
            mode = Accumulate.ADD if i else Accumulate.WRITE
            ops.stream(k, s, q.tile(i), accumulate=mode)

    def _softmax(self, u: int, step: _Step) -> None:
        """p, its row sums, the new m; a for a step that is not the block's first."""
        k, c = self.k, self.factor
        s = replace(self.s[u % 2].rows_from(step.trim, step.moving), width=step.keys)
        p = self.p[u % 2].rows_from(step.trim, step.moving)
        top, m, old = (self._stat(t, step) for t in (self.top, self.m[u % 2], self.m[1 - u % 2]))
        ops.vector(k, s, below=step.below, reduce=Reduce.MAX, reduce_dst=top)
        if step.first:
            ops.vector(k, top, c, dst=m, combine=Combine.MUL)
        else:
            ops.vector(k, top, c, d=old, dst=m, combine=Combine.MUL, combine2=Combine2.MAX)
        sums = self._stat(self.sums[u % 2], step)
        ops.vector(
            k, s, c, m.scalars(), dst=p, below=step.below, combine=Combine.FMS,
            function=Function.EXP2, reduce=Reduce.SUM, reduce_dst=sums,
        )  # fmt: skip
        if not step.first:
            alpha = self._stat(self.alpha[u % 2], step)
            ops.vector(k, old, m, dst=alpha, combine=Combine.SUB, function=Function.EXP2)

    def _stat(self, t: Tensor, step: _Step) -> Tensor:
        """The packed statistics of the queries that move; `trim` is a multiple of lanes."""
        return replace(t, base=t.base + step.trim // self.lanes, width=step.moving)

    def _values(self, u: int, step: _Step, values: Tensor, block: int) -> None:
        """t = p V, then o and l; after the block's last tile, the result."""
        k, d = self.k, self.seq.head_dim
        p = self.p[u % 2].rows_from(step.trim, step.moving)
        o = self.o[block % len(self.o)].rows_from(step.trim, step.moving)
        into = o if step.first else self.t.rows_from(step.trim, step.moving)
        tile = values.rows_from(step.key % self.plan.keys, step.keys)
        for i in range(self.dv):
            width = min(self.lanes, d - i * self.lanes)
            ops.load_stationary(k, tile, i, step.keys, width)
            ops.stream(k, into.tile(i), p)
        total, sums = self._stat(self.total, step), self._stat(self.sums[u % 2], step)
        if step.first:
            ops.vector(k, sums, dst=total)
        else:
            alpha = self._stat(self.alpha[u % 2], step)
            ops.vector(k, total, alpha, sums, dst=total, combine=Combine.FMA)
            o, t = replace(o, width=d), replace(into, width=d)
            ops.vector(k, o, alpha.scalars(), t, dst=o, combine=Combine.FMA)
        if step.key + step.keys == step.start + step.rows:
            self._finish(step, block)

    def _finish(self, step: _Step, block: int) -> None:
        """o / l to HBM."""
        k, d = self.k, self.seq.head_dim
        total = replace(self.total, width=step.rows)
        o = replace(self.o[block % len(self.o)], rows=step.rows, width=d)
        out = replace(self.out, rows=step.rows, width=d)
        ops.vector(k, total, dst=total, function=Function.RECIP)
        ops.vector(k, o, total.scalars(), dst=out, combine=Combine.MUL)
        into = replace(self.o_hbm, offset=self._row(self.o_hbm, step))
        store_rows(k, out, into, d, 2 * d, HbmFormat.BF16, queue=k.store_queue)
