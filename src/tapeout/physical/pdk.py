"""Cell libraries: what synthesis and timing need to know of a process.

Contract: `find(folder)` recognises a library by the liberty files that lie in the folder, and never
changes them. Compressed ones are unpacked where a run works.
"""

import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

OSU018 = "osu018"
_OSU018_FOLDER = Path("/usr/share/qflow/tech/osu018")


class PhysicalError(Exception):
    """Gates cannot be made here; the message is one line that says what to do."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """What is known of a library, besides its liberty files.

    Attributes:
        files: patterns of its liberty files; all must be there.
        avoid: cells that are not to be used in logic (too weak, or for clocks).
        avoid_flops: flip-flops that are not to be used.
        buffer, tie_high, tie_low: cells; ties with their pins.
        time_unit_ns, load: of one unit of time, and of an output port in units of capacitance.
    """

    name: str
    process: str
    files: tuple[str, ...]
    avoid: tuple[str, ...] = ()
    avoid_flops: tuple[str, ...] = ()
    buffer: str
    tie_high: tuple[str, str] | None
    tie_low: tuple[str, str] | None
    time_unit_ns: float
    load: float


LIBRARIES = (
    Library(
        name="asap7",
        process="ASAP7, 7 nm, predictive, RVT TT 0.7 V",
        files=tuple(
            f"asap7sc7p5t_{kind}_RVT_TT_nldm_*.lib*"
            for kind in ("AO", "INVBUF", "OA", "SEQ", "SIMPLE")
        ),
        avoid=("*xp*_ASAP7*", "*CKINV*"),
        avoid_flops=("DFFHQx4_ASAP7_75t_R",),
        buffer="BUFx2_ASAP7_75t_R",
        tie_high=("TIEHIx1_ASAP7_75t_R", "H"),
        tie_low=("TIELOx1_ASAP7_75t_R", "L"),
        time_unit_ns=1e-3,
        load=1.0,
    ),
    Library(
        name="gt2n",
        process="GT2N, 2 nm, predictive, LVT TT 0.7 V",
        files=("w31_lvt.lib*",),
        buffer="gt2_6t_buf_x2_w31_lvt",
        tie_high=("gt2_6t_tiehigh_w31_lvt", "Y"),
        tie_low=("gt2_6t_tielow_w31_lvt", "Y"),
        time_unit_ns=1e-3,
        load=0.0005,
    ),
    Library(
        name="ihp-sg13g2",
        process="IHP SG13G2, 130 nm, typical 1.2 V",
        files=("sg13g2_typ.lib*",),
        avoid=("sg13g2_lgcp_1", "sg13g2_sighold", "sg13g2_slgcp_1", "sg13g2_dlygate*"),
        buffer="sg13g2_buf_4",
        tie_high=("sg13g2_tiehi", "L_HI"),
        tie_low=("sg13g2_tielo", "L_LO"),
        time_unit_ns=1.0,
        load=0.006,
    ),
    Library(
        name=OSU018,
        process="OSU018, 180 nm, typical 1.8 V",
        files=("osu018_stdcells.lib",),
        avoid=("CLKBUF*", "TBUF*"),
        buffer="BUFX4",
        tie_high=None,
        tie_low=None,
        time_unit_ns=1.0,
        load=0.01,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is counted of a cell.

    Attributes:
        data_load: of a flop, the capacitance of its input D, in units of the library.
    """

    area_um2: float
    is_flop: bool
    data_load: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Pdk:
    """A library that was found: `paths` are its liberty files."""

    library: Library
    paths: tuple[Path, ...]

    @cached_property
    def texts(self) -> dict[str, bytes]:
        """The liberty files, unpacked once, by name."""
        found = {}
        for path in self.paths:
            content = path.read_bytes()
            if path.suffix == ".gz":
                content = gzip.decompress(content)
            found[path.name.removesuffix(".gz")] = content
        return found

    def unpack(self, folder: Path) -> list[str]:
        """Writes the liberty files to a folder; their names."""
        for name, content in self.texts.items():
            (folder / name).write_bytes(content)
        return [*self.texts]

    def digest(self) -> str:
        found = hashlib.sha256(repr(self.library).encode())
        for name, content in self.texts.items():
            found.update(name.encode() + b"\0" + content)
        return found.hexdigest()

    def cells(self) -> dict[str, Cell]:
        """All cells by name."""
        line = re.compile(
            r'^\s*(?:cell\s*\(\s*"?([\w$]+)"?\s*\)|area\s*:\s*"?([-+.\deE]+)|(ff)\s*\()'
            r'|\bpin\s*\(\s*"?(\w+)"?\s*\)|(?<!\w)capacitance\s*:\s*"?([-+.\deE]+)',
            re.M,
        )
        areas: dict[str, float] = {}
        flops: set[str] = set()
        loads: dict[str, float] = {}
        for content in self.texts.values():
            name = pin = ""
            for match in line.finditer(content.decode(errors="replace")):
                name = match[1] or name
                if match[2]:
                    areas.setdefault(name, float(match[2]))
                elif match[3]:
                    flops.add(name)
                elif match[4]:
                    pin = match[4]
                elif match[5] and pin == "D":
                    loads.setdefault(name, float(match[5]))
        return {
            name: Cell(area_um2=area, is_flop=name in flops, data_load=loads.get(name, 0.0))
            for name, area in areas.items()
        }


def find(folder: str) -> Pdk:
    """The library in a folder, or Debian's where `folder` is "osu018".

    Raises: PhysicalError where there is none.
    """
    place = _OSU018_FOLDER if folder == OSU018 else Path(folder)
    if not place.is_dir():
        if folder == OSU018:
            raise PhysicalError("OSU018 is not installed: run `apt-get install qflow-tech-osu018`")
        raise PhysicalError(
            f"--pdk {folder}: no such folder; give one with the liberty files of ASAP7, GT2N or "
            "IHP SG13G2 (flow/platforms of OpenROAD-flow-scripts), or `--pdk osu018` after "
            "`apt-get install qflow-tech-osu018`"
        )
    for library in LIBRARIES:
        paths = [min(place.glob(pattern), default=None) for pattern in library.files]
        if all(paths):
            return Pdk(library=library, paths=tuple(p for p in paths if p))
    known = ", ".join(f"{b.name} ({b.files[0]})" for b in LIBRARIES)
    raise PhysicalError(f"--pdk {folder}: no cell library is recognised there; known are {known}")
