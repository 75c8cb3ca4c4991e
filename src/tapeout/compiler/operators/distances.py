"""Distances between rows."""

import math
from typing import Any

import numpy as np
import torch

from tapeout.compiler import values as v
from tapeout.compiler.values import (
    Number,
    Value,
)

from . import arithmetic as ar
from .constants import constant
from .indexing import hits, summed_by, take_rows
from .reductions import reduce
from .registry import Meta, aten, lowering, typed


def norm(difference: Value, p: float, dim: int) -> Value:
    """The p-norm along a dimension, which goes."""
    x = ar.absolute(difference)
    f32 = torch.float32
    if math.isinf(p):
        return v.squeeze(reduce("max", x, (dim,), keep=True), (dim,))
    if p == 0:
        return v.squeeze(reduce("sum", ar.ne(x, 0.0), (dim,), keep=True, dtype=f32), (dim,))
    each = x if p == 1 else ar.mul(x, x) if p == 2 else ar.power(x, p)
    total = v.squeeze(reduce("sum", each, (dim,), keep=True, dtype=f32), (dim,))
    return total if p == 1 else ar.power(total, 1.0 / p)


@lowering(aten._cdist_forward.default)
def _cdist(meta: Meta, a: Value, b: Value, p: float, _: Any = None) -> Value:
    if 0 in meta.shape or not a.shape[-1]:
        return Number(meta.shape, meta.dtype, 0.0)
    rank = len(meta.shape)
    whole = (*meta.shape, a.shape[-1])
    x = v.expand(v.unsqueeze(a, len(a.shape) - 1), whole)
    y = v.expand(v.unsqueeze(b, len(b.shape) - 2), whole)
    return typed(norm(ar.sub(x, y), float(p), rank), meta)


def _pairs(n: int) -> list[Value]:
    """The first and the second index of every pair."""
    return [constant(i.astype(np.float32)) for i in np.triu_indices(n, 1)]


@lowering(aten._pdist_forward.default)
def _pdist(meta: Meta, x: Value, p: float = 2) -> Value:
    n = x.shape[0]
    if 0 in meta.shape or not x.shape[1]:
        return Number(meta.shape, meta.dtype, 0.0)
    a, b = (take_rows(x, n, end) for end in _pairs(n))
    return typed(norm(ar.sub(a, b), float(p), 1), meta)


@lowering(aten._cdist_backward.default)
def _cdist_backward(
    meta: Meta, grad: Value, a: Value, b: Value, p: float, distance: Value
) -> Value:
    if 0 in meta.shape or not grad.numel:
        return Number(meta.shape, meta.dtype, 0.0)
    rank = len(grad.shape)
    whole = (*grad.shape, a.shape[-1])
    x = v.expand(v.unsqueeze(a, len(a.shape) - 1), whole)
    y = v.expand(v.unsqueeze(b, len(b.shape) - 2), whole)
    g, far = (v.expand(v.unsqueeze(t, rank), whole) for t in (grad, distance))
    each = _norm_gradient(ar.sub(x, y), g, far, float(p))
    return typed(reduce("sum", each, (rank - 1,), keep=False, dtype=torch.float32), meta)


def _norm_gradient(difference: Value, grad: Value, norm: Value, p: float) -> Value:
    """Of the p-norm with respect to each difference; zero where the norm is."""
    x = ar.absolute(difference)
    if p == 0:
        return ar.mul(difference, 0.0)
    if math.isinf(p):
        part = ar.mul(ar.sign(difference), ar.eq(x, norm))
    elif p == 1:
        part = ar.sign(difference)
    elif p == 2:
        part = ar.divide(difference, norm)
    else:
        part = ar.mul(ar.sign(difference), ar.power(ar.divide(x, norm), p - 1))
    return ar.where(ar.eq(norm, 0.0), 0.0, ar.mul(part, grad))


@lowering(aten._pdist_backward.default)
def _pdist_backward(meta: Meta, grad: Value, x: Value, p: float, distance: Value) -> Value:
    n = x.shape[0]
    if not grad.numel or 0 in meta.shape:
        return Number(meta.shape, meta.dtype, 0.0)
    ends = _pairs(n)
    a, b = (take_rows(x, n, e) for e in ends)
    g, far = (v.expand(v.reshape(t, (t.numel, 1)), a.shape) for t in (grad, distance))
    each = typed(_norm_gradient(ar.sub(a, b), g, far, float(p)), Meta(a.shape, torch.float32))
    gone, come = (summed_by(e, n, each) for e in ends)
    return typed(ar.sub(gone, come), meta)


@lowering(aten.embedding_renorm.default)
def _embedding_renorm(
    meta: Meta, weight: Value, index: Value, max_norm: float, norm_type: float
) -> Value:
    """Rows that are looked up have a norm of at most `max_norm`."""
    used = reduce("max", hits(index, weight.shape[0]), (1,), keep=True)
    length = v.unsqueeze(norm(weight, float(norm_type), 1), 1)
    scale = ar.mul(ar.reciprocal(ar.add(length, 1e-7)), float(max_norm))
    over = ar.mul(used, ar.gt(length, float(max_norm)))
    return typed(ar.where(over, ar.mul(weight, scale), weight), meta)
