"""Reductions over lanes, in the hardware's order: fold halves.

The valid lanes are padded to a power of two (sums with -0.0, max with -Inf), then for
h = L/2, L/4, ..., 1: v[l] = v[l] op v[l + h]. Padding further changes nothing (v + -0.0 = v), so
the result does not depend on how many lanes the chip has beyond the valid ones.
"""

from collections.abc import Callable

import numpy as np

from tapeout.numerics import arith
from tapeout.numerics.arith import F32


def _fold(x: F32, op: Callable[[F32, F32], F32], padding: float) -> F32:
    x = np.asarray(x, np.float32)
    valid = x.shape[-1]
    lanes = 1 << max(valid - 1, 0).bit_length()
    widths = [(0, 0)] * (x.ndim - 1) + [(0, lanes - valid)]
    v = np.pad(arith.canonical(arith.flush(x)), widths, constant_values=np.float32(padding))
    while v.shape[-1] > 1:
        half = v.shape[-1] // 2
        v = op(v[..., :half], v[..., half:])
    return v[..., 0]


def fold_sum(x: F32) -> F32:
    """Sum over the last axis of float32 [..., n], n >= 0; no lanes give -0.0."""
    return _fold(x, arith.add, -0.0)


def fold_sumsq(x: F32) -> F32:
    """Sum of squares over the last axis: each lane is squared with one mul, then folded."""
    return _fold(arith.mul(x, x), arith.add, -0.0)


def fold_max(x: F32) -> F32:
    """Max over the last axis; NaN if any lane is NaN; no lanes give -Inf."""
    return _fold(x, arith.maximum, -np.inf)
