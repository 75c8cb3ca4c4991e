"""Windows over the last dimensions of a tensor, for convolution and pooling."""

from collections.abc import Sequence

from tapeout.compiler import values as v
from tapeout.compiler.values import (
    Number,
    Shape,
    Value,
    View,
)

from .parts import assemble
from .registry import Meta


def per_dimension(value: Sequence[int], count: int) -> list[int]:
    return list(value) * count if len(value) == 1 else list(value)


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
    strides = v.dense_strides(shape)
    offset = sum(a * s for (a, _), s in zip(grow, strides[first:], strict=True))
    border = Number(shape, x.dtype, fill)
    return assemble(Meta(shape, x.dtype), [(border, strides, 0), (x, strides, offset)])


def windows(
    x: Value, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int], out: Shape
) -> Value:
    """[.., window dims, output dims] of the last dimensions of x."""
    view = v.as_view(x)
    first = len(x.shape) - len(size)
    inner = view.strides[first:]
    shape = (*x.shape[:first], *size, *out)
    strides = (
        *view.strides[:first],
        *(s * d for s, d in zip(inner, dilation, strict=True)),
        *(s * t for s, t in zip(inner, stride, strict=True)),
    )
    if isinstance(x, Number):
        return Number(shape, x.dtype, x.value)
    return View(shape, x.dtype, view.source, strides, view.offset)


def spread_out(x: Value, stride: Sequence[int]) -> Value:
    """The last dimensions of x with stride - 1 zeros between elements."""
    if all(s == 1 for s in stride):
        return x
    first = len(x.shape) - len(stride)
    shape = (
        *x.shape[:first],
        *((n - 1) * s + 1 for n, s in zip(x.shape[first:], stride, strict=True)),
    )
    dense = v.dense_strides(shape)
    strides = (*dense[:first], *(a * s for a, s in zip(dense[first:], stride, strict=True)))
    zeros = Number(shape, x.dtype, 0.0)
    return assemble(Meta(shape, x.dtype), [(zeros, dense, 0), (x, strides, 0)])
