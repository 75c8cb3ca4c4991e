"""Causal attention of whole sequences against float64."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_launch import Trial, assert_within, bf16, halves, launch, normal, wide

from tapeout.chip import Chip, load
from tapeout.isa.interp import Interp
from tapeout.kernels.attention import attention_reference
from tapeout.kernels.flash import Plan, Sequence, choose, flash_attention
from tapeout.lang import Builder, ChipTooSmall
from tapeout.sim import Sim

CHIPS = {name: load(name) for name in ("tiny", "lab16", "solo")}


def sequence(heads: int, kv_heads: int, tokens: int, d: int) -> Sequence:
    return Sequence(heads=heads, kv_heads=kv_heads, tokens=tokens, head_dim=d, scale=float(d**-0.5))


def check(chip: Chip, seq: Sequence, *, plan: Plan | None = None, loud: float = 1) -> Trial:
    """`loud` multiplies queries: with large scores a row attends to few keys."""
    q = bf16(normal(1, seq.heads, seq.tokens, seq.head_dim) * loud)
    k, v = (bf16(normal(i, seq.kv_heads, seq.tokens, seq.head_dim)) for i in (2, 3))
    trial = Trial(chip, weight_slots=0)
    flash_attention(
        trial.k, *(trial.give(n, x) for n, x in (("q", q), ("k", k), ("v", v))),
        trial.take("o", seq.heads * seq.head_bytes), seq, plan=plan,
    )  # fmt: skip
    got = halves(trial.run()["o"], *q.shape)
    q, k, v = (wide(x) for x in (q, k, v))
    expected, spread = (attention_reference(q, k, x, seq.scale, 0) for x in (v, np.abs(v)))
    # p and the result are rounded to bf16, each by 2^-8 of values that never exceed
    # softmax(..) |v|; a quarter of that is room for fp32 scores (d products of `loud` numbers).
    assert_within(got, expected, 2.25 * 2**-8 * spread)
    return trial


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tokens", "d"),
    [
        (1, 1, 1, 8),
        (1, 1, 8, 8),
        (1, 1, 37, 5),
        (2, 1, 30, 20),
        (4, 2, 41, 8),
        (1, 1, 100, 16),
    ],
)
def test_sizes_that_divide_nothing(heads: int, kv_heads: int, tokens: int, d: int):
    check(CHIPS["tiny"], sequence(heads, kv_heads, tokens, d))


@pytest.mark.parametrize(("rows", "keys", "outputs"), [(8, 8, 1), (16, 8, 2), (24, 16, 1)])
def test_many_blocks(rows: int, keys: int, outputs: int):
    """More blocks and chunks of keys than buffers; the last of each is smaller."""
    plan = Plan(rows=rows, keys=keys, slots=2, outputs=outputs, heads=1)
    check(CHIPS["tiny"], sequence(1, 1, 61, 9), plan=plan)


@pytest.mark.parametrize(("heads", "kv_heads", "together"), [(3, 3, 1), (4, 4, 2), (6, 3, 1)])
def test_heads_in_a_hardware_loop(heads: int, kv_heads: int, together: int):
    seq = sequence(heads, kv_heads, 21, 8)
    plan = replace(choose(CHIPS["tiny"], seq, 12), heads=together)
    check(CHIPS["tiny"], seq, plan=plan)


def test_large_scores():
    """Rows that attend to one key: a maximum that rises late scales old sums to nothing."""
    check(CHIPS["tiny"], sequence(1, 1, 45, 8), loud=30)


@pytest.mark.parametrize(("chip", "tokens", "d"), [("lab16", 70, 24), ("solo", 200, 64)])
def test_other_chips(chip: str, tokens: int, d: int):
    check(CHIPS[chip], sequence(1, 1, tokens, d))


def test_order_of_queues_does_not_matter():
    """Tokens order all that must be: random schedules give the same bits."""
    trial = check(CHIPS["tiny"], sequence(2, 1, 29, 8))
    assert trial.program is not None
    results = [
        launch(
            Interp(trial.chip, hbm_bytes=1 << 22), trial.program, trial.given,
            schedule="random", seed=seed,
        )["o"]
        for seed in range(2)
    ]  # fmt: skip
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize(("heads", "d", "least"), [(1, 128, 0.90), (8, 128, 0.90), (1, 64, 0.45)])
def test_the_array_stays_busy(heads: int, d: int, least: float):
    """4096 tokens on solo: useful products over all the array could do.

    94 %, 96 % and 47 % when written (half the array idles at d = 64); 60 % and 35 % are asked for.
    """
    chip, seq = CHIPS["solo"], sequence(heads, heads, 4096, d)
    b = Builder(chip, weight_slots=0)
    parts = (b.segment(n, seq.heads * seq.head_bytes, writable=n == "o") for n in "qkvo")
    flash_attention(b, *parts, seq)
    program = b.build()
    assert program.instructions < 2500
    sim = Sim(chip, checks=False)
    bases = {s.base: (sim.allocate(s.bytes), s.bytes, s.writable) for s in program.segments}
    result = sim.run(sim.load(program, bases), functional=False)
    assert seq.useful_macs / result.mac_capacity > least


def test_errors():
    with pytest.raises(ValueError, match="heads = 3 must be a multiple of kv_heads = 2"):
        sequence(3, 2, 8, 8)
    with pytest.raises(ValueError, match="sizes of 1 or more"):
        sequence(1, 1, 0, 8)
    with pytest.raises(ChipTooSmall, match="no block of attention with head_dim 8 fits 6 stripes"):
        choose(CHIPS["tiny"], sequence(1, 1, 8, 8), 6)
