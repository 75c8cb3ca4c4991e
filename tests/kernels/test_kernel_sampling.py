"""The largest logits of a row against NumPy."""

import numpy as np
import pytest
from kernel_launch import Trial, normal

from tapeout.chip import load
from tapeout.isa import Kind
from tapeout.isa.dma import HbmFormat
from tapeout.kernels import sampling
from tapeout.lang import ops

CHIPS = {name: load(name) for name in ("tiny", "solo")}


@pytest.mark.parametrize(("chip", "m", "n"), [("tiny", 1, 8), ("tiny", 11, 29), ("solo", 3, 500)])
def test_best_takes_the_first_of_equals(chip: str, m: int, n: int):
    x = np.round(normal(12, m, n) * 2)  # many equal maxima
    trial = Trial(CHIPS[chip])
    k, xt = trial.k, trial.load("x", x.astype(np.float32))
    value, index = k.packed(m), k.packed(m)
    sampling.best(k, xt, value, index, rows=m)
    for name, t in (("value", value), ("index", index)):
        ops.store(k, t, trial.take(name, 4 * m), format=HbmFormat.FP32, rows=1, width=m)
    got = trial.run()
    np.testing.assert_array_equal(got["index"].view(np.int32), x.argmax(axis=1))
    np.testing.assert_array_equal(got["value"].view(np.float32), x.max(axis=1))


@pytest.mark.parametrize(("chip", "m", "n", "count"), [("tiny", 3, 29, 5), ("solo", 2, 300, 8)])
def test_top_k(chip: str, m: int, n: int, count: int):
    x = np.round(normal(13, m, n) * 4)
    trial = Trial(CHIPS[chip])
    k, xt = trial.k, trial.load("x", x.astype(np.float32))
    logits = k.tensor(Kind.ACC, m, n)
    ops.vector(k, xt, dst=logits)
    values, indices = k.packed(m, count), k.packed(m, count)
    sampling.top_k(k, logits, values, indices, rows=m)
    for name, t in (("values", values), ("indices", indices)):
        place = trial.take(name, 4 * m * count)
        for i in range(count):
            ops.store(
                k, t.rows_from(i, 1), place.slice(4 * m * i, 4 * m), format=HbmFormat.FP32,
                rows=1, width=m,
            )  # fmt: skip
    got = trial.run()
    wanted = sampling.top_k_reference(x, count)
    np.testing.assert_array_equal(got["indices"].view(np.int32).reshape(count, m).T, wanted)
    np.testing.assert_array_equal(
        got["values"].view(np.float32).reshape(count, m).T, np.take_along_axis(x, wanted, axis=1)
    )
