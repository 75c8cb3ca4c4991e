"""Windows over the last dimensions of a tensor, for convolution and pooling."""

from collections.abc import Sequence

from tapeout.compiler import values as v
from tapeout.compiler.values import (
    Number,
    Shape,
    Value,
    View,
)

from .parts import within


def per_dimension(value: Sequence[int], count: int) -> list[int]:
    return list(value) * count if len(value) == 1 else list(value)


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
    return within(shape, 0.0, x, [0] * len(shape), [*[1] * first, *stride])
