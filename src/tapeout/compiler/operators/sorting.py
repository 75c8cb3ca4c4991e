"""Sorting by rank: how many elements come before each."""

from typing import Any

import torch

from tapeout.compiler import values as v
from tapeout.compiler.values import (
    Number,
    Value,
)

from . import arithmetic as ar
from .indexing import along, take_rows
from .reductions import reduce
from .registry import aten, lowering, typed


def ranks(x: Value, descending: bool) -> Value:
    """Where each element of the last dimension goes in sorted order; equals keep theirs. NaN is
    the largest."""
    n = x.shape[-1]
    shape = (*x.shape, n)  # [.., i, j]: is j before i
    a = v.expand(v.unsqueeze(x, len(x.shape)), shape)
    b = v.expand(v.unsqueeze(x, len(x.shape) - 1), shape)
    nan_a, nan_b = ar.is_nan(a), ar.is_nan(b)
    if descending:
        before = ar.where(nan_a, 0.0, ar.maximum(ar.gt(b, a), nan_b))
    else:
        before = ar.where(nan_b, 0.0, ar.maximum(ar.gt(a, b), nan_a))
    equal = ar.maximum(ar.eq(a, b), ar.mul(nan_a, nan_b))
    earlier = ar.gt(along(len(x.shape) - 1, shape), along(len(x.shape), shape))
    first = ar.maximum(before, ar.mul(equal, earlier))
    total = reduce("sum", first, (len(x.shape),), keep=True, dtype=torch.float32)
    return v.squeeze(total, (len(x.shape),))


def _sorted(x: Value, dim: int, descending: bool, count: int) -> tuple[Value, Value]:
    """(values, indices) of the first `count` along `dim`."""
    order = v.dim_last(len(x.shape), dim)
    y = v.permute(x, order)
    n = y.shape[-1]
    rank = ranks(y, descending)
    shape = (*y.shape[:-1], count, n)  # [.., place, i]
    here = ar.eq(v.expand(v.unsqueeze(rank, len(y.shape) - 1), shape), along(len(shape) - 2, shape))
    picks = ar.where(here, along(len(shape) - 1, shape), 0.0)
    total = reduce("sum", picks, (len(shape) - 1,), keep=True, dtype=torch.float32)
    index = v.squeeze(total, (len(shape) - 1,))
    strides = v.dense_strides(y.shape)
    linear: Any = index
    for d in range(len(y.shape) - 1):
        if y.shape[d] > 1:
            linear = ar.fma(along(d, index.shape), float(strides[d]), linear)
    found = v.reshape(take_rows(y, y.numel, linear), index.shape)
    return v.permute(found, v.inverse(order)), v.permute(index, v.inverse(order))


@lowering(aten.sort.default, aten.sort.stable)
def _sort(
    metas: Any, x: Value, dim: Any = -1, descending: Any = False, *, stable: Any = None,
    **kwargs: Any,
) -> list[Value]:  # fmt: skip
    dim, descending = kwargs.get("dim", dim), kwargs.get("descending", descending)
    if not x.shape:
        return [x, Number((), metas[1].dtype, 0.0)]
    if not x.numel:
        return [x, Number(metas[1].shape, metas[1].dtype, 0.0)]
    parts = _sorted(x, dim % len(x.shape), descending, x.shape[dim % len(x.shape)])
    return [typed(p, m) for p, m in zip(parts, metas, strict=True)]


@lowering(aten.topk.default)
def _topk(
    metas: Any,
    x: Value,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
) -> list[Value]:
    if not x.shape:
        return [typed(v.reshape(x, metas[0].shape), metas[0]),
                Number(metas[1].shape, metas[1].dtype, 0.0)]  # fmt: skip
    if not metas[0].shape or 0 in metas[0].shape:
        return [Number(m.shape, m.dtype, 0.0) for m in metas]
    parts = _sorted(x, dim % len(x.shape), largest, k)
    return [typed(p, m) for p, m in zip(parts, metas, strict=True)]
