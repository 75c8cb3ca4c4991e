"""Timing and power with OpenSTA, in a process of its own.

Contract: ideal clock, no wires; inputs arrive with the clock edge behind a buffer, and outputs are
due at the next. A path is named by the registers, or ports, at its ends.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .pdk import Pdk, PhysicalError
from .synthesis import Netlist

TIMEOUT_S = 1800
DEFAULT_ACTIVITY = 0.2  # changes of a signal in a cycle, where no program was measured

_NUMBER = r"(-?[\d.]+(?:[eE][-+]?\d+)?)"
_PATH = re.compile(
    rf"Startpoint: (\S+)\s.*?Endpoint: (\S+)\s.*?{_NUMBER}\s+data arrival time"
    rf".*?{_NUMBER}\s+slack",
    re.S,
)
_TOTAL = re.compile(rf"^Total\s+{_NUMBER}\s+{_NUMBER}\s+{_NUMBER}\s+{_NUMBER}", re.M)


@dataclass(frozen=True, kw_only=True)
class Slowest:
    """A path: `delay_ns` is the shortest clock period that it allows; `report` its cells."""

    delay_ns: float
    start: str
    end: str
    report: str


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Power is that at the clock given; `between` the slowest path from register to register."""

    slowest: Slowest
    between: Slowest | None
    power_mw: float
    leakage_mw: float


def tool_version() -> str:
    """Raises: PhysicalError where OpenSTA is missing."""
    if shutil.which("sta") is None:
        raise PhysicalError(
            "timing needs OpenSTA, which is not installed: run `apt-get install opensta`"
        )
    return subprocess.run(["sta", "-version"], capture_output=True, text=True).stdout.strip()


def analyse(
    netlist: Netlist, pdk: Pdk, *, period_ns: float, activity: Mapping[str, tuple[float, float]],
    folder: Path,
) -> Timing:  # fmt: skip
    """Timing and power of a netlist.

    Args:
        activity: (changes a cycle, share of cycles that it is 1) by pin `instance/pin`, or port;
            empty: `DEFAULT_ACTIVITY` of every signal.

    Raises: PhysicalError where OpenSTA is missing or fails.
    """
    tool_version()
    library = pdk.library
    period = period_ns / library.time_unit_ns
    for name, content in pdk.texts().items():
        (folder / name).write_bytes(content)
    (folder / "netlist.v").write_text(netlist.verilog)
    script = [
        *(f"read_liberty {name}" for name in pdk.texts()),
        "read_verilog netlist.v",
        f"link_design {netlist.top}",
        f"set period {period}",
        *_CONSTRAINTS.format(buffer=library.buffer, load=library.load).splitlines(),
    ]
    if activity:
        entries = "\n".join(f"{{{name}}} {{{a} {d}}}" for name, (a, d) in activity.items())
        script.append(f"array set activity {{{entries}}}")
        script += _ANNOTATE.splitlines()
    else:  # one activity for all signals goes above those of single ones
        script.append(f"set_power_activity -global -activity {DEFAULT_ACTIVITY} -duty 0.5")
    script += ['puts "== power"', "report_power -digits 6", 'puts "== end"', "exit"]
    (folder / "script.tcl").write_text("\n".join(script) + "\n")
    try:
        result = subprocess.run(
            ["sta", "-no_splash", "-exit", "script.tcl"],
            cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PhysicalError(f"OpenSTA took more than {TIMEOUT_S} s for {netlist.top}") from None
    output = result.stdout + result.stderr
    errors = [line for line in output.splitlines() if line.startswith("Error")]
    if errors or "== end" not in output:
        raise PhysicalError(
            f"OpenSTA failed on {netlist.top}: {errors[0] if errors else 'it ended early'}"
        )
    sections = dict(re.findall(r"^== (\w+)\n(.*?)(?=^== )", output, re.M | re.S))
    slowest = _path(sections["all"], period, library.time_unit_ns)
    total = _TOTAL.search(sections["power"])
    if slowest is None or total is None:
        raise PhysicalError(f"OpenSTA found no path or no power in {netlist.top}")
    return Timing(
        slowest=slowest,
        between=_path(sections["between"], period, library.time_unit_ns),
        power_mw=1e3 * float(total[4]),
        leakage_mw=1e3 * float(total[3]),
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
report_checks -path_delay max -digits 4 -from $from -to $to
"""

# Patterns of names would take brackets for more than they are, so names are looked up.
# The command for pins fails in OpenSTA of 2019; what it is to call does not.
_ANNOTATE = """\
foreach port [all_inputs] {
  set name [string map {\\\\ ""} [get_property $port full_name]]
  if {[info exists activity($name)]} {
    lassign $activity($name) changes duty
    set_power_activity -input_ports $port -activity $changes -duty $duty
  }
}
foreach cell [get_cells *] {
  foreach pin [get_pins -of_objects $cell] {
    set name [string map {\\\\ ""} [get_property $pin full_name]]
    if {[info exists activity($name)]} {
      lassign $activity($name) changes duty
      ::sta::set_power_pin_activity $pin $changes $duty
    }
  }
}
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
    """Yosys adds the kind of register to the name of what it drives."""
    return re.sub(r"\$_\w+$", "", name.replace("\\", ""))
