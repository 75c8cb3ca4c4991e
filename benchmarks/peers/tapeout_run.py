"""Tapeout's simulator on one case: `functional` with values, or timing only.

Request: `case` (gemm, prefill, decode, resnet50), `functional`, `chip_name`, `weights`, `prompt`
(tokens), `repeats`, `checks`, `compile_only`. The line it writes has cycles, seconds of the best
run, MACs.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

import numpy as np
from model import CACHE, compiled, key_of, make_cache, prompt_tokens

from tapeout.chip import Chip, load
from tapeout.compiler.ahead import Model
from tapeout.kernels.gemm import gemm, tile_columns
from tapeout.lang import Builder
from tapeout.numerics import formats
from tapeout.runtime.session import Session
from tapeout.sim.target import Sim


def best(work: Callable[[], Any], repeats: int) -> tuple[Any, dict[str, float]]:
    """The last result; wall and CPU seconds of the run that took the least CPU time, and the median
    wall seconds of all."""
    spans, result = [], None
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        result = work()
        spans.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu_s, wall_s = min(spans)
    walls = sorted(wall for _, wall in spans)
    return result, {"wall_s": wall_s, "cpu_s": cpu_s, "median_wall_s": walls[len(walls) // 2]}


def run_gemm(chip: Chip, request: dict[str, Any]) -> dict[str, Any]:
    """One product through `tapeout.kernels.gemm`; with values, its error against float64."""
    product = request["products"][0]
    m, k, n = product["m"], product["k"], product["n"]
    builder = Builder(chip)
    start = time.perf_counter()
    places = [
        builder.segment(name, 2 * size, writable=name == "c")
        for name, size in (("a", m * k), ("b", k * n), ("c", m * n))
    ]
    gemm(builder, *places, (m, n, k), tiled=True)
    program = builder.build()
    prepare_s = time.perf_counter() - start
    rng = np.random.default_rng(0)
    a, b = (
        formats.f32_to_bf16(rng.standard_normal(shape).astype(np.float32))
        for shape in ((m, k), (k, n))
    )
    sim = Sim(chip, checks=request["checks"])
    bases, at = {}, {}
    for segment in program.segments:
        at[segment.name] = sim.allocate(segment.bytes)
        bases[segment.base] = (at[segment.name], segment.bytes, segment.writable)
    sim.write(at["a"], a)
    sim.write(at["b"], tile_columns(b, chip.lanes))
    handle = sim.load(program, bases)
    functional = request["functional"]
    result, spans = best(lambda: sim.run(handle, functional=functional), request["repeats"])
    out = figures(result) | spans | {"prepare_s": prepare_s}
    if functional:
        wide = [formats.bf16_to_f32(x).astype(np.float64) for x in (a, b)]
        bits = sim.read(at["c"], 2 * m * n).view(np.uint16).reshape(m, n)
        want = wide[0] @ wide[1]
        error = np.abs(formats.bf16_to_f32(bits) - want).max() / np.abs(want).max()
        if error > 2**-8:  # a result is rounded to bf16, half an ulp is 2^-9 of it
            raise AssertionError(f"the product is off by {error:.3g} of its largest element")
        out["largest_error"] = float(error)
    return out


def run_model(chip: Chip, request: dict[str, Any]) -> dict[str, Any]:
    """A prefill of `prompt` tokens, or the token of decode at the last of their positions."""
    all_logits = request["case"] == "prefill"
    artifact, prepare_s = compiled(chip, weights=request["weights"], all_logits=all_logits)
    if request["compile_only"]:
        return {"prepare_s": prepare_s}
    functional, prompt = request["functional"], prompt_tokens(request["prompt"])
    session = Session(artifact, Sim(chip, checks=request["checks"]))

    def prefill() -> Any:
        session.position = 0
        return session.prefill(prompt, functional=functional)[-1]

    def decode() -> Any:
        session.position = len(prompt) - 1
        return session.decode([prompt[0]], functional=functional)

    if request["case"] == "decode":
        prefill()
    step, spans = best(decode if request["case"] == "decode" else prefill, request["repeats"])
    return figures(step.stats) | spans | {"prepare_s": prepare_s}


def run_resnet(chip: Chip, request: dict[str, Any]) -> dict[str, Any]:
    """ResNet-50 with random weights on an image; with values, its error against PyTorch."""
    import torch

    import tapeout
    from models import resnet50  # benchmarks/models.py

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("medium")
    case = resnet50()
    module = case.model.eval()
    place = CACHE / f"resnet50-{key_of(chip, [])}.tapeout"
    start = time.perf_counter()
    if not place.exists():
        make_cache()
        tapeout.compile(module, case.inputs, chip=chip).save(place)
    model = Model.load(place)
    prepare_s = time.perf_counter() - start
    if request["compile_only"]:
        return {"prepare_s": prepare_s}
    sim, executable = Sim(chip, checks=request["checks"]), model.executable
    executable.bind(sim)
    executable.upload(model.held)
    inputs = [None if i in model.held else case.inputs[0] for i in range(len(executable.inputs))]
    if not request["functional"]:
        result, spans = best(lambda: executable.timing(sim), request["repeats"])
        return figures(result) | spans | {"prepare_s": prepare_s}
    (got,), spans = best(lambda: executable.run(sim, inputs), request["repeats"])
    with torch.no_grad():
        want = module(*case.inputs).float()
    error = ((got.float() - want).abs().max() / want.abs().max()).item()
    if error > 2**-5:  # 53 layers of bf16; PyTorch rounds to bf16 after each, too
        raise AssertionError(f"the network is off by {error:.3g} of its largest result")
    return figures(executable.last) | spans | {"prepare_s": prepare_s, "largest_error": error}


def figures(result: Any) -> dict[str, Any]:
    return {
        "cycles": result.cycles, "macs": result.macs, "mac_capacity": result.mac_capacity,
        "instructions": result.instructions,
    }  # fmt: skip


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    chip = load(request["chip_name"])
    how = {"gemm": run_gemm, "resnet50": run_resnet}.get(request["case"], run_model)
    line = how(chip, request)
    Path(request["result"]).write_text(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
