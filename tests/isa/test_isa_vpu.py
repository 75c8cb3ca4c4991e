"""vpu.map against a plain element-by-element reference, on values whose arithmetic is exact."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import bare_core, execute, fill

from tapeout.chip import load
from tapeout.isa import Addr, Count, HardwareError, Kind, Operand
from tapeout.isa.interp import Core
from tapeout.isa.vpu import Combine, Combine2, Function, Map, Mask, Reduce
from tapeout.numerics import formats

CHIP = load("tiny", ["vmem.rows=512", "acc.rows_per_stripe=128"])
LANES = CHIP.lanes
STRIPE = CHIP.spm.rows_per_stripe
ROWS, TILES = 5, 3
EXACT = {  # functions whose results are exact
    Function.NONE: lambda x: x,
    Function.ABS: abs,
    Function.NEG: lambda x: -x,
    Function.FLOOR: lambda x: float(np.floor(x)),
}
COMBINE = {
    Combine.A: lambda a, b, c: a,
    Combine.ADD: lambda a, b, c: a + b,
    Combine.SUB: lambda a, b, c: a - b,
    Combine.RSUB: lambda a, b, c: b - a,
    Combine.MUL: lambda a, b, c: a * b,
    Combine.FMA: lambda a, b, c: a * b + c,
    Combine.FMS: lambda a, b, c: a * b - c,
    Combine.MAX: lambda a, b, c: max(a, b),
    Combine.MIN: lambda a, b, c: min(a, b),
    Combine.SELECT: lambda a, b, c: a if c != 0 else b,
    Combine.GE: lambda a, b, c: float(a >= b),
    Combine.GT: lambda a, b, c: float(a > b),
    Combine.EQ: lambda a, b, c: float(a == b),
}
COMBINE2 = {
    Combine2.U: lambda u, d: u,
    Combine2.ADD: lambda u, d: u + d,
    Combine2.SUB: lambda u, d: u - d,
    Combine2.RSUB: lambda u, d: d - u,
    Combine2.MUL: lambda u, d: u * d,
    Combine2.MAX: max,
    Combine2.MIN: min,
}
PLACE = {"a": 0, "b": 1, "c": 2, "d": 3, "dst": 4}  # spm stripe, or block of rows elsewhere


def place(name: str, kind: Kind) -> int:
    return PLACE[name] * (STRIPE if kind in (Kind.SPM_BF16, Kind.SPM_FP32) else 50)


def read(core: Core, o: Operand, t: int, m: int, lane: int) -> float:
    if o.kind == Kind.IMMEDIATE:
        return o.value
    if o.kind == Kind.ROW_SCALAR:
        return float(core.vmem.values[o.imm + t * o.tile_stride + m // LANES, m % LANES])
    row = o.imm + t * o.tile_stride + m * o.row_stride
    if o.kind == Kind.SPM_BF16:
        return float(formats.bf16_to_f32(core.spm.values[row, lane]))
    if o.kind == Kind.SPM_FP32:
        bits = int(core.spm.values[row, lane]) << 16 | int(core.spm.values[row + 1, lane])
        return float(np.uint32(bits).view(np.float32))
    return float((core.vmem if o.kind == Kind.VMEM else core.acc).values[row, lane])


def reference(core: Core, i: Map) -> tuple[dict, dict]:
    """({(t, m, lane): stored value}, {m: reduction})."""
    width = i.width.imm or i.tiles * LANES
    stored, values = {}, {}
    for t in range(i.tiles):
        for m in range(i.rows.imm):
            for lane in range(LANES):
                g = t * LANES + lane
                if g >= width or not i.lane_begin <= lane < (i.lane_end or LANES):
                    continue
                source = ((lane + i.roll) % LANES) ^ i.xor
                a = read(core, i.a, t, m, source)
                if i.mask == Mask.BELOW and g >= i.limit + i.limit_step * m:
                    a = -math.inf
                if i.mask == Mask.NOT_INDEX:
                    index = core.vmem.values[i.limit + m // LANES, m % LANES].view(np.int32)
                    a = -math.inf if g == index else a
                b, c, d = (read(core, o, t, m, lane) for o in (i.b, i.c, i.d))
                u = EXACT[i.function](COMBINE[i.combine](a, b, c))
                stored[t, m, lane] = values[m, g] = COMBINE2[i.combine2](u, d)
    reduced = {}
    for m in range(i.rows.imm):
        row = {g: v for (mm, g), v in values.items() if mm == m}
        start = core.vmem.values[i.reduce_dst.imm + m // LANES, m % LANES]
        if i.reduce == Reduce.ARGMAX:
            reduced[m] = min([g for g, v in row.items() if v == max(row.values())], default=0)
        elif i.reduce == Reduce.MAX:
            reduced[m] = max(
                [*row.values(), *([start] if i.reduce_accumulate else [])], default=-math.inf
            )
        elif i.reduce:
            power = 2 if i.reduce == Reduce.SUMSQ else 1
            total = sum(v**power for v in row.values())
            reduced[m] = total + (start if i.reduce_accumulate else 0)
    return stored, reduced


def random_core(rng: np.random.Generator) -> Core:
    """Small integers everywhere: sums and products stay exact, in bf16 too."""
    core = bare_core(CHIP)
    fp32 = lambda shape: rng.integers(-7, 8, shape).astype(np.float32)  # noqa: E731
    fill(core.vmem, slice(None), fp32(core.vmem.values.shape))
    fill(core.acc, slice(None), fp32(core.acc.values.shape))
    fill(core.spm, slice(None), formats.f32_to_bf16(fp32(core.spm.values.shape)))
    core.vmem.values[400:402] = rng.integers(0, TILES * LANES, (2, LANES), np.int32).view(
        np.float32
    )
    for stripe in (5, 6, 7, 8, 9):  # fp32 pairs: low halves zero
        core.spm.values[stripe * STRIPE + 1 : (stripe + 1) * STRIPE : 2] = 0
    return core


def operand(draw, name: str, kinds: list[Kind]) -> Operand:
    kind = draw(st.sampled_from(kinds))
    if kind == Kind.NONE:
        return Operand()
    if kind == Kind.IMMEDIATE:
        return Operand(kind, value=float(draw(st.integers(-4, 4))))
    step = 2 if kind == Kind.SPM_FP32 else 1
    row_stride = step * draw(st.sampled_from([1, 3] if name == "dst" else [0, 1, 3]))
    tile_stride = step * (16 if name == "dst" else draw(st.sampled_from([0, 16])))
    imm = place(name, kind) + (5 * STRIPE if kind == Kind.SPM_FP32 else 0)
    return Operand(kind, imm, 0, tile_stride, row_stride)


@st.composite
def maps(draw) -> Map:
    rows = [Kind.SPM_BF16, Kind.SPM_FP32, Kind.VMEM, Kind.ACC]
    others = [*rows, Kind.ROW_SCALAR, Kind.IMMEDIATE]
    combine = draw(st.sampled_from(list(Combine)))
    combine2 = draw(st.sampled_from(list(Combine2)))
    three = combine in (Combine.FMA, Combine.FMS, Combine.SELECT)
    reduce = draw(st.sampled_from(list(Reduce)))
    mask = draw(st.sampled_from(list(Mask)))
    tiles, count = draw(st.integers(1, TILES)), draw(st.integers(1, ROWS))
    a = operand(draw, "a", rows if mask else [*rows, Kind.IMMEDIATE])
    # Sums of -inf need no order; other chains of infinities give NaN, tested apart.
    if mask and (combine != Combine.A or combine2 != Combine2.U):
        mask = Mask.NONE
    begin = draw(st.integers(0, LANES))
    return Map(
        tiles=tiles,
        rows=Count(count),
        width=Count(draw(st.integers(0, tiles * LANES))),
        a=a,
        b=operand(draw, "b", others) if combine != Combine.A else Operand(),
        c=operand(draw, "c", others) if three else Operand(),
        d=operand(draw, "d", others) if combine2 != Combine2.U else Operand(),
        dst=operand(draw, "dst", rows if not reduce else [*rows, Kind.NONE]),
        roll=draw(st.integers(0, LANES - 1)),
        xor=draw(st.integers(0, LANES - 1)),
        lane_begin=begin,
        lane_end=draw(st.integers(0, LANES)),
        combine=combine,
        function=draw(st.sampled_from(list(EXACT))),
        combine2=combine2,
        mask=mask,
        limit=400 if mask == Mask.NOT_INDEX else draw(st.integers(-3, tiles * LANES)),
        limit_step=draw(st.integers(0, 1)),
        reduce=reduce,
        reduce_dst=Addr(410),
        reduce_accumulate=reduce not in (Reduce.NONE, Reduce.ARGMAX) and draw(st.booleans()),
    )


@settings(max_examples=300, deadline=None)
@given(maps(), st.integers(0, 2**32))
def test_map_against_reference(i: Map, seed: int) -> None:
    core = random_core(np.random.default_rng(seed))
    before = {m.name: m.values.copy() for m in (core.spm, core.vmem, core.acc)}
    stored, reduced = reference(core, i)
    execute(core, i)
    got = dataclasses.replace(i.dst, reg=0)
    for (t, m, lane), value in stored.items():
        if i.dst.kind == Kind.SPM_BF16:
            value = float(formats.bf16_to_f32(formats.f32_to_bf16(np.float32(value))))
        if i.dst.kind != Kind.NONE:
            assert read(core, got, t, m, lane) == value
    for m, value in reduced.items():
        cell = core.vmem.values[410 + m // LANES, m % LANES]
        assert (cell.view(np.int32) if i.reduce == Reduce.ARGMAX else cell) == value
    # Nothing else changed.
    for memory in (core.spm, core.vmem, core.acc):
        touched = np.zeros(memory.values.shape, bool)
        for t, m, lane in stored:
            row = i.dst.imm + t * i.dst.tile_stride + m * i.dst.row_stride
            name = {Kind.VMEM: "vmem", Kind.ACC: "acc", Kind.NONE: ""}.get(i.dst.kind, "spm")
            if memory.name == name:
                touched[row, lane] = True
                if i.dst.kind == Kind.SPM_FP32:
                    touched[row + 1, lane] = True
        if memory.name == "vmem":
            for m in reduced:
                touched[410 + m // LANES, m % LANES] = True
        np.testing.assert_array_equal(memory.values[~touched], before[memory.name][~touched])


def test_reductions_reach_past_one_packed_row() -> None:
    core = bare_core()
    rows = 2 * LANES + 3
    values = np.arange(rows * LANES, dtype=np.float32).reshape(rows, LANES)
    fill(core.acc, slice(0, rows), values)
    a = Operand(Kind.ACC, 0, row_stride=1)
    execute(core, Map(rows=Count(rows), a=a, reduce=Reduce.MAX, reduce_dst=Addr(7)))
    np.testing.assert_array_equal(core.vmem.values[7:10].reshape(-1)[:rows], values[:, -1])
    assert not core.vmem.written[9, 3:].any()
    # and the same packed rows come back as row scalars
    execute(
        core,
        Map(
            rows=Count(rows),
            a=a,
            combine=Combine.SUB,
            b=Operand(Kind.ROW_SCALAR, 7),
            dst=Operand(Kind.ACC, 0, row_stride=1),
        ),
    )
    np.testing.assert_array_equal(core.acc.values[:rows], values - values[:, -1:])


def test_softmax_in_three_passes() -> None:
    """Max; exp2, sum and cast; rescale: against float64 softmax over a width that fills no tile."""
    chip = load("lab16")
    core, width, rows = bare_core(chip), 37, 9
    rng = np.random.default_rng(0)
    scores = (rng.standard_normal((3, rows, 16)) * 4).astype(np.float32)
    fill(core.acc, slice(0, 3 * rows), scores.reshape(-1, 16))
    a = Operand(Kind.ACC, 0, tile_stride=rows, row_stride=1)
    shape = {"tiles": 3, "rows": Count(rows), "width": Count(width)}
    execute(core, Map(**shape, a=a, reduce=Reduce.MAX, reduce_dst=Addr(0)))
    execute(
        core,
        Map(
            **shape,
            a=a,
            combine=Combine.SUB,
            b=Operand(Kind.ROW_SCALAR, 0),
            function=Function.EXP2,
            dst=a,
            reduce=Reduce.SUM,
            reduce_dst=Addr(1),
        ),
    )
    total = Operand(Kind.VMEM, 1, row_stride=1)
    execute(
        core, Map(rows=Count(1), a=total, function=Function.RECIP, dst=total, width=Count(rows))
    )
    dst = Operand(Kind.SPM_BF16, 0, tile_stride=rows, row_stride=1)
    execute(core, Map(**shape, a=a, combine=Combine.MUL, b=Operand(Kind.ROW_SCALAR, 1), dst=dst))
    got = formats.bf16_to_f32(core.spm.values[: 3 * rows]).reshape(3, rows, 16)
    got = got.transpose(1, 0, 2).reshape(rows, 48)[:, :width]
    x = scores.transpose(1, 0, 2).reshape(rows, 48)[:, :width].astype(np.float64)
    p = np.exp2(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(got, p / p.sum(1, keepdims=True), rtol=2**-8)  # bf16 rounding
    assert not core.spm.written[2 * rows : 3 * rows, width - 32 :].any()


def one_row(values: list[float], **fields) -> Core:
    core = bare_core()
    row = np.zeros(LANES, np.float32)
    row[: len(values)] = values
    fill(core.acc, 0, row)
    fields.setdefault("width", Count(len(values)))
    execute(core, Map(rows=Count(1), a=Operand(Kind.ACC, 0), **fields))
    return core


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ([1.0, 3.0, 3.0, 2.0], 1),
        ([1.0, math.nan, math.inf, math.nan], 1),
        ([-math.inf, -math.inf], 0),
        ([-0.0, 0.0], 0),
        ([-1e-45, 1e-45], 0),  # subnormals read as zeros
        ([-5.0, -3.0], 1),  # the lanes that are not valid do not win
    ],
)
def test_argmax(values: list[float], index: int) -> None:
    core = one_row(values, reduce=Reduce.ARGMAX, reduce_dst=Addr(3))
    assert core.vmem.values[3, 0].view(np.int32) == index


def test_special_values() -> None:
    nan = one_row([1.0, math.nan], reduce=Reduce.MAX, reduce_dst=Addr(0)).vmem.values[0, 0]
    assert nan.view(np.uint32) == 0x7FC00000
    zero = one_row([-0.0, -0.0], reduce=Reduce.SUM, reduce_dst=Addr(0)).vmem.values[0, 0]
    assert np.signbit(zero)
    copied = one_row([1e-45, -1e-45, -math.nan], dst=Operand(Kind.VMEM, 0)).vmem.values[0, :3]
    assert copied.view(np.uint32).tolist() == [0, 0x80000000, 0x7FC00000]
    b = Operand(Kind.IMMEDIATE, value=0.0)
    for op in (Combine.GE, Combine.GT, Combine.EQ):
        core = one_row([math.nan, 1.0], combine=op, b=b, dst=Operand(Kind.VMEM, 0))
        assert core.vmem.values[0, :2].tolist() == [0.0, float(op != Combine.EQ)]
    picked = one_row(
        [3.0],
        combine=Combine.SELECT,
        b=Operand(Kind.IMMEDIATE, value=5.0),
        c=Operand(Kind.IMMEDIATE, value=math.nan),
        dst=Operand(Kind.VMEM, 0),
    )
    assert picked.vmem.values[0, 0] == 3.0  # NaN counts as not zero


def test_masked_lanes_are_not_read() -> None:
    core = bare_core()
    core.acc.values[0, :2] = 1.0
    core.acc.written[0, :2] = True
    a, out = Operand(Kind.ACC, 0), Operand(Kind.VMEM, 0)
    execute(core, Map(rows=Count(1), a=a, dst=out, mask=Mask.BELOW, limit=2))
    assert core.acc.log.unwritten == ""
    assert core.vmem.values[0].tolist() == [1.0, 1.0] + [-math.inf] * (LANES - 2)
    execute(core, Map(rows=Count(1), a=a, dst=out, mask=Mask.BELOW, limit=3))
    assert "acc row 0 lane 2 is read" in core.acc.log.unwritten


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tiles": 0}, "tiles must be 1 or more"),
        ({"rows": Count(0)}, r"rows = 0 must lie in 1\.\.65535"),
        ({"rows": Count(65535, 1)}, "rows = 65536 must lie in"),
        ({"a": Operand()}, "operand a must be a row or an immediate"),
        ({"a": Operand(Kind.ROW_SCALAR)}, "operand a must be a row or an immediate"),
        ({"dst": Operand()}, "a chain must store or reduce"),
        ({"dst": Operand(Kind.IMMEDIATE)}, "dst must be a row"),
        ({"b": Operand(Kind.VMEM)}, "operand b must be given exactly when used"),
        ({"combine": Combine.ADD}, "operand b must be given exactly when used"),
        ({"combine2": Combine2.ADD}, "operand d must be given exactly when used"),
        ({"a": Operand(Kind.SPM_FP32, 1)}, "operand a: addresses and strides .* must be even"),
        ({"a": Operand(Kind.SPM_FP32, 0, row_stride=1)}, "must be even"),
        ({"reduce": Reduce.ARGMAX, "reduce_accumulate": True}, "argmax cannot accumulate"),
        ({"a": Operand(Kind.IMMEDIATE), "mask": Mask.BELOW}, "an immediate cannot be masked"),
        ({"roll": LANES}, "roll and xor must be less than lanes"),
        ({"lane_end": LANES + 1}, "must not exceed lanes"),
        ({"width": Count(0, 2)}, "width = -1 must be zero or more"),
    ],
)
def test_illegal_operands(change: dict, words: str) -> None:
    good = {
        "rows": Count(1),
        "a": Operand(Kind.ACC, 0),
        "dst": Operand(Kind.VMEM, 0),
    }
    core = bare_core()
    fill(core.acc, 0, np.ones(LANES, np.float32))
    execute(core, Map(**good))
    with pytest.raises(HardwareError, match=words) as caught:
        execute(core, Map(**{**good, **change}), r1=1, r2=-1)
    assert caught.value.fault.name == "ILLEGAL_OPERAND"
