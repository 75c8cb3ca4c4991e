"""Tensors on chip and in HBM, as the tile language sees them.

An on-chip tensor [rows, width] is cut into column tiles of `lanes`; tile t, row m is a memory row
at `base + t * tile_stride + m * row_stride` (`reg` added).
"""

from dataclasses import dataclass, replace

from tapeout.isa import Kind

from .scalar import LoopVar, Scalar


@dataclass(frozen=True)
class Tensor:
    """An on-chip tensor; `resource` names what its accesses must be ordered on."""

    kind: Kind
    base: int
    rows: int
    width: int
    tile_stride: int
    row_stride: int
    lanes: int
    resources: frozenset
    reg: Scalar | LoopVar | None = None

    @property
    def tiles(self) -> int:
        return -(-self.width // self.lanes)

    @property
    def memory(self) -> str:
        return {Kind.SPM_BF16: "spm", Kind.SPM_FP32: "spm", Kind.VMEM: "vmem", Kind.ACC: "acc",
                Kind.ROW_SCALAR: "vmem"}[self.kind]  # fmt: skip

    @property
    def depth(self) -> int:
        """Memory rows of one tensor row of one tile."""
        return 2 if self.kind == Kind.SPM_FP32 else 1

    def tile(self, first: int, count: int = 1) -> "Tensor":
        """Column tiles [first, first + count)."""
        width = min(self.width - first * self.lanes, count * self.lanes)
        return replace(self, base=self.base + first * self.tile_stride, width=width)

    def rows_from(self, first: int, count: int) -> "Tensor":
        """Rows [first, first + count) of every tile."""
        return replace(self, base=self.base + first * self.row_stride, rows=count)

    def every(self, step: int, first: int = 0) -> "Tensor":
        """Tiles first, first + step, ...: each seen as a tile of full width."""
        tiles = -(-(self.tiles - first) // step)
        return replace(
            self,
            base=self.base + first * self.tile_stride,
            tile_stride=self.tile_stride * step,
            width=tiles * self.lanes,
        )

    def at(self, reg: Scalar | LoopVar) -> "Tensor":
        """The same tensor with a register added to its address."""
        return replace(self, reg=reg)

    def shared(self) -> "Tensor":
        """One row of tiles read by every moving row (a lane vector)."""
        return replace(self, row_stride=0)

    def same_for_tiles(self) -> "Tensor":
        """The same rows read by every tile."""
        return replace(self, tile_stride=0)

    def scalars(self) -> "Tensor":
        """A packed vmem row (or rows) read as one scalar a moving row."""
        return replace(self, kind=Kind.ROW_SCALAR, tile_stride=0, row_stride=0)


@dataclass(frozen=True)
class HbmTensor:
    """Bytes of a segment; `resource` is None for read-only data."""

    base: int
    offset: int
    bytes: int
    resource: str | None = None
    reg: Scalar | LoopVar | None = None

    def at(self, reg: Scalar | LoopVar, offset: int = 0) -> "HbmTensor":
        return replace(self, reg=reg, offset=self.offset + offset)

    def beyond(self, offset: int) -> "HbmTensor":
        """The same tensor seen from `offset` bytes on."""
        return replace(self, offset=self.offset + offset)

    def slice(self, offset: int, nbytes: int) -> "HbmTensor":
        return replace(self, offset=self.offset + offset, bytes=nbytes)
