"""Convolutions of images in HBM, of any size, against float64."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_launch import Trial, assert_within, bf16, floats, halves, normal, wide

from tapeout.chip import load
from tapeout.isa.dma import HbmFormat
from tapeout.kernels import convolution
from tapeout.kernels.convolution import Axis, Plan, Shape, choose, convolve, peak_cycles
from tapeout.kernels.epilogue import Epilogue, plain
from tapeout.kernels.gemm import tile_columns
from tapeout.kernels.rowprogram import Place, RowProgram
from tapeout.lang import ChipTooSmall
from tapeout.sim import Sim

CHIPS = {name: load(name) for name in ("tiny", "lab16", "solo")}


def axis(inputs: int, taps: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Axis:
    outputs = (inputs + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    return Axis(inputs, outputs, taps, stride, dilation, padding)


def spread(w: np.ndarray, by: tuple[int, int]) -> np.ndarray:
    """Weights with the zeros of a dilation written out."""
    high, wide_ = ((n - 1) * d + 1 for n, d in zip(w.shape, by, strict=False))
    out = np.zeros((high, wide_, *w.shape[2:]), w.dtype)
    out[:: by[0], :: by[1]] = w
    return out


def check(
    chip: str, shape: Shape, plan: Plan | None = None, *, terms: int = 1, tiled: bool = False
):  # fmt: skip
    rows, columns = shape.rows, shape.columns
    images = [
        bf16(normal(i, shape.batch, rows.inputs, columns.inputs, shape.channels))
        for i in range(terms)
    ]
    weights = [
        bf16(normal(9 + i, rows.taps, columns.taps, shape.channels, shape.outputs))
        for i in range(terms)
    ]
    trial = Trial(CHIPS[chip], weight_slots=0)
    m, n = shape.matrix
    pairs = [
        (trial.give(f"x{i}", x), trial.give(f"w{i}", tile_columns(
            w.reshape(-1, shape.outputs), CHIPS[chip].lanes
        ) if tiled else w))
        for i, (x, w) in enumerate(zip(images, weights, strict=True))
    ]  # fmt: skip
    epilogue = plain((m, n), trial.take("y", 4 * m * n), HbmFormat.FP32)
    convolve(trial.k, pairs, shape, epilogue, plan=plan, tiled=tiled)
    results = trial.run()
    expected, bound = np.zeros((m, n)), np.zeros((m, n))
    for x, w in zip(images, weights, strict=True):
        full = spread(wide(w), (rows.dilation, columns.dilation))
        geometry = (rows.stride, columns.stride), (rows.before, columns.before)
        expected += convolution.reference(wide(x), full, *geometry).reshape(m, n)
        bound += convolution.reference(np.abs(wide(x)), np.abs(full), *geometry).reshape(m, n)
    bound *= (shape.taps * shape.channels * terms + 8) * 2**-24  # every sum rounds once
    assert_within(floats(results["y"], m, n), expected, bound)


SHAPES = {
    "pointwise": Shape(1, axis(5, 1), axis(6, 1), 11, 9),
    "pointwise, every second pixel": Shape(2, axis(7, 1, 2), axis(6, 1, 2), 20, 9),
    "three by three": Shape(1, axis(6, 3, 1, 1), axis(7, 3, 1, 1), 8, 8),
    "borders of one side only": Shape(2, axis(6, 3, 2, 1), axis(8, 3, 2, 1), 10, 17),
    "larger stride than window": Shape(1, axis(9, 2, 3), axis(10, 2, 3), 9, 3),
    "dilated": Shape(1, axis(9, 3, 1, 2, 2), axis(9, 3, 1, 2, 2), 8, 5),
    "several tiles of channels": Shape(1, axis(5, 3, 1, 1), axis(5, 3, 1, 1), 20, 24),
    "windows that miss the image": Shape(1, axis(3, 1, 2, 2), axis(2, 3, 2, 4), 5, 4),
    "few channels": Shape(2, axis(9, 3, 2), axis(10, 3, 2), 3, 20, few=True),
    "few channels, dilated": Shape(1, axis(9, 2, 1, 0, 3), axis(10, 3, 1, 0, 2), 3, 5, few=True),
    "few channels, long windows": Shape(2, axis(1, 1), axis(50, 21, 4), 1, 9, few=True),
    "a line": Shape(3, axis(1, 1), axis(30, 5, 1, 2), 12, 7),
}


@pytest.mark.parametrize("tiled", [False, True], ids=["rows", "tiled"])
@pytest.mark.parametrize("name", SHAPES)
def test_windows_of_any_kind(name: str, tiled: bool):
    check("tiny", SHAPES[name], tiled=tiled)


@pytest.mark.parametrize(
    "sizes",
    [
        {"height": 2, "width": 7}, {"height": 1, "width": 3}, {"height": 3, "width": 7, "depth": 8},
        {"height": 4, "width": 7, "columns": 2},
        {"height": 2, "width": 7, "depth": 8, "columns": 2},
    ],
)  # fmt: skip
def test_blocks_of_any_size(sizes: dict):
    shape = Shape(2, axis(6, 3, 1, 1), axis(7, 3, 1, 1), 20, 20)
    plan = Plan(**{"columns": 1, "depth": 20, "slots": 2, "cycles": 0} | sizes)
    check("tiny", shape, plan)


def test_several_terms_add_up():
    check("tiny", replace(SHAPES["three by three"], outputs=9), terms=3)


def test_an_epilogue_scales_adds_and_clips():
    shape = Shape(2, axis(6, 3, 1, 1), axis(8, 3, 1, 1), 8, 20)
    m, n = shape.matrix
    x, w = bf16(normal(1, 2, 6, 8, 8)), bf16(normal(2, 3, 3, 8, 20))
    scale, shift = normal(3, n), normal(4, n)
    other = bf16(normal(5, m, n))
    trial = Trial(CHIPS["tiny"], weight_slots=0)
    program = RowProgram((m,), n)
    product = program.load(Place(trial.give("none", other), HbmFormat.FP32, (n, 1), 7))
    gamma = program.load(Place(trial.give("scale", scale), HbmFormat.FP32, (0, 1)))
    beta = program.load(Place(trial.give("shift", shift), HbmFormat.FP32, (0, 1)))
    added = program.load(Place(trial.give("other", other), HbmFormat.BF16, (n, 1)))
    doubled = program.op("mul", gamma, 2.0)
    raw = program.op("add", program.op("fma", product, doubled, beta), added)
    program.stores.append((raw, Place(trial.take("raw", 4 * m * n), HbmFormat.FP32, (n, 1))))
    y = program.op("max", raw, 0.0)
    program.stores.append((y, Place(trial.take("y", 2 * m * n), HbmFormat.BF16, (n, 1))))
    pair = trial.give("x", x), trial.give("w", w)
    convolve(trial.k, [pair], shape, Epilogue(program, product))
    results = trial.run()
    expected = convolution.reference(wide(x), wide(w), (1, 1), (1, 1)).reshape(m, n)
    expected = expected * 2 * scale + shift + wide(other)
    assert_within(floats(results["raw"], m, n), expected, 2e-5)
    clipped = np.maximum(expected, 0)
    assert_within(halves(results["y"], m, n), clipped, 2e-5 + 2**-8 * clipped)


@pytest.mark.parametrize(
    ("shape", "share"),
    [
        (Shape(1, axis(56, 3, 1, 1), axis(56, 3, 1, 1), 64, 64), 0.2),  # half of rows and columns
        (Shape(1, axis(28, 3, 1, 1), axis(28, 3, 1, 1), 128, 128), 0.7),
        (Shape(1, axis(14, 3, 1, 1), axis(14, 3, 1, 1), 256, 256), 0.7),
    ],
)
def test_the_array_is_busy(shape: Shape, share: float):
    chip, (m, n) = CHIPS["solo"], shape.matrix
    trial = Trial(chip, weight_slots=0)
    x, w, y = (trial.take(name, 1 << 24) for name in "xwy")
    convolve(trial.k, [(x, w)], shape, plain((m, n), y, HbmFormat.BF16), tiled=True)
    sim = Sim(chip, hbm_bytes=1 << 28)
    program = trial.k.build()
    bases = {s.base: (sim.allocate(max(s.bytes, 4)), s.bytes, s.writable) for s in program.segments}
    cycles = sim.run(sim.load(program, bases), functional=False).cycles
    assert peak_cycles(chip, shape) / cycles > share


def test_a_chip_that_is_too_small_says_so():
    with pytest.raises(ChipTooSmall, match=r"raise spm\.stripes"):
        choose(CHIPS["tiny"], SHAPES["dilated"], [HbmFormat.BF16], 3)
