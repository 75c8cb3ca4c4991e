"""Choosing tokens: the largest logits of a row and where they stand."""

import numpy as np

from tapeout.isa.vpu import Reduce
from tapeout.lang import Builder, Scalar, Tensor, ops


def best(k: Builder, logits: Tensor, value: Tensor, index: Tensor, *, rows: Scalar | int) -> None:
    """The largest of each row of `logits` and its column, the first of equals.

    Args:
        logits: [M, N], in acc or spm.
        value, index: packed vmem [1, M]: fp32, and int32 bits.
    """
    with k.scope("best"):
        ops.vector(k, logits, rows=rows, reduce=Reduce.MAX, reduce_dst=value)
        ops.vector(k, logits, rows=rows, reduce=Reduce.ARGMAX, reduce_dst=index)


def top_k(k: Builder, logits: Tensor, values: Tensor, indices: Tensor, *, rows: int) -> None:
    """The `values.rows` largest of each row in falling order; equals in order of their columns.

    Each round finds the best of what is left and then takes it out, so `logits` (in acc) is spent:
    what was chosen is -inf afterwards.

    Args:
        logits: acc [M, N], N at least the count, every value above -inf.
        values, indices: packed vmem [count, M] (`Builder.packed(M, count)`), M at most lanes.
    """
    for i in range(values.rows):
        value, index = values.rows_from(i, 1), indices.rows_from(i, 1)
        best(k, logits, value, index, rows=rows)
        if i + 1 < values.rows:
            with k.scope("top_k"):
                ops.vector(k, logits, dst=logits, rows=rows, drop=index)


def top_k_reference(logits: np.ndarray, count: int) -> np.ndarray:
    """Columns of the `count` largest of each row, equals in order of their columns."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :count]
