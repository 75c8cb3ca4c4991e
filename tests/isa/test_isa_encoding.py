"""Encoding: every instruction survives its 64 bytes; a word that is no instruction is refused."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import instructions, instructions_of

from tapeout.isa import (
    Addr,
    Count,
    EncodingError,
    Kind,
    Operand,
    Program,
    Segment,
    Source,
    dma,
    mxu,
    seq,
    vpu,
)
from tapeout.isa.fields import WORD_BITS, Bits, HbmAddr, width_of
from tapeout.isa.instruction import BY_MNEMONIC, REGISTRY, Instruction, decode
from tapeout.isa.program import Words, channel_bit, channel_peer


@pytest.mark.parametrize("cls", REGISTRY.values(), ids=lambda c: c.mnemonic)
def test_round_trip(cls: type[Instruction]) -> None:
    @given(instructions_of(cls))
    def check(instruction: Instruction) -> None:
        word = instruction.encode()
        assert len(word) == WORD_BITS // 8
        back = decode(word)
        assert back == instruction
        assert [type(getattr(back, n)) for n in vars(back)] == [
            type(getattr(instruction, n)) for n in vars(back)
        ]
        assert back.encode() == word

    check()


@pytest.mark.parametrize("cls", REGISTRY.values(), ids=lambda c: c.mnemonic)
def test_reserved_bits_are_refused(cls: type[Instruction]) -> None:
    used = 255
    for _, at, spec in cls.layout():
        assert not used >> at & ((1 << width_of(spec)) - 1), "fields overlap"
        used |= ((1 << width_of(spec)) - 1) << at
    required = {
        f.name: 0 if isinstance(f.metadata["spec"], Bits) else f.metadata["spec"]()
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING
    }
    word = int.from_bytes(cls(**required).encode(), "little")
    for bit in range(WORD_BITS):
        if not used >> bit & 1:
            with pytest.raises(EncodingError, match=f"reserved bits of {cls.mnemonic}"):
                decode((word | 1 << bit).to_bytes(64, "little"))


def test_unknown_opcode_is_refused() -> None:
    for opcode in set(range(256)) - set(REGISTRY):
        with pytest.raises(EncodingError, match=f"opcode {opcode} is not an instruction"):
            decode(opcode.to_bytes(64, "little"))


def test_a_member_outside_its_enumeration_is_refused() -> None:
    word = int.from_bytes(seq.AluOp(dst=1).encode(), "little")
    at = next(at for name, at, _ in seq.AluOp.layout() if name == "op")
    with pytest.raises(EncodingError, match=r"seq.alu.op = 15 is not one of Alu: add, sub"):
        decode((word | 15 << at).to_bytes(64, "little"))
    with pytest.raises(EncodingError, match="is not one of Accumulate"):
        mxu.Matmul(src=Addr(0), rows=Count(1), dst=Addr(0), accumulate=3).encode()
    load = dma.Load(hbm=HbmAddr(), row=Addr(), lanes=1, rows=Count(1))
    at = next(at for name, at, _ in load.layout() if name == "format")
    word = int.from_bytes(load.encode(), "little")
    with pytest.raises(EncodingError, match="format = 2 is not one of HbmFormat"):
        decode((word | 2 << at).to_bytes(64, "little"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: seq.Set(dst=32, value=0), "seq.set.dst = 32 does not fit 0..31"),
        (lambda: seq.Set(dst=1, value=2**47), "does not fit -140737488355328..140737488355327"),
        (lambda: seq.Set(dst=1, value=1.5), "seq.set.value takes an integer, not 1.5"),
        (lambda: seq.Loop(count=3, length=1), "seq.loop.count takes Count, not int"),
        (
            lambda: vpu.Map(rows=Count(1), a=Operand(Kind.IMMEDIATE, value=0.1)),
            "immediate 0.1 is not exact in fp32: round it first",
        ),
        (
            lambda: vpu.Map(rows=Count(1), a=Operand(Kind.IMMEDIATE, value=1e40)),
            r"immediate 1e\+40 is out of fp32 range",
        ),
        (
            lambda: vpu.Map(rows=Count(1), a=Operand(Kind.NONE, imm=3)),
            "kind none has no address",
        ),
        (
            lambda: vpu.Map(rows=Count(1), a=Operand(Kind.IMMEDIATE, imm=3, value=1.0)),
            "an immediate has no address",
        ),
        (
            lambda: vpu.Map(rows=Count(1), a=Operand(Kind.ACC, value=1.0)),
            "kind acc has no value",
        ),
    ],
)
def test_values_that_do_not_fit(make, words: str) -> None:
    with pytest.raises(EncodingError, match=words):
        make().encode()


def test_nan_immediates_are_canonical() -> None:
    i = vpu.Map(rows=Count(1), a=Operand(Kind.IMMEDIATE, value=-math.nan))
    back = decode(i.encode())
    assert isinstance(back, vpu.Map)
    assert math.isnan(back.a.value)
    assert back == i
    assert back.encode() == i.encode()


def test_mnemonics_are_module_and_operation() -> None:
    for mnemonic, cls in BY_MNEMONIC.items():
        assert mnemonic.split(".")[0] == cls.__module__.rsplit(".", 1)[1]
        assert cls.engine == mnemonic.split(".")[0]


@given(st.lists(instructions(), max_size=5))
def test_program_files_round_trip(stream: list[Instruction]) -> None:
    program = Program(
        "solo",
        {"vpu": stream, "mxu": []},
        [Segment("weights", 3, 4096, False)],
        {"vpu": [0] * len(stream)},
        [Source("matmul", "layers.0", "kernels.py", 7)],
    )
    assert Program.from_bytes(program.to_bytes()) == program
    assert Words(program.encode("vpu")) == stream


def test_broken_program_files_are_refused() -> None:
    with pytest.raises(EncodingError, match="not a program file"):
        Program.from_bytes(b"no zip")
    with pytest.raises(EncodingError, match="65 bytes are not a whole number of 64-byte words"):
        Words(bytes(65))


@given(st.integers(2, 7), st.integers(1, 4), st.data())
def test_channel_bits(queues: int, per_pair: int, data: st.DataObject) -> None:
    queue = data.draw(st.integers(0, queues - 1))
    seen = set()
    for peer in set(range(queues)) - {queue}:
        for channel in range(per_pair):
            bit = channel_bit(queue, peer, channel, per_pair)
            assert channel_peer(queue, bit, per_pair) == (peer, channel)
            seen.add(bit)
    assert seen == set(range((queues - 1) * per_pair))
