"""Power of a part with OpenSTA, from what its registers and inputs do in a program.

Contract: ideal clock, no wires, no glitches. Registers and inputs toggle as they did; what lies
between follows from these by OpenSTA's probabilities.

Debian's OpenSTA forgets what it is told of a pin that is no port. So each register takes its data
from a port of its own, with the register's toggles, and what would be its data is an output with
the load that the register is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tapeout.rtl import yosys

from . import opensta
from .activity import Toggles
from .pdk import Pdk, PhysicalError
from .synthesis import Netlist
from .tools import call

TIMEOUT_S = 1800
_INSTANCE = re.compile(r"^  (\w+) (\\\S+ |\w+) \(\n(.*?)^  \);\n", re.M | re.S)
_DATA = re.compile(r"\.D\((.*)\)")  # all libraries call it D
_REGISTER = re.compile(r"\$_\w+$")  # that Yosys adds to the name


@dataclass(frozen=True, kw_only=True)
class Power:
    """Watts at the clock asked for; `known` of all `registers` have been found in the record, the
    others are taken to toggle as these on average."""

    internal_w: float
    switching_w: float
    leakage_w: float
    known: int
    registers: int

    @property
    def total_w(self) -> float:
        return self.internal_w + self.switching_w + self.leakage_w


def analyse(
    netlist: Netlist, pdk: Pdk, nets: Mapping[str, Toggles], *, clock_ghz: float,
    inside: tuple[str, ...], folder: Path,
) -> Power:  # fmt: skip
    """Power of a netlist, without what lies in the modules `inside`.

    Args:
        nets: toggles of its registers and inputs, by their dotted names.

    Raises: PhysicalError where a tool fails.
    """
    library = pdk.library
    left_out = re.compile(rf"^  (?:{'|'.join(inside)}) (\\\S+ |\w+) \(", re.M) if inside else None
    apart = [m[1].strip("\\ ") for m in left_out.finditer(netlist.verilog)] if left_out else []
    flat = _flattened(netlist, folder)
    flops = {name: cell.data_load for name, cell in pdk.cells().items() if cell.is_flop}
    text, registers, loads = _opened(flat, flops)
    (folder / "power.v").write_text(text)
    known = {port: nets[name] for port, name in registers.items() if name in nets}
    mean = Toggles(
        sum(t.a_cycle for t in known.values()) / max(1, len(known)),
        sum(t.duty for t in known.values()) / max(1, len(known)),
    )
    told = {**nets, **{port: known.get(port, mean) for port in registers}}
    (folder / "toggles").write_text(
        "".join(f"{name} {t.a_cycle:.6f} {t.duty:.6f}\n" for name, t in told.items())
    )
    script = [
        *(f"read_liberty {name}" for name in pdk.unpack(folder)),
        "read_verilog power.v",
        f"link_design {netlist.top}",
        f"create_clock -name clk -period {1 / clock_ghz / library.time_unit_ns} [get_ports clk]",
        f"set_load {library.load} [all_outputs]",
        *(f"set_load {load} [get_ports {port}]" for port, load in loads.items()),
        f"set mean {{{mean.a_cycle:.6f} {mean.duty:.6f}}}",
        f"set apart {{{' '.join(f'{name}.*' for name in apart)}}}",
        *_TELL.splitlines(),
    ]
    output = opensta.run(script, netlist.top, folder)
    total, parts = _watts(output, "all"), _watts(output, "apart")
    internal, switching, leakage = (a - b for a, b in zip(total, parts, strict=True))
    return Power(
        internal_w=internal, switching_w=switching, leakage_w=leakage,
        known=len(known), registers=len(registers),
    )  # fmt: skip


_TELL = """\
set file [open toggles]
while {[gets $file line] >= 0} { set toggles([lindex $line 0]) [lrange $line 1 2] }
close $file
foreach port [all_inputs] {
  set name [get_property $port full_name]
  if {$name == "clk"} { continue }
  lassign [expr {[info exists toggles($name)] ? $toggles($name) : $mean}] activity duty
  set_power_activity -input_ports $port -activity $activity -duty $duty
}
proc watts {section cells} {
  set sums {0.0 0.0 0.0}
  foreach cell $cells {
    set row {}
    foreach sum $sums watts [lrange [sta::instance_power $cell [sta::cmd_corner]] 0 2] {
      # What never toggles: OpenSTA divides nothing by nothing.
      lappend row [expr {[regexp -nocase {nan|inf} $watts] ? $sum : $sum + $watts}]
    }
    set sums $row
  }
  puts "== $section $sums"
}
watts all [get_cells *]
watts apart [expr {[llength $apart] ? [get_cells $apart] : {}}]
"""


def _flattened(netlist: Netlist, folder: Path) -> str:
    (folder / "hierarchy.v").write_text(netlist.verilog)
    script = [
        "read_verilog hierarchy.v",
        f"hierarchy -top {netlist.top}",
        "flatten",
        "splitnets",
        "opt_clean -purge",
        "write_verilog -noattr -noexpr -nodec -norename -simple-lhs flat.v",
    ]
    (folder / "flat.ys").write_text("\n".join(script))
    result = call(
        f"Yosys, for {netlist.top},", [*yosys.COMMAND, "-ql", "flat.log", "flat.ys"],
        folder, TIMEOUT_S,
    )  # fmt: skip
    if result.code:
        raise PhysicalError(f"Yosys failed to flatten {netlist.top}: {result.output[-200:]}")
    return (folder / "flat.v").read_text()


def _opened(flat: str, flops: Mapping[str, float]) -> tuple[str, dict[str, str], dict[str, float]]:
    """(the netlist, with ports for registers' data; the registers by these ports; loads of the
    outputs that registers were)."""
    registers: dict[str, str] = {}
    outputs: list[str] = []
    loads: dict[str, float] = {}

    def opened(found: re.Match[str]) -> str:
        cell, name, body = found[1], found[2].strip("\\ "), found[3]
        data = _DATA.search(body)
        if cell not in flops or data is None:
            return found[0]
        port = f"tapeout_data_{len(registers)}"
        registers[port] = _REGISTER.sub("", name).replace("._TECHMAP_REPLACE_.", ".")
        loads[f"tapeout_next_{len(outputs)}"] = flops[cell]
        outputs.append(data[1])
        return found[0].replace(data[0], f".D({port})", 1)

    text = _INSTANCE.sub(opened, flat)
    added = [f"  input {port};" for port in registers]
    added += [f"  output {name};" for name in loads]
    added += [f"  assign {name} = {net};" for name, net in zip(loads, outputs, strict=True)]
    begin = text.index("module ")
    head, rest = text[begin:].split(");", 1)
    ports = "".join(f", {name}" for name in [*registers, *loads])
    body, end = rest.rsplit("endmodule", 1)
    whole = "\n".join([f"{text[:begin]}{head}{ports});", body, *added, f"endmodule{end}"])
    return whole, registers, loads


def _watts(output: str, section: str) -> tuple[float, float, float]:
    """Internal, switching and leakage power of a section of OpenSTA's output."""
    ((first, second, third),) = re.findall(rf"^== {section} (\S+) (\S+) (\S+)$", output, re.M)
    return float(first), float(second), float(third)
