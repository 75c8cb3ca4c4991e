"""One pass through the matrix unit: the order and the rounding of its sums."""

import numpy as np

from tapeout.numerics import arith
from tapeout.numerics.arith import F32
from tapeout.numerics.encodings import U16, bf16_to_f32


def matmul_pass(x: U16, w: U16) -> F32:
    """float32 [M, N] of moving x [M, K] times stationary w [K, N], both bf16 bits.

    For each output s = -0.0, then s = fma(x[m, k], w[k, n], s) for k = 0..K-1, valid k only.
    The caller writes the result to `acc`, or accumulates it with one `arith.add`.
    """
    x32, w32 = arith.flush(bf16_to_f32(x)), arith.flush(bf16_to_f32(w))
    if x32.shape[1] != w32.shape[0]:
        raise ValueError(
            f"moving rows have K = {x32.shape[1]} lanes and the stationary tile {w32.shape[0]} "
            f"rows: they must be equal"
        )
    s = np.full((x32.shape[0], w32.shape[1]), -0.0, np.float32)
    for k in range(x32.shape[1]):
        s = arith.fma(x32[:, k, None], w32[None, k, :], s)
    return s
