"""The fused multiply-add as hardware against `numerics.arith.fma`, bit by bit."""

import ctypes
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.back import verilog
from amaranth.sim import Simulator

import tapeout.rtl
from tapeout.numerics import arith
from tapeout.rtl.build import compiled
from tapeout.rtl.float import FusedMultiplyAdd, Multiplier

SPECIALS = np.array(
    [0x00000000, 0x00000001, 0x007FFFFF, 0x00800000, 0x00800001, 0x00FFFFFF, 0x33800000, 0x3F7FFFFF,
     0x3F800000, 0x3F800001, 0x3FFFFFFF, 0x40000000, 0x4B000000, 0x5F000000, 0x73000000, 0x7E800000,
     0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF],
    np.uint32,
)  # fmt: skip
ELEMENTS = [(16, 1), (16, 2), (16, 3), (32, 2), (32, 3)]


class Element:
    def __init__(self, factor_bits: int, adder_stages: int) -> None:
        self.factor_bits, self.latency_cycles = factor_bits, 1 + adder_stages

        def text() -> str:
            element = FusedMultiplyAdd(factor_bits=factor_bits, adder_stages=adder_stages)
            return verilog.convert(element, name="fma", strip_internal_attrs=True)

        path = compiled(
            f"fma{factor_bits}", "fma", f"{factor_bits} {adder_stages}",
            lambda: {"fma.v": text()},
            [Path(tapeout.rtl.__file__).parent / "native" / "vectors.cpp"],
        )  # fmt: skip
        self.native = ctypes.CDLL(str(path))

    def check(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
        """Operands are uint32 bits of fp32; a factor of 16 bits is the upper half of its own."""
        if self.factor_bits == 16:
            a, b = a & np.uint32(0xFFFF0000), b & np.uint32(0xFFFF0000)
        shift = np.uint32(32 - self.factor_bits)
        operands = [np.ascontiguousarray(x) for x in (a >> shift, b >> shift, c)]
        got = np.zeros_like(c)
        self.native.vectors_run(
            *(ctypes.c_void_p(x.ctypes.data) for x in (*operands, got)),
            ctypes.c_uint64(len(c)), ctypes.c_uint64(self.latency_cycles),
        )  # fmt: skip
        expected = arith.bits(arith.fma(*(arith.from_bits(x) for x in (a, b, c))))
        wrong = np.flatnonzero(got != expected)
        assert not len(wrong), [f"{x[wrong[0]]:08x}" for x in (a, b, c, got, expected)]


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_multiplier(stages: int) -> None:
    special = np.concatenate([SPECIALS, SPECIALS | np.uint32(1 << 31)])
    a, b = (x.ravel() for x in np.meshgrid(special, special))
    rng = np.random.default_rng(0)
    any_bits = rng.integers(0, 1 << 32, (2, 2000), np.uint32)
    tiny = [rng.integers(0x3F000000, 0x40FFFFFF, 2000, np.uint32),
            rng.integers(0x00400000, 0x01FFFFFF, 2000, np.uint32)]  # fmt: skip
    a, b = (np.concatenate([x, any_bits[k], tiny[k]]) for k, x in enumerate((a, b)))
    dut, got = Multiplier(adder_stages=stages), []

    async def bench(ctx: Any) -> None:
        for k in range(len(a) + stages + 1):
            if k < len(a):
                ctx.set(dut.a, int(a[k]))
                ctx.set(dut.b, int(b[k]))
            if k > stages:
                got.append(ctx.get(dut.result))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    expected = arith.bits(arith.mul(arith.from_bits(a), arith.from_bits(b)))
    np.testing.assert_array_equal(np.array(got, np.uint32), expected)


@pytest.fixture(scope="module", params=ELEMENTS, ids=lambda e: f"{e[0]}-bit-{e[1]}-stages")
def element(request: pytest.FixtureRequest) -> Element:
    return Element(*request.param)


def test_specials(element: Element) -> None:
    signed = np.concatenate([SPECIALS, SPECIALS | np.uint32(1 << 31)])
    a, b, c = np.array(list(itertools.product(signed, repeat=3)), np.uint32).T
    element.check(a, b, c)


def test_random_bits(element: Element) -> None:
    element.check(*np.random.default_rng(1).integers(0, 1 << 32, (3, 500_000), np.uint32))


def test_cancellation(element: Element) -> None:
    """c close to -a * b, by the last bits and by powers of two up to the width of the product."""
    rng = np.random.default_rng(2)
    n = 500_000
    a, b = (
        (rng.integers(64, 192, n) << 23 | rng.integers(0, 1 << 23, n) | rng.integers(0, 2, n) << 31)
        .astype(np.uint32) for _ in range(2)
    )  # fmt: skip
    if element.factor_bits == 16:
        a, b = a & np.uint32(0xFFFF0000), b & np.uint32(0xFFFF0000)
    c = arith.bits(arith.mul(arith.from_bits(a), arith.from_bits(b))) ^ np.uint32(1 << 31)
    near = c + rng.integers(-3, 4, n).astype(np.uint32)
    far = c + (rng.integers(-50, 51, n) << 23).astype(np.uint32)
    for other in (c, near, far):
        element.check(a, b, other)


def test_sums_that_reach_four(element: Element) -> None:
    """A sum in [4, 8) has a bit less below its last one: what was shifted out breaks the tie."""
    m = np.arange(240, 256)
    p = (m[:, None] * m).ravel() / 128.0**2  # 3.5 to 4, exact
    factors = [np.repeat(m, 16) / 128.0, np.tile(m, 16) / 128.0]
    last = 2.0**-21
    for k in range(64):
        for beyond in (-(2.0**-28), 0.0, 2.0**-28, 2.0**-27):
            c = 4 + k * last + last / 2 + beyond - p
            held = c == c.astype(np.float32)
            element.check(*(arith.bits(x[held].astype(np.float32)) for x in (*factors, c)))


def test_results_near_the_smallest_normal(element: Element) -> None:
    rng = np.random.default_rng(3)
    n = 500_000
    a = (rng.integers(1, 64, n) << 23 | rng.integers(0, 1 << 23, n)).astype(np.uint32)
    b = (128 - (a >> 23) + rng.integers(-30, 3, n)) << 23 | rng.integers(0, 1 << 23, n)
    c = rng.integers(0, 4, n) << 23 | rng.integers(0, 1 << 23, n) | rng.integers(0, 2, n) << 31
    element.check(a, b.astype(np.uint32), c.astype(np.uint32))


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_refused_parameters() -> None:
    with pytest.raises(ValueError, match="factors of 16 or 32 bits and 1 to 3 adder stages, not 8"):
        FusedMultiplyAdd(factor_bits=8, adder_stages=2)
