"""Random numbers from counters: the same bits for the same seed on every target.

Element i of a draw with seed s is a permutation of the 24-bit number i, keyed by s: a Feistel
network on two halves of 12 bits, whose rounds add the middle of a square, in numbers that fp32
holds exactly. The host draws s, 24 bits,
from PyTorch's generator at every launch, so `torch.manual_seed` decides.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tapeout.compiler import values as v
from tapeout.compiler.values import INT_MAX, Buffer, Number, Shape, Value

from . import arithmetic as ar
from .constants import counting
from .registry import Meta, Unsupported, aten, lowering, typed
from .sorting import ranks

HALF = 4096.0  # numbers of 12 bits
ROUND_KEYS = (1657, 307, 3089, 2203, 859, 3671, 1409, 2753)  # added to the seed's halves, in turn

_drawn: list[Buffer] = []


@contextlib.contextmanager
def drawing() -> Iterator[list[Buffer]]:
    """Collects the seeds, an integer each, that lowering a graph asks for."""
    _drawn.clear()
    yield _drawn


def _seed() -> Value:
    _drawn.append(Buffer((1,), torch.int64, f"seed{len(_drawn)}"))
    return v.reshape(_drawn[-1], ())


def modulo(x: Value) -> Value:
    """x modulo 4096, of whole x from 0 on."""
    return ar.fma(ar.floor(ar.mul(x, 1 / HALF)), -HALF, x)


def _permuted(i: Value, seed: Value, rounds: int) -> tuple[Value, Value]:
    """The halves of the number that 24-bit number i becomes."""
    high = ar.floor(ar.mul(seed, 1 / HALF))
    keys = (ar.fma(high, -HALF, seed), high)
    left = ar.floor(ar.mul(i, 1 / HALF))
    right = ar.fma(left, -HALF, i)
    for at, key in enumerate(ROUND_KEYS[:rounds]):
        x = modulo(ar.add(right, ar.add(keys[at % 2], float(key))))
        middle = ar.floor(ar.mul(ar.mul(x, x), 1 / 64))
        left, right = right, modulo(ar.add(left, ar.add(middle, x)))
    return left, right


def halves(shape: Shape, rounds: int = len(ROUND_KEYS)) -> tuple[Value, Value]:
    """Two whole numbers out of 0 .. 4095 for each element, evenly distributed.

    Up to 2^24 elements are one permutation. Of more, the last dimensions are, with a seed for each
    element of the first ones that is drawn from the same.
    """
    first = 0
    while v.numel(shape[first:]) > INT_MAX:
        first += 1
    rows, columns = v.numel(shape[:first]), v.numel(shape[first:])
    if rows > INT_MAX or first == len(shape) > 0:
        raise Unsupported(f"random numbers {shape}: at most {INT_MAX} along a dimension")
    seed = _seed()
    if first:
        left, right = _permuted(counting(rows), seed, len(ROUND_KEYS))
        seed = v.reshape(ar.fma(left, HALF, right), (*shape[:first], *[1] * (len(shape) - first)))
    left, right = _permuted(v.reshape(counting(columns), shape[first:]), seed, rounds)
    return v.expand(left, shape), v.expand(right, shape)


def bits(shape: Shape) -> Value:
    """Whole numbers, evenly distributed over 0 .. 2^24 - 1."""
    left, right = halves(shape)
    return ar.fma(left, HALF, right)


def uniform(shape: Shape, dtype: torch.dtype) -> Value:
    """In [0, 1), in steps of 2^-24; of bf16 in steps of 2^-8."""
    x = bits(shape)
    if dtype == torch.bfloat16:
        x = ar.floor(ar.mul(x, 2.0**-16))
        return ar.mul(x, 2.0**-8)
    return ar.mul(x, 2.0**-24)


@lowering(aten.rand.default, aten.rand_like.default)
def _rand(meta: Meta, *_: Any, **__: Any) -> Value:
    if 0 in meta.shape:
        return Number(meta.shape, meta.dtype, 0.0)
    return typed(uniform(meta.shape, meta.dtype), meta)


@lowering(aten.bernoulli.p)
def _bernoulli(meta: Meta, x: Value, p: float = 0.5, **_: Any) -> Value:
    if 0 in meta.shape:
        return Number(meta.shape, meta.dtype, 0.0)
    return typed(ar.gt(p, uniform(meta.shape, torch.float32)), meta)


@lowering(aten.randn.default, aten.randn_like.default)
def _randn(meta: Meta, *_: Any, **__: Any) -> Value:
    """By Box and Muller: sqrt(-2 ln u) cos(2 pi w)."""
    if 0 in meta.shape:
        return Number(meta.shape, meta.dtype, 0.0)
    u = ar.mul(ar.add(bits(meta.shape), 0.5), 2.0**-24)
    w = ar.mul(bits(meta.shape), 2.0**-24)
    radius = ar.apply("sqrt", ar.mul(ar.log(u), -2.0))
    return typed(ar.mul(radius, ar.apply("cos", ar.mul(w, 2 * math.pi))), meta)


@lowering(aten.randperm.default)
def _randperm(meta: Meta, n: int, **_: Any) -> Value:
    if not n:
        return Number(meta.shape, meta.dtype, 0.0)
    return typed(ranks(bits((n,)), descending=False), meta)


@lowering(aten.randint.low, aten.randint.default)
def _randint(meta: Meta, *args: Any, **_: Any) -> Value:
    low, high = (0, args[0]) if isinstance(args[1], Sequence) else args[:2]
    if 0 in meta.shape:
        return Number(meta.shape, meta.dtype, 0.0)
    span = high - low
    if span > 1 << 16:
        raise Unsupported(f"random integers out of {span} (at most {1 << 16})")
    scaled = ar.floor(ar.mul(uniform(meta.shape, torch.float32), float(span)))
    return typed(ar.add(scaled, float(low)), meta)
