"""Register chains of pipelines."""

from amaranth.hdl import Module, Signal, Value, ValueLike


def delayed(m: Module, value: ValueLike, cycles: int, name: str, *, resets: bool = False) -> Value:
    """`value` as it was `cycles` cycles ago; data needs no reset, what says `valid` does."""
    held = Value.cast(value)
    for k in range(cycles):
        stage = Signal(held.shape(), name=f"{name}_{k + 1}", reset_less=not resets)
        m.d.sync += stage.eq(held)
        held = stage
    return held


def ages(
    m: Module, value: ValueLike, cycles: int, name: str, *, resets: bool = False
) -> list[Value]:
    """`value` as it was 0, 1, ..., `cycles` cycles ago."""
    held = [Value.cast(value)]
    for k in range(cycles):
        held.append(delayed(m, held[-1], 1, f"{name}_{k + 1}", resets=resets))
    return held


def taken(m: Module, value: ValueLike, when: Value, name: str) -> Signal:
    """`value` as it was in the last cycle with `when`, from the next cycle on."""
    held = Signal(Value.cast(value).shape(), name=name, reset_less=True)
    with m.If(when):
        m.d.sync += held.eq(value)
    return held
