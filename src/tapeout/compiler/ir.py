"""The compiler's intermediate form: operations on matrices of moving rows.

A `Value` is [rows, width]; rows are the tokens of all sequences. Operations are in order of
execution. `graph.raise_graph` makes it from a torch.export graph, `lower` runs kernels for it.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Value:
    """A matrix of moving rows."""

    name: str
    rows: int
    width: int


@dataclass(frozen=True, eq=False)
class Op:
    """An operation; `layer` says where in the model it stands."""

    out: Value
    layer: str


@dataclass(frozen=True, eq=False)
class Embed(Op):
    """Rows of a table, picked by the launch's tokens."""

    table: str


@dataclass(frozen=True, eq=False)
class RmsNorm(Op):
    x: Value
    weight: str
    eps: float


@dataclass(frozen=True, eq=False)
class Linear(Op):
    """x @ W^T for a parameter W [out, in]."""

    x: Value
    weight: str


@dataclass(frozen=True, eq=False)
class Unary(Op):
    """A function of the vector unit, by its name in `isa.vpu.Function`."""

    x: Value
    function: str


@dataclass(frozen=True, eq=False)
class Binary(Op):
    """`add` or `mul` of two matrices."""

    a: Value
    b: Value
    kind: str


@dataclass(frozen=True, eq=False)
class Attention(Op):
    """Causal attention over a KV cache that the operation appends to.

    q, k, v are [rows, heads * head_dim]; `rope` names the tables (cos, signed sin)
    [context, head_dim] that rotate q and k, if any; `keys` and `values` name the caches.
    """

    q: Value
    k: Value
    v: Value
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    keys: str
    values: str
    rope: tuple[str, str] | None


@dataclass(frozen=True, eq=False)
class Select(Op):
    """Row `select[b]` of each sequence b, a launch argument."""

    x: Value


@dataclass
class Graph:
    """A raised graph.

    Attributes:
        tables: constants computed by the compiler, by name (float32 arrays).
        caches: name -> shape [batch, kv_heads, context, head_dim].
        logits: the output.
    """

    batch: int
    tokens: int
    context: int
    ops: list[Op] = field(default_factory=list)
    tables: dict[str, Any] = field(default_factory=dict)
    caches: dict[str, tuple[int, ...]] = field(default_factory=dict)
    logits: Value | None = None

    def uses(self) -> dict[Value, list[Op]]:
        """Operations that read each value."""
        out: dict[Value, list[Op]] = {}
        for op in self.ops:
            for name in ("x", "a", "b", "q", "k", "v"):
                value = getattr(op, name, None)
                if isinstance(value, Value):
                    out.setdefault(value, []).append(op)
        return out
