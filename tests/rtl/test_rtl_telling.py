"""Arguments that tell a function's constants from their neighbours."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from tapeout.numerics.functions import Function, program
from tapeout.numerics.micro import MicroProgram, evaluate
from tapeout.numerics.tables import TABLES
from tapeout.rtl.verification.telling import SILENT, TELLING


def changed(p: MicroProgram) -> Iterator[tuple[MicroProgram, dict[str, tuple[int, ...]]]]:
    """The program and its tables with one constant one more, or, but for tables, one less.

    Tables come twice: with another mask an index may be beyond the last entry.
    """
    twice = {name: entries * 2 for name, entries in TABLES.items()}
    for k, op in enumerate(p.operations):
        if op.name == "table":
            entries = TABLES[op.table]
            for at, entry in enumerate(entries):
                yield p, {**TABLES, op.table: (*entries[:at], entry + 1, *entries[at + 1 :])}
        elif op.name in ("const_f", "const_i"):
            for immediate in (op.immediate + 1, op.immediate - 1):
                wrong = dataclasses.replace(op, immediate=immediate % (1 << 32))
                operations = (*p.operations[:k], wrong, *p.operations[k + 1 :])
                yield dataclasses.replace(p, operations=operations), twice


@pytest.mark.parametrize("function", Function)
def test_each_change_of_a_constant_is_told(function: Function) -> None:
    """All but those that no operand of fp32 tells."""
    x = np.array(TELLING[function], np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):
        right = evaluate(program(function), x, TABLES).view(np.uint32)
        told = [
            bool((evaluate(p, x, tables).view(np.uint32) != right).any())
            for p, tables in changed(program(function))
        ]
    assert len(told) - sum(told) == SILENT[function]
