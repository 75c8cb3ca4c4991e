"""What a proof ends with."""

from dataclasses import dataclass

from .trace import Trace

UNBOUNDED = "unbounded (pdr)"
ALL_VALUES = "all values (sat)"
INSTALL = "proving needs {}, which is not installed: run `pip install 'tapeout[formal]'`"


class FormalError(Exception):
    """A property cannot be proven here; the message is one line that says what to do."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a property.

    Attributes:
        method: `UNBOUNDED`, `ALL_VALUES`, or the bound.
        claims: that were to prove. failed: one that does not hold, in `trace` if there is one.
        unreached: what did not happen within `reach_depth` cycles.
    """

    method: str
    claims: tuple[str, ...]
    reaches: tuple[str, ...]
    seconds: float
    failed: str | None = None
    trace: Trace | None = None
    unreached: tuple[str, ...] = ()

    @property
    def is_unbounded(self) -> bool:
        return self.method in (UNBOUNDED, ALL_VALUES)

    @property
    def holds(self) -> bool:
        return self.failed is None and not self.unreached
