"""Synthesis with Yosys and ABC.

Contract: each module that `rtl.boxes` emits once is flattened and mapped once. Memories and the
modules named as boxes are left out; their ports become ports `instance.port` of the part, so that
what they give comes with the clock edge, and what they take is due at the next.
"""

import importlib.util
import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tapeout.rtl import yosys

from .pdk import Pdk, PhysicalError
from .tools import call

TIMEOUT_S = 3600
MACRO_BITS = 4096  # a memory of as many is a macro, a smaller one is made of registers

_BALANCE = "if -g -K 6\nstrash\n" * 2
_ABC = """\
strash
{balance}&get -n
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


# A wire named _TECHMAP_REPLACE_.X becomes MEMORY.X, and MEMORY._TECHMAP_REPLACE_.X beside it.
# Yosys has a write enable for each bit; a macro has one for as many as are always enabled together,
# which Yosys tells by numbers for the nets of each bit (_TECHMAP_CONNMAP_).
_MEMORY = r"""
module \$mem_v2 (
  RD_CLK, RD_EN, RD_ARST, RD_SRST, RD_ADDR, RD_DATA, WR_CLK, WR_EN, WR_ADDR, WR_DATA
);
  parameter SIZE = 1, ABITS = 1, WIDTH = 1, RD_PORTS = 1, WR_PORTS = 1;
  parameter MEMID = "", OFFSET = 0, INIT = 0, RD_CLK_ENABLE = 0, RD_CLK_POLARITY = 0;
  parameter RD_TRANSPARENCY_MASK = 0, RD_COLLISION_X_MASK = 0, RD_WIDE_CONTINUATION = 0;
  parameter RD_CE_OVER_SRST = 0, RD_ARST_VALUE = 0, RD_SRST_VALUE = 0, RD_INIT_VALUE = 0;
  parameter WR_CLK_ENABLE = 0, WR_CLK_POLARITY = 0, WR_PRIORITY_MASK = 0;
  parameter WR_WIDE_CONTINUATION = 0;
  input [RD_PORTS-1:0] RD_CLK, RD_EN, RD_ARST, RD_SRST;
  input [RD_PORTS*ABITS-1:0] RD_ADDR;
  output [RD_PORTS*WIDTH-1:0] RD_DATA;
  input [WR_PORTS-1:0] WR_CLK;
  input [WR_PORTS*WIDTH-1:0] WR_EN, WR_DATA;
  input [WR_PORTS*ABITS-1:0] WR_ADDR;
  parameter _TECHMAP_BITS_CONNMAP_ = 1;
  parameter [WR_PORTS*WIDTH*_TECHMAP_BITS_CONNMAP_-1:0] _TECHMAP_CONNMAP_WR_EN_ = 0;
  function integer bits_together(input integer from);
    integer k, a, b, c;
    begin
      a = WIDTH;
      for (k = from; k < WR_PORTS * WIDTH; k = k + 1)
        if (_TECHMAP_CONNMAP_WR_EN_[k * _TECHMAP_BITS_CONNMAP_ +: _TECHMAP_BITS_CONNMAP_]
            != _TECHMAP_CONNMAP_WR_EN_[(k - 1) * _TECHMAP_BITS_CONNMAP_ +: _TECHMAP_BITS_CONNMAP_])
        begin
          b = k;
          while (b > 0) begin
            c = a % b;
            a = b;
            b = c;
          end
        end
      bits_together = a;
    end
  endfunction
  localparam TOGETHER = bits_together(1);
  wire _TECHMAP_FAIL_ = SIZE * WIDTH < MACRO_BITS;
  wire [RD_PORTS*WIDTH-1:0] \_TECHMAP_REPLACE_.READ_DATA ;
  wire [RD_PORTS*ABITS-1:0] \_TECHMAP_REPLACE_.READ_ADDRESS = RD_ADDR;
  wire [RD_PORTS-1:0] \_TECHMAP_REPLACE_.READ_ENABLE = RD_EN;
  wire [WR_PORTS*WIDTH-1:0] \_TECHMAP_REPLACE_.WRITE_DATA = WR_DATA;
  wire [WR_PORTS*WIDTH/TOGETHER-1:0] \_TECHMAP_REPLACE_.WRITE_ENABLE ;
  genvar n;
  for (n = 0; n < WR_PORTS * WIDTH / TOGETHER; n = n + 1)
    assign \_TECHMAP_REPLACE_.WRITE_ENABLE [n] = WR_EN[n * TOGETHER];
  wire [WR_PORTS*ABITS-1:0] \_TECHMAP_REPLACE_.WRITE_ADDRESS = WR_ADDR;
  assign RD_DATA = \_TECHMAP_REPLACE_.READ_DATA ;
endmodule
""".replace("MACRO_BITS", str(MACRO_BITS))
_TAKES = ("READ_ADDRESS", "READ_ENABLE", "WRITE_DATA", "WRITE_ENABLE", "WRITE_ADDRESS")


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
    verilog: str, top: str, pdk: Pdk, *, boxes: tuple[str, ...], period_ns: float, folder: Path,
    is_fast: bool = False,
) -> Netlist:  # fmt: skip
    """Maps `top` to cells of the library, for a clock of `period_ns`.

    Args:
        is_fast: delays are balanced first, which takes more cells.
        folder: where files may be written.

    Raises: PhysicalError where Yosys fails.
    """
    tool_version()
    library = pdk.library
    liberty = " ".join(f"-liberty {name}" for name in pdk.unpack(folder))
    modules = re.findall(r"^module (\w+)", verilog, re.M)
    black = [name for name in modules if name.startswith("ram_") or name in boxes]
    (folder / "part.v").write_text(verilog)
    (folder / "memory.v").write_text(_MEMORY)
    (folder / "abc.script").write_text(
        _ABC.format(period=round(1000 * period_ns), balance=_BALANCE if is_fast else "")
    )
    (folder / "constraints").write_text(
        f"set_driving_cell {library.buffer}\nset_load {library.load}\n"
    )
    avoid = " ".join(f"-dont_use {name}" for name in library.avoid)
    avoid_flops = " ".join(f"-dont_use {name}" for name in library.avoid_flops)
    # What lies within a component has a name with dots, which is escaped and not found here.
    kept = [name for name in modules if name not in black and name != top]
    # Yosys' own use of ABC looks for equal gates, which takes it hours in multipliers.
    synth = f"synth -flatten -noabc -booth -extra-map +/choices/kogge-stone.v -top {top}"
    takes = " ".join(f"w:*._TECHMAP_REPLACE_.{port}" for port in _TAKES)
    script = [
        "read_verilog part.v",
        *(f"blackbox {name}" for name in black),
        *(f"setattr -mod -set keep_hierarchy 1 {name}" for name in kept),
        f"hierarchy -top {top}",
        f"{synth} -run begin:fine",
        "techmap -map memory.v t:$mem_v2",
        "expose -input w:*._TECHMAP_REPLACE_.READ_DATA",
        f"expose {takes}",
        *(f"expose -evert t:{name}" for name in black),
        f"{synth} -run fine:",
        "rename -wire",  # a register is called what it drives
        f"dfflibmap {liberty} {avoid_flops}",
        "opt",
        "insbuf",  # each output is a load of its own, also where two are the same net
        f"abc {liberty} -script abc.script -constr constraints {avoid}",
        "setundef -zero",
        *_ties(pdk),
        "splitnets",
        "opt_clean -purge",
        f"tee -q -o stat.json stat -json {liberty}",
        "write_verilog -noattr -noexpr -nodec -norename -simple-lhs netlist.v",
        "write_json netlist.json",
    ]
    (folder / "script.ys").write_text("\n".join(script))
    result = call(
        f"Yosys, for {top},", [*yosys.COMMAND, "-ql", "yosys.log", "script.ys"], folder, TIMEOUT_S
    )
    if result.code:
        log = folder / "yosys.log"
        said = log.read_text() if log.exists() else result.output
        lines = [line for line in said.splitlines() if "rror:" in line.lower()]
        raise PhysicalError(
            f"Yosys failed on {top}: {lines[-1] if lines else f'exit code {result.code}'}"
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
