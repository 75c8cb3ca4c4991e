"""isa_tables.inc, compiled: its decoder, register resolution and closed forms equal Python's."""

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from strategies import instructions

from tapeout.chip import Chip, load
from tapeout.isa import native
from tapeout.isa.fields import Addr, Bits, Count, EncodingError, HbmAddr, Operand
from tapeout.isa.instruction import HEADER, REGISTRY, Instruction, Resolved, decode

COMPILER = shutil.which("c++") or shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

MAIN = r"""
#include <cstdio>
#include <map>
#include <string>
#include "isa_tables.inc"
using namespace tapeout::isa;
%s
int main(int, char** argv) {
  std::map<std::string, double> numbers;
  char key[100]; double value;
  FILE* chip = fopen(argv[1], "r");
  while (fscanf(chip, "%%99s %%lf", key, &value) == 2) numbers[key] = value;
  const ChipParams params = chip_params([&](const char* k) { return numbers.at(k); });
  int64_t registers[32]; uint8_t word[64];
  FILE* in = fopen(argv[2], "rb");
  while (fread(registers, 8, 32, in) == 32 && fread(word, 1, 64, in) == 64) {
    Instr instr;
    if (!decode(word, instr)) { puts("illegal"); continue; }
    printf("%%s %%u %%u %%d %%d %%d", mnemonic(instr.op), instr.header.waits, instr.header.posts,
           instr.header.drain, int(instr.header.wait_when), int(instr.header.post_when));
    std::visit([&](const auto& body) { show(params, resolve(body, registers)); }, instr.body);
    puts("");
  }
}
"""


def printers() -> str:
    """C++ that prints each resolved field, then the closed forms where there are any."""
    out = []
    for cls in REGISTRY.values():
        name = native.struct_name(cls)
        given_ = "[[maybe_unused]] const ChipParams& chip"
        out.append(f"void show({given_}, [[maybe_unused]] const {name}Now& i) {{")
        for field, _, spec in cls.layout():
            if field in HEADER:
                continue
            parts = {
                HbmAddr: ["base", "offset"],
                Operand: ["kind", "imm", "tile_stride", "row_stride"],
            }
            for part in parts.get(spec, [""]):
                member = f"i.{native._member(field)}{'.' * bool(part)}{part}"
                out.append(f'  printf(" %lld", (long long)({member}));')
            if spec is Operand:
                out.append(f'  printf(" %a", double(i.{field}.value));')
        if cls.engine != "dma":
            out.append("  const int64_t o = occupancy(chip, i);")
            out.append('  printf(" %lld %lld", (long long)o, (long long)latency(chip, i, o));')
        out.append("}")
    return "\n".join(out)


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    (folder / "isa_tables.inc").write_text(native.tables())
    (folder / "main.cpp").write_text(MAIN % printers())
    command = [
        COMPILER,
        "-std=c++20",
        "-O0",
        "-Wall",
        "-Wextra",
        "-Werror",
        "main.cpp",
        "-o",
        "show",
    ]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "show"


def rows(binary: Path, chip: Chip, cases: list[tuple[list[int], bytes]]) -> list[list[str]]:
    numbers = "".join(f"{k} {v!r}\n" for k, v in native.flatten(chip).items())
    (binary.parent / "chip").write_text(numbers)
    packed = b"".join(
        b"".join(r.to_bytes(8, "little", signed=True) for r in registers) + word
        for registers, word in cases
    )
    (binary.parent / "words").write_bytes(packed)
    done = subprocess.run(
        [binary, "chip", "words"], cwd=binary.parent, check=True, capture_output=True
    )
    return [line.split() for line in done.stdout.decode().splitlines()]


def expected(chip: Chip, registers: list[int], word: bytes) -> list[Any]:
    try:
        instruction = decode(word)
    except EncodingError:
        return ["illegal"]
    i = Resolved(instruction, registers)
    cls = type(instruction)
    out: list[Any] = [cls.mnemonic]
    for field, _, spec in cls.layout():
        value = getattr(i, field)
        if isinstance(spec, Bits) or spec in (Addr, Count):
            out.append(int(value))
        elif spec is HbmAddr:
            out += [value.base, value.offset]
        else:
            out += [int(value.kind), value.imm, value.tile_stride, value.row_stride]
            out.append(float(value.value).hex())
    if cls.engine != "dma":
        occupancy = cls.occupancy(chip, i)
        out += [occupancy, cls.latency(chip, i, occupancy)]
    return out


def same(shown: str, value: Any) -> bool:
    if value == "nan":
        return shown in ("nan", "-nan")
    if isinstance(value, str) and "0x" in value:
        return float.fromhex(shown) == float.fromhex(value)
    return shown == str(value)


def collect(count: int) -> list[Instruction]:
    """Random instructions, drawn once."""
    drawn: list[Instruction] = []

    @seed(1)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    @given(instructions())
    def draw(instruction: Instruction) -> None:
        drawn.append(instruction)

    draw()
    return drawn


@pytest.mark.parametrize("name", ["tiny", "solo"])
def test_decoder_and_closed_forms(binary: Path, name: str) -> None:
    chip, choose = load(name), random.Random(0)
    cases = []
    for instruction in collect(600):
        registers = [0] + [choose.choice([0, 1, 5, -7, 1 << 40, -(1 << 47)]) for _ in range(31)]
        word = instruction.encode()
        cases.append((registers, word))
        flipped = int.from_bytes(word, "little") ^ 1 << choose.randrange(512)
        cases.append((registers, flipped.to_bytes(64, "little")))
    got = rows(binary, chip, cases)
    assert len(got) == len(cases)
    legal = 0
    for (registers, word), shown in zip(cases, got, strict=True):
        wanted = expected(chip, registers, word)
        assert len(shown) == len(wanted)
        differ = [(s, w) for s, w in zip(shown, wanted, strict=True) if not same(s, w)]
        assert not differ, decode(word)
        legal += wanted != ["illegal"]
    assert 600 <= legal < len(cases), "some flipped bits must be illegal"


@given(st.sampled_from(sorted(REGISTRY)), st.integers(0, 2**504 - 1))
def test_python_decoder_never_crashes(opcode: int, body: int) -> None:
    word = (body << 8 | opcode).to_bytes(64, "little")
    try:
        instruction = decode(word)
    except EncodingError:
        return
    assert decode(instruction.encode()) == instruction


def test_closed_forms_outside_the_subset_are_refused() -> None:
    import ast

    for text in ("chip.x ** 2", "[1]", "print(1)", "'a'", "1.5"):
        with pytest.raises(TypeError, match="a closed form may not use"):
            native._expression(ast.parse(text, mode="eval").body)
