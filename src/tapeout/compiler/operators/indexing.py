"""Operators that address tensors by number, as gathers, scatters, and comparisons with numbers."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from tapeout.compiler import values as v
from tapeout.compiler.values import (
    INT_MAX,
    Kernel,
    Map,
    Number,
    Result,
    Shape,
    Value,
    View,
)

from . import arithmetic as ar
from .constants import counting
from .parts import assemble
from .products import matmul, running_sum, stored
from .reductions import product, reduce
from .registry import Meta, Unsupported, aten, lowering, typed


def along(dim: int, shape: Shape) -> Value:
    """The index along one dimension, of the given shape."""
    ones = [1] * len(shape)
    ones[dim] = shape[dim]
    return v.expand(v.reshape(counting(shape[dim]), tuple(ones)), shape)


def wrapped(index: Value, size: int) -> Value:
    """Negative indices counted from the end."""
    return ar.where(ar.gt(0.0, index), ar.add(index, float(size)), index)


def _int32(index: Value) -> Value:
    """Whole numbers as the int32 that transfers take."""
    flat = stored(v.reshape(v.retyped(index, torch.float32), (index.numel,)))
    return Result(flat.shape, torch.int32, Kernel("to_int32", (flat,)))


def take_rows(table: Value, rows: int, index: Value) -> Value:
    """table, seen as [rows, width]: its rows by number, [index.numel, width]."""
    if rows > INT_MAX:
        raise Unsupported(f"a table of {rows} rows: numbers on the chip go up to {INT_MAX}")
    width = table.numel // rows if rows else 0
    shape = (index.numel, width)
    if 0 in shape or not rows:
        return Number(shape, table.dtype, 0.0)
    kernel = Kernel("gather", (stored(table), _int32(index)), {"width": width})
    return Result(shape, table.dtype, kernel)


def put_rows(table: Value, rows: int, index: Value, src: Value) -> Value:
    """table, seen as [rows, width], with rows replaced: src [index.numel, width], in order."""
    width = table.numel // rows if rows else 0
    if not index.numel or not width:
        return table
    inputs = (stored(table), _int32(index), stored(v.retyped(src, table.dtype)))
    return Result(table.shape, table.dtype, Kernel("scatter", inputs, {"width": width}))


def _indexed_first(
    x: Value, indices: Sequence[Value | None]
) -> tuple[Value, list[int], list[Value]]:
    """x with the indexed dimensions first; which they were; indices of one shape."""
    at = [d for d, i in enumerate(indices) if i is not None]
    rest = [d for d in range(len(x.shape)) if d not in at]
    given = [i for i in indices if i is not None]
    if any(i.dtype == torch.bool for i in given):
        raise Unsupported("an index that is a mask: the shape of its result depends on values")
    shape = tuple(torch.broadcast_shapes(*[i.shape for i in given]))
    return v.permute(x, (*at, *rest)), at, [v.expand(i, shape) for i in given]


def _linear(sizes: Sequence[int], index: Sequence[Value]) -> Value:
    """The row-major number of an element of dimensions `sizes`."""
    total: Value | None = None
    for n, i in zip(sizes, index, strict=True):
        i = wrapped(i, n)
        total = i if total is None else ar.fma(total, float(n), i)
    assert total is not None
    return total


def _shown(at: list[int], index_rank: int, rank: int) -> tuple[int, ...]:
    """Index dimensions come first here; the order in which PyTorch has them: at the first of
    indexed dimensions, if these are neighbours."""
    before = at[0] if at == list(range(at[0], at[0] + len(at))) else 0
    return (
        *range(index_rank, index_rank + before), *range(index_rank),
        *range(index_rank + before, rank),
    )  # fmt: skip


@lowering(aten.index.Tensor, aten._unsafe_index.Tensor)
def _index(meta: Meta, x: Value, indices: Sequence[Value | None]) -> Value:
    first, at, index = _indexed_first(x, indices)
    sizes = [x.shape[d] for d in at]
    rest = tuple(x.shape[d] for d in range(len(x.shape)) if d not in at)
    if 0 in meta.shape:
        return Number(meta.shape, meta.dtype, 0.0)
    rows = take_rows(first, math.prod(sizes), _linear(sizes, index))
    y = v.reshape(rows, (*index[0].shape, *rest))
    return v.permute(y, _shown(at, len(index[0].shape), len(y.shape)))


@lowering(aten.masked_scatter.default)
def _masked_scatter(meta: Meta, x: Value, mask: Value, source: Value) -> Value:
    """Elements of source, in order, where the mask holds."""
    if not meta.shape or 0 in meta.shape or not source.numel:
        if source.numel and 0 not in meta.shape:
            first = v.reshape(v.narrow(_flat(source), 0, 0, 1), meta.shape)
            return typed(ar.where(mask, first, x), meta)
        return x
    full = v.expand(mask, meta.shape)
    place = ar.minimum(ar.maximum(_place(_flat(full)), 0.0), float(source.numel - 1))
    picked = v.reshape(take_rows(source, source.numel, place), meta.shape)
    return typed(ar.where(full, picked, x), meta)


def _place(mask: Value) -> Value:
    """How many elements of a mask [n] hold before each that does."""
    return ar.sub(running_sum(mask, 0), 1.0)


def _flat(x: Value) -> Value:
    return v.reshape(x, (x.numel,))


@lowering(aten.masked_scatter_backward.default)
def _masked_scatter_backward(meta: Meta, grad: Value, mask: Value, sizes: Sequence[int]) -> Value:
    """Elements of grad where the mask holds, in order; the others go to one more row."""
    n = math.prod(sizes)
    full = v.expand(mask, grad.shape)
    if not n or not grad.numel:
        return Number(meta.shape, meta.dtype, 0.0)
    flat = _flat(full)
    place = ar.where(flat, ar.minimum(_place(flat), float(n)), float(n))
    source = v.reshape(grad, (grad.numel, 1))
    table = put_rows(v.copy(Number((n + 1,), grad.dtype, 0.0)), n + 1, place, source)
    return typed(v.reshape(v.narrow(table, 0, 0, n), meta.shape), meta)


@lowering(aten.scatter.reduce, aten.scatter.value_reduce)
def _scatter_how(
    meta: Meta,
    x: Value,
    dim: int,
    index: Value,
    src: Any,
    *,
    reduce: str,
) -> Value:
    how = {"add": "sum", "multiply": "prod"}[reduce]
    if not isinstance(src, Value):
        src = _source(src, index, x.dtype)
    return _scatter_reduce(meta, x, dim, index, src, how, True)


@lowering(aten.index_put.default, aten._unsafe_index_put.default)
def _index_put(
    meta: Meta, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False
) -> Value:
    masks = [i for i in indices if i is not None]
    if len(masks) == 1 and masks[0].dtype == torch.bool:
        return _masked_put(meta, x, indices, masks[0], values, accumulate)
    first, at, index = _indexed_first(x, indices)
    sizes = [x.shape[d] for d in at]
    rest = tuple(x.shape[d] for d in range(len(x.shape)) if d not in at)
    shape = (*index[0].shape, *rest)
    if 0 in shape:
        return x
    order = _shown(at, len(index[0].shape), len(shape))  # values broadcast to it
    src = v.permute(v.expand(values, tuple(shape[d] for d in order)), v.inverse(order))
    width = math.prod(rest)
    src = v.reshape(src, (index[0].numel, width))
    linear = _flat(_linear(sizes, index))
    rows = math.prod(sizes)
    if accumulate:
        table = v.reshape(first, (rows, width))
        y = typed(ar.add(table, summed_by(linear, rows, src)), Meta(table.shape, x.dtype))
    else:
        y = put_rows(v.reshape(first, (rows, width)), rows, linear, src)
    y = v.reshape(y, first.shape)
    return v.permute(y, v.inverse((*at, *(d for d in range(len(x.shape)) if d not in at))))


def _masked_put(
    meta: Meta, x: Value, indices: Sequence[Value | None], mask: Value, values: Value,
    accumulate: bool,
) -> Value:  # fmt: skip
    """Where a mask, over some neighbouring dimensions, holds: a number, or rows in order."""
    first = next(d for d, i in enumerate(indices) if i is not None)
    shape = (*[1] * first, *mask.shape, *[1] * (len(x.shape) - first - len(mask.shape)))
    whole = v.expand(v.reshape(mask, shape), x.shape)
    if values.numel == 1:
        given = v.expand(v.reshape(values, ()), x.shape)
    elif first == 0 and values.shape[1:] == x.shape[len(mask.shape) :]:
        place = ar.minimum(ar.maximum(_place(_flat(mask)), 0.0), values.shape[0] - 1.0)
        rows = take_rows(values, values.shape[0], place)
        given = v.reshape(rows, x.shape)
    else:
        raise Unsupported("values for a mask that do not come row by row")
    return typed(ar.where(whole, ar.add(x, given) if accumulate else given, x), meta)


def hits(index: Value, rows: int) -> Value:
    """[rows, index.numel]: 1 where an index is the row's number."""
    shape = (rows, index.numel)
    return ar.eq(v.expand(v.reshape(index, (1, index.numel)), shape), along(0, shape))


def summed_by(index: Value, rows: int, src: Value) -> Value:
    """[rows, width]: in each row the sum of the rows of src [n, width] with that number."""
    n, width = src.shape
    src = v.unsqueeze(v.retyped(src, torch.float32), 0)
    if rows > 2 * n:  # each row of src becomes the sum of all that go where it goes: order is open
        square = (n, n)
        target, other = (v.expand(v.reshape(index, s), square) for s in ((n, 1), (1, n)))
        hot = v.retyped(ar.eq(target, other), torch.bfloat16)
        sums = matmul(v.unsqueeze(hot, 0), src, torch.float32, precision="highest")
        zeros = v.copy(Number((rows, width), torch.float32, 0.0))
        return put_rows(zeros, rows, index, v.squeeze(sums, (0,)))
    hot = v.retyped(hits(index, rows), torch.bfloat16)
    total = matmul(v.unsqueeze(hot, 0), src, torch.float32, precision="highest")
    return v.squeeze(total, (0,))


@lowering(aten.embedding.default)
def _embedding(meta: Meta, weight: Value, index: Value, *_: Any, **__: Any) -> Value:
    rows = take_rows(weight, weight.shape[0], index)
    return v.reshape(rows, meta.shape)


@lowering(aten.index_select.default)
def _index_select(meta: Meta, x: Value, dim: int, index: Value) -> Value:
    if not x.shape:
        return v.expand(x, meta.shape)
    index = index if index.shape else v.unsqueeze(index, 0)
    indices: list[Value | None] = [None] * len(x.shape)
    indices[dim % len(x.shape)] = index
    return _index(meta, x, indices)


@lowering(aten.gather.default)
def _gather(meta: Meta, x: Value, dim: int, index: Value, **_: Any) -> Value:
    if 0 in meta.shape:
        return Number(meta.shape, meta.dtype, 0.0)
    if not x.shape:
        return v.expand(x, meta.shape)
    if _one_each(x, dim, index) and (isinstance(x, Map) or x.numel > INT_MAX):
        return typed(_chosen(x, dim % len(x.shape), index), meta)
    rows = take_rows(x, x.numel, _elements(x.shape, dim, index))
    return v.reshape(rows, meta.shape)


def _chosen(x: Value, dim: int, index: Value) -> Value:
    """One element of every line, without storing x: the sum of a line, the others as zeros; of an
    expression of one tensor, the expression of that tensor's."""
    if isinstance(x, Map) and _tensors(x) == 1:
        args = tuple(_chosen(a, dim, index) for a in x.args)
        return Map(index.shape, x.dtype, x.op, args)
    if isinstance(x, Number):
        return Number(index.shape, x.dtype, x.value)
    if isinstance(x, View) and x.strides[dim] == 0:
        return v.narrow(x, dim, 0, 1)
    hit = ar.eq(along(dim, x.shape), index)
    chosen = ar.where(hit, v.retyped(x, torch.float32), 0.0)
    return v.retyped(reduce("sum", chosen, (dim,), keep=True, dtype=torch.float32), x.dtype)


def _tensors(x: Value, depth: int = 8) -> int:
    """How many tensors an expression reads that have an element for each of its own; many, if it
    is a long one."""
    if isinstance(x, Map):
        return sum(_tensors(a, depth - 1) for a in x.args) if depth else 2
    return int(not isinstance(x, Number) and v.moves(v.as_view(x)))


def _one_each(x: Value, dim: int, index: Value) -> bool:
    """The index means one element of every line along a dimension."""
    if len(index.shape) != len(x.shape):
        return False
    dim %= len(x.shape)
    return index.shape == (*x.shape[:dim], 1, *x.shape[dim + 1 :])


def _elements(shape: Shape, dim: int, index: Value) -> Value:
    """Row-major numbers of the elements that `gather` and `scatter` mean."""
    dim %= len(shape)
    index = index if index.shape else v.unsqueeze(index, 0)
    strides = v.dense_strides(shape)
    total: Any = ar.mul(index, float(strides[dim]))
    for d in range(len(shape)):
        if d != dim and index.shape[d] > 1:
            total = ar.fma(along(d, index.shape), float(strides[d]), total)
    return total


def _source(src: Any, index: Value, dtype: torch.dtype) -> Value:
    """The part of src that the index covers."""
    if not isinstance(src, Value):
        return Number(index.shape, dtype, float(int(src) if dtype in v.INTS else src))
    for d, n in enumerate(index.shape):
        src = v.narrow(src, d, 0, n)
    return src


@lowering(aten.scatter.src, aten.scatter.value)
def _scatter(meta: Meta, x: Value, dim: int, index: Value, src: Any) -> Value:
    if not index.numel:
        return x
    if not x.shape:
        return typed(v.reshape(_source(src, index, x.dtype), ()), meta)
    if _one_each(x, dim, index):
        hit = ar.eq(along(dim % len(x.shape), x.shape), index)
        return typed(ar.where(hit, _source(src, index, x.dtype), x), meta)
    linear = _elements(x.shape, dim, index)
    source = v.reshape(_source(src, index, x.dtype), (index.numel, 1))
    return put_rows(v.copy(x), x.numel, linear, source)


def _by_target(x: Value, dim: int, index: Value, src: Value) -> tuple[Value, Value]:
    """(hit, src) over [.., target, entry ..]: whether an entry of src goes to a target.

    The dimension of targets comes at `dim`, that of entries behind it; others are as the index's.
    """
    shape = list(index.shape)
    shape.insert(dim, x.shape[dim])
    whole = tuple(shape)
    number = v.expand(v.unsqueeze(index, dim), whole)
    values = v.expand(v.unsqueeze(src, dim), whole)
    return ar.eq(number, along(dim, whole)), values


def _scatter_reduce(
    meta: Meta, x: Value, dim: int, index: Value, src: Value, how: str, include_self: bool
) -> Value:
    if not index.numel:
        return x
    if not x.shape:
        x, index, src = (v.unsqueeze(t, 0) if not t.shape else t for t in (x, index, src))
    dim %= len(x.shape)
    source = _source(src, index, x.dtype)
    hit, values = _by_target(x, dim, index, source)
    entries = dim + 1
    inside = x
    for d, n in enumerate(index.shape):
        if d != dim:
            inside = v.narrow(inside, d, 0, n)
    f32 = torch.float32
    count = v.squeeze(reduce("sum", hit, (entries,), keep=True, dtype=f32), (entries,))
    some = ar.gt(count, 0.0)
    if how in ("amax", "amin"):
        flip = ar.negative if how == "amin" else (lambda y: y)
        best = reduce("max", ar.where(hit, flip(values), -math.inf), (entries,), keep=True)
        y = v.squeeze(best, (entries,))
        if include_self:
            y = ar.maximum(y, flip(inside))
        y = flip(y)
    elif how == "prod":
        y = v.squeeze(product(ar.where(hit, values, 1.0), entries), (entries,))
        y = ar.mul(y, inside) if include_self else y
    else:
        total = reduce("sum", ar.where(hit, values, 0.0), (entries,), keep=True, dtype=f32)
        y = v.squeeze(total, (entries,))
        y = ar.add(y, inside) if include_self else y
        if how == "mean":
            divisor = ar.add(count, 1.0) if include_self else ar.maximum(count, 1.0)
            f = ar.floor_divide if meta.dtype in v.INTS else ar.divide
            y = f(y, divisor)
    y = typed(ar.where(some, y, inside), Meta(inside.shape, x.dtype))
    strides = v.dense_strides(x.shape)
    return v.reshape(
        assemble(Meta(x.shape, x.dtype), [(x, strides, 0), (y, strides, 0)]), meta.shape
    )


@lowering(aten.scatter_add.default)
def _scatter_add(meta: Meta, x: Value, dim: int, index: Value, src: Value) -> Value:
    return _scatter_reduce(meta, x, dim, index, src, "sum", True)


@lowering(aten.scatter_reduce.two)
def _scatter_reduce_two(
    meta: Meta, x: Value, dim: int, index: Value, src: Value, reduce: str, *,
    include_self: bool = True,
) -> Value:  # fmt: skip
    return _scatter_reduce(meta, x, dim, index, src, reduce, include_self)
