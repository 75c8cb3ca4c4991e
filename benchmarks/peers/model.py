"""SmolLM2-135M compiled for the benchmarks, kept in `benchmarks/.cache` between runs."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import tapeout
from tapeout.chip import Chip, to_toml
from tapeout.compiler.artifact import Artifact, ArtifactError

MODEL = "smollm2-135m"
CACHE = Path(__file__).parent.parent / ".cache"
_COMPILER = ("chip", "numerics", "isa", "lang", "kernels", "compiler", "models")


def compiled(
    chip: Chip,
    *,
    weights: str = "bf16",
    batch: int = 1,
    context: int = 256,
    all_logits: bool = False,
) -> tuple[Artifact, float]:
    """(the model, with logits of every token of a prefill if asked for; seconds it took).

    The key covers the chip, the options and the compiler's sources, so that an edit compiles anew.
    """
    start = time.perf_counter()
    options = [weights, batch, context, all_logits]
    place = CACHE / f"{MODEL}-{weights}-b{batch}-{key_of(chip, options)}"
    try:
        return Artifact.read(place), time.perf_counter() - start
    except ArtifactError:
        pass
    from tapeout.models import load
    from tapeout.models.compiling import compile_decoder

    loaded = load(MODEL)
    artifact = compile_decoder(
        loaded.module, chip, name=MODEL, packed=loaded.packed, weights=weights, batch=batch,
        context=context, all_logits=all_logits,
    )  # fmt: skip
    make_cache()
    artifact.save(place)
    return artifact, time.perf_counter() - start


def make_cache() -> None:
    """The folder of compiled models, which git ignores."""
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")


def key_of(chip: Chip, options: list[Any]) -> str:
    """What names a compiled model: the chip, options and the compiler's sources."""
    found = hashlib.sha256(json.dumps([to_toml(chip), options]).encode())
    root = Path(tapeout.__file__).parent
    for package in _COMPILER:
        for path in sorted((root / package).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def prompt_tokens(count: int) -> list[int]:
    """Token ids that no two runs disagree on; what they say does not matter to time."""
    return [(7919 * i + 13) % 49152 for i in range(count)]
