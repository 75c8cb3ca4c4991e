"""Elementwise programs with reductions: random ones against NumPy, on interp and sim alike."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_launch import Trial, bf16, floats, halves, normal, wide

from tapeout.chip import load
from tapeout.isa import Kind
from tapeout.isa.dma import HbmFormat
from tapeout.kernels import rowwise
from tapeout.kernels.rowprogram import STAT, Place, RowProgram
from tapeout.lang import ChipTooSmall

TINY = load("tiny")
BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum,
          "min": np.minimum}  # fmt: skip


def strided(shape: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of `shape` where its dimensions lie in memory in this order, outermost first."""
    strides, step = [0] * len(shape), 1
    for d in reversed(order):
        strides[d] = step
        step *= shape[d]
    return tuple(strides)


class Harness:
    """A program over dims x width whose loads and stores have memory of their own."""

    def __init__(self, dims: tuple[int, ...], width: int) -> None:
        self.trial = Trial(TINY)
        self.program = RowProgram(dims, width)
        self.shape = (*dims, width)
        self.count = 0
        self.expected: dict[str, np.ndarray] = {}

    def load(self, strides: tuple[int, ...]) -> tuple[int, np.ndarray]:
        self.count += 1
        size = 1 + sum((n - 1) * s for n, s in zip(self.shape, strides, strict=True))
        data = normal(self.count, size)
        hbm = self.trial.give(f"in{self.count}", data)
        view = np.lib.stride_tricks.as_strided(data, self.shape, [4 * s for s in strides])
        return self.program.load(Place(hbm, HbmFormat.FP32, strides)), view

    def store(self, node: int, value: np.ndarray, strides: tuple[int, ...]) -> None:
        self.count += 1
        name = f"out{self.count}"
        size = 1 + sum((n - 1) * s for n, s in zip(self.shape, strides, strict=True))
        out = np.zeros(size, np.float32)
        at = np.lib.stride_tricks.as_strided(out, self.shape, [4 * s for s in strides])
        at[...] = value
        hbm = self.trial.take(name, 4 * size)
        self.program.stores.append((node, Place(hbm, HbmFormat.FP32, strides)))
        self.expected[name] = out

    def check(self, *, tolerance: float = 0.0) -> None:
        rowwise.run(self.trial.k, self.program)
        got = self.trial.run()
        for name, value in self.expected.items():
            np.testing.assert_allclose(
                floats(got[name], len(value)), value, rtol=tolerance, atol=tolerance
            )


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_random_chains_of_operations_over_operands_of_any_strides(data):
    dims = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    h = Harness(dims, data.draw(st.integers(1, 27)))
    rank = len(h.shape)
    pool: list[tuple[int | float, np.ndarray]] = [(0.5, np.float32(0.5))]
    for _ in range(data.draw(st.integers(1, 4))):
        strides = strided(h.shape, tuple(data.draw(st.permutations(range(rank)))))
        still = data.draw(st.sets(st.integers(0, rank - 1)))
        pool.append(h.load(tuple(0 if d in still else s for d, s in enumerate(strides))))
    for _ in range(data.draw(st.integers(0, 6))):
        op = data.draw(st.sampled_from(sorted(BINARY)))
        (a, x), (b, y) = (data.draw(st.sampled_from(pool)) for _ in range(2))
        if not (isinstance(a, int) or isinstance(b, int)):
            continue
        value = BINARY[op](x, y).astype(np.float32)
        pool.append((h.program.op(op, a, b), np.broadcast_to(value, h.shape)))
    node, value = data.draw(st.sampled_from(pool[1:]))
    if h.program.nodes[int(node)].form == STAT:
        node = h.program.full(node)
    h.store(int(node), value, strided(h.shape, tuple(data.draw(st.permutations(range(rank))))))
    h.check()


@pytest.mark.parametrize("width", [3, 8, 50, 700])  # 700: in chunks of lanes
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_softmax_in_one_program(rows, width):
    h = Harness((rows,), width)
    x, data = h.load((width, 1))
    p = h.program
    top = p.reduce("max", x)
    e = p.op("exp2", p.op("sub", x, top))
    y = p.op("mul", e, p.op("recip", p.reduce("sum", e)))
    wide = np.exp2((data - data.max(1, keepdims=True)).astype(np.float64))
    h.store(y, (wide / wide.sum(1, keepdims=True)).astype(np.float32), (width, 1))
    h.check(tolerance=1e-6)


def test_a_number_a_row_is_stored_where_its_place_says():
    h = Harness((3, 4), 10)
    x, data = h.load((40, 10, 1))
    total = h.program.reduce("max", x)
    h.store(total, data.max(2, keepdims=True), (4, 1, 0))
    h.check()


@pytest.mark.parametrize("step", [-1, 2])
def test_rows_and_lanes_may_go_backwards_or_in_steps(step):
    rows, width = 6, 9
    h = Harness((rows,), width)
    data = normal(0, rows * width * 4)
    hbm = h.trial.give("x", data)
    start = (rows - 1) * 2 * width + width * 2 if step < 0 else 0
    strides = (2 * width * (1 if step > 0 else -1), step)
    x = h.program.load(Place(hbm, HbmFormat.FP32, strides, start))
    view = np.lib.stride_tricks.as_strided(data[start:], (rows, width), [4 * s for s in strides])
    h.store(x, view, (width, 1))
    h.check()


@pytest.mark.parametrize(("count", "kept", "width"), [(7, 3, 5), (50, 1, 30), (3, 60, 9)])
@pytest.mark.parametrize("how", ["sum", "max"])
def test_a_fold_adds_up_rows(count, kept, width, how):
    trial = Trial(TINY)
    data = normal(1, count, kept, width)
    program = RowProgram((count, kept), width)
    x = program.load(Place(trial.give("x", data), HbmFormat.FP32, (kept * width, width, 1)))
    out = Place(trial.take("y", 4 * kept * width), HbmFormat.FP32, (0, width, 1))
    rowwise.fold(trial.k, program, program.op("mul", x, 2.0), how, count, out)
    got = floats(trial.run()["y"], kept, width)
    expected = 2 * (data.sum(0) if how == "sum" else data.max(0))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_rounding_to_bf16_is_a_step_of_its_own():
    h = Harness((4,), 20)
    x, data = h.load((20, 1))
    bits = data.view(np.uint32) + 0x7FFF + (data.view(np.uint32) >> 16 & 1)
    rounded = (bits & 0xFFFF0000).astype(np.uint32).view(np.float32)
    h.store(h.program.op("sub", x, h.program.op("bf16", x)), data - rounded, (20, 1))
    h.check()


def test_what_vmem_does_not_hold_is_an_error_with_the_way_out():
    small = replace(TINY, vmem=replace(TINY.vmem, rows=16))
    trial = Trial(small)
    program = RowProgram((1,), 8)
    places = [trial.give(f"x{i}", normal(i, 8)) for i in range(6)]
    loads = [program.load(Place(p, HbmFormat.FP32, (8, 1))) for p in places]
    total = loads[0]
    for other in loads[1:]:
        total = program.op("add", total, other)
    for at, node in enumerate(loads):
        out = trial.take(f"y{at}", 32)
        program.stores.append((program.op("mul", node, total), Place(out, HbmFormat.FP32, (8, 1))))
    with pytest.raises(ChipTooSmall, match=r"raise vmem\.rows"):
        rowwise.run(trial.k, program)
    assert math.prod(program.dims) == 1


def test_rows_that_come_in_chunks_are_moved_though_nothing_is_computed():
    width = 40 * TINY.lanes  # vmem does not hold half a row
    h = Harness((3,), width)
    node, value = h.load((width, 1))
    h.store(node, value, (width + 5, 1))
    h.check()


def test_vectors_serve_all_blocks():
    rows, width = 50, 2 * TINY.lanes - 3
    h = Harness((rows,), width)
    x, a = h.load((width, 1))
    scale, b = h.load((0, 1))
    shift, c = h.load((0, 1))
    factor = h.program.op("mul", scale, 2.0)
    h.store(h.program.op("fma", x, factor, shift), a * (b * 2) + c, (width, 1))
    h.check(tolerance=1e-6)
    loads = sum(i.mnemonic == "dma.load" for q in h.trial.program.streams.values() for i in q)
    assert loads < 2 * rows  # those of the vectors are not among every block's


LAB = load("lab16")


@pytest.mark.parametrize(
    ("rows", "width"),
    [(700, 40), (3, 16 * 900), (130, 16 * 300 + 5), (1, 16 * 1200)],
    ids=["blocks", "chunks of one row", "chunks of many rows", "one long row"],
)
def test_large_programs_lie_in_spm(rows, width):
    """Softmax with a scale and a shift, bf16 in and out beside fp32: on interp and sim alike."""
    trial = Trial(LAB)
    program = RowProgram((rows,), width)
    x, wide_x = normal(1, rows, width), normal(2, width)
    halves_in = bf16(normal(3, rows, width))
    strides, vector = (width, 1), (0, 1)
    a = program.load(Place(trial.give("a", x), HbmFormat.FP32, strides))
    b = program.load(Place(trial.give("b", halves_in), HbmFormat.BF16, strides))
    c = program.load(Place(trial.give("c", wide_x), HbmFormat.FP32, vector))
    scaled = program.op("mul", a, c)
    squares = program.op("mul", scaled, scaled)  # read twice by one instruction
    top = program.reduce("max", squares)
    e = program.op("exp2", program.op("sub", squares, top))
    share = program.op("mul", e, program.op("recip", program.reduce("sum", e)))
    program.stores.append((share, Place(trial.take("y", 4 * x.size), HbmFormat.FP32, strides)))
    mixed = program.op("add", share, b)
    program.stores.append((mixed, Place(trial.take("z", 2 * x.size), HbmFormat.BF16, strides)))
    rowwise.run(trial.k, program)
    results = trial.run()
    s = (x.astype(np.float64) * wide_x) ** 2
    y = np.exp2(s - s.max(1, keepdims=True))
    y /= y.sum(1, keepdims=True)
    np.testing.assert_allclose(floats(results["y"], rows, width), y, rtol=3e-5, atol=1e-7)
    z = y + wide(halves_in)
    np.testing.assert_allclose(halves(results["z"], rows, width), z, rtol=2**-8, atol=1e-6)
    kinds = {i.dst.kind for i in trial.program.streams["vpu"] if i.mnemonic == "vpu.map"}
    assert {Kind.SPM_FP32, Kind.SPM_BF16} <= kinds
