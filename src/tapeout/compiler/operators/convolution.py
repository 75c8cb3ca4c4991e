"""Convolution and its gradients as products of matrices of windows."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from tapeout.compiler import values as v
from tapeout.compiler.values import (
    Number,
    Shape,
    Value,
)

from . import arithmetic as ar
from .parts import padded
from .products import matmul
from .reductions import reduce
from .registry import Meta, aten, lowering, typed
from .windows import per_dimension, spread_out, windows


def _columns(
    x: Value, groups: int, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
    out: Shape,
) -> Value:  # fmt: skip
    """[batch * groups, channels of a group * window, outputs] of a padded x."""
    n, channels = x.shape[:2]
    part = channels // groups
    return v.reshape(
        windows(x, size, stride, dilation, out),
        (n * groups, part * math.prod(size), math.prod(out)),
    )


def _convolve(
    x: Value, w: Value, stride: Sequence[int], pads: Sequence[tuple[int, int]],
    dilation: Sequence[int], groups: int, dtype: torch.dtype,
) -> Value:  # fmt: skip
    """x [N, C, ..] with w [O, C / groups, ..]: [N, O, ..]."""
    size = w.shape[2:]
    x = padded(x, pads, 0.0)
    out = tuple(
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], size, stride, dilation, strict=True)
    )
    columns = _columns(x, groups, size, stride, dilation, out)
    outputs = w.shape[0] // groups
    weights = v.reshape(w, (groups, outputs, columns.shape[1]))
    y = matmul(weights, columns, dtype)
    return v.reshape(y, (x.shape[0], w.shape[0], *out))


def _turned(w: Value, groups: int) -> Value:
    """w [I, O / groups, ..] of a transposed convolution as [O, I / groups, ..], mirrored."""
    inputs, part = w.shape[0], w.shape[1]
    size = w.shape[2:]
    y = v.reshape(w, (groups, inputs // groups, part, *size))
    y = v.permute(y, (0, 2, 1, *range(3, 3 + len(size))))
    for d, n in enumerate(size):
        y = v.narrow(y, 3 + d, n - 1, n, -1)
    return v.reshape(y, (groups * part, inputs // groups, *size))


def _transposed(
    x: Value, w: Value, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    extra: Sequence[int], groups: int, dtype: torch.dtype,
) -> Value:  # fmt: skip
    """The transpose of a convolution with w [I, O / groups, ..]; `extra` outputs at the end."""
    wide = spread_out(x, stride)
    pads = [
        (d * (k - 1) - p, d * (k - 1) - p + e)
        for k, p, d, e in zip(w.shape[2:], padding, dilation, extra, strict=True)
    ]
    ones = [1] * len(pads)
    return _convolve(wide, _turned(w, groups), ones, pads, dilation, groups, dtype)


@lowering(aten.convolution.default)
def _convolution(
    meta: Meta, x: Value, w: Value, bias: Value | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool,
    output_padding: Sequence[int], groups: int,
) -> Value:  # fmt: skip
    if 0 in meta.shape or not x.numel:
        return _only_bias(meta, bias)
    count = len(w.shape) - 2
    stride, padding, dilation, extra = (
        per_dimension(p, count) for p in (stride, padding, dilation, output_padding)
    )
    if transposed:
        y = _transposed(x, w, stride, padding, dilation, extra, groups, meta.dtype)
    else:
        y = _convolve(x, w, stride, [(p, p) for p in padding], dilation, groups, meta.dtype)
    if bias is not None:
        y = typed(ar.add(y, v.reshape(bias, (bias.shape[0], *[1] * count))), meta)
    return typed(y, meta)


def _only_bias(meta: Meta, bias: Value | None) -> Value:
    if bias is None or 0 in meta.shape:
        return Number(meta.shape, meta.dtype, 0.0)
    return typed(v.reshape(bias, (bias.shape[0], *[1] * (len(meta.shape) - 2))), meta)


@lowering(aten.convolution_backward.default)
def _convolution_backward(
    metas: Any, grad: Value, x: Value, w: Value, bias_sizes: Any, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], transposed: bool,
    output_padding: Sequence[int], groups: int, mask: Sequence[bool],
) -> list[Value | None]:  # fmt: skip
    count = len(w.shape) - 2
    stride, padding, dilation = (per_dimension(p, count) for p in (stride, padding, dilation))
    out: list[Value | None] = [None, None, None]
    pads = [(p, p) for p in padding]
    if 0 in grad.shape or not x.numel:
        return [Number(m.shape, m.dtype, 0.0) if wanted else None
                for m, wanted in zip(metas, mask, strict=True)]  # fmt: skip
    if mask[0]:
        if transposed:
            y = _convolve(grad, w, stride, pads, dilation, groups, metas[0].dtype)
            y = _cropped(y, x.shape)
        else:
            extra = [
                n - ((g - 1) * s - 2 * p + d * (k - 1) + 1)
                for n, g, s, p, d, k in zip(
                    x.shape[2:], grad.shape[2:], stride, padding, dilation, w.shape[2:],
                    strict=True,
                )
            ]  # fmt: skip
            y = _transposed(grad, w, stride, padding, dilation, extra, groups, metas[0].dtype)
        out[0] = typed(y, metas[0])
    if mask[1]:
        moving, still = (grad, x) if transposed else (x, grad)
        out[1] = _weight_gradient(metas[1], moving, still, w, stride, pads, dilation, groups)
    if mask[2]:
        dims = (0, *range(2, 2 + count))
        total = reduce("sum", grad, dims, keep=False, dtype=torch.float32)
        out[2] = typed(total, metas[2])
    return out


def _cropped(y: Value, shape: Shape) -> Value:
    for d, n in enumerate(shape):
        if y.shape[d] > n:
            y = v.narrow(y, d, 0, n)
    return y


def _weight_gradient(
    meta: Meta, x: Value, grad: Value, w: Value, stride: Sequence[int],
    pads: Sequence[tuple[int, int]], dilation: Sequence[int], groups: int,
) -> Value:  # fmt: skip
    """Of a convolution that took x to what has the gradient `grad`."""
    size, out = w.shape[2:], grad.shape[2:]
    n = x.shape[0]
    columns = _columns(padded(x, pads, 0.0), groups, size, stride, dilation, out)
    depth, places = columns.shape[1:]
    columns = v.permute(v.reshape(columns, (n, groups, depth, places)), (1, 0, 3, 2))
    right = v.reshape(columns, (groups, n * places, depth))
    part = grad.shape[1] // groups
    left = v.permute(v.reshape(grad, (n, groups, part, places)), (1, 2, 0, 3))
    left = v.reshape(left, (groups, part, n * places))
    return typed(v.reshape(matmul(left, right, meta.dtype), w.shape), meta)
