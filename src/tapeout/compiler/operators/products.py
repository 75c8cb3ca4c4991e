"""Matrix products, and sums and products up to each element."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tapeout.compiler import values as v
from tapeout.compiler.values import (
    Kernel,
    Number,
    Result,
    Value,
    View,
)

from . import arithmetic as ar
from .constants import constant
from .parts import cat
from .registry import Meta, aten, lowering, typed

PASSES = {"highest": 6, "high": 3, "medium": 1}
# Pairs of parts (0: nearest bf16, 1: of what is left, 2: of what is left then), small ones first.
TERMS = {6: [(2, 0), (0, 2), (1, 1), (1, 0), (0, 1), (0, 0)], 3: [(1, 0), (0, 1), (0, 0)],
         1: [(0, 0)]}  # fmt: skip


def parts_of(x: Value, count: int) -> list[Value]:
    """x as a sum of bf16 tensors."""
    parts: list[Value] = []
    left = x
    for i in range(count):
        part = v.retyped(left, torch.bfloat16)
        parts.append(part)
        if i + 1 < count:
            left = ar.sub(left, ar.apply("bf16", left))
    return parts


@dataclass(frozen=True)
class Passes:
    """How a product of two values is made of products of bf16 tensors.

    Attributes:
        need: how many parts the left and the right factor are split into.
        terms: pairs of parts, in the order in which their products are added.
    """

    need: tuple[int, int]
    terms: list[tuple[int, int]]

    def pairs(self, left: Sequence[Value], right: Sequence[Value]) -> tuple[Value, ...]:
        """Parts as the inputs of a kernel."""
        return tuple(x for i, j in self.terms for x in (left[i], right[j]))


def passes_of(a: Value, b: Value, precision: str = "") -> Passes:
    """`precision`: a name of `PASSES` (default: PyTorch's setting for float32 products)."""
    exact = (torch.bfloat16, torch.bool)
    passes = PASSES[precision or torch.get_float32_matmul_precision()]
    if a.dtype in v.INTS or b.dtype in v.INTS:
        passes = 6
    parts = {6: 3, 3: 2, 1: 1}[passes]
    left, right = (1 if x.dtype in exact else parts for x in (a, b))
    return Passes((left, right), [(i, j) for i, j in TERMS[passes] if i < left and j < right])


def matmul(a: Value, b: Value, dtype: torch.dtype, *, precision: str = "") -> Value:
    """a [A, M, K] @ b [B, K, N], summed in fp32: B products, each with the next of a's A.

    Args:
        precision: as for `passes_of`.
    """
    count, m, depth = a.shape
    batch, _, columns = b.shape
    assert batch % count == 0
    shape = (batch, m, columns)
    if 0 in (batch, m, columns, depth):
        return Number(shape, dtype, 0.0)
    passes = passes_of(a, b, precision)
    turned = _is_turned(b)
    left = _left(a, passes.need[0])
    right = [stored(p) for p in parts_of(_turn(b) if turned else b, passes.need[1])]
    params = {"shape": (batch, m, columns, depth), "left": count, "transposed": turned}
    return kernel_result("mm", passes.pairs(left, right), params, shape, dtype)


def kernel_result(
    op: str, inputs: tuple[Value, ...], params: dict[str, Any], shape: v.Shape, dtype: torch.dtype
) -> Value:
    """What a kernel gives that stores bf16 or fp32, as `dtype`."""
    out = dtype if dtype == torch.bfloat16 else torch.float32
    return v.retyped(Result(shape, out, Kernel(op, inputs, params)), dtype)


def _turn(x: Value) -> Value:
    return v.permute(x, (0, 2, 1))


def _is_turned(x: Value) -> bool:
    """Its columns, not its rows, are consecutive."""
    strides = v.as_view(x).strides
    return not isinstance(x, Number) and x.shape[1] > 1 and x.shape[2] > 1 and (
        strides[1] == 1 and strides[2] != 1
    )  # fmt: skip


def _left(a: Value, count: int) -> list[Value]:
    """Parts of a left factor, row-major: the array turns the tiles of one that is not."""
    if not _is_turned(a):
        return [stored(p) for p in parts_of(a, count)]
    parts = [stored(p) for p in parts_of(_turn(a), count)]
    return [Result(a.shape, torch.bfloat16, Kernel("transpose", (p,))) for p in parts]


def stored(x: Value) -> Value:
    """x row-major in HBM."""
    if isinstance(x, View):
        dense = v.dense_strides(x.shape)
        if all(n == 1 or s == d for n, s, d in zip(x.shape, x.strides, dense, strict=True)):
            return x
    return v.copy(x) if isinstance(x, (View, Number)) else x


@lowering(aten.mm.default)
def _mm(meta: Meta, a: Value, b: Value) -> Value:
    return v.reshape(matmul(v.unsqueeze(a, 0), v.unsqueeze(b, 0), meta.dtype), meta.shape)


@lowering(aten.bmm.default)
def _bmm(meta: Meta, a: Value, b: Value) -> Value:
    return matmul(a, b, meta.dtype)


def scan(x: Value, dim: int, join: Callable[[Value, Value], Value]) -> Value:
    """`join` of all elements up to each, along `dim`: of neighbours 1, 2, 4, ... apart."""
    n, step = x.shape[dim], 1
    while step < n:
        both = join(v.narrow(x, dim, step, n - step), v.narrow(x, dim, 0, n - step))
        x = cat(Meta(x.shape, x.dtype), [v.narrow(x, dim, 0, step), both], dim)
        step *= 2
    return x


@lowering(aten.cumprod.default)
def _cumprod(meta: Meta, x: Value, dim: int, **_: Any) -> Value:
    if not x.shape or x.numel == 0:
        return typed(x, meta)
    return typed(scan(v.retyped(x, torch.float32), dim % len(x.shape), ar.mul), meta)


def along(x: Value, dim: int, table: Value) -> Value:
    """x [.., n, ..] @ table [n, m] along a dimension, in all of fp32, whatever precision products
    of the model have."""
    n, m = table.shape
    order = v.dim_last(len(x.shape), dim)
    y = v.permute(x, order)
    flat = v.reshape(v.retyped(y, torch.float32), (1, y.numel // n, n))
    out = matmul(flat, v.unsqueeze(table, 0), torch.float32, precision="highest")
    return v.permute(v.reshape(out, (*y.shape[:-1], m)), v.inverse(order))


def running_sum(x: Value, dim: int) -> Value:
    """Sums of the elements up to each, along `dim`: a product with a triangle of ones."""
    n = x.shape[dim]
    ones = constant(np.triu(np.ones((n, n), np.float32)))
    return along(x, dim, v.retyped(ones, torch.bfloat16))


@lowering(aten.cumsum.default)
def _cumsum(meta: Meta, x: Value, dim: int, **_: Any) -> Value:
    if not x.shape or x.numel == 0:
        return typed(x, meta)
    return typed(running_sum(x, dim % len(x.shape)), meta)
