"""Simulators that pip installs beside ours, on the same cases: `python benchmarks/peers.py`.

Cases: a GEMM, SmolLM2-135M's prefill of 128 tokens and one token of its decode, and ResNet-50
(peers/cases.py), on the chip `solo` or the configuration of a peer nearest to it. Each peer lives
in a virtual environment of its own (pinned in peers/*.txt, made in benchmarks/.venvs by the first
run); each run is one process on one core with one thread, bounded in time. Hugging Face's bf16
decode runs beside our host speed. benchmarks/README.md says how each figure is measured.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine
from peers.cases import CASES, PROMPT_TOKENS, TITLES, Layer, Product
from peers.environment import EnvironmentFailure, Outcome, python_of, run

from tapeout.chip import Chip, load

HERE = Path(__file__).parent
HEAD_SLICES = 16  # SCALE-Sim gets the LM head as this many equal products, simulated once
STEPS = 40  # of decode, of ours and of transformers alike: the median counts, machines are noisy

Row = dict[str, Any]


def chip_numbers(chip: Chip) -> dict[str, Any]:
    """What a peer's configuration is made from."""
    return {
        "mxu_rows": chip.mxu.rows,
        "mxu_cols": chip.mxu.cols,
        "load_rows": chip.mxu.load_rows_per_cycle,
        "spm_bytes": chip.spm.rows * chip.spm_row_bytes,
        "acc_bytes": chip.acc.rows * 4 * chip.lanes,
        "hbm_bytes": chip.hbm.capacity_bytes,
        "hbm_bytes_per_cycle": chip.hbm_bytes_per_cycle,
        "dma_bytes_per_cycle": chip.dma.bytes_per_cycle,
        "vpu_sublanes": chip.vpu.sublanes,
    }


def sliced(products: list[Layer]) -> list[Layer]:
    """The LM head as slices: whole, it would take SCALE-Sim a quarter of an hour and gigabytes."""
    return [
        Product(p.name, p.m, p.k, p.n // HEAD_SLICES, HEAD_SLICES)
        if isinstance(p, Product) and p.name == "lm_head"
        else p
        for p in products
    ]


PEERS: dict[str, dict[str, Any]] = {
    "scalesim": {
        "title": "SCALE-Sim 3.0.0",
        "products": sliced,
        "note": f"distinct layers once, cycles times their count; a head as {HEAD_SLICES} slices",
        "rate_is": "simulated",
    },
    "zigzag": {
        "title": "ZigZag 3.9.1",
        "products": lambda products: products,
        "note": "analytic optimum of each distinct layer, times its count; nothing is simulated",
        "rate_is": "estimated",
    },
}


def peer_rows(peer: str, chip: Chip, cases: list[str], limit_s: float, logs: Path) -> Iterator[Row]:
    """A row for each case; a peer that cannot be installed says so in each."""
    about = PEERS[peer]
    try:
        python = python_of(peer)
    except EnvironmentFailure as error:
        for case in cases:
            yield blank(about["title"], case, f"not installed: {error}")
        return
    for case in cases:
        say(about["title"], case)
        products = about["products"](CASES[case])
        request = {"products": [p.as_dict() for p in products], "chip": chip_numbers(chip)}
        outcome = run(
            python, f"{peer}_run.py", request, limit_s=limit_s, log=logs / f"{peer}-{case}.log"
        )
        yield peer_row(about, case, products, outcome, chip.macs_per_cycle)


def peer_row(
    about: dict[str, Any], case: str, products: list[Layer], outcome: Outcome, macs_per_cycle: int
) -> Row:
    """Sums what the peer found; without its last products there is no cycle count for the case."""
    done = outcome.lines
    row = blank(about["title"], case, about["note"])
    simulated = sum(line["cycles"] for line in done)
    wall_s, cpu_s = (sum(line[key] for line in done) for key in ("wall_s", "cpu_s"))
    row |= {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "peak_bytes": outcome.peak_bytes,
        "cycles_simulated": simulated,
        "cycles_per_wall_s": simulated / wall_s if wall_s else None,
        "cycles_per_cpu_s": simulated / cpu_s if cpu_s else None,
        "rate_is": about["rate_is"],
        "products": done,
    }
    if outcome.failure is None:
        row["cycles"] = sum(line["cycles"] * line["count"] for line in done)
        row["mxu_utilization"] = sum(p.macs for p in products) / row["cycles"] / macs_per_cycle
    else:
        missing = ", ".join(p.name for p in products[len(done) :])
        row["note"] = f"{outcome.failure}; without {missing}"
    return row


def say(title: str, case: str) -> None:
    print(f"{title}: {case} ...", file=sys.stderr, flush=True)


def blank(title: str, case: str, note: str) -> Row:
    return {
        "simulator": title, "case": case, "cycles": None, "wall_s": None, "cpu_s": None,
        "cycles_simulated": None, "cycles_per_wall_s": None, "cycles_per_cpu_s": None,
        "peak_bytes": None, "values": False, "mxu_utilization": None, "note": note,
    }  # fmt: skip


def our_rows(
    chip_name: str, cases: list[str], limit_s: float, logs: Path, checks: bool
) -> Iterator[Row]:
    """Functional and timing, then timing only, of each case; the model is compiled beforehand."""
    base = {"chip_name": chip_name, "weights": "bf16", "prompt": PROMPT_TOKENS, "checks": checks}
    for case in cases:
        prepare_s = 0.0
        if case != "gemm":  # beforehand, so that the memory of compiling is not counted
            say("Tapeout, compiling", case)
            request = base | {"case": case, "compile_only": True}
            log = logs / f"tapeout-{case}-compile.log"
            outcome = run(sys.executable, "tapeout_run.py", request, limit_s=limit_s, log=log)
            if outcome.failure is not None:
                yield blank("Tapeout", case, f"compiling: {outcome.failure}")
                continue
            prepare_s = outcome.lines[0]["prepare_s"]
        for functional in (True, False):
            title = "Tapeout" + ("" if functional else ", timing only")
            say(title, case)
            request = base | {
                "case": case, "functional": functional,
                "repeats": 3 if case in ("prefill", "resnet50") else STEPS,
                "products": [p.as_dict() for p in CASES[case]], "compile_only": False,
            }  # fmt: skip
            log = logs / f"tapeout-{case}-{'values' if functional else 'timing'}.log"
            outcome = run(sys.executable, "tapeout_run.py", request, limit_s=limit_s, log=log)
            yield our_row(title, case, functional, prepare_s, outcome)


def our_row(title: str, case: str, functional: bool, prepare_s: float, outcome: Outcome) -> Row:
    row = blank(title, case, "")
    if outcome.failure is not None:
        return row | {"note": outcome.failure}
    line = outcome.lines[0]
    macs = sum(p.macs for p in CASES[case])
    if case != "gemm":
        line["prepare_s"] = max(prepare_s, line["prepare_s"])
    return row | line | {
        "cycles_simulated": line["cycles"],
        "cycles_per_wall_s": line["cycles"] / line["wall_s"],
        "cycles_per_cpu_s": line["cycles"] / line["cpu_s"],
        "peak_bytes": outcome.peak_bytes,
        "values": functional,
        "rate_is": "simulated",
        "mxu_utilization": macs / line["mac_capacity"],
        "note": f"whole case, every instruction; made ready in {line['prepare_s']:.1f} s before",
    }  # fmt: skip


def hugging_face(limit_s: float, logs: Path) -> Row:
    """Decode steps of transformers in bf16 on one thread, for each kind of cache."""
    say("Hugging Face", "decode")
    request = {"prompt": PROMPT_TOKENS, "tokens": STEPS}
    outcome = run(
        sys.executable, "huggingface_run.py", request, limit_s=limit_s, log=logs / "hf.log"
    )
    return {
        "what": "Hugging Face transformers, SmolLM2-135M bf16, decode, batch 1, one thread",
        "runs": outcome.lines,
        "failure": outcome.failure,
        "peak_bytes": outcome.peak_bytes,
    }


# --- printing -------------------------------------------------------------------------------------

COLUMNS: tuple[tuple[str, str, Callable[[Row], str]], ...] = (
    ("simulator", "<22", lambda r: r["simulator"]),
    ("cycles", ">11", lambda r: f"{r['cycles']:,}" if r["cycles"] else "-"),
    ("wall s", ">9", lambda r: f"{r['wall_s']:.3f}" if r["wall_s"] is not None else "-"),
    ("CPU s", ">9", lambda r: f"{r['cpu_s']:.3f}" if r["cpu_s"] is not None else "-"),
    ("cycles/wall s", ">13", lambda r: _rate(r)),
    ("peak MB", ">8", lambda r: f"{r['peak_bytes'] / 1e6:.0f}" if r["peak_bytes"] else "-"),
    ("array", ">6", lambda r: f"{r['mxu_utilization']:.1%}" if r["mxu_utilization"] else "-"),
    ("values", "<6", lambda r: "yes" if r["values"] else "no"),
    ("", "<1", lambda r: r["note"]),
)


def _rate(row: Row) -> str:
    rate = row["cycles_per_wall_s"]
    return "-" if rate is None or row.get("rate_is") == "estimated" else f"{rate:,.0f}"


def print_case(case: str, rows: list[Row]) -> None:
    print(f"\n{TITLES[case]} ({sum(p.macs for p in CASES[case]) / 1e9:.2f} G MACs)")
    print("  ".join(f"{name:{form}}" for name, form, _ in COLUMNS).rstrip())
    for row in rows:
        print("  ".join(f"{text(row):{form}}" for _, form, text in COLUMNS).rstrip())


def print_host(rows: list[Row], other: Row) -> None:
    print(f"\n{other['what']}")
    if other["failure"]:
        print(f"  {other['failure']}")
    for run_ in other["runs"]:
        print(
            f"  {run_['cache']:<8} cache {run_['tokens_per_s']:7.2f} tokens/s (median step), "
            f"best step {run_['best_tokens_per_s']:.2f}, "
            f"by CPU time {1 / run_['best_step_cpu_s']:.2f}"
        )
    for row in rows:
        if row["case"] != "decode" or not row["cycles"]:
            continue
        if "median_wall_s" in row:
            speed = f"{1 / row['median_wall_s']:7.2f} tokens/s (median step), best step "
        else:
            speed = "        one run: "
        print(
            f"  {row['simulator']:<22} {speed}{1 / row['wall_s']:.2f}, "
            f"by CPU time {1 / row['cpu_s']:.2f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", default="solo")
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: all")
    parser.add_argument(
        "--only", action="append", choices=[*PEERS, "tapeout", "huggingface"], help="default: all"
    )
    parser.add_argument("--limit-s", type=float, default=600.0, help="of a run; default 600")
    parser.add_argument("--no-checks", action="store_true", help="our checker off (races, banks)")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "peers.json")
    arguments = parser.parse_args()
    cases, only = (
        arguments.case or list(CASES),
        arguments.only or [*PEERS, "tapeout", "huggingface"],
    )
    logs = HERE / ".logs"
    logs.mkdir(exist_ok=True)
    (logs / ".gitignore").write_text("*\n")
    about = machine.describe()
    print(machine.summary(about))
    rows: list[Row] = []
    other: Row | None = None
    if "tapeout" in only:
        rows += our_rows(arguments.chip, cases, arguments.limit_s, logs, not arguments.no_checks)
    if "huggingface" in only:
        other = hugging_face(arguments.limit_s, logs)
    for peer in PEERS:
        if peer in only:
            rows += peer_rows(peer, load(arguments.chip), cases, arguments.limit_s, logs)
    for case in cases:
        print_case(case, [row for row in rows if row["case"] == case])
    if other is not None:
        print_host(rows, other)
    result = {
        "machine": about, "load_average_after": os.getloadavg()[0], "chip": arguments.chip,
        "checks": not arguments.no_checks, "rows": rows, "hugging_face": other,
    }  # fmt: skip
    arguments.json.parent.mkdir(exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten: {arguments.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
