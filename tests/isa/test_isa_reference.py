"""The reference has a page section an instruction, true examples, and does not change by itself."""

from pathlib import Path

import pytest

from tapeout.chip import load
from tapeout.isa import reference
from tapeout.isa.assembler import format_instruction, parse_line
from tapeout.isa.instruction import REGISTRY, Fault, Instruction, decode

CHIP = load("solo")


@pytest.mark.parametrize("cls", REGISTRY.values(), ids=lambda c: c.mnemonic)
def test_examples_assemble(cls: type[Instruction]) -> None:
    queue = {"seq": "mxu", "dma": "dma1"}.get(cls.engine, cls.engine)
    queue = "dma3" if cls.mnemonic == "seq.nop" else queue
    instruction = parse_line(cls.example, queue, CHIP)
    assert type(instruction) is cls
    assert decode(instruction.encode()) == instruction
    assert format_instruction(instruction, queue, CHIP).split()[0] == cls.mnemonic
    assert cls.__doc__
    assert cls.engine == "seq" or cls.faults


def test_pages(tmp_path: Path) -> None:
    paths = reference.write(tmp_path / "isa")
    assert [p.name for p in paths] == ["index.md", "mxu.md", "vpu.md", "dma.md", "seq.md"]
    assert reference.pages() == {p.name: p.read_text(encoding="utf-8") for p in paths}
    stamp = paths[0].stat().st_mtime_ns
    reference.write(tmp_path / "isa")
    assert paths[0].stat().st_mtime_ns == stamp, "an unchanged page is left alone"
    text = "".join(p.read_text(encoding="utf-8") for p in paths)
    for cls in REGISTRY.values():
        assert f"\n## {cls.mnemonic}\n" in text
        assert f"\n```text\n{cls.example}\n```" in text
    for fault in Fault:
        assert fault == Fault.NONE or f"`{fault.name.lower()}`" in text
    for part in ("Syntax", "Encoding", "Operation", "Timing", "Errors", "Example"):
        assert text.count(f"\n### {part}\n") == len(REGISTRY)
    assert "occupancy = `max(i.outer * i.rows, chip.mxu.accumulate_cycles)` cycles" in text
    assert "| 64 to 88 | `src` |" in text
