"""Cycles of short programs, worked out by hand from the rules of docs/timing.md.

Chip `tiny`: an mxu.load of 8 rows takes 4 cycles (2 rows a cycle), a pass of up to 4 rows 4 cycles
and 24 + rows until its last write (2 * 8 array rows, 1 column group, 4 to accumulate, 3); vpu: 2
rows a cycle, 16 cycles deep, 5 more to reduce; tokens take 2 cycles; requests and responses 8 each.
A scalar instruction issues 3 cycles after the one before at the earliest, one of mxu 4, others 6.
"""

import dataclasses

import numpy as np
import pytest

from tapeout.chip import Chip, load
from tapeout.isa import Count, Kind, Operand, vpu
from tapeout.isa.assembler import assemble
from tapeout.isa.instruction import Resolved
from tapeout.sim import RunResult, Sim, _native

TINY = load("tiny")
LINE_BYTES = TINY.seq.fetch_line_instructions * 64
STRIPE = TINY.spm.rows_per_stripe


def run(text: str, chip: Chip = TINY, hbm: np.ndarray | None = None) -> tuple[RunResult, dict]:
    """The result, and (issue, retire) of each instruction by queue, relative to the first issue."""
    sim = Sim(chip, checks=False, hbm_bytes=1 << 20)
    address = sim.allocate(8192)
    if hbm is not None:
        sim.write(address, hbm)
    handle = sim.load(assemble(text, chip), {0: (address, 8192, True)})
    result = sim.run(handle, trace=True)
    trace = result.trace
    assert trace is not None
    first = int(trace.issue.min())
    cycles = {}
    for number, name in enumerate(chip.queue_names):
        mine = trace.queue == number
        issue, retire = trace.issue[mine].astype(int), trace.retire[mine].astype(int)
        cycles[name] = [
            (int(a) - first, int(b) - first) for a, b in zip(issue, retire, strict=True)
        ]
    return result, cycles


def issues(cycles: dict, queue: str) -> list[int]:
    return [issue for issue, _ in cycles[queue]]


def test_words_come_one_a_cycle() -> None:
    """The last word of a line comes with the end of its run, the others a cycle apart before it."""
    result, _ = run(".queue mxu\n seq.nop\n seq.nop\n seq.halt")
    hbm = _native.Hbm(dataclasses.asdict(TINY.hbm), TINY.clock_ghz)
    cut, done = TINY.hbm.interleave_bytes, 0
    for number, at in enumerate(range(8192, 8192 + LINE_BYTES, cut)):
        done = max(done, hbm.access(number + 8, at, min(cut, LINE_BYTES), False))
    assert result.trace is not None
    first = done + 8 - (LINE_BYTES // 64 - 1)
    assert result.trace.issue.tolist() == [first + 2 + 3 * k for k in range(3)]
    assert result.cycles == first + 9
    assert result.queues["mxu"].stalls == {"fetch": first}
    assert result.queues["vpu"].end_cycle == 0


def test_loads_run_under_passes() -> None:
    """A load starts after the pass that swapped has issued, a pass when its load is done."""
    _, cycles = run("""
    .queue mxu
      mxu.load src=0 k=8 n=8
      mxu.matmul src=256 rows=3 dst=0
      mxu.load src=8 k=8 n=8
      mxu.matmul src=256 rows=9 dst=0
      mxu.load src=16 k=2 n=8
      mxu.matmul src=256 rows=1 dst=0
      mxu.matmul src=256 rows=1 dst=0
      seq.halt
    """)
    assert cycles["mxu"] == [
        (0, 20),  # occupancy 4; row 7 is read up to 7 * 2 cycles later
        (4, 4 + 27),
        (6, 32),  # read when the pass was checked; retires in order: a cycle after the pass
        (10, 10 + 33),
        (12, 44),  # checked while the pass before waited; two rows take the port as long as eight
        (19, 45),  # the stream port was taken for 9 rows: 19 + 25 = 44, a cycle after the load
        (23, 48),  # and for 4 cycles at least
        (48, 49),
    ]


def test_transposed_and_strided_loads() -> None:
    """Four source rows a cycle transposed; a stride of 4 meets one of 4 banks, 2 two of them."""
    text = """
    .queue mxu
      mxu.load src=0 k=8 n=5 transposed
      mxu.load src=0 k=8 n=8 stride=4 transposed
      mxu.load src=0 k=8 n=8 stride=2 transposed
      mxu.unload dst=0
      seq.halt
    """
    _, cycles = run(text, load("tiny", ["mxu.load_rows_per_cycle_transposed=4"]))
    assert issues(cycles, "mxu") == [0, 3, 11, 15, 15 + 32]


@pytest.mark.parametrize(
    ("dst", "accumulate", "issue"), [(0, "add", 10), (5, "write", 10), (5, "add", 13)]
)
def test_sums_settle_before_rows_ahead_are_added_to(dst: int, accumulate: str, issue: int) -> None:
    """The last row of the first pass is summed by cycle 4 + 5 + 4; the other starts with it."""
    _, cycles = run(f"""
    .queue mxu
      mxu.load src=0 k=8 n=8
      mxu.matmul src=256 rows=6 dst=0
      mxu.matmul src=256 rows=2 dst={dst} accumulate={accumulate}
      seq.halt
    """)
    assert issues(cycles, "mxu")[:3] == [0, 4, issue]


def test_vector_rates() -> None:
    _, cycles = run(f"""
    .queue vpu
      vpu.map rows=5 a=vmem[0:0:1] dst=vmem[8:0:1]
      vpu.map rows=5 a=spm_bf16[0:0:4] dst=vmem[16:0:1]
      vpu.map rows=4 a=spm_fp32[{STRIPE}:0:2] dst=vmem[16:0:1]
      vpu.map tiles=3 rows=2 a=#1.0 reduce=sum reduce_dst=30
      vpu.map tiles=5 rows=1 a=#1.0 dst=vmem[40:1:0]
      seq.nop drain
      seq.halt
    """)
    assert cycles["vpu"] == [
        (0, 19),  # ceil(5 / 2) steps, and the depth of 16
        (5, 26),  # a row a step: all in one bank
        (10, 28),  # 2 pairs of rows are in the 4 banks: 2 steps
        (15, 39),  # 3 tiles of 1 step, and 5 to reduce
        (20, 40),  # along the tiles: ceil(5 / 2)
        (40, 41),
        (43, 44),
    ]


def test_vector_rates_of_functions_and_accumulators() -> None:
    _, cycles = run("""
    .queue vpu
      vpu.map rows=4 a=#1.0 function=tanh dst=vmem[8:0:1]
      vpu.map rows=4 a=#1.0 function=abs dst=acc[0:0:2]
      vpu.map rows=2 tiles=3 a=#1.0 reduce=argmax reduce_dst=30
      seq.halt
    """)
    # 21 steps on 2 slots are 11 passes: 2 steps of rows, and ten rounds of 13 until the last pass.
    tanh = 2 * 11 + 10 * 13
    assert cycles["vpu"][:3] == [
        (0, tanh + 16),
        (tanh, tanh + 4 + 16),  # every other row of acc is in one bank of two
        (tanh + 4, tanh + 4 + 4 + 16 + 5),  # along the tiles of one row after another
    ]


def test_sums_over_tiles_wait_for_the_adder() -> None:
    """A row m comes back after adder_stages cycles at the earliest."""
    solo = load("solo")
    for reduce, cycles in ((vpu.Reduce.SUM, 2), (vpu.Reduce.MAX, 2), (vpu.Reduce.NONE, 1)):
        one = vpu.Map(
            tiles=5, rows=Count(2), a=Operand(Kind.IMMEDIATE), dst=Operand(Kind.VMEM, 0, 0, 2, 1),
            reduce=reduce,
        )  # fmt: skip
        assert vpu.Map.occupancy(solo, Resolved(one, [0] * 32)) == 5 * cycles


def test_tokens_take_their_latency_after_retirement() -> None:
    result, cycles = run("""
    .queue mxu
      mxu.load src=0 k=1 n=8
      mxu.matmul src=256 rows=200 dst=0 posts=vpu.0
      seq.halt
    .queue vpu
      seq.nop
      vpu.map rows=1 a=acc[0:0:0] dst=vmem[0:0:0] waits=mxu.0
      seq.halt
    """)
    matmul, use = cycles["mxu"][1], cycles["vpu"][1]
    assert matmul == (4, 4 + 224)
    assert use[0] == 228 + 2
    assert result.queues["vpu"].stalls["token mxu"] == use[0] - cycles["vpu"][0][0] - 6
    assert result.trace is not None
    assert result.cycles == int(result.trace.issue.max()) + 1


def test_loops_cost_their_own_cycles_only() -> None:
    _, cycles = run("""
    .queue vpu
      seq.loop count=3 length=2
      seq.loop count=2 length=1
      seq.nop
      seq.loop count=0 length=2
      seq.nop
      seq.nop
      seq.nop
      seq.halt
    """)
    # Per outer round: loop, nop, nop. Then the empty loop, and the nop after its body.
    assert issues(cycles, "vpu") == [3 * k for k in range(1 + 3 * 3 + 1 + 1 + 1)]


def test_predicates_follow_the_innermost_loop() -> None:
    text = """
    .queue mxu
      mxu.load src=0 k=1 n=8
      mxu.matmul src=256 rows=200 dst=0
      seq.nop drain
      seq.loop count=4 length=1
      seq.nop posts=vpu.0 post_when=last
      seq.loop count=3 length=1
      seq.nop posts=vpu.1 post_when=not_first
      seq.halt
    .queue vpu
      seq.loop count=5 length=1
      seq.nop waits=mxu.0 wait_when=first
      seq.nop waits=mxu.1
      seq.nop waits=mxu.1
      seq.halt
    """
    _, cycles = run(text)
    last = cycles["mxu"][3 + 4][1]
    assert cycles["vpu"][1][0] == last + 2
    assert issues(cycles, "vpu")[1:6] == [last + 2 + 3 * k for k in range(5)]


def test_registers_are_48_bits() -> None:
    result, _ = run("""
    .queue vpu
      seq.set dst=r1 value=140737488355327
      seq.alu dst=r1 a=r1 imm=4
      seq.alu op=shr dst=r2 a=r1 imm=44
      seq.alu op=mul dst=r3 a=r2 imm=-1
      seq.loop count=r3 length=1
      seq.nop
      seq.halt
    """)
    # 2^47 - 1 + 4 wraps to -2^47 + 3; >> 44 is -8; times -1 is 8 rounds.
    assert result.instructions == 5 + 8 + 1


def test_one_transfer_by_hand() -> None:
    """Runs leave one a cycle, at most `credits` at a time, and return in order."""
    chip = load("tiny", ["dma.credits=3", "hbm.interleave_bytes=128"])
    text = """
    .queue dma0
      seq.nop drain
      dma.load hbm=b0[64] row=0 lanes=8 rows=60 row_bytes=16
      seq.nop
      dma.store hbm=b0[4096] row=0 lanes=8 rows=20 row_bytes=16
      seq.nop drain
      seq.halt
    """
    result, _ = run(text, chip)
    trace = result.trace
    assert trace is not None
    hbm = _native.Hbm(dataclasses.asdict(chip.hbm), chip.clock_ghz)
    for number, at in enumerate(range(8192, 8192 + LINE_BYTES, 128)):
        hbm.access(number + 8, at, 128, False)
    start = int(trace.issue[1])
    sizes = [64] + [128] * 7  # 960 bytes from 64 on, cut at multiples of 128
    back: list[int] = []
    generated, at, last = start + 1, 64, 0
    for number, nbytes in enumerate(sizes):
        generated = max(generated + 1, back[number - 3] + 1 if number >= 3 else 0)
        done = hbm.access(generated + 8, at, nbytes, False)
        last = max(last, done + 8) + nbytes // 32
        back.append(last)
        at += nbytes
    assert int(trace.retire[1]) == last + 1
    store = int(trace.issue[3])
    assert int(trace.issue[2]) == start + 2  # read as the transfer issues
    assert store == generated
    sent, at, generated = 0, 4096, store + 1
    for nbytes in (128, 128, 64):
        generated = max(generated + 1, back[len(back) - 3] + 1)
        sent = max(sent, generated) + nbytes // 32
        done = hbm.access(sent + 8, at, nbytes, True)
        last = max(last, done + 8) + 1
        back.append(last)
        at += nbytes
    assert int(trace.retire[3]) == last + 1
    assert int(trace.issue[4]) == last + 1
    assert result.bytes["hbm_read"] == 960
    assert result.bytes["hbm_write"] == 320
    assert result.queues["dma0"].hbm_runs == 11


def test_scalar_loads_hold_their_queue() -> None:
    result, cycles = run(
        ".queue vpu\n seq.load dst=r1 src=b0[4]\n seq.loop count=r1 length=1\n seq.nop\n seq.halt",
        hbm=np.array([0, 3], np.int32),
    )
    held = cycles["vpu"][1][0] - 3
    assert held > 16
    assert result.queues["vpu"].stalls["memory"] == held
    assert result.instructions == 2 + 3 + 1


@pytest.mark.parametrize("fits", [True, False])
def test_a_loop_larger_than_the_window_is_fetched_again(fits: bool) -> None:
    lines = TINY.seq.fetch_lines - 1 if fits else TINY.seq.fetch_lines + 1
    body = lines * TINY.seq.fetch_line_instructions
    text = f".queue vpu\n seq.loop count=3 length={body}\n" + " seq.nop\n" * body + " seq.halt"
    result, _ = run(text)
    stream_bytes = -(-(body + 2) // TINY.seq.fetch_line_instructions) * LINE_BYTES
    if fits:
        assert result.bytes["hbm_fetch"] == stream_bytes
    else:
        assert result.bytes["hbm_fetch"] > 2 * stream_bytes


def test_macs_and_bytes() -> None:
    result, _ = run(f"""
    .queue dma0
      dma.load hbm=b0[0] row=0 lanes=7 rows=6 row_bytes=16
      dma.load hbm=b0[0] row={STRIPE} lanes=6 rows=3 row_bytes=16 posts=mxu.0
      seq.halt
    .queue mxu
      mxu.load src=0 k=6 n=7 waits=dma0.0
      mxu.matmul src={STRIPE} rows=3 dst=0
      mxu.matmul src={STRIPE} rows=3 dst=0 accumulate=add posts=vpu.0
      seq.halt
    .queue vpu
      vpu.map rows=3 width=7 a=acc[0:0:1] dst=vmem[0:0:1] waits=mxu.0
      seq.halt
    """)
    assert result.macs == 2 * 3 * 6 * 7
    assert result.mac_capacity == 64 * result.cycles
    assert result.bytes["hbm_read"] == 6 * 14 + 3 * 12
    assert result.bytes["spm_write"] == 6 * 14 + 3 * 12
    assert result.bytes["spm_read"] == 6 * 14 + 2 * 3 * 12
    assert result.bytes["acc_write"] == 2 * 3 * 7 * 4
    assert result.bytes["acc_read"] == 2 * 3 * 7 * 4  # one accumulating pass, one map
    assert result.bytes["vmem_write"] == 3 * 7 * 4
