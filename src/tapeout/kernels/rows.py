"""Row-major matrices of HBM to and from column tiles on chip."""

from tapeout.isa import Count, HbmAddr, dma
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
    _move(k, dma.Load, t, hbm, width, tile, pitch_bytes, queue, fmt)


def store_rows(
    k: Builder, t: Tensor, hbm: HbmTensor, width: int, pitch_bytes: int, fmt: HbmFormat, *,
    queue: int,
) -> None:  # fmt: skip
    """Rows of t, `width` elements of each, to HBM rows `pitch_bytes` apart."""
    _move(k, dma.Store, t, hbm, width, k.chip.lanes, pitch_bytes, queue, fmt)


def _move(
    k: Builder, cls: type, t: Tensor, hbm: HbmTensor, width: int, tile: int, pitch_bytes: int,
    queue: int, fmt: HbmFormat,
) -> None:  # fmt: skip
    loading = cls is dma.Load
    accesses = [(r, loading, "dma") for r in t.resources]
    if hbm.resource is not None:
        accesses.append((("hbm", hbm.resource), not loading, "dma"))
    tile_bytes = tile * fmt.format.bits // 8
    if t.tile_stride > STRIDE_MAX and width > tile:
        raise ValueError(
            f"tiles {t.tile_stride} rows apart exceed the stride {STRIDE_MAX} of a transfer: "
            f"take fewer rows at once"
        )
    for first, tiles, lanes in spans(width, tile):
        across = t.tile_stride if tiles > 1 else t.row_stride
        k.emit(
            queue, cls, accesses,
            hbm=k.hbm(queue, hbm.beyond(first * tile_bytes)),
            format=fmt, row=k.addr(queue, t.base + first * t.tile_stride, t.reg), lanes=lanes,
            rows=Count(tiles), row_bytes=tile_bytes, row_stride=across,
            outer=Count(t.rows), outer_bytes=pitch_bytes, outer_rows=t.row_stride,
        )  # fmt: skip


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
