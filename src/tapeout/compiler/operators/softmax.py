"""Softmax and its logarithm."""

import math
from typing import Any

import torch

from tapeout.compiler import values as v
from tapeout.compiler.values import Value

from . import arithmetic as ar
from .reductions import reduce
from .registry import Meta, aten, lowering, typed


def _below_maximum(x: Value, dim: int, *, masked: bool = False) -> Value:
    """x without its maximum along `dim`, in float32. `masked`: rows of -inf stay as they are."""
    x = v.retyped(x, torch.float32)
    most = reduce("max", x, _dims(x, dim), keep=True)
    if masked:
        most = ar.where(ar.eq(most, -math.inf), 0.0, most)
    return ar.sub(x, v.expand(most, x.shape))


def _total(x: Value, dim: int) -> Value:
    return reduce("sum", x, _dims(x, dim), keep=True)


def _dims(x: Value, dim: int) -> tuple[int, ...]:
    return (dim % len(x.shape),) if x.shape else ()


@lowering(aten._softmax.default)
def _softmax(meta: Meta, x: Value, dim: int, *_: Any) -> Value:
    if not x.numel:
        return typed(x, meta)
    e = ar.exp_below(_below_maximum(x, dim))
    return typed(ar.divide(e, v.expand(_total(e, dim), x.shape)), meta)


@lowering(aten._safe_softmax.default)
def _safe_softmax(meta: Meta, x: Value, dim: int, *_: Any) -> Value:
    """Zero where a whole row is -inf."""
    if not x.numel:
        return typed(x, meta)
    e = ar.exp_below(_below_maximum(x, dim, masked=True))
    total = ar.maximum(_total(e, dim), 1.0)  # the maximum's own share of any other row
    return typed(ar.divide(e, v.expand(total, x.shape)), meta)


@lowering(aten._log_softmax.default)
def _log_softmax(meta: Meta, x: Value, dim: int, *_: Any) -> Value:
    if not x.numel:
        return typed(x, meta)
    y = _below_maximum(x, dim)
    total = ar.log(_total(ar.exp_below(y), dim))
    return typed(ar.sub(y, v.expand(total, x.shape)), meta)


@lowering(aten._log_softmax_backward_data.default)
def _log_softmax_backward(meta: Meta, grad: Value, output: Value, dim: int, *_: Any) -> Value:
    if not grad.numel:
        return typed(grad, meta)
    grad, output = (v.retyped(x, torch.float32) for x in (grad, output))
    total = v.expand(_total(grad, dim), grad.shape)
    return typed(ar.sub(grad, ar.mul(ar.exp_below(output), total)), meta)
