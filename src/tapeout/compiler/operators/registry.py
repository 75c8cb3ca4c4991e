"""ATen operators as values: what `torch.compile` graphs are made of.

`LOWERINGS` maps operators to functions of the node's result (`Meta`) and its arguments, which are
values where the graph has tensors. Operators that PyTorch can decompose into these are decomposed;
see `decompositions`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from tapeout.compiler import values as v
from tapeout.compiler.values import (
    Number,
    Shape,
    Value,
)

from . import arithmetic as ar

aten = torch.ops.aten
LOWERINGS: dict[Any, Callable[..., Any]] = {}


class Unsupported(Exception):
    """An operator, or a use of one, that the compiler does not have; says which."""


@dataclass(frozen=True)
class Meta:
    """What a node gives: a tensor's shape and type."""

    shape: Shape
    dtype: torch.dtype


def lowering(*overloads: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(f: Callable[..., Any]) -> Callable[..., Any]:
        for overload in overloads:
            LOWERINGS[overload] = f
        return f

    return register


COMPOSITES = (  # of Core ATen, that PyTorch decomposes further
    "_adaptive_avg_pool2d",
    "_native_batch_norm_legit", "_native_batch_norm_legit_functional",
    "_native_batch_norm_legit_no_training",
    "_softmax_backward_data", "addmm", "col2im", "elu", "embedding_dense_backward",
    "grid_sampler_2d", "hardtanh", "index_select", "leaky_relu", "linalg_vector_norm",
    "native_batch_norm",
    "native_batch_norm_backward", "native_dropout", "native_group_norm",
    "native_group_norm_backward", "native_layer_norm", "native_layer_norm_backward",
    "reflection_pad1d", "reflection_pad1d_backward", "reflection_pad2d",
    "reflection_pad2d_backward", "reflection_pad3d", "reflection_pad3d_backward",
    "replication_pad2d",
    "replication_pad3d", "upsample_bicubic2d", "upsample_bilinear2d",
    "upsample_nearest2d", "var",
)  # fmt: skip


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """PyTorch's decompositions of what is not lowered here."""
    from torch._decomp import core_aten_decompositions, decomposition_table

    table = dict(core_aten_decompositions())
    for name in COMPOSITES:
        packet = getattr(aten, name)
        for overload in packet.overloads():
            op = getattr(packet, overload)
            if op in decomposition_table:
                table[op] = decomposition_table[op]
    return {op: f for op, f in table.items() if op not in LOWERINGS}


def cast(x: Value | float, meta: Meta) -> Value:
    """x, broadcast, as the type of the result; a fraction goes to an integer toward zero."""
    if not isinstance(x, Value):
        return Number(meta.shape, meta.dtype, float(x))
    if x.dtype in v.FLOATS and meta.dtype in v.INTS:
        x = ar.trunc(x)
    elif x.dtype != torch.bool and meta.dtype == torch.bool:
        x = ar.ne(x, 0.0)
    return v.expand(v.retyped(x, meta.dtype), meta.shape)


def typed(x: Value, meta: Meta) -> Value:
    """A result that is already of the right kind."""
    return v.expand(v.retyped(x, meta.dtype), meta.shape)


def dims_of(dim: Any, rank: int) -> tuple[int, ...]:
    """Dimensions counted from the front; none or an empty list means all."""
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return tuple(range(rank))
    return tuple(d % max(rank, 1) for d in (dim if isinstance(dim, (list, tuple)) else [dim]))


def truth(a: Any) -> Any:
    """1 where a is not zero."""
    return a if isinstance(a, Value) and a.dtype == torch.bool else ar.ne(a, 0.0)


def slice_range(size: int, start: int | None, end: int | None, step: int) -> tuple[int, int]:
    """(first, count) of the elements that a slice takes."""
    low, high, _ = slice(start, end, step).indices(size)
    return low, max(0, -(-(high - low) // step))
