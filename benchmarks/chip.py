"""How busy large kernels keep the array: `python benchmarks/chip.py [--chip solo] [--json FILE]`.

Matrix products and causal attention, timing only (`Sim.run(functional=False)`): cycles of the chip
do not depend on the host or on values, which tests/kernels checks. Every figure is useful
multiply-accumulates over what the whole array could do in the same cycles; for attention, products
above the diagonal are not useful, though a tile on the diagonal computes some. Results go to
benchmarks/results/chip.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine

from tapeout.chip import Chip, load
from tapeout.isa import Program
from tapeout.kernels.flash import Sequence, flash_attention
from tapeout.kernels.gemm import gemm
from tapeout.lang import Builder
from tapeout.sim import RunResult, Sim

PRODUCTS = [  # M, N, K, the goal
    (4096, 4096, 4096, 0.95),
    (1024, 1024, 1024, None),
    (512, 3072, 768, None),
    (2048, 8192, 2048, None),
    (4000, 4000, 4000, None),
]
SEQUENCES = [  # heads, key-value heads, tokens, head_dim, the goal
    (1, 1, 4096, 128, 0.60),
    (8, 8, 4096, 128, 0.60),
    (1, 1, 4096, 64, 0.35),
    (8, 8, 4096, 64, 0.35),
    (9, 3, 2048, 64, None),
    (32, 8, 1024, 128, None),
    (4, 4, 16384, 128, None),
]


def run(chip: Chip, program: Program) -> tuple[RunResult, float]:
    """(result, host seconds) on a chip whose HBM nobody filled."""
    sim = Sim(chip, checks=False)
    bases = {s.base: (sim.allocate(s.bytes), s.bytes, s.writable) for s in program.segments}
    handle = sim.load(program, bases)
    start = time.perf_counter()
    result = sim.run(handle, functional=False)
    return result, time.perf_counter() - start


def product(chip: Chip, m: int, n: int, k: int) -> tuple[Program, int, str]:
    """C = A B, all bf16 and row-major: (program, useful multiply-accumulates, the plan)."""
    b = Builder(chip, weight_slots=0)
    sizes = {"a": m * k, "b": k * n, "c": m * n}
    parts = (b.segment(name, 2 * size, writable=name == "c") for name, size in sizes.items())
    plan = gemm(b, *parts, (m, n, k))
    return b.build(), m * n * k, str(plan)


def attention(
    chip: Chip, heads: int, kv_heads: int, tokens: int, d: int
) -> tuple[Program, int, str]:
    """Causal self-attention: (program, useful multiply-accumulates, the plan)."""
    seq = Sequence(heads=heads, kv_heads=kv_heads, tokens=tokens, head_dim=d, scale=d**-0.5)
    b = Builder(chip, weight_slots=0)
    q, o = seq.heads * seq.head_bytes, seq.kv_heads * seq.head_bytes
    parts = (
        b.segment(name, size, writable=name == "o")
        for name, size in (("q", q), ("k", o), ("v", o), ("o", q))
    )
    plan = flash_attention(b, *parts, seq)
    return b.build(), seq.useful_macs, f"blocks of {plan.rows} queries, chunks of {plan.keys} keys"


def row(
    chip: Chip, name: str, goal: float | None, build: Callable[[], tuple[Program, int, str]]
) -> dict[str, Any]:
    start = time.perf_counter()
    program, useful, plan = build()
    trace_s = time.perf_counter() - start
    result, seconds = run(chip, program)
    return {
        "name": name,
        "plan": plan,
        "instructions": program.instructions,
        "cycles": result.cycles,
        "floor_cycles": -(-useful // chip.macs_per_cycle),
        "utilization": useful / result.mac_capacity,
        "goal": goal,
        "array_busy": result.macs / result.mac_capacity,
        "hbm_read_bytes": result.bytes["hbm_read"],
        "hbm_write_bytes": result.bytes["hbm_write"],
        "hbm_utilization": (result.bytes["hbm_read"] + result.bytes["hbm_write"])
        / (result.cycles * chip.hbm_bytes_per_cycle),
        "mxu_stalls": result.queues["mxu"].stalls,
        "vpu_occupied": result.queues["vpu"].occupied_cycles / result.cycles,
        "trace_s": trace_s,
        "sim_s": seconds,
    }


def measure(chip: Chip, only_goals: bool) -> dict[str, Any]:
    products = [
        row(chip, f"{m} x {n} x {k}", goal, lambda m=m, n=n, k=k: product(chip, m, n, k))
        for m, n, k, goal in PRODUCTS
        if goal or not only_goals
    ]
    sequences = [
        row(
            chip,
            f"{h} heads ({g} of K and V), {s} tokens, d {d}",
            goal,
            lambda h=h, g=g, s=s, d=d: attention(chip, h, g, s, d),
        )
        for h, g, s, d, goal in SEQUENCES
        if goal or not only_goals
    ]
    return {"machine": machine.describe(), "chip": chip.name, "clock_ghz": chip.clock_ghz,
            "macs_per_cycle": chip.macs_per_cycle, "matmul": products,
            "causal_attention": sequences}  # fmt: skip


def show(figures: dict[str, Any]) -> None:
    print(f"chip {figures['chip']}, timing only; host: {machine.summary(figures['machine'])}\n")
    for kind in ("matmul", "causal_attention"):
        print(f"{kind.replace('_', ' '):44s} {'cycles':>10s} {'of peak':>8s} {'goal':>5s} "
              f"{'busy':>6s} {'HBM':>6s} {'instr.':>7s} {'sim':>7s}")  # fmt: skip
        for r in figures[kind]:
            goal = "" if r["goal"] is None else f"{r['goal']:.0%}"
            print(f"{r['name']:44s} {r['cycles']:10d} {r['utilization']:8.1%} {goal:>5s} "
                  f"{r['array_busy']:6.1%} {r['hbm_utilization']:6.1%} {r['instructions']:7d} "
                  f"{r['sim_s']:6.2f}s")  # fmt: skip
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", default="solo", help="preset or TOML file")
    parser.add_argument("--goals", action="store_true", help="only the cases that have a goal")
    parser.add_argument(
        "--json", type=Path, default=Path(__file__).parent / "results" / "chip.json",
        help="where the figures go",
    )  # fmt: skip
    arguments = parser.parse_args()
    figures = measure(load(arguments.chip), arguments.goals)
    show(figures)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
