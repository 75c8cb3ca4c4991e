"""Tensors of a graph before they have a place: expressions over views of buffers.

A `Buffer` is dense and row-major. A `View` addresses what its source would hold if it were stored
so: element i of the view is element `offset + sum(i[d] * strides[d])` of the source. Everything
else is computed element by element (`Map`), along dimensions (`Reduce`), or by a kernel of its own
(`Result`). Nothing is decided here about what is stored; `schedule` does that.

Integers are held as fp32 numbers, exact up to 2^24 in magnitude; booleans as 0 and 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tapeout.isa.dma import HbmFormat

INT_MAX = 1 << 24  # the largest magnitude up to which fp32 holds every integer

Shape = tuple[int, ...]

FLOATS = (torch.float32, torch.bfloat16)
INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
DTYPES = (*FLOATS, *INTS, torch.bool)


def item_bytes(dtype: torch.dtype) -> int:
    """Bytes of an element in HBM: bf16 and booleans two, fp32 and integers four."""
    return 2 if dtype in (torch.bfloat16, torch.bool) else 4


def hbm_format(dtype: torch.dtype) -> HbmFormat:
    """How elements of a type lie in HBM."""
    return HbmFormat.BF16 if item_bytes(dtype) == 2 else HbmFormat.FP32


def numel(shape: Shape) -> int:
    return math.prod(shape)


def dense_strides(shape: Shape) -> Shape:
    """Strides, in elements, of a row-major tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


@dataclass(eq=False, frozen=True, repr=False)
class Value:
    """A tensor of `shape`; compared by identity."""

    shape: Shape
    dtype: torch.dtype

    def __repr__(self) -> str:  # what it is computed of can be a whole model
        what = getattr(self, "op", None) or getattr(self, "name", "")
        return f"<{type(self).__name__} {what} {list(self.shape)} {self.dtype}>"

    def __post_init__(self) -> None:
        assert self.dtype in DTYPES, self.dtype

    @property
    def numel(self) -> int:
        return numel(self.shape)

    @property
    def bytes(self) -> int:
        """Of HBM, where it is stored."""
        return item_bytes(self.dtype) * self.numel


@dataclass(eq=False, frozen=True, repr=False)
class Buffer(Value):
    """Memory in HBM.

    Attributes:
        data: what it always holds, where that is known.
        order: of an input that is not row-major, its dimensions as they lie, outermost first; the
            buffer's own are in that order.
    """

    name: str
    data: np.ndarray | None = None
    order: tuple[int, ...] = ()


@dataclass(eq=False, frozen=True, repr=False)
class Number(Value):
    """The same number everywhere."""

    value: float


@dataclass(eq=False, frozen=True, repr=False)
class Map(Value):
    """`op` of its arguments, element by element; they have the map's shape.

    Operations: those of `kernels.rowprogram.OPS`.
    """

    op: str
    args: tuple[Value, ...]


@dataclass(eq=False, frozen=True, repr=False)
class Reduce(Value):
    """`op` ("sum" or "max") of `arg` along `dims`, which stay as dimensions of size 1."""

    op: str
    arg: Value
    dims: tuple[int, ...]


@dataclass(eq=False, frozen=True, repr=False)
class Kernel:
    """An operation with a kernel of its own, over stored tensors."""

    op: str
    inputs: tuple[Value, ...]
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False, frozen=True, repr=False)
class Result(Value):
    """What a kernel gives."""

    kernel: Kernel


@dataclass(eq=False, frozen=True, repr=False)
class View(Value):
    """See the module."""

    source: Value
    strides: Shape
    offset: int = 0


def inputs_of(v: Value) -> tuple[Value, ...]:
    if isinstance(v, Map):
        return v.args
    if isinstance(v, Reduce):
        return (v.arg,)
    if isinstance(v, View):
        return (v.source,)
    if isinstance(v, Result):
        return v.kernel.inputs
    return ()


def topological(
    outputs: Sequence[Value], into: Callable[[Value], bool] = lambda _: True
) -> list[Value]:
    """The outputs and all values that they need, each behind what it needs; what values need that
    `into` does not hold of is left out."""
    order: list[Value] = []
    seen: set[Value] = set()
    stack: list[tuple[Value, bool]] = [(v, False) for v in reversed(outputs)]
    while stack:
        v, done = stack.pop()
        if done:
            order.append(v)
            continue
        if v in seen:
            continue
        seen.add(v)
        stack.append((v, True))
        if into(v):
            stack.extend((i, False) for i in reversed(inputs_of(v)) if i not in seen)
    return order


def users_of(order: Sequence[Value]) -> dict[Value, list[Value]]:
    """For each value the others that need it, each once."""
    users: dict[Value, list[Value]] = {}
    for v in order:
        for i in dict.fromkeys(inputs_of(v)):
            users.setdefault(i, []).append(v)
    return users


# --- views --------------------------------------------------------------------------------------


def as_view(v: Value) -> View:
    """`v` as a view, of itself if it is none."""
    return v if isinstance(v, View) else View(v.shape, v.dtype, v, dense_strides(v.shape))


def moved(v: Value, shape: Shape, strides: Shape, offset: int) -> Value:
    """`v` shown with other strides of its source."""
    if isinstance(v, Number):
        return Number(shape, v.dtype, v.value)
    view = as_view(v)
    if shape == view.source.shape and offset == 0 and _same_strides(view.source, strides):
        return view.source
    return View(shape, v.dtype, view.source, strides, offset)


def _same_strides(source: Value, strides: Shape) -> bool:
    dense = dense_strides(source.shape)
    return all(n == 1 or a == b for n, a, b in zip(source.shape, dense, strides, strict=True))


def regroups(view: View) -> bool:
    """The view shows the elements of its source, all and in order, perhaps in another shape."""
    dense = zip(view.shape, view.strides, dense_strides(view.shape), strict=True)
    return (
        view.numel == view.source.numel
        and not view.offset
        and all(n == 1 or a == b for n, a, b in dense)
    )


def permute(v: Value, dims: tuple[int, ...]) -> Value:
    view = as_view(v)
    return moved(
        v, tuple(v.shape[d] for d in dims), tuple(view.strides[d] for d in dims), view.offset
    )


def memory_order(v: Value) -> tuple[int, ...]:
    """Dimensions as the elements lie, the outermost first."""
    if not isinstance(v, View):
        return tuple(range(len(v.shape)))
    steps = [abs(s) if n > 1 else 0 for n, s in zip(v.shape, v.strides, strict=True)]
    left = [s for s in steps if s]
    if left == sorted(left, reverse=True):
        return tuple(range(len(steps)))
    at = iter(sorted((d for d, s in enumerate(steps) if s), key=lambda d: -steps[d]))
    return tuple(next(at) if s else d for d, s in enumerate(steps))


def dim_last(rank: int, dim: int) -> tuple[int, ...]:
    """The order of dimensions that has `dim` last."""
    return (*(d for d in range(rank) if d != dim), dim)


def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes one."""
    return tuple(order.index(d) for d in range(len(order)))


def expand(v: Value, shape: Shape) -> Value:
    """Broadcast to `shape`, as PyTorch does: new dimensions come first."""
    if v.shape == shape:
        return v
    view = as_view(v)
    new = len(shape) - len(v.shape)
    strides = [0] * new
    for size, want, stride in zip(v.shape, shape[new:], view.strides, strict=True):
        strides.append(stride if size == want else 0)
    return moved(v, shape, tuple(strides), view.offset)


def narrow(v: Value, dim: int, start: int, length: int, step: int = 1) -> Value:
    """Elements start, start + step, ... of dimension `dim`; a negative step goes backwards."""
    view = as_view(v)
    shape, strides = list(v.shape), list(view.strides)
    offset = view.offset + start * strides[dim]
    shape[dim], strides[dim] = length, strides[dim] * step
    return moved(v, tuple(shape), tuple(strides), offset)


def select(v: Value, dim: int, index: int) -> Value:
    return squeeze(narrow(v, dim, index, 1), (dim,))


def squeeze(v: Value, dims: tuple[int, ...]) -> Value:
    view = as_view(v)
    keep = [d for d in range(len(v.shape)) if d not in dims]
    assert all(v.shape[d] == 1 for d in dims)
    return moved(
        v, tuple(v.shape[d] for d in keep), tuple(view.strides[d] for d in keep), view.offset
    )


def unsqueeze(v: Value, dim: int) -> Value:
    view = as_view(v)
    shape, strides = list(v.shape), list(view.strides)
    shape.insert(dim, 1)
    strides.insert(dim, 0)
    return moved(v, tuple(shape), tuple(strides), view.offset)


def reshape_strides(shape: Shape, strides: Shape, new: Shape) -> Shape | None:
    """Strides that show the same elements in the same order as `new`; None: there are none."""
    old = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    runs: list[list[int]] = []  # (elements, stride of the last) of runs that are one dimension
    for n, s in old:
        if runs and runs[-1][1] == s * n:
            runs[-1] = [runs[-1][0] * n, s]
        else:
            runs.append([n, s])
    out: list[int] = []
    at = len(runs) - 1
    left, step = runs[at] if runs else (1, 0)
    for n in reversed(new):
        if n == 1:
            out.append(0)
            continue
        if left == 1 and at > 0:
            at -= 1
            left, step = runs[at]
        if left % n:
            return None
        out.append(step)
        left, step = left // n, step * n
    return tuple(reversed(out))


def reshape(v: Value, new: Shape) -> Value:
    """The elements of `v` in row-major order as `new`; what no strides show is copied first."""
    if v.shape == new:
        return v
    if isinstance(v, Number) or v.numel == 0:
        return moved(v, new, dense_strides(new), 0)
    view = as_view(v)
    strides = reshape_strides(v.shape, view.strides, new)
    if strides is not None:
        return moved(v, new, strides, view.offset)
    # Copied in an order near that of its elements, if `new` can be seen in it.
    lying = memory_order(v)
    last = tuple(d for d in lying if d >= len(lying) - 2)
    for order in (lying, (*range(len(lying) - len(last)), *last)):
        packed = dense_strides(tuple(v.shape[d] for d in order))
        strides = reshape_strides(v.shape, tuple(packed[d] for d in inverse(order)), new)
        if strides is not None:
            return View(new, v.dtype, copy(permute(v, order)), strides)
    return View(new, v.dtype, copy(v), dense_strides(new))


def copy(v: Value) -> Value:
    """`v` element by element: a dense tensor once it is stored."""
    return Map(v.shape, v.dtype, "copy", (v,))


def mapped(op: str, args: tuple[Value, ...], dtype: torch.dtype) -> Value:
    """`op` of values of one shape, stored in the order in which the first of them lies."""
    whole = (a for a in args if isinstance(a, View) and a.numel > 1 and moves(a))
    order = memory_order(next(whole, args[0]))
    if order == tuple(range(len(order))):
        return Map(args[0].shape, dtype, op, args)
    turned = tuple(permute(a, order) for a in args)
    return permute(Map(turned[0].shape, dtype, op, turned), inverse(order))


def moves(v: View) -> bool:
    """No dimension shows the same elements again."""
    return all(n == 1 or s for n, s in zip(v.shape, v.strides, strict=True))


def retyped(v: Value, dtype: torch.dtype) -> Value:
    """The same numbers as another type that holds them."""
    return v if v.dtype == dtype else mapped("copy", (v,), dtype)


def number(value: float, dtype: torch.dtype, shape: Shape = ()) -> Number:
    return Number(shape, dtype, float(value))
