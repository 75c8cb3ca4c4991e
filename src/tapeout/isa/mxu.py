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

        straight:   stationary[k, n] = spm[src + k * stride].lane[n]    for k < `k`, n < `n`
        transposed: stationary[k, n] = spm[src + n * stride].lane[k]

    Rows of the array from `k` on are bypassed; columns from `n` on write nothing.
    1 <= k <= mxu.rows, 1 <= n <= mxu.cols, stride >= 1, else illegal operand.
    """

    mnemonic = "mxu.load"
    opcode = 16
    engine = "mxu"
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
        rate = min(
            chip.mxu.load_rows_per_cycle_transposed
            if i.transposed
            else chip.mxu.load_rows_per_cycle,
            chip.spm.banks_per_stripe // gcd(i.stride, chip.spm.banks_per_stripe),
        )
        return ceil_div(i.n if i.transposed else i.k, rate)

    @staticmethod
    def latency(chip, i, occupancy):
        return occupancy + 2

    @staticmethod
    def execute(core, i) -> None:
        chip = core.chip
        if not (1 <= i.k <= chip.mxu.rows and 1 <= i.n <= chip.mxu.cols and i.stride >= 1):
            raise HardwareError(
                Fault.ILLEGAL_OPERAND,
                f"mxu.load takes 1 <= k <= {chip.mxu.rows}, 1 <= n <= {chip.mxu.cols} and "
                f"stride >= 1, not k = {i.k}, n = {i.n}, stride = {i.stride}",
            )
        count, lanes = (i.n, i.k) if i.transposed else (i.k, i.n)
        rows = i.src + np.arange(count) * i.stride
        tile = core.spm.read(rows, core.lanes_below(count, lanes))[:, :lanes]
        core.shadow = tile.T.copy() if i.transposed else tile


@dataclass(frozen=True, kw_only=True)
class Matmul(Instruction):
    """Streams `rows` moving rows of bf16 through the array into `acc`.

    If a load came since the last matmul, its weights become the active ones. With K x N active
    weights, for each m < rows and n < N:

        moving[m] = spm[src + (m // inner) * outer_stride + (m % inner) * stride]
        s = -0.0; for k in 0..K-1: s = fma(moving[m, k], stationary[k, n], s)
        acc[dst + m].lane[n] = s, or acc[dst + m].lane[n] + s when accumulating

    With inner = 0, moving[m] = spm[src + m * stride].
    1 <= rows <= 65535; a matmul before any load is an illegal operand.
    """

    mnemonic = "mxu.matmul"
    opcode = 17
    engine = "mxu"
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
    inner: int = declare(Bits(16), 0)
    outer_stride: int = declare(Bits(16), 0)
    rows: Count = declare(Count)
    dst: Addr = declare(Addr)
    accumulate: Accumulate = declare(Bits(2, enum=Accumulate), Accumulate.WRITE)

    @staticmethod
    def occupancy(chip, i):
        return max(i.rows, chip.mxu.accumulate_cycles)

    @staticmethod
    def latency(chip, i, occupancy):
        return (
            i.rows
            + chip.mxu.adder_stages * chip.mxu.rows
            + ceil_div(chip.mxu.cols, chip.mxu.column_group)
            + chip.mxu.accumulate_cycles
            + 3
        )

    @staticmethod
    def execute(core, i) -> None:
        if core.shadow is not None:
            core.stationary, core.shadow = core.shadow, None
        if not 1 <= i.rows <= COUNT_MAX or core.stationary is None:
            raise HardwareError(
                Fault.ILLEGAL_OPERAND,
                f"mxu.matmul takes 1 <= rows <= {COUNT_MAX} after an mxu.load, not rows = {i.rows}"
                + ("" if core.stationary is not None else " with no weights loaded"),
            )
        m = np.arange(i.rows)
        outer, within = (m // i.inner, m % i.inner) if i.inner else (np.zeros_like(m), m)
        k = core.stationary.shape[0]
        moving = core.spm.read(
            i.src + outer * i.outer_stride + within * i.stride, core.lanes_below(i.rows, k)
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
