"""Traces of the model checkers: values of signals by cycle, as a table that one can read."""

from dataclasses import dataclass
from pathlib import Path

from .property import HOLDS, REACHED


@dataclass(frozen=True)
class Trace:
    """Values by signal and cycle; cycle 0 is the reset's. An unknown value is None."""

    values: dict[str, tuple[int | None, ...]]

    @property
    def cycles(self) -> int:
        return max(map(len, self.values.values()), default=0)

    def broken(self) -> str | None:
        """The first claim that does not hold in some cycle."""
        return next(
            (n.removeprefix(HOLDS) for n, v in self.values.items()
             if n.startswith(HOLDS) and 0 in v), None,
        )  # fmt: skip

    def reached(self) -> set[str]:
        return {
            n.removeprefix(REACHED)
            for n, v in self.values.items()
            if n.startswith(REACHED) and 1 in v
        }

    def table(self) -> str:
        """A row a signal, a column a cycle; what does not change after the reset shows once."""
        width = max(map(len, self.values), default=0)
        lines = []
        for name, values in self.values.items():
            texts = ["x" if v is None else f"{v:x}" for v in values]
            if len(texts) > 1 and len(set(texts[1:])) == 1:
                texts = [texts[0], f"{texts[1]} ..."]
            lines.append(f"{name:<{width}}  " + " ".join(f"{t:>3}" for t in texts))
        head = f"{'cycle':<{width}}  " + " ".join(f"{c:>3}" for c in range(self.cycles))
        return "\n".join([head, *lines])


def read_trace(path: Path) -> Trace:
    """The signals of a VCD that smtbmc wrote, a cycle a clock; names have their scopes."""
    names: dict[str, str] = {}
    scopes: list[str] = []
    held: dict[str, int | None] = {}
    values: dict[str, list[int | None]] = {}
    for line in path.read_text().splitlines():
        match line.split():
            case ["$scope", _, name, "$end"]:
                scopes.append(name)
            case ["$upscope", "$end"]:
                scopes.pop()
            case ["$var", "wire", _, code, name, *_] if name not in ("clk", "rst"):
                names[code] = ".".join([*scopes[1:], name])
            case [number, code] if number.startswith("b") and code in names:
                held[code] = None if "x" in number else int(number[1:], 2)
            case [time] if time.startswith("#") and time.endswith("5"):  # the clock falls
                for code, value in held.items():
                    values.setdefault(names[code], []).append(value)
    return Trace({name: tuple(row) for name, row in sorted(values.items())})
