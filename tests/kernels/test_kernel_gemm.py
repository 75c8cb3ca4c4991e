"""Products of matrices in HBM, of any size, against float64."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_launch import Trial, assert_within, bf16, floats, halves, launch, normal, wide

from tapeout.chip import load
from tapeout.chip.load import apply_overrides
from tapeout.isa import Kind, seq
from tapeout.isa.dma import HbmFormat
from tapeout.isa.errors import BankError, RaceError, UninitializedError
from tapeout.isa.program import Program
from tapeout.kernels.gemm import (
    Plan,
    choose,
    gemm,
    gemm_reference,
    peak_cycles,
    tile_columns,
    transpose,
)
from tapeout.lang import Builder, ChipTooSmall, ops
from tapeout.sim import Sim

CHIPS = {name: load(name) for name in ("tiny", "lab16", "solo")}


def check(
    chip: str, m: int, n: int, k: int, *, fp32: bool, tiled: bool, plan: Plan | None = None,
    transposed: bool = False,
):  # fmt: skip
    a, b = bf16(normal(1, m, k)), bf16(normal(2, k, n))
    trial = Trial(CHIPS[chip], weight_slots=0)
    weights = tile_columns(b, CHIPS[chip].lanes) if tiled else b.T if transposed else b
    out = HbmFormat.FP32 if fp32 else HbmFormat.BF16
    gemm(
        trial.k, trial.give("a", a), trial.give("b", weights),
        trial.take("c", (4 if fp32 else 2) * m * n), (m, n, k), out=out, tiled=tiled, plan=plan,
        transposed=transposed,
    )  # fmt: skip
    c = trial.run()["c"]
    expected = gemm_reference(wide(a), wide(b))
    # fp32: K products and the passes round once each, by 2^-24 of a sum of at most |A| |B|.
    bound = (k + 8) * 2**-24 * (np.abs(wide(a)) @ np.abs(wide(b)))
    if not fp32:
        bound += 2**-8 * np.abs(expected)
    assert_within(floats(c, m, n) if fp32 else halves(c, m, n), expected, bound)


@pytest.mark.parametrize("tiled", [False, True], ids=["rows", "tiled"])
@pytest.mark.parametrize("fp32", [False, True], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (8, 16, 24), (19, 21, 37), (3, 70, 9)])
def test_sizes_that_divide_nothing(m: int, n: int, k: int, fp32: bool, tiled: bool):
    check("tiny", m, n, k, fp32=fp32, tiled=tiled)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (8, 16, 24), (19, 21, 37), (3, 70, 9)])
def test_a_right_factor_given_transposed(m: int, n: int, k: int):
    check("tiny", m, n, k, fp32=True, tiled=False, transposed=True)


@pytest.mark.parametrize("depth", [8, 16, 96])
def test_a_transposed_factor_in_chunks(depth: int):
    plan = Plan(rows=12, columns=2, depth=depth, slots=2, cycles=0)
    check("tiny", 29, 34, 90, fp32=True, tiled=False, transposed=True, plan=plan)


def test_products_of_several_pairs_add_up():
    trial = Trial(CHIPS["tiny"], weight_slots=0)
    pairs = [(bf16(normal(i, 9, 20)), bf16(normal(10 + i, 20, 11))) for i in range(3)]
    places = [(trial.give(f"a{i}", a), trial.give(f"b{i}", b)) for i, (a, b) in enumerate(pairs)]
    out = trial.take("c", 4 * 9 * 11)
    gemm(trial.k, *places[0], out, (9, 11, 20), out=HbmFormat.FP32, more=places[1:])
    expected = sum(gemm_reference(wide(a), wide(b)) for a, b in pairs)
    assert_within(floats(trial.run()["c"], 9, 11), expected, 1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (1, 5), (21, 19), (40, 3)])
def test_the_array_turns_a_matrix_exactly(rows: int, columns: int):
    trial = Trial(CHIPS["tiny"])
    x = bf16(normal(3, rows, columns))
    transpose(trial.k, trial.give("x", x), trial.take("y", x.nbytes), rows, columns)
    got = trial.run()["y"].view(np.uint16).reshape(columns, rows)
    np.testing.assert_array_equal(got, x.T)


@pytest.mark.parametrize(("rows", "columns", "depth"), [(8, 1, 8), (12, 2, 16), (20, 3, 32)])
def test_many_blocks_and_chunks(rows: int, columns: int, depth: int):
    """More blocks, groups and chunks than buffers; the last of each is smaller."""
    plan = Plan(rows=rows, columns=columns, depth=depth, slots=2, cycles=0)
    check("tiny", 29, 34, 45, fp32=rows == 12, tiled=columns == 2, plan=plan)


@pytest.mark.parametrize(("chip", "m", "n", "k"), [("lab16", 70, 100, 50), ("solo", 40, 200, 150)])
def test_other_chips(chip: str, m: int, n: int, k: int):
    check(chip, m, n, k, fp32=False, tiled=False)


def test_an_array_lower_than_it_is_wide():
    chip = apply_overrides(CHIPS["tiny"], ["mxu.rows=4"])
    CHIPS["low"] = chip
    check("low", 9, 13, 22, fp32=True, tiled=False)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("width", [8, 19])
@pytest.mark.parametrize("depth", [5, 8, 32, 35, 45, 77, 104])
def test_products_in_runs_of_tiles(depth: int, width: int, accumulate: bool):
    """Tiles of K written out, in one run and in several, with tiles and rows left over."""
    chip, m = CHIPS["tiny"], 3
    a, b = bf16(normal(1, m, depth)), bf16(normal(2, depth, width))
    trial = Trial(chip)
    moving = trial.load("a", a)
    weights = trial.load("b", b, avoid=(moving,), stationary=True)
    acc = trial.k.tensor(Kind.ACC, m, width)
    if accumulate:
        ops.matmul(trial.k, acc, moving, weights)
    ops.matmul(trial.k, acc, moving, weights, accumulate=accumulate)
    result = trial.k.tensor(Kind.SPM_FP32, m, width, avoid=(moving, weights))
    ops.vector(trial.k, acc, dst=result)
    trial.store("c", result)
    times = 2 if accumulate else 1
    expected = times * (wide(a) @ wide(b))
    # K products and times * tiles sums of them round once each.
    bound = times * (depth + 2 * depth / 8 + 2) * 2**-24 * (np.abs(wide(a)) @ np.abs(wide(b)))
    assert_within(floats(trial.run()["c"], m, width), expected, bound)
    loops = [i.count.imm for i in trial.program.streams["mxu"] if isinstance(i, seq.Loop)]
    has_runs = depth // 8 > 2 * ops.RUN_TILES
    columns = [1] if width == 8 else [2, 1]  # whole ones, and what is left
    assert len(loops) == times * sum(2 if has_runs else n > 1 for n in columns)


def traced(chip: str, m: int, n: int, k: int, plan: Plan | None = None) -> Program:
    """A program over HBM nobody fills."""
    b = Builder(CHIPS[chip], weight_slots=0)
    sizes = (("a", m * k), ("b", k * n), ("c", m * n))
    parts = (b.segment(name, 2 * size, writable=name == "c") for name, size in sizes)
    gemm(b, *parts, (m, n, k), plan=plan)
    return b.build()


def test_a_large_product_keeps_the_array_busy():
    """4096 x 4096 x 4096 on solo: 99.8 % when written; 95 % is asked for."""
    program = traced("solo", 4096, 4096, 4096)
    sim = Sim(CHIPS["solo"], checks=False)
    bases = {s.base: (sim.allocate(s.bytes), s.bytes, s.writable) for s in program.segments}
    result = sim.run(sim.load(program, bases), functional=False)
    assert result.macs == 4096**3
    assert peak_cycles(CHIPS["solo"], 4096, 4096, 4096) / result.cycles > 0.97
    assert program.instructions < 65536 // 8  # hardware loops: 32768 loads and passes


def test_a_late_wait_is_found():
    """Every token the array and the vector unit take guards something: taken at the end instead,
    an access is unordered."""
    plan = Plan(rows=12, columns=2, depth=16, slots=2, cycles=0)
    program = traced("tiny", 20, 24, 40, plan)
    given = {"a": np.ones(1600, np.uint8), "b": np.ones(1920, np.uint8)}
    launch(Sim(CHIPS["tiny"]), program, given)
    planted = 0
    for queue in ("mxu", "vpu"):
        for at, instruction in enumerate(program.streams[queue]):
            if not instruction.waits:
                continue
            planted += 1
            late = list(program.streams[queue])
            late[at] = replace(instruction, waits=0)
            late.insert(-1, seq.Nop(waits=instruction.waits))
            broken = Program(program.chip, program.streams | {queue: late}, program.segments)
            with pytest.raises((RaceError, BankError, UninitializedError)):
                launch(Sim(CHIPS["tiny"]), broken, given)
    assert planted >= 10


def test_plans_fit_and_cost():
    for chip in CHIPS.values():
        plan = choose(chip, 512, 768, 512, formats=[HbmFormat.BF16], tiled=False, stripes=12)
        assert plan.cycles >= peak_cycles(chip, 512, 768, 512)
        assert 2 * plan.rows * plan.columns <= chip.acc.rows


def test_errors():
    tiny = CHIPS["tiny"]
    with pytest.raises(ChipTooSmall, match=r"no tile of a 8 x 8 x 8 product fits 3 stripes"):
        choose(tiny, 8, 8, 8, formats=[HbmFormat.BF16], tiled=False, stripes=3)
    b = Builder(tiny)
    t = b.segment("t", 128, writable=True)
    with pytest.raises(ValueError, match=r"M, N, K of 1 or more, not \(0, 8, 8\)"):
        gemm(b, t, t, t, (0, 8, 8))
    with pytest.raises(ValueError, match="stored as bf16 or fp32, not int8"):
        gemm(b, t, t, t, (8, 8, 8), out=HbmFormat.INT8)
