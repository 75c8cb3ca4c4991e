"""Parts of a chip that are synthesised, and how many of each it has.

Contract: parts are disjoint, so areas times counts sum up to the chip's gates: a part's module
holds other parts only as boxes. What is not in any part: the core's cycle counter and its ending.
Memories are macros, counted in bits.
"""

import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from amaranth.hdl import UnusedElaboratable
from amaranth.lib import wiring

from tapeout.chip import Chip
from tapeout.rtl.array import Element, Row
from tapeout.rtl.boxes import Boxes
from tapeout.rtl.core import Core
from tapeout.rtl.dma import DmaEngine
from tapeout.rtl.lane import Lane
from tapeout.rtl.mxu import MatrixUnit
from tapeout.rtl.sequencer import Sequencer
from tapeout.rtl.tokens import TokenChannel
from tapeout.rtl.vpu import VectorUnit

from .pdk import PhysicalError


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a chip.

    Attributes:
        count: instances in the chip.
        at: where an instance lies in the core, whose activity counts for all.
        inside: modules that are parts of their own and are timed within this one.
        boxes: those of which only the ports are seen.
    """

    name: str
    title: str
    count: int
    make: Callable[[], wiring.Component]
    at: str = ""
    inside: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()

    @cached_property
    def verilog(self) -> str:
        """Its Verilog, top module `name`."""
        return Boxes().convert(self.make(), self.name)


def parts(chip: Chip) -> dict[str, Part]:
    """All parts, by name, in the order of reports."""
    mxu, names = chip.mxu, chip.queue_names
    dma = [q for q, name in enumerate(names) if name.startswith("dma")]
    channels = len(names) * (len(names) - 1) * chip.tokens.channels_per_pair

    def memory(name: str) -> Callable[[], wiring.Component]:
        return lambda: _memory(chip, name)

    def sequencer(queue: int) -> Callable[[], wiring.Component]:
        return lambda: Sequencer(chip, queue)

    cores, row = chip.cores, f"engine_mxu.array.row_{mxu.rows // 2}.box"
    found = [
        Part(name="element", title="element of the array", count=cores * mxu.rows * mxu.cols,
             make=lambda: Element(chip), at=f"{row}.element_{mxu.cols // 2}.box"),
        Part(name="row", title="row of the array, without its elements", count=cores * mxu.rows,
             make=lambda: Row(chip), at=row, inside=("mxu_element",)),
        Part(name="matrix", title="matrix unit, without its rows", count=cores,
             make=lambda: MatrixUnit(chip), at="engine_mxu", boxes=("mxu_row",)),
        Part(name="lane", title="vector lane", count=cores * chip.lanes * chip.vpu.sublanes,
             make=lambda: Lane(chip), at=f"engine_vpu.sublane_0.box.lane_{chip.lanes // 2}.box"),
        Part(name="vector", title="vector unit, without its lanes", count=cores,
             make=lambda: VectorUnit(chip), at="engine_vpu", boxes=("vpu_lane",)),
        Part(name="dma", title="engine of a DMA queue", count=cores * len(dma),
             make=lambda: DmaEngine(chip), at="engine_dma0.box"),
        Part(name="seq_mxu", title="sequencer of mxu", count=cores,
             make=sequencer(names.index("mxu")), at="queue_mxu.box"),
        Part(name="seq_vpu", title="sequencer of vpu", count=cores,
             make=sequencer(names.index("vpu")), at="queue_vpu.box"),
        Part(name="seq_dma", title="sequencer of a DMA queue", count=cores * len(dma),
             make=sequencer(dma[0]), at="queue_dma0.box"),
        Part(name="token", title="token channel", count=cores * channels,
             make=lambda: TokenChannel(chip), at="token_mxu_vpu_0"),
        *(Part(name=name, title=f"ports of {name}", count=cores, make=memory(name),
                at=name)
          for name in ("spm", "vmem", "acc")),
    ]  # fmt: skip
    return {part.name: part for part in found}


def chosen(chip: Chip, names: list[str]) -> list[Part]:
    """The parts of these names, all where none is given.

    Raises: PhysicalError for a name that is no part's.
    """
    known = parts(chip)
    for name in names:
        if name not in known:
            raise PhysicalError(f"--part {name}: no such part; known are {', '.join(known)}")
    return [part for name, part in known.items() if not names or name in names]


def memory_bits(chip: Chip) -> dict[str, int]:
    """Bits of the macros of each memory."""
    bits = {
        "spm": chip.spm.rows * chip.lanes * 16,
        "vmem": chip.vmem.rows * chip.lanes * 32,
        "acc": chip.acc.rows * chip.lanes * 32,
    }
    return {name: n * chip.cores for name, n in bits.items()}


def _memory(chip: Chip, name: str) -> wiring.Component:
    """A memory with the ports that the engines of a core have to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnusedElaboratable)  # the rest of the core is not needed
        memory = Core(chip).memories[name]
        gc.collect()
    return memory
