"""Operators whose result is known when the graph is compiled."""

from typing import Any

import numpy as np
import torch

from tapeout.compiler import values as v
from tapeout.compiler.values import (
    Buffer,
    Number,
    Value,
)

from .registry import Meta, aten, cast, lowering


@lowering(
    aten.full.default, aten.full_like.default, aten.fill.Scalar, aten.scalar_tensor.default,
    aten.new_full.default,
)  # fmt: skip
def _full(meta: Meta, *args: Any, **__: Any) -> Value:
    return cast(args[-1], meta)


@lowering(
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default,
    aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, aten.new_empty.default,
    aten.new_empty_strided.default, aten.empty_permuted.default,
)  # fmt: skip
def _zeros(meta: Meta, *_: Any, **__: Any) -> Value:
    return Number(meta.shape, meta.dtype, 0.0)


@lowering(aten.ones.default, aten.ones_like.default, aten.new_ones.default)
def _ones(meta: Meta, *_: Any, **__: Any) -> Value:
    return Number(meta.shape, meta.dtype, 1.0)


def counting(n: int) -> Value:
    """0.0, 1.0, ... n - 1."""
    return Buffer((n,), torch.float32, f"counting{n}", np.arange(n, dtype=np.float32))


@lowering(aten.arange.start_step)
def _arange(meta: Meta, start: float, end: float, step: float = 1, **_: Any) -> Value:
    if not meta.shape[0]:
        return Number(meta.shape, meta.dtype, 0.0)
    if meta.dtype in v.INTS:
        start, step = int(start), int(step)
    values = start + step * np.arange(meta.shape[0])
    return v.retyped(constant(values), meta.dtype)


def constant(values: np.ndarray) -> Buffer:
    data = np.ascontiguousarray(values, np.float32)
    return Buffer(tuple(data.shape), torch.float32, "constant", data)


@lowering(torch.ops.prims.iota.default)
def _iota(meta: Meta, length: int, *, start: int, step: int, **_: Any) -> Value:
    return _arange(meta, start, 0, step)
