"""Rows by index, and the int32 numbers that name them."""

import numpy as np
import pytest
from kernel_launch import Trial, normal

from tapeout.chip import load
from tapeout.isa.dma import HbmFormat
from tapeout.kernels import indexed

CHIPS = {name: load(name) for name in ("tiny", "lab16")}


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("count", [1, 5, 8, 100])
def test_whole_numbers_become_int32(chip, count):
    trial = Trial(CHIPS[chip])
    numbers = np.random.default_rng(count).integers(0, 1 << 24, count)
    edges = [0, 1, 65535, 65536, (1 << 23) - 1, 1 << 23, (1 << 24) - 1]
    numbers[: min(count, len(edges))] = edges[:count]
    source = trial.give("x", numbers.astype(np.float32))
    out, scratch = trial.take("y", 4 * count), trial.take("z", 2 * count)
    indexed.to_int32(trial.k, source, out, scratch, count)
    np.testing.assert_array_equal(trial.run()["y"].view(np.int32), numbers)


@pytest.mark.parametrize("width", [1, 8, 20])
@pytest.mark.parametrize("count", [1, 9, 60])
def test_rows_are_gathered_and_scattered_in_order(count, width):
    table = normal(1, 13, width)
    index = np.random.default_rng(2).integers(0, 13, count).astype(np.int32)
    shape = {"count": count, "width": width, "pitch": 4 * width, "format": HbmFormat.FP32}
    trial = Trial(CHIPS["tiny"])
    out = trial.take("y", 4 * count * width)
    indexed.gather(trial.k, trial.give("table", table), trial.give("index", index), out, **shape)
    got = trial.run()["y"].view(np.float32).reshape(count, width)
    np.testing.assert_array_equal(got, table[index])

    rows = normal(3, count, width)
    trial = Trial(CHIPS["tiny"])
    place = trial.give("table", table, writable=True)
    indexed.scatter(trial.k, trial.give("x", rows), trial.give("index", index), place, **shape)
    expected = table.copy()
    for i, row in zip(index, rows, strict=True):
        expected[i] = row
    np.testing.assert_array_equal(
        trial.run()["table"].view(np.float32).reshape(table.shape), expected
    )
