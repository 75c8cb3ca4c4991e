"""What the chip and the host make of SmolLM2-135M: `python benchmarks/decode.py`.

Decode for each batch and kind of weights, and a prefill of 128 tokens with the LM head on every
token, on `solo`. benchmarks/README.md has the definitions. Each row is a process of its own on one
core with one thread; models are compiled once and kept in benchmarks/.cache.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import machine
from peers.cases import PROMPT_TOKENS, SMOLLM2_135M
from peers.environment import run

HERE = Path(__file__).parent
BATCHES = (1, 8, 32, 64)
WEIGHTS = ("bf16", "packed")

Row = dict[str, Any]


def measure(request: Row, limit_s: float, log: Path) -> Row:
    """The runner's line, or why there is none; compiling is a process of its own beforehand."""
    row: Row = {key: request[key] for key in ("phase", "batch", "weights")}
    for compile_only in (True, False):
        asked = request | {"compile_only": compile_only}
        outcome = run(sys.executable, "serve_run.py", asked, limit_s=limit_s, log=log)
        if outcome.failure is not None:
            return row | {"failure": outcome.failure}
        row |= outcome.lines[0] | {"failure": None, "peak_bytes": outcome.peak_bytes}
        if compile_only:
            row["compile_s"] = row.pop("prepare_s")
            row["compile_peak_bytes"] = row.pop("peak_bytes")
    return row


def with_macs(row: Row) -> Row:
    """Adds the useful products of a prefill, by both definitions, as parts of the array's."""
    tokens = PROMPT_TOKENS
    linear = tokens * SMOLLM2_135M.matrix_parameters
    for name, causal in (("causal", True), ("full", False)):
        macs = linear + SMOLLM2_135M.attention_macs(tokens, causal=causal)
        row[f"useful_macs_{name}"] = macs
        if row["failure"] is None:
            row[f"mxu_utilization_{name}"] = macs / row["mac_capacity"]
    return row


def print_decode(rows: list[Row]) -> None:
    print(f"\ndecode over {PROMPT_TOKENS} positions (a token of one sequence is one token)")
    print(
        "weights  batch  cycles/step  cycles/token  chip tok/s  HBM used  MXU used"
        "  host tok/s  timing only  M cycles/s  peak MB"
    )
    for row in rows:
        head = f"{row['weights']:<7}  {row['batch']:>5}"
        if row["failure"]:
            print(f"{head}  {row['failure']}")
            continue
        timing = row["timing_only"]
        print(
            f"{head}  {row['cycles']:>11,}  {row['cycles_per_token']:>12,.0f}"
            f"  {row['chip_tokens_per_s']:>10,.0f}  {row['hbm_utilization']:>8.1%}"
            f"  {row['mxu_utilization']:>8.1%}  {row['host_tokens_per_s']:>10.2f}"
            f"  {timing['host_tokens_per_s']:>11.1f}  {timing['cycles_per_wall_s'] / 1e6:>10.1f}"
            f"  {row['peak_bytes'] / 1e6:>7.0f}"
        )


def print_prefill(rows: list[Row]) -> None:
    print(f"\nprefill of {PROMPT_TOKENS} tokens, LM head on every token, batch 1")
    print(
        "weights       cycles  chip tok/s  MXU, causal  MXU, full attention  HBM used"
        "  host tok/s  host s"
    )
    for row in rows:
        if row["failure"]:
            print(f"{row['weights']:<7}  {row['failure']}")
            continue
        print(
            f"{row['weights']:<7}  {row['cycles']:>11,}  {row['chip_tokens_per_s']:>10,.0f}"
            f"  {row['mxu_utilization_causal']:>11.1%}  {row['mxu_utilization_full']:>19.1%}"
            f"  {row['hbm_utilization']:>8.1%}  {row['host_tokens_per_s']:>10.1f}"
            f"  {row['wall_s']:>6.3f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", default="solo")
    parser.add_argument("--batch", action="append", type=int, help="default: 1, 8, 32, 64")
    parser.add_argument("--weights", action="append", choices=WEIGHTS, help="default: both")
    parser.add_argument("--steps", type=int, default=5, help="runs of each; the fastest counts")
    parser.add_argument("--no-checks", action="store_true", help="checker off (races, banks)")
    parser.add_argument("--limit-s", type=float, default=900.0, help="of a run; default 900")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "decode.json")
    arguments = parser.parse_args()
    logs = HERE / ".logs"
    logs.mkdir(exist_ok=True)
    (logs / ".gitignore").write_text("*\n")
    about = machine.describe()
    print(machine.summary(about))
    decode: list[Row] = []
    prefill: list[Row] = []
    for weights in arguments.weights or WEIGHTS:
        for batch in arguments.batch or BATCHES:
            base = {
                "chip_name": arguments.chip, "weights": weights, "batch": batch,
                "prompt": PROMPT_TOKENS, "steps": arguments.steps,
                "checks": not arguments.no_checks,
            }  # fmt: skip
            for phase in ("decode", "prefill") if batch == 1 else ("decode",):
                print(f"{weights}, batch {batch}, {phase} ...", file=sys.stderr, flush=True)
                log = logs / f"serve-{phase}-{weights}-b{batch}.log"
                row = measure(base | {"phase": phase}, arguments.limit_s, log)
                if phase == "decode":
                    decode.append(row)
                else:
                    prefill.append(with_macs(row))
    print_decode(decode)
    if prefill:
        print_prefill(prefill)
    result = {
        "machine": about, "load_average_after": os.getloadavg()[0], "chip": arguments.chip,
        "checks": not arguments.no_checks, "decode": decode, "prefill": prefill,
    }  # fmt: skip
    arguments.json.parent.mkdir(exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten: {arguments.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
