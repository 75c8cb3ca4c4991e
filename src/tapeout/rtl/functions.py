"""The vector unit's functions as hardware: one pipeline of fused multiply-adds for all of them.

A slot is a stage of integer operations, comparisons and table look-ups that forms three operands,
then a fused multiply-add: 2 + adder_stages cycles. There are `vpu.function_steps` slots. A function
of more steps runs through them again and again; what it keeps between steps goes with it. All logic
is made from `schedule`, so a new function needs nothing here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from amaranth.hdl import Array, C, Cat, Module, Mux, Shape, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tapeout.chip import Chip
from tapeout.isa.forms import loop_cycles
from tapeout.isa.vpu import Function
from tapeout.numerics import functions
from tapeout.numerics.tables import TABLES

from .float import FusedMultiplyAdd
from .pipeline import ages, delayed
from .schedule import NOTHING, Expression, Schedule, Step, schedule

FUNCTION = Shape.cast(Function)


def schedule_for(function: Function) -> Schedule:
    """The schedule of a function of the instruction set."""
    if function is Function.NONE:
        return NOTHING
    return schedule(functions.Function[function.name])


@dataclass(frozen=True)
class Slots:
    """What each slot does, by its code.

    Attributes:
        steps: of each slot, the different steps that it takes; code 0 is none, code n step n - 1.
        codes: of each slot, the code for a function's pass.
        needed: of each slot, the registers that are read behind it.
    """

    steps: tuple[tuple[Step, ...], ...]
    codes: tuple[dict[tuple[Function, int], int], ...]
    needed: tuple[tuple[int, ...], ...]

    def code_bits(self, slot: int) -> int:
        return len(self.steps[slot]).bit_length()


@cache
def slots_of(count: int) -> Slots:
    """All functions on `count` slots."""
    steps: list[dict[Step, int]] = [{} for _ in range(count)]
    codes: list[dict[tuple[Function, int], int]] = [{} for _ in range(count)]
    needed: list[set[int]] = [set() for _ in range(count)]
    for function in Function:
        s = schedule_for(function)
        for n in range(s.passes(count) * count):
            turn, slot = divmod(n, count)
            if n < len(s.steps):
                codes[slot][function, turn] = steps[slot].setdefault(
                    s.steps[n], len(steps[slot]) + 1
                )
            needed[slot] |= s.needed[min(n + 1, len(s.steps))]
    return Slots(
        steps=tuple(tuple(each) for each in steps),
        codes=tuple(codes),
        needed=tuple(tuple(sorted(each)) for each in needed),
    )


def round_cycles(chip: Chip) -> int:
    """From one pass through the slots to the next."""
    return loop_cycles(chip.vpu.function_steps, chip.vpu.adder_stages)


def code_ports(chip: Chip) -> dict[str, wiring.Member]:
    """`code_<slot>` of a lane: what each slot does with what is at it."""
    slots = slots_of(chip.vpu.function_steps)
    return {f"code_{n}": In(slots.code_bits(n)) for n in range(len(slots.steps))}


class FunctionSequence(wiring.Component):
    """Controls the function pipelines of all lanes:

    What enters runs through the slots as often as its function takes, and ends. What enters while
    something else comes round is lost: `enters` is for those who know `round_cycles`.

    Ports:
        enters, function: something is at the first slot in this cycle.
        code_<slot>: what the slot does with what is at it in this cycle.
        comes: something has come round to the first slot in this cycle.
        ends, result: something leaves the last slot for the last time; the function it ran.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.slots = slots_of(chip.vpu.function_steps)
        self.count = chip.vpu.function_steps
        self.turns = max(schedule_for(f).passes(self.count) for f in Function)
        codes = {name: port.flip() for name, port in code_ports(chip).items()}
        super().__init__(
            {
                "enters": In(1),
                "function": In(FUNCTION),
                **codes,
                "comes": Out(1),
                "ends": Out(1),
                "result": Out(FUNCTION),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        vpu = self.chip.vpu
        valid, function, turn = Signal(), Signal(FUNCTION), Signal(range(max(self.turns, 2)))
        is_last = Signal()
        around = round_cycles(self.chip)
        valids = ages(m, valid, around, "valid", resets=True)
        functions = ages(m, function, around, "function")
        turns = ages(m, turn, around, "turn")
        lasts = ages(m, is_last, around, "last")
        # Where nothing is, function and turn are 0: the slots rest.
        m.d.comb += [
            self.comes.eq(valids[around] & ~lasts[around] & ~self.enters),
            valid.eq(self.enters | self.comes),
            function.eq(Mux(self.enters, self.function, Mux(self.comes, functions[around], 0))),
            turn.eq(Mux(self.comes, turns[around] + 1, 0)),
        ]
        with m.Switch(function):
            for f in Function:
                with m.Case(f):
                    m.d.comb += is_last.eq(turn == schedule_for(f).passes(self.count) - 1)
        for slot in range(self.count):
            age = slot * vpu.slot_cycles
            code = getattr(self, f"code_{slot}")
            with m.Switch(Cat(functions[age], turns[age])):
                for (f, t), number in self.slots.codes[slot].items():
                    with m.Case(int(f) | t << FUNCTION.width):
                        m.d.comb += code.eq(number)
        age = self.count * vpu.slot_cycles
        m.d.comb += [
            self.ends.eq(valids[age] & lasts[age]),
            self.result.eq(functions[age]),
        ]
        return m


class FunctionPipeline(wiring.Component):
    """The functions of one lane:

    `result` follows a cycle after `FunctionSequence.ends`.

    Ports:
        x: fp32, with `enters`. comes, code_<slot>, ended: `comes`, `code_<slot>` and `result` of
            `FunctionSequence`.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.slots = slots_of(chip.vpu.function_steps)
        super().__init__(
            {
                "enters": In(1),
                "comes": In(1),
                "x": In(32),
                **code_ports(chip),
                "ended": In(FUNCTION),
                "result": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        vpu = self.chip.vpu
        back = {r: Signal(32, name=f"back_{r}") for r in self.slots.needed[-1]}
        # What nobody needs does not go round: an idle pipeline comes to rest.
        state: dict[int, Value] = {r: Mux(self.comes, back[r], 0) for r in back}
        state[0] = Mux(self.enters, self.x, state[0])
        for slot in range(len(self.slots.steps)):
            state = self._slot(m, slot, state)
        around = round_cycles(self.chip) - vpu.function_steps * vpu.slot_cycles
        for r, value in state.items():
            m.d.comb += back[r].eq(delayed(m, value, around, f"round_{r}"))

        # The result.
        logic = _Logic(m, state, "result")
        result = Signal(32)
        results = {f: logic(schedule_for(f).result) for f in Function}
        with m.Switch(self.ended):
            for f, value in results.items():
                with m.Case(f):
                    m.d.comb += result.eq(value)
        m.d.sync += self.result.eq(result)
        return m

    def _slot(self, m: Module, slot: int, state: dict[int, Value]) -> dict[int, Value]:
        """The registers behind a slot."""
        name = f"slot_{slot}"
        steps, needed = self.slots.steps[slot], self.slots.needed[slot]
        code = getattr(self, f"code_{slot}")
        logic = _Logic(m, state, name)
        m.submodules[name] = fma = FusedMultiplyAdd(
            factor_bits=32, adder_stages=self.chip.vpu.adder_stages
        )
        for port, cycles in (("a", 1), ("b", 1), ("c", 2)):
            operand = Signal(32, name=f"{name}_{port}")
            by_value: dict[Expression, list[int]] = {}
            for number, step in enumerate(steps, 1):
                by_value.setdefault(getattr(step, port), []).append(number)
            values = [(logic(e), numbers) for e, numbers in by_value.items()]
            with m.Switch(code):
                for value, numbers in values:
                    with m.Case(*numbers):
                        m.d.comb += operand.eq(value)
            m.d.comb += getattr(fma, port).eq(delayed(m, operand, cycles, f"{name}_{port}"))
        behind: dict[int, Value] = {}
        age = self.chip.vpu.slot_cycles
        taken = delayed(m, code, age, f"{name}_code")
        for r in needed:
            numbers = [n for n, step in enumerate(steps, 1) if step.register == r]
            kept = delayed(m, state[r], age, f"{name}_r{r}") if r in state else C(0, 32)
            value = Signal(32, name=f"{name}_out_{r}")
            m.d.comb += value.eq(kept)
            if numbers:
                with m.Switch(taken), m.Case(*numbers):
                    m.d.comb += value.eq(fma.result)
            behind[r] = value
        return behind


class _Logic:
    """Expressions over one stage's registers as logic; what functions share is made once."""

    def __init__(self, m: Module, registers: dict[int, Value], name: str) -> None:
        self._m, self._registers, self._name = m, registers, name
        self._made: dict[Expression, Value] = {}

    def __call__(self, e: Expression) -> Value:
        if e[0] == "register":
            return self._registers[e[1]]
        if e[0] == "constant":
            return C(e[1], 32)
        if e not in self._made:
            _, immediate, table, *arguments = e
            value = _OPERATIONS[e[0]](immediate, table, *(self(a) for a in arguments))
            width = 1 if e[0] in ("less", "equal") else 32
            named = Signal(width, name=f"{self._name}_{e[0]}_{len(self._made)}")
            self._m.d.comb += named.eq(value)
            self._made[e] = named
        return self._made[e]


def _table(immediate: int, table: str, index: Value) -> Value:
    entries = TABLES[table]
    return Array(C(bits, 32) for bits in entries)[index[: (len(entries) - 1).bit_length()]]


_OPERATIONS: dict[str, Callable[..., Value]] = {
    "iadd": lambda n, t, a, b: (a + b)[:32],
    "isub": lambda n, t, a, b: (a - b)[:32],
    "iand": lambda n, t, a, b: a & b,
    "ior": lambda n, t, a, b: a | b,
    "ixor": lambda n, t, a, b: a ^ b,
    "shl": lambda n, t, a: Cat(C(0, n), a[: 32 - n]),
    "shr": lambda n, t, a: a[n:],
    "sar": lambda n, t, a: Cat(a[n:], a[31].replicate(n)),
    "less": lambda n, t, a, b: a.as_signed() < b.as_signed(),
    "equal": lambda n, t, a, b: a == b,
    "select": lambda n, t, holds, a, b: Mux(holds, a, b),
    "table": _table,
}
