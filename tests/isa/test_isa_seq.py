"""Sequencers: registers, loops, predicates, scalar loads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine import TINY, run

from tapeout.chip import load
from tapeout.isa import Addr, Count, HbmAddr, Program, When, dma, seq
from tapeout.isa.errors import IllegalError, TrapError
from tapeout.isa.instruction import Instruction
from tapeout.isa.interp import Interp
from tapeout.isa.seq import Alu

INT48 = st.integers(-(2**47), 2**47 - 1)


@given(st.sampled_from(list(Alu)), INT48, INT48)
def test_alu_wraps_to_48_bits(op: Alu, x: int, y: int) -> None:
    exact = {
        Alu.ADD: x + y,
        Alu.SUB: x - y,
        Alu.MUL: x * y,
        Alu.SHL: x * 2 ** (y % 64),
        Alu.SHR: x // 2 ** (y % 64),
        Alu.AND: x & y,
        Alu.MIN: min(x, y),
        Alu.MAX: max(x, y),
        Alu.WRAP: x if x < y else x - y,
    }[op]
    got = seq.alu(op, x, y)
    assert -(2**47) <= got < 2**47
    assert (got - exact) % 2**48 == 0


def trace_of(stream: list[Instruction], hbm: bytes = bytes(64)) -> list[int]:
    """The pcs that dma0 issued."""
    pcs: list[int] = []
    run(TINY, {"dma0": stream}, hbm, trace=lambda queue, pc, i: pcs.append(pc))
    return pcs


def test_nested_loops_that_end_together() -> None:
    stream = [
        seq.Loop(count=Count(2), length=3),
        seq.Loop(count=Count(3), length=2),
        seq.Nop(),
        seq.Nop(),
    ]
    once = [1, 2, 3, 2, 3, 2, 3]
    assert trace_of(stream) == [0, *once, *once, 4]


@pytest.mark.parametrize("count", [-5, 0, 1, 2])
def test_counts_from_registers_and_zero_trips(count: int) -> None:
    stream = [
        seq.Set(dst=1, value=count),
        seq.Loop(count=Count(2), length=3),
        seq.Nop(),
        seq.Loop(count=Count(0, 1), length=1),
        seq.Nop(),
    ]
    once = [2, 3, *[4] * max(count, 0)]
    assert trace_of(stream) == [0, 1, *once, *once, 5]


def test_registers_drive_addresses() -> None:
    """0 + 1 + .. + 9 in r2, 10 in r1: a load's address and row prove both."""
    data = np.arange(256, dtype=np.uint8)
    stream = [
        seq.Loop(count=Count(10), length=2),
        seq.AluOp(dst=2, a=2, b=1),
        seq.AluOp(dst=1, a=1, imm=1),
        dma.Load(hbm=HbmAddr(0, 3, 2), row=Addr(0, 1), lanes=1, rows=Count(1)),
    ]
    target = run(TINY, {"dma0": stream}, data.tobytes())
    assert target.peek("spm")[10, 0] == 48 + 256 * 49  # bytes at 45 + 3


def test_scalar_load_is_signed() -> None:
    values = np.array([7, -3], np.int32)
    stream = [
        seq.Load(dst=4, src=HbmAddr(0, 4)),
        seq.AluOp(dst=5, a=4, imm=10),
        dma.Load(hbm=HbmAddr(), row=Addr(0, 5), lanes=1, rows=Count(1)),
    ]
    written = run(TINY, {"dma0": stream}, values.tobytes()).peek_written("spm")
    assert np.argwhere(written).tolist() == [[7, 0]]


@pytest.mark.parametrize(
    ("when", "iterations"),
    [(When.ALWAYS, 4), (When.FIRST, 1), (When.LAST, 1), (When.NOT_FIRST, 3)],
)
def test_predicates_in_a_loop(when: When, iterations: int) -> None:
    """The consumer takes exactly as many tokens as the predicate lets through."""
    to_mxu = 1 << 0
    from_dma0 = 1 << TINY.tokens.channels_per_pair
    streams = {
        "dma0": [seq.Loop(count=Count(4), length=1), seq.Nop(posts=to_mxu, post_when=when)],
        "mxu": [seq.Loop(count=Count(iterations), length=1), seq.Nop(waits=from_dma0)],
    }
    run(TINY, streams)
    streams = {
        "dma0": [seq.Loop(count=Count(iterations), length=1), seq.Nop(posts=to_mxu)],
        "mxu": [seq.Loop(count=Count(4), length=1), seq.Nop(waits=from_dma0, wait_when=when)],
    }
    run(TINY, streams)


def test_predicates_outside_loops() -> None:
    from_dma0 = 1 << TINY.tokens.channels_per_pair
    for when in When:
        takes = when != When.NOT_FIRST
        post = [seq.Nop(posts=1)] if takes else []
        run(TINY, {"dma0": post, "mxu": [seq.Nop(waits=from_dma0, wait_when=when)]})


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        ([seq.Set(dst=0, value=1)], r"seq\.set cannot write r0: it is always zero"),
        ([seq.Set(dst=31, value=1)], "r31 is not one of the registers r0..r15 of tiny"),
        ([seq.Loop(count=Count(1), length=0)], "a body of 0 instructions"),
        ([seq.Loop(count=Count(0), length=9)], "a body of 9 instructions .* fit the 1 left"),
        (
            [seq.Loop(count=Count(1), length=1), seq.Loop(count=Count(1), length=1), seq.Nop()],
            "fit the 0 left in the enclosing body",
        ),
        ([seq.Loop(count=Count(1), length=9 - k) for k in range(9)], "loops nest . deep at most"),
        ([seq.Load(dst=1, src=HbmAddr(0, 2))], "a multiple of 4, not b0.2."),
        ([seq.Nop(waits=1 << 23)], "wait and post masks have .* channels on tiny, not bit 23"),
        ([dma.Load(hbm=HbmAddr(reg=20), row=Addr(), lanes=1, rows=Count(1))], "r20 is not one of"),
    ],
)
def test_illegal_programs(stream: list[Instruction], words: str) -> None:
    with pytest.raises(IllegalError, match=words):
        run(load("tiny", ["seq.registers=16"]), {"dma0": stream})


def test_trap_and_the_end_of_a_stream() -> None:
    with pytest.raises(
        TrapError, match=r"^trap: seq\.trap with code 77 at dma0 pc 1: seq\.trap code=77$"
    ):
        run(TINY, {"dma0": [seq.Nop(), seq.Trap(code=77)]})
    target = Interp(TINY, hbm_bytes=1 << 16)
    handle = target.load(Program("tiny", {"vpu": [seq.Nop()]}), {})
    with pytest.raises(IllegalError, match=r"the stream ended without seq\.halt"):
        target.run(handle)


def test_an_instruction_of_another_queue() -> None:
    with pytest.raises(IllegalError, match=r"dma\.load cannot run on queue vpu"):
        run(TINY, {"vpu": [dma.Load(hbm=HbmAddr(), row=Addr(), lanes=1, rows=Count(1))]})
