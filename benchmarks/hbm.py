"""What a chip's HBM delivers: patterns x queues x read or write, and the host's time for one run.

    python benchmarks/hbm.py [--chip solo] [--json] [--reference] [--credits N]

Closed loop: each queue sends a run a cycle while it has credits (`dma.credits` by default) and gets
them back in order. `--reference` adds the burst-level reference of the tests on a short trace;
`--dramsim3` repeats DRAMsim3's HBM2 stream and random figures instead.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tapeout.chip import load
from tapeout.sim import _native

TRAFFIC_BYTES = 64 << 20
REFERENCE_BYTES = 2 << 20
MOST_RUNS = 100_000
# configs/HBM2_8Gb_x128.ini of DRAMsim3: tCK 1 ns, eight channels of 128 bits, 64-byte bursts.
HBM2 = {
    "stacks": 1, "pseudo_channels_per_stack": 8, "pin_rate_gbps": 2.0,
    "pins_per_pseudo_channel": 128, "burst_bytes": 64, "bank_groups": 4, "banks_per_group": 4,
    "row_bytes": 1024, "capacity_gib_per_stack": 8.0, "interleave_bytes": 1024,
    "bank_group_interleave": 1, "controller_ns": 1.0,
    "timing": {
        "rcd_ns": 14.0, "rp_ns": 14.0, "ras_ns": 34.0, "cl_ns": 14.0, "cwl_ns": 4.0, "wr_ns": 16.0,
        "rtp_ns": 6.0, "ccd_s_ns": 1.0, "ccd_l_ns": 2.0, "rrd_s_ns": 4.0, "rrd_l_ns": 6.0,
        "faw_ns": 30.0, "wtr_s_ns": 6.0, "wtr_l_ns": 8.0, "rtw_ns": 13.0, "refi_ns": 3900.0,
        "rfc_pb_ns": 260.0, "rrefd_ns": 8.0,
    },
}  # fmt: skip


def runs(addresses, size: int, write) -> tuple:
    n = len(addresses)
    return (
        np.asarray(addresses, np.uint64),
        np.full(n, size, np.uint32),
        np.broadcast_to(np.asarray(write, bool), n).copy(),
    )


def traffic(hbm: dict, pattern: str, size: int, kind: str, queues: int, total: int) -> list[tuple]:
    capacity = int(hbm["stacks"] * hbm["capacity_gib_per_stack"] * 2**30)
    n = min(total // size, MOST_RUNS) // queues
    out = []
    for q in range(queues):
        rng = np.random.default_rng(q)
        if pattern == "random":
            address = rng.integers(0, capacity // size, n) * size
        else:
            stride = 1 if pattern == "stream" else int(pattern.removeprefix("stride"))
            address = (q * capacity // queues + np.arange(n) * size * stride) % capacity
        write = {"read": False, "write": True, "mixed": rng.random(n) < 1 / 3}[kind]
        out.append(runs(address, size, write))
    return out


def figures(result: dict, queues: list[tuple], clock_ghz: float) -> dict:
    end = max(int(done.max()) for done in result["done"])
    latency = np.concatenate(
        [
            np.asarray(d, np.int64) - np.asarray(s, np.int64)
            for d, s in zip(result["done"], result["sent"], strict=True)
        ]
    )
    return {
        "gb_per_s": sum(int(size.sum()) for _, size, _ in queues) / end * clock_ghz,
        "mean_latency_ns": float(latency.mean()) / clock_ghz,
        "max_latency_ns": float(latency.max()) / clock_ghz,
    }


def table(chip_name: str, credits: int | None, reference: bool) -> list[dict]:
    chip = load(chip_name)
    hbm, clock = asdict(chip.hbm), chip.clock_ghz
    run = chip.hbm.interleave_bytes
    peak = chip.hbm.peak_bytes_per_s / 1e9
    channels = chip.hbm.pseudo_channels
    patterns = [("stream", run), ("stride2", run), (f"stride{channels}", run), ("stride256", run),
                ("random", run), ("random", 256), ("random", 64)]  # fmt: skip
    rows = []
    for kind in ("read", "write", "mixed"):
        for queues in (1, 4):
            for pattern, size in patterns:
                wanted = traffic(hbm, pattern, size, kind, queues, TRAFFIC_BYTES)
                result = _native.Hbm(hbm, clock).stream(wanted, credits or chip.dma.credits)
                row = {"kind": kind, "queues": queues, "pattern": pattern, "run_bytes": size}
                row |= figures(result, wanted, clock)
                row["percent_of_peak"] = 100 * row["gb_per_s"] / peak
                row["host_ns_per_run"] = result["host_s"] * 1e9 / sum(len(q[0]) for q in wanted)
                if reference:
                    row |= against_reference(hbm, clock, row, credits or chip.dma.credits)
                rows.append(row)
    return rows


def against_reference(hbm: dict, clock: float, row: dict, credits: int) -> dict:
    """Percent by which the model is above the burst-level reference on one short trace."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "unit"))
    from hbm_reference import Reference

    total = min(REFERENCE_BYTES, 10_000 * row["run_bytes"])
    wanted = traffic(hbm, row["pattern"], row["run_bytes"], row["kind"], row["queues"], total)
    ours = figures(_native.Hbm(hbm, clock).stream(wanted, credits), wanted, clock)
    theirs = figures(Reference(hbm, clock).stream(wanted, credits), wanted, clock)
    return {
        "bandwidth_against_reference_percent": 100 * (ours["gb_per_s"] / theirs["gb_per_s"] - 1),
        "latency_against_reference_percent": 100
        * (ours["mean_latency_ns"] / theirs["mean_latency_ns"] - 1),
    }


def dramsim3() -> dict:
    """DRAMsim3's generators at 1 GHz: a + b = c, three 64-byte requests a cycle; random, one."""
    rng = np.random.default_rng(0)
    n = 60_000
    bases = rng.integers(0, 2**33 // 2**22, 3) * 2**22
    stream = [runs(base + np.arange(n) * 64, 64, i == 2) for i, base in enumerate(bases)]
    random = [runs(rng.integers(0, 2**33 // 64, n) * 64, 64, rng.integers(0, 3, n) == 0)]
    all_bank = 1 - 260 / 3900  # DRAMsim3's file refreshes all banks at once; the model bank by bank
    out = {}
    for name, queues, theirs in (("stream", stream, 178.0), ("random", random, 60.0)):
        ours = figures(_native.Hbm(HBM2, 1.0).stream(queues, 4096), queues, 1.0)["gb_per_s"]
        out[name] = {"gb_per_s": ours, "with_all_bank_refresh": ours * all_bank, "dramsim3": theirs}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", default="solo")
    parser.add_argument("--credits", type=int, help="runs in flight of a queue")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--reference", action="store_true", help="compare, about two minutes")
    parser.add_argument("--dramsim3", action="store_true")
    args = parser.parse_args()
    if args.dramsim3:
        print(json.dumps(dramsim3(), indent=2))
        return
    rows = table(args.chip, args.credits, args.reference)
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print("kind  queues  pattern    bytes     GB/s  of peak   mean ns    max ns  host ns/run")
    for r in rows:
        extra = ""
        if args.reference:
            extra = (
                f"  reference: {r['bandwidth_against_reference_percent']:+5.1f} % GB/s,"
                f" {r['latency_against_reference_percent']:+5.1f} % ns"
            )
        print(
            f"{r['kind']:<6}{r['queues']:>6}  {r['pattern']:<9}{r['run_bytes']:>7}"
            f"{r['gb_per_s']:>9.1f}{r['percent_of_peak']:>8.1f}%{r['mean_latency_ns']:>10.1f}"
            f"{r['max_latency_ns']:>10.1f}{r['host_ns_per_run']:>13.1f}{extra}"
        )


if __name__ == "__main__":
    main()
