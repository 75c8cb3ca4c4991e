"""Logits of SmolLM2-135M on `solo` against a float32 PyTorch run of the same weights.

    python benchmarks/logits.py [--weights bf16|packed] [--tokens 512]

Prefills ordinary English chunk by chunk with logits of every token, and compares: how often the
likeliest token agrees, the mean Kullback-Leibler divergence, perplexities.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from machine import describe

from tapeout.chip import load as load_chip
from tapeout.models import compile_decoder, load, load_tokenizer
from tapeout.models.evaluate import compare, reference_logits
from tapeout.runtime.session import Session
from tapeout.sim import Sim

MODEL = "smollm2-135m"
TEXT = Path(__file__).parents[1] / "tests/models/english.txt"
RESULTS = Path(__file__).parent / "results/logits.json"


def measure(weights: str, tokens: int) -> dict:
    """Closeness of `tokens` logits, as a dictionary."""
    loaded, chip = load(MODEL), load_chip("solo")
    ids = load_tokenizer(MODEL).encode(TEXT.read_text(), special=False)[:tokens]
    artifact = compile_decoder(
        loaded.module, chip, packed=loaded.packed, weights=weights, all_logits=True
    )
    session = Session(artifact, Sim(chip))
    rows = []
    for at in range(0, len(ids), chip.lanes):
        chunk = ids[at : at + chip.lanes]
        session.prefill(chunk)
        rows.append(session.logits("prefill")[: len(chunk)].copy())
    return asdict(compare(reference_logits(loaded, ids), np.concatenate(rows), ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", choices=("bf16", "packed"), default="bf16")
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    result = {"weights": options.weights, **measure(options.weights, options.tokens)}
    print(json.dumps(result, indent=1))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": describe(), "result": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
