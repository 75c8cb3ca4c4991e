"""What the nets of a core do while programs run: toggles of the chip's own Verilog.

Contract: a program runs on the verilated core, whose cycles and results must be those of `sim`; its
nets are watched from the first cycle to the last (SAIF, clock edge by clock edge, so without
glitches). Records lie in `$XDG_CACHE_HOME/tapeout/gates` and are found by the core's library and
the program: they never go stale.
"""

import gzip
import hashlib
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tapeout import cache_folder
from tapeout.chip import Chip
from tapeout.isa import Program
from tapeout.kernels.flash import Sequence, flash_attention
from tapeout.kernels.gemm import gemm
from tapeout.lang import Builder
from tapeout.rtl.build import library
from tapeout.rtl.target import Rtl
from tapeout.rtl.verification.programs import Case
from tapeout.sim import Sim

from .pdk import PhysicalError
from .tools import keep

TILES = 8  # rows, columns and depth of what is recorded, in tiles of the array
_HBM_BYTES = 1 << 22


@dataclass(frozen=True)
class Toggles:
    """Of a net: changes a cycle, and the share of the time that it is 1."""

    a_cycle: float
    duty: float


@dataclass(frozen=True)
class Activity:
    """A program's nets by their dotted names in the core."""

    program: str
    cycles: int
    nets: Mapping[str, Toggles]

    def within(self, place: str) -> dict[str, Toggles]:
        """Nets of what lies at `place` in the core, by their names there."""
        start = f"{place}."
        return {n.removeprefix(start): t for n, t in self.nets.items() if n.startswith(start)}


def matmul(chip: Chip, tiles: int) -> Program:
    """C = A B, square, so many tiles of the array on each side."""
    size = tiles * chip.lanes
    b = Builder(chip, weight_slots=0)
    x, y, z = (b.segment(name, 2 * size * size, writable=name == "c") for name in "abc")
    gemm(b, x, y, z, (size, size, size))
    return b.build()


def attention(chip: Chip, tiles: int) -> Program:
    """Causal attention of one head as wide as the chip, so many tiles of tokens."""
    seq = Sequence(heads=1, kv_heads=1, tokens=tiles * chip.lanes, head_dim=chip.lanes, scale=0.25)
    b = Builder(chip, weight_slots=0)
    q, k, v, o = (b.segment(name, seq.head_bytes, writable=name == "o") for name in "qkvo")
    flash_attention(b, q, k, v, o, seq)
    return b.build()


PROGRAMS: dict[str, Callable[[Chip, int], Program]] = {"matmul": matmul, "attention": attention}


def record(chip: Chip, name: str, folder: Path | None = None) -> Activity:
    """Runs one of `PROGRAMS` on operands that are normally distributed, or finds its record.

    Raises:
        BuildError: the core cannot be built here.
        PhysicalError: hardware and `sim` differ.
    """
    program = PROGRAMS[name](chip, TILES)
    built = library(chip, is_watched=True)
    key = hashlib.sha256(f"{built.name}\0{program}\0{_HBM_BYTES}".encode()).hexdigest()[:24]
    folder = folder or cache_folder() / "gates"
    place = folder / f"{chip.name}-{name}-{key}.saif.gz"
    if not place.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="tapeout-activity-") as scratch:
            saif = Path(scratch) / "nets.saif"
            hardware = Rtl(chip, hbm_bytes=_HBM_BYTES, built=built)
            hardware.watch(saif)
            case = with_operands(chip, program)
            if _run(hardware, case) != _run(Sim(chip, hbm_bytes=_HBM_BYTES), case):
                raise PhysicalError(f"{name} gives another result on the hardware than on sim")
            keep(place, gzip.compress(saif.read_bytes(), 1))
    return _read(name, gzip.decompress(place.read_bytes()).decode())


def with_operands(chip: Chip, program: Program) -> Case:
    """The program with bf16 in its segments that are normally distributed."""
    rng = np.random.default_rng(0)
    segments = {}
    for s in program.segments:
        values = rng.standard_normal(s.bytes // 2).astype(np.float32).view(np.uint32) >> 16
        segments[s.base] = (values.astype(np.uint16).tobytes(), s.writable)
    return Case(chip, program, segments)


def _run(target: Any, case: Case) -> tuple[int, bytes]:
    """(cycles, what it wrote)."""
    handle, bases = case.load(target)
    cycles = target.run(handle).cycles
    written = (np.asarray(target.read(at, n)).tobytes() for at, n, w in bases.values() if w)
    return cycles, b"".join(written)


_NET = re.compile(r"\((\S+) \(T0 (\d+)\) \(T1 (\d+)\).*\(TC (\d+)\)")


def _read(name: str, saif: str) -> Activity:
    """A file in the Switching Activity Interchange Format, as Verilator writes it: an instance or a
    net a line, two steps of time a cycle."""
    stack: list[str] = []
    nets: dict[str, Toggles] = {}
    duration = 0
    for line in saif.splitlines():
        text = line.strip()
        if text.startswith("(DURATION"):
            duration = int(text[len("(DURATION") : -1])
        elif text.startswith("(INSTANCE "):
            stack.append(text[len("(INSTANCE ") :])
        elif text == "(NET":
            stack.append("")
        elif text == ")" and stack:
            stack.pop()
        elif found := _NET.match(text):
            path = ".".join([s for s in stack if s] + [found[1]]).replace("\\", "")
            zero, one = int(found[2]), int(found[3])
            share = one / max(1, zero + one)
            nets[path.removeprefix("TOP.core.")] = Toggles(2 * int(found[4]) / duration, share)
    return Activity(name, duration // 2, nets)
