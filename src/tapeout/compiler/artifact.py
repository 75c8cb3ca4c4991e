"""Compiled models on disk: a directory of JSON, TOML, zip and raw bytes; nothing is pickled."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tapeout.chip import Chip, ChipError, load, to_toml
from tapeout.isa import EncodingError, Program

FORMAT_VERSION = 1


@contextmanager
def written_whole(path: Path | str) -> Iterator[Path]:
    """A file beside `path` to write, which takes its place at the end; gone if anything fails."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tapeout-")
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


class ArtifactError(Exception):
    """A directory that is not a compiled model, or one of another version."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One program of an artifact and the shape of a launch.

    Attributes:
        args: names of the int32 launch arguments, in order.
        batch, tokens: sequences, and new tokens of each, in a launch.
        output_rows: rows of logits that a launch gives.
        group_width: columns of logits that share one reported maximum.
        weight_bytes: bytes of weights that a launch needs, each once.
        kv_bytes_per_position: bytes of K and V that a position of all sequences takes.
    """

    program: Program
    args: list[str]
    batch: int
    tokens: int
    output_rows: int
    group_width: int
    weight_bytes: int
    kv_bytes_per_position: int


@dataclass(kw_only=True)
class Artifact:
    """A model compiled for a chip.

    `programs` has "decode" (one token of `batch` sequences) and "prefill" (a chunk of one
    sequence).
    `image` is the read-only weights segment. `tokenizer`, if any, has `save(directory)`.
    """

    name: str
    chip: Chip
    weights: str
    batch: int
    context: int
    vocab: int
    kv_bytes: int
    programs: dict[str, Entry]
    image: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)
    tokenizer: Any = None

    def save(self, directory: Path) -> None:
        """Writes the artifact whole or not at all."""
        directory = Path(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=directory.parent, prefix=".tapeout-"))
        try:
            (scratch / "chip.toml").write_text(to_toml(self.chip))
            entries = {}
            for name, entry in self.programs.items():
                (scratch / f"{name}.zip").write_bytes(entry.program.to_bytes())
                fields = {k: v for k, v in vars(entry).items() if k != "program"}
                entries[name] = fields
            if self.tokenizer is not None:
                self.tokenizer.save(scratch)
            self.image.tofile(scratch / "weights.bin")
            meta = {
                "version": FORMAT_VERSION, "name": self.name, "weights": self.weights,
                "batch": self.batch, "context": self.context, "vocab": self.vocab,
                "kv_bytes": self.kv_bytes, "programs": entries, "meta": self.meta,
                "tokenizer": self.tokenizer is not None,
                "image_bytes": self.image.nbytes,
            }  # fmt: skip
            (scratch / "artifact.json").write_text(json.dumps(meta, indent=1))
            if directory.exists():
                shutil.rmtree(directory)
            os.replace(scratch, directory)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    @classmethod
    def read(
        cls, directory: Path, read_tokenizer: Callable[[Path], Any] | None = None
    ) -> "Artifact":
        """Reads an artifact; `read_tokenizer` reads the tokenizer saved with it, if one is wanted.

        Raises ArtifactError where the directory is not an artifact of this version.
        """
        directory = Path(directory)
        try:
            meta = json.loads((directory / "artifact.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ArtifactError(f"{directory} is not a compiled model: {error}") from None
        if meta.get("version") != FORMAT_VERSION:
            raise ArtifactError(
                f"{directory} has format version {meta.get('version')}, this build reads "
                f"{FORMAT_VERSION}: compile the model again"
            )
        try:
            return cls._from_files(directory, meta, read_tokenizer)
        except (OSError, EncodingError, ChipError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{directory} is a damaged compiled model ({error}): delete it and compile again"
            ) from None

    @classmethod
    def _from_files(
        cls, directory: Path, meta: dict[str, Any], read_tokenizer: Callable[[Path], Any] | None
    ) -> "Artifact":
        image = np.memmap(directory / "weights.bin", np.uint8, mode="r")
        if image.nbytes != meta["image_bytes"]:
            raise ValueError(f"weights.bin has {image.nbytes} bytes, not {meta['image_bytes']}")
        tokenizer = None
        if meta["tokenizer"] and read_tokenizer is not None:
            tokenizer = read_tokenizer(directory)
        programs = {
            name: Entry(
                program=Program.from_bytes((directory / f"{name}.zip").read_bytes()), **fields
            )
            for name, fields in meta["programs"].items()
        }
        return cls(
            name=meta["name"], chip=load(directory / "chip.toml"), weights=meta["weights"],
            batch=meta["batch"], context=meta["context"], vocab=meta["vocab"],
            kv_bytes=meta["kv_bytes"], programs=programs,
            image=image, meta=meta["meta"],
            tokenizer=tokenizer,
        )  # fmt: skip
