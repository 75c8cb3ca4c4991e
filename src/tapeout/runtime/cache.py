"""Compiled models on disk, so that a model is compiled once for a chip and its options.

Contract: `compiled` gives the artifact of a model, compiling it where the cache has none. An entry
is found by the files of the model (path, size, time of change, first megabyte), every number of the
chip, the options and the sources of all that decides what a compiled program is; so an entry never
goes stale, it is only no longer asked for. Reading one imports neither torch nor transformers.
"""

import gc
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tapeout import cache_folder
from tapeout.chip import Chip, to_toml
from tapeout.compiler.artifact import Artifact, ArtifactError
from tapeout.compiler.folder import make_room, sources
from tapeout.models import ModelError, ModelSource
from tapeout.models.tokenizer import Tokenizer

DEFAULT_CONTEXT = 1024  # positions, where the model has as many
STEPS = 7  # calls of `progress` while compiling

_HEAD_BYTES = 1 << 20

Progress = Callable[[str], None]


class CompileError(Exception):
    """A model that cannot be compiled here; the message is one line for a user."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to compile; `context` None takes `DEFAULT_CONTEXT` or what the model has."""

    weights: str = "bf16"
    batch: int = 1
    context: int | None = None
    chunk: int | None = None


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """An artifact with its tokenizer, and what it took to get it, in seconds."""

    artifact: Artifact
    seconds: float
    from_cache: bool


def compiled(
    source: ModelSource,
    chip: Chip,
    options: Options,
    *,
    check: Callable[[Any], None] = lambda tokenizer: None,
    progress: Progress = lambda message: None,
    folder: Path | None = None,
) -> Compiled:
    """The artifact of `source` for `chip`, from the cache or compiled now and kept.

    `check` is called with the model's tokenizer before anything slow begins: what it raises saves
    compiling for nothing. `folder` replaces the cache's own.

    Raises: ModelError, CompileError, UnsupportedModel, ChipTooSmall; each one line for a user.
    """
    start = time.perf_counter()
    folder = folder or cache_folder()
    place = folder / key(source, chip, options)
    artifact = _read(place)
    if artifact is not None:
        check(artifact.tokenizer)
        return Compiled(artifact=artifact, seconds=time.perf_counter() - start, from_cache=True)
    from tapeout.models import load_tokenizer

    tokenizer = load_tokenizer(source)
    check(tokenizer)
    artifact = _compile(source, chip, options, progress)
    artifact.tokenizer = tokenizer
    progress("keeping the result")
    _keep(artifact, place)
    gc.collect()  # the graphs of torch.export hold the float32 weights in cycles
    artifact = _read(place) or artifact  # maps the weights instead of holding them
    return Compiled(artifact=artifact, seconds=time.perf_counter() - start, from_cache=False)


def key(source: ModelSource, chip: Chip, options: Options) -> str:
    """The entry's directory name: the model's name for people, a hash for the rest."""
    files = []
    for file in source.files():
        with file.open("rb") as stream:
            head = hashlib.sha256(stream.read(_HEAD_BYTES)).hexdigest()
        stat = file.stat()
        files.append([str(file.resolve()), stat.st_size, stat.st_mtime_ns, head])
    parts = [files, to_toml(chip), asdict(options), sources()]
    name = "".join(c if c.isalnum() or c in "-." else "_" for c in source.name)[:48]
    return f"{name}-{chip.name}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}"


def _read(place: Path) -> Artifact | None:
    """The entry if there is a whole one; a damaged one counts as none."""
    if not (place / "artifact.json").is_file():
        return None
    try:
        artifact = Artifact.read(place, Tokenizer.read)
        if artifact.tokenizer is None:
            return None
    except (ArtifactError, ModelError, OSError):
        return None
    with suppress(OSError):  # a cache that cannot be written can be read
        os.utime(place)
    return artifact


def _compile(source: ModelSource, chip: Chip, options: Options, progress: Progress) -> Artifact:
    progress(f"loading {source.name}")
    try:
        from tapeout.models.compiling import compile_decoder
        from tapeout.models.loading import load

        loaded = load(source)
    except ModuleNotFoundError as error:
        raise CompileError(
            f"compiling a model needs the package {error.name}, which is not installed: run "
            "`pip install 'tapeout[models,torch]'` (a model compiled before runs without)"
        ) from error
    return compile_decoder(
        loaded.module,
        chip,
        name=source.name,
        packed=loaded.packed,
        weights=options.weights,
        batch=options.batch,
        chunk=options.chunk,
        context=_context(options, loaded.config, chip),
        progress=progress,
    )


def _context(options: Options, config: Any, chip: Chip) -> int:
    """Positions of the KV cache: whole tiles of `lanes` positions."""
    longest = getattr(config, "max_position_embeddings", None) or DEFAULT_CONTEXT
    if options.context is None:
        return max(min(DEFAULT_CONTEXT, longest) // chip.lanes, 1) * chip.lanes
    return -(-options.context // chip.lanes) * chip.lanes


def _keep(artifact: Artifact, place: Path) -> None:
    """Saves the entry and makes room; a full or read-only disk only costs the next run time."""
    try:
        artifact.save(place)
        make_room(place.parent, place)
    except OSError:
        if not (place / "artifact.json").is_file():  # another process may have kept the same
            shutil.rmtree(place, ignore_errors=True)
