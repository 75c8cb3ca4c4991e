"""Matrix unit: a weight-stationary systolic array with double-buffered stationary weights.

One queue, two ports. A `load` fills the shadow weights; the next `matmul` swaps them in. Issue
times: a load at max(load port free, start of the previous matmul + 1); a matmul at max(stream port
free, start of the load before it + that load's occupancy).
"""

# ruff: noqa: RUF009  (`declare` is `dataclasses.field` with a bit layout)

import enum
from dataclasses import dataclass

import numpy as np

from tapeout.numerics import arith, formats
from tapeout.numerics import mxu as array

from .fields import COUNT_MAX, Addr, Bits, Count, declare
from .forms import ceil_div, gcd
from .instruction import Fault, HardwareError, Instruction


class Accumulate(enum.IntEnum):
    """What a matmul does with the accumulator row it writes."""

    WRITE = 0
    ADD = 1
    ADD_NOT_FIRST = 2  # writes on the first iteration of the innermost loop, adds after


@dataclass(frozen=True, kw_only=True)
class Load(Instruction):
    """Loads a stationary tile of k x n bf16 from spm into the shadow weights.

        straight:   stationary[k, n] = spm[src + k].lane[n]             for k < `k`, n < `n`
        transposed: stationary[k, n] = spm[src + n * stride].lane[k]

    Rows of the array from `k` on are bypassed; columns from `n` on write nothing.
    1 <= k <= mxu.rows, 1 <= n <= mxu.cols, stride >= 1, else illegal operand. A straight load's
    rows follow each other from a multiple of spm.banks_per_stripe on: stride = 1, else illegal
    operand.

    The weights of row k are written in the wave of the array, k * mxu.adder_stages cycles after
    those of row 0. A straight load therefore reads row k of spm that late, in its own one of
    ceil(mxu.rows / mxu.load_rows_per_cycle) slots, so that loads behind each other never meet in
    a bank: it takes that many cycles of its port whatever k is. A transposed load reads its rows
    at once, and its lanes wait beside the array.
    """

    mnemonic = "mxu.load"
    opcode = 16
    engine = "mxu"
    check_cycles = 2  # products of strides and counts, bounds
    faults = (
        Fault.ILLEGAL_OPERAND,
        Fault.SPM_BOUNDS,
    )
    example = "mxu.load src=8192+r1 k=128 n=96 waits=dma0.0 posts=dma0.0"

    src: Addr = declare(Addr)
    stride: int = declare(Bits(12), 1)
    k: Count = declare(Count)
    n: Count = declare(Count)
    transposed: bool = declare(Bits(1), False)

    @staticmethod
    def occupancy(chip, i):
        if i.transposed:
            rate = min(
                chip.mxu.load_rows_per_cycle_transposed,
                chip.spm.banks_per_stripe // gcd(i.stride, chip.spm.banks_per_stripe),
            )
            return ceil_div(i.n, rate)
        return ceil_div(chip.mxu.rows, chip.mxu.load_rows_per_cycle)

    @staticmethod
    def latency(chip, i, occupancy):
        return occupancy + 2 + (0 if i.transposed else (i.k - 1) * chip.mxu.adder_stages)

    @staticmethod
    def execute(core, i) -> None:
        chip = core.chip
        if not (1 <= i.k <= chip.mxu.rows and 1 <= i.n <= chip.mxu.cols and i.stride >= 1):
            raise HardwareError(
                Fault.ILLEGAL_OPERAND,
                f"mxu.load takes 1 <= k <= {chip.mxu.rows}, 1 <= n <= {chip.mxu.cols} and "
                f"stride >= 1, not k = {i.k}, n = {i.n}, stride = {i.stride}",
            )
        banks = chip.spm.banks_per_stripe
        if not i.transposed and (i.stride != 1 or i.src % banks):
            raise HardwareError(
                Fault.ILLEGAL_OPERAND,
                f"a straight mxu.load takes consecutive rows from a multiple of {banks} "
                f"(spm.banks_per_stripe) on, not stride = {i.stride}, src = {i.src}",
            )
        count, lanes = (i.n, i.k) if i.transposed else (i.k, i.n)
        rows = i.src + np.arange(count) * i.stride
        port = "transposed" if i.transposed else "load"
        tile = core.spm.read(rows, core.lanes_below(count, lanes), port=port)[:, :lanes]
        core.shadow = tile.T.copy() if i.transposed else tile


@dataclass(frozen=True, kw_only=True)
class Matmul(Instruction):
    """Streams M = outer x rows moving rows of bf16 through the array into `acc`.

    If a load came since the last matmul, its weights become the active ones. With K x N active
    weights, for each m < M and n < N:

        moving[m] = spm[src + (m // rows) * outer_stride + (m % rows) * stride]
        s = -0.0; for k in 0..K-1: s = fma(moving[m, k], stationary[k, n], s)
        acc[dst + m].lane[n] = s, or acc[dst + m].lane[n] + s when accumulating

    rows >= 1, outer >= 1, M <= 65535, else illegal operand; so is a matmul before any load.
    """

    mnemonic = "mxu.matmul"
    opcode = 17
    engine = "mxu"
    check_cycles = 2  # products of strides and counts, bounds
    faults = (
        Fault.ILLEGAL_OPERAND,
        Fault.SPM_BOUNDS,
        Fault.ACC_BOUNDS,
    )
    example = (
        "mxu.matmul src=0+r2 rows=16 dst=256 accumulate=add_not_first posts=vpu.0 post_when=last"
    )

    src: Addr = declare(Addr)
    stride: int = declare(Bits(12), 1)
    rows: Count = declare(Count)
    outer: int = declare(Bits(16), 1)
    outer_stride: int = declare(Bits(16), 0)
    dst: Addr = declare(Addr)
    accumulate: Accumulate = declare(Bits(2, enum=Accumulate), Accumulate.WRITE)

    @staticmethod
    def occupancy(chip, i):
        return max(i.outer * i.rows, chip.mxu.accumulate_cycles)

    @staticmethod
    def latency(chip, i, occupancy):
        return (
            i.outer * i.rows
            + chip.mxu.adder_stages * chip.mxu.rows
            + ceil_div(chip.mxu.cols, chip.mxu.column_group)
            + chip.mxu.accumulate_cycles
            + 3
        )

    @staticmethod
    def execute(core, i) -> None:
        if core.shadow is not None:
            core.stationary, core.shadow = core.shadow, None
        total = i.outer * i.rows
        if i.rows < 1 or i.outer < 1 or total > COUNT_MAX or core.stationary is None:
            raise HardwareError(
                Fault.ILLEGAL_OPERAND,
                f"mxu.matmul takes 1 to {COUNT_MAX} rows after an mxu.load, not outer x rows = "
                f"{i.outer} x {i.rows}"
                + ("" if core.stationary is not None else " with no weights loaded"),
            )
        m = np.arange(total)
        k = core.stationary.shape[0]
        moving = core.spm.read(
            i.src + m // i.rows * i.outer_stride + m % i.rows * i.stride,
            core.lanes_below(total, k),
            port="stream",
        )[:, :k]
        result = array.matmul_pass(moving, core.stationary)
        _write_acc(core, i.dst + m, result, i.accumulate)


@dataclass(frozen=True, kw_only=True)
class Unload(Instruction):
    """Streams one-hot rows: acc[dst + k].lane[n] = stationary[k, n], exactly, for k < K, n < N.

    After a transposed load it transposes a tile. NaN is made canonical and subnormals are flushed,
    as every result of the array is.
    """

    mnemonic = "mxu.unload"
    opcode = 18
    engine = "mxu"
    check_cycles = 2  # products of strides and counts, bounds
    faults = (
        Fault.ILLEGAL_OPERAND,
        Fault.ACC_BOUNDS,
    )
    example = "mxu.unload dst=0 posts=vpu.1"

    dst: Addr = declare(Addr)

    @staticmethod
    def occupancy(chip, i):
        return max(chip.mxu.rows, chip.mxu.accumulate_cycles)

    @staticmethod
    def latency(chip, i, occupancy):
        return (
            chip.mxu.rows
            + chip.mxu.adder_stages * chip.mxu.rows
            + ceil_div(chip.mxu.cols, chip.mxu.column_group)
            + chip.mxu.accumulate_cycles
            + 3
        )

    @staticmethod
    def execute(core, i) -> None:
        if core.shadow is not None:
            core.stationary, core.shadow = core.shadow, None
        if core.stationary is None:
            raise HardwareError(
                Fault.ILLEGAL_OPERAND, "mxu.unload needs an mxu.load before it: no weights loaded"
            )
        values = arith.canonical(arith.flush(formats.bf16_to_f32(core.stationary)))
        _write_acc(core, i.dst + np.arange(values.shape[0]), values, Accumulate.WRITE)


def _write_acc(core, rows, values, accumulate) -> None:
    valid = core.lanes_below(*values.shape)
    wide = np.zeros((values.shape[0], core.chip.lanes), np.float32)
    wide[:, : values.shape[1]] = values
    add = accumulate == Accumulate.ADD or (
        accumulate == Accumulate.ADD_NOT_FIRST and not core.first_iteration
    )
    if add:
        wide = np.where(valid, arith.add(core.acc.read(rows, valid, accumulating=True), wide), wide)
    core.acc.write(rows, wide, valid, accumulating=add)
