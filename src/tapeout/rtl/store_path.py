"""Pieces of stores on their way out of memory: rows from banks, rounding, alignment.

Contract: a piece taken in a cycle reads memory in that cycle, and `sends` its bytes `STAGES` later.
"""

from amaranth.hdl import Array, C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tapeout.chip import Chip
from tapeout.isa.dma import HbmFormat, Memory

from .decode import any_of
from .memory import spm_reads, vmem_reads
from .pieces import PIECE, next_stage, slot_holds, slot_row, slots
from .shift import left, right
from .transfer import LANE_BITS

STAGES = 4  # read, at the slots, rounded and packed, aligned


class StorePath(wiring.Component):
    """From rows to bytes:

    1. rows are read, by bank or port, and come to their slots;
    2. vmem's fp32 is rounded where bf16 is stored, lanes from `lane` on become bytes;
    3. rows are shifted behind each other.

    Ports:
        takes: the piece is taken in this cycle.
        sends, send_bytes, send_data: its bytes, from bit 0.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.slots = slots(chip, 16)
        self.vmem_slots = chip.dma.bytes_per_cycle // (4 * chip.lanes)
        super().__init__(
            {
                "takes": In(1),
                "piece": In(PIECE),
                "spm_read": Out(spm_reads(chip)),
                "vmem_read": Out(vmem_reads(chip, self.vmem_slots)),
                "sends": Out(1),
                "send_bytes": Out(16),
                "send_data": Out(8 * chip.dma.bytes_per_cycle),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._read(m)
        takes, piece = next_stage(m, self.takes, self.piece, "read")
        rows = self._at_slots(m, piece)
        takes, piece = next_stage(m, takes, piece, "came")
        packed = self._packed(m, rows, piece)
        takes, piece = next_stage(m, takes, piece, "packed")
        self._send(m, takes, piece, packed)
        return m

    def _bank_here(self, piece: data.View, k: int, bank: int) -> Value:
        """Whether slot k's row, or half of it, lies in the bank."""
        bits = exact_log2(self.chip.spm.banks_per_stripe)
        row = slot_row(piece, k)
        is_word = piece.transfer.format == HbmFormat.FP32
        return Mux(is_word, row[1:bits] == bank >> 1, row[:bits] == bank)

    def _read(self, m: Module) -> None:
        piece, spm, vmem = self.piece, self.spm_read, self.vmem_read
        is_word = piece.transfer.format == HbmFormat.FP32
        from_spm = self.takes & (piece.transfer.memory == Memory.SPM)
        for bank in range(self.chip.spm.banks_per_stripe):
            enables = []
            for k in range(self.slots):
                enable = Signal(name=f"bank_{bank}_reads_{k}")
                m.d.comb += enable.eq(
                    from_spm & slot_holds(piece, k) & self._bank_here(piece, k, bank)
                )
                enables.append(enable)
                with m.If(enable):
                    m.d.comb += spm.row[bank].eq(slot_row(piece, k) | (is_word & (bank & 1)))
            m.d.comb += spm.enable[bank].eq(any_of(enables))
        for k in range(self.vmem_slots):
            m.d.comb += [
                vmem.enable[k].eq(
                    self.takes & (piece.transfer.memory == Memory.VMEM) & slot_holds(piece, k)
                ),
                vmem.row[k].eq(slot_row(piece, k)),
            ]

    def _bits(self, k: int) -> int:
        return 32 if k < slots(self.chip, 32) else 16

    def _at_slots(self, m: Module, piece: data.View) -> list[Signal]:
        """By slot: its row, of 32 bits a lane or 16."""
        n, banks = self.chip.lanes, self.chip.spm.banks_per_stripe
        is_word = piece.transfer.format == HbmFormat.FP32
        rows = []
        for k in range(self.slots):
            bank = slot_row(piece, k)[: exact_log2(banks)]
            own = Array(self.spm_read.data[b] for b in range(banks))[bank]
            row = Signal(n * self._bits(k), name=f"row_{k}")
            if self._bits(k) == 16:
                m.d.sync += row.eq(own)
            else:
                low = Array(self.spm_read.data[b] for b in range(banks))[bank | 1]
                words = Cat(
                    Cat(low[16 * e : 16 * e + 16], own[16 * e : 16 * e + 16]) for e in range(n)
                )
                halves = Cat(Cat(own[16 * e : 16 * e + 16], C(0, 16)) for e in range(n))
                value = Mux(is_word, words, halves)
                if k < self.vmem_slots:
                    value = Mux(piece.transfer.memory == Memory.VMEM, self.vmem_read.data[k], value)
                m.d.sync += row.eq(value)
            rows.append(row)
        return rows

    def _packed(self, m: Module, rows: list[Signal], piece: data.View) -> list[Signal]:
        """By slot: the bytes of its row in HBM, others zero."""
        n = self.chip.lanes
        is_word = piece.transfer.format == HbmFormat.FP32
        rounds = (piece.transfer.memory == Memory.VMEM) & ~is_word
        used = ((C(1, 1) << piece.transfer.lanes[:LANE_BITS]) - 1)[:n]
        packed = []
        for k, row in enumerate(rows):
            bits = self._bits(k)
            first = right(
                m, f"first_{k}", row, piece.transfer.lane[: exact_log2(n)], bits, n * bits
            )
            halves, words = [], []
            for e in range(n):
                value = first[e * bits : (e + 1) * bits]
                half = value[:16]
                if bits == 32:
                    half = Mux(rounds, rounded(value), half)
                    words.append(Mux(used[e], value, 0))
                halves.append(Mux(used[e], half, 0))
            its = Signal(n * bits, name=f"packed_{k}")
            m.d.sync += its.eq(Mux(is_word, Cat(words), Cat(halves)) if bits == 32 else Cat(halves))
            packed.append(its)
        return packed

    def _send(self, m: Module, takes: Value, piece: data.View, packed: list[Signal]) -> None:
        width = len(self.send_data)
        line: Value = right(m, "slot_0", packed[0], piece.start, 8, len(packed[0]))
        for k, row in enumerate(packed[1:], 1):
            # A slot that holds nothing begins behind the last byte.
            begin = (piece.row_bytes * k - piece.start)[: (width // 8 - 1).bit_length()]
            behind = left(m, f"slot_{k}", row, begin, 8, width)
            line = line | Mux(slot_holds(piece, k), behind, 0)
        m.d.sync += [
            self.sends.eq(takes),
            self.send_bytes.eq(piece.bytes),
            self.send_data.eq(line),
        ]


def rounded(value: Value) -> Value:
    """bf16 of an fp32, as `tapeout.numerics.formats.f32_to_bf16`."""
    exponent, fraction = value[23:31], value[:23]
    up = value[15] & (value[:15].any() | value[16])
    is_nan = exponent.all() & (fraction != 0)
    return Mux(
        is_nan,
        0x7FC0,
        Mux(exponent == 0, Cat(C(0, 15), value[31]), (value[16:] + up)[:16]),
    )
