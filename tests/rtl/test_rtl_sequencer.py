"""The hardware's sequencers, token channels and fetch against `sim`: every issue and retirement."""

from dataclasses import replace

import numpy as np
import pytest
from rtl_chips import CHIPS, PARAMS
from scalar_programs import ScalarProgram

from tapeout.chip import Chip
from tapeout.isa import errors, seq
from tapeout.isa.assembler import assemble
from tapeout.isa.errors import ProgramError
from tapeout.isa.program import Words
from tapeout.rtl.target import Rtl
from tapeout.sim import Sim

HBM_BYTES = 1 << 20


@pytest.fixture(scope="module", params=PARAMS)
def chip(request: pytest.FixtureRequest) -> Chip:
    return CHIPS[request.param]


@pytest.mark.parametrize("seed", range(40))
def test_issue_and_retire_cycles_of_sim(seed: int, chip: Chip) -> None:
    case = ScalarProgram(seed, chip)
    expected = case.run(Sim(chip, hbm_bytes=HBM_BYTES), trace=True)
    got = case.run(Rtl(chip, hbm_bytes=HBM_BYTES, limit_cycles=expected.cycles + 1000))
    trace = expected.trace
    assert trace is not None
    for number, name in enumerate(chip.queue_names):
        mine, its = trace.queue == number, got.events[got.events["queue"] == number]
        for column in ("pc", "issue", "retire"):
            np.testing.assert_array_equal(
                its[column], getattr(trace, column)[mine], err_msg=f"{column} of {name}"
            )
    assert got.cycles == expected.cycles


FAULTS = {
    "trap": "seq.nop\n seq.trap code=3",
    "end of the stream": "seq.nop",
    "write to r0": "seq.nop\n seq.set dst=r0 value=1\n seq.halt",
    "another engine": "seq.nop\n mxu.unload dst=0\n seq.halt",
    "loop of no length": "seq.loop count=2 length=0\n seq.halt",
    "loop beyond the stream": "seq.loop count=2 length=9\n seq.nop\n seq.halt",
    "loop beyond its outer loop": "seq.loop count=2 length=2\n seq.loop count=1 length=2\n"
    " seq.nop\n seq.nop\n seq.halt",
    "loops too deep": "".join(f"seq.loop count=1 length={9 - d}\n " for d in range(5))
    + "seq.nop\n " * 6 + "seq.halt",
    "odd address": "seq.load dst=r1 src=b0[2]\n seq.halt",
    "address below": "seq.set dst=r1 value=-4\n seq.load dst=r1 src=b0[0+r1]\n seq.halt",
    "address beyond": "seq.load dst=r1 src=b0[4096]\n seq.halt",
    "base not given": "seq.load dst=r1 src=b5[0]\n seq.halt",
    "deadlock": "seq.nop waits=mxu.0\n seq.halt",
    "token left": "seq.nop posts=mxu.0\n seq.halt",
}  # fmt: skip


WHOLE = (errors.DeadlockError, errors.TokenError)  # of the program: the hardware names no queue


def outcome(target: Sim | Rtl, text: str, words: bytes = b"") -> tuple:
    """(class, queue, pc) of the error that a program on queue vpu ends with."""
    program = assemble(f".queue mxu\n seq.halt\n.queue vpu\n {text}", target.chip)
    if words:
        stream = program.encode("vpu")
        program = replace(program, streams={**program.streams, "vpu": Words(words + stream)})
    address = target.allocate(4096)
    try:
        target.run(target.load(program, {0: (address, 4096, False)}))
    except ProgramError as error:
        return type(error), error.queue, error.pc
    raise AssertionError("the program ends without an error")


@pytest.mark.parametrize("text", FAULTS.values(), ids=FAULTS)
def test_faults_of_sim(text: str, chip: Chip) -> None:
    expected = outcome(Sim(chip, hbm_bytes=HBM_BYTES), text)
    got = outcome(Rtl(chip, hbm_bytes=HBM_BYTES, limit_cycles=10_000), text)
    if expected[0] in WHOLE:
        expected, got = expected[:1], got[:1]
    assert got == expected


@pytest.mark.parametrize("bit", [3, 8 + 23, 8 + 24 + 20, 60, 64, 64 + 5 + 47, 300, 511])
def test_flipped_bits_of_a_word(bit: int, chip: Chip) -> None:
    """One bit of `seq.set` at a time: opcode, masks, reserved bits, registers. A trap follows."""
    word = int.from_bytes(seq.Set(dst=1, value=5).encode(), "little") ^ 1 << bit
    words = word.to_bytes(64, "little")
    text = "seq.trap code=1"
    expected = outcome(Sim(chip, hbm_bytes=HBM_BYTES), text, words)
    got = outcome(Rtl(chip, hbm_bytes=HBM_BYTES, limit_cycles=10_000), text, words)
    assert got[0] == expected[0]
    assert expected[0] in WHOLE or got == expected


def test_benches_end_in_any_order() -> None:
    """Verilator erases a model's names in the thread's last context, which may be gone."""
    first, second = (Rtl(CHIPS["tiny"], hbm_bytes=HBM_BYTES) for _ in range(2))
    del second
    third = Rtl(CHIPS["tiny"], hbm_bytes=HBM_BYTES)
    del first
    del third
