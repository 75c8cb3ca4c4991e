"""Tensors put together from parts."""

from collections.abc import Sequence
from typing import Any

from tapeout.compiler import values as v
from tapeout.compiler.values import (
    Kernel,
    Number,
    Result,
    Shape,
    Value,
)

from .registry import Meta, aten, cast, lowering, slice_range


def assemble(meta: Meta, parts: Sequence[tuple[Value, Shape, int]]) -> Value:
    """A tensor into which parts are written one after another.

    Args:
        parts: value, strides and offset (elements of the result) of where it goes.
    """
    kept = [p for p in parts if p[0].numel]
    if not kept:
        return Number(meta.shape, meta.dtype, 0.0)
    kernel = Kernel(
        "assemble",
        tuple(v.retyped(p, meta.dtype) for p, _, _ in kept),
        {"places": [(strides, offset) for _, strides, offset in kept]},
    )
    return Result(meta.shape, meta.dtype, kernel)


@lowering(aten.cat.default)
def cat(meta: Meta, tensors: Sequence[Value], dim: int = 0) -> Value:
    tensors = [t for t in tensors if t.shape != (0,) or len(meta.shape) == 1]
    dim %= max(len(meta.shape), 1)
    strides = v.dense_strides(meta.shape)
    parts, at = [], 0
    for t in tensors:
        parts.append((t, strides, at * strides[dim]))
        at += t.shape[dim]
    return assemble(meta, parts)


def within(
    shape: Shape, fill: float, part: Value, starts: Sequence[int], steps: Sequence[int]
) -> Value:  # fmt: skip
    """A tensor of one number with a part written into it, in the order in which the part lies.

    Args:
        starts, steps: element i of a dimension of the part stands at start + i * step.
    """
    order = v.memory_order(part)
    turned = tuple(shape[d] for d in order)
    dense = v.dense_strides(turned)
    low, step = [starts[d] for d in order], [steps[d] for d in order]
    inner = v.permute(part, order)
    borders: list[tuple[Value, Shape, int]] = [(Number(turned, part.dtype, fill), dense, 0)]
    if all(s == 1 for s in step):
        borders = _borders(turned, fill, inner, low)
    strides = tuple(s * t for s, t in zip(dense, step, strict=True))
    offset = sum(s * a for s, a in zip(dense, low, strict=True))
    whole = assemble(Meta(turned, part.dtype), [*borders, (inner, strides, offset)])
    return v.permute(whole, v.inverse(order))


def _borders(
    shape: Shape, fill: float, inner: Value, starts: Sequence[int]
) -> list[tuple[Value, Shape, int]]:  # fmt: skip
    """What surrounds `inner`, as parts: in front of it and behind it along each dimension, over all
    of the dimensions that follow and over its own part of those before."""
    dense = v.dense_strides(shape)
    parts: list[tuple[Value, Shape, int]] = []
    for d, (n, size, first) in enumerate(zip(shape, inner.shape, starts, strict=True)):
        at = sum(s * a for s, a in zip(dense[:d], starts, strict=False))
        for low, count in ((0, first), (first + size, n - first - size)):
            if count:
                strip = (*inner.shape[:d], count, *shape[d + 1 :])
                parts.append((Number(strip, inner.dtype, fill), dense, at + low * dense[d]))
    return parts


def padded(x: Value, pads: Sequence[tuple[int, int]], fill: float) -> Value:
    """x with (before, after) elements around its last dimensions; negative ones cut off."""
    first = len(x.shape) - len(pads)
    for i, (before, after) in enumerate(pads):
        low, high = max(0, -before), x.shape[first + i] - max(0, -after)
        x = v.narrow(x, first + i, low, high - low)
    grow = [(max(0, a), max(0, b)) for a, b in pads]
    if not any(a or b for a, b in grow):
        return x
    shape = (
        *x.shape[:first],
        *(n + a + b for n, (a, b) in zip(x.shape[first:], grow, strict=True)),
    )
    starts = [*[0] * first, *(a for a, _ in grow)]
    return within(shape, fill, x, starts, [1] * len(shape))


@lowering(aten.constant_pad_nd.default)
def _pad(meta: Meta, x: Value, pad: Sequence[int], value: float = 0) -> Value:
    return padded(x, list(zip(pad[::2], pad[1::2], strict=True))[::-1], float(value))


@lowering(aten.slice_scatter.default)
def _slice_scatter(
    meta: Meta, x: Value, src: Value, dim: int = 0, start: int | None = None,
    end: int | None = None, step: int = 1,
) -> Value:  # fmt: skip
    dim %= len(x.shape)
    low, _ = slice_range(x.shape[dim], start, end, step)
    strides = list(v.dense_strides(meta.shape))
    offset = low * strides[dim]
    inner = tuple(s * step if d == dim else s for d, s in enumerate(strides))
    return assemble(meta, [(x, tuple(strides), 0), (src, inner, offset)])


@lowering(aten.select_scatter.default)
def _select_scatter(meta: Meta, x: Value, src: Value, dim: int, index: int) -> Value:
    dim %= len(x.shape)
    return _slice_scatter(meta, x, v.unsqueeze(src, dim), dim, index % x.shape[dim],
                          index % x.shape[dim] + 1)  # fmt: skip


@lowering(aten.as_strided_scatter.default)
def _as_strided_scatter(
    meta: Meta, x: Value, src: Value, size: Sequence[int], stride: Sequence[int],
    offset: int | None = None,
) -> Value:  # fmt: skip
    view = v.as_view(x)
    start = view.offset if offset is None else offset
    return assemble(meta, [(x, v.dense_strides(meta.shape), 0), (src, tuple(stride), start)])


@lowering(aten.copy.default)
def _copy(meta: Meta, x: Value, src: Value, *_: Any) -> Value:
    return cast(src, meta)


@lowering(aten.repeat.default)
def _repeat(meta: Meta, x: Value, repeats: Sequence[int]) -> Value:
    if not meta.shape:
        return x
    if 0 in meta.shape:
        return Number(meta.shape, meta.dtype, 0.0)
    while len(x.shape) < len(repeats):
        x = v.unsqueeze(x, 0)
    shape: list[int] = []
    for n, r in zip(x.shape, repeats, strict=True):
        shape += [r, n]
    for d in range(len(repeats)):
        x = v.unsqueeze(x, 2 * d)
    return v.reshape(v.expand(x, tuple(shape)), meta.shape)
