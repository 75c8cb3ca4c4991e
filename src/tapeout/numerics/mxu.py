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
    if x.shape[1] != w.shape[0]:
        raise ValueError(
            f"moving rows have K = {x.shape[1]} lanes and the stationary tile {w.shape[0]} "
            f"rows: they must be equal"
        )
    s = np.full((x.shape[0], w.shape[1]), -0.0, np.float32)
    with np.errstate(all="ignore"):
        x64, w64 = (arith.flush(bf16_to_f32(v)).astype(np.float64) for v in (x, w))
        for k in range(x.shape[1]):
            s = arith.add_to_product(x64[:, k, None] * w64[None, k, :], s)
    return s
