"""The matrix unit against a plain reference on values whose sums are exact; its corner cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import bare_core, execute, fill, run

from tapeout.chip import load
from tapeout.isa import Addr, Count, HardwareError, Kind, Operand, dma, mxu, seq, vpu
from tapeout.isa.fields import HbmAddr
from tapeout.isa.interp import Core
from tapeout.numerics import formats

CHIP = load("tiny", ["mxu.cols=8", "mxu.rows=4"])
LANES, K = CHIP.lanes, CHIP.mxu.rows


def random_core(seed: int) -> Core:
    core = bare_core(CHIP)
    rng = np.random.default_rng(seed)
    values = rng.integers(-7, 8, core.spm.values.shape).astype(np.float32)
    fill(core.spm, slice(None), formats.f32_to_bf16(values))
    return core


def value(core: Core, row: int, lane: int) -> float:
    return float(formats.bf16_to_f32(core.spm.values[row, lane]))


@settings(deadline=None)
@given(
    k=st.integers(1, K),
    n=st.integers(1, LANES),
    rows=st.integers(1, 9),
    stride=st.integers(1, 3),
    outer=st.integers(1, 4),
    load_stride=st.integers(1, 3),
    transposed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_load_and_matmul(k, n, rows, stride, outer, load_stride, transposed, seed) -> None:
    core = random_core(seed)
    load_stride = load_stride if transposed else 1
    execute(
        core,
        mxu.Load(
            src=Addr(90, 1), stride=load_stride, k=Count(k), n=Count(0, 2), transposed=transposed
        ),
        r1=10,
        r2=n,
    )
    assert core.stationary is None, "weights wait in the shadow until a matmul"
    for accumulate, times in ((mxu.Accumulate.WRITE, 1), (mxu.Accumulate.ADD, 2)):
        execute(
            core,
            mxu.Matmul(
                src=Addr(3),
                stride=stride,
                rows=Count(rows),
                outer=outer,
                outer_stride=20,
                dst=Addr(5),
                accumulate=accumulate,
            ),
        )
        for m in range(outer * rows):
            row = 3 + (m // rows) * 20 + (m % rows) * stride
            for lane in range(n):
                expected = 0.0
                for kk in range(k):
                    at = (
                        (100 + lane * load_stride, kk)
                        if transposed
                        else (100 + kk * load_stride, lane)
                    )
                    expected += value(core, row, kk) * value(core, *at)
                assert core.acc.values[5 + m, lane] == times * expected
    assert core.acc.written.sum() == outer * rows * n


def test_accumulate_not_first_follows_the_innermost_loop() -> None:
    """Two passes of three iterations: each pass begins anew."""
    ones = formats.f32_to_bf16(np.ones((8, LANES), np.float32)).tobytes()
    tile = {"hbm": HbmAddr(), "lanes": LANES, "rows": Count(8), "row_bytes": 2 * LANES}
    target = run(
        CHIP,
        {
            "dma0": [
                dma.Load(**tile, row=Addr()),
                dma.Load(**tile, row=Addr(CHIP.spm.rows_per_stripe), posts=1),
            ],
            "mxu": [
                seq.Nop(waits=1 << CHIP.tokens.channels_per_pair),
                seq.Loop(count=Count(2), length=4),
                mxu.Load(src=Addr(), k=Count(K), n=Count(LANES)),
                seq.Loop(count=Count(3), length=1),
                mxu.Matmul(
                    src=Addr(CHIP.spm.rows_per_stripe),
                    rows=Count(2),
                    dst=Addr(),
                    accumulate=mxu.Accumulate.ADD_NOT_FIRST,
                ),
                seq.Nop(drain=True),
            ],
        },
        ones,
    )
    assert (target.peek("acc")[:2] == 3 * K).all()


def test_only_valid_k_count() -> None:
    """Infinities beyond k make no NaN, and a sum of nothing but -0 stays -0."""
    core = bare_core(CHIP)
    moving = np.full((1, LANES), np.inf, np.float32)
    moving[0, :2] = [0.0, 1.0]
    fill(core.spm, [0], formats.f32_to_bf16(moving))
    fill(core.spm, [8], formats.f32_to_bf16(np.full((1, LANES), -0.0, np.float32)))
    execute(core, mxu.Load(src=Addr(8), stride=1, k=Count(1), n=Count(LANES)))
    execute(core, mxu.Matmul(src=Addr(0), rows=Count(1), dst=Addr(0)))
    assert core.acc.values[0].view(np.uint32).tolist() == [0x80000000] * LANES


def test_unload_transposes_exactly() -> None:
    core = random_core(3)
    special = np.array([0x8000, 0x7F80, 0xFF81, 0x0001, 0x3F80, 0, 0xBF80, 0x4000], np.uint16)
    core.spm.values[40] = special
    execute(core, mxu.Load(src=Addr(40), k=Count(3), n=Count(5), transposed=True))
    tile = core.spm.values[40:45, :3].T
    execute(core, mxu.Unload(dst=Addr(10)))
    expected = formats.bf16_to_f32(tile)
    expected[np.isnan(expected)] = np.nan
    np.testing.assert_array_equal(core.acc.values[10:13, :5], expected)
    assert core.acc.values[10:13, 0].view(np.uint32).tolist() == [
        0x80000000,
        0x7F800000,
        0x7FC00000,
    ]
    assert core.acc.written.sum() == 15


def test_shadow_weights_wait_for_the_next_matmul() -> None:
    core = random_core(5)
    first = mxu.Load(src=Addr(0), k=Count(K), n=Count(LANES))
    go = mxu.Matmul(src=Addr(100), rows=Count(2), dst=Addr(0))
    execute(core, first)
    execute(core, go)
    was = core.acc.values[:2].copy()
    execute(core, go)
    np.testing.assert_array_equal(core.acc.values[:2], was)
    execute(core, mxu.Load(src=Addr(20), k=Count(K), n=Count(LANES)))
    execute(core, go)
    assert not np.array_equal(core.acc.values[:2], was)


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        (mxu.Load(src=Addr(), k=Count(0), n=Count(1)), "1 <= k <= 4, .* not k = 0"),
        (mxu.Load(src=Addr(), k=Count(5), n=Count(1)), "not k = 5"),
        (mxu.Load(src=Addr(), k=Count(1), n=Count(9)), "n = 9"),
        (mxu.Load(src=Addr(), k=Count(1), n=Count(1), stride=0), "stride = 0"),
        (mxu.Load(src=Addr(), k=Count(1), n=Count(1), stride=2), "consecutive rows.* stride = 2"),
        (mxu.Load(src=Addr(3), k=Count(1), n=Count(1)), r"multiple of \d+ .* src = 3"),
        (mxu.Matmul(src=Addr(), rows=Count(1), dst=Addr()), "with no weights loaded"),
        (mxu.Unload(dst=Addr()), "needs an mxu.load before it"),
    ],
)
def test_illegal_operands(instruction, words: str) -> None:
    with pytest.raises(HardwareError, match=words):
        execute(bare_core(CHIP), instruction)


def test_matmul_of_no_rows_is_illegal() -> None:
    core = random_core(0)
    execute(core, mxu.Load(src=Addr(), k=Count(1), n=Count(1)))
    with pytest.raises(HardwareError, match="1 x 0"):
        execute(core, mxu.Matmul(src=Addr(), rows=Count(0), dst=Addr()))


def test_vpu_reads_what_the_array_wrote() -> None:
    core = random_core(1)
    execute(core, mxu.Load(src=Addr(0), k=Count(K), n=Count(3)))
    execute(core, mxu.Matmul(src=Addr(50), rows=Count(2), dst=Addr(0)))
    a = Operand(Kind.ACC, 0, row_stride=1)
    execute(
        core, vpu.Map(rows=Count(2), width=Count(3), a=a, dst=Operand(Kind.VMEM, 0, row_stride=1))
    )
    np.testing.assert_array_equal(core.vmem.values[:2, :3], core.acc.values[:2, :3])
