"""Barrel shifters: values of fixed width, moved by a number of equal units."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value


def left(m: Module, name: str, value: Value, by: Value, unit: int, width: int) -> Value:
    """The lower `width` bits of value << (by * unit)."""
    held = Cat(value, C(0, max(0, width - len(value))))[:width]
    for bit in range(len(by)):
        amount = unit << bit
        stage = Signal(width, name=f"{name}_left_{amount}")
        moved = Cat(C(0, amount), held)[:width] if amount < width else C(0, width)
        m.d.comb += stage.eq(Mux(by[bit], moved, held))
        held = stage
    return held


def right(m: Module, name: str, value: Value, by: Value, unit: int, width: int) -> Value:
    """The lower `width` bits of value >> (by * unit)."""
    held = value
    for bit in reversed(range(len(by))):
        amount = unit << bit
        # What later stages and the result can reach.
        reach = min(len(value), width + amount - unit) if bit else width
        stage = Signal(max(1, reach), name=f"{name}_right_{amount}")
        m.d.comb += stage.eq(Mux(by[bit], held[amount:] if amount < len(held) else 0, held))
        held = stage
    return held
