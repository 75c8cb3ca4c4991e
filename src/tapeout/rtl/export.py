"""A chip as a folder of Verilog that others can build on.

Contract: `export(chip, folder)` writes the top module, one file for each module below it, models of
the memory macros apart from the rest, a file list, the register map (Markdown, JSON, C header) and
a guide; whole or not at all. Verilator's and slang's linters have nothing to say about it.
"""

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tapeout.chip import Chip, to_toml

from .boxes import Boxes
from .ram import RamShape
from .shell.documents import c_header, guide, map_json, map_markdown
from .shell.top import TOP, Top
from .verilog import modules

LOGIC, MEMORIES, FILES = "rtl", "memories", "files.f"


class ExportError(ValueError):
    """The folder cannot be written; the message says why and the way out."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        memories: how often each memory macro is used, by its name.
    """

    folder: Path
    modules: int
    bytes: int
    memories: dict[str, int]


def export(chip: Chip, folder: Path, *, force: bool = False) -> Exported:
    """Writes the chip to `folder`, which must be empty or absent unless `force` replaces it.

    Raises: ExportError; ChipError where no AXI port can carry the chip's runs.
    """
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ExportError(f"{folder} is not empty: name another folder, or replace it with --force")
    top = Top(chip)
    text = Boxes(clean=True).convert(top, TOP)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        work = Path(scratch) / "whole"
        exported = _write(top, text, work)
        if folder.is_dir():
            shutil.rmtree(folder)
        work.replace(folder)
    return Exported(folder, exported.modules, exported.bytes, exported.memories)


def _write(top: Top, text: str, work: Path) -> Exported:
    for part in (LOGIC, MEMORIES):
        (work / part).mkdir(parents=True)
    shapes = _memories(top)
    names = {shape.name for shape in shapes}
    paths = []
    for name, module in modules(text):
        path = Path(MEMORIES if name in names else LOGIC) / f"{_file_name(name)}.v"
        (work / path).write_text(module)
        paths.append(path)
    (work / FILES).write_text("".join(f"{path}\n" for path in sorted(paths, key=str)))
    (work / "chip.toml").write_text(to_toml(top.chip))
    (work / "registers.md").write_text(map_markdown(top.map))
    (work / "registers.json").write_text(map_json(top.map))
    (work / "registers.h").write_text(c_header(top.map))
    (work / "README.md").write_text(guide(top, shapes))
    counts = {shape.name: count for shape, count in shapes.items()}
    return Exported(work, len(paths), len(text), counts)


def _file_name(module: str) -> str:
    return re.sub(r"[^\w.-]", "_", module)


def _memories(top: Top) -> dict[RamShape, int]:
    """The macros and how often the chip has each."""
    counts: dict[RamShape, int] = {}
    for ram in top.core.rams():
        counts[ram.shape] = counts.get(ram.shape, 0) + 1
    return counts
