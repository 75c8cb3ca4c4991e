"""The checkers of `sim` find what those of `interp` find: the tests of interp, run on sim."""

from typing import Any

import pytest
import test_isa_checks
from test_isa_checks import *  # noqa: F403  (its tests, collected here once more)

from tapeout.sim import RunResult, Sim


class Scheduled(Sim):
    """A Sim that takes interp's schedules, of which it has one: time."""

    def run(
        self, handle: Any, *, schedule: str = "time", seed: int = 0, **options: Any
    ) -> RunResult:
        if schedule == "fifo":
            raise ValueError("no schedule 'fifo'")
        return super().run(handle, **options)


@pytest.fixture(autouse=True)
def _on_sim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_isa_checks, "Interp", Scheduled)
    monkeypatch.setattr(test_isa_checks, "SCHEDULES", [("time", 0)])


def test_the_tests_run_on_sim() -> None:
    assert isinstance(test_isa_checks.run(test_isa_checks.PIPELINE), Sim)
