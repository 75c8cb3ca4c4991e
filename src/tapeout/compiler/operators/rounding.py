"""Stochastic rounding to bf16: up or down at random, so that the mean is the number itself.

Weights without float32 masters need it: where a step changes a weight by less than half the
distance to its neighbour, rounding to nearest forgets every step.
"""

import torch

from tapeout.compiler import values as v
from tapeout.compiler.values import Number, Value

from . import arithmetic as ar
from .random import HALF, halves, modulo
from .registry import Meta, lowering

ROUNDS = 6  # of the permutation behind the random numbers; `torch.rand` has 8
STEP = 1.01 * 2.0**-8  # of a bf16's magnitude: more than half its distance to the next, at most one


@torch.library.custom_op("tapeout::round_stochastically", mutates_args=())
def round_stochastically(xs: list[torch.Tensor]) -> list[torch.Tensor]:
    """float32 tensors of one shape as bf16, each element one of the two that it lies between; the
    nearer one with the higher probability, so that the mean is the element.

    What bf16 has stays as it is. What lies beyond its largest number goes where rounding to nearest
    takes it.
    """
    results = []
    for x in xs:
        noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32)
        bits = x.view(torch.int32)
        down, other = ((b & ~0xFFFF).view(torch.float32) for b in (bits, bits + noise))
        near = x.bfloat16()
        chosen = torch.where(other.isfinite(), other, down).bfloat16()
        results.append(torch.where(near.isfinite(), chosen, near))
    return results


@round_stochastically.register_fake
def _(xs: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.empty_like(x, dtype=torch.bfloat16) for x in xs]


@lowering(torch.ops.tapeout.round_stochastically.default)
def _round(metas: list[Meta], xs: list[Value]) -> list[Value]:
    """Three tensors share a draw: 12 bits, 12 bits, and their sum, which depends on neither alone.

    The probability is exact to 2^-13.
    """
    if 0 in metas[0].shape:
        return [Number(m.shape, m.dtype, 0.0) for m in metas]
    results: list[Value] = []
    for at in range(0, len(xs), 3):
        left, right = halves(metas[at].shape, ROUNDS)
        drawn = (left, right, modulo(ar.add(left, right)))
        results += [_rounded(x, n) for x, n in zip(xs[at : at + 3], drawn, strict=False)]
    return results


def _rounded(x: Value, noise: Value) -> Value:
    """x up or down by a number out of 0 .. 4095."""
    near = ar.apply("bf16", x)
    rest = ar.sub(x, near)  # exact
    step = ar.mul(ar.with_sign(ar.absolute(near), rest), STEP)
    gap = ar.sub(ar.apply("bf16", ar.add(near, step)), near)  # to the other one: exact
    share = ar.mul(ar.add(noise, 0.5), 1 / HALF)
    other = ar.gt(ar.absolute(rest), ar.mul(share, ar.absolute(gap)))
    return v.retyped(ar.where(other, ar.add(near, gap), near), torch.bfloat16)
