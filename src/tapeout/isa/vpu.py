"""Vector unit: one instruction is a fused chain over rows of fp32 lanes.

a, b, c --combine--> function --combine with d--> value --cast--> dst
                                                    +--reduce over lanes--> packed row in vmem
"""

# ruff: noqa: RUF009  (`declare` is `dataclasses.field` with a bit layout)

import enum
from dataclasses import dataclass

import numpy as np

from tapeout.numerics import arith, formats, functions, reduce

from .fields import COUNT_MAX, REGISTER, Addr, Bits, Count, Kind, Operand, declare
from .forms import ceil_div, function_passes, loop_cycles, rows_per_cycle
from .instruction import Fault, HardwareError, Instruction


class Combine(enum.IntEnum):
    """First combination, of a, b and c; comparisons give 1.0 or 0.0 (0.0 where either is NaN)."""

    A = 0
    ADD = 1  # a + b
    SUB = 2  # a - b
    RSUB = 3  # b - a
    MUL = 4  # a * b
    FMA = 5  # a * b + c
    FMS = 6  # a * b - c
    MAX = 7
    MIN = 8
    SELECT = 9  # a where c is not zero (NaN counts as not zero), else b
    GE = 10
    GT = 11
    EQ = 12


TAKE_C = (Combine.FMA, Combine.FMS, Combine.SELECT)  # the others leave operand c unused


class Combine2(enum.IntEnum):
    """Second combination, of the function's result u and d."""

    U = 0
    ADD = 1  # u + d
    SUB = 2  # u - d
    RSUB = 3  # d - u
    MUL = 4
    MAX = 5
    MIN = 6


class Function(enum.IntEnum):
    """Functions of one fp32, by their names in `tapeout.numerics`."""

    NONE = 0
    EXP2 = 1
    LOG2 = 2
    RECIP = 3
    RSQRT = 4
    SQRT = 5
    TANH = 6
    ERF = 7
    SIGMOID = 8
    SILU = 9
    GELU = 10
    GELU_TANH = 11
    SIN = 12
    COS = 13
    ABS = 14
    NEG = 15
    FLOOR = 16


class Mask(enum.IntEnum):
    """Which lanes of operand a are replaced by -inf, unread. g = t * lanes + lane."""

    NONE = 0
    BELOW = 1  # keeps g < limit + limit_step * m
    NOT_INDEX = 2  # drops g equal to the int32 in lane m % lanes of vmem row limit + m // lanes


class Reduce(enum.IntEnum):
    """Reduction of the value over the lanes of all tiles of a row m.

    Lanes fold in halves (lane l with l + h, h = lanes/2 .. 1) after padding with the identity;
    tiles join in increasing t.
    """

    NONE = 0
    SUM = 1
    SUMSQ = 2
    MAX = 3
    ARGMAX = 4  # int32 index g of the maximum, the smallest if several; NaN is above all


@dataclass(frozen=True, kw_only=True)
class Map(Instruction):
    """Runs the chain over `tiles` x `rows` rows (t, m), m fastest.

    Valid lanes of tile t are lane < min(lanes, width - t * lanes), all if width is 0, and lie in
    [lane_begin, lane_end), to the last lane if lane_end is 0. Only valid lanes are read, written
    and reduced. Operand a is permuted first: its lane l comes from lane ((l + roll) % lanes) ^ xor
    of the row, and validity is judged at the result lane l. Every step is rounded to fp32:

        value = combine2(function(combine(a, b, c)), d)

    dst kinds: none, spm_bf16, spm_fp32, vmem, acc. Operands b, c, d may also be row scalars or
    immediates; a is a row (or an immediate).
    A reduction writes lane m % lanes of vmem row reduce_dst + m // lanes; with reduce_accumulate it
    starts from what is there (not for argmax). With no valid lane, sums give -0, max gives -inf and
    argmax 0.
    The spm operands and the result lie in stripes of their own; in each acc stripe at most one
    operand reads and one result writes (model error `bank`). In acc and vmem an operand row may be
    the result row of the same (t, m); other overlap between results and operands is a race.
    tiles >= 1 and 1 <= rows <= 65535; strides and addresses of spm_fp32 are even; else illegal
    operand.

    Issue rate: up to `sublanes` rows a step along m; along t where rows = 1 without a reduction,
    and always for argmax. A step takes as many rows as the strides of all operands and of the
    result, in spm and acc, spread over banks: a power of two. It takes one cycle for each pass of
    its function through the `vpu.function_steps` slots, and the next map waits until the last pass
    has begun. Sums and maxima over several tiles return to a row m no sooner than an add takes.
    """

    mnemonic = "vpu.map"
    opcode = 32
    engine = "vpu"
    check_cycles = 4  # rows of a step, steps of a row or tile, of all, cycles; bounds
    faults = (
        Fault.ILLEGAL_OPERAND,
        Fault.SPM_BOUNDS,
        Fault.VMEM_BOUNDS,
        Fault.ACC_BOUNDS,
    )
    example = (
        "vpu.map tiles=4 rows=16 width=500 a=acc[0:16:1] b=row_scalar[32:0:0] "
        "dst=spm_bf16[16384:16:1] combine=sub function=exp2 reduce=sum reduce_dst=40"
    )

    tiles: int = declare(Bits(12), 1)
    rows: Count = declare(Count)
    width: Count = declare(Count, Count())
    a: Operand = declare(Operand)
    b: Operand = declare(Operand, Operand())
    c: Operand = declare(Operand, Operand())
    d: Operand = declare(Operand, Operand())
    dst: Operand = declare(Operand, Operand())
    roll: int = declare(Bits(8), 0)
    xor: int = declare(Bits(8), 0)
    lane_begin: int = declare(Bits(9), 0)
    lane_end: int = declare(Bits(9), 0)
    combine: Combine = declare(Bits(4, enum=Combine), Combine.A)
    function: Function = declare(Bits(5, enum=Function), Function.NONE)
    combine2: Combine2 = declare(Bits(4, enum=Combine2), Combine2.U)
    mask: Mask = declare(Bits(2, enum=Mask), Mask.NONE)
    limit: int = declare(Bits(20, signed=True), 0)
    limit_reg: int = declare(REGISTER, 0)
    limit_step: int = declare(Bits(1), 0)
    reduce: Reduce = declare(Bits(3, enum=Reduce), Reduce.NONE)
    reduce_dst: Addr = declare(Addr, Addr())
    reduce_accumulate: bool = declare(Bits(1), False)

    @staticmethod
    def occupancy(chip, i):
        along_tiles = i.reduce == 4 or (i.rows == 1 and i.reduce == 0)
        inner = i.tiles if along_tiles else i.rows
        outer = i.rows if along_tiles else i.tiles
        banks = chip.spm.banks_per_stripe
        sublanes = chip.vpu.sublanes
        rows = min(
            rows_per_cycle(i.a.kind, i.a.tile_stride if along_tiles else i.a.row_stride,
                           sublanes, banks),
            rows_per_cycle(i.b.kind, i.b.tile_stride if along_tiles else i.b.row_stride,
                           sublanes, banks),
            rows_per_cycle(i.c.kind, i.c.tile_stride if along_tiles else i.c.row_stride,
                           sublanes, banks),
            rows_per_cycle(i.d.kind, i.d.tile_stride if along_tiles else i.d.row_stride,
                           sublanes, banks),
            rows_per_cycle(i.dst.kind, i.dst.tile_stride if along_tiles else i.dst.row_stride,
                           sublanes, banks),
        )  # fmt: skip
        passes = function_passes(i.function, chip.vpu.function_steps)
        joins = i.reduce != 0 and i.reduce != 4 and i.tiles > 1
        apart = ceil_div(chip.vpu.adder_stages, passes) if joins else 1
        steps = outer * max(ceil_div(inner, rows), apart)
        if passes == 1:
            return steps
        around = loop_cycles(chip.vpu.function_steps, chip.vpu.adder_stages)
        return steps * passes + (passes - 1) * around

    @staticmethod
    def latency(chip, i, occupancy):
        return occupancy + chip.vpu.depth_cycles + (chip.vpu_reduce_cycles if i.reduce else 0)

    @staticmethod
    def execute(core, i) -> None:
        _Chain(core, i).run()


class _Chain:
    """One execution of `Map`: rows are flattened, t slowest."""

    def __init__(self, core, i) -> None:
        self.core, self.i, self.lanes = core, i, core.chip.lanes
        self._check()
        self.t = np.repeat(np.arange(i.tiles), i.rows)
        self.m = np.tile(np.arange(i.rows), i.tiles)
        lane = np.arange(self.lanes)
        self.g = self.t[:, None] * self.lanes + lane
        self.valid = self.g < i.width if i.width else np.ones_like(self.g, bool)
        self.valid &= (lane >= i.lane_begin) & (lane < (i.lane_end or self.lanes))

    def _check(self) -> None:
        i = self.i
        rules = [
            (i.tiles >= 1, "tiles must be 1 or more, not 0"),
            (1 <= i.rows <= COUNT_MAX, f"rows = {i.rows} must lie in 1..{COUNT_MAX}"),
            (i.width >= 0, f"width = {i.width} must be zero or more"),
            (
                i.a.kind not in (Kind.NONE, Kind.ROW_SCALAR),
                "operand a must be a row or an immediate",
            ),
            (i.dst.kind not in (Kind.ROW_SCALAR, Kind.IMMEDIATE), "dst must be a row"),
            (
                i.reduce != Reduce.ARGMAX or not i.reduce_accumulate,
                "reduce argmax cannot accumulate",
            ),
            (i.dst.kind != Kind.NONE or i.reduce != Reduce.NONE, "a chain must store or reduce"),
            (i.mask == Mask.NONE or i.a.kind != Kind.IMMEDIATE, "an immediate cannot be masked"),
            (i.roll < self.lanes and i.xor < self.lanes, "roll and xor must be less than lanes"),
            (
                i.lane_begin <= self.lanes and i.lane_end <= self.lanes,
                "lane_begin and lane_end must not exceed lanes",
            ),
        ]
        used = {
            "b": i.combine not in (Combine.A,),
            "c": i.combine in TAKE_C,
            "d": i.combine2 != Combine2.U,
        }
        for name, needed in used.items():
            present = getattr(i, name).kind != Kind.NONE
            rules.append((present == needed, f"operand {name} must be given exactly when used"))
        for name in ("a", "b", "c", "d", "dst"):
            o = getattr(i, name)
            if o.kind == Kind.SPM_FP32:
                rules.append(
                    (
                        not (o.imm % 2 or o.tile_stride % 2 or o.row_stride % 2),
                        f"operand {name}: addresses and strides of spm_fp32 must be even",
                    )
                )
        for holds, rule in rules:
            if not holds:
                raise HardwareError(Fault.ILLEGAL_OPERAND, f"vpu.map: {rule}")

    def _rows(self, operand) -> np.ndarray:
        return operand.imm + self.t * operand.tile_stride + self.m * operand.row_stride

    def _read(self, operand, valid: np.ndarray) -> np.ndarray | None:
        core, kind = self.core, operand.kind
        if kind == Kind.NONE:
            return None
        if kind == Kind.IMMEDIATE:
            return np.full(valid.shape, np.float32(operand.value))
        if kind == Kind.ROW_SCALAR:
            rows = operand.imm + self.t * operand.tile_stride + self.m // self.lanes
            return core.vmem.read_lane(rows, self.m % self.lanes)[:, None]
        rows = self._rows(operand)
        if kind == Kind.SPM_BF16:
            return formats.bf16_to_f32(core.spm.read(rows, valid))
        if kind == Kind.SPM_FP32:
            both = core.spm.read(np.concatenate([rows, rows + 1]), np.concatenate([valid, valid]))
            return formats.merge_planes(*np.split(both, 2))
        return (core.vmem if kind == Kind.VMEM else core.acc).read(rows, valid)

    def _operand_a(self) -> np.ndarray:
        i, valid = self.i, self.valid
        source = ((np.arange(self.lanes) + i.roll) % self.lanes) ^ i.xor
        if i.mask == Mask.BELOW:
            keep = valid & (self.g < i.limit + i.limit_step * self.m[:, None])
        elif i.mask == Mask.NOT_INDEX:
            index = self.core.vmem.read_lane(i.limit + self.m // self.lanes, self.m % self.lanes)
            keep = valid & (self.g != index.view(np.int32)[:, None])
        else:
            keep = valid
        if i.a.kind == Kind.IMMEDIATE:
            return np.full(valid.shape, np.float32(i.a.value))
        wanted = np.zeros_like(keep)
        wanted[:, source] = keep
        a = self._read(i.a, wanted)
        assert a is not None
        return np.where(keep, a[:, source], np.float32(-np.inf))

    def _combine(self, a, b, c) -> np.ndarray:
        op = self.i.combine
        if op == Combine.A:
            return a
        if op == Combine.FMA:
            return arith.fma(a, b, c)
        if op == Combine.FMS:
            return arith.fma(a, b, -c)
        if op == Combine.SELECT:
            return np.where(arith.flush(c) != 0, a, b)
        if op in (Combine.GE, Combine.GT, Combine.EQ):
            x, y = arith.flush(a), arith.flush(b)
            hit = {Combine.GE: x >= y, Combine.GT: x > y, Combine.EQ: x == y}[op]
            return np.where(hit, np.float32(1), np.float32(0))
        return _BINARY[op.name](a, b)

    def run(self) -> None:
        i = self.i
        with np.errstate(all="ignore"):
            a = self._operand_a()
            b, c, d = (self._read(o, self.valid) for o in (i.b, i.c, i.d))
            value = self._combine(a, b, c)
            if i.function != Function.NONE:
                value = functions.apply(functions.Function[i.function.name], value)
            if i.combine2 != Combine2.U:
                assert d is not None
                value = _BINARY[i.combine2.name](value, d)
        value = np.broadcast_to(value, self.valid.shape)
        if i.dst.kind != Kind.NONE:
            self._store(value, self.valid)
        if i.reduce != Reduce.NONE:
            self._reduce(value)

    def _store(self, value: np.ndarray, stored: np.ndarray) -> None:
        core, dst = self.core, self.i.dst
        rows = self._rows(dst)
        if dst.kind == Kind.SPM_BF16:
            core.spm.write(rows, formats.f32_to_bf16(value), stored)
        elif dst.kind == Kind.SPM_FP32:
            high, low = formats.split_planes(arith.canonical(arith.flush(value)))
            core.spm.write(
                np.concatenate([rows, rows + 1]),
                np.concatenate([high, low]),
                np.concatenate([stored, stored]),
            )
        else:
            memory = core.vmem if dst.kind == Kind.VMEM else core.acc
            memory.write(rows, arith.canonical(arith.flush(value)), stored)

    def _reduce(self, value: np.ndarray) -> None:
        i, vmem = self.i, self.core.vmem
        m = np.arange(i.rows)
        rows, lanes = i.reduce_dst + m // self.lanes, m % self.lanes
        shape = (i.tiles, i.rows, self.lanes)
        value, valid = value.reshape(shape), self.valid.reshape(shape)
        if i.reduce == Reduce.ARGMAX:
            vmem.write_lane(rows, lanes, _argmax(value, valid).view(np.float32))
            return
        join = arith.maximum if i.reduce == Reduce.MAX else arith.add
        total = vmem.read_lane(rows, lanes, accumulating=True) if i.reduce_accumulate else None
        for t in range(i.tiles):
            part = _FOLDS[i.reduce](value[t], valid[t])
            total = part if total is None else join(total, part)
        vmem.write_lane(rows, lanes, total)


def _argmax(value: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """int32 [rows]: the first index g of the largest valid value of [tiles, rows, lanes]."""
    tiles, rows, lanes = value.shape
    value = arith.flush(value.transpose(1, 0, 2).reshape(rows, tiles * lanes))
    valid = valid.transpose(1, 0, 2).reshape(rows, tiles * lanes)
    nan = valid & np.isnan(value)
    top = np.where(valid & ~nan, value, np.float32(-np.inf)).max(axis=1, keepdims=True)
    best = np.where(nan.any(axis=1, keepdims=True), nan, valid & (value == top))
    return best.argmax(axis=1).astype(np.int32)


def _fold_sum(value: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return reduce.fold_sum(np.where(valid, value, np.float32(-0.0)))


def _fold_sumsq(value: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return _fold_sum(arith.mul(value, value), valid)


def _fold_max(value: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return reduce.fold_max(np.where(valid, value, np.float32(-np.inf)))


_FOLDS = {Reduce.SUM: _fold_sum, Reduce.SUMSQ: _fold_sumsq, Reduce.MAX: _fold_max}

_BINARY = {
    "ADD": arith.add,
    "SUB": arith.sub,
    "RSUB": lambda x, y: arith.sub(y, x),
    "MUL": arith.mul,
    "MAX": arith.maximum,
    "MIN": arith.minimum,
}
