"""Pieces of loads on their way into memory: alignment, expansion, dequantisation, rows to banks.

Contract: a piece taken in a cycle is in memory at the end of the cycle `STAGES` later. Pieces
follow each other one a cycle, and never overtake.
"""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tapeout.chip import Chip
from tapeout.isa.dma import HbmFormat, Memory, formats_of

from .boxes import box
from .decode import any_of
from .dequantise import KIND, Dequantiser, DequantiserRow, kind_of
from .memory import spm_writes, vmem_writes
from .pieces import PIECE, next_stage, slot_elements, slot_holds, slot_row, slots
from .shift import left, right
from .transfer import ROW_BITS

STAGES = 3 + Dequantiser.STAGES  # aligned, placed, (dequantised), at the banks


class LoadPath(wiring.Component):
    """From bytes to rows:

    1. the bytes of each slot's row are shifted to its begin;
    2. elements are spread to lanes, from lane `lane` on; scales are kept by lane;
    3. codes become bf16, others wait as long;
    4. each bank of spm, and each port of vmem, takes its row.

    Ports:
        takes: the piece is taken in this cycle. data: its bytes, from bit 0.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.slots = slots(chip)
        self.vmem_slots = chip.dma.bytes_per_cycle // (4 * chip.lanes)
        super().__init__(
            {
                "takes": In(1),
                "piece": In(PIECE),
                "data": In(8 * chip.dma.bytes_per_cycle),
                "spm_write": Out(spm_writes(chip)),
                "vmem_write": Out(vmem_writes(chip, self.vmem_slots)),
            }
        )

    def _bits(self, k: int) -> int:
        """Of the widest element that slot k can hold."""
        return max(b for b in (4, 8, 16, 32) if k < slots(self.chip, b))

    def _position_bits(self) -> int:
        """Of a byte in the data."""
        return (self.chip.dma.bytes_per_cycle - 1).bit_length()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        rows = self._aligned(m)
        takes, piece = next_stage(m, self.takes, self.piece, "aligned")
        lanes, masks = self._placed(m, rows, piece)
        kind: data.View = Signal(KIND, name="placed_kind")
        m.d.sync += kind.eq(kind_of(m, piece.transfer.format, formats_of(self.chip)))
        takes, piece = next_stage(m, takes, piece, "placed")
        scales = self._scales(m, takes, piece, lanes, masks)
        self._rows(m, platform, takes, piece, kind, lanes, masks, scales)
        return m

    def _aligned(self, m: Module) -> list[Signal]:
        """By slot: the bytes of its row."""
        piece, rows = self.piece, []
        for k in range(self.slots):
            width = self.chip.lanes * self._bits(k)
            row = Signal(width, name=f"row_{k}")
            if k == 0:
                shifted = left(m, "slot_0", self.data, piece.start, 8, width)
            else:
                begin = (piece.row_bytes * k - piece.start)[: self._position_bits()]
                shifted = right(m, f"slot_{k}", self.data, begin, 8, width)
            m.d.sync += row.eq(shifted)
            rows.append(row)
        return rows

    def _placed(
        self, m: Module, rows: list[Signal], piece: data.View
    ) -> tuple[list[Signal], list[Signal]]:
        """By slot: elements at their lanes, and which lanes have one."""
        lanes = self.chip.lanes
        placed, masks = [], []
        for k, row in enumerate(rows):
            bits = self._bits(k)
            spread = Signal(lanes * bits, name=f"spread_{k}")
            with m.Switch(piece.width):
                for code, width in enumerate((4, 8, 16, 32)):
                    if width > bits:
                        continue
                    with m.Case(code):
                        m.d.comb += spread.eq(Cat(
                            Cat(row[e * width : (e + 1) * width], C(0, bits - width))
                            for e in range(lanes)
                        ))  # fmt: skip
            by = piece.transfer.lane[: exact_log2(lanes)]
            elements = Signal(lanes * bits, name=f"lanes_{k}")
            mask = Signal(lanes, name=f"mask_{k}")
            m.d.sync += [
                elements.eq(left(m, f"spread_{k}", spread, by, bits, lanes * bits)),
                mask.eq(
                    Mux(
                        slot_holds(piece, k),
                        left(m, f"elements_{k}", slot_elements(piece, k, lanes), by, 1, lanes),
                        0,
                    )
                ),
            ]
            placed.append(elements)
            masks.append(mask)
        return placed, masks

    def _scales(
        self, m: Module, takes: Value, piece: data.View, lanes: list[Signal], masks: list[Signal]
    ) -> list[data.View]:
        """First and second scales of the group at hand, by lane."""
        n = self.chip.lanes
        held = [
            Signal(data.ArrayLayout(16, n), name=name) for name in ("first_scales", "second_scales")
        ]
        for which, scales in enumerate(held):
            for lane in range(n):
                for k in range(min(2, self.slots)):
                    if self._bits(k) < 8:
                        continue
                    bits = self._bits(k)
                    value = lanes[k][lane * bits : lane * bits + min(16, bits)]
                    with m.If(
                        takes & piece.is_scale & masks[k][lane] & ((piece.scale + k)[0] == which)
                    ):
                        m.d.sync += scales[lane].eq(value)
        return held

    def _rows(
        self, m: Module, platform: object, takes: Value, piece: data.View, kind: data.View,
        lanes: list[Signal], masks: list[Signal], scales: list[data.View],
    ) -> None:  # fmt: skip
        n, formats = self.chip.lanes, formats_of(self.chip)
        narrow: list[Value] = []
        for k in range(self.slots):
            if not self.chip.dma.dequantises:
                narrow.append(C(0, 16 * n))
                continue
            bits = self._bits(k)
            unit = DequantiserRow(n, formats)
            m.submodules[f"dequantise_{k}"] = box(platform, "dequantiser_row", unit)
            codes = Cat(
                Cat(lanes[k][lane * bits : lane * bits + min(8, bits)], C(0, 8 - min(8, bits)))
                for lane in range(n)
            )
            m.d.comb += [
                unit.kind.eq(kind),
                unit.codes.eq(Mux(kind.is_narrow, codes, 0)),  # it rests where it is not needed
                unit.first.eq(scales[0]),
                unit.second.eq(scales[1]),
            ]
            narrow.append(unit.results)
        writes = Signal()
        m.d.comb += writes.eq(takes & ~piece.is_scale)
        takes = writes
        for stage in range(Dequantiser.STAGES):
            takes, piece = next_stage(m, takes, piece, f"wait_{stage}")
            for k in range(self.slots):
                mask, value = (
                    Signal(n, name=f"mask_{k}_{stage}"),
                    Signal.like(lanes[k], name=f"value_{k}_{stage}"),
                )
                m.d.sync += [mask.eq(masks[k]), value.eq(lanes[k])]
                masks[k], lanes[k] = mask, value
        self._write_spm(m, takes, piece, lanes, masks, narrow)
        self._write_vmem(m, takes, piece, lanes, masks)

    def _halves(self, k: int, lanes: list[Signal]) -> tuple[Value, Value]:
        """The lower and upper 16 bits of each lane of slot k."""
        bits, n = self._bits(k), self.chip.lanes
        low = Cat(
            Cat(lanes[k][e * bits : e * bits + min(16, bits)], C(0, 16 - min(16, bits)))
            for e in range(n)
        )
        if bits < 32:
            return low, C(0, 16 * n)
        return low, Cat(lanes[k][e * 32 + 16 : e * 32 + 32] for e in range(n))

    def _write_spm(
        self, m: Module, takes: Value, piece: data.View, lanes: list[Signal],
        masks: list[Signal], narrow: list[Value],
    ) -> None:  # fmt: skip
        """A bank takes the row of the slot that lies there; of an fp32 the half that does."""
        banks, port = self.chip.spm.banks_per_stripe, self.spm_write
        bank_bits = exact_log2(banks)
        is_word = piece.transfer.format == HbmFormat.FP32
        is_bf16 = piece.transfer.format == HbmFormat.BF16
        to_spm = takes & (piece.transfer.memory == Memory.SPM)
        rows, values, uppers = [], [], []
        for k in range(self.slots):
            low, high = self._halves(k, lanes)
            row = Signal(ROW_BITS, name=f"spm_row_{k}")
            value, upper = (
                Signal(16 * self.chip.lanes, name=f"spm_value_{k}"),
                Signal(16 * self.chip.lanes, name=f"spm_upper_{k}"),
            )
            m.d.comb += [
                row.eq(slot_row(piece, k)),
                value.eq(Mux(is_bf16 | is_word, low, narrow[k])),
                upper.eq(high),
            ]
            rows.append(row)
            values.append(value)
            uppers.append(upper)
        for bank in range(banks):
            enables = []
            for k in range(self.slots):
                # An fp32 lies in an even row, its lower half in the next.
                here = Mux(is_word, rows[k][1:bank_bits] == bank >> 1,
                           rows[k][:bank_bits] == bank)  # fmt: skip
                enable = Signal(name=f"bank_{bank}_takes_{k}")
                m.d.comb += enable.eq(to_spm & here & masks[k].any())
                enables.append(enable)
                lower_half = is_word & (bank & 1)
                with m.If(enable):
                    m.d.sync += [
                        port.row[bank].eq(rows[k] | lower_half),
                        port.data[bank].eq(
                            Mux(is_word, uppers[k], values[k]) if bank % 2 == 0 else values[k]
                        ),
                        port.mask[bank].eq(masks[k]),
                    ]
            m.d.sync += port.enable[bank].eq(any_of(enables))

    def _write_vmem(
        self, m: Module, takes: Value, piece: data.View, lanes: list[Signal], masks: list[Signal]
    ) -> None:
        n, port = self.chip.lanes, self.vmem_write
        widens = piece.transfer.format == HbmFormat.BF16
        for k in range(self.vmem_slots):
            value = lanes[k]
            wide = Cat(Cat(C(0, 16), value[32 * e : 32 * e + 16]) for e in range(n))
            m.d.sync += [
                port.enable[k].eq(takes & (piece.transfer.memory == Memory.VMEM) & masks[k].any()),
                port.row[k].eq(slot_row(piece, k)),
                port.data[k].eq(Mux(widens, wide, value)),
                port.mask[k].eq(masks[k]),
            ]
