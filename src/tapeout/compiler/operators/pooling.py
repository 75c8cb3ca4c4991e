"""Pooling: windows written out, element by element."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from tapeout.compiler import values as v
from tapeout.compiler.values import (
    Number,
    Shape,
    Value,
)

from . import arithmetic as ar
from .constants import constant, counting
from .parts import padded, within
from .products import along
from .reductions import reduce
from .registry import (
    Meta,
    Unsupported,
    aten,
    lowering,
    typed,
)
from .windows import per_dimension

MOST_SHIFTS = 256  # elements of a pooling window that are written out


def _pool_geometry(
    x: Value, size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], out: Shape,
) -> tuple[list[int], list[int], list[int], list[int], list[tuple[int, int]]]:  # fmt: skip
    count = len(out)
    size, padding, dilation = (per_dimension(p, count) for p in (size, padding, dilation))
    stride = per_dimension(stride, count) if stride else list(size)
    n = x.shape[len(x.shape) - count :]
    pads = [
        (p, max(0, (o - 1) * s + d * (k - 1) + 1 - m - p))
        for p, o, s, d, k, m in zip(padding, out, stride, dilation, size, n, strict=True)
    ]
    if math.prod(size) > MOST_SHIFTS:
        raise Unsupported(f"a pooling window of {math.prod(size)} elements (at most {MOST_SHIFTS})")
    return list(size), stride, padding, dilation, pads


def _elements(size: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Where the elements of a window stand in it, in row-major order."""
    return itertools.product(*(range(k) for k in size))


def _shifted(
    x: Value, at: Sequence[int], stride: Sequence[int], dilation: Sequence[int], out: Shape
) -> Value:
    """Of every window the element `at`."""
    first = len(x.shape) - len(out)
    for i, (k, s, d, o) in enumerate(zip(at, stride, dilation, out, strict=True)):
        x = v.narrow(x, first + i, k * d, o, s)
    return x


def _max_pool(
    metas: Any, x: Value, size: Sequence[int], stride: Sequence[int] = (),
    padding: Sequence[int] = (0,), dilation: Sequence[int] = (1,), ceil_mode: bool = False,
) -> list[Value]:  # fmt: skip
    out = metas[0].shape[-len(size) :]
    if 0 in metas[0].shape:
        return [Number(m.shape, m.dtype, 0.0) for m in metas]
    size, stride, padding, dilation, pads = _pool_geometry(x, size, stride, padding, dilation, out)
    wide = padded(x, pads, -math.inf)
    inner = x.shape[len(x.shape) - len(out) :]

    def element(at: tuple[int, ...]) -> tuple[Value, Value]:
        here = _shifted(wide, at, stride, dilation, out)
        return here, _window_index(at, stride, padding, dilation, out, inner, here.shape)

    first, *others = _elements(size)
    best, index = element(first)
    for at in others:
        here, number = element(at)
        better = ar.maximum(ar.gt(here, best), ar.is_nan(here))
        index = ar.where(better, number, index)
        best = ar.maximum(best, here)
    return [typed(best, metas[0]), typed(index, metas[1])]


def _window_index(
    at: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    out: Shape, inner: Shape, shape: Shape,
) -> Value:  # fmt: skip
    """The row-major number, in the input, of element `at` of every window."""
    first = len(shape) - len(out)
    steps = v.dense_strides(inner)
    start = sum((k * d - p) * n for k, d, p, n in zip(at, dilation, padding, steps, strict=True))
    places = []
    for i, (o, s, n) in enumerate(zip(out, stride, steps, strict=True)):
        ones = [1] * len(shape)
        ones[first + i] = o
        places.append(ar.mul(v.reshape(counting(o), tuple(ones)), float(s * n)))
    return v.expand(ar.add(ar.total(places), float(start)), shape)


@lowering(aten.max_pool2d_with_indices.default)
def _max_pool2d(metas: Any, x: Value, size: Sequence[int], *args: Any) -> list[Value]:
    return _max_pool(metas, x, per_dimension(size, 2), *args)


@lowering(aten.max_pool3d_with_indices.default)
def _max_pool3d(metas: Any, x: Value, size: Sequence[int], *args: Any) -> list[Value]:
    return _max_pool(metas, x, per_dimension(size, 3), *args)


@lowering(
    aten.max_pool2d_with_indices_backward.default, aten.max_pool3d_with_indices_backward.default,
)  # fmt: skip
def _max_pool_backward(
    meta: Meta, grad: Value, x: Value, size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool, indices: Value,
) -> Value:  # fmt: skip
    if 0 in meta.shape or not grad.numel:
        return Number(meta.shape, meta.dtype, 0.0)
    count = (
        len(size) if len(size) > 1 else (len(x.shape) - 1 if len(x.shape) < 4 else len(x.shape) - 2)
    )
    out = grad.shape[len(grad.shape) - count :]
    size, stride, padding, dilation, pads = _pool_geometry(x, size, stride, padding, dilation, out)
    inner = x.shape[len(x.shape) - count :]

    def placed(at: tuple[int, ...]) -> Value:
        number = _window_index(at, stride, padding, dilation, out, inner, grad.shape)
        own = ar.where(ar.eq(indices, number), grad, 0.0)
        part = typed(own, Meta(grad.shape, torch.float32))
        return _placed(part, at, stride, dilation, inner, pads)

    return typed(ar.total(placed(at) for at in _elements(size)), meta)


def _placed(
    part: Value, at: Sequence[int], stride: Sequence[int], dilation: Sequence[int], inner: Shape,
    pads: Sequence[tuple[int, int]],
) -> Value:  # fmt: skip
    """Elements of windows where they stand in the input, zeros elsewhere."""
    count = len(inner)
    first = len(part.shape) - count
    wide = tuple(n + a + b for n, (a, b) in zip(inner, pads, strict=True))
    shape = (*part.shape[:first], *wide)
    starts = [*[0] * first, *(k * d for k, d in zip(at, dilation, strict=True))]
    y = within(shape, 0.0, part, starts, [*[1] * first, *stride])
    for i, (n, (a, _)) in enumerate(zip(inner, pads, strict=True)):
        y = v.narrow(y, first + i, a, n)
    return y


def _counts(
    inner: Shape, out: Shape, size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    include: bool,
) -> list[np.ndarray]:  # fmt: skip
    """By dimension, how many elements a window counts."""
    counts = []
    for n, o, k, s, p in zip(inner, out, size, stride, padding, strict=True):
        start = np.arange(o) * s - p
        end = np.minimum(start + k, n + p)
        if not include:
            start, end = np.maximum(start, 0), np.minimum(end, n)
        counts.append(np.maximum(end - start, 1))
    return counts


def _scale(shape: Shape, counts: Sequence[np.ndarray], divisor: int | None) -> Value:
    if divisor:
        return Number(shape, torch.float32, 1.0 / divisor)
    total = counts[0]
    for c in counts[1:]:
        total = total[..., None] * c
    return v.expand(constant((1.0 / total).astype(np.float32)), shape)


def _avg_pool(
    meta: Meta, x: Value, size: Sequence[int], stride: Sequence[int] = (),
    padding: Sequence[int] = (0,), ceil_mode: bool = False, count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:  # fmt: skip
    out = meta.shape[len(meta.shape) - len(size) :]
    if 0 in meta.shape:
        return Number(meta.shape, meta.dtype, 0.0)
    size, stride, padding, ones, pads = _pool_geometry(x, size, stride, padding, (1,), out)
    wide = padded(x, pads, 0.0)
    total = ar.total(_shifted(wide, at, stride, ones, out) for at in _elements(size))
    inner = x.shape[len(x.shape) - len(out) :]
    counts = _counts(inner, out, size, stride, padding, count_include_pad)
    return typed(ar.mul(total, _scale(meta.shape, counts, divisor_override)), meta)


@lowering(aten.avg_pool1d.default)
def _avg_pool1d(meta: Meta, x: Value, size: Sequence[int], *args: Any) -> Value:
    return _avg_pool(meta, x, per_dimension(size, 1), *args)


@lowering(aten.avg_pool2d.default)
def _avg_pool2d(meta: Meta, x: Value, size: Sequence[int], *args: Any) -> Value:
    return _avg_pool(meta, x, per_dimension(size, 2), *args)


@lowering(aten.avg_pool3d.default)
def _avg_pool3d(meta: Meta, x: Value, size: Sequence[int], *args: Any) -> Value:
    return _avg_pool(meta, x, per_dimension(size, 3), *args)


@lowering(aten.avg_pool2d_backward.default, aten.avg_pool3d_backward.default)
def _avg_pool_backward(
    meta: Meta, grad: Value, x: Value, size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], ceil_mode: bool, count_include_pad: bool,
    divisor_override: int | None,
) -> Value:  # fmt: skip
    if 0 in meta.shape or not grad.numel:
        return Number(meta.shape, meta.dtype, 0.0)
    count = len(size) if len(size) > 1 else 2
    out = grad.shape[len(grad.shape) - count :]
    size, stride, padding, ones, pads = _pool_geometry(x, size, stride, padding, (1,), out)
    inner = x.shape[len(x.shape) - count :]
    counts = _counts(inner, out, size, stride, padding, count_include_pad)
    share = ar.mul(grad, _scale(grad.shape, counts, divisor_override))
    share = typed(share, Meta(grad.shape, torch.float32))
    placed = (_placed(share, at, stride, ones, inner, pads) for at in _elements(size))
    return typed(ar.total(placed), meta)


def _averages(n: int, out: int) -> Value:
    """[n, out]: what each element gives to each mean of an adaptive pool."""
    table = np.zeros((n, out), np.float32)
    for o in range(out):
        low, high = o * n // out, -(-(o + 1) * n // out)
        table[low:high, o] = 1.0 / (high - low)
    return constant(table)


@lowering(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default,
          aten.adaptive_avg_pool1d.default)  # fmt: skip
def _adaptive_avg_pool(meta: Meta, x: Value, size: Sequence[int]) -> Value:
    if 0 in meta.shape or not x.numel:
        return Number(meta.shape, meta.dtype, 0.0)
    first = len(x.shape) - len(size)
    y = x
    for d in range(first, len(x.shape)):
        if meta.shape[d] == 1:
            total = reduce("sum", y, (d,), keep=True, dtype=torch.float32)
            y = ar.mul(total, 1.0 / x.shape[d])
        elif meta.shape[d] != x.shape[d]:
            y = along(y, d, _averages(x.shape[d], meta.shape[d]))
    return typed(y, meta)


@lowering(aten._adaptive_avg_pool2d_backward.default, aten._adaptive_avg_pool3d_backward.default)
def _adaptive_avg_pool_backward(meta: Meta, grad: Value, x: Value) -> Value:
    if 0 in meta.shape or not grad.numel:
        return Number(meta.shape, meta.dtype, 0.0)
    y = grad
    for d in range(len(x.shape)):
        n, m = x.shape[d], grad.shape[d]
        if n == m:
            continue
        if m == 1:
            y = ar.mul(y, 1.0 / n)
            y = v.expand(y, (*y.shape[:d], n, *y.shape[d + 1 :]))
        else:
            y = along(y, d, v.copy(v.permute(_averages(n, m), (1, 0))))
    return typed(y, meta)
