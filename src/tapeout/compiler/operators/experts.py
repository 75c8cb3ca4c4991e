"""Products of groups of rows, each with the matrix of its group."""

from typing import Any

import torch

from tapeout.compiler import values as v
from tapeout.compiler.values import (
    Number,
    Value,
)

from . import arithmetic as ar
from .constants import counting
from .parts import within
from .products import matmul
from .reductions import reduce
from .registry import LOWERINGS, Meta, Unsupported, aten, typed


def _grouped_mm(meta: Meta, x: Value, w: Value, offs: Value | None = None, *_: Any) -> Value:
    """Rows offs[e - 1] .. offs[e] of x [T, K] times w[e] [K, N]; rows behind the last are zero.

    Every expert multiplies all rows, and each row keeps its own expert's.
    """
    if len(x.shape) != 2 or len(w.shape) != 3 or offs is None:
        raise Unsupported("a grouped product other than of rows with a matrix for each group")
    rows, experts = x.shape[0], w.shape[0]
    if 0 in meta.shape:
        return Number(meta.shape, meta.dtype, 0.0)
    products = matmul(v.unsqueeze(x, 0), w, torch.float32)
    row = v.reshape(counting(rows), (1, rows, 1))
    end = v.reshape(offs, (experts, 1, 1))
    before = ar.gt(end, row)  # the group of a row is the first that ends behind it
    earlier = v.narrow(before, 0, 0, experts - 1)
    previous = within(before.shape, 0.0, earlier, (1, 0, 0), (1, 1, 1))
    own = ar.where(previous, 0.0, before)
    chosen = ar.where(own, products, 0.0)
    return typed(reduce("sum", chosen, (0,), keep=False, dtype=torch.float32), meta)


LOWERINGS[aten._grouped_mm.default] = _grouped_mm


def lower_transformers() -> None:
    """Operators that `transformers` registers when it is imported."""
    operators = getattr(torch.ops, "transformers", None)
    packet = getattr(operators, "grouped_mm_fallback", None) if operators is not None else None
    if packet is not None:
        LOWERINGS[packet.default] = _grouped_mm
