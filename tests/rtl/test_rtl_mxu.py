"""The hardware's matrix unit against `interp` in every bit and `sim` in every cycle."""

import numpy as np
import pytest
from mxu_programs import MatrixProgram

from tapeout.chip import Chip, load
from tapeout.rtl.target import Rtl
from tapeout.sim import Sim

CHIPS = {
    "tiny": load("tiny"),
    "odd": load(
        "tiny",
        ["mxu.rows=6", "mxu.cols=8", "lanes=8", "mxu.adder_stages=3", "mxu.column_group=3",
         "mxu.load_rows_per_cycle=4", "mxu.load_rows_per_cycle_transposed=4",
         "mxu.accumulate_cycles=6", "vpu.sublanes=4", "dma.queues=1"],
    ),
    "deep": load(
        "tiny",
        ["mxu.adder_stages=1", "mxu.column_group=1", "mxu.load_rows_per_cycle=1",
         "mxu.load_rows_per_cycle_transposed=2", "mxu.accumulate_cycles=3", "vpu.sublanes=1",
         "spm.banks_per_stripe=8", "spm.rows_per_bank=24", "dma.queues=1"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CHIPS.values(), ids=CHIPS)
def chip(request: pytest.FixtureRequest) -> Chip:
    return request.param


@pytest.mark.parametrize("seed", range(20))
def test_bits_of_interp_and_cycles_of_sim(seed: int, chip: Chip) -> None:
    case = MatrixProgram(seed, chip)
    sim = Sim(chip, hbm_bytes=1 << 20, checks=False)
    expected = sim.run(sim.load(case.program(), {}), trace=True)
    rtl = Rtl(chip, hbm_bytes=1 << 20, limit_cycles=expected.cycles + 1000)
    rtl.poke("spm", case.spm)
    rtl.poke("acc", case.acc)
    got = rtl.run(rtl.load(case.program(), {}))
    for column in ("pc", "issue", "retire"):
        trace = getattr(expected.trace, column)
        np.testing.assert_array_equal(got.events[column], trace, err_msg=column)
    np.testing.assert_array_equal(
        rtl.peek("acc").view(np.uint32), case.acc_expected().view(np.uint32)
    )
    np.testing.assert_array_equal(rtl.peek("spm"), case.spm)
