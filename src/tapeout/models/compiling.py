"""Compiles a causal language model: a decode and a prefill program over the same weights."""

import time
from collections.abc import Callable
from typing import Any

from tapeout.chip import Chip
from tapeout.compiler.artifact import Artifact, Entry
from tapeout.compiler.constants import Constants
from tapeout.compiler.lower import Lowered, lower
from tapeout.lang import ChipTooSmall

WEIGHTS = ("bf16", "packed")


def compile_decoder(
    module: Any,
    chip: Chip,
    *,
    name: str = "model",
    packed: Any = None,
    weights: str = "bf16",
    batch: int = 1,
    chunk: int | None = None,
    context: int = 1024,
    all_logits: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> Artifact:
    """Compiles a Hugging Face causal LM.

    Args:
        module: the model, float32, in eval mode.
        packed: parameter name -> blocks as stored (`models.LoadedModel.packed`).
        weights: "bf16", or "packed" to keep blocks packed in HBM where there are some.
        batch: sequences that decode together.
        chunk: tokens of a prefill launch, at most lanes (default: lanes, halved until the chip's
            memories hold what they need).
        context: positions of the KV cache, a multiple of lanes.
        all_logits: prefill gives logits of every token of a whole chunk, not of one chosen token.
        progress: called with what is being done.

    Raises:
        UnsupportedModel, ChipTooSmall, ValueError: each with the rule and the way out.
    """
    from tapeout.compiler.graph import raise_graph
    from tapeout.models.decoder import Logits, export

    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, not {weights!r}")
    start = time.perf_counter()
    chunks = [min(chunk, chip.lanes)] if chunk else _halves(chip.lanes)
    constants: Constants | None = None

    def lowered(kind: str, sequences: int, tokens: int, logits: Logits) -> Lowered:
        nonlocal constants
        progress(f"exporting {kind}")
        exported = export(
            module, batch=sequences, tokens=tokens, max_context=context, logits=logits
        )
        graph = raise_graph(exported, context)
        if constants is None:
            parameters = {n: t.detach().numpy() for n, t in exported.state_dict.items()}
            blocks = {f"model.{n}": b for n, b in (packed or {}).items()}
            constants = Constants(parameters, blocks, weights, chip.lanes)
        progress(f"lowering {kind}")
        return lower(chip, graph, constants)

    decode = lowered("decode", batch, 1, Logits.ALL)
    for tokens in chunks:
        try:
            prefill = lowered("prefill", 1, tokens, Logits.ALL if all_logits else Logits.SELECT)
            break
        except ChipTooSmall:
            if tokens == chunks[-1]:
                raise
    assert constants is not None
    progress("packing weights")
    image = constants.image()
    return Artifact(
        name=name, chip=chip, weights=weights, batch=batch, context=context, vocab=decode.vocab,
        kv_bytes=decode.kv_bytes, image=image,
        programs={"decode": _entry(decode), "prefill": _entry(prefill)},
        meta={"compile_s": time.perf_counter() - start, "chunk": prefill.tokens},
    )  # fmt: skip


def _halves(lanes: int) -> list[int]:
    """Chunks to try: lanes (a power of two), half of it and so on down to two tokens."""
    return [lanes >> i for i in range(lanes.bit_length() - 1)]


def _entry(item: Lowered) -> Entry:
    return Entry(
        program=item.program, args=item.args, batch=item.batch, tokens=item.tokens,
        output_rows=item.output_rows, group_width=item.group_width, weight_bytes=item.weight_bytes,
        kv_bytes_per_position=item.kv_bytes_per_position,
    )  # fmt: skip


__all__ = ["WEIGHTS", "compile_decoder"]
