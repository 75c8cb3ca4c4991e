"""Row-major matrices of HBM to and from column tiles on chip."""

from tapeout.isa import Count, HbmAddr, Kind, dma
from tapeout.isa.dma import HbmFormat
from tapeout.lang import Builder, HbmTensor, Tensor

STRIDE_MAX = 4095  # of the row_stride field of a transfer: rows from one column tile to the next


def spans(width: int, tile: int) -> list[tuple[int, int, int]]:
    """(first tile, tiles, lanes of each): the full tiles together, then a narrower last one."""
    full, rest = divmod(width, tile)
    return [(0, full, tile)] * (full > 0) + [(full, 1, rest)] * (rest > 0)


def load_rows(
    k: Builder, t: Tensor, hbm: HbmTensor, width: int, tile: int, pitch_bytes: int, *, queue: int,
    fmt: HbmFormat = HbmFormat.BF16,
) -> None:  # fmt: skip
    """t = t.rows rows of `width` elements, `pitch_bytes` apart, as tiles of `tile` lanes.

    Goes row by row, so that the tiles of a row are one run of HBM (`ops.load` goes tile by tile).
    """
    move_rows(k, dma.Load, t, hbm, width, tile, pitch_bytes, queue, fmt)


def store_rows(
    k: Builder, t: Tensor, hbm: HbmTensor, width: int, pitch_bytes: int, fmt: HbmFormat, *,
    queue: int,
) -> None:  # fmt: skip
    """Rows of t, `width` elements of each, to HBM rows `pitch_bytes` apart."""
    move_rows(k, dma.Store, t, hbm, width, k.chip.lanes, pitch_bytes, queue, fmt)


def move_rows(
    k: Builder, cls: type, t: Tensor, hbm: HbmTensor, width: int, tile: int, pitch_bytes: int,
    queue: int, fmt: HbmFormat,
) -> None:  # fmt: skip
    """`load_rows` or `store_rows`, as `cls` is `dma.Load` or `dma.Store`."""
    tile_bytes = tile * fmt.format.bits // 8
    if t.tile_stride > STRIDE_MAX and width > tile:
        raise ValueError(
            f"tiles {t.tile_stride} rows apart exceed the stride {STRIDE_MAX} of a transfer: "
            f"take fewer rows at once"
        )
    for first, tiles, lanes in spans(width, tile):
        across = t.tile_stride if tiles > 1 else t.row_stride
        transfer(
            k, cls, t.tile(first), hbm.beyond(first * tile_bytes), queue=queue, fmt=fmt,
            lanes=lanes, inner=(tiles, tile_bytes, across),
            outer=(t.rows, pitch_bytes, t.row_stride),
        )  # fmt: skip


def transfer(
    k: Builder, cls: type, t: Tensor, hbm: HbmTensor, *, queue: int, fmt: HbmFormat, lanes: int,
    inner: tuple[int, int, int], outer: tuple[int, int, int], lane: int = 0,
) -> None:  # fmt: skip
    """One `dma.Load` or `dma.Store` of runs of rows, between the rows of t and HBM.

    Args:
        inner, outer: for rows of a run, and for runs: how many, bytes from one to the next in HBM,
            and rows of memory from one to the next.
    """
    loading = cls is dma.Load
    accesses = [(r, loading, "dma") for r in t.resources]
    if hbm.resource is not None:
        accesses.append((("hbm", hbm.resource), not loading, "dma"))
    k.emit(
        queue, cls, accesses, hbm=k.hbm(queue, hbm), format=fmt,
        memory=dma.Memory.VMEM if t.kind == Kind.VMEM else dma.Memory.SPM,
        row=k.addr(queue, t.base, t.reg), lane=lane, lanes=lanes, rows=Count(inner[0]),
        row_bytes=inner[1], row_stride=inner[2], outer=Count(outer[0]), outer_bytes=outer[1],
        outer_rows=outer[2],
    )  # fmt: skip


def spm_kind(fmt: HbmFormat) -> Kind:
    """How spm holds elements that lie so in HBM."""
    return Kind.SPM_FP32 if fmt == HbmFormat.FP32 else Kind.SPM_BF16


def spm_rows(fmt: HbmFormat) -> int:
    """Rows of spm for a row of a tile."""
    return 2 if fmt == HbmFormat.FP32 else 1


def load_tiled(k: Builder, t: Tensor, hbm: HbmTensor, total_rows: int, *, queue: int) -> None:
    """t (bf16) = t.rows rows of each column tile of a matrix stored tile by tile.

    A column tile has `total_rows` rows; `hbm` begins at the first tile's first row wanted. Every
    tile but the last is full.
    """
    lanes = k.chip.lanes
    for first, tiles, span in spans(t.width, lanes):
        if first and span < lanes:
            raise ValueError("a narrower last tile is a transfer of its own: its rows are shorter")
        k.emit(
            queue, dma.Load, [(r, True, "dma") for r in t.resources],
            hbm=HbmAddr(hbm.base, hbm.offset, k.registers[queue].number(hbm.reg)),
            lanes=span, row=k.addr(queue, t.base, t.reg), rows=Count(t.rows), row_bytes=2 * span,
            outer=Count(tiles), outer_bytes=2 * total_rows * lanes, outer_rows=t.tile_stride,
        )  # fmt: skip
