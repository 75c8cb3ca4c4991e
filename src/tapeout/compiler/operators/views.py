"""Operators that show the elements of a tensor otherwise."""

from collections.abc import Sequence
from typing import Any

from tapeout.compiler import values as v
from tapeout.compiler.values import (
    Number,
    Value,
    View,
)

from .parts import assemble
from .registry import Meta, aten, dims_of, lowering, slice_range


@lowering(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def _view(meta: Meta, x: Value, *_: Any) -> Value:
    return v.reshape(x, meta.shape)


@lowering(aten.permute.default)
def _permute(meta: Meta, x: Value, dims: Sequence[int]) -> Value:
    return v.permute(x, dims_of(dims, len(x.shape)) if dims else ())


@lowering(aten.transpose.int)
def _transpose(meta: Meta, x: Value, a: int, b: int) -> Value:
    order = list(range(len(x.shape)))
    if order:
        order[a], order[b] = order[b], order[a]
    return v.permute(x, tuple(order))


@lowering(aten.t.default)
def _t(meta: Meta, x: Value) -> Value:
    return v.permute(x, tuple(reversed(range(len(x.shape)))))


@lowering(aten.expand.default)
def _expand(meta: Meta, x: Value, *_: Any, **__: Any) -> Value:
    return v.expand(x, meta.shape)


@lowering(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
def _squeeze(meta: Meta, x: Value, dim: Any = None) -> Value:
    dims = dims_of(dim, len(x.shape)) if x.shape and dim != [] else ()
    return v.squeeze(x, tuple(d for d in dims if x.shape[d] == 1))


@lowering(aten.unsqueeze.default)
def _unsqueeze(meta: Meta, x: Value, dim: int) -> Value:
    return v.unsqueeze(x, dim % (len(x.shape) + 1))


@lowering(aten.select.int)
def _select(meta: Meta, x: Value, dim: int, index: int) -> Value:
    dim %= len(x.shape)
    return v.select(x, dim, index % x.shape[dim])


@lowering(aten.slice.Tensor)
def _slice(
    meta: Meta, x: Value, dim: int = 0, start: int | None = None, end: int | None = None,
    step: int = 1,
) -> Value:  # fmt: skip
    dim %= len(x.shape)
    low, count = slice_range(x.shape[dim], start, end, step)
    return v.narrow(x, dim, low, count, step)


@lowering(aten.split_with_sizes.default)
def _split(meta: Any, x: Value, sizes: Sequence[int], dim: int = 0) -> list[Value]:
    parts, at = [], 0
    for size in sizes:
        parts.append(v.narrow(x, dim % len(x.shape), at, size))
        at += size
    return parts


@lowering(aten.flip.default)
def _flip(meta: Meta, x: Value, dims: Sequence[int]) -> Value:
    for d in dims_of(dims, len(x.shape)) if dims else ():
        if x.shape[d]:
            x = v.narrow(x, d, x.shape[d] - 1, x.shape[d], -1)
    return x


@lowering(aten.diagonal.default)
def _diagonal(meta: Meta, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    view = v.as_view(x)
    a, b = dim1 % len(x.shape), dim2 % len(x.shape)
    start = view.offset + (offset * view.strides[b] if offset >= 0 else -offset * view.strides[a])
    rest = [d for d in range(len(x.shape)) if d not in (a, b)]
    strides = (*(view.strides[d] for d in rest), view.strides[a] + view.strides[b])
    if isinstance(x, Number):
        return Number(meta.shape, x.dtype, x.value)
    return View(meta.shape, x.dtype, view.source, strides, start)


@lowering(aten.diagonal_scatter.default)
def _diagonal_scatter(
    meta: Meta, x: Value, src: Value, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Value:
    strides = v.dense_strides(meta.shape)
    a, b = dim1 % len(x.shape), dim2 % len(x.shape)
    start = offset * strides[b] if offset >= 0 else -offset * strides[a]
    rest = [d for d in range(len(x.shape)) if d not in (a, b)]
    inner = (*(strides[d] for d in rest), strides[a] + strides[b])
    return assemble(meta, [(x, strides, 0), (src, inner, start)])


@lowering(aten.as_strided.default)
def _as_strided(
    meta: Meta, x: Value, size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> Value:
    if isinstance(x, Number):
        return Number(meta.shape, x.dtype, x.value)
    view = v.as_view(x)
    start = view.offset if offset is None else offset
    return View(meta.shape, x.dtype, view.source, tuple(stride), start)


@lowering(aten.unfold.default)
def _unfold(meta: Meta, x: Value, dim: int, size: int, step: int) -> Value:
    if isinstance(x, Number):
        return Number(meta.shape, x.dtype, x.value)
    view = v.as_view(x)
    if not x.shape:
        return View(meta.shape, x.dtype, view.source, (0,), view.offset)
    dim %= len(x.shape)
    strides = [*view.strides, view.strides[dim]]
    strides[dim] *= step
    return View(meta.shape, x.dtype, view.source, tuple(strides), view.offset)
