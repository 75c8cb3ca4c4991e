"""Assembly text: exact in both directions, and errors that name the line and the nearest name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import instructions

from tapeout.chip import load
from tapeout.isa import (
    Addr,
    Count,
    HbmAddr,
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
from tapeout.isa.assembler import (
    AssemblyError,
    assemble,
    disassemble,
    format_instruction,
    parse_line,
)
from tapeout.isa.instruction import Instruction, When

CHIP = load("solo")


@given(instructions())
def test_lines_round_trip(instruction: Instruction) -> None:
    assert parse_line(str(instruction)) == instruction
    assert parse_line(str(instruction)).encode() == instruction.encode()
    text = format_instruction(instruction, "vpu", CHIP)
    assert parse_line(text, "vpu", CHIP) == instruction


@pytest.mark.parametrize(
    ("instruction", "queue", "text"),
    [
        (
            mxu.Matmul(
                src=Addr(128, 2),
                rows=Count(4),
                dst=Addr(0),
                accumulate=mxu.Accumulate.ADD,
                waits=1 << 0 | 1 << 5,
                posts=1,
                drain=True,
            ),
            "mxu",
            "mxu.matmul src=128+r2 rows=4 dst=0 accumulate=add waits=vpu.0,dma0.1 posts=vpu.0 "
            "drain",
        ),
        (
            vpu.Map(
                rows=Count(0, 3),
                a=Operand(Kind.ACC, 8, 0, 2, 1),
                combine=vpu.Combine.MUL,
                b=Operand(Kind.IMMEDIATE, value=0.125),
                dst=Operand(Kind.SPM_BF16, 64, 4),
                post_when=When.LAST,
            ),
            "vpu",
            "vpu.map rows=0+r3 a=acc[8:2:1] b=#0.125 dst=spm_bf16[64+r4:0:0] combine=mul "
            "post_when=last",
        ),
        (
            dma.Load(
                hbm=HbmAddr(2, 4096, 5),
                row=Addr(1),
                lanes=128,
                rows=Count(32),
                format=dma.HbmFormat.Q4_1,
            ),
            "dma0",
            "dma.load hbm=b2[4096+r5] format=q4_1 row=1 lanes=128 rows=32",
        ),
        (seq.AluOp(dst=3, a=3, imm=-1), "mxu", "seq.alu dst=r3 a=r3 imm=-1"),
    ],
)
def test_words(instruction: Instruction, queue: str, text: str) -> None:
    assert format_instruction(instruction, queue, CHIP) == text
    assert parse_line(text, queue, CHIP) == instruction


def test_registers_alone_and_numbers_in_hex() -> None:
    assert parse_line("seq.loop count=r4 length=0x10").count == Count(0, 4)
    assert parse_line("seq.nop waits=0x11 ; a comment") == seq.Nop(waits=17)


PROGRAM = Program(
    "solo",
    {
        "mxu": [seq.Nop(waits=16), mxu.Unload(dst=Addr(3)), seq.Halt()],
        "dma3": [seq.Halt()],
        "vpu": [],
    },
    [Segment("key cache; 'k'", 1, 4096, True), Segment("w", 2, 64, False)],
    {"mxu": [1, 1, 0]},
    [Source("matmul"), Source("norm x", "layers.0", "a file.py", 12)],
)


def test_programs_round_trip() -> None:
    text = disassemble(PROGRAM, CHIP)
    assert ".segment 'key cache; " in text
    back = assemble(text, CHIP)
    assert back == PROGRAM
    assert list(back.streams) == list(PROGRAM.streams)
    assert disassemble(back, CHIP) == text


@given(st.lists(instructions(), max_size=4), st.lists(instructions(), max_size=4))
def test_random_programs_round_trip(one: list[Instruction], two: list[Instruction]) -> None:
    program = Program("solo", {"vpu": one, "dma1": two})
    assert assemble(disassemble(program, CHIP), CHIP) == program


def test_blank_lines_and_comments() -> None:
    text = "; a program\n\n.queue mxu ; the array\n  seq.halt ; the end\n"
    assert assemble(text, CHIP).streams == {"mxu": [seq.Halt()]}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("mxu.matmull src=0", "no instruction 'mxu.matmull': did you mean mxu.matmul?"),
        ("mxu.unload dest=0", "mxu.unload has no field 'dest': did you mean dst?"),
        ("mxu.unload", "mxu.unload needs dst="),
        ("mxu.unload dst=0 dst=1", "field dst is given twice"),
        ("mxu.unload dst=-1", "mxu.unload.dst takes imm, imm+rN or rN, not '-1'"),
        ("mxu.unload dst=1048576", "mxu.unload.dst.imm = 1048576 does not fit 0..1048575"),
        ("mxu.unload dst=0 drain=1", "drain is a flag: write it without a value"),
        ("mxu.unload dst", "dst is given as dst=value"),
        ("mxu.unload dst=0 waits=vpu.4", "channels are 0..3, not 4"),
        ("mxu.unload dst=0 waits=mxu.0", "mxu has no channel with 'mxu'"),
        ("mxu.unload dst=0 waits=vp.0", "did you mean vpu?"),
        ("mxu.unload dst=0 waits=vpu", "takes peer.channel,... or a number, not 'vpu'"),
        ("mxu.unload dst=0 wait_when=lst", "has no member 'lst': did you mean last?"),
        ("seq.alu dst=3", "seq.alu.dst takes a register rN, not '3'"),
        ("seq.set dst=r1 value=x", "seq.set.value takes an integer, not 'x'"),
        ("seq.load dst=r1 src=b1", "takes an HBM address b0[offset+rN], not 'b1'"),
        ("vpu.map rows=1 a=ac[0:0:0]", "has no operand kind 'ac': did you mean acc?"),
        ("vpu.map rows=1 a=acc[0]", "takes kind[address:tile_stride:row_stride]"),
        ("vpu.map rows=1 a=#x", "takes a constant #x, not '#x'"),
        ("vpu.map rows=1 a=#0.1", "not exact in fp32"),
        (".quue mxu", "no directive '.quue': did you mean .queue?"),
        (".queue mx", "solo has no queue 'mx': did you mean mxu?"),
        (".queue", ".queue does not take 0 words"),
        (".chip lab16", "the text is for chip lab16, not solo: load that chip"),
        (".segment w base=0 bytes=x readonly", ".segment takes bytes=integer, not 'bytes=x'"),
        (".segment w base=0 bytes=1 readable", "readonly or writable"),
        (".segment 'w", "a quote is not closed"),
        (".at 0", ".at 0: there are 0 .source lines before"),
        (".source a b c d", ".source takes a line number last, not 'd'"),
    ],
)
def test_errors_name_line_rule_and_nearest(line: str, words: str) -> None:
    with pytest.raises(AssemblyError, match=r"^line 2: ") as caught:
        assemble(f".queue mxu\n{line}\n", CHIP)
    assert words in str(caught.value)


def test_an_instruction_needs_a_queue_and_sources_cover_it_whole() -> None:
    with pytest.raises(AssemblyError, match=r"line 1: an instruction must follow a \.queue"):
        assemble("seq.halt", CHIP)
    text = ".source k '' '' 0\n.queue mxu\nseq.nop\n.at 0\nseq.halt"
    with pytest.raises(AssemblyError, match=r"line 5: the first \.at of a queue must precede"):
        assemble(text, CHIP)
    with pytest.raises(AssemblyError, match="channel names need"):
        parse_line("seq.nop waits=vpu.0")
