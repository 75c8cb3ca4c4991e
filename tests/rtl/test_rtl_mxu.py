"""The hardware's matrix unit against `interp` in every bit and `sim` in every cycle."""

import numpy as np
import pytest
from mxu_programs import MatrixProgram
from rtl_chips import CHIPS, PARAMS

from tapeout.chip import Chip
from tapeout.rtl.target import Rtl
from tapeout.sim import Sim


@pytest.fixture(scope="module", params=PARAMS)
def chip(request: pytest.FixtureRequest) -> Chip:
    return CHIPS[request.param]


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
