"""The tile language: tokens, drains, loops and rings that the builder assigns, and its errors."""

import dataclasses
import random

import numpy as np
import pytest
from lang_program import CHIP, HBM_BYTES, N, Written, launch, random_program, tokens

from tapeout.chip import load
from tapeout.isa import Addr, Count, HbmAddr, Kind, Program, dma, seq
from tapeout.isa.dma import HbmFormat
from tapeout.isa.errors import BankError, IllegalError, RaceError, TokenError, UninitializedError
from tapeout.isa.interp import Interp
from tapeout.isa.vpu import Combine, Reduce
from tapeout.lang import Builder, ChipTooSmall, HbmTensor, Matrix, WeightRing, ops
from tapeout.sim import Sim

SILENT = (RaceError, BankError, UninitializedError)  # what a missing token does


def interp() -> Interp:
    return Interp(CHIP, hbm_bytes=HBM_BYTES)


def check(written: Written, trips: int) -> None:
    """The reference's values on both targets and under random schedules, without a fault."""
    expected = written.reference(trips)
    np.testing.assert_array_equal(written.run(interp(), trips), expected)
    for seed in range(2):
        got = written.run(interp(), trips, schedule="random", seed=seed)
        np.testing.assert_array_equal(got, expected)
    got = written.run(Sim(CHIP, hbm_bytes=HBM_BYTES), trips)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("seed", range(10))
def test_straight_programs_mean_what_they_say(seed: int) -> None:
    check(random_program(seed), trips=0)


@pytest.mark.parametrize("trips", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(4))
def test_loops_mean_what_they_say(seed: int, trips: int) -> None:
    check(random_program(100 + seed, steps=8, loops=2), trips)


def without(program: Program, token: tuple[str, int, str, int, int, int]) -> Program:
    """The program without one post and the wait that takes it."""
    producer, first, consumer, second, post, wait = token
    streams = {q: list(s) for q, s in program.streams.items()}
    for queue, pc, name, bit in (
        (producer, first, "posts", post),
        (consumer, second, "waits", wait),
    ):
        old = streams[queue][pc]
        streams[queue][pc] = dataclasses.replace(old, **{name: getattr(old, name) & ~(1 << bit)})
    return dataclasses.replace(program, streams=streams)


def chain() -> tuple[Program, dict[str, np.ndarray]]:
    """load a; b = a + a's partner; load a again (write after read); c = a; store b and c."""
    k = Builder(CHIP)
    x = np.arange(2 * N * N, dtype=np.float32).reshape(2, N, N)
    src = k.segment("x", x.nbytes, writable=False)
    out = k.segment("out", x.nbytes, writable=True)
    a = k.tensor(Kind.SPM_FP32, N, N)
    b = k.tensor(Kind.SPM_FP32, N, N, avoid=(a,))
    c = k.tensor(Kind.SPM_FP32, N, N, avoid=(a, b))
    ops.load(k, a, src, queue=2, format=HbmFormat.FP32)
    ops.vector(k, a, 1.0, dst=b, combine=Combine.ADD)
    ops.load(k, a, src.slice(4 * N * N, 0), queue=2, format=HbmFormat.FP32)
    ops.vector(k, a, 2.0, dst=c, combine=Combine.ADD)
    ops.store(k, b, out, queue=3, format=HbmFormat.FP32)
    ops.store(k, c, out.slice(4 * N * N, 0), queue=3, format=HbmFormat.FP32)
    return k.build(), {"x": x}


def test_a_chain_has_a_token_for_each_hazard_and_no_more() -> None:
    program, given = chain()
    found = tokens(program, CHIP)
    pairs = sorted((producer, consumer) for producer, _, consumer, *_ in found)
    # read after write twice and write after read once between dma0 and vpu; a store of each result
    assert pairs == [("dma0", "vpu")] * 2 + [("vpu", "dma0")] + [("vpu", "dma1")] * 2
    out = launch(interp(), program, given)["out"].view(np.float32).reshape(2, N, N)
    np.testing.assert_array_equal(out, given["x"] + np.array([1, 2], np.float32)[:, None, None])


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("target", [Interp, Sim])
def test_each_token_of_a_chain_is_needed(target: type, which: int) -> None:
    program, given = chain()
    token = tokens(program, CHIP)[which]
    # A race explains a read of unwritten rows, so which of the two is seen depends on the order.
    with pytest.raises((RaceError, UninitializedError)) as caught:
        launch(target(CHIP, hbm_bytes=HBM_BYTES), without(program, token), given)
    assert caught.value.queue in (token[0], token[2])
    assert "test_lang.py" in str(caught.value)  # the kernel's source line


@pytest.mark.parametrize("seed", range(6))
def test_a_missing_token_is_caught_or_changes_nothing(seed: int) -> None:
    """The builder orders stripes, blocks and segments; a token whose two accesses share none of the
    rows may go without harm, any other is caught by name. Tokens of loop bodies are among them."""
    trips, caught = 2, 0
    written = random_program(300 + seed, steps=8, loops=1)
    expected = written.reference(trips)
    sample = random.Random(seed).sample(tokens(written.program, CHIP), 8)
    for token in sample:
        broken = dataclasses.replace(written, program=without(written.program, token))
        try:
            got = broken.run(interp(), trips, schedule="random", seed=seed)
        except SILENT:
            caught += 1
        except TokenError:  # preposted tokens of a loop rely on the order that went away
            caught += 1
        else:
            np.testing.assert_array_equal(got, expected)
    assert caught >= 4


def test_a_missing_drain_is_caught() -> None:
    """A vector map that reads what the one before it wrote."""
    k = Builder(CHIP)
    out = k.segment("out", 4 * N * N, writable=True)
    a = k.tensor(Kind.VMEM, N, N)
    stat = k.packed(N)
    ops.vector(k, 3.0, dst=a)
    ops.vector(k, a, reduce=Reduce.SUM, reduce_dst=stat)
    ops.vector(k, a, stat.scalars(), dst=a, combine=Combine.ADD)
    ops.store(k, a, out, format=HbmFormat.FP32)
    program = k.build()
    got = launch(interp(), program, {})["out"].view(np.float32)
    np.testing.assert_array_equal(got, np.float32(3 + 3 * N))
    drained = [pc for pc, i in enumerate(program.streams["vpu"]) if i.drain]
    assert len(drained) == 2
    for pc in drained:
        stream = list(program.streams["vpu"])
        stream[pc] = dataclasses.replace(stream[pc], drain=False)
        streams = {**program.streams, "vpu": stream}
        with pytest.raises(RaceError, match="set `drain`"):
            launch(interp(), dataclasses.replace(program, streams=streams), {})


# --- registers ------------------------------------------------------------------------------------


def test_scalars_survive_temporaries_taken_before_them() -> None:
    """Scalars are filled in the prologue: one first used behind a matmul must not lie in a register
    that the matmul used for its loops."""
    chip = CHIP
    k = Builder(chip)
    x = np.eye(N, dtype=np.float32)
    src = k.segment("x", x.nbytes, writable=False)
    out = k.segment("out", 2 * x.nbytes, writable=True)
    wide = k.tensor(Kind.SPM_FP32, N, N)
    a = k.tensor(Kind.SPM_BF16, N, N, avoid=(wide,))
    b = k.tensor(Kind.SPM_BF16, N, N, avoid=(wide, a))
    acc = k.tensor(Kind.ACC, N, N)
    ops.load(k, wide, src, format=HbmFormat.FP32)
    for t in (a, b):
        ops.vector(k, wide, dst=t)
    ops.matmul(k, acc, a, b)  # takes registers of the mxu and gives them back
    rows = (k.arg("n") + 1).minimum(N)
    ops.matmul(k, acc, a, b, rows=rows, accumulate=True)
    result = k.tensor(Kind.SPM_FP32, N, N, avoid=(wide,))
    ops.vector(k, acc, dst=result)
    ops.store(k, result, out.at(k.arg("n") * (4 * N * N)), format=HbmFormat.FP32)
    program = k.build()
    mxu = program.streams["mxu"]
    kinds = [type(i) for i in mxu[:3]]
    assert kinds == [seq.Load, seq.AluOp, seq.AluOp]  # n, n + 1, min(n + 1, N): once, at the start
    filled = {i.dst for i in mxu[:3]}
    assert all(not isinstance(i, seq.Set) or i.dst not in filled for i in mxu)
    given = {"x": x, "args": np.array([1], np.int32)}
    got = launch(interp(), program, given)["out"].view(np.float32).reshape(2, N, N)[1]
    np.testing.assert_array_equal(got, x + np.diag([1.0] * 2 + [0.0] * (N - 2)))


def test_too_few_registers_are_named() -> None:
    chip = load("tiny", ["seq.registers=8"])
    k = Builder(chip)
    a = k.tensor(Kind.VMEM, 1, N)
    for step in range(6):  # n and n + step, in registers 1 to 7
        ops.vector(k, 1.0, dst=a, rows=k.arg("n") + step)
    with pytest.raises(ChipTooSmall, match=r"queue vpu needs more than seq\.registers = 8"):
        ops.vector(k, 1.0, dst=a, rows=k.arg("n") + 6)


# --- errors ---------------------------------------------------------------------------------------


def test_a_tensor_without_room_names_the_memory() -> None:
    k = Builder(CHIP)
    per = CHIP.acc.rows_per_stripe
    for _ in range(CHIP.acc.stripes):
        k.tensor(Kind.ACC, per, N)
    with pytest.raises(ChipTooSmall, match=r"acc has no room for 1 rows.*raise acc\.stripes"):
        k.tensor(Kind.ACC, 1, N)
    with pytest.raises(ChipTooSmall, match="vmem has no room for 1000 rows"):
        k.tensor(Kind.VMEM, 1000, N)
    first = k.tensor(Kind.SPM_BF16, 1, N)
    rest = tuple(k.tensor(Kind.SPM_BF16, 1, N) for _ in range(len(k.places.spm.stripes) - 1))
    with pytest.raises(ChipTooSmall, match="spm has no room"):
        k.tensor(Kind.SPM_BF16, 1, N, avoid=(first, *rest))
    with pytest.raises(ChipTooSmall, match="spm has no room"):
        k.ring(CHIP.spm.rows_per_stripe, N, 2)


def test_rows_given_back_can_be_had_again() -> None:
    k = Builder(CHIP)
    whole = [k.tensor(Kind.ACC, CHIP.acc.rows_per_stripe, N) for _ in range(CHIP.acc.stripes)]
    k.free(*whole[2:4])
    both = k.tensor(Kind.ACC, 2 * CHIP.acc.rows_per_stripe, N)
    assert both.resources == whole[2].resources | whole[3].resources


def test_a_matrix_too_tall_for_a_stripe_is_refused() -> None:
    k = Builder(CHIP)
    ring = WeightRing(k)
    hbm = HbmTensor(base=2, offset=0, bytes=0)
    tall = Matrix(name="w", k=CHIP.spm.rows_per_stripe + 1, n=N, format=HbmFormat.BF16, hbm=hbm)
    with pytest.raises(ChipTooSmall, match=r"a column of w has 257 rows.*raise spm\.rows_per_bank"):
        ring.columns(tall)
    with pytest.raises(ChipTooSmall, match="needs 2 stripes of spm or more, not 1"):
        WeightRing(Builder(CHIP, weight_slots=1))


def test_operands_of_one_stripe_are_refused() -> None:
    k = Builder(CHIP)
    a = k.tensor(Kind.SPM_BF16, N, 2 * N)
    with pytest.raises(ValueError, match=r"two operands share the stripe.*avoid="):
        ops.vector(k, a.tile(0), a.tile(1), combine=Combine.ADD, dst=k.tensor(Kind.VMEM, N, N))
    with pytest.raises(ValueError, match=r"the result shares the stripe.*avoid="):
        ops.vector(k, a.tile(0), 1.0, combine=Combine.ADD, dst=a.tile(1))
    acc = k.tensor(Kind.ACC, N, 2 * N)
    with pytest.raises(ValueError, match="two operands share the stripe"):
        ops.vector(k, acc.tile(0), acc.tile(1), combine=Combine.ADD, dst=a.tile(0))
    ops.vector(k, acc.tile(0), 1.0, combine=Combine.ADD, dst=acc.tile(0))  # acc may be in place


def test_a_loop_lists_its_queues_and_does_not_nest() -> None:
    k = Builder(CHIP)
    a = k.tensor(Kind.VMEM, 1, N)
    with (
        k.loop(2, (ops.MXU,)),
        pytest.raises(ValueError, match="queue vpu is used in a loop that does not list it"),
    ):
        ops.vector(k, 1.0, dst=a)
    k = Builder(CHIP)
    with pytest.raises(ValueError, match="does not nest"), k.loop(2, (0,)), k.loop(2, (0,)):
        pass


def test_instructions_name_kernel_and_line() -> None:
    k = Builder(CHIP)
    with k.scope("outer", "layer3"), k.scope("inner"):
        ops.vector(k, 1.0, dst=k.tensor(Kind.VMEM, 1, N))
    source = k.build().source("vpu", 0)
    assert source is not None
    assert (source.kernel, source.layer, source.file) == ("inner", "layer3", "unit/test_lang.py")


def test_a_format_that_the_chip_leaves_out_is_refused() -> None:
    chip = load("tiny", ["dma.formats=bf16,fp32,int8"])
    k = Builder(chip)
    src = k.segment("x", 4096, writable=False)
    a = k.tensor(Kind.SPM_BF16, 32, chip.lanes)
    ops.load(k, a, src, format=HbmFormat.INT8)
    with pytest.raises(ChipTooSmall, match=r"tiny has no q8_0: dma\.formats leaves it out"):
        ops.load(k, a, src, format=HbmFormat.Q8_0)


@pytest.mark.parametrize("target", [Interp, Sim])
def test_a_format_that_the_chip_leaves_out_is_an_illegal_operand(target: type) -> None:
    chip = load("tiny", ["dma.formats=bf16,fp32,int8"])
    chosen = target(chip, hbm_bytes=HBM_BYTES)
    address = chosen.allocate(4096)
    chosen.write(address, bytes(4096))
    for fmt in (HbmFormat.INT8, HbmFormat.Q8_0):
        moves = dma.Load(
            hbm=HbmAddr(0, 0), format=fmt, row=Addr(0), lanes=chip.lanes, rows=Count(32),
            row_bytes=chip.lanes,
        )  # fmt: skip
        handle = chosen.load(
            Program("tiny", {"dma0": [moves, seq.Halt()]}), {0: (address, 4096, False)}
        )
        if fmt == HbmFormat.INT8:
            chosen.run(handle)
            continue
        with pytest.raises(IllegalError, match=r"dma\.formats"):
            chosen.run(handle)
