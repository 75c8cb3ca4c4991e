"""Normalisation over features."""

import numpy as np

from tapeout.isa import Kind
from tapeout.isa.dma import HbmFormat
from tapeout.isa.vpu import Combine, Combine2, Function, Reduce
from tapeout.lang import Builder, HbmTensor, Scalar, Tensor, ops


def rms_norm(
    k: Builder,
    x: Tensor,
    weight: Tensor,
    eps: float,
    dst: Tensor,
    *,
    rows: Scalar | int,
    sumsq: Tensor | None = None,
) -> None:
    """dst = x * rsqrt(mean(x^2) + eps) * weight.

    Args:
        x: [M, N] fp32 (spm_fp32, vmem or acc).
        weight: [1, N] in vmem.
        dst: [M, N], spm_bf16 as a rule.
        rows: moving rows that hold data.
        sumsq: packed sums of squares of x, where a kernel before has them already.
    """
    with k.scope("rms_norm"):
        stat = k.packed(x.rows) if sumsq is None else sumsq
        if sumsq is None:
            ops.vector(k, x, rows=rows, reduce=Reduce.SUMSQ, reduce_dst=stat)
        mean = float(np.float32(1.0 / x.width))
        ops.vector(
            k, stat, mean, float(np.float32(eps)), dst=stat,
            combine=Combine.FMA, function=Function.RSQRT, width=rows, tiles=stat.tiles,
        )  # fmt: skip
        ops.vector(
            k, x, stat.scalars(), d=weight.shared(), dst=dst, rows=rows,
            combine=Combine.MUL, combine2=Combine2.MUL,
        )  # fmt: skip
        if sumsq is None:
            k.free(stat)


def rms_norm_reference(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """float64 reference of `rms_norm`: x [M, N], weight [N]."""
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def add(
    k: Builder,
    a: Tensor,
    b: Tensor,
    dst: Tensor,
    *,
    rows: Scalar | int,
    sumsq: Tensor | None = None,
    accumulate: bool = False,
) -> None:
    """dst = a + b; with `sumsq`, also the packed sums of squares of its rows.

    `accumulate` adds to sums that other columns of the same rows have left there.
    """
    with k.scope("add"):
        ops.vector(
            k, a, b, dst=dst, combine=Combine.ADD, rows=rows,
            reduce=Reduce.SUMSQ if sumsq is not None else Reduce.NONE, reduce_dst=sumsq,
            reduce_accumulate=accumulate,
        )  # fmt: skip


def vector_row(k: Builder, src: HbmTensor, width: int) -> Tensor:
    """Loads `width` fp32 from HBM as a lane vector [1, width] in vmem."""
    lanes = k.chip.lanes
    t = k.tensor(Kind.VMEM, 1, width)
    ops.load(
        k, t, src, queue=k.vmem_queue, format=HbmFormat.FP32, row_bytes=4 * width,
        tile_bytes=4 * lanes,
    )  # fmt: skip
    return t
