"""What is proven: a component, its surroundings, and statements about both.

Contract: every register of the component starts with any value, and is reset in the first cycle;
statements count from the cycle after. So what is proven needs no power-up values.
"""

from typing import ClassVar

from amaranth.asserts import AnyConst, AnySeq
from amaranth.hdl import (
    Assert,
    Assume,
    Cover,
    Elaboratable,
    Module,
    ResetSignal,
    ShapeLike,
    Signal,
    Value,
)
from amaranth.lib import wiring

from tapeout.chip import Chip

HOLDS, REACHED = "holds_", "reached_"  # begin the names of statements in traces
COMPONENT = "component"  # the submodule's name


class Property(Elaboratable):
    """Statements about one component of a chip.

    A subclass writes `state`, which adds the component as `m.submodules[COMPONENT]`, connects it
    and calls `assume`, `claim` and `reach`.

    Class attributes:
        title: what is claimed, in one line.
        component: the class under proof; a test hands a faulty one to the constructor.
        depth: None to prove without bound; else claims hold for so many cycles from reset.
        reach_depth: cycles in which what `reach` names must happen.
    """

    title: ClassVar[str]
    component: ClassVar[type[wiring.Component]]
    depth: ClassVar[int | None] = None
    reach_depth: ClassVar[int] = 12

    def __init__(self, chip: Chip, component: type[wiring.Component] | None = None) -> None:
        self.chip = chip
        self._component = component or self.component
        self.claims: list[str] = []
        self.reaches: list[str] = []

    def make(self, *arguments: object, **named: object) -> wiring.Component:
        """The component under proof."""
        return self._component(*arguments, **named)

    def state(self, m: Module) -> None:
        """Written by each property."""
        raise NotImplementedError

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self.claims, self.reaches = [], []
        self._running = Signal(name="running", reset_less=True)
        m.d.sync += self._running.eq(1)
        m.d.comb += Assume(ResetSignal() == ~self._running)
        self.state(m)
        return m

    def free(self, m: Module, shape: ShapeLike, name: str) -> Signal:
        """A signal that has any value in each cycle."""
        return self._named(m, shape, name, AnySeq)

    def fixed(self, m: Module, shape: ShapeLike, name: str) -> Signal:
        """A signal that has any value, the same in all cycles."""
        return self._named(m, shape, name, AnyConst)

    def _named(self, m: Module, shape: ShapeLike, name: str, kind: type) -> Signal:
        signal = Signal(shape, name=name)
        m.d.comb += signal.eq(kind(Value.cast(signal).shape()))
        return signal

    def assume(self, m: Module, condition: Value) -> None:
        m.d.comb += Assume(condition | ~self._running)

    def claim(self, m: Module, name: str, condition: Value) -> None:
        """It holds in every cycle."""
        holds = Signal(name=HOLDS + name)
        m.d.comb += [holds.eq(condition | ~self._running), Assert(holds)]
        self.claims.append(name)

    def reach(self, m: Module, name: str, condition: Value) -> None:
        """It happens in some cycle of some run."""
        reached = Signal(name=REACHED + name)
        m.d.comb += [reached.eq(condition & self._running), Cover(reached)]
        self.reaches.append(name)
