"""Rows of HBM by index: gather, scatter, and the int32 numbers that index them.

The vector unit has no integers. A number n below 2^24 becomes the int32 n by where its bits lie:
2^23 + m has m in its low bits for m < 2^23, an fp32 in spm is a row of high and a row of low
halves, and a transfer copies rows of halves bit by bit.
"""

from dataclasses import replace
from typing import Any

from tapeout.isa import Kind
from tapeout.isa.dma import HbmFormat
from tapeout.isa.vpu import Combine, Combine2, Function
from tapeout.lang import Builder, HbmTensor, Tensor, ops
from tapeout.lang.builder import VMEM_BLOCK

HALF = 65536.0
EXPOSE = float(2**23)  # in n + 2^23 the low bits are n


def to_int32(k: Builder, src: HbmTensor, dst: HbmTensor, scratch: HbmTensor, count: int) -> None:
    """dst[i] = int32 of the fp32 number src[i], a whole number in 0..2^24 - 1.

    Args:
        scratch: 2 * count bytes.
    """
    lanes = k.chip.lanes
    with k.scope("to_int32"):
        for first, rows, width in _blocks(k, count):
            n = k.tensor(Kind.VMEM, rows, width)
            ops.load(k, n, src.beyond(4 * first), format=HbmFormat.FP32, row_bytes=4 * lanes)
            upper, part = (k.tensor(Kind.VMEM, rows, width) for _ in range(2))
            shape: dict[str, Any] = {"rows": rows, "tiles": 1, "width": width}
            ops.vector(
                k, n, 1 / HALF, dst=upper, combine=Combine.MUL, function=Function.FLOOR, **shape
            )
            # m - 65536 * (m >> 16) + 2^23, and (m >> 16) + 2^23
            ops.vector(
                k, upper, -HALF, n, dst=part, combine=Combine.FMA, combine2=Combine2.ADD,
                d=EXPOSE, **shape,
            )  # fmt: skip
            low = k.tensor(Kind.SPM_FP32, rows, width)
            ops.vector(k, part, dst=low, **shape)
            high = k.tensor(Kind.SPM_FP32, rows, width, avoid=(low,))
            ops.vector(k, upper, EXPOSE, dst=high, combine=Combine.ADD, **shape)
            # Low halves of `high` become the high halves of `low`, by way of HBM.
            there = scratch.beyond(2 * first)
            ops.store(k, _halves(high, 1), there, row_bytes=2 * lanes, queue=k.store_queue)
            ops.load(k, _halves(low, 0), there, row_bytes=2 * lanes, queue=k.load_queue)
            ops.store(
                k, low, dst.beyond(4 * first), format=HbmFormat.FP32, row_bytes=4 * lanes,
                queue=k.store_queue,
            )  # fmt: skip
            k.free(n, upper, part, low, high)


def _blocks(k: Builder, count: int) -> list[tuple[int, int, int]]:
    """(first element, rows, lanes of each): whole rows, then the rest."""
    lanes = k.chip.lanes
    most = min(256, k.chip.vmem.rows // 8 // VMEM_BLOCK * VMEM_BLOCK)
    whole = count // lanes
    blocks = [(at * lanes, min(most, whole - at), lanes) for at in range(0, whole, most)]
    if count % lanes:
        blocks.append((whole * lanes, 1, count % lanes))
    return blocks


def _halves(t: Tensor, plane: int) -> Tensor:
    """High (0) or low (1) halves of an fp32 tensor of spm, as rows of 16 bits."""
    return replace(t, kind=Kind.SPM_BF16, base=t.base + plane)


def gather(
    k: Builder, table: HbmTensor, index: HbmTensor, dst: HbmTensor, *, count: int, width: int,
    pitch: int, format: HbmFormat,
) -> None:  # fmt: skip
    """dst[i] = the `width` elements from table + index[i] * pitch on (bytes), i < count."""
    _indexed(k, table, index, dst, count, width, pitch, format, gathering=True)


def scatter(
    k: Builder, src: HbmTensor, index: HbmTensor, table: HbmTensor, *, count: int, width: int,
    pitch: int, format: HbmFormat,
) -> None:  # fmt: skip
    """table + index[i] * pitch = src[i], `width` elements each, in increasing i."""
    _indexed(k, table, index, src, count, width, pitch, format, gathering=False)


def _indexed(
    k: Builder, table: HbmTensor, index: HbmTensor, rows: HbmTensor, count: int, width: int,
    pitch: int, fmt: HbmFormat, *, gathering: bool,
) -> None:  # fmt: skip
    lanes, size = k.chip.lanes, fmt.format.bits // 8
    room = k.chip.vmem.rows // 4 // VMEM_BLOCK * VMEM_BLOCK
    tiles = -(-width // lanes)
    chunk = min(tiles, room)
    most = max(1, min(room // chunk, room // 2 * lanes))
    with k.scope("gather" if gathering else "scatter"):
        for first in range(0, count, most):
            n = min(most, count - first)
            at = k.packed(n)
            ops.load(
                k, at, index.beyond(4 * first), format=HbmFormat.FP32, rows=1, row_bytes=0,
                tile_bytes=4 * lanes, queue=k.load_queue,
            )  # fmt: skip
            for t in range(0, tiles, chunk):
                here = min(width - t * lanes, chunk * lanes)
                x = k.tensor(Kind.VMEM, n, here)
                far, near = (
                    table.beyond(t * lanes * size),
                    rows.beyond((first * width + t * lanes) * size),
                )
                inside: dict[str, Any] = {"row_bytes": pitch, "index": at, "format": fmt}
                dense: dict[str, Any] = {"row_bytes": width * size, "format": fmt}
                if gathering:
                    ops.load(k, x, far, queue=k.load_queue, **inside)
                    ops.store(k, x, near, queue=k.store_queue, **dense)
                else:
                    ops.load(k, x, near, queue=k.load_queue, **dense)
                    ops.store(k, x, far, queue=k.store_queue, **inside)
                k.free(x)
            k.free_packed(at)
