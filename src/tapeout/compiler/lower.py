"""Runs kernels for each operation of an `ir.Graph`: the lowering to a program.

Layouts: matrices that feed the array are bf16 in spm; sums (the residual stream) are fp32 in spm;
products stay in acc until their epilogue. Fusions: projections of one input that feed an attention
become one matrix; a product that only feeds a sum, or a gated product, ends in that; a sum that
feeds a norm also yields its sums of squares.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tapeout.chip import Chip
from tapeout.isa import Kind, Program
from tapeout.isa.dma import HbmFormat
from tapeout.isa.vpu import Combine, Function
from tapeout.kernels import attention as attn
from tapeout.kernels import linear, norm, sampling
from tapeout.kernels.heads import HeadLayout, split_heads
from tapeout.lang import (
    Builder,
    ChipTooSmall,
    HbmTensor,
    Matrix,
    Scalar,
    Tensor,
    WeightRing,
    ops,
)

from . import ir
from .constants import Constants

SEQUENCES_PER_CHUNK = 8  # of a batch, attended together


@dataclass
class Lowered:
    """A program with what the runtime must know to launch it.

    Attributes:
        args: launch argument names in order.
        output_rows: rows of logits.
        group_width: columns of logits that share one reported maximum.
        weight_bytes: bytes of weights that a launch needs, each once.
        kv_bytes_per_position: bytes of K and V that a position of all sequences takes.
    """

    program: Program
    args: list[str]
    batch: int
    tokens: int
    context: int
    vocab: int
    output_rows: int
    group_width: int
    kv_bytes: int
    matrices: list[Matrix] = field(default_factory=list)
    weight_bytes: int = 0
    kv_bytes_per_position: int = 0


@dataclass
class Held:
    """A matrix on chip, with its sums of squares if known."""

    tensor: Tensor
    sumsq: Tensor | None = None


class Lowering:
    """Lowers one graph; `run` returns the program."""

    def __init__(self, chip: Chip, graph: ir.Graph, constants: Constants) -> None:
        if chip.mxu.rows != chip.lanes:
            raise ChipTooSmall(
                f"the chip is too small: its array has mxu.rows = {chip.mxu.rows} rows, and a "
                f"compiled model needs one for each of lanes = {chip.lanes}: set mxu.rows, "
                f"mxu.cols and lanes alike"
            )
        self.chip, self.graph, self.constants = chip, graph, constants
        self.k = Builder(chip)
        self.ring = WeightRing(self.k)
        self.weights = self.k.segment("weights", 0, writable=False)
        self.held: dict[ir.Value, Held] = {}
        self.uses = graph.uses()
        self.done: set[ir.Op] = set()
        self.matrices: list[Matrix] = []
        self.many = graph.tokens > 1
        self.position = self.k.arg("position")
        self.valid: Scalar | int = self.k.arg("tokens") if self.many else graph.batch
        self.tables: dict[str, Tensor] = {}
        self.caches = self._caches()
        self.kv = self.k.segment("kv", self.kv_bytes, writable=True)
        rows = graph.batch * graph.tokens
        self.tokens_in = self.k.segment("tokens", 4 * rows, writable=False)

    def _caches(self) -> dict[str, int]:
        """Offsets of a sequence's caches in its part of the kv segment; bf16."""
        offsets, at = {}, 0
        for name, (_, h, c, d) in self.graph.caches.items():
            offsets[name] = at
            at += h * c * d * 2
        self.sequence_bytes = max(at, 512)
        self.kv_bytes = self.graph.batch * self.sequence_bytes
        return offsets

    # --- values -----------------------------------------------------------------------------------

    def rows_of(self, value: ir.Value) -> Scalar | int:
        """Rows that hold data."""
        return self.valid if value.rows == self.graph.batch * self.graph.tokens else value.rows

    def keep(self, value: ir.Value, tensor: Tensor, sumsq: Tensor | None = None) -> None:
        self.held[value] = Held(tensor, sumsq)

    def release(self, op: ir.Op, *values: ir.Value) -> None:
        """Frees values that no later operation reads."""
        self.done.add(op)
        for value in dict.fromkeys(values):
            if value in self.held and all(u in self.done for u in self.uses.get(value, [])):
                held = self.held.pop(value)
                self.k.free(held.tensor)
                if held.sumsq is not None:
                    self.k.free_packed(held.sumsq)

    def only_user(self, value: ir.Value) -> ir.Op | None:
        users = self.uses.get(value, [])
        return users[0] if len(users) == 1 and value is not self.graph.logits else None

    def matrix(self, *names: str) -> Matrix:
        m = self.constants.matrix(self.weights, names)
        if m not in self.matrices:
            self.matrices.append(m)
        return m

    # --- operations -------------------------------------------------------------------------------

    def run(self) -> Lowered:
        graph = self.graph
        for op in graph.ops:
            if op in self.done or self._deferred(op):
                continue
            with self.k.scope("", op.layer):
                HANDLERS[type(op)](self, op)
        program = self.k.build()
        logits = graph.logits
        assert logits is not None
        return Lowered(
            program=program, args=list(self.k.args), batch=graph.batch, tokens=graph.tokens,
            context=graph.context, vocab=logits.width, output_rows=logits.rows,
            group_width=self.group_width, kv_bytes=self.kv_bytes, matrices=self.matrices,
            weight_bytes=sum(m.format.format.bytes_for(m.k, 2) * m.n // 2 for m in self.matrices),
            kv_bytes_per_position=sum(b * h * d * 2 for b, h, _, d in graph.caches.values()),
        )  # fmt: skip

    def _deferred(self, op: ir.Op) -> bool:
        """Products (and functions of them) that an operation further on takes in whole."""
        if isinstance(op, ir.Linear) and op.out is not self.graph.logits:
            user = self.only_user(op.out)
            if isinstance(user, ir.Attention):
                return True
            if isinstance(user, ir.Binary) and user.kind == "add":
                return not self._is_pending(user, op)
            if isinstance(user, ir.Unary):
                return self._gate(user) is not None
            if isinstance(user, ir.Binary) and user.kind == "mul":
                return any(self._gate_of(v) for v in (user.a, user.b))
        if isinstance(op, ir.Unary):
            return self._gate(op) is not None
        return False

    def _is_pending(self, user: ir.Binary, op: ir.Linear) -> bool:
        """True if both sides of a sum are products not yet made: then the first is made now."""
        other = user.b if user.a is op.out else user.a
        return other not in self.held

    def _producer(self, value: ir.Value) -> ir.Op | None:
        return next((o for o in self.graph.ops if o.out is value), None)

    def _gate_of(self, value: ir.Value) -> ir.Unary | None:
        op = self._producer(value)
        return op if isinstance(op, ir.Unary) and self._gate(op) is not None else None

    def _gate(self, op: ir.Unary) -> ir.Binary | None:
        """The product of `function(x @ gate)` and `x @ up` that this function feeds, if it does."""
        user = self.only_user(op.out)
        source = self._producer(op.x)
        if not (
            isinstance(user, ir.Binary) and user.kind == "mul" and isinstance(source, ir.Linear)
        ):
            return None
        other = self._producer(user.b if user.a is op.out else user.a)
        good = (
            isinstance(other, ir.Linear)
            and other.x is source.x
            and self.only_user(other.out) is user
            and self.only_user(source.out) is op
        )
        return user if good else None

    def embed(self, op: ir.Embed) -> None:
        k, out = self.k, op.out
        rows = self.rows_of(out)
        index = k.packed(out.rows)
        place, row_bytes = self.constants.rows(self.weights, op.table)
        with k.scope("embed"):
            ops.load(k, index, self.tokens_in, format=HbmFormat.FP32, rows=1, width=out.rows,
                     row_bytes=4 * out.rows, tile_bytes=4 * k.chip.lanes)  # fmt: skip
            x = k.tensor(Kind.SPM_BF16, out.rows, out.width)
            ops.load(k, x, place, index=index, rows=rows, row_bytes=row_bytes)
        self.k.free_packed(index)
        self.keep(out, x)
        self.release(op)

    def rms_norm(self, op: ir.RmsNorm) -> None:
        k = self.k
        x = self.held[op.x]
        weight = norm.vector_row(k, self.constants.table(self.weights, op.weight), op.x.width)
        dst = k.tensor(Kind.SPM_BF16, op.x.rows, op.x.width, avoid=(x.tensor,))
        norm.rms_norm(k, x.tensor, weight, op.eps, dst, rows=self.rows_of(op.x), sumsq=x.sumsq)
        k.free(weight)
        if x.sumsq is not None:  # consumed: it holds the reciprocal now
            self.k.free_packed(x.sumsq)
            x.sumsq = None
        self.keep(op.out, dst)
        self.release(op, op.x)

    def select(self, op: ir.Select) -> None:
        k, x = self.k, self.held[op.x].tensor
        dst = k.tensor(Kind.SPM_BF16, op.out.rows, op.out.width, avoid=(x,))
        with k.scope("select"):
            source = x.rows_from(0, 1).at(k.arg("select") * x.row_stride)
            ops.vector(k, source, dst=dst, rows=1)
        self.keep(op.out, dst)
        self.release(op, op.x)

    def linear(self, op: ir.Linear) -> None:
        x = self.held[op.x].tensor
        matrix = self.matrix(op.weight)
        if op.out is self.graph.logits:
            self._logits(op, x, matrix)
            self.release(op, op.x)
            return
        dst = self.k.tensor(Kind.SPM_FP32, op.out.rows, op.out.width)

        def epilogue(acc: Tensor, first: int) -> None:
            ops.vector(self.k, acc, dst=dst.tile(first, acc.tiles), rows=self.rows_of(op.out))

        linear.linear(self.k, self.ring, x, matrix, epilogue, rows=self.rows_of(op.out))
        self.keep(op.out, dst)
        self.release(op, op.x)

    def binary(self, op: ir.Binary) -> None:
        gate = next((g for v in (op.a, op.b) if (g := self._gate_of(v))), None)
        if op.kind == "mul" and gate is not None:
            self._gated(op, gate)
            return
        for value, other in ((op.a, op.b), (op.b, op.a)):
            source = self._producer(value)
            if op.kind == "add" and isinstance(source, ir.Linear) and value not in self.held:
                self._product_sum(op, source, other)
                return
        k = self.k
        a, b = self.held[op.a].tensor, self.held[op.b].tensor
        dst = k.tensor(Kind.SPM_FP32, op.out.rows, op.out.width, avoid=(a, b))
        combine = Combine.ADD if op.kind == "add" else Combine.MUL
        with k.scope(op.kind):
            ops.vector(k, a, b, dst=dst, combine=combine, rows=self.rows_of(op.out))
        self.keep(op.out, dst)
        self.release(op, op.a, op.b)

    def _product_sum(self, op: ir.Binary, source: ir.Linear, other: ir.Value) -> None:
        """out = other + x @ W, with the sums of squares that a norm behind it wants."""
        k, x = self.k, self.held[source.x].tensor
        residual = self.held[other].tensor
        rows = self.rows_of(op.out)
        dst = k.tensor(Kind.SPM_FP32, op.out.rows, op.out.width, avoid=(residual,))
        normed = any(isinstance(u, ir.RmsNorm) for u in self.uses.get(op.out, []))
        sumsq = k.packed(op.out.rows) if normed else None

        def epilogue(acc: Tensor, first: int) -> None:
            norm.add(
                k, acc, residual.tile(first, acc.tiles), dst.tile(first, acc.tiles), rows=rows,
                sumsq=sumsq, accumulate=normed and first > 0,
            )  # fmt: skip

        linear.linear(k, self.ring, x, self.matrix(source.weight), epilogue, rows=rows)
        self.keep(op.out, dst, sumsq)
        self.release(source, source.x)
        self.release(op, other)

    def _gated(self, op: ir.Binary, gate: ir.Unary) -> None:
        up = self._producer(op.b if op.a is gate.out else op.a)
        source = self._producer(gate.x)
        assert isinstance(up, ir.Linear)
        assert isinstance(source, ir.Linear)
        x = self.held[source.x].tensor
        dst = self.k.tensor(Kind.SPM_BF16, op.out.rows, op.out.width)
        linear.swiglu(
            self.k, self.ring, x, self.matrix(source.weight), self.matrix(up.weight), dst,
            rows=self.rows_of(op.out), function=Function[gate.function],
        )  # fmt: skip
        self.keep(op.out, dst)
        self.done.update({up, gate})
        self.release(source, source.x)
        self.release(op)

    def unary(self, op: ir.Unary) -> None:
        k, x = self.k, self.held[op.x].tensor
        dst = k.tensor(Kind.SPM_BF16, op.out.rows, op.out.width, avoid=(x,))
        with k.scope(op.function.lower()):
            ops.vector(k, x, dst=dst, function=Function[op.function], rows=self.rows_of(op.out))
        self.keep(op.out, dst)
        self.release(op, op.x)

    # --- attention --------------------------------------------------------------------------------

    def attention(self, op: ir.Attention) -> None:
        k, graph = self.k, self.graph
        producers = [self._producer(v) for v in (op.q, op.k, op.v)]
        sources = [s for s in producers if isinstance(s, ir.Linear)]
        if len(sources) < len(producers) or any(s.x is not sources[0].x for s in sources):
            raise attn.UnsupportedShape(
                "attention needs q, k and v to be products of one matrix without bias"
            )
        x = self.held[sources[0].x].tensor
        shape = attn.Shape(
            batch=graph.batch, tokens=graph.tokens, heads=op.heads, kv_heads=op.kv_heads,
            head_dim=op.head_dim, context=graph.context, scale=op.scale,
        )  # fmt: skip
        attn.check_shape(shape, k.chip.lanes)
        rope = self._rope(op) if op.rope is not None else None
        rows = self.rows_of(op.out)
        layout = HeadLayout(k, op.head_dim)
        keys, values = (
            attn.Cache(replace(self.kv.slice(self.caches[n], 0), resource=n), self.sequence_bytes)
            for n in (op.keys, op.values)
        )
        q = k.tensor(Kind.SPM_BF16, op.heads * x.rows, op.head_dim)
        matrix = self.matrix(*(s.weight for s in sources))
        chunks = [self._chunk(shape, keys, values, 0)]
        with k.scope("qkv"):
            acc = k.tensor(Kind.ACC, x.rows, matrix.n)
            linear.accumulate(k, self.ring, x, matrix, acc, 0, acc.tiles, rows=rows)
            rest = self._split_new(op, acc, chunks[0], layout, rope)
            rest += split_heads(
                k, acc, q, layout, 0, op.heads, rows=rows, head_stride=x.rows, rope=rope,
                factor=shape.factor,
            )  # fmt: skip
            for finish in rest:
                finish()
        dst = k.tensor(Kind.SPM_BF16, op.out.rows, op.out.width, avoid=(q,))
        count = -(-graph.batch // SEQUENCES_PER_CHUNK)
        for at in range(count):
            if at:
                with k.scope("qkv"):
                    for finish in self._split_new(op, acc, chunks[at], layout, rope):
                        finish()
            if at + 1 < count:  # its keys and values come while the array is at this one
                chunks.append(self._chunk(shape, keys, values, (at + 1) * SEQUENCES_PER_CHUNK))
            chunks[at].start(q)
            if at:
                chunks[at - 1].finish(dst, rows=rows)
        k.free(acc)
        chunks[-1].finish(dst, rows=rows)
        k.free(q)
        self.keep(op.out, dst)
        for source in sources:
            self.release(source, source.x)
        self.release(op)

    def _chunk(
        self, shape: attn.Shape, keys: attn.Cache, values: attn.Cache, at: int
    ) -> attn.Attention:
        """Attention of the sequences from `at` on."""
        return attn.Attention(
            self.k, shape, keys, values, self.position, self.valid if self.many else 1,
            first=at, count=min(SEQUENCES_PER_CHUNK, shape.batch - at),
        )  # fmt: skip

    def _split_new(
        self, op: ir.Attention, acc: Tensor, chunk: attn.Attention, layout: HeadLayout,
        rope: tuple[Tensor, Tensor] | None,
    ) -> list[Callable[[], None]]:  # fmt: skip
        """New keys and values of a chunk from the projection into its current block."""
        part = acc if self.many else acc.rows_from(chunk.first, chunk.count)
        rest = []
        for head, which, turn in ((op.heads, 0, rope), (op.heads + op.kv_heads, 1, None)):
            rest += split_heads(
                self.k, part, chunk.new_rows(which), layout, head, op.kv_heads,
                rows=self.valid if self.many else chunk.count, head_stride=chunk.head_stride,
                rope=turn,
            )  # fmt: skip
        return rest

    def _rope(self, op: ir.Attention) -> tuple[Tensor, Tensor]:
        """The rows of the rotary tables for this launch, in vmem for the whole program."""
        k, graph = self.k, self.graph
        assert op.rope is not None
        out = []
        for name in op.rope:
            if name not in self.tables:
                place = self.constants.table(self.weights, name, graph.tables[name])
                t = k.tensor(Kind.VMEM, graph.tokens, op.head_dim)
                row_bytes = 4 * op.head_dim
                with k.scope("rope_table"):
                    ops.load(
                        k, t, place.at(self.position * row_bytes), queue=k.vmem_queue,
                        format=HbmFormat.FP32, rows=self.valid if self.many else 1,
                        row_bytes=row_bytes, tile_bytes=4 * k.chip.lanes,
                    )  # fmt: skip
                self.tables[name] = t if self.many else t.shared()
            out.append(self.tables[name])
        return out[0], out[1]

    # --- logits -----------------------------------------------------------------------------------

    def _logits(self, op: ir.Linear, x: Tensor, matrix: Matrix) -> None:
        """Logits to HBM in fp32; of each group of columns the maximum and where it stands.

        logits: fp32 [rows, vocab]; best: [groups][2][lanes-padded rows]: maximum (fp32), index
        (int32).
        """
        k, lanes = self.k, self.chip.lanes
        rows, count = op.out.rows, self.rows_of(op.out)
        tiles = -(-matrix.n // lanes)
        group = linear.group_tiles(k, rows, tiles)
        self.group_width = group * lanes
        padded = -(-rows // lanes) * lanes
        logits = k.segment("logits", 4 * rows * matrix.n, writable=True)
        best = k.segment("best", 8 * padded * -(-tiles // group), writable=True)

        def epilogue(acc: Tensor, first: int) -> None:
            value, index = k.packed(rows), k.packed(rows)
            if not isinstance(count, int):  # lanes of rows without data are stored, too
                for t in (value, index):
                    ops.vector(k, 0.0, dst=t, rows=1, tiles=t.tiles, width=rows)
                ops.fence(k, ops.VPU)
            sampling.best(k, acc, value, index, rows=count)
            at = first // group * 8 * padded
            for offset, t in ((0, value), (4 * padded, index)):
                self._store_packed(t, best.slice(at + offset, 4 * padded), rows)
                self.k.free_packed(t)
            out = k.tensor(Kind.SPM_FP32, rows, acc.width)
            ops.vector(k, acc, dst=out, rows=count)
            ops.store(k, out, logits.slice(4 * first * lanes, 0), format=HbmFormat.FP32, rows=count,
                      row_bytes=4 * matrix.n, tile_bytes=4 * lanes)  # fmt: skip
            k.free(out)

        linear.linear(k, self.ring, x, matrix, epilogue, rows=count, group=group)

    def _store_packed(self, t: Tensor, dst: HbmTensor, rows: int) -> None:
        """Packed statistics of all rows to HBM."""
        ops.store(self.k, t, dst, format=HbmFormat.FP32, rows=1, width=rows, row_bytes=4 * rows,
                  tile_bytes=4 * self.chip.lanes)  # fmt: skip


HANDLERS: dict[type[ir.Op], Callable[[Lowering, Any], None]] = {
    ir.Embed: Lowering.embed,
    ir.RmsNorm: Lowering.rms_norm,
    ir.Linear: Lowering.linear,
    ir.Binary: Lowering.binary,
    ir.Unary: Lowering.unary,
    ir.Attention: Lowering.attention,
    ir.Select: Lowering.select,
}


def lower(chip: Chip, graph: ir.Graph, constants: Constants) -> Lowered:
    """Compiles a graph; `constants` collects what must lie in the `weights` segment."""
    return Lowering(chip, graph, constants).run()
