"""Matrix products with streamed weights and fused epilogues."""

from collections.abc import Callable

from tapeout.isa import Kind
from tapeout.isa.vpu import Combine2, Function
from tapeout.lang import Builder, Matrix, Scalar, Tensor, WeightRing, ops

Epilogue = Callable[[Tensor, int], None]


def group_tiles(k: Builder, rows: int, wanted: int, parts: int = 2) -> int:
    """Column tiles of `rows` rows that one of `parts` shares of acc holds, at most `wanted`."""
    acc = k.chip.acc
    if rows <= acc.rows_per_stripe:
        per_stripe = acc.rows_per_stripe // rows
        return max(1, min(wanted, per_stripe * max(1, acc.stripes // (2 * parts))))
    return max(1, min(wanted, acc.rows // (2 * parts) // rows))


def linear(
    k: Builder,
    ring: WeightRing,
    x: Tensor,
    matrix: Matrix,
    epilogue: Epilogue,
    *,
    rows: Scalar | int,
    group: int | None = None,
) -> None:
    """y = x @ W; `epilogue(acc tensor of a group of column tiles, first tile)` takes the results.

    Args:
        x: spm_bf16 [M, K].
        group: column tiles per epilogue (default: what a share of acc holds).
    """
    lanes = k.chip.lanes
    tiles = -(-matrix.n // lanes)
    group = group or group_tiles(k, x.rows, tiles)
    with k.scope("linear"):
        for first in range(0, tiles, group):
            count = min(group, tiles - first)
            width = min(matrix.n - first * lanes, count * lanes)
            acc = k.tensor(Kind.ACC, x.rows, width)
            accumulate(k, ring, x, matrix, acc, first, count, rows=rows)
            epilogue(acc, first)
            k.free(acc)


def accumulate(
    k: Builder,
    ring: WeightRing,
    x: Tensor,
    matrix: Matrix,
    acc: Tensor,
    first: int,
    count: int,
    *,
    rows: Scalar | int,
) -> None:
    """acc = x @ W[:, column tiles first..first+count)."""
    step = ring.columns(matrix)
    for at in range(0, count, step):
        columns = min(step, count - at)
        weights = ring.fetch(matrix, first + at, columns)
        ops.matmul(k, acc.tile(at, columns), x, weights, rows=rows)


def swiglu(
    k: Builder,
    ring: WeightRing,
    x: Tensor,
    gate: Matrix,
    up: Matrix,
    dst: Tensor,
    *,
    rows: Scalar | int,
    function: Function = Function.SILU,
) -> None:
    """dst = function(x @ gate) * (x @ up), group by group of column tiles."""
    lanes = k.chip.lanes
    tiles = -(-gate.n // lanes)
    group = group_tiles(k, x.rows, tiles, parts=4)
    with k.scope("swiglu"):
        for first in range(0, tiles, group):
            count = min(group, tiles - first)
            width = min(gate.n - first * lanes, count * lanes)
            g = k.tensor(Kind.ACC, x.rows, width)
            u = k.tensor(Kind.ACC, x.rows, width, avoid=(g,))
            accumulate(k, ring, x, gate, g, first, count, rows=rows)
            accumulate(k, ring, x, up, u, first, count, rows=rows)
            ops.vector(
                k, g, d=u, dst=dst.tile(first, count), rows=rows,
                function=function, combine2=Combine2.MUL,
            )  # fmt: skip
            k.free(g, u)
