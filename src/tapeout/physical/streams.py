"""What the elements of an array see while a program runs: operands of a matmul, and of attention.

Contract: every element is a stream. In a tile, row m of the moving operand enters in cycle m, and
the sum of the elements above it a cycle later; the next tile's weight is written in cycle 0 and
becomes the stationary one with the tile's first row.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tapeout.numerics import arith

from .gates import Words

_ROWS = 64  # moving rows of a tile
_TILES = 4
F32 = NDArray[np.float32]


def matmul(rows: int, cols: int) -> list[tuple[F32, F32]]:
    """Tiles (moving M x K, stationary K x N): activations and weights, drawn as a layer's are."""
    draw = np.random.default_rng(0)
    return [
        (_bf16(draw.standard_normal((_ROWS, rows))), _bf16(draw.standard_normal((rows, cols)) / 16))
        for _ in range(_TILES)
    ]


def attention(rows: int, cols: int) -> list[tuple[F32, F32]]:
    """Tiles of one head: scores Q K^T, then probabilities, softmax of the scores, times V."""
    draw = np.random.default_rng(1)
    found = []
    for _ in range(_TILES // 2):
        queries, keys = draw.standard_normal((_ROWS, rows)), draw.standard_normal((rows, cols))
        scores = np.exp(queries @ keys / np.sqrt(rows))
        shares = _bf16(scores / scores.sum(axis=1, keepdims=True))
        found += [(_bf16(queries), _bf16(keys)), (shares[:, :rows], _bf16(keys.T[:cols].T))]
    return found


def _bf16(x: NDArray[np.floating]) -> F32:
    """Rounded to nearest even, as fp32."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def element_inputs(tiles: list[tuple[F32, F32]]) -> tuple[list[Words], list[NDArray[np.uint32]]]:
    """Inputs of all elements by cycle, and by moving row the sums that they make of it."""
    cycles: list[Words] = []
    sums: list[NDArray[np.uint32]] = []
    for number, tile in enumerate(_with_next(tiles)):
        moving, stationary, following = tile
        rows, cols = stationary.shape
        if number == 0:
            cycles.append(_cycle(np.zeros(rows), False, False, stationary, None, cols))
        for m, row in enumerate(moving):
            sum_in, total = [], np.full(cols, -0.0, np.float32)
            for k in range(rows):
                sum_in.append(total)
                total = arith.fma(np.broadcast_to(row[k], cols).copy(), stationary[k], total)
            into = np.stack(sum_in)
            sums.append(np.stack([*sum_in[1:], total]).view(np.uint32))
            weights = following if m == 1 else None
            cycles.append(_cycle(row, True, m == 0, weights, into, cols))
    # The sum comes a cycle after its moving value.
    last = [0] * 32
    for cycle in cycles:
        last, cycle["sum_in"] = cycle["sum_in"], last
    return cycles, sums


def _with_next(tiles: list[tuple[F32, F32]]) -> Iterator[tuple[F32, F32, F32]]:
    for (moving, stationary), (_, following) in zip(tiles, [*tiles[1:], tiles[0]], strict=True):
        yield moving, stationary, following


def _cycle(
    row: NDArray[np.floating], use: bool, swap: bool, weights: F32 | None, sums: F32 | None,
    cols: int,
) -> Words:  # fmt: skip
    count = len(row) * cols
    ones = (1 << count) - 1
    moving = np.repeat(row.astype(np.float32).view(np.uint32) >> np.uint32(16), cols)
    cycle = {
        "moving": _planes(moving, 16),
        "use": [ones if use else 0],
        "swap": [ones if swap else 0],
        "write": [0 if weights is None else ones],
        "sum_in": [0] * 32 if sums is None else _planes(sums.view(np.uint32).ravel(), 32),
    }
    if weights is not None:
        cycle["weight"] = _planes(weights.view(np.uint32).ravel() >> np.uint32(16), 16)
    return cycle


def _planes(values: NDArray[np.uint32], width: int) -> list[int]:
    """By bit, the word of all streams; stream 0 is its lowest bit."""
    return [
        int.from_bytes(np.packbits((values >> k & 1).astype(np.uint8), bitorder="little").tobytes(),
                       "little")
        for k in range(width)
    ]  # fmt: skip


def of_planes(words: list[int], count: int) -> NDArray[np.uint32]:
    """The values of `count` streams."""
    found = np.zeros(count, np.uint32)
    for k, word in enumerate(words):
        packed = np.frombuffer(word.to_bytes(-(-count // 8), "little"), np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[:count]
        found |= bits.astype(np.uint32) << np.uint32(k)
    return found
