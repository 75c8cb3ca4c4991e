"""The hardware runs a language model, beside `sim`: `python benchmarks/hardware.py`.

Cases on `lab16`, every operation in synthesizable RTL (with `--elements dpi`, multiply-adds of the
array in C):

* layer: the first decoder layer of SmolLM2-135M, the head over its first 1,024 tokens; a prefill
  of 16 tokens and a decode step.
* token: the whole model; `sim` takes the prompt, both targets decode one token from there.
* matmul: 384 x 384 x 384 in bf16, 95 % of the array's peak or more.

On `solo`, 128 x 128, whose multiply-adds come from C; asked for by name, as it builds in half an
hour:

* solo: a product of 256 x 256 x 256, and causal attention of a head over 256 tokens.

Logits or products, tokens, cycles and each queue's counters must be the same; the command fails
where they are not. Results go to benchmarks/results/hardware.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
from chip import product

from tapeout.chip import Chip, load
from tapeout.isa import Program
from tapeout.models import compile_decoder, load_tokenizer, resolve
from tapeout.models import load as load_model
from tapeout.physical.activity import PROGRAMS, with_operands
from tapeout.rtl.build import Elements, library
from tapeout.rtl.target import Rtl
from tapeout.runtime.cache import Options, compiled
from tapeout.runtime.session import Session, Step
from tapeout.sim import RunResult, Sim

CHIP, SOLO = "lab16", "solo"  # the second is a case, too
PROMPT = "The capital of France is"
LAYER_VOCAB = 1024
PRODUCT = 384  # of the matmul, each side
SOLO_TILES = 2  # rows and columns of solo's programs, in tiles of the array
HBM_BYTES = 1 << 24  # of matmul and solo
RESULTS = Path(__file__).parent / "results" / "hardware.json"


def same(name: str, sim: Session, rtl: Session, run: Any) -> dict[str, Any]:
    """Runs a step on both; what it took. Exits where they differ."""
    steps: list[Step] = []
    seconds = []
    for session in (sim, rtl):
        start = time.perf_counter()
        steps.append(run(session))
        seconds.append(time.perf_counter() - start)
    kind = steps[0].launch.kind
    logits = [session.logits(kind).view(np.uint32) for session in (sim, rtl)]
    row = judged(
        name, [step.stats for step in steps], seconds,
        token=bool((steps[0].tokens == steps[1].tokens).all()),
        logits=bool((logits[0] == logits[1]).all()),
    )  # fmt: skip
    return row | {"logits": logits[0].size}


def judged(name: str, runs: list[RunResult], seconds: list[float], **equal: bool) -> dict[str, Any]:
    """A row of the results; exits where the targets differ.

    Args:
        runs, seconds: of sim and of the hardware.
        equal: what besides cycles and counters has been compared.
    """
    sim, rtl = runs
    equal |= {
        "cycles": sim.cycles == rtl.cycles,
        "counters": sim.queues == rtl.queues and sim.hbm == rtl.hbm,
    }
    sim_s, rtl_s = seconds
    row = {
        "step": name,
        "cycles": sim.cycles,
        "instructions": sim.instructions,
        "equal": equal,
        "sim_s": sim_s,
        "rtl_s": rtl_s,
        "sim_cycles_per_s": sim.cycles / sim_s,
        "rtl_cycles_per_s": rtl.cycles / rtl_s,
    }
    print(
        f"{name}: {sim.cycles:,} cycles, {sim.instructions:,} instructions; sim {sim_s:.2f} s, rtl "
        f"{rtl_s:.1f} s ({row['rtl_cycles_per_s']:,.0f} cycles/s), ratio {rtl_s / sim_s:,.0f}",
        flush=True,
    )
    if not all(equal.values()):
        sys.exit(f"{name} differs: {equal}, sim {sim.cycles} cycles, rtl {rtl.cycles}")
    return row


def layer(elements: Elements) -> list[dict[str, Any]]:
    chip, loaded = load(CHIP), load_model(resolve("smollm2-135m"))
    model = loaded.module
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    model.resize_token_embeddings(LAYER_VOCAB)
    artifact = compile_decoder(model, chip, name="layer", chunk=16, context=64)
    sim, rtl = Session(artifact, Sim(chip)), Session(artifact, Rtl(chip, elements=elements))
    prompt = list(range(100, 116))
    return [
        same("layer, prefill of 16", sim, rtl, lambda session: session.prefill(prompt)[-1]),
        same("layer, decode", sim, rtl, lambda session: session.decode([7])),
    ]


def token(elements: Elements) -> list[dict[str, Any]]:
    chip, source = load(CHIP), resolve("smollm2-135m")
    artifact = compiled(source, chip, Options()).artifact
    sim, rtl = (
        Session(artifact, Sim(chip, checks=False)),
        Session(artifact, Rtl(chip, elements=elements)),
    )
    step = sim.prefill(load_tokenizer(source).encode(PROMPT))[-1]
    rtl.target.write(rtl.memory["kv"], sim.target.read(sim.memory["kv"], sim.sizes["kv"]))
    rtl.position = sim.position
    first = [int(step.tokens[0])]
    return [same("whole token", sim, rtl, lambda session: session.decode(first))]


def matmul(elements: Elements) -> list[dict[str, Any]]:
    chip, n = load(CHIP), PRODUCT
    program, macs, _ = product(chip, n, n, n)
    row = same_program(f"{n} x {n} x {n}", chip, program, elements)
    row["of_peak"] = macs / (chip.mxu.rows * chip.mxu.cols) / row["cycles"]
    print(f"{row['of_peak']:.1%} of peak")
    if row["of_peak"] < 0.95:
        sys.exit("matmul: less than 95 % of peak")
    return [row]


def solo(elements: Elements) -> list[dict[str, Any]]:
    chip = load(SOLO)
    return [
        same_program(f"{name}, {SOLO_TILES} tiles", chip, make(chip, SOLO_TILES), elements)
        for name, make in PROGRAMS.items()
    ]


def same_program(name: str, chip: Chip, program: Program, elements: Elements) -> dict[str, Any]:
    """Runs a program on both; what it took. Exits where they differ."""
    case = with_operands(chip, program)
    results, seconds, written = [], [], []
    for target in (
        Sim(chip, hbm_bytes=HBM_BYTES),
        Rtl(chip, hbm_bytes=HBM_BYTES, elements=elements),
    ):
        handle, bases = case.load(target)
        start = time.perf_counter()
        results.append(target.run(handle))
        seconds.append(time.perf_counter() - start)
        written.append([bytes(target.read(at, size)) for at, size, w in bases.values() if w])
    return judged(name, results, seconds, results=written[0] == written[1])


CASES = {"layer": layer, "token": token, "matmul": matmul, SOLO: solo}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="one of them only")
    parser.add_argument("--elements", choices=[e.value for e in Elements], default="gates")
    arguments = parser.parse_args()
    asked = arguments.case or [name for name in CASES if name != SOLO]
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in asked:
        chip, elements = CHIP, Elements(arguments.elements)
        if name == SOLO:
            chip, elements = SOLO, Elements.DPI
        key = name if elements is Elements.GATES else f"{name}, {elements}"
        library(load(chip), elements=elements)  # built outside what is timed
        steps = CASES[name](elements)
        kept[key] = {"machine": machine.describe(), "chip": chip, "steps": steps}
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
