"""Hypothesis strategies for instructions, derived from their field specs."""

import dataclasses
import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tapeout.isa.fields import Addr, Bits, Count, HbmAddr, Kind, Operand
from tapeout.isa.instruction import REGISTRY, Instruction


def bits(spec: Bits) -> st.SearchStrategy[Any]:
    if spec.enum is not None:
        return st.sampled_from(list(spec.enum))
    low = -(1 << (spec.width - 1)) if spec.signed else 0
    high = (1 << (spec.width - int(spec.signed))) - 1
    return st.integers(low, high)


def fp32_values() -> st.SearchStrategy[float]:
    return st.one_of(
        st.integers(0, 2**32 - 1).map(lambda u: float(np.uint32(u).view(np.float32))),
        st.sampled_from([0.0, -0.0, math.inf, -math.inf, 1.5, 2.0**-149]),
    ).filter(lambda v: not math.isnan(v))


def operands() -> st.SearchStrategy[Operand]:
    layout = Operand.LAYOUT
    addressed = st.builds(
        Operand,
        kind=st.sampled_from([k for k in Kind if k not in (Kind.NONE, Kind.IMMEDIATE)]),
        **{part: bits(layout[part]) for part in ("imm", "reg", "tile_stride", "row_stride")},
    )
    constant = st.builds(Operand, kind=st.just(Kind.IMMEDIATE), value=fp32_values())
    return st.one_of(st.just(Operand()), addressed, constant)


def field_values(spec: Any) -> st.SearchStrategy[Any]:
    if isinstance(spec, Bits):
        return bits(spec)
    if spec is Operand:
        return operands()
    assert spec in (Addr, Count, HbmAddr)
    return st.builds(spec, **{part: bits(b) for part, b in spec.LAYOUT.items()})


def instructions_of(cls: type[Instruction]) -> st.SearchStrategy[Instruction]:
    """Every value of every field, or its default."""
    parts = {}
    for f in dataclasses.fields(cls):
        values = field_values(f.metadata["spec"])
        if f.type is bool:
            values = st.booleans()
        if f.default is not dataclasses.MISSING:
            values = st.one_of(st.just(f.default), values)
        parts[f.name] = values
    return st.builds(cls, **parts)


def instructions() -> st.SearchStrategy[Instruction]:
    return st.one_of([instructions_of(cls) for cls in REGISTRY.values()])
