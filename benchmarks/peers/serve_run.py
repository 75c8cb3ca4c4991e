"""One phase of SmolLM2-135M on the simulator, with the figures of `benchmarks/decode.py`.

Request: `phase` (decode, prefill), `chip_name`, `weights`, `batch`, `prompt` (tokens), `steps`,
`checks`, `compile_only`. Writes one line: of the functional runs, with `timing_only` beside them.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model import compiled, prompt_tokens

from tapeout.chip import Chip, load
from tapeout.compiler.artifact import Artifact
from tapeout.runtime.session import Session
from tapeout.sim.target import Sim


def fastest(work: Callable[[], Any], steps: int) -> tuple[Any, float, float]:
    """(last step, least wall seconds of `steps`, least CPU seconds)."""
    walls, cpus, step = [], [], None
    for _ in range(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        step = work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return step, min(walls), min(cpus)


def required_bytes(artifact: Artifact, phase: str, prompt: int) -> int:
    """Each byte of weights once, and K and V of all `prompt` positions once."""
    entry = artifact.programs[phase]
    return entry.weight_bytes + entry.kv_bytes_per_position * prompt


def run(chip: Chip, request: dict[str, Any]) -> dict[str, Any]:
    artifact, prepare_s = compiled(
        chip, weights=request["weights"], batch=request["batch"],
        all_logits=request["phase"] == "prefill",
    )  # fmt: skip
    if request["compile_only"]:
        return {"prepare_s": prepare_s}
    phase, batch, prompt = request["phase"], request["batch"], prompt_tokens(request["prompt"])
    session = Session(artifact, Sim(chip, checks=request["checks"]))

    def prefill(functional: bool = True) -> Any:
        session.position = 0
        return session.prefill(prompt, sequences=1, functional=functional)[-1]

    def decode(functional: bool = True) -> Any:
        session.position = len(prompt) - 1
        return session.decode(prompt[:batch], functional=functional)

    # Caches of sequences 1.. stay zero: the values take no part in time.
    prefill()
    launch = decode if phase == "decode" else prefill
    step, wall_s, cpu_s = fastest(launch, request["steps"])
    timing, timing_wall_s, timing_cpu_s = fastest(
        lambda: launch(functional=False), request["steps"]
    )
    stats, tokens = step.stats, batch if phase == "decode" else len(prompt)
    needed = required_bytes(artifact, phase, len(prompt))
    chip_s = stats.cycles / (chip.clock_ghz * 1e9)
    return {
        "prepare_s": prepare_s,
        "tokens": tokens,
        "cycles": stats.cycles,
        "cycles_per_token": stats.cycles / tokens,
        "chip_tokens_per_s": tokens / chip_s,
        "required_bytes": needed,
        "hbm_utilization": needed / (stats.cycles * chip.hbm_bytes_per_cycle),
        "macs": stats.macs,
        "mac_capacity": stats.mac_capacity,
        "mxu_utilization": stats.macs / stats.mac_capacity,
        "bytes": stats.bytes,
        "hbm": stats.hbm,
        "queues": {
            name: {
                "busy_cycles": queue.busy_cycles,
                "occupied_cycles": queue.occupied_cycles,
                "idle_cycles": queue.idle_cycles,
                "stalls": queue.stalls,
            }
            for name, queue in stats.queues.items()
        },
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "host_tokens_per_s": tokens / wall_s,
        "timing_only": {
            "cycles": timing.stats.cycles,
            "wall_s": timing_wall_s,
            "cpu_s": timing_cpu_s,
            "host_tokens_per_s": tokens / timing_wall_s,
            "cycles_per_wall_s": timing.stats.cycles / timing_wall_s,
        },
    }


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    line = run(load(request["chip_name"]), request)
    Path(request["result"]).write_text(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
