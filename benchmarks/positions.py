"""Decode of SmolLM2-135M along its KV cache: `python benchmarks/positions.py`.

Timing only, on `solo`, context 1024: cycles of a step at each position, and required bytes (every
weight once, as stored, and K and V of all positions so far) over cycles times the pin rate of HBM.
Models are compiled once and kept in benchmarks/.cache.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import machine
from peers.model import compiled, prompt_tokens

from tapeout.chip import Chip, load
from tapeout.runtime.session import Session
from tapeout.sim.target import Sim

HERE = Path(__file__).parent
CONTEXT = 1024
POSITIONS = (0, 127, 128, 255, 256, 511, 512, 1000)
WEIGHTS = ("bf16", "packed")

Row = dict[str, Any]


def measure(chip: Chip, weights: str, batch: int) -> list[Row]:
    artifact, _ = compiled(chip, weights=weights, batch=batch, context=CONTEXT)
    entry = artifact.programs["decode"]
    session = Session(artifact, Sim(chip, checks=False))
    tokens = prompt_tokens(batch)
    rows = []
    for position in POSITIONS:
        session.position = position
        cycles = session.decode(tokens, functional=False).stats.cycles
        needed = entry.weight_bytes + entry.kv_bytes_per_position * (position + 1)
        rows.append(
            {
                "weights": weights, "batch": batch, "position": position, "cycles": cycles,
                "required_bytes": needed,
                "hbm_utilization": needed / (cycles * chip.hbm_bytes_per_cycle),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", default="solo")
    parser.add_argument("--batch", action="append", type=int, help="default: 1, 8, 64")
    parser.add_argument("--weights", action="append", choices=WEIGHTS, help="default: both")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "positions.json")
    arguments = parser.parse_args()
    chip = load(arguments.chip)
    about = machine.describe()
    print(machine.summary(about))
    found: list[Row] = []
    print("weights  batch  position  cycles/step  HBM used")
    for weights in arguments.weights or WEIGHTS:
        for batch in arguments.batch or (1, 8, 64):
            for row in measure(chip, weights, batch):
                found.append(row)
                print(
                    f"{weights:<7}  {batch:>5}  {row['position']:>8}  {row['cycles']:>11,}"
                    f"  {row['hbm_utilization']:>8.1%}"
                )
    result = {"machine": about, "chip": arguments.chip, "context": CONTEXT, "decode": found}
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten: {arguments.json}")


if __name__ == "__main__":
    main()
