"""DMA: moves rows between HBM and spm or vmem, dequantising on the way in.

A transfer is `outer` x `rows` rows of `lanes` elements; row (o, r) lies at HBM byte
`src + o * outer_bytes + r * row_bytes` and at row `dst + o * outer_rows + r * row_stride` of the
memory. With `indexed`, r * row_bytes becomes index[r] * row_bytes, index[r] being the int32 in lane
r % lanes of vmem row index_rows + r // lanes (gather on a load, scatter in increasing r on a
store).

Addresses, row_bytes and outer_bytes are multiples of what an element takes in HBM (fp32: 4 bytes;
bf16, and fp16 scales: 2 bytes), so that no cut falls into an element.

The queue cuts a transfer into runs, in the order of rows: consecutive rows that touch in HBM form
one segment (with an index, each row is one of its own), and a segment is cut where an address is a
multiple of `hbm.interleave_bytes`. One run is requested a cycle while credits last; runs return in
order. A run passes the engine in pieces, one a cycle, of `rows_per_cycle` rows at most.
"""

# ruff: noqa: RUF009  (`declare` is `dataclasses.field` with a bit layout)

import enum
import math
from dataclasses import dataclass

import numpy as np

from tapeout.chip import Chip
from tapeout.numerics import formats

from .fields import COUNT_MAX, Addr, Bits, Count, HbmAddr, declare
from .instruction import Fault, HardwareError, Instruction


class Memory(enum.IntEnum):
    """The on-chip side of a transfer."""

    SPM = 0  # a row of bf16; 4-byte formats take row pairs (high and low halves)
    VMEM = 1  # a row of fp32


class HbmFormat(enum.IntEnum):
    """How elements lie in HBM: names and numbers of `tapeout.numerics.Format`."""

    BF16 = 0
    FP32 = 1  # also int32: bits are copied
    FP8_E4M3 = 3
    FP8_E5M2 = 4
    INT8 = 5
    Q8_0 = 6
    Q4_1 = 7
    MXFP8_E4M3 = 8
    MXFP8_E5M2 = 9
    MXFP4 = 10

    @property
    def format(self) -> formats.Format:
        return formats.Format(self.value)


BLOCK_ROWS = 32  # rows of a group of the block formats
TAKE_UP_CYCLES = 2  # from issue to the first request
INDEXED_TAKE_UP_CYCLES = 7  # the same where an index is read and multiplied first


def alignment_bytes(fmt: HbmFormat) -> int:
    """What HBM addresses of the format are multiples of."""
    if fmt == HbmFormat.FP32:
        return 4
    return 2 if fmt in (HbmFormat.BF16, HbmFormat.Q8_0, HbmFormat.Q4_1) else 1


def formats_of(chip: Chip) -> list[HbmFormat]:
    """Those that transfers of the chip take."""
    return [f for f in HbmFormat if f.name.lower() in chip.dma.formats]


def rows_per_cycle(chip: Chip, fmt: HbmFormat, memory: Memory, row_stride: int) -> int:
    """Rows of HBM (of codes, in block formats) that a piece holds at most.

    The data path is `dma.bytes_per_cycle` wide, also where bf16 rows become rows of vmem twice as
    wide. Rows of one piece lie in different banks of spm, and in different rows of vmem.
    """
    if memory == Memory.VMEM:
        return chip.dma.bytes_per_cycle // (4 * chip.lanes) if row_stride else 1
    bits, banks = fmt.format.bits, chip.spm.banks_per_stripe
    rows = chip.dma.bytes_per_cycle * 8 // (bits * chip.lanes)
    if bits < 16:
        rows = min(rows, chip.dma.dequant_elements_per_cycle // chip.lanes)
    most = banks // 2 if fmt == HbmFormat.FP32 else banks
    return min(rows, most, banks // math.gcd(row_stride, banks))


@dataclass(frozen=True, kw_only=True)
class _Transfer(Instruction):
    check_cycles = 4  # bytes of a row, of an outer step, of all; bounds

    hbm: HbmAddr = declare(HbmAddr)
    format: HbmFormat = declare(Bits(4, enum=HbmFormat), HbmFormat.BF16)
    memory: Memory = declare(Bits(1, enum=Memory), Memory.SPM)
    row: Addr = declare(Addr)
    lane: int = declare(Bits(9), 0)
    lanes: int = declare(Bits(9))
    rows: Count = declare(Count)
    row_bytes: int = declare(Bits(32), 0)
    row_stride: int = declare(Bits(12), 1)
    outer: Count = declare(Count, Count(1))
    outer_bytes: int = declare(Bits(40), 0)
    outer_rows: int = declare(Bits(20), 0)
    indexed: bool = declare(Bits(1), False)
    index_rows: Addr = declare(Addr, Addr())


@dataclass(frozen=True, kw_only=True)
class Load(_Transfer):
    """Loads rows from HBM into lanes [lane, lane + lanes) of spm or vmem rows.

    spm: bf16 is copied bit by bit, fp32 into row pairs (row and row + 1, strides counting rows),
    narrower formats are dequantised to bf16. vmem: fp32 is copied, bf16 widened; others are
    illegal. Block formats: rows is a multiple of 32, row_bytes is ignored (a group of 32 rows is
    one piece of `numerics.Format.bytes_for(32, lanes)` bytes, groups follow each other), no index.
    A format that `dma.formats` of the chip leaves out is illegal. rows and outer lie in 0..65535;
    where either is zero nothing moves.
    """

    mnemonic = "dma.load"
    opcode = 48
    engine = "dma"
    faults = (
        Fault.ILLEGAL_OPERAND,
        Fault.SPM_BOUNDS,
        Fault.VMEM_BOUNDS,
        Fault.HBM_BOUNDS,
    )
    example = "dma.load hbm=b1[0+r3] format=q4_1 row=8192+r1 lanes=128 rows=128 posts=mxu.0"

    @staticmethod
    def execute(core, i) -> None:
        for _, rows, raw in _pieces(core, i):
            data = core.hbm.read(i.hbm.base, raw, _row_bytes(i))
            _fill(core, i, rows, data)


@dataclass(frozen=True, kw_only=True)
class Store(_Transfer):
    """Stores lanes [lane, lane + lanes) of spm or vmem rows to HBM.

    spm: bf16 is copied bit by bit, fp32 from row pairs. vmem: fp32 is copied, bf16 rounded. Other
    formats are illegal operands.
    """

    mnemonic = "dma.store"
    opcode = 49
    engine = "dma"
    faults = (
        Fault.ILLEGAL_OPERAND,
        Fault.SPM_BOUNDS,
        Fault.VMEM_BOUNDS,
        Fault.HBM_BOUNDS,
        Fault.HBM_PROTECTION,
    )
    example = "dma.store hbm=b2[0] row=0 lanes=64 rows=16 row_bytes=1024 waits=vpu.0"

    @staticmethod
    def execute(core, i) -> None:
        if i.format not in (HbmFormat.BF16, HbmFormat.FP32):
            raise HardwareError(
                Fault.ILLEGAL_OPERAND,
                f"dma.store writes bf16 or fp32, not {i.format.name.lower()}",
            )
        for _, rows, offsets in _pieces(core, i):
            data = _drain(core, i, rows)
            core.hbm.write(i.hbm.base, offsets, data)


def _row_bytes(i) -> int:
    """Bytes of one unit in HBM: a row, or a group of 32 rows of a block format."""
    fmt = i.format.format
    return fmt.bytes_for(BLOCK_ROWS if fmt.is_block else 1, i.lanes)


def _check(core, i) -> None:
    chip, fmt = core.chip, i.format.format
    words = i.format in (HbmFormat.BF16, HbmFormat.FP32)
    pairs = i.memory == Memory.SPM and i.format == HbmFormat.FP32
    rules = [
        (
            i.format in formats_of(chip),
            f"{chip.name} has no {fmt.name.lower()}: dma.formats leaves it out",
        ),
        (
            i.lanes >= 1 and i.lane + i.lanes <= chip.lanes,
            f"lane {i.lane} + lanes {i.lanes} must lie in the {chip.lanes} lanes of a row",
        ),
        (
            0 <= i.rows <= COUNT_MAX and 0 <= i.outer <= COUNT_MAX,
            f"rows = {i.rows} and outer = {i.outer} must lie in 0..{COUNT_MAX}",
        ),
        (
            not fmt.is_block or i.rows % BLOCK_ROWS == 0,
            f"rows = {i.rows} must be a multiple of {BLOCK_ROWS} for {fmt.name.lower()}",
        ),
        (not (fmt.is_block and i.indexed), f"{fmt.name.lower()} cannot be indexed"),
        (
            fmt.bits >= 8 or i.lanes % 2 == 0,
            f"lanes = {i.lanes} must be even for {fmt.name.lower()}",
        ),
        (
            i.memory == Memory.SPM or words,
            f"vmem takes bf16 or fp32, not {fmt.name.lower()}",
        ),
        (
            not pairs or not (i.row % 2 or i.row_stride % 2 or i.outer_rows % 2),
            f"row = {i.row} and the strides {i.row_stride} and {i.outer_rows} must be even for "
            f"fp32 in spm",
        ),
    ]
    unit = alignment_bytes(i.format)
    pitches = (i.hbm.offset, 0 if fmt.is_block else i.row_bytes, i.outer_bytes)
    rules.append(
        (
            not any(p % unit for p in pitches),
            f"address {i.hbm.offset}, row_bytes = {i.row_bytes} and outer_bytes = {i.outer_bytes} "
            f"must be multiples of {unit} for {fmt.name.lower()}",
        )
    )
    for holds, rule in rules:
        if not holds:
            raise HardwareError(Fault.ILLEGAL_OPERAND, f"{i.mnemonic}: {rule}")


def _pieces(core, i):
    """Yields, for each outer step, (o, memory rows, HBM offsets of the units)."""
    _check(core, i)
    if i.rows == 0:
        return
    block = i.format.format.is_block
    unit_bytes = _row_bytes(i)
    r = np.arange(i.rows)
    if i.indexed:  # rows of memory are known without the indices: they are judged before these
        memory = core.spm if i.memory == Memory.SPM else core.vmem
        steps = np.arange(i.outer)[:, None] * i.outer_rows
        memory.require((i.row + steps + r * i.row_stride).reshape(-1))
    for o in range(i.outer):
        rows = i.row + o * i.outer_rows + r * i.row_stride
        start = i.hbm.offset + o * i.outer_bytes
        if block:
            yield o, rows, start + np.arange(i.rows // BLOCK_ROWS) * unit_bytes
        elif i.indexed:
            index = core.vmem.read_lane(i.index_rows + r // core.chip.lanes, r % core.chip.lanes)
            yield o, rows, start + index.view(np.int32).astype(np.int64) * i.row_bytes
        else:
            yield o, rows, start + r * i.row_bytes


def _fill(core, i, rows, data: np.ndarray) -> None:
    """Writes `data` (uint8 [units, unit bytes]) into memory rows."""
    chip = core.chip
    valid = np.zeros((len(rows), chip.lanes), bool)
    valid[:, i.lane : i.lane + i.lanes] = True

    def wide(values: np.ndarray) -> np.ndarray:
        out = np.zeros(valid.shape, values.dtype)
        out[:, i.lane : i.lane + i.lanes] = values
        return out

    if i.format == HbmFormat.FP32:
        values = data.view(np.float32)
        if i.memory == Memory.VMEM:
            core.vmem.write(rows, wide(values), valid)
            return
        high, low = formats.split_planes(values)
        core.spm.write(rows, wide(high), valid)
        core.spm.write(rows + 1, wide(low), valid)
        return
    bits = formats.decode_rows(i.format.format, data.tobytes(), len(rows), i.lanes)
    if i.memory == Memory.VMEM:
        core.vmem.write(rows, wide(formats.bf16_to_f32(bits)), valid)
    else:
        core.spm.write(rows, wide(bits), valid)


def _drain(core, i, rows) -> np.ndarray:
    """Memory rows as uint8 [rows, row bytes]."""
    chip = core.chip
    lanes = slice(i.lane, i.lane + i.lanes)
    valid = np.zeros((len(rows), chip.lanes), bool)
    valid[:, lanes] = True
    if i.memory == Memory.VMEM:
        values = core.vmem.read(rows, valid)[:, lanes]
        if i.format == HbmFormat.BF16:
            values = formats.f32_to_bf16(values)
    elif i.format == HbmFormat.BF16:
        values = core.spm.read(rows, valid)[:, lanes]
    else:
        values = formats.merge_planes(
            core.spm.read(rows, valid)[:, lanes], core.spm.read(rows + 1, valid)[:, lanes]
        )
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(rows), -1)
