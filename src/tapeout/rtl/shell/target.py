"""Runs programs on the verilated shell, as a host would: registers, memory, an interrupt.

Memory behind the AXI ports answers late and out of order, as `ready` and a seed say; its data is
right, its cycles mean nothing.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tapeout.chip import Chip, to_toml
from tapeout.isa.host import HostHbm
from tapeout.isa.instruction import Fault
from tapeout.isa.program import Program
from tapeout.rtl.boxes import Boxes
from tapeout.rtl.build import MACROS, compiled, macros
from tapeout.rtl.core import MEMORIES
from tapeout.rtl.target import HardwareDefect, Loaded

from .axi import OKAY
from .registers import register_map
from .top import TOP, Top, beat_bytes, port_prefix

_BENCH = Path(__file__).parent.parent / "native" / "shell.cpp"


@dataclass(frozen=True)
class Ending:
    """What the registers say when the interrupt has come."""

    fault: Fault
    fault_queue: int
    fault_pc: int
    bus_error: bool
    cycles: int


class BusError(RuntimeError):
    """A register refused an access."""


class Shell(HostHbm):
    """One shell with its memory.

    Args:
        hbm_bytes: size of memory.
        ready: of 256 cycles, those in which a channel of memory is ready or answers.
        bad_from: accesses from this address on are answered with an error.
    """

    def __init__(
        self,
        chip: Chip,
        *,
        hbm_bytes: int = 1 << 20,
        ready: int = 128,
        seed: int = 0,
        bad_from: int | None = None,
        limit_cycles: int = 1 << 22,
    ) -> None:
        super().__init__(hbm_bytes, "hbm_bytes= makes room")
        self.chip, self.limit_cycles = chip, limit_cycles
        self.map = register_map(chip)
        self._hbm = np.zeros(hbm_bytes, np.uint8)
        self._native = ctypes.CDLL(str(_library(chip)))
        self._native.shell_create.restype = ctypes.c_void_p
        self._native.shell_wrong.restype = ctypes.c_char_p
        self._bench = ctypes.c_void_p(self._native.shell_create())
        bad = hbm_bytes if bad_from is None else bad_from
        self._call(
            "attach", ctypes.c_void_p(self._hbm.ctypes.data), ctypes.c_uint64(hbm_bytes),
            ctypes.c_uint64(bad), ready, seed,
        )  # fmt: skip

    def __del__(self) -> None:
        if hasattr(self, "_bench"):
            self._native.shell_destroy(self._bench)

    def _bytes(self) -> np.ndarray:
        return self._hbm

    def _call(self, name: str, *arguments: object) -> int:
        answer = getattr(self._native, f"shell_{name}")(self._bench, *arguments)
        if answer < 0:
            raise HardwareDefect(self._native.shell_wrong(self._bench).decode())
        return answer

    def set(self, register: str | int, value: int, *, strobes: int = 15) -> None:
        """Writes a register, by its name or offset. Raises: BusError where it is refused."""
        offset = self.map[register].offset if isinstance(register, str) else register
        if self._call("write", offset, ctypes.c_uint32(value), strobes) != OKAY:
            raise BusError(f"a write of {register} is refused")

    def get(self, register: str | int) -> int:
        """Reads a register. Raises: BusError where there is none."""
        offset = self.map[register].offset if isinstance(register, str) else register
        value = ctypes.c_uint32()
        if self._call("read", offset, ctypes.byref(value)) != OKAY:
            raise BusError(f"a read of {register} is refused")
        return value.value

    def load(self, program: Program, bases: dict[int, tuple[int, int, bool]]) -> Loaded:
        """Writes the program to memory."""
        program.check_bindings(self.chip, bases)
        return Loaded.of(program, self.write_code(program, self.chip), bases)

    def start(self, handle: Loaded) -> None:
        """Configures the shell for the program and starts it, with every interrupt enabled."""
        for q, (address, count) in enumerate(handle.code):
            self._set_long(f"Q{q}_CODE", address)
            self.set(f"Q{q}_COUNT", count)
        for b, (address, nbytes, writable) in handle.bases.items():
            self._set_long(f"B{b}_ADDRESS", address)
            self._set_long(f"B{b}_BYTES", nbytes)
            self.set(f"B{b}_FLAGS", 2 | writable)
        self.set("IRQ_ENABLE", 7)
        self.set("CONTROL", 1)

    def _set_long(self, name: str, value: int) -> None:
        self.set(f"{name}_LOW", value & 0xFFFFFFFF)
        self.set(f"{name}_HIGH", value >> 32)

    def finish(self) -> Ending:
        """Waits for the interrupt, reads how the program ended and clears the causes.

        Raises: TimeoutError where none comes.
        """
        if not self._call("wait", ctypes.c_uint64(self.limit_cycles)):
            raise TimeoutError(f"no interrupt in {self.limit_cycles} cycles: raise limit_cycles")
        status = self.get("STATUS")
        cycles = self.get("CYCLES_LOW")
        ending = Ending(
            fault=Fault(status >> 8 & 15),
            fault_queue=status >> 16 & 31,
            fault_pc=self.get("FAULT_PC"),
            bus_error=bool(status & 4),
            cycles=cycles | self.get("CYCLES_HIGH") << 32,
        )
        self.set("IRQ_STATUS", self.get("IRQ_STATUS"))
        return ending

    def run(self, handle: Loaded) -> Ending:
        """Starts a program and waits for its end."""
        self.start(handle)
        return self.finish()

    def peek(self, memory: str) -> np.ndarray:
        """Contents now: spm uint16, vmem and acc float32, [rows, lanes]."""
        rows = getattr(self.chip, memory).rows
        kind = np.uint16 if memory == "spm" else np.float32
        content = np.zeros((rows, self.chip.lanes), kind)
        number = list(MEMORIES).index(memory)
        self._native.shell_copy(self._bench, number, ctypes.c_void_p(content.ctypes.data), 0)
        return content


def _library(chip: Chip) -> Path:
    def files() -> Mapping[str, str]:
        top = Top(chip)
        boxes = Boxes(clean=True)
        return {
            f"{TOP}.v": boxes.convert(top, TOP),
            f"{TOP}.vlt": boxes.verilator_configuration(),
            "ports.inc": _ports(top),
        }

    return compiled(
        f"{chip.name}-shell", TOP, to_toml(chip), files, [_BENCH, *MACROS], shared=["rtl/shell"]
    )


def _ports(top: Top) -> str:
    """The bench's view of this shell."""
    size, queues = beat_bytes(top.chip), range(top.chip.queue_count)
    lines = [
        f"constexpr int kQueues = {top.chip.queue_count}, kBeatBytes = {size};",
        f"void bind(V{TOP}& top, Port* ports) {{",
    ]
    channels = ("ar", "r", "aw", "w", "b")
    for q in queues:
        prefix = port_prefix(q)
        for name in top.signature.members:
            if name.startswith(prefix) and not name.endswith("wstrb"):
                short = name.removeprefix(prefix)
                assert short.startswith(channels)
                index = "[0]" if short in ("rdata", "wdata") else ""
                lines.append(f"  ports[{q}].{short} = &top.{name}{index};")
    lines += ["}", f"bool strobe(const V{TOP}& top, int queue, int lane) {{", "  switch (queue) {"]
    for q in queues:
        name = f"{port_prefix(q)}wstrb"
        if name in top.signature.members:
            bit = "[lane >> 5] >> (lane & 31)" if size > 64 else " >> lane"
            lines.append(f"    case {q}: return top.{name}{bit} & 1;")
    lines += ["  }", "  return false;", "}"]
    return "\n".join([*lines, macros(top.core, f"{TOP}.core.box"), ""])
