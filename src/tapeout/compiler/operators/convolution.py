"""Convolution and its gradients, with the channels last in memory.

Images with enough channels go to the kernel for images. Few channels, and gradients of weights, are
products with a matrix of windows; channels that do not meet are sums over the taps.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tapeout.compiler import values as v
from tapeout.compiler.values import (
    Kernel,
    Number,
    Result,
    Shape,
    Value,
)
from tapeout.kernels.convolution import Axis
from tapeout.kernels.convolution import Shape as ImageShape

from . import arithmetic as ar
from .arithmetic import F32
from .parts import assemble, cat, padded
from .products import kernel_result, matmul, parts_of, passes_of, stored
from .reductions import reduce
from .registry import Meta, aten, lowering, typed
from .windows import per_dimension, spread_out, windows

MOST_TAPS = 128  # of a window whose channels are apart: its taps are written out
FEW_CHANNELS = 16  # below: the array would be mostly idle, windows are written out on chip
MOST_TOGETHER = 8  # windows of few channels that are one
WIDEST = 512  # outputs of such a window


def _outputs(
    x: Value, size: Sequence[int], stride: Sequence[int], pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Shape:  # fmt: skip
    return tuple(
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], size, stride, pads, dilation, strict=True)
    )


def _last(x: Value) -> Value:
    """[N, C, ..] with the channels last."""
    return v.permute(x, (0, *range(2, len(x.shape)), 1))


def _first(x: Value) -> Value:
    """[N, .., C] with the channels behind the batch."""
    rank = len(x.shape)
    return v.permute(x, (0, rank - 1, *range(1, rank - 1)))


def _convolve(
    x: Value, w: Value, stride: Sequence[int], pads: Sequence[tuple[int, int]],
    dilation: Sequence[int], groups: int, dtype: torch.dtype,
) -> Value:  # fmt: skip
    """x [N, C, ..] with w [O, C / groups, ..]: [N, O, ..], whose channels lie last."""
    size, part, outputs = w.shape[2:], w.shape[1], w.shape[0] // groups
    out = _outputs(x, size, stride, pads, dilation)
    if part == 1 and groups > 1 and math.prod(size) <= MOST_TAPS:
        return _depthwise(x, w, stride, pads, dilation, dtype, out)
    if part >= FEW_CHANNELS and len(size) <= 2:
        return _grouped(
            x, w, groups, lambda a, b: _images(a, b, stride, pads, dilation, dtype, out)
        )
    wide = padded(_stored_last(x), pads, 0.0)
    if len(size) <= 2:
        return _grouped(
            wide, w, groups, lambda a, b: _few_channels(a, b, stride, dilation, dtype, out)
        )

    def product(a: Value, b: Value) -> Value:
        rows = _patches(a, size, stride, dilation, out)
        right = v.reshape(v.copy(_taps_first(b)), (1, rows.shape[2], outputs))
        return _first(v.reshape(matmul(rows, right, dtype), (x.shape[0], *out, outputs)))

    return _grouped(wide, w, groups, product)


def _stored_last(x: Value) -> Value:
    """x [N, C, ..], where its channels are last in memory."""
    y = _last(x)
    lies = v.memory_order(y) == tuple(range(len(y.shape))) and not isinstance(y, Number)
    return x if lies else _first(v.copy(y))


def _taps_first(w: Value) -> Value:
    """[O, C, ..] as [.., C, O]."""
    return v.permute(w, (*range(2, len(w.shape)), 1, 0))


def _kernel_weights(w: Value) -> Value:
    """w [O, C, ..] of bf16 as the kernel takes it: [.., C, O]. The array turns it, then rows of O
    are put in order: elements one by one would be slow."""
    outputs, depth = w.shape[0], w.numel // w.shape[0]
    flat = v.reshape(stored(w), (1, outputs, depth))
    turned = Result((1, depth, outputs), w.dtype, Kernel("transpose", (flat,)))
    y = v.reshape(turned, (*w.shape[1:], outputs))
    rank = len(y.shape)
    return stored(v.permute(y, (*range(1, rank - 1), 0, rank - 1)))


def _grouped(
    x: Value, w: Value, groups: int, product: Callable[[Value, Value], Value]
) -> Value:  # fmt: skip
    """`product` of every group's channels, side by side."""
    if groups == 1:
        return product(x, w)
    channels, outputs = x.shape[1] // groups, w.shape[0] // groups
    parts = [
        _last(product(
            v.narrow(x, 1, g * channels, channels), v.narrow(w, 0, g * outputs, outputs)
        ))
        for g in range(groups)
    ]  # fmt: skip
    shape = (*parts[0].shape[:-1], w.shape[0])
    return _first(cat(Meta(shape, parts[0].dtype), parts, len(shape) - 1))


def _images(
    x: Value, w: Value, stride: Sequence[int], pads: Sequence[tuple[int, int]],
    dilation: Sequence[int], dtype: torch.dtype, out: Shape,
) -> Value:  # fmt: skip
    """One group by the kernel for images; a line is an image of one row."""
    x = padded(x, [(min(a, 0), min(b, 0)) for a, b in pads], 0.0)  # cuts
    axes = [
        Axis(n, o, k, s, d, max(0, before))
        for n, o, k, s, d, (before, _) in zip(
            x.shape[2:], out, w.shape[2:], stride, dilation, pads, strict=True
        )
    ]  # fmt: skip
    rows, columns = axes if len(axes) == 2 else (Axis(1, 1, 1), axes[0])
    passes = passes_of(x, w)
    left = [stored(p) for p in parts_of(_last(x), passes.need[0])]
    right = [_kernel_weights(p) for p in parts_of(w, passes.need[1])]
    few = x.shape[1] < FEW_CHANNELS
    shape = ImageShape(x.shape[0], rows, columns, x.shape[1], w.shape[0], few)
    inputs, given = passes.pairs(left, right), (x.shape[0], *out, w.shape[0])
    return _first(kernel_result("convolution", inputs, {"shape": shape}, given, dtype))


def _few_channels(
    x: Value, w: Value, stride: Sequence[int], dilation: Sequence[int], dtype: torch.dtype,
    out: Shape,
) -> Value:  # fmt: skip
    """One group of a padded x. Neighbours along the last dimension are outputs of one window, wide
    enough for all of them: their windows have most inputs in common, and each is a row on chip."""
    count, outputs, none = 1, w.shape[0], [(0, 0)] * len(out)
    if dilation[-1] == 1:
        while count < MOST_TOGETHER and not out[-1] % (2 * count) and 2 * count * outputs <= WIDEST:
            count *= 2
    if count == 1:
        return _images(x, w, stride, none, dilation, dtype, out)
    step, taps = stride[-1], w.shape[-1]
    shape = (count, *w.shape[:-1], (count - 1) * step + taps)  # [count, O, C, .., wider]
    dense = v.dense_strides(shape)
    rest: Value = Number(shape, w.dtype, 0.0)
    parts = [(w, dense[1:], i * (dense[0] + step)) for i in range(count)]
    wide = assemble(Meta(shape, w.dtype), [(rest, dense, 0), *parts])
    wide = v.reshape(wide, (count * outputs, *shape[2:]))
    fewer = (*out[:-1], out[-1] // count)
    y = _images(x, wide, (*stride[:-1], count * step), none, dilation, dtype, fewer)
    last = v.reshape(_last(y), (x.shape[0], *out, outputs))
    return _first(last)


def _patches(
    x: Value, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int], out: Shape
) -> Value:
    """[1, N * outputs, taps * C] of a padded x."""
    count = len(size)
    seen = windows(x, size, stride, dilation, out)  # [N, C, taps, outputs]
    taps, places = range(2, 2 + count), range(2 + count, 2 + 2 * count)
    y = v.copy(v.permute(seen, (0, *places, *taps, 1)))
    depth = math.prod(size) * x.shape[1]
    return v.reshape(y, (1, y.numel // depth, depth))


def _depthwise(
    x: Value, w: Value, stride: Sequence[int], pads: Sequence[tuple[int, int]],
    dilation: Sequence[int], dtype: torch.dtype, out: Shape,
) -> Value:  # fmt: skip
    """Each channel by itself: a sum over the taps, element by element."""
    outputs = w.shape[0] // x.shape[1]
    wide = _last(padded(_stored_last(x), pads, 0.0))
    if outputs > 1:  # channels [C, outputs]
        wide = v.expand(v.unsqueeze(wide, len(wide.shape)), (*wide.shape, outputs))
    weights = v.copy(v.retyped(v.reshape(_taps_first(w), (*w.shape[2:], w.shape[0])), F32))
    weights = v.reshape(weights, (*w.shape[2:], *wide.shape[1 + len(out) :]))
    y: Value | None = None
    for tap in itertools.product(*(range(k) for k in w.shape[2:])):
        here, weight = wide, weights
        for d, (k, s, t, o) in enumerate(zip(tap, stride, dilation, out, strict=True)):
            here = v.narrow(here, 1 + d, k * t, o, s)
            weight = v.select(weight, 0, k)
        y = ar.mul(here, weight) if y is None else ar.fma(here, weight, y)
    assert y is not None
    return _first(v.reshape(v.retyped(y, dtype), (x.shape[0], *out, w.shape[0])))


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
    wide = padded(_stored_last(x), pads, 0.0)
    channels, part = x.shape[1] // groups, grad.shape[1] // groups
    gradients = []
    for g in range(groups):
        rows = _patches(
            v.narrow(wide, 1, g * channels, channels), size, stride, dilation, out
        )  # [1, M, taps * C]
        left = _last(v.narrow(grad, 1, g * part, part))
        left = v.permute(v.reshape(left, (1, rows.shape[1], part)), (0, 2, 1))
        y = v.reshape(matmul(left, rows, meta.dtype), (part, *size, channels))
        gradients.append(_first(y))
    whole = gradients[0] if groups == 1 else cat(Meta(w.shape, meta.dtype), gradients, 0)
    return typed(whole, meta)
