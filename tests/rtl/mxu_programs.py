"""Random programs of the matrix unit alone, over memories that hold anything."""

import random
import sys
from pathlib import Path

import numpy as np

from tapeout.chip import Chip
from tapeout.isa import Program, mxu, seq
from tapeout.isa.fields import Addr, Count
from tapeout.isa.instruction import Instruction, Resolved

sys.path.append(str(Path(__file__).parents[1] / "isa"))
from machine import bare_core, fill

SPECIAL = np.array([0, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0x0001, 0x8001, 0x0080, 0x3F80], np.uint16)


class MatrixProgram:
    """Loads, passes and unloads in any order that the rules allow.

    Straight loads, transposed loads and moving rows keep to stripes of their own: nothing drains.
    """

    def __init__(self, seed: int, chip: Chip, count: int = 60) -> None:
        self.rng, self.chip = random.Random(seed), chip
        self.stream: list[Instruction] = [self._load(), self._pass()]
        while len(self.stream) < count:
            make = self.rng.choice([self._load, self._load, self._pass, self._pass, self._unload])
            self.stream.append(make())
            if self.rng.random() < 0.1:
                self.stream += [seq.Nop() for _ in range(self.rng.randrange(4))]
        values = np.random.default_rng(seed)
        shape = (chip.spm.rows, chip.lanes)
        spread = values.choice([1, 8, 120])
        exponents = np.clip(values.normal(127, spread, shape), 0, 255).astype(np.uint16)
        self.spm = values.integers(0, 256, shape).astype(np.uint16) & 0x807F | exponents << 7
        self.spm |= values.integers(0, 2, shape).astype(np.uint16) << 15
        special = values.random(shape) < values.choice([0, 0.01, 0.2])
        self.spm[special] = values.choice(SPECIAL, int(special.sum()))
        self.acc = values.normal(size=(chip.acc.rows, chip.lanes)).astype(np.float32)

    def _row(self, part: int, span: int) -> int:
        """A row of one of three parts of spm, with `span` rows behind it."""
        size = self.chip.spm.stripes // 3 * self.chip.spm.rows_per_stripe
        return part * size + self.rng.randrange(max(1, size - span))

    def _load(self) -> Instruction:
        rng, chip = self.rng, self.chip
        k = rng.choice([chip.mxu.rows, rng.randrange(1, chip.mxu.rows + 1)])
        n = rng.choice([chip.mxu.cols, rng.randrange(1, chip.mxu.cols + 1)])
        if rng.random() < 0.4:
            stride = rng.choice([1, 1, 2, 3, 4, 6])
            return mxu.Load(
                src=Addr(self._row(1, n * stride)), stride=stride, k=Count(k), n=Count(n),
                transposed=True,
            )  # fmt: skip
        banks = chip.spm.banks_per_stripe
        return mxu.Load(src=Addr(self._row(0, k) // banks * banks), k=Count(k), n=Count(n))

    def _pass(self) -> Instruction:
        rng, chip = self.rng, self.chip
        rows, outer = rng.choice([1, 1, 2, 3, 5, 17]), rng.choice([1, 1, 1, 2, 3])
        stride, outer_stride = rng.choice([1, 1, 2, 5]), rng.choice([0, 1, 7, 32])
        span = (rows - 1) * stride + (outer - 1) * outer_stride + 1
        return mxu.Matmul(
            src=Addr(self._row(2, span)), stride=stride, rows=Count(rows), outer=outer,
            outer_stride=outer_stride, dst=Addr(rng.randrange(chip.acc.rows - rows * outer)),
            accumulate=rng.choice(list(mxu.Accumulate)),
        )  # fmt: skip

    def _unload(self) -> Instruction:
        return mxu.Unload(dst=Addr(self.rng.randrange(self.chip.acc.rows - self.chip.mxu.rows)))

    def program(self) -> Program:
        return Program(self.chip.name, {"mxu": [*self.stream, seq.Halt()]})

    def acc_expected(self) -> np.ndarray:
        """acc after the instructions, one after another."""
        core = bare_core(self.chip)
        fill(core.spm, slice(None), self.spm)
        fill(core.acc, slice(None), self.acc)
        core.first_iteration = True
        for instruction in self.stream:
            if instruction.engine == "mxu":
                registers = [0] * self.chip.seq.registers
                type(instruction).execute(core, Resolved(instruction, registers))
        return core.acc.values
