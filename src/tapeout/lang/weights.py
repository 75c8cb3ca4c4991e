"""Weights that stream from HBM through a ring of spm stripes."""

from dataclasses import dataclass, replace

from tapeout.isa import Kind, dma

from . import ops
from .builder import Builder
from .memory import ChipTooSmall
from .tensor import HbmTensor, Tensor


@dataclass(frozen=True)
class Matrix:
    """A weight matrix W[K, N] packed in HBM column tile by column tile, K rows each.

    Column tile n is `format.bytes_for(K, width of the tile)` bytes; tiles follow each other.
    """

    name: str
    k: int
    n: int
    format: dma.HbmFormat
    hbm: HbmTensor

    def tile_bytes(self, lanes: int) -> int:
        """Bytes of a full column tile."""
        return self.format.format.bytes_for(self.k, lanes)

    @staticmethod
    def bytes_for(k: int, n: int, fmt: dma.HbmFormat, lanes: int) -> int:
        """Bytes of a packed matrix."""
        full, rest = divmod(n, lanes)
        total = full * fmt.format.bytes_for(k, lanes)
        return total + (fmt.format.bytes_for(k, rest) if rest else 0)


class WeightRing:
    """Hands out column groups of matrices in spm, each in the next stripe of the ring.

    The weights queue runs ahead of the array by the depth of the ring.
    """

    def __init__(self, k: Builder, slot_rows: int | None = None) -> None:
        self.k = k
        self.stripes = list(k.places.ring)
        per_stripe = k.chip.spm.rows_per_stripe
        self.slot_rows = min(per_stripe, slot_rows or per_stripe)
        self.next = 0
        if len(self.stripes) < 2:
            raise ChipTooSmall(
                f"the weight ring needs 2 stripes of spm or more, not {len(self.stripes)}: "
                f"raise spm.stripes (now {k.chip.spm.stripes})"
            )

    def columns(self, matrix: Matrix) -> int:
        """Column tiles of the matrix that fit one slot."""
        if self.k.stationary_rows(matrix.k) > self.k.chip.spm.rows_per_stripe:
            raise ChipTooSmall(
                f"a column of {matrix.name} has {matrix.k} rows, a stripe of spm "
                f"{self.k.chip.spm.rows_per_stripe}: raise spm.rows_per_bank or banks_per_stripe"
            )
        return max(1, self.slot_rows // self.k.stationary_rows(matrix.k))

    def fetch(self, matrix: Matrix, first: int, count: int) -> Tensor:
        """Column tiles [first, first + count) in the ring: spm tensor [K, width]."""
        k, lanes = self.k, self.k.chip.lanes
        stripe = self.stripes[self.next]
        self.next = (self.next + 1) % len(self.stripes)
        width = min(matrix.n - first * lanes, count * lanes)
        step = k.stationary_rows(matrix.k)
        tensor = Tensor(
            kind=Kind.SPM_BF16, base=stripe * k.chip.spm.rows_per_stripe, rows=matrix.k,
            width=width, tile_stride=step, row_stride=1, lanes=lanes,
            resources=frozenset({("spm", stripe)}),
        )  # fmt: skip
        tile = matrix.tile_bytes(lanes)
        full, rest = divmod(width, lanes)
        if full and step != matrix.k:
            run = replace(tensor, width=full * lanes)
            src = matrix.hbm.slice(first * tile, full * tile)
            ops.load(
                k, run, src, queue=k.weights_queue, format=matrix.format,
                row_bytes=matrix.format.format.bytes_for(1, lanes), tile_bytes=tile,
            )  # fmt: skip
        elif full:  # the full tiles are one run of rows
            run = Tensor(
                kind=Kind.SPM_BF16, base=tensor.base, rows=full * matrix.k, width=lanes,
                tile_stride=0, row_stride=1, lanes=lanes, resources=tensor.resources,
            )  # fmt: skip
            src = matrix.hbm.slice(first * tile, full * tile)
            ops.load(k, run, src, queue=k.weights_queue, format=matrix.format)
        if rest:
            src = matrix.hbm.slice((first + full) * tile, 0)
            tail = Tensor(
                kind=Kind.SPM_BF16, base=tensor.base + full * step, rows=matrix.k, width=rest,
                tile_stride=0, row_stride=1, lanes=lanes, resources=tensor.resources,
            )  # fmt: skip
            ops.load(k, tail, src, queue=k.weights_queue, format=matrix.format)
        return tensor
