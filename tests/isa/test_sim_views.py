"""Rows of spm that sim keeps as views of read-only HBM hold the same bits as interp's copies.

Loads of whole and of part rows lie over each other in every order, on and off the blocks of 64 rows
that sim takes as one view, and are read back by the mxu, by a store and as a whole.
"""

import random
from collections.abc import Iterator

import numpy as np
import pytest

from tapeout.chip import load
from tapeout.isa import Addr, Count, HbmAddr, Program, dma, mxu, seq
from tapeout.isa.instruction import Instruction
from tapeout.isa.interp import Interp
from tapeout.isa.program import channel_bit
from tapeout.sim import Sim, _native

CHIP = load("tiny")
ROWS, WEIGHTS_BYTES, OUT_ROWS = 320, 1 << 14, 64


def random_load(rng: random.Random, lanes: int) -> dma.Load:
    form = rng.choice([dma.HbmFormat.BF16] * 3 + [dma.HbmFormat.INT8])
    first = rng.choice([0, 0, 0, rng.randrange(CHIP.lanes)])
    lanes = min(lanes, CHIP.lanes - first)
    rows = rng.choice([64, 128, 192, rng.randrange(1, 150)])
    row = rng.choice([0, 64, 64, 128, rng.randrange(ROWS - rows)])
    step = lanes * (1 if form is dma.HbmFormat.INT8 else 2) + rng.choice([0, 0, 2, 16])
    return dma.Load(
        hbm=HbmAddr(0, 2 * rng.randrange(1024)), format=form, row=Addr(row), lane=first,
        lanes=lanes, rows=Count(rows), row_bytes=step, row_stride=rng.choice([1, 1, 1, 1, 2]),
        drain=True,
    )  # fmt: skip


def random_streams(seed: int) -> dict[str, list[Instruction]]:
    """A queue of loads and stores in order, and the mxu between them."""
    rng = random.Random(seed)
    names, per_pair = CHIP.queue_names, CHIP.tokens.channels_per_pair

    def bit(queue: str, peer: str) -> int:
        return 1 << channel_bit(names.index(queue), names.index(peer), 0, per_pair)

    whole = dma.Load(
        hbm=HbmAddr(0, 0), row=Addr(0), lanes=CHIP.lanes, rows=Count(2 * ROWS),
        row_bytes=CHIP.lanes, drain=True,
    )  # fmt: skip
    loads: list[Instruction] = [whole]
    passes: list[Instruction] = []
    to, back = bit("dma0", "mxu"), bit("mxu", "dma0")
    for turn in range(8):
        for _ in range(rng.randrange(1, 4)):
            loads.append(random_load(rng, rng.choice([CHIP.lanes, CHIP.lanes, 4, 4, 3])))
        loads.append(seq.Nop(drain=True, posts=to))
        k, n, src = rng.randrange(1, 9), rng.choice([8, 4, 3, 2]), 64 * rng.randrange(4)
        src, transposed = src + rng.choice([0, rng.randrange(64)]), rng.random() < 0.3
        loads.append(seq.Nop(waits=bit("dma0", "mxu")))
        passes.append(
            mxu.Load(
                src=Addr(src if transposed else src - src % CHIP.spm.banks_per_stripe),
                k=Count(k), n=Count(n), transposed=transposed,
                stride=rng.choice([1, 1, 2]) if transposed else 1,
                waits=bit("mxu", "dma0"), drain=True,
            )
        )  # fmt: skip
        passes.append(
            mxu.Matmul(
                src=Addr(400 + turn), rows=Count(2), dst=Addr(2 * turn), drain=True, posts=back
            )
        )
        if rng.random() < 0.5:
            loads.append(
                dma.Store(
                    hbm=HbmAddr(1, 0), row=Addr(rng.randrange(ROWS - OUT_ROWS)), lanes=CHIP.lanes,
                    rows=Count(OUT_ROWS), row_bytes=2 * CHIP.lanes, drain=True,
                )
            )  # fmt: skip
    return {"dma0": [*loads, seq.Halt(drain=True)], "mxu": [*passes, seq.Halt(drain=True)]}


def outcome(target: Interp | Sim, program: Program, weights: np.ndarray) -> bytes:
    at = target.allocate(weights.nbytes)
    target.write(at, weights)
    out_bytes = OUT_ROWS * CHIP.lanes * 2
    out = target.allocate(out_bytes)
    bases = {0: (at, weights.nbytes, False), 1: (out, out_bytes, True)}
    handle = target.load(program, bases)
    for _ in range(2):  # again, over what the first run left
        target.run(handle)
    return np.asarray(target.read(out, out_bytes)).tobytes()


@pytest.fixture(params=_native.math.isa_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.math.isa_level()
    _native.math.set_isa_level(request.param)
    yield request.param
    _native.math.set_isa_level(before)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("seed", range(40))
def test_bits_of_views(seed: int) -> None:
    program = Program(CHIP.name, random_streams(seed))
    values = np.random.default_rng(seed).standard_normal(WEIGHTS_BYTES // 2, np.float32)
    weights = (values.view(np.uint32) >> 16).astype(np.uint16)
    interp, sim = Interp(CHIP, hbm_bytes=1 << 20), Sim(CHIP, hbm_bytes=1 << 20)
    assert outcome(sim, program, weights) == outcome(interp, program, weights)
    for name in ("spm", "acc"):
        written = sim.peek_written(name)
        expected, got = interp.peek(name), sim.peek(name)
        np.testing.assert_array_equal(
            got.view(np.uint8).reshape(*got.shape, -1)[written],
            expected.view(np.uint8).reshape(*expected.shape, -1)[written],
            err_msg=name,
        )
