"""Timing with OpenSTA.

Contract: ideal clock, no wires; inputs arrive with the clock edge behind a buffer, and outputs are
due at the next. A path is named by the registers, or ports, at its ends.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from . import opensta
from .pdk import Pdk, PhysicalError
from .synthesis import Netlist

_NUMBER = r"(-?[\d.]+(?:[eE][-+]?\d+)?)"
_PATH = re.compile(
    rf"Startpoint: (\S+)\s.*?Endpoint: (\S+)\s.*?{_NUMBER}\s+data arrival time"
    rf".*?{_NUMBER}\s+slack",
    re.S,
)


@dataclass(frozen=True, kw_only=True)
class Slowest:
    """A path: `delay_ns` is the shortest clock period that it allows; `report` its cells."""

    delay_ns: float
    start: str
    end: str
    report: str


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The slowest of all paths, and `between` the slowest from register to register."""

    slowest: Slowest
    between: Slowest | None


def analyse(netlist: Netlist, pdk: Pdk, *, period_ns: float, folder: Path) -> Timing:
    """Timing of a netlist; files are written in `folder`.

    Raises: PhysicalError where OpenSTA is missing or fails.
    """
    library = pdk.library
    period = period_ns / library.time_unit_ns
    (folder / "netlist.v").write_text(netlist.verilog)
    script = [
        *(f"read_liberty {name}" for name in pdk.unpack(folder)),
        "read_verilog netlist.v",
        f"link_design {netlist.top}",
        f"set period {period}",
        *_CONSTRAINTS.format(buffer=library.buffer, load=library.load).splitlines(),
    ]
    output = opensta.run(script, netlist.top, folder)
    sections = dict(re.findall(r"^== (\w+)\n(.*?)(?=^== )", output, re.M | re.S))
    slowest = _path(sections["all"], period, library.time_unit_ns)
    if slowest is None:
        raise PhysicalError(f"OpenSTA found no path in {netlist.top}")
    return Timing(
        slowest=slowest,
        between=_path(sections["between"], period, library.time_unit_ns),
    )


_CONSTRAINTS = """\
create_clock -name clk -period $period [get_ports clk]
set data {{}}
foreach port [all_inputs] {{
  if {{[get_property $port full_name] != "clk"}} {{ lappend data $port }}
}}
set_input_delay 0 -clock clk $data
set_output_delay 0 -clock clk [all_outputs]
set_driving_cell -lib_cell {buffer} $data
set_load {load} [all_outputs]
puts "== all"
report_checks -path_delay max -digits 4
puts "== between"
set from [all_registers -clock_pins]
set to [all_registers -data_pins]
if {{[llength $from]}} {{ report_checks -path_delay max -digits 4 -from $from -to $to }}
"""


def _path(text: str, period: float, unit_ns: float) -> Slowest | None:
    found = _PATH.search(text)
    if found is None:
        return None
    return Slowest(
        delay_ns=(period - float(found[4])) * unit_ns,
        start=_register(found[1]),
        end=_register(found[2]),
        report=text.strip(),
    )


def _register(name: str) -> str:
    """Without what Yosys adds: the kind of register, and marks of a port of a memory."""
    plain = name.replace("\\", "").replace("._TECHMAP_REPLACE_.", ".")
    return re.sub(r"\$_\w+$", "", plain)
