"""Operators that go element by element."""

from collections.abc import Callable
from typing import Any

import torch

from tapeout.compiler.values import (
    Value,
)

from . import arithmetic as ar
from .registry import LOWERINGS, Meta, Unsupported, aten, cast, lowering, truth, typed


def _unary(name: str, f: Callable[..., Value], *, overload: str = "default") -> None:
    op = getattr(getattr(aten, name), overload)

    def lower(meta: Meta, x: Value, *args: Any, **kwargs: Any) -> Value:
        return typed(f(x, *args, **kwargs), meta)

    LOWERINGS[op] = lower


def _function(name: str) -> Callable[[Value], Value]:
    return lambda x: ar.apply(name, x)


_UNARY: dict[str, Callable[..., Value]] = {
    "abs": ar.absolute, "neg": ar.negative, "floor": ar.floor, "ceil": ar.ceil, "trunc": ar.trunc,
    "reciprocal": ar.reciprocal, "rsqrt": _function("rsqrt"), "sqrt": _function("sqrt"),
    "tanh": _function("tanh"), "erf": _function("erf"), "sigmoid": _function("sigmoid"),
    "sin": _function("sin"), "cos": _function("cos"), "exp2": _function("exp2"), "tan": ar.tan,
    "log": ar.log, "log2": ar.log2, "log10": ar.log10, "log1p": ar.log1p, "expm1": ar.expm1,
    "sinh": ar.sinh, "cosh": ar.cosh, "asin": ar.asin, "acos": ar.acos, "atan": ar.atan,
    "asinh": ar.asinh, "acosh": ar.acosh, "atanh": ar.atanh, "sign": ar.sign,
    "isnan": ar.is_nan, "isinf": ar.is_inf, "logical_not": ar.logical_not,
    "relu": lambda x: ar.maximum(x, 0.0), "silu": _function("silu"),
    "clone": lambda x, **_: x, "alias": lambda x: x, "detach": lambda x: x,
    "lift_fresh_copy": lambda x: x, "positive": lambda x: x,
}  # fmt: skip
for _name, _f in _UNARY.items():
    _unary(_name, _f)


@lowering(aten.exp.default)
def _exp(meta: Meta, x: Value) -> Value:
    return typed(ar.exp(x, fast=meta.dtype == torch.bfloat16), meta)


@lowering(aten.gelu.default)
def _gelu(meta: Meta, x: Value, approximate: str = "none") -> Value:
    return typed(ar.apply("gelu_tanh" if approximate == "tanh" else "gelu", x), meta)


@lowering(aten.round.default, aten.round.decimals)
def _round(meta: Meta, x: Value, decimals: int = 0) -> Value:
    if not decimals:
        return typed(ar.round_even(x), meta)
    scale = 10.0**decimals
    return typed(ar.divide(ar.round_even(ar.mul(x, scale)), scale), meta)


def _binary(name: str, f: Callable[..., Value], *overloads: str) -> None:
    def lower(meta: Meta, a: Any, b: Any) -> Value:
        return typed(f(a, b), meta)

    for overload in overloads:
        LOWERINGS[getattr(getattr(aten, name), overload)] = lower


_BINARY: dict[str, Callable[..., Value]] = {
    "mul": ar.mul, "remainder": ar.remainder, "fmod": ar.fmod, "eq": ar.eq, "ne": ar.ne,
    "gt": ar.gt, "ge": ar.ge, "lt": lambda a, b: ar.gt(b, a), "le": lambda a, b: ar.ge(b, a),
}  # fmt: skip
for _name, _f in _BINARY.items():
    _binary(_name, _f, "Tensor", "Scalar")
_BINARY_TENSORS: dict[str, Callable[..., Value]] = {
    "maximum": ar.maximum, "minimum": ar.minimum, "atan2": ar.atan2,
    "logical_and": lambda a, b: ar.mul(truth(a), truth(b)),
    "logical_or": lambda a, b: ar.maximum(truth(a), truth(b)),
    "logical_xor": lambda a, b: ar.ne(truth(a), truth(b)),
}  # fmt: skip
for _name, _f in _BINARY_TENSORS.items():
    _binary(_name, _f, "default")


@lowering(aten.add.Tensor, aten.add.Scalar)
def _add(meta: Meta, a: Any, b: Any, alpha: float = 1) -> Value:
    return typed(_plus(meta, a, b, alpha), meta)


@lowering(aten.sub.Tensor, aten.sub.Scalar)
def _sub(meta: Meta, a: Any, b: Any, alpha: float = 1) -> Value:
    return typed(ar.sub(a, b) if alpha == 1 else _plus(meta, a, b, -alpha), meta)


def _plus(meta: Meta, a: Any, b: Any, alpha: float) -> Value:
    if meta.dtype == torch.bool:
        return ar.maximum(a, b) if alpha else ar.apply("copy", a)
    return ar.add(a, b) if alpha == 1 else ar.fma(b, float(alpha), a)


@lowering(aten.div.Tensor, aten.div.Scalar)
def _div(meta: Meta, a: Any, b: Any) -> Value:
    return typed(ar.divide(a, b), meta)


@lowering(aten.div.Tensor_mode, aten.div.Scalar_mode)
def _div_mode(meta: Meta, a: Any, b: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        return typed(ar.divide(a, b), meta)
    if meta.dtype == torch.bfloat16:
        f = _bf16_floor if rounding_mode == "floor" else _bf16_trunc
        return typed(f(a, b), meta)
    f = ar.floor_divide if rounding_mode == "floor" else ar.trunc_divide
    return typed(f(a, b), meta)


def _bf16(x: Value) -> Value:
    return ar.apply("bf16", x)


def _bf16_trunc(a: Any, b: Any) -> Value:
    """As PyTorch does: the quotient is rounded to bf16 first."""
    return ar.trunc(_bf16(ar.quotient(a, b)))


def _bf16_floor(a: Any, b: Any) -> Value:
    """As PyTorch does (c10::div_floor_floating), every step rounded to bf16."""
    rest = ar.fmod(a, b)
    quotient = _bf16(ar.quotient(_bf16(ar.sub(a, rest)), b))
    opposite = ar.gt(0.0, ar.mul(ar.sign(rest), ar.sign(b)))
    quotient = _bf16(ar.sub(quotient, opposite))
    whole = ar.floor(quotient)
    nearest = ar.add(whole, ar.gt(ar.sub(quotient, whole), 0.5))
    return ar.where(ar.eq(b, 0.0), ar.divide(a, b), nearest)


@lowering(aten.pow.Tensor_Tensor, aten.pow.Tensor_Scalar, aten.pow.Scalar)
def _pow(meta: Meta, a: Any, b: Any) -> Value:
    if isinstance(b, Value) or isinstance(a, Value):
        return typed(ar.power(a, b), meta)
    raise Unsupported("a power of two numbers")


@lowering(aten.where.self)
def _where(meta: Meta, c: Value, a: Any, b: Any) -> Value:
    return typed(ar.where(c, a, b), meta)


@lowering(aten.clamp.default, aten.clamp.Tensor)
def _clamp(meta: Meta, x: Value, min: Any = None, max: Any = None) -> Value:
    y: Any = x
    if min is not None:
        y = ar.maximum(y, min)
    if max is not None:
        y = ar.minimum(y, max)
    return typed(y, meta)


def _bits(a: Any, b: Any, combine: Callable[[Value, Value], Value]) -> Value:
    """`combine` of the bits of two integers, held as 25 bits of two's complement."""

    def part(bit: int) -> Value:
        scale = 2.0**-bit
        x, y = (
            ar.sub(ar.floor(ar.mul(n, scale)), ar.mul(ar.floor(ar.mul(n, scale / 2)), 2.0))
            for n in (a, b)
        )
        weight = 2.0**bit if bit < 24 else -(2.0**24)
        return ar.mul(combine(x, y), weight)

    return ar.total(part(bit) for bit in range(25))


def _bitwise(name: str, of_truths: Callable[..., Value], bits: Callable[..., Value]) -> None:
    def lower(meta: Meta, a: Any, b: Any) -> Value:
        if meta.dtype == torch.bool:
            return typed(of_truths(truth(a), truth(b)), meta)
        return typed(_bits(a, b, bits), meta)

    for overload in ("Tensor", "Scalar"):
        LOWERINGS[getattr(getattr(aten, name), overload)] = lower


_bitwise("bitwise_and", ar.mul, ar.mul)
_bitwise("bitwise_or", ar.maximum, ar.maximum)
_bitwise("bitwise_xor", ar.ne, lambda x, y: ar.absolute(ar.sub(x, y)))


@lowering(aten.bitwise_not.default)
def _bitwise_not(meta: Meta, x: Value) -> Value:
    if meta.dtype == torch.bool:
        return typed(ar.logical_not(x), meta)
    return typed(ar.sub(-1.0, x), meta)


@lowering(aten._to_copy.default, torch.ops.prims.convert_element_type.default)
def _to_copy(meta: Meta, x: Value, *_: Any, **__: Any) -> Value:
    return cast(x, meta)
