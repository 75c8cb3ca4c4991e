"""Greedy decode of SmolLM2-135M by Hugging Face transformers: bf16, one thread.

Request: `prompt` (tokens), `tokens`. One line for each kind of cache, with tokens a second of the
steps after the prefill.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from model import MODEL, prompt_tokens

from tapeout.models import load


def decode(module: Any, kind: str, prompt: list[int], tokens: int) -> dict[str, Any]:
    """`tokens` steps of one new token each; their median time, as the machine may be busy."""
    from transformers import DynamicCache, StaticCache

    if kind == "static":
        cache = StaticCache(config=module.config, max_cache_len=len(prompt) + tokens + 1)
    else:
        cache = DynamicCache(config=module.config)
    spans, cpu_spans = [], []
    with torch.inference_mode():
        start, cpu = time.perf_counter(), time.process_time()
        ids, at = torch.tensor([prompt]), 0
        for _ in range(tokens + 1):
            positions = torch.arange(at, at + ids.shape[1])
            logits = module(
                input_ids=ids, past_key_values=cache, use_cache=True,
                position_ids=positions[None], cache_position=positions, logits_to_keep=1,
            ).logits  # fmt: skip
            at += ids.shape[1]
            ids = logits[:, -1].argmax(-1, keepdim=True)
            spans.append(time.perf_counter() - start)
            cpu_spans.append(time.process_time() - cpu)
            start, cpu = time.perf_counter(), time.process_time()
    steps = sorted(spans[1:])
    return {
        "cache": kind,
        "prefill_s": spans[0],
        "step_s": steps[len(steps) // 2],
        "best_step_s": steps[0],
        "best_step_cpu_s": min(cpu_spans[1:]),
        "tokens_per_s": 1 / steps[len(steps) // 2],
        "best_tokens_per_s": 1 / steps[0],
    }


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    module = load(MODEL).module.to(torch.bfloat16)
    with Path(request["result"]).open("w") as out:
        for kind in ("dynamic", "static"):
            line = decode(module, kind, prompt_tokens(request["prompt"]), request["tokens"])
            out.write(json.dumps(line) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
