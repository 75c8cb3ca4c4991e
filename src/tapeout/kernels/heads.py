"""Heads of attention, between the column tiles of a projection and tiles of their own."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from tapeout.isa import Kind
from tapeout.isa.vpu import Combine, Combine2
from tapeout.lang import Builder, Scalar, Tensor, ops


class HeadLayout:
    """Moves heads between the tiles of a projection [M, heads * d] and tiles of their own."""

    def __init__(self, k: Builder, head_dim: int) -> None:
        lanes = k.chip.lanes
        self.k, self.d, self.lanes = k, head_dim, lanes
        self.tiles = max(1, head_dim // lanes)  # tiles of a head of its own
        self.per_tile = max(1, lanes // head_dim)  # heads in a projection tile
        self.width = min(head_dim, lanes)

    def groups(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Heads [first, first+count) as (slot in tile, first head, number of heads)."""
        for slot in range(self.per_tile):
            start = first + (slot - first) % self.per_tile
            if start < first + count:
                number = -(-(first + count - start) // self.per_tile)
                yield slot, start, number

    def place(self, head: int, tile: int) -> tuple[int, int]:
        """(projection tile, lane xor) of tile `tile` of head `head`."""
        if self.d >= self.lanes:
            return head * self.tiles + tile, 0
        return head // self.per_tile, (head % self.per_tile) * self.d


def split_heads(
    k: Builder,
    x: Tensor,
    dst: Tensor,
    layout: HeadLayout,
    first: int,
    count: int,
    *,
    rows: Scalar | int,
    head_stride: int,
    rope: tuple[Tensor, Tensor] | None = None,
    factor: float | None = None,
) -> list[Callable[[], None]]:
    """Heads [first, first+count) of projection x into `dst`, head i at `base + i * head_stride`.

    With `rope` = (cos, signed sin), [M, head_dim] in vmem, rotates:
    y = x * cos + x[lane ^ head_dim/2] * sin. With `factor`, y is multiplied by it.
    Returns the second halves of the rotations, to be called: kept apart so that several first
    halves can be in the vector unit's pipeline before the first second half waits for them.
    """
    rest: list[Callable[[], None]] = []
    for _, start, number in layout.groups(first, count):
        for tile in range(layout.tiles):
            at, xor = layout.place(start, tile)
            step = layout.tiles if layout.per_tile == 1 else 1
            src = _picked(x, at, step, number, layout)
            out = _heads(dst, (start - first) * head_stride, tile, number,
                         head_stride * layout.per_tile, layout)  # fmt: skip
            lanes = (0, layout.width) if layout.width < layout.lanes else (0, 0)
            common: dict = {"rows": rows, "tiles": number, "lanes": lanes,
                            "width": number * layout.lanes}  # fmt: skip
            if rope is None:
                combine = Combine.A if factor is None else Combine.MUL
                ops.vector(k, src, factor, dst=out, xor=xor, combine=combine, **common)
                continue
            cos, sin = (t.tile(tile).same_for_tiles() for t in rope)
            part = k.tensor(Kind.ACC, x.rows, number * layout.lanes, avoid=(x,))
            ops.vector(k, src, cos, dst=part, combine=Combine.MUL, xor=xor, **common)
            shift = layout.d // 2 // layout.lanes
            partner, partner_xor = src, xor ^ (layout.d // 2)
            if shift:
                to = at + (shift if tile < shift else -shift)
                partner, partner_xor = _picked(x, to, step, number, layout), xor
            more = {} if factor is None else {"d": factor, "combine2": Combine2.MUL}
            rest.append(_rotation(k, partner, sin, part, out, partner_xor, {**common, **more}))
    return rest


def _rotation(
    k: Builder, partner: Tensor, sin: Tensor, part: Tensor, out: Tensor, xor: int, common: dict
) -> Callable[[], None]:
    def finish() -> None:
        ops.vector(k, partner, sin, part, dst=out, combine=Combine.FMA, xor=xor, **common)
        k.free(part)

    return finish


def _picked(x: Tensor, at: int, step: int, number: int, layout: HeadLayout) -> Tensor:
    """Projection tiles at, at + step, ... as tiles of one tensor."""
    return replace(
        x, base=x.base + at * x.tile_stride, tile_stride=x.tile_stride * step,
        width=number * layout.lanes,
    )  # fmt: skip


def _heads(
    dst: Tensor, start: int, tile: int, number: int, stride: int, layout: HeadLayout
) -> Tensor:
    """Tile `tile` of heads `stride` rows apart, as tiles of one tensor."""
    return replace(
        dst, base=dst.base + start + tile * dst.tile_stride, tile_stride=stride,
        width=number * layout.lanes,
    )  # fmt: skip


def merge_heads(
    k: Builder, o: Tensor, dst: Tensor, layout: HeadLayout, heads: int, *,
    rows: Scalar | int, head_stride: int, row_stride: int,
) -> None:  # fmt: skip
    """Heads in tiles of their own (acc) back into projection tiles [M, heads * d]."""
    for slot, start, number in layout.groups(0, heads):
        for tile in range(layout.tiles):
            at, xor = layout.place(start, tile)
            step = layout.tiles if layout.per_tile == 1 else 1
            src = replace(
                o, base=o.base + start * head_stride + tile * o.tile_stride, row_stride=row_stride,
                tile_stride=head_stride * layout.per_tile, width=number * layout.lanes,
            )  # fmt: skip
            out = _picked(dst, at, step, number, layout)
            lanes = (slot * layout.d, (slot + 1) * layout.d) if layout.per_tile > 1 else (0, 0)
            ops.vector(
                k, src, dst=out, rows=rows, tiles=number, width=number * layout.lanes, xor=xor,
                lanes=lanes,
            )  # fmt: skip
