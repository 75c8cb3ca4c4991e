"""Executables on disk: in files that users keep, and in the cache of compiled graphs.

A graph is found in the cache by its operators, the shapes of its inputs, its constants, every
number of the chip and the sources of all that decides what a program is, so an entry never goes
stale. Nothing is pickled.
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import GraphModule, Node

from tapeout import cache_folder
from tapeout.chip import Chip, load, to_toml
from tapeout.isa import Program

from .artifact import ArtifactError, written_whole
from .executable import Executable, Output, Port
from .folder import make_room, sources
from .packing import Packed

FORMAT_VERSION = 1


# --- executables --------------------------------------------------------------------------------


def write(archive: zipfile.ZipFile, e: Executable) -> None:
    """Puts an executable into an archive."""
    meta = {
        "version": FORMAT_VERSION,
        "inputs": [_described(p) for p in e.inputs],
        "seeds": [_described(p) for p in e.seeds],
        "outputs": [
            [o.shape, o.strides, o.offset, o.port and _described(o.port), o.given]
            for o in e.outputs
        ],
        "constants": [[offset, data.nbytes] for offset, data in e.constants],
        "heap_bytes": e.heap_bytes,
        "packed": [[p.offset, p.bf16, p.recipe, p.sources] for p in e.packed],
        "kept": sorted(e.kept),
        "unread": sorted(e.unread),
        "written": e.written,
    }
    archive.writestr("executable.json", json.dumps(meta))
    archive.writestr("chip.toml", to_toml(e.chip))
    archive.writestr("program.zip", e.program.to_bytes())
    archive.writestr("constants.bin", b"".join(d.tobytes() for _, d in e.constants))


def read(archive: zipfile.ZipFile, chip: Chip | None = None) -> Executable:
    """The executable of an archive (for `chip`, if it is known what was written).

    Raises: ArtifactError, KeyError, ValueError.
    """
    meta = json.loads(archive.read("executable.json"))
    if meta["version"] != FORMAT_VERSION:
        raise ArtifactError(
            f"the file has format version {meta['version']}, this build reads {FORMAT_VERSION}: "
            f"compile the model again"
        )
    raw, constants = io.BytesIO(archive.read("constants.bin")), []
    for offset, size in meta["constants"]:
        constants.append((offset, np.frombuffer(raw.read(size), np.uint8)))
    if chip is None:
        with tempfile.TemporaryDirectory() as folder:
            chip_file = Path(folder) / "chip.toml"
            chip_file.write_bytes(archive.read("chip.toml"))
            chip = load(chip_file)
    return Executable(
        chip=chip,
        program=Program.from_bytes(archive.read("program.zip")),
        inputs=[_port(p) for p in meta["inputs"]],
        seeds=[_port(p) for p in meta["seeds"]],
        outputs=[
            Output(tuple(shape), tuple(strides), offset, port and _port(port), given)
            for shape, strides, offset, port, given in meta["outputs"]
        ],
        constants=constants,
        heap_bytes=meta["heap_bytes"],
        packed=[
            Packed(offset, bf16, recipe, tuple(sources))
            for offset, bf16, recipe, sources in meta["packed"]
        ],
        kept=frozenset(meta["kept"]),
        unread=frozenset(meta["unread"]),
        written=tuple(meta["written"]),
    )


def _described(p: Port) -> list[Any]:
    return [p.shape, str(p.dtype).removeprefix("torch."), p.offset, p.order]


def _port(described: Sequence[Any]) -> Port:
    shape, dtype, offset, order = described
    return Port(tuple(shape), getattr(torch, dtype), offset, tuple(order))


# --- the cache of graphs ------------------------------------------------------------------------


def hashed(chip: Chip, parts: Iterable[Any]) -> str:
    """The name of what `parts` describe; each says by its repr all there is to say."""
    found = hashlib.sha256()
    around = (torch.get_float32_matmul_precision(), repr(chip), torch.__version__, sources())
    for part in (*around, *parts):
        found.update(repr(part).encode())
    return found.hexdigest()[:32]


def graph_key(gm: GraphModule, chip: Chip, kept: Sequence[int]) -> str:
    """The name of a graph's entry."""
    parts: list[Any] = [list(kept)]
    numbers: dict[Node, int] = {}
    for node in gm.graph.nodes:
        args = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{numbers[n]}")
        numbers[node] = len(numbers)
        parts.append((node.op, str(node.target) if node.op != "placeholder" else "", args))
        value = node.meta.get("val")
        for t in value if isinstance(value, (list, tuple)) else [value]:
            parts.append((t.shape, t.stride(), t.dtype) if isinstance(t, torch.Tensor) else t)
        if node.op == "get_attr":
            constant = getattr(gm, str(node.target))
            if isinstance(constant, torch.Tensor):
                with unset_fake_temporarily():
                    parts.append((constant.shape, constant.dtype, constant.tolist()))
    return hashed(chip, parts)


def find(key: str, chip: Chip) -> tuple[Executable, list[Any]] | None:
    """(executable, what was kept with it); a damaged entry counts as none."""
    place = _place(key)
    try:
        with zipfile.ZipFile(place / "graph.zip") as archive:
            found = read(archive, chip), json.loads(archive.read("rest.json"))
    except (OSError, KeyError, ValueError, ArtifactError, zipfile.BadZipFile):
        return None
    with suppress(OSError):  # a cache that cannot be written can be read
        os.utime(place)
    return found


def keep(key: str, executable: Executable, rest: list[Any]) -> None:
    """Saves an entry; a full or read-only disk, or results that JSON has not, only cost the next
    run time."""
    place = _place(key)
    try:
        text = json.dumps(rest)
        place.mkdir(parents=True, exist_ok=True)
        with written_whole(place / "graph.zip") as scratch, zipfile.ZipFile(scratch, "w") as file:
            write(file, executable)
            file.writestr("rest.json", text)
        make_room(place.parent, place)
    except (OSError, TypeError):
        shutil.rmtree(place, ignore_errors=True)


def link(name: str, key: str) -> None:
    """Makes an entry known by a second name."""
    place = _place(name)
    with suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        with written_whole(place / "key.txt") as scratch:
            scratch.write_text(key)


def linked(name: str) -> str | None:
    """The key of the entry with a second name."""
    place = _place(name)
    try:
        key = (place / "key.txt").read_text()
    except OSError:
        return None
    with suppress(OSError):
        os.utime(place)
    return key


def _place(key: str) -> Path:
    return cache_folder() / f"graph-{key}"
