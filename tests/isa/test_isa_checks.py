"""Each checker finds the fault planted for it under every schedule, and passes sound programs."""

import numpy as np
import pytest
from machine import TINY

from tapeout.chip import Chip, load
from tapeout.isa import errors
from tapeout.isa.assembler import assemble
from tapeout.isa.interp import Interp
from tapeout.sim import Sim

SCHEDULES = [("round-robin", 0), *(("random", seed) for seed in range(12))]
LANES, STRIPE = TINY.lanes, TINY.spm.rows_per_stripe

PIPELINE = f"""
.queue dma0
  dma.load hbm=b0[0] row=0 lanes={LANES} rows=8 row_bytes=16
  dma.load hbm=b0[128] row={STRIPE} lanes={LANES} rows=8 row_bytes=16 posts=mxu.0
  dma.store hbm=b1[0] row={2 * STRIPE} lanes={LANES} rows=4 row_bytes=16 waits=vpu.0
  seq.halt
.queue mxu
  mxu.load src=0 k=8 n={LANES} waits=dma0.0
  mxu.matmul src={STRIPE} rows=4 dst=0
  mxu.load src=0 k=8 n={LANES}
  mxu.matmul src={STRIPE} rows=4 dst=0 accumulate=add posts=vpu.0
  seq.halt
.queue vpu
  vpu.map rows=4 a=acc[0:0:1] dst=spm_bf16[{2 * STRIPE}:0:1] waits=mxu.0 posts=dma0.0
  seq.halt
"""


def run(text: str, chip: Chip = TINY, schedule=("round-robin", 0), checks: bool = True) -> Interp:
    """b0: 1024 read-only bytes; b1: 1024 writable bytes."""
    target = Interp(chip, checks=checks, hbm_bytes=1 << 20)
    bases = {}
    for base, writable in ((0, False), (1, True)):
        address = target.allocate(1024)
        target.write(address, np.ones(512, np.uint16))
        bases[base] = (address, 1024, writable)
    handle = target.load(assemble(text, chip), bases)
    target.run(handle, schedule=schedule[0], seed=schedule[1])
    return target


def fails(text: str, error: type[errors.ProgramError], words: str, chip: Chip = TINY) -> None:
    """The same class under every schedule; the words under the default one."""
    with pytest.raises(error, match=words):
        run(text, chip)
    for schedule in SCHEDULES:
        with pytest.raises(error):
            run(text, chip, schedule)


def without(text: str, *words: str) -> str:
    for word in words:
        assert text.count(word) == 1
        text = text.replace(word, "")
    return text


def test_the_sound_pipeline_runs_under_every_schedule() -> None:
    expected = run(PIPELINE).peek("acc")
    for schedule in SCHEDULES:
        np.testing.assert_array_equal(run(PIPELINE, TINY, schedule).peek("acc"), expected)


@pytest.mark.parametrize(
    "token",
    [(" posts=mxu.0", " waits=dma0.0"), (" posts=vpu.0", " waits=mxu.0"),
     (" posts=dma0.0", " waits=vpu.0")],
)  # fmt: skip
def test_a_removed_token_is_a_race(token: tuple[str, str]) -> None:
    fails(without(PIPELINE, *token), errors.RaceError, "and no token orders the two")


def test_a_race_names_place_queues_and_instruction() -> None:
    text = without(PIPELINE, " posts=vpu.0", " waits=mxu.0")
    with pytest.raises(errors.RaceError) as caught:
        run(text)
    assert caught.value.queue in ("vpu", "mxu")
    assert "acc row 0 is" in str(caught.value)
    assert "pc" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        # read after write; write after write of vmem, where reductions land late
        "vpu.map rows=1 a=#1.0 dst=vmem[0:0:0]\n vpu.map rows=1 a=vmem[0:0:0] dst=acc[1:0:0] DRAIN",
        "vpu.map rows=1 a=#1.0 dst=vmem[0:0:0]\n vpu.map rows=1 a=#1.0 dst=vmem[0:0:0] DRAIN",
        "vpu.map rows=1 a=#1.0 reduce=sum reduce_dst=0\n"
        " vpu.map rows=1 a=#1.0 reduce=sum reduce_dst=0 reduce_accumulate DRAIN",
    ],
)
def test_an_undrained_hazard_in_one_queue(text: str) -> None:
    text = f".queue vpu\n {text}\n seq.halt"
    run(text.replace("DRAIN", "drain"))
    fails(text.replace("DRAIN", ""), errors.RaceError, "has retired: set `drain`")


def test_hbm_races_are_byte_ranges() -> None:
    shape = "memory=vmem format=fp32 lanes=2"

    def text(offset: int, drain: str) -> str:
        return f"""
        .queue dma0
          dma.load hbm=b0[0] {shape} row=0 rows=4 row_bytes=8
          dma.store hbm=b1[0] {shape} row=0 rows=4 row_bytes=16 drain
          dma.load hbm=b1[{offset}] {shape} row=8 rows=3 row_bytes=16 {drain}
          seq.halt
        """

    run(text(0, "drain"))
    run(text(8, ""))  # between the stored pieces
    fails(
        text(4, ""), errors.RaceError, "HBM byte [0-9]+ is read here and written by instruction 2"
    )


def test_scalar_loads_are_race_checked() -> None:
    text = """
    .queue dma0
      dma.load hbm=b0[0] memory=vmem format=fp32 row=0 lanes=2 rows=1
      dma.store hbm=b1[4] memory=vmem format=fp32 row=0 lanes=2 rows=1 drain posts=vpu.0
      seq.halt
    .queue vpu
      seq.load dst=r1 src=b1[8] waits=dma0.0
      seq.halt
    """
    run(text)
    fails(without(text, "posts=vpu.0", "waits=dma0.0"), errors.RaceError, "HBM byte")


def test_writes_of_one_queue_land_in_order() -> None:
    run("""
    .queue vpu
      vpu.map rows=4 a=#1.0 dst=acc[0:0:1]
      vpu.map rows=4 a=#2.0 dst=acc[0:0:1]
      seq.halt
    .queue dma0
      dma.load hbm=b0[0] row=0 lanes=4 rows=4
      dma.load hbm=b0[64] row=0 lanes=4 rows=4
      seq.halt
    """)


def test_drain_and_tokens_carry_knowledge_onwards() -> None:
    """dma0 -> mxu -> vpu: the vpu knows of dma0's load through the mxu's token alone."""
    text = f"""
    .queue dma0
      dma.load hbm=b0[0] memory=vmem format=fp32 row=0 lanes={LANES} rows=1 posts=mxu.0
      seq.halt
    .queue mxu
      seq.nop waits=dma0.0 posts=vpu.0
      seq.halt
    .queue vpu
      vpu.map rows=1 a=vmem[0:0:0] dst=vmem[1:0:0] waits=mxu.0
      seq.halt
    """
    run(text)
    fails(without(text, " waits=dma0.0").replace("posts=mxu.0", ""), errors.RaceError, "vmem row 0")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("a=vmem[0:0:0] dst=vmem[0:0:1]", "vmem row 0 is used twice by one instruction"),
        ("a=#1.0 dst=vmem[9:0:0]", "the result writes a row more than once: give it"),
        ("a=#1.0 combine=add b=row_scalar[5:0:0] dst=vmem[4:0:1]", "vmem row 5 is used twice"),
        ("a=#1.0 dst=vmem[9:0:1] reduce=sum reduce_dst=10", "vmem row 10 is used twice"),
        ("a=vmem[0:0:1] reduce=sum reduce_dst=1", "vmem row 1 is used twice"),
        ("a=acc[0:0:1] dst=acc[1:0:1]", "acc row 1 is used twice"),
    ],
)
def test_overlap_within_one_instruction(body: str, words: str) -> None:
    text = f"""
    .queue vpu
      vpu.map rows=8 a=#1.0 dst=vmem[0:0:1]
      vpu.map rows=8 a=#1.0 dst=acc[0:0:1]
      vpu.map rows=2 {body} drain
      seq.halt
    """
    fails(text, errors.RaceError, words)


GATHER = f"""
.queue dma0
  dma.load hbm=b0[0] format=fp32 memory=vmem row=0 lanes={LANES} rows=4 row_bytes=32
  dma.load hbm=b0[0] format=fp32 memory=vmem row=4 lanes={LANES} rows=4 row_bytes=0 indexed \
    index_rows=INDEX drain
  dma.load hbm=b0[0] format=fp32 memory=vmem row=8 lanes={LANES} rows=4 row_bytes=32 outer=2
  seq.halt
""".replace("\\\n    ", "")


def test_a_gather_keeps_its_indices_and_a_load_may_repeat_rows() -> None:
    run(GATHER.replace("INDEX", "3"))
    text = GATHER.replace("INDEX", "3").replace("row=4", "row=1")
    fails(text, errors.RaceError, "vmem row 3 is used twice by one instruction")
    sim = Sim(TINY, hbm_bytes=1 << 20)
    address = sim.allocate(1024)
    sim.write(address, np.ones(512, np.uint16))
    handle = sim.load(assemble(text, TINY), {0: (address, 1024, False)})
    with pytest.raises(errors.RaceError, match="vmem row 3 is used twice by one instruction"):
        sim.run(handle)


def test_in_place_maps_and_accumulating_reductions_are_sound() -> None:
    run("""
    .queue vpu
      vpu.map rows=8 a=#1.0 dst=vmem[0:0:1]
      vpu.map rows=8 a=#1.0 dst=acc[0:0:1]
      vpu.map rows=8 a=vmem[0:0:1] dst=vmem[0:0:1] drain
      vpu.map rows=8 a=acc[0:0:1] dst=acc[0:0:1] reduce=sum reduce_dst=20 drain
      vpu.map rows=8 a=acc[0:0:1] reduce=sum reduce_dst=20 reduce_accumulate drain
      seq.halt
    """)


BANKS = f"""
.queue dma0
  dma.load hbm=b0[0] row=0 lanes={LANES} rows=4 row_bytes=16 posts=vpu.0
  dma.load hbm=b0[0] row=ROW lanes={LANES} rows=4 row_bytes=16
  seq.halt
.queue vpu
  vpu.map rows=4 a=spm_bf16[0:0:1] dst=vmem[0:0:1] waits=dma0.0
  seq.halt
"""


def test_unordered_queues_in_one_stripe() -> None:
    run(BANKS.replace("ROW", str(STRIPE)))
    fails(
        BANKS.replace("ROW", "8"),
        errors.BankError,
        "spm stripe 0 .* no token orders the two",
    )


def test_bank_rules_within_a_queue() -> None:
    acc = """
    .queue vpu
      vpu.map rows=4 a=#1.0 dst=acc[ROW:0:1]
      vpu.map rows=4 a=#1.0 dst=acc[4:0:1]
      vpu.map rows=4 a=acc[ROW:0:1] dst=vmem[0:0:1] DRAIN
      seq.halt
    """
    fails(acc.replace("ROW", "0").replace("DRAIN", ""), errors.RaceError, "acc row 0")
    run(acc.replace("ROW", "0").replace("DRAIN", "drain"))
    other_rows = """
    .queue vpu
      vpu.map rows=4 a=#1.0 dst=acc[0:0:1]
      seq.nop drain
      vpu.map rows=4 a=#1.0 dst=acc[4:0:1]
      vpu.map rows=4 a=acc[0:0:1] dst=vmem[0:0:1] DRAIN
      seq.halt
    """
    run(other_rows.replace("DRAIN", "drain"))
    fails(other_rows.replace("DRAIN", ""), errors.BankError, "acc stripe 0 .* set `drain`")
    mxu = f"""
    .queue dma0
      dma.load hbm=b0[0] row=0 lanes={LANES} rows=16 row_bytes=16
      dma.load hbm=b0[0] row={STRIPE} lanes={LANES} rows=16 row_bytes=16 posts=mxu.0
      seq.halt
    .queue mxu
      mxu.load src=0 k=8 n=8 waits=dma0.0
      mxu.matmul src=ROW rows=4 dst=0 DRAIN
      seq.halt
    """
    run(mxu.replace("ROW", str(STRIPE)).replace("DRAIN", ""))
    run(mxu.replace("ROW", "8").replace("DRAIN", "drain"))
    fails(
        mxu.replace("ROW", "8").replace("DRAIN", ""),
        errors.BankError,
        "spm stripe 0 [^@]* set `drain`",
    )


@pytest.mark.parametrize(
    ("operands", "good"),
    [
        (f"a=spm_bf16[0:0:1] combine=add b=spm_bf16[{STRIPE}:0:1] dst=vmem[0:0:1]", True),
        ("a=spm_bf16[0:0:1] combine=add b=spm_bf16[4:0:1] dst=vmem[0:0:1]", False),
        ("a=spm_bf16[0:0:1] dst=spm_bf16[4:0:1]", False),
        (f"a=spm_bf16[0:0:1] dst=spm_bf16[{2 * STRIPE}:0:1]", True),
        ("a=acc[0:0:1] combine=add b=acc[4:0:1] dst=vmem[0:0:1]", False),
        (f"a=acc[0:0:1] combine=add b=acc[{TINY.acc.rows_per_stripe}:0:1] dst=acc[8:0:1]", True),
    ],
)
def test_stripes_of_one_map(operands: str, good: bool) -> None:
    text = f"""
    .queue dma0
      dma.load hbm=b0[0] row=0 lanes={LANES} rows=8 row_bytes=16
      dma.load hbm=b0[0] row={STRIPE} lanes={LANES} rows=8 row_bytes=16 posts=vpu.0
      seq.halt
    .queue vpu
      vpu.map rows=8 a=#1.0 dst=acc[0:0:1]
      vpu.map rows=8 a=#1.0 dst=acc[{TINY.acc.rows_per_stripe}:0:1]
      vpu.map rows=4 {operands} waits=dma0.0 drain
      seq.halt
    """
    if good:
        run(text)
    else:
        fails(text, errors.BankError, "two operands of one vpu.map use (spm|acc) stripe 0")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (".queue vpu\n vpu.map rows=1 a=acc[3:0:0] dst=vmem[0:0:0]", "acc row 3 lane 0 is read"),
        (
            ".queue dma0\n dma.load hbm=b0[0] row=0 lanes=3 rows=1 posts=vpu.0\n seq.halt\n"
            ".queue vpu\n vpu.map rows=1 a=spm_bf16[0:0:0] dst=vmem[0:0:0] waits=dma0.0",
            "spm row 0 lane 3 is read",
        ),
        (
            ".queue vpu\n vpu.map rows=1 a=#1.0 combine=add b=row_scalar[2:0:0] dst=vmem[0:0:0]",
            "vmem row 2 lane 0 is read",
        ),
        (
            ".queue dma0\n dma.store hbm=b1[0] row=4 lanes=3 rows=1",
            "spm row 4 lane 0 is read, and nothing has written it in this launch: load or "
            "compute it first at dma0 pc 0",
        ),
    ],
)
def test_unwritten_lanes(text: str, words: str) -> None:
    fails(f"{text}\n seq.halt", errors.UninitializedError, words)
    run(f"{text}\n seq.halt", checks=False)


def test_a_launch_starts_unwritten() -> None:
    target = Interp(TINY, hbm_bytes=1 << 16)
    write = ".queue vpu\n vpu.map rows=1 a=#1.0 dst=vmem[0:0:0]\n seq.halt"
    read = ".queue vpu\n vpu.map rows=1 a=vmem[0:0:0] dst=vmem[1:0:0]\n seq.halt"
    target.run(target.load(assemble(write, TINY), {}))
    assert target.peek_written("vmem")[0].all()
    with pytest.raises(errors.UninitializedError):
        target.run(target.load(assemble(read, TINY), {}))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("vpu.map rows=1 a=#1.0 dst=acc[512:0:0]", "acc row 512 is outside its rows 0..511"),
        ("vpu.map rows=9 a=#1.0 dst=vmem[120:0:1]", "vmem row 128 is outside its rows 0..127"),
        ("vpu.map rows=1 a=spm_bf16[3072:0:0] dst=vmem[0:0:0]", "spm row 3072 is outside"),
        ("dma.load hbm=b0[1010] row=0 lanes=8 rows=1", "bytes 1010..1026 are outside the 1024"),
        ("dma.load hbm=b0[0] row=0 lanes=8 rows=2 row_bytes=1016", "..1032 are outside the 1024"),
        ("dma.load hbm=b7[0] row=0 lanes=8 rows=1", "base b7 has no segment"),
        ("dma.store hbm=b0[0] row=0 lanes=8 rows=1", "base b0 is read-only"),
        ("seq.load dst=r1 src=b0[1024]", "bytes 1024..1028 are outside"),
    ],
)
def test_bounds_and_protection(line: str, words: str) -> None:
    queue = "dma0" if line.startswith("dma") else "vpu"
    fails(f".queue {queue}\n {line}\n seq.halt", errors.BoundsError, words)


def test_negative_addresses_are_out_of_bounds() -> None:
    text = ".queue dma0\n seq.set dst=r1 value=-4\n dma.load hbm=b0[0+r1] row=0 lanes=1 rows=1\n"
    fails(text + " seq.halt", errors.BoundsError, "bytes -4..-2 are outside")
    text = ".queue dma0\n seq.set dst=r1 value=-4\n dma.load hbm=b0[0] row=r1 lanes=1 rows=1\n"
    fails(text + " seq.halt", errors.BoundsError, "spm row -4 is outside")


def test_missing_posts_are_a_deadlock_that_names_every_queue() -> None:
    text = without(PIPELINE, " posts=mxu.0")
    fails(
        text,
        errors.DeadlockError,
        "mxu <- dma0.0.*vpu <- mxu.0.*dma0 <- vpu.0",
    )
    ring = """
    .queue mxu
      seq.nop
      seq.nop waits=vpu.1,dma1.0 posts=vpu.1
      seq.halt
    .queue vpu
      seq.nop waits=mxu.1 posts=mxu.1
      seq.halt
    """
    with pytest.raises(errors.DeadlockError) as caught:
        run(ring)
    assert str(caught.value) == (
        "deadlock: every queue that has not halted waits for a token nobody will post: "
        "pc 1: mxu <- vpu.1, mxu <- dma1.0; "
        "pc 0: vpu <- mxu.1 at mxu pc 1: seq.nop waits=0x102 posts=0x2"
    )


OVERFLOW = """
.queue mxu
  seq.loop count=COUNT length=1
  seq.nop posts=vpu.0
  seq.halt
.queue vpu
  seq.loop count=COUNT length=1
  seq.nop waits=mxu.0
  seq.halt
"""


def test_overflow_is_judged_by_happens_before() -> None:
    """One token beyond the capacity is an error even where the consumer keeps up."""
    chip = load("tiny", ["tokens.capacity=3"])
    run(OVERFLOW.replace("COUNT", "3"), chip)
    fails(OVERFLOW.replace("COUNT", "4"), errors.TokenError, "holds 3 tokens", chip)
    credited = """
    .queue mxu
      seq.loop count=3 length=1
      seq.nop posts=vpu.0
      seq.loop count=9 length=1
      seq.nop waits=vpu.0 posts=vpu.0
      seq.halt
    .queue vpu
      seq.loop count=9 length=1
      seq.nop waits=mxu.0 posts=mxu.0
      seq.loop count=3 length=1
      seq.nop waits=mxu.0
      seq.halt
    """
    for schedule in SCHEDULES:
        run(credited, chip, schedule)


def test_leftover_tokens() -> None:
    text = without(PIPELINE, " waits=vpu.0").replace("dma.store", "seq.nop ;")
    fails(text, errors.TokenError, "1 tokens are left in channel dma0 <- vpu.0")


def test_unwritten_reads_yield_to_the_race_that_explains_them() -> None:
    """The reader first: nothing is written yet, but what is wrong is the missing token."""
    text = without(PIPELINE, " posts=mxu.0", " waits=dma0.0").replace(".queue dma0", ".queue dma0")
    kinds = set()
    for schedule in SCHEDULES:
        with pytest.raises(errors.ProgramError) as caught:
            run(text, TINY, schedule)
        kinds.add(type(caught.value))
    assert kinds == {errors.RaceError}


def test_loading_checks_the_program() -> None:
    target = Interp(TINY, hbm_bytes=1 << 16)
    program = assemble(".segment w base=2 bytes=64 readonly\n.queue mxu\n seq.halt", TINY)
    with pytest.raises(ValueError, match="segment w needs 64 bytes at base b2, not none"):
        target.load(program, {})
    with pytest.raises(ValueError, match="not 32"):
        target.load(program, {2: (0, 32, False)})
    with pytest.raises(ValueError, match="b2 = 2 must be a multiple of 4"):
        target.load(program, {2: (2, 64, False)})
    with pytest.raises(ValueError, match="was compiled for chip tiny, this is solo"):
        Interp(load("solo"), hbm_bytes=1 << 16).load(program, {})
    with pytest.raises(MemoryError, match=r"do not fit HBM: .* reset\(\) frees them"):
        target.allocate(1 << 20)
    address = target.allocate(4096)
    target.write(address, b"abc")
    assert target.read(address, 3).tobytes() == b"abc"
    with pytest.raises(ValueError, match="are outside the"):
        target.read(address, 1 << 20)
    target.reset()
    assert target.allocate(1) == 0
    assert target.read(0, 1)[0] == 0
    with pytest.raises(ValueError, match="no memory 'sp'"):
        target.peek("sp")
    with pytest.raises(ValueError, match="no schedule 'fifo'"):
        target.run(target.load(assemble(".queue mxu\n seq.halt", TINY), {}), schedule="fifo")


@pytest.mark.parametrize(("row", "words"), [(TINY.vmem.rows - 3, "vmem row"), (8, "outside the")])
def test_what_an_index_says_is_judged_last(row: int, words: str) -> None:
    """Hardware reads indices when the transfer runs, so all else is judged before."""
    text = f"""
.queue dma0
  dma.load hbm=b0[0] format=fp32 memory=vmem row=0 lanes={LANES} rows=1 row_bytes=32
  seq.nop drain
  dma.store hbm=b1[0] format=fp32 memory=vmem row={row} lanes={LANES} rows=4 row_bytes=32 indexed
  seq.halt
"""
    with pytest.raises(errors.BoundsError, match=words):
        run(text, checks=False)
