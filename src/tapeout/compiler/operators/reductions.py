"""Sums, maxima and what is made of them."""

import math
from collections.abc import Callable
from typing import Any

import torch

from tapeout.compiler import values as v
from tapeout.compiler.values import (
    Number,
    Reduce,
    Value,
)

from . import arithmetic as ar
from .constants import counting
from .parts import cat
from .registry import Meta, Unsupported, aten, dims_of, lowering, truth, typed


def reduce(op: str, x: Value, dims: tuple[int, ...], *, keep: bool, dtype: Any = None) -> Value:
    """Along `dims`; trailing dimensions and others one after the other."""
    dtype = dtype or x.dtype
    if not x.shape:
        return v.retyped(x, dtype)
    order = v.memory_order(x)
    if order != tuple(range(len(order))):  # in the order in which its elements lie
        dims = tuple(sorted(order.index(d) for d in dims))
        y = reduce(op, v.permute(x, order), dims, keep=True, dtype=dtype)
        y = v.permute(y, v.inverse(order))
        return y if keep else v.squeeze(y, tuple(sorted(order[d] for d in dims)))
    shape = list(x.shape)
    last = len(shape)
    while last and (last - 1 in dims or shape[last - 1] == 1):
        last -= 1
    y = x
    moving = [d for d in sorted(dims) if shape[d] != 1]
    for part in (tuple(d for d in moving if d >= last), tuple(d for d in moving if d < last)):
        if part:
            shape = [1 if d in part else n for d, n in enumerate(shape)]
            kind = torch.float32 if dtype == torch.bfloat16 and part[0] >= last else dtype
            y = Reduce(tuple(shape), kind, op, y, part)
    y = v.retyped(y, dtype)
    return y if keep else v.squeeze(y, tuple(sorted(dims)))


def _empty(meta: Meta, x: Value, value: float) -> Value | None:
    return Number(meta.shape, meta.dtype, value) if x.numel == 0 else None


@lowering(aten.sum.dim_IntList, aten.sum.default)
def _sum(meta: Meta, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    empty = _empty(meta, x, 0.0)
    if empty is not None:
        return empty
    dims = dims_of(dim, len(x.shape))
    return typed(reduce("sum", x, dims, keep=keepdim, dtype=meta.dtype), meta)


@lowering(aten.mean.default, aten.mean.dim)
def _mean(meta: Meta, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    empty = _empty(meta, x, math.nan)
    if empty is not None:
        return empty
    dims = dims_of(dim, len(x.shape))
    count = math.prod(x.shape[d] for d in dims) if x.shape else 1
    total = reduce("sum", x, dims, keep=keepdim, dtype=torch.float32)
    return typed(ar.mul(total, 1.0 / count), meta)


@lowering(aten.amax.default, aten.max.default)
def _amax(meta: Meta, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    return typed(reduce("max", x, dims_of(dim, len(x.shape)), keep=keepdim), meta)


@lowering(aten.amin.default, aten.min.default)
def _amin(meta: Meta, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    y = reduce("max", ar.negative(x), dims_of(dim, len(x.shape)), keep=keepdim)
    return typed(ar.negative(y), meta)


@lowering(aten.any.default, aten.any.dim, aten.any.dims)
def _any(meta: Meta, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    empty = _empty(meta, x, 0.0)
    if empty is not None:
        return empty
    y = reduce("max", truth(x), dims_of(dim, len(x.shape)), keep=keepdim)
    return typed(y, meta)


@lowering(aten.all.default, aten.all.dim, aten.all.dims)
def _all(meta: Meta, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    empty = _empty(meta, x, 1.0)
    if empty is not None:
        return empty
    y = reduce("max", ar.logical_not(truth(x)), dims_of(dim, len(x.shape)), keep=keepdim)
    return typed(ar.logical_not(y), meta)


@lowering(aten.prod.default, aten.prod.dim_int)
def _prod(meta: Meta, x: Value, dim: int | None = None, keepdim: bool = False, **_: Any) -> Value:
    empty = _empty(meta, x, 1.0)
    if empty is not None:
        return empty
    if dim is None:
        x = v.reshape(x, (x.numel,))
    at = (dim or 0) % max(len(x.shape), 1)
    x = x if x.shape else v.unsqueeze(x, 0)
    y = product(v.retyped(x, torch.float32), at)
    return typed(v.reshape(y, meta.shape), meta)


def product(x: Value, dim: int) -> Value:
    """Of the elements along `dim`, which stays: halves are multiplied until one is left."""
    while x.shape[dim] > 1:
        n = x.shape[dim]
        half = n // 2
        y = ar.mul(v.narrow(x, dim, 0, half), v.narrow(x, dim, half, half))
        if n % 2:
            first = ar.mul(v.narrow(y, dim, 0, 1), v.narrow(x, dim, n - 1, 1))
            y = cat(Meta(y.shape, y.dtype), [first, v.narrow(y, dim, 1, half - 1)], dim)
        x = y
    return x


def _place_of_best(x: Value, dim: int, best: Value) -> Value:
    """The first index along `dim` whose element is `best` (or NaN); keeps the dimension."""
    n = x.shape[dim]
    shape = [1] * len(x.shape)
    shape[dim] = n
    index = v.reshape(counting(n), tuple(shape))
    hit = ar.maximum(ar.eq(x, best), ar.is_nan(x))
    candidates = ar.where(hit, ar.negative(index), -float(n))
    return ar.negative(reduce("max", candidates, (dim,), keep=True))


def _arg(meta: Meta, x: Value, dim: int | None, keepdim: bool) -> Value:
    if dim is None:
        y = _place_of(v.reshape(x, (x.numel,)), 0)
        return typed(v.reshape(y, meta.shape), meta)
    if not x.shape:
        return Number(meta.shape, meta.dtype, 0.0)
    at = dim % len(x.shape)
    y = _place_of(x, at)
    return typed(y if keepdim else v.squeeze(y, (at,)), meta)


def _place_of(x: Value, dim: int) -> Value:
    return _place_of_best(x, dim, reduce("max", x, (dim,), keep=True))


@lowering(aten.argmax.default)
def _argmax(meta: Meta, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _arg(meta, x, dim, keepdim)


@lowering(aten.argmin.default)
def _argmin(meta: Meta, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _arg(meta, ar.negative(x), dim, keepdim)


def _extreme(
    metas: Any, x: Value, dim: int, keepdim: bool, sign: Callable[[Value], Value]
) -> list[Value]:
    if not x.shape:
        return [typed(x, metas[0]), Number((), metas[1].dtype, 0.0)]
    at = dim % len(x.shape)
    y = sign(x)
    best = reduce("max", y, (at,), keep=True)
    place = _place_of_best(y, at, best)
    parts = [sign(best), place]
    if not keepdim:
        parts = [v.squeeze(p, (at,)) for p in parts]
    return [typed(p, m) for p, m in zip(parts, metas, strict=True)]


@lowering(aten.max.dim)
def _max_dim(metas: Any, x: Value, dim: int, keepdim: bool = False) -> list[Value]:
    return _extreme(metas, x, dim, keepdim, lambda y: y)


@lowering(aten.min.dim)
def _min_dim(metas: Any, x: Value, dim: int, keepdim: bool = False) -> list[Value]:
    return _extreme(metas, x, dim, keepdim, ar.negative)


@lowering(aten.var.correction)
def _var(
    meta: Meta, x: Value, dim: Any = None, *, correction: float | None = None,
    keepdim: bool = False,
) -> Value:  # fmt: skip
    dims = dims_of(dim, len(x.shape))
    count = math.prod(x.shape[d] for d in dims) if x.shape else 1
    left = count - (1 if correction is None else correction)
    if x.numel == 0 or (left <= 0 and count == 0):
        return Number(meta.shape, meta.dtype, math.nan)
    mean = ar.mul(reduce("sum", x, dims, keep=True, dtype=torch.float32), 1.0 / count)
    d = ar.sub(x, mean)
    total = reduce("sum", ar.mul(d, d), dims, keep=keepdim, dtype=torch.float32)
    scale = 1.0 / left if left > 0 else math.inf
    return typed(ar.mul(total, scale), meta)


@lowering(aten.var_mean.correction)
def _var_mean(metas: Any, x: Value, dim: Any = None, **kwargs: Any) -> list[Value]:
    keepdim = kwargs.get("keepdim", False)
    return [_var(metas[0], x, dim, **kwargs), _mean(metas[1], x, dim, keepdim)]


@lowering(aten.histc.default)
def _histc(meta: Meta, x: Value, bins: int = 100, min: float = 0, max: float = 0) -> Value:
    if min == max:
        raise Unsupported("histc with bounds that depend on values: give min and max")
    width = (max - min) / bins
    flat = v.reshape(x, (x.numel, 1))
    place = ar.minimum(ar.floor(ar.mul(ar.sub(flat, min), 1 / width)), float(bins - 1))
    inside = ar.mul(ar.ge(flat, min), ar.ge(float(max), flat))
    hit = ar.mul(ar.eq(place, v.reshape(counting(bins), (1, bins))), inside)
    return typed(reduce("sum", hit, (0,), keep=False, dtype=torch.float32), meta)
