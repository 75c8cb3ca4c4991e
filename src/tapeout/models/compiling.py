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
    lowered: dict[str, Lowered] = {}
    prefill_logits = Logits.ALL if all_logits else Logits.SELECT
    for kind, sequences, sizes, logits in (
        ("decode", batch, [1], Logits.ALL),
        ("prefill", 1, chunks, prefill_logits),
    ):
        for tokens in sizes:
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
            try:
                lowered[kind] = lower(chip, graph, constants)
            except ChipTooSmall:
                if tokens == sizes[-1]:
                    raise
                continue
            break
    assert constants is not None
    progress("packing weights")
    image = constants.image()
    decode = lowered["decode"]
    return Artifact(
        name=name, chip=chip, weights=weights, batch=batch, context=context, vocab=decode.vocab,
        kv_bytes=decode.kv_bytes, image=image,
        programs={kind: _entry(item) for kind, item in lowered.items()},
        meta={"compile_s": time.perf_counter() - start, "chunk": lowered["prefill"].tokens},
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
