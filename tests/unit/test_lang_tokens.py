"""A channel never holds more tokens than its capacity, however far a queue runs ahead."""

from dataclasses import replace

import numpy as np
import pytest

from tapeout.chip import load
from tapeout.isa import Kind
from tapeout.isa.dma import HbmFormat
from tapeout.isa.interp import Interp
from tapeout.lang import Builder, ops
from tapeout.lang.builder import VMEM_BLOCK
from tapeout.sim import Sim

TINY = load("tiny")


@pytest.mark.parametrize("target", [Interp, Sim])
@pytest.mark.parametrize("capacity", [12, 15])
def test_many_results_stored_one_by_one(capacity, target):
    """All maps come first: each store then waits for another of them."""
    chip = replace(TINY, tokens=replace(TINY.tokens, capacity=capacity))
    k = Builder(chip)
    together = TINY.vmem.rows // VMEM_BLOCK  # results at once, more than the channel holds
    count = 3 * together
    out = k.segment("out", 4 * chip.lanes * count, writable=True)
    for at in range(0, count, together):
        rows = [k.tensor(Kind.VMEM, 1, chip.lanes) for _ in range(together)]
        for i, row in enumerate(rows):
            ops.vector(k, float(at + i), dst=row, rows=1, tiles=1, width=chip.lanes)
        for i, row in enumerate(rows):
            place = out.slice(4 * chip.lanes * (at + i), 4 * chip.lanes)
            ops.store(k, row, place, format=HbmFormat.FP32)
        k.free(*rows)
    program = k.build()
    machine = target(chip, hbm_bytes=1 << 20)
    address = machine.allocate(4 * chip.lanes * count)
    args = machine.allocate(64)
    bases = {1: (args, 64, False), 2: (address, 4 * chip.lanes * count, True)}
    machine.run(machine.load(program, bases))
    got = np.asarray(machine.read(address, 4 * chip.lanes * count)).view(np.float32)
    expected = np.repeat(np.arange(count, dtype=np.float32), chip.lanes)
    np.testing.assert_array_equal(got, expected)
