"""Random programs of everything on interp, sim and hardware; what a difference is made into."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rtl_chips import CHIPS

from tapeout.rtl.verification import compare
from tapeout.rtl.verification.chips import random_chip
from tapeout.rtl.verification.coverage import Coverage, impossible, universe
from tapeout.rtl.verification.faults import with_fault
from tapeout.rtl.verification.programs import random_program
from tapeout.rtl.verification.run import verify
from tapeout.sim import Sim


@pytest.mark.slow
def test_everything_on_tiny() -> None:
    campaign = verify(CHIPS["tiny"], instructions=20_000)
    assert campaign.failure is None, campaign.failure
    assert sum(campaign.faults.values()) > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_everything_on_a_random_chip(seed: int) -> None:
    campaign = verify(random_chip(seed), instructions=2_000)
    assert campaign.failure is None, campaign.failure


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
        coverage.add(random_program(seed).program)
    assert {variant for variant, _ in coverage.cells} <= set(universe())
    reached = {c for c in coverage.cells if coverage.cells[c]}
    assert not {c for c in reached if impossible(*c)}
    assert set(coverage.missing()).isdisjoint(reached)


def test_planted_faults_change_one_word() -> None:
    case = random_program(3)
    broken = with_fault(case, 0)
    words = [
        (a, b)
        for queue in case.program.streams
        for a, b in zip(case.program.encode(queue), broken.program.encode(queue), strict=True)
        if a != b
    ]
    assert len(words) == 1
    assert (words[0][0] ^ words[0][1]).bit_count() == 1
