"""RMSNorm and sums against float64."""

import numpy as np
import pytest
from kernel_launch import Trial, assert_within, floats, halves, normal

from tapeout.chip import load
from tapeout.isa import Kind
from tapeout.isa.vpu import Combine
from tapeout.kernels import norm
from tapeout.lang import ops

CHIPS = {name: load(name) for name in ("tiny", "solo")}
EPS = 1e-5
# The sum of squares folds log2(lanes) + tiles times, rsqrt and two products follow: a few fp32
# roundings, far below the rounding of the result to bf16 (2^-8 of the value).
BF16 = 2**-8 * 1.01


def reference(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return norm.rms_norm_reference(x, weight, EPS)


@pytest.mark.parametrize(
    ("chip", "m", "n"),
    [("tiny", 1, 8), ("tiny", 3, 21), ("tiny", 9, 40), ("tiny", 17, 5), ("solo", 5, 200)],
)
def test_rms_norm(chip: str, m: int, n: int):
    x, weight = normal(m, m, n) * 3, normal(n, 1, n)
    trial = Trial(CHIPS[chip])
    k = trial.k
    xt = trial.load("x", x)
    row = norm.vector_row(k, trial.give("weight", weight), n)
    out = k.tensor(Kind.SPM_BF16, m, n, avoid=(xt,))
    norm.rms_norm(k, xt, row, EPS, out, rows=m)
    trial.store("out", out)
    expected = reference(x, weight[0])
    assert_within(halves(trial.run()["out"], m, n), expected, BF16 * np.abs(expected))


@pytest.mark.parametrize("m", [1, 6, 11])
def test_rms_norm_of_a_sum_takes_its_squares(m: int):
    n = 27
    x, y, weight = normal(1, m, n), normal(2, m, n), normal(3, 1, n)
    trial = Trial(CHIPS["tiny"])
    k = trial.k
    a = trial.load("a", x)
    b = trial.load("b", y, avoid=(a,))
    total = k.tensor(Kind.SPM_FP32, m, n, avoid=(a, b))
    squares = k.packed(m)
    norm.add(k, a, b, total, rows=m, sumsq=squares)
    row = norm.vector_row(k, trial.give("weight", weight), n)
    out = k.tensor(Kind.SPM_BF16, m, n, avoid=(total,))
    norm.rms_norm(k, total, row, EPS, out, rows=m, sumsq=squares)
    trial.store("out", out)
    trial.store("total", total)
    got = trial.run()
    np.testing.assert_array_equal(floats(got["total"], m, n), x + y)  # one fp32 sum is exact
    expected = reference(x + y, weight[0])
    assert_within(halves(got["out"], m, n), expected, BF16 * np.abs(expected))


def test_only_valid_rows_are_normalised():
    """Rows from a register: those behind it stay unwritten."""
    trial = Trial(CHIPS["tiny"])
    k = trial.k
    x, weight = normal(4, 7, 12), normal(5, 1, 12)
    xt = trial.load("x", x)
    row = norm.vector_row(k, trial.give("weight", weight), 12)
    out = k.tensor(Kind.SPM_BF16, 7, 12, avoid=(xt,))
    ops.vector(k, 0.0, 0.0, dst=out, combine=Combine.ADD)
    norm.rms_norm(k, xt, row, EPS, out, rows=k.arg("rows"))
    trial.store("out", out)
    got = halves(trial.run(rows=4)["out"], 7, 12)
    expected = reference(x, weight[0])
    assert_within(got[:4], expected[:4], BF16 * np.abs(expected[:4]))
    assert (got[4:] == 0).all()
