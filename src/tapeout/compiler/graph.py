"""From a torch.export graph of a decoder to `ir.Graph`.

Every node becomes one of a few abstract values. What depends on the launch's `position` alone is
not executed on the chip: masks and cache indices are evaluated on sample positions and must mean
"causal at position" and "append at position"; tables such as the rotary cosines are tabulated over
all positions. The rest must match the operations of `ir`; all nodes that do not are listed in one
error.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from . import ir

aten = torch.ops.aten


class UnsupportedModel(Exception):
    """Operators the compiler does not have, each with its place in the model."""


class _Unsupported(Exception):
    pass


@dataclass(frozen=True)
class Param:
    name: str


@dataclass(frozen=True)
class CacheRef:
    name: str


@dataclass(frozen=True)
class Input:
    name: str


@dataclass(frozen=True)
class Positional:
    """Depends on `position` and constants only."""


@dataclass(frozen=True)
class Heads:
    """A matrix seen as heads: [B, S, H, D], or [B, H, S, D] when `swapped`."""

    value: ir.Value
    heads: int
    dim: int
    swapped: bool = False


@dataclass(frozen=True)
class Part:
    """A piece of a pattern that is not complete yet: `kind` and what it is made of."""

    kind: str
    of: tuple[Any, ...]


@dataclass(frozen=True)
class CacheWrite:
    cache: str
    heads: Any  # Heads or Part("roped", ...)


class Raiser:
    """Walks the graph once; `run` returns the raised graph."""

    def __init__(self, program: torch.export.ExportedProgram, context: int) -> None:
        self.program = program
        self.graph = program.graph
        self.env: dict[Node, Any] = {}
        self.context = context
        self.errors: list[str] = []
        signature = program.graph_signature
        self.parameters = signature.inputs_to_parameters
        self.buffers = signature.inputs_to_buffers
        self.mutated = set(signature.buffers_to_mutate.values())
        tokens = next(n for n in self.graph.nodes if n.op == "placeholder" and n.name == "tokens")
        self.batch, self.tokens = (int(d) for d in tokens.meta["val"].shape)
        self.out = ir.Graph(self.batch, self.tokens, context)
        self.layer = ""
        self.checked: dict[Any, bool] = {}

    # --- walk -------------------------------------------------------------------------------------

    def run(self) -> ir.Graph:
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.env[node] = self._placeholder(node)
            elif node.op == "call_function":
                self.layer = _layer(node)
                try:
                    self.env[node] = self._call(node)
                except _Unsupported as error:
                    self.errors.append(f"{node.target} {error} at {_place(node)}")
                    self.env[node] = Part("error", ())
            elif node.op == "output":
                self._output(node)
        if self.errors:
            listed = "\n  ".join(dict.fromkeys(self.errors))
            raise UnsupportedModel(
                f"the compiler cannot lower {len(self.errors)} operator(s) of this model:\n"
                f"  {listed}"
            )
        return self.out

    def _placeholder(self, node: Node) -> Any:
        if node.name in self.parameters:
            return Param(self.parameters[node.name])
        if node.name in self.buffers:
            name = self.buffers[node.name]
            if name in self.mutated:
                self.out.caches[name] = tuple(node.meta["val"].shape)
                return CacheRef(name)
            return Positional()
        return Positional() if node.name == "position" else Input(node.name)

    def _call(self, node: Node) -> Any:
        inputs = [self.env[n] for n in node.all_input_nodes]
        if all(isinstance(v, Positional) for v in inputs):
            return Positional()
        handler = HANDLERS.get(node.target)
        if handler is None:
            raise _Unsupported("is not an operator the compiler has")
        if any(isinstance(v, Part) and v.kind == "error" for v in inputs):
            return Part("error", ())  # its place was named already
        args = [self._lookup(a) for a in node.args]
        kwargs = {k: self._lookup(v) for k, v in node.kwargs.items()}
        return handler(self, node, *args, **kwargs)

    def _lookup(self, value: Any) -> Any:
        if isinstance(value, Node):
            return self.env[value]
        if isinstance(value, (list, tuple)):
            return [self._lookup(v) for v in value]
        return value

    def _output(self, node: Node) -> None:
        results = node.args[0]
        logits = self.env[results[-1]]
        if isinstance(logits, ir.Value):
            self.out.logits = logits
        elif not self.errors:
            self.errors.append("the last output is not a matrix of logits")

    def emit(self, cls: type, node: Node, rows: int, width: int, **fields: Any) -> ir.Value:
        value = ir.Value(node.name, rows, width)
        self.out.ops.append(cls(out=value, layer=self.layer, **fields))
        return value

    # --- what depends on position only ------------------------------------------------------------

    def evaluate(self, node: Node, position: torch.Tensor) -> torch.Tensor:
        """A positional node's value for these positions (any number of sequences)."""
        known: dict[Node, Any] = {}

        def value(n: Any) -> Any:
            if isinstance(n, (list, tuple)):
                return [value(v) for v in n]
            if not isinstance(n, Node):
                return n
            if n not in known:
                if n.op == "placeholder":
                    known[n] = position if n.name == "position" else self._constant(n)
                else:
                    keywords = {k: value(v) for k, v in n.kwargs.items()}
                    known[n] = n.target(*[value(a) for a in n.args], **keywords)
            return known[n]

        return value(node)

    def _constant(self, node: Node) -> torch.Tensor:
        name = self.buffers[node.name]
        table = (
            self.program.constants if name in self.program.constants else self.program.state_dict
        )
        return table[name]

    def _rows_at(self, node: Node) -> np.ndarray:
        """A positional node tabulated: float32 [context, ...] by position."""
        starts = torch.arange(0, self.context, self.tokens)
        try:
            table = self.evaluate(node, starts)
        except RuntimeError as error:
            raise _Unsupported(f"cannot be tabulated over positions ({error})") from None
        return table.reshape(self.context, -1).float().numpy()

    def _samples(self) -> Iterator[torch.Tensor]:
        """Positions to judge on: every sequence comes to stand at each of them."""
        room = self.context - self.tokens
        places = [0, min(1, room), room // 3, room]
        for turn in range(len(places)):
            yield torch.tensor([places[(b + turn) % len(places)] for b in range(self.batch)])

    def is_causal(self, node: Node) -> bool:
        """The mask is true exactly where key index <= position + s."""
        if node not in self.checked:
            self.checked[node] = all(self._causal_at(node, p) for p in self._samples())
        return self.checked[node]

    def _causal_at(self, node: Node, position: torch.Tensor) -> bool:
        mask = self.evaluate(node, position).expand(self.batch, 1, self.tokens, self.context)
        key = torch.arange(self.context)
        wanted = key <= (position[:, None] + torch.arange(self.tokens))[:, None, :, None]
        return bool(torch.equal(mask, wanted))

    def appends(self, rows: Node, slots: Node) -> bool:
        """The indices are [b, position[b] + s]."""
        if (rows, slots) not in self.checked:
            good = all(self._appends_at(rows, slots, p) for p in self._samples())
            self.checked[rows, slots] = good
        return self.checked[rows, slots]

    def _appends_at(self, rows: Node, slots: Node, position: torch.Tensor) -> bool:
        b = self.evaluate(rows, position).expand(self.batch, self.tokens)
        s = self.evaluate(slots, position).expand(self.batch, self.tokens)
        good = torch.equal(s, position[:, None] + torch.arange(self.tokens))
        return bool(good and torch.equal(b, torch.arange(self.batch)[:, None].expand_as(b)))


def _layer(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return re.sub(r"^(L\['self'\]\.)?(model\.)*", "", path)


def _place(node: Node) -> str:
    trace = (node.meta.get("stack_trace") or "").strip().splitlines()
    line = trace[-2].strip() if len(trace) >= 2 else "unknown line"
    layer = _layer(node)
    return f"{layer or 'the top of the model'} ({line})"


Handler = Callable[..., Any]
HANDLERS: dict[Any, Handler] = {}


def handles(*targets: Any) -> Callable[[Handler], Handler]:
    def register(function: Handler) -> Handler:
        for target in targets:
            HANDLERS[target] = function
        return function

    return register


def _rows(r: Raiser, node: Node) -> tuple[int, int]:
    shape = node.meta["val"].shape
    return int(np.prod(shape[:-1])), int(shape[-1])


def _matrix(value: Any) -> ir.Value:
    if not isinstance(value, ir.Value):
        raise _Unsupported(f"takes a matrix of rows, not {value}")
    return value


@handles(aten.embedding.default)
def _embedding(r: Raiser, node: Node, table: Any, tokens: Any, padding: int = -1, *_: Any) -> Any:
    if not (isinstance(table, Param) and tokens == Input("tokens")):
        raise _Unsupported("takes a parameter and the launch's tokens")
    return r.emit(ir.Embed, node, *_rows(r, node), table=table.name)


@handles(aten.linear.default)
def _linear(r: Raiser, node: Node, x: Any, weight: Any, bias: Any = None) -> Any:
    if not isinstance(weight, Param) or bias is not None:
        raise _Unsupported("takes a parameter as weight and no bias")
    return r.emit(ir.Linear, node, *_rows(r, node), x=_matrix(x), weight=weight.name)


@handles(aten.rms_norm.default)
def _rms_norm(
    r: Raiser, node: Node, x: Any, shape: Any, weight: Any = None, eps: Any = None
) -> Any:
    if not isinstance(weight, Param) or eps is None:
        raise _Unsupported("takes a parameter as weight and an eps")
    return r.emit(
        ir.RmsNorm, node, *_rows(r, node), x=_matrix(x), weight=weight.name, eps=float(eps)
    )


@handles(aten.pow.Tensor_Scalar)
def _pow(r: Raiser, node: Node, x: Any, exponent: Any) -> Any:
    if exponent != 2:
        raise _Unsupported(f"with exponent {exponent}")
    return Part("square", (_matrix(x),))


@handles(aten.mean.dim)
def _mean(r: Raiser, node: Node, x: Any, dims: Any, keepdim: bool = False, **_: Any) -> Any:
    if not (isinstance(x, Part) and x.kind == "square" and list(dims) == [-1] and keepdim):
        raise _Unsupported("is only known inside an rms_norm")
    return Part("mean_square", x.of)


@handles(aten.rsqrt.default)
def _rsqrt(r: Raiser, node: Node, x: Any) -> Any:
    if not (isinstance(x, Part) and x.kind == "mean_square_eps"):
        raise _Unsupported("is only known inside an rms_norm")
    return Part("rstd", x.of)


@handles(aten.silu.default, aten.gelu.default, aten.tanh.default, aten.sigmoid.default)
def _unary(r: Raiser, node: Node, x: Any, approximate: str = "none") -> Any:
    name = node.target.__name__.split(".")[0].upper()
    if approximate == "tanh":
        name = "GELU_TANH"
    return r.emit(ir.Unary, node, *_rows(r, node), x=_matrix(x), function=name)


@handles(aten.add.Tensor)
def _add(r: Raiser, node: Node, a: Any, b: Any, alpha: float = 1) -> Any:
    if alpha != 1:
        raise _Unsupported(f"with alpha {alpha}")
    if isinstance(a, Part) and a.kind == "mean_square" and isinstance(b, (int, float)):
        return Part("mean_square_eps", (*a.of, float(b)))
    if isinstance(a, Part) and isinstance(b, Part) and {a.kind, b.kind} == {"x_cos", "half_sin"}:
        cos, sin = (a, b) if a.kind == "x_cos" else (b, a)
        if cos.of[0] != sin.of[0]:
            raise _Unsupported("rotates one tensor by the half of another")
        return Part("roped", (cos.of[0], cos.of[1], sin.of[1]))
    return r.emit(ir.Binary, node, *_rows(r, node), a=_matrix(a), b=_matrix(b), kind="add")


@handles(aten.mul.Tensor)
def _mul(r: Raiser, node: Node, a: Any, b: Any) -> Any:
    operands = list(node.args)
    for (x, y), (_, yn) in zip(((a, b), (b, a)), ((0, operands[1]), (0, operands[0])), strict=True):
        if isinstance(y, Part) and y.kind == "rstd" and x == y.of[0]:
            return Part("normed", y.of)
        if isinstance(y, Part) and y.kind == "normed" and isinstance(x, Param):
            value, eps = y.of
            return r.emit(
                ir.RmsNorm, node, value.rows, value.width, x=value, weight=x.name, eps=eps
            )
        if isinstance(x, Heads) and isinstance(y, Positional):
            return Part("x_cos", (x, yn))
        if isinstance(x, Part) and x.kind == "half" and isinstance(y, Positional):
            return Part("half_sin", (x.of[0], yn))
    return r.emit(ir.Binary, node, *_rows(r, node), a=_matrix(a), b=_matrix(b), kind="mul")


# --- heads ----------------------------------------------------------------------------------------


@handles(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def _view(r: Raiser, node: Node, x: Any, shape: Any) -> Any:
    new = tuple(int(d) for d in node.meta["val"].shape)
    if isinstance(x, ir.Value):
        if len(new) == 4 and new[:2] == (r.batch, r.tokens) and new[2] * new[3] == x.width:
            return Heads(x, new[2], new[3])
        if new[-1] == x.width:
            return x
    if isinstance(x, Heads) and not x.swapped and new[-1] == x.heads * x.dim:
        return x.value
    raise _Unsupported(f"to shape {list(new)} is not a view of rows as heads or back")


@handles(aten.permute.default)
def _permute(r: Raiser, node: Node, x: Any, dims: Any) -> Any:
    if list(dims) != [0, 2, 1, 3]:
        raise _Unsupported(f"by {list(dims)}: only heads and tokens may change places")
    if isinstance(x, Heads):
        return Heads(x.value, x.heads, x.dim, not x.swapped)
    if isinstance(x, Part) and x.kind == "roped":
        return x
    raise _Unsupported("is only known for heads")


@handles(aten.transpose.int)
def _transpose(r: Raiser, node: Node, x: Any, a: int, b: int) -> Any:
    if sorted((a % 4, b % 4)) != [1, 2]:
        raise _Unsupported("only heads and tokens may change places")
    return _permute(r, node, x, [0, 2, 1, 3])


@handles(aten.slice.Tensor)
def _slice(
    r: Raiser, node: Node, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    if isinstance(x, Heads) and x.swapped and dim in (3, -1) and step == 1:
        half = x.dim // 2
        if (start or 0, min(end, x.dim)) == (0, half):
            return Part("low", (x,))
        if (start, min(end, x.dim)) == (half, x.dim):
            return Part("high", (x,))
    raise _Unsupported("is only known as the halves of rotary heads")


@handles(aten.neg.default)
def _neg(r: Raiser, node: Node, x: Any) -> Any:
    if isinstance(x, Part) and x.kind == "high":
        return Part("minus_high", x.of)
    raise _Unsupported("is only known in a rotary embedding")


@handles(aten.cat.default)
def _cat(r: Raiser, node: Node, parts: Any, dim: int = 0) -> Any:
    kinds = [p.kind if isinstance(p, Part) else "" for p in parts]
    if kinds == ["minus_high", "low"] and parts[0].of == parts[1].of and dim in (-1, 3):
        return Part("half", parts[0].of)
    raise _Unsupported("is only known in a rotary embedding")


@handles(aten.unsqueeze.default)
def _unsqueeze(r: Raiser, node: Node, x: Any, dim: int) -> Any:
    value = _matrix(x)
    if node.meta["val"].shape[-1] != value.width:
        raise _Unsupported("at the end of a matrix")
    return value


@handles(aten.index.Tensor)
def _index(r: Raiser, node: Node, x: Any, indices: Any) -> Any:
    if not (len(indices) == 2 and indices[1] == Input("select")):
        raise _Unsupported("is only known as the choice of a row a sequence by the input `select`")
    return r.emit(ir.Select, node, r.batch, _matrix(x).width, x=_matrix(x))


@handles(aten.index_put.default)
def _index_put(
    r: Raiser, node: Node, cache: Any, indices: Any, x: Any, accumulate: bool = False
) -> Any:
    places = node.args[1]
    if not isinstance(cache, CacheRef) or accumulate or len(places) != 3 or places[1] is not None:
        raise _Unsupported("is only known as an append to a KV cache")
    if not r.appends(places[0], places[2]):
        raise _Unsupported("does not append at the launch's position")
    return CacheWrite(cache.name, x)


@handles(aten.scaled_dot_product_attention.default)
def _attention(
    r: Raiser, node: Node, q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0,
    is_causal: bool = False, *, scale: Any = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if not (isinstance(k, CacheWrite) and isinstance(v, CacheWrite)) or dropout:
        raise _Unsupported("is only known over a KV cache, without dropout")
    if not (isinstance(mask, Positional) and r.is_causal(node.args[3])):
        raise _Unsupported("needs a causal mask at the launch's position")
    ropes = [x for x in (q, k.heads) if isinstance(x, Part)]
    if ropes and (len(ropes) != 2 or any(x.kind != "roped" for x in ropes)):
        raise _Unsupported("needs rotary embedding on both queries and keys, or on neither")
    heads = [x.of[0] if isinstance(x, Part) else x for x in (q, k.heads, v.heads)]
    if not all(isinstance(h, Heads) for h in heads):
        raise _Unsupported("takes heads of matrices")
    rope = _rope_tables(r, ropes) if ropes else None
    hq, hk, hv = heads
    out = r.emit(
        ir.Attention, node, hq.value.rows, hq.heads * hq.dim,
        q=hq.value, k=hk.value, v=hv.value, heads=hq.heads, kv_heads=hk.heads, head_dim=hq.dim,
        scale=float(scale if scale is not None else hq.dim**-0.5),
        keys=k.cache, values=v.cache, rope=rope,
    )  # fmt: skip
    return Heads(out, hq.heads, hq.dim, True)


def _rope_tables(r: Raiser, ropes: list[Part]) -> tuple[str, str]:
    """Names of the cos and signed sin tables; all rotations share the same nodes."""
    (_, cos, sin), (_, cos_k, sin_k) = (p.of for p in ropes)
    names = []
    for node, other, signed in ((cos, cos_k, False), (sin, sin_k, True)):
        base, same = _origin(node), _origin(other)
        if base is not same:
            raise _Unsupported("rotates queries and keys by different angles")
        name = f"table.{base.name}"
        if name not in r.out.tables:
            table = r._rows_at(base).copy()
            if signed:
                table[:, : table.shape[1] // 2] *= -1
            r.out.tables[name] = table
        names.append(name)
    return names[0], names[1]


def _origin(node: Node) -> Node:
    while node.target is aten.unsqueeze.default:
        node = node.args[0]
    return node


def raise_graph(program: torch.export.ExportedProgram, context: int) -> ir.Graph:
    """The graph of an exported decoder (`tapeout.models.decoder`).

    Raises:
        UnsupportedModel: lists every operator that cannot be lowered.
    """
    return Raiser(program, context).run()
