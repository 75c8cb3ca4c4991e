"""Builds a program around a kernel, runs it on interp and on sim and compares them bit by bit."""

from typing import Any

import numpy as np

from tapeout.chip import Chip
from tapeout.isa import Kind, Program
from tapeout.isa.dma import HbmFormat
from tapeout.isa.interp import Interp
from tapeout.lang import Builder, HbmTensor, Tensor, ops
from tapeout.numerics.encodings import bf16_to_f32, f32_to_bf16
from tapeout.sim import Sim

HBM_BYTES = 16 << 20
MEMORIES = ("spm", "vmem", "acc")


def normal(seed: int, *shape: int) -> np.ndarray:
    """float32 of the standard normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def bf16(x: np.ndarray) -> np.ndarray:
    """bf16 bits nearest to x."""
    return f32_to_bf16(np.ascontiguousarray(x, np.float32))


def wide(bits: np.ndarray) -> np.ndarray:
    """float64 of bf16 bits."""
    return bf16_to_f32(bits).astype(np.float64)


class Trial:
    """`k` is the builder; `given` holds what the host writes into HBM, by segment."""

    def __init__(self, chip: Chip, *, weight_slots: int | None = None) -> None:
        self.chip = chip
        self.k = Builder(chip, weight_slots=weight_slots)
        self.given: dict[str, np.ndarray] = {}
        self.program: Program | None = None

    def give(self, name: str, data: np.ndarray, *, writable: bool = False) -> HbmTensor:
        """A segment that holds `data` when the program starts."""
        self.given[name] = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
        return self.k.segment(name, len(self.given[name]), writable=writable)

    def take(self, name: str, nbytes: int) -> HbmTensor:
        """A segment the program writes."""
        return self.k.segment(name, nbytes, writable=True)

    def load(
        self, name: str, x: np.ndarray, *, kind: Kind = Kind.SPM_BF16, **options: Any
    ) -> Tensor:
        """x [M, N] on chip: bf16 bits (uint16), or fp32 in the memory of `kind`."""
        wide_format = x.dtype == np.float32
        if wide_format and kind == Kind.SPM_BF16:
            kind = Kind.SPM_FP32
        t = self.k.tensor(kind, *x.shape, **options)
        fmt = HbmFormat.FP32 if wide_format else HbmFormat.BF16
        ops.load(self.k, t, self.give(name, x), format=fmt)
        return t

    def store(self, name: str, t: Tensor, *, rows: int | None = None) -> None:
        """Rows of t as they lie on chip: bf16, or fp32."""
        size = 2 if t.kind == Kind.SPM_BF16 else 4
        rows = t.rows if rows is None else rows
        fmt = HbmFormat.BF16 if size == 2 else HbmFormat.FP32
        ops.store(self.k, t, self.take(name, size * rows * t.width), rows=rows, format=fmt)

    def run(self, **args: int) -> dict[str, np.ndarray]:
        """uint8 contents of the writable segments; equal on interp and sim, as are the memories."""
        self.program = self.k.build()
        words = np.zeros(max(1, len(self.k.args)), np.int32)
        for name, arg in self.k.args.items():
            words[arg.index] = args[name]
        self.given["args"] = words.view(np.uint8)
        interp, sim = Interp(self.chip, hbm_bytes=HBM_BYTES), Sim(self.chip, hbm_bytes=HBM_BYTES)
        expected, got = (launch(target, self.program, self.given) for target in (interp, sim))
        for name in expected:
            np.testing.assert_array_equal(got[name], expected[name], err_msg=f"segment {name}")
        for memory in MEMORIES:
            written = interp.peek_written(memory)
            np.testing.assert_array_equal(sim.peek_written(memory), written)
            values = (target.peek(memory)[written] for target in (interp, sim))
            a, b = (v.view(np.uint16 if memory == "spm" else np.uint32) for v in values)
            np.testing.assert_array_equal(b, a, err_msg=memory)
        return expected


def launch(
    target: Interp | Sim, program: Program, given: dict[str, np.ndarray], **options: Any
) -> dict[str, np.ndarray]:
    """Runs a program on one target: uint8 contents of the writable segments."""
    bases, places = {}, {}
    for s in program.segments:
        address = target.allocate(max(s.bytes, 4))
        bases[s.base] = (address, s.bytes, s.writable)
        if s.name in given:
            target.write(address, given[s.name])
        if s.writable:
            places[s.name] = (address, s.bytes)
    target.run(target.load(program, bases), **options)
    return {name: target.read(*place) for name, place in places.items()}


def floats(raw: np.ndarray, *shape: int) -> np.ndarray:
    return raw.view(np.float32).reshape(shape)


def halves(raw: np.ndarray, *shape: int) -> np.ndarray:
    """float64 of stored bf16."""
    return wide(raw.view(np.uint16)).reshape(shape)


def assert_within(got: np.ndarray, expected: np.ndarray, bound: np.ndarray | float) -> None:
    """|got - expected| <= bound, elementwise."""
    excess = np.abs(np.asarray(got, np.float64) - expected) - bound
    at = np.unravel_index(np.argmax(excess), excess.shape)
    assert np.isfinite(excess).all(), "a result is not finite"
    assert excess[at] <= 0, f"{at}: {got[at]} is not within the bound of {expected[at]}"
