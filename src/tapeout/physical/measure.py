"""A part in gates: area, paths and power, measured once and found in the cache after.

Contract: an entry is found by the part's Verilog, the library, the clock, this package's
sources and the tools' versions, and one of power by the program's activity, too: it never goes
stale. Entries lie in `$XDG_CACHE_HOME/tapeout/gates` (`~/.cache/tapeout/gates`).
"""

import gzip
import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tapeout import cache_folder

from . import opensta, synthesis
from . import power as sta_power
from . import timing as sta
from .activity import Activity
from .parts import Part
from .pdk import Pdk
from .power import Power
from .synthesis import Netlist
from .timing import Slowest, Timing
from .tools import keep


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One instance of a part. Cells and area leave out what is a part of its own."""

    cells: int
    flops: int
    area_um2: float
    timing: Timing

    @property
    def f_max_ghz(self) -> float:
        return 1 / self.timing.slowest.delay_ns


def measure(part: Part, pdk: Pdk, *, clock_ghz: float, folder: Path | None = None) -> Measured:
    """Synthesises a part and analyses it, or finds what was measured.

    Raises: PhysicalError where a tool is missing or fails.
    """
    return _measured(_place(part, pdk, clock_ghz, folder), part, pdk, clock_ghz)


def _measured(place: Path, part: Part, pdk: Pdk, clock_ghz: float) -> Measured:
    if place.is_file():
        return _read(json.loads(place.read_text()))
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tapeout-gates-") as scratch:
        netlist, found = _mapped(part, part.verilog, pdk, 1 / clock_ghz, Path(scratch))
    known = pdk.cells()
    cells = {
        kind: count
        for kind, count in netlist.total(part.inside).items()
        if kind in known  # else a box
    }
    measured = Measured(
        cells=sum(cells.values()),
        flops=sum(count for kind, count in cells.items() if known[kind].is_flop),
        area_um2=sum(known[kind].area_um2 * count for kind, count in cells.items()),
        timing=found,
    )
    keep(_netlist_of(place), gzip.compress(json.dumps(asdict(netlist)).encode()))
    keep(place, json.dumps(asdict(measured)).encode())
    return measured


def measure_power(
    part: Part, pdk: Pdk, activity: Activity, *, clock_ghz: float, folder: Path | None = None
) -> Power:
    """Power of one instance of a part while a program runs, as that at `part.at` toggles.

    Raises: PhysicalError where a tool is missing or fails.
    """
    place = _place(part, pdk, clock_ghz, folder)
    _measured(place, part, pdk, clock_ghz)
    nets = activity.within(part.at)
    toggles = hashlib.sha256(repr(sorted(nets.items(), key=lambda n: n[0])).encode())
    kept = place.with_suffix(f".{activity.program}-{toggles.hexdigest()[:12]}.json")
    if kept.is_file():
        return Power(**json.loads(kept.read_text()))
    netlist = Netlist(**json.loads(gzip.decompress(_netlist_of(place).read_bytes())))
    with tempfile.TemporaryDirectory(prefix="tapeout-power-") as scratch:
        power = sta_power.analyse(
            netlist, pdk, nets, clock_ghz=clock_ghz, inside=part.inside, folder=Path(scratch)
        )
    keep(kept, json.dumps(asdict(power)).encode())
    return power


def _place(part: Part, pdk: Pdk, clock_ghz: float, folder: Path | None) -> Path:
    versions = (synthesis.tool_version(), opensta.version())
    key = hashlib.sha256(
        repr((part.verilog, part.inside, part.boxes, pdk.digest(), clock_ghz, versions)).encode()
    )
    for source in sorted(Path(__file__).parent.glob("*.py")):
        key.update(source.read_bytes())
    return (folder or cache_folder() / "gates") / f"{part.name}-{key.hexdigest()[:24]}.json"


def _netlist_of(place: Path) -> Path:
    return place.with_suffix(".netlist.gz")


def _mapped(
    part: Part, verilog: str, pdk: Pdk, period_ns: float, folder: Path
) -> tuple[Netlist, Timing]:
    """The small netlist if it meets the clock, else the faster of it and one made for speed."""
    found = []
    for is_fast in (False, True):
        netlist = synthesis.synthesise(
            verilog, part.name, pdk, boxes=part.boxes, period_ns=period_ns, folder=folder,
            is_fast=is_fast,
        )  # fmt: skip
        timing = sta.analyse(netlist, pdk, period_ns=period_ns, folder=folder)
        found.append((netlist, timing))
        if timing.slowest.delay_ns <= period_ns:
            return netlist, timing
    return min(found, key=lambda each: each[1].slowest.delay_ns)


def _read(entry: dict) -> Measured:
    found = entry.pop("timing")
    slowest, between = found.pop("slowest"), found.pop("between")
    timing = Timing(
        slowest=Slowest(**slowest), between=Slowest(**between) if between else None, **found
    )
    return Measured(timing=timing, **entry)
