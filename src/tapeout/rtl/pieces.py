"""How the runs of a transfer pass the DMA engine: pieces of whole and partial rows, one a cycle.

Contract: pieces are those of docs/timing.md. `slots(chip)` rows are in a piece at most; slot k
holds the k-th.
"""

from amaranth.hdl import Array, C, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tapeout.chip import Chip
from tapeout.isa.dma import BLOCK_ROWS, HbmFormat, Memory, formats_of, rows_per_cycle

from .transfer import (
    BLOCKS,
    COUNT_BITS,
    LANE_BITS,
    ROW_BITS,
    ROW_BYTES_BITS,
    SHAPE,
    WIDTHS,
)

RUN_BITS = 16  # bytes of a run


def slots(chip: Chip, bits: int = 0) -> int:
    """Most rows of a piece, of formats with `bits` bits an element at least."""
    found = [rows_per_cycle(chip, HbmFormat.FP32, Memory.VMEM, 1)] if bits <= 32 else []
    for f in formats_of(chip):
        width = f.format.bits
        if width >= bits:
            found.append(rows_per_cycle(chip, f, Memory.SPM, 1))
        if f.format.is_block and 8 * min(2, f.format.scale_bytes) >= bits:
            found.append(-(-f.format.scale_bytes // 2))
    return max(found)


# A piece: rows `transfer.row + k * row_stride` of slots k, each of `row_bytes` in HBM. Counted from
# the begin of slot 0's row, it holds bytes [start, end) of the rows in a line.
PIECE = data.StructLayout(
    {
        "bytes": RUN_BITS,
        "start": ROW_BYTES_BITS,
        "end": RUN_BITS,
        "row_bytes": ROW_BYTES_BITS,
        "width": 2,  # of an element: 4, 8, 16 or 32 bits
        "is_scale": 1,
        "scale": 1,  # 0: slot 0 holds the first scales of a group
        "transfer": SHAPE,
    }
)


def next_stage(m: Module, takes: Value, piece: data.View, name: str) -> tuple[Signal, data.View]:
    """A piece on its way, a cycle later: (there is one, it)."""
    later, its = Signal(name=f"{name}_takes"), Signal(PIECE, name=f"{name}_piece")
    m.d.sync += [later.eq(takes), its.eq(piece)]
    return later, its


class PieceWalker(wiring.Component):
    """Walks the rows of transfers:

    `piece` is the next one, of a run of which `run_left` bytes are left; `ends`: it has them all,
    else `left` bytes come after it.
    `advance` takes it; with `begins`, it is a transfer's first, of shape `shape`.
    """

    def __init__(self, chip: Chip, *, formats: list[HbmFormat]) -> None:
        self.chip, self.formats = chip, formats
        super().__init__(
            {
                "shape": In(SHAPE),
                "begins": In(1),
                "run_left": In(RUN_BITS),
                "advance": In(1),
                "piece": Out(PIECE),
                "ends": Out(1),
                "left": Out(RUN_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        count = slots(self.chip)
        shape, piece = self.shape, self.piece
        is_block = shape.is_block if set(self.formats) & set(BLOCKS) else C(0, 1)

        # Where it is, or begins.
        held = Signal(data.StructLayout({
            "row": ROW_BITS, "outer_row": ROW_BITS, "left": COUNT_BITS, "at": ROW_BYTES_BITS,
            "is_scale": 1, "in_group": range(BLOCK_ROWS),
        }))  # fmt: skip
        now = Signal(held.shape())
        with m.If(self.begins):
            m.d.comb += [
                now.row.eq(shape.row),
                now.outer_row.eq(shape.row),
                now.left.eq(shape.rows),
                now.is_scale.eq(is_block),
            ]
        with m.Else():
            m.d.comb += now.eq(held)

        # Rows of this section: scales of one lane or two, codes of a group, or rows of a step.
        row_bytes = Signal(ROW_BYTES_BITS)
        left = Signal(COUNT_BITS)
        most = Signal(range(count + 1))
        wide = shape.scale_bytes[2]  # two rows of fp16
        m.d.comb += [
            row_bytes.eq(shape.row_bytes),
            left.eq(Mux(is_block, BLOCK_ROWS - now.in_group, now.left)),
            most.eq(shape.most_rows),
            piece.width.eq(shape.width),
        ]
        with m.If(now.is_scale):
            m.d.comb += [
                row_bytes.eq(Mux(shape.scale_bytes[0], shape.lanes, shape.lanes << 1)),
                left.eq(Mux(wide, 2 - now.in_group, 1)),
                most.eq(2),
                piece.width.eq(Mux(shape.scale_bytes[0], WIDTHS.index(8), WIDTHS.index(16))),
            ]
        limit = Signal(range(count + 1))
        m.d.comb += limit.eq(Mux(left < most, left, most))

        # Bytes from the begin of slot 0's row on; which rows end.
        line = Array(row_bytes * k for k in range(count + 1))
        asked, end = Signal(RUN_BITS + 1), Signal(RUN_BITS + 1)
        room = Signal(RUN_BITS + 1)
        m.d.comb += [
            asked.eq(self.run_left + now.at),
            room.eq(line[limit]),
            self.ends.eq(asked <= room),
            self.left.eq(asked - room),
            end.eq(Mux(self.ends, asked, room)),
        ]
        # Rows end up to the limit, or as the run's bytes allow; the latter waits for no limit.
        done, within = Signal(range(count + 1)), Signal(range(count + 1))
        for k in range(1, count + 1):
            with m.If(asked >= line[k]):
                m.d.comb += within.eq(k)
        m.d.comb += done.eq(Mux(self.ends, within, limit))
        m.d.comb += [
            piece.bytes.eq(end - now.at),
            piece.start.eq(now.at),
            piece.end.eq(end),
            piece.row_bytes.eq(row_bytes),
            piece.is_scale.eq(now.is_scale),
            piece.scale.eq(now.in_group[0]),
            piece.transfer.eq(shape),
            piece.transfer.row.eq(now.row),
        ]

        # The next place.
        then = Signal(held.shape())
        ends_step = Signal()
        m.d.comb += [then.eq(now), then.at.eq(Mux(self.ends, asked - line[within], 0))]
        stride_rows = Array(shape.row_stride * k for k in range(count + 1))[done]
        with m.If(now.is_scale):
            m.d.comb += then.in_group.eq(now.in_group + done)
            with m.If(done == left):
                m.d.comb += [then.is_scale.eq(0), then.in_group.eq(0)]
        with m.Else():
            m.d.comb += [
                then.row.eq(now.row + stride_rows),
                then.left.eq(now.left - done),
                ends_step.eq(done == now.left),
            ]
            with m.If(is_block):
                m.d.comb += [
                    then.in_group.eq(now.in_group + done),  # wraps at the group's end
                    then.is_scale.eq(done == left),
                ]
        with m.If(ends_step):
            m.d.comb += [
                then.outer_row.eq(now.outer_row + shape.outer_rows),
                then.row.eq(now.outer_row + shape.outer_rows),
                then.left.eq(shape.rows),
            ]
        with m.If(self.advance):
            m.d.sync += held.eq(then)
        return m


def slot_row(piece: data.View, k: int) -> Value:
    """The memory row of slot k."""
    return (piece.transfer.row + piece.transfer.row_stride * k)[:ROW_BITS]


def slot_holds(piece: data.View, k: int) -> Value:
    """Whether slot k has any bytes."""
    return piece.end > piece.row_bytes * k


def slot_elements(piece: data.View, k: int, lanes: int) -> Value:
    """By element of slot k's row: whether the piece has it."""
    begin = piece.row_bytes * k
    end = Mux(piece.end > begin, piece.end - begin, 0)
    end = Mux(end > piece.row_bytes, piece.row_bytes, end)

    def below(nbytes: Value) -> Value:
        """The elements of so many bytes, one bit each."""
        counts = Array([nbytes << 1, nbytes, nbytes >> 1, nbytes >> 2])  # by width
        return ((C(1, 1) << counts[piece.width][:LANE_BITS]) - 1)[:lanes]

    return below(end) & ~below(piece.start) if k == 0 else below(end)
