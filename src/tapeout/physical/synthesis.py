"""Synthesis with Yosys and ABC, in a process of its own.

Contract: each module that `rtl.boxes` emits once is flattened and mapped once; memory macros and
the modules named as boxes keep their ports only.
"""

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from .pdk import Pdk, PhysicalError

TIMEOUT_S = 3600

_CHILD = """\
import sys
from pyosys import libyosys
design = libyosys.Design()
for line in open(sys.argv[1]):
    libyosys.run_pass(line.strip(), design)
"""

_ABC = """\
strash
&get -n
&st
&dch
&nf
&put
buffer -c
topo
upsize -D {period}
dnsize -D {period}
stime -p
"""


@dataclass(frozen=True, kw_only=True)
class Netlist:
    """What synthesis gave: Verilog, and cells of each module by their type."""

    verilog: str
    top: str
    cells: dict[str, dict[str, int]]

    def total(self, leaves: tuple[str, ...] = ()) -> dict[str, int]:
        """Cells by type, of the top module and all in it but `leaves`."""
        return self._of(self.top, leaves)

    def _of(self, module: str, leaves: tuple[str, ...]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for kind, count in self.cells[module].items():
            if kind in leaves:
                continue
            inner = self._of(kind, leaves) if kind in self.cells else {kind: 1}
            for cell, n in inner.items():
                counts[cell] = counts.get(cell, 0) + n * count
        return counts


def tool_version() -> str:
    """Raises: PhysicalError where Yosys is missing."""
    if importlib.util.find_spec("pyosys") is None:
        raise PhysicalError(
            "synthesis needs Yosys, which is not installed: run `pip install 'tapeout[gates]'`"
        )
    return version("pyosys")


def synthesise(
    verilog: str, top: str, pdk: Pdk, *, boxes: tuple[str, ...], period_ns: float, folder: Path
) -> Netlist:
    """Maps `top` to cells of the library, for a clock of `period_ns`.

    Args:
        folder: where files may be written.

    Raises: PhysicalError where Yosys fails.
    """
    tool_version()
    library = pdk.library
    names = []
    for name, content in pdk.texts().items():
        (folder / name).write_bytes(content)
        names.append(name)
    liberty = " ".join(f"-liberty {name}" for name in names)
    modules = re.findall(r"^module (\w+)", verilog, re.M)
    black = [name for name in modules if name.startswith("ram_") or name in boxes]
    (folder / "part.v").write_text(verilog)
    (folder / "abc.script").write_text(_ABC.format(period=round(1000 * period_ns)))
    (folder / "constraints").write_text(
        f"set_driving_cell {library.buffer}\nset_load {library.load}\n"
    )
    avoid = " ".join(f"-dont_use {name}" for name in library.avoid)
    avoid_flops = " ".join(f"-dont_use {name}" for name in library.avoid_flops)
    # What lies within a component has a name with dots, which is escaped and not found here.
    kept = [name for name in modules if name not in black and name != top]
    script = [
        "read_verilog part.v",
        *(f"blackbox {name}" for name in black),
        *(f"setattr -mod -set keep_hierarchy 1 {name}" for name in kept),
        f"hierarchy -top {top}",
        f"synth -flatten -booth -extra-map +/choices/kogge-stone.v -top {top}",
        "rename -wire",  # a register is called what it drives
        f"dfflibmap {liberty} {avoid_flops}",
        "opt",
        f"abc {liberty} -script abc.script -constr constraints {avoid}",
        "setundef -zero",
        *_ties(pdk),
        "splitnets",
        "opt_clean -purge",
        f"tee -q -o stat.json stat -json {liberty}",
        "write_verilog -noattr -noexpr -nodec -norename netlist.v",
        "write_json netlist.json",
    ]
    (folder / "script.ys").write_text("\n".join(script))
    try:
        result = subprocess.run(
            [sys.executable, "-c", _CHILD, "script.ys"],
            cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PhysicalError(f"Yosys took more than {TIMEOUT_S} s for {top}") from None
    if result.returncode:
        log = result.stdout + result.stderr
        lines = [line for line in log.splitlines() if "ERROR" in line or "rror:" in line]
        raise PhysicalError(
            f"Yosys failed on {top}: {lines[-1] if lines else f'exit code {result.returncode}'}"
        )
    statistics = json.loads((folder / "stat.json").read_text())["modules"]
    cells = {
        name.removeprefix("\\"): {k.removeprefix("\\"): _number(n) for k, n in _types(found)}
        for name, found in statistics.items()
        if name.removeprefix("\\") not in black
    }
    return Netlist(verilog=(folder / "netlist.v").read_text(), top=top, cells=cells)


def _types(found: dict) -> list[tuple[str, object]]:
    kinds = ("num_cells_by_type", "num_submodules_by_type")
    return [entry for kind in kinds for entry in found.get(kind, {}).items()]


def _number(value: object) -> int:
    return int(value["count"]) if isinstance(value, dict) else int(str(value))


def _ties(pdk: Pdk) -> list[str]:
    high, low = pdk.library.tie_high, pdk.library.tie_low
    if high is None or low is None:
        return []
    return [f"hilomap -hicell {' '.join(high)} -locell {' '.join(low)}"]
