"""Random programs of everything on interp, sim and hardware; what a difference is made into."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rtl_chips import CHIPS

from tapeout.chip import load
from tapeout.isa import Addr, Count, Program, mxu, seq
from tapeout.isa.fields import WORD_BITS
from tapeout.isa.instruction import Fault
from tapeout.rtl import build
from tapeout.rtl.target import Rtl
from tapeout.rtl.verification import compare
from tapeout.rtl.verification.chips import random_chip
from tapeout.rtl.verification.coverage import Coverage, impossible, universe
from tapeout.rtl.verification.faults import with_fault
from tapeout.rtl.verification.mutants import hunt, mutate
from tapeout.rtl.verification.programs import Case, random_program
from tapeout.rtl.verification.run import verify
from tapeout.sim import Sim


@pytest.mark.slow
def test_everything_on_tiny() -> None:
    campaign = verify(CHIPS["tiny"], instructions=20_000)
    assert campaign.failure is None, campaign.failure
    assert sum(campaign.faults.values()) > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 7])  # no narrow formats; some
def test_everything_on_a_random_chip(seed: int) -> None:
    campaign = verify(random_chip(seed), instructions=2_000)
    assert campaign.failure is None, campaign.failure


@pytest.mark.slow
def test_a_core_built_as_large_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with arithmetic in C, DMA engines and sublanes as libraries of their own."""
    monkeypatch.setattr(build, "_LARGE", 1)
    chip = CHIPS["tiny"]
    rtl = Rtl(chip, hbm_bytes=compare.HBM_BYTES, elements=build.Elements.DPI)
    for seed in range(16):
        found = compare.compare(random_program(seed, chip), rtl)
        assert isinstance(found, compare.Agreement), found


def test_a_core_too_large_is_refused() -> None:
    chip = load("solo")
    with pytest.raises(build.BuildError, match=r"128 x 128 .*--target rtl-dpi"):
        build.library(chip)
    with pytest.raises(build.BuildError, match="512 lanes or more cannot be watched"):
        build.library(chip, elements=build.Elements.DPI, is_watched=True)


@pytest.mark.slow
def test_programs_find_faults_in_the_hardware() -> None:
    judged = hunt(CHIPS["tiny"], count=40, programs=40, jobs=2)
    assert len(judged) == 40
    changing = [m for m in judged if not m.is_equal]
    assert sum(m.caught_by is not None for m in changing) >= 3 / 4 * len(changing)


class Wrong(Sim):
    """In the hardware's place: sim, with `fault` on top."""

    fault = ""

    def run(self, handle: Any, **options: Any) -> Any:
        self.program = handle.program
        result = super().run(handle, trace=True)
        names = ("queue", "pc", "issue", "retire")
        columns = [getattr(result.trace, name) for name in names]
        events = np.rec.fromarrays([c.copy() for c in columns], names=",".join(names))
        hit = [
            k for k, e in enumerate(events)
            if self.fault in str(self.program.streams[self.chip.queue_names[e.queue]][e.pc])
        ]  # fmt: skip
        if self.fault and hit:
            events.retire[hit[0]] += 1
        changes: dict[str, Any] = {"events": events}
        if self.fault == "counters":
            changes["hbm"] = result.hbm | {"row_hits": result.hbm["row_hits"] + 1}
        return SimpleNamespace(**(vars(result) | changes))


def hardware(fault: str) -> Callable[..., Sim]:
    def make(chip: Any, *, hbm_bytes: int) -> Sim:
        target = Wrong(chip, hbm_bytes=hbm_bytes)
        target.fault = fault
        return target

    return make


def test_targets_that_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "Rtl", hardware(""))
    campaign = verify(CHIPS["tiny"], programs=6)
    assert campaign.failure is None
    assert campaign.programs == 6
    assert campaign.instructions > 100


def test_counters_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "Rtl", hardware("counters"))
    failure = verify(CHIPS["tiny"], programs=1).failure
    assert failure is not None
    assert failure.what.startswith("HBM: sim {")


def test_a_difference_becomes_a_small_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "Rtl", hardware("accumulate=add"))
    campaign = verify(CHIPS["tiny"], programs=20)
    failure = campaign.failure
    assert failure is not None
    assert "retire of instruction" in failure.what
    assert "accumulate=add" in failure.what
    assert failure.assembly.count("accumulate=add") == 1
    assert len(failure.assembly.splitlines()) < 30, failure.assembly


def test_coverage_counts_variants_and_circumstances() -> None:
    coverage = Coverage()
    for seed in range(6):
        case = random_program(seed)
        coverage.add(case.program, case.chip)
    assert {variant for variant, _ in coverage.cells} <= set(universe(CHIPS["tiny"]))
    reached = {c for c in coverage.cells if coverage.cells[c]}
    assert not {c for c in reached if impossible(*c)}
    assert set(coverage.missing(CHIPS["tiny"])).isdisjoint(reached)


def test_a_load_of_a_whole_tile_is_no_part() -> None:
    chip, coverage = CHIPS["tiny"], Coverage()
    loads = [
        mxu.Load(src=Addr(0), k=Count(k), n=Count(n))
        for k, n in ((chip.mxu.rows, chip.mxu.cols), (1, chip.mxu.cols), (chip.mxu.rows, 1))
    ]
    coverage.add(Program(chip.name, {"mxu": loads}), chip)
    assert coverage.cells["mxu.load part", "plain"] == 2
    assert coverage.cells["mxu.load straight", "plain"] == 3


def test_planted_faults_change_one_word_or_overflow_a_channel() -> None:
    case = random_program(3)
    faults = [with_fault(case, seed) for seed in range(40)]
    lengths = {q: len(s) for q, s in case.program.streams.items()}
    longer = [f for f in faults if {q: len(s) for q, s in f.program.streams.items()} != lengths]
    assert 0 < len(longer) < 15
    for overflowing in longer:
        found = compare.expected(overflowing)
        assert isinstance(found, compare.Expected)
        assert found.sim.error is not None
        assert found.sim.error.fault == Fault.TOKEN_OVERFLOW
    taken = dataclasses.replace(seq.Nop(), waits=0xFFF)
    for overflowing in longer:
        producer = next(q for q in lengths if len(overflowing.program.streams[q]) != lengths[q])
        streams = {q: [taken, *s] for q, s in overflowing.program.streams.items() if q != producer}
        streams[producer] = overflowing.program.streams[producer]
        other = Case(case.chip, Program(case.chip.name, streams), {})
        error = compare.expected(overflowing).sim.error
        assert not compare._may_fit(overflowing, error)
        assert compare._may_fit(other, error)
    flips = []
    for broken in (f for f in faults if not any(f is other for other in longer)):
        code = [(case.program.encode(q), broken.program.encode(q)) for q in case.program.streams]
        whole = [int.from_bytes(a, "little") ^ int.from_bytes(b, "little") for a, b in code]
        places = [(q, n) for q, w in enumerate(whole) for n in range(w.bit_length()) if w >> n & 1]
        assert len({(q, n // WORD_BITS) for q, n in places}) <= 1
        flips.append(len(places))
    assert 5 < flips.count(1) < 35
    assert max(flips) > 1


VERILOG = """\
module top(a, b, clk, rst, q);
  input [7:0] a;
  input [7:0] b;
  output [7:0] q;
  assign \\$1  = a + b;
  assign \\$2  = a == 8'h10;
  assign \\$3  = \\$2  ? a : { 4'h0, b[3:0] };
  assign \\$4  = a;
  always @(posedge clk)
    q <= \\$5 ;
  always @* begin
    if (\\$auto$verilog_backend.cc:1 ) begin end
    \\$5  = \\$1 ;
    if (\\$2 ) begin
      \\$5  = 8'h07;
    end
    if (rst) begin
      \\$5  = 8'h00;
    end
  end
  ram  memory (
    .clk(clk)
  );
  below  part (
    .clk(clk)
  );
endmodule

module below(clk);
  input clk;
endmodule

module ram(clk);
  input clk;
  assign x = a & b;
endmodule
"""


def test_mutants_are_faults_of_every_kind() -> None:
    text, mutants = mutate(VERILOG, {"ram"}, 6, 0)
    becomes = {(m.kind, m.line): m.becomes for m in mutants}
    assert becomes["operator", "assign \\$1  = a + b;"] in {
        "assign \\$1  = a - b;",
        "assign \\$1  = a * b;",
    }
    assert becomes["operand", "assign \\$3  = \\$2  ? a : { 4'h0, b[3:0] };"] == (
        "assign \\$3  = \\$2  ? { 4'h0, b[3:0] } : a;"
    )
    assert becomes["update", "q <= \\$5 ;"] == "q <= q;"
    assert becomes["constant", "\\$5  = 8'h07;"] == "\\$5  = 8'h8;"
    assert becomes["condition", "if (\\$2 ) begin"] == "if (!(\\$2 )) begin"
    assert {line for _, line in becomes if "$2  = " in line} == {"assign \\$2  = a == 8'h10;"}
    with pytest.raises(ValueError, match="7 mutants: there are places for 6"):
        mutate(VERILOG, {"ram"}, 7, 0)
    assert "below  part ( .mutant(mutant)," in text
    assert "ram  memory (\n" in text
    assert text.count("input [15:0] mutant;") == 2
