"""Systems of linear equations with a triangular matrix."""

from typing import Any

from tapeout.compiler import values as v
from tapeout.compiler.values import Number, Value

from . import arithmetic as ar
from .arithmetic import F32
from .parts import cat
from .products import matmul
from .registry import Meta, aten, lowering, typed

WRITTEN_OUT = 8  # unknowns that are solved one after another; more are halved


@lowering(aten.linalg_solve_triangular.default)
def _solve_triangular(
    meta: Meta, a: Value, b: Value, *, upper: bool, left: bool = True, unitriangular: bool = False,
    **_: Any,
) -> Value:  # fmt: skip
    """x with a x = b, by substitution; `left` False: x a = b."""
    if 0 in meta.shape:
        return Number(meta.shape, meta.dtype, 0.0)
    batch = meta.shape[:-2]
    a = v.reshape(v.expand(a, (*batch, *a.shape[-2:])), (v.numel(batch), *a.shape[-2:]))
    b = v.reshape(b, (v.numel(batch), *b.shape[-2:]))
    if not left:
        a, b, upper = v.permute(a, (0, 2, 1)), v.permute(b, (0, 2, 1)), not upper
    n = a.shape[1]
    if upper:
        a = v.narrow(v.narrow(a, 1, n - 1, n, -1), 2, n - 1, n, -1)
        b = v.narrow(b, 1, n - 1, n, -1)
    x = _forward(a, b, unitriangular)
    if upper:
        x = v.narrow(x, 1, n - 1, n, -1)
    if not left:
        x = v.permute(x, (0, 2, 1))
    return typed(v.reshape(x, meta.shape), meta)


def _forward(a: Value, b: Value, unit: bool) -> Value:
    """Lower triangles: the first half of the unknowns, then the others with those put in."""
    n = b.shape[1]
    shape = Meta(b.shape, F32)
    if n <= WRITTEN_OUT:
        return typed(cat(shape, _one_by_one(a, b, unit), 1), shape)
    half = n // 2
    low, high = v.narrow(b, 1, 0, half), v.narrow(b, 1, half, n - half)
    first = _forward(_block(a, 0, 0, half, half), low, unit)
    known = matmul(_block(a, half, 0, n - half, half), first, F32, precision="highest")
    rest = ar.sub(high, known)
    second = _forward(_block(a, half, half, n - half, n - half), rest, unit)
    return cat(shape, [first, second], 1)


def _one_by_one(a: Value, b: Value, unit: bool) -> list[Value]:
    rows: list[Value] = []
    for i in range(b.shape[1]):
        x = v.retyped(v.narrow(b, 1, i, 1), F32)
        for j, known in enumerate(rows):
            x = ar.fma(ar.negative(_block(a, i, j, 1, 1)), known, x)
        rows.append(x if unit else ar.divide(x, _block(a, i, i, 1, 1)))
    return rows


def _block(a: Value, row: int, column: int, rows: int, columns: int) -> Value:
    return v.narrow(v.narrow(a, 1, row, rows), 2, column, columns)
