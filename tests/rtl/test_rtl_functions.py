"""The function pipeline as hardware against `numerics.functions`, bit by bit."""

import ctypes
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

import tapeout.rtl
from tapeout.chip import Chip, load
from tapeout.isa.forms import function_passes
from tapeout.isa.vpu import Function
from tapeout.numerics import arith, functions
from tapeout.rtl.boxes import Boxes
from tapeout.rtl.build import compiled
from tapeout.rtl.functions import FUNCTION, FunctionPipeline, FunctionSequence, round_cycles

CHIPS = ["tiny", "solo"]
EDGES = [0.625, 0.25, 3.921875, 10.0, 88.0, 126.0, 127.0, 128.0, 2.0**17, 2.0**23, 1.0, 2.0, 87.3]


class OneLane(wiring.Component):
    """The function pipeline of one lane, with its control."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        super().__init__(
            {"enters": In(1), "x": In(32), "kind": In(FUNCTION), "comes": Out(1), "result": Out(32)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.sequence = sequence = FunctionSequence(self.chip)
        m.submodules.lane = lane = FunctionPipeline(self.chip)
        m.d.comb += [
            sequence.enters.eq(self.enters),
            sequence.function.eq(self.kind),
            lane.enters.eq(self.enters),
            lane.comes.eq(sequence.comes),
            lane.x.eq(self.x),
            lane.ended.eq(sequence.result),
            self.result.eq(lane.result),
        ]
        for slot in range(self.chip.vpu.function_steps):
            m.d.comb += getattr(lane, f"code_{slot}").eq(getattr(sequence, f"code_{slot}"))
        m.d.sync += self.comes.eq(sequence.ends)
        return m


class Lane:
    def __init__(self, name: str) -> None:
        self.chip = load(name)
        path = compiled(
            f"function-{name}", "function", repr(dataclasses.asdict(self.chip.vpu)),
            lambda: {"function.v": Boxes().convert(OneLane(self.chip), "function")},
            [Path(tapeout.rtl.__file__).parent / "native" / "sequence.cpp"],
        )  # fmt: skip
        self.native = ctypes.CDLL(str(path))
        self.native.sequence_run.restype = ctypes.c_uint64

    def run(self, function: Function, x: np.ndarray) -> np.ndarray:
        """uint32 bits of the results."""
        passes = function_passes(function, self.chip.vpu.function_steps)
        got = np.zeros_like(x)
        limit = len(x) * passes + (passes + 1) * round_cycles(self.chip)
        ended = self.native.sequence_run(
            ctypes.c_uint32(function), ctypes.c_uint64(passes),
            ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(got.ctypes.data),
            ctypes.c_uint64(len(x)), ctypes.c_uint64(limit),
        )  # fmt: skip
        assert ended == len(x)
        return got


@pytest.fixture(scope="module", params=CHIPS)
def lane(request: pytest.FixtureRequest) -> Lane:
    return Lane(request.param)


def operands() -> np.ndarray:
    """Every exponent with a few fractions, the places where functions change, random bits."""
    rng = np.random.default_rng(1)
    fractions = np.array([0, 1, 0x3FFFFF, 0x400000, 0x7FFFFE, 0x7FFFFF], np.uint32)
    exponents = np.arange(256, dtype=np.uint32) << 23
    edges = np.array(EDGES, np.float32).view(np.uint32)
    near = (edges[:, None].astype(np.int64) + np.arange(-40, 41)).astype(np.uint32).ravel()
    usual = rng.uniform(-20, 20, 20_000).astype(np.float32).view(np.uint32)
    some = np.concatenate([(exponents[:, None] | fractions).ravel(), near, usual])
    random = rng.integers(0, 1 << 32, 100_000, np.uint32)
    return np.concatenate([some, some | np.uint32(1 << 31), random])


@pytest.mark.parametrize("function", list(Function)[1:], ids=lambda f: f.name.lower())
def test_equals_numerics(lane: Lane, function: Function) -> None:
    x = operands()
    expected = arith.bits(functions.apply(functions.Function[function.name], arith.from_bits(x)))
    got = lane.run(function, x)
    wrong = np.flatnonzero(got != expected)
    assert not len(wrong), [f"{v[wrong[0]]:08x}" for v in (x, got, expected)]


def test_none_changes_no_bit(lane: Lane) -> None:
    x = operands()
    assert np.array_equal(lane.run(Function.NONE, x), x)
