"""Registers of one queue: launch scalars computed in its prologue, loop variables, temporaries."""

from typing import TYPE_CHECKING, Any

from tapeout.isa import HbmAddr, Instruction, seq
from tapeout.isa.seq import Alu

from .memory import ChipTooSmall
from .scalar import Arg, Expr, LoopVar, Scalar

if TYPE_CHECKING:
    from .builder import Builder, Loop

Code = list[tuple[type[Instruction], dict[str, Any]]]


class Registers:
    """Allocates registers 1.. of a queue and holds the code that fills them."""

    def __init__(self, builder: "Builder", queue: int) -> None:
        self.builder, self.queue = builder, queue
        # Scalars are filled in the prologue, so a register once used for anything else is no place
        # for one: scalars are taken from below, temporaries and loop variables from above.
        self.low, self.high = 1, builder.chip.seq.registers - 1
        self.free: list[int] = []
        self.scalars: dict[Scalar, int] = {}
        self.variables: dict[LoopVar, int] = {}
        self.prologue: Code = []

    def take(self) -> int:
        """A register for the caller's own use; `give` returns it."""
        if self.free:
            return self.free.pop()
        self._check_room()
        self.high -= 1
        return self.high + 1

    def _take_scalar(self) -> int:
        self._check_room()
        self.low += 1
        return self.low - 1

    def _check_room(self) -> None:
        if self.low > self.high:
            raise ChipTooSmall(
                f"queue {self.builder.queues[self.queue]} needs more than "
                f"seq.registers = {self.builder.chip.seq.registers} registers"
            )

    def give(self, register: int) -> None:
        self.free.append(register)

    def number(self, value: "Scalar | LoopVar | None") -> int:
        """The register that holds `value`; r0 for none."""
        if value is None:
            return 0
        if isinstance(value, LoopVar):
            if value not in self.variables:
                for operand in (value.init, value.step):
                    if isinstance(operand, Scalar):
                        self.number(operand)
                self.variables[value] = self.take()
            return self.variables[value]
        if value not in self.scalars:
            self.scalars[value] = self._compute(value)
        return self.scalars[value]

    def _compute(self, value: Scalar) -> int:
        from .builder import ARGS_BASE

        if isinstance(value, Arg):
            register = self._take_scalar()
            self.prologue.append(
                (seq.Load, {"dst": register, "src": HbmAddr(ARGS_BASE, 4 * value.index)})
            )
            return register
        if not isinstance(value, Expr):
            raise TypeError(f"not a scalar: {value!r}")
        a = self.number(value.a)
        b, imm = (0, value.b) if isinstance(value.b, int) else (self.number(value.b), 0)
        register = self._take_scalar()
        self.prologue.append(
            (seq.AluOp, {"op": value.op, "dst": register, "a": a, "b": b, "imm": imm})
        )
        return register

    def loop_code(self, loop: "Loop") -> tuple[Code, Code]:
        """(code before the loop, code at the end of its body) for this queue's variables."""
        init: Code = []
        step: Code = []
        for var, register in self.variables.items():
            if var.loop != loop.ident:
                continue
            a, imm = (0, var.init) if isinstance(var.init, int) else (self.number(var.init), 0)
            init.append((seq.AluOp, {"op": Alu.ADD, "dst": register, "a": a, "imm": imm}))
            b, imm = (0, var.step) if isinstance(var.step, int) else (self.number(var.step), 0)
            step.append(
                (seq.AluOp, {"op": Alu.ADD, "dst": register, "a": register, "b": b, "imm": imm})
            )
            if var.wrap:
                if not isinstance(var.init, int):
                    raise TypeError("a wrapping loop variable starts at an integer")
                low = var.init
                if low:
                    step.append(
                        (seq.AluOp, {"op": Alu.SUB, "dst": register, "a": register, "imm": low})
                    )
                step.append(
                    (seq.AluOp, {"op": Alu.WRAP, "dst": register, "a": register, "imm": var.wrap})
                )
                if low:
                    step.append(
                        (seq.AluOp, {"op": Alu.ADD, "dst": register, "a": register, "imm": low})
                    )
        return init, step

    def end_loop(self, loop: "Loop") -> None:
        for var in [v for v in self.variables if v.loop == loop.ident]:
            self.give(self.variables.pop(var))
