"""Speed of the native numerics on one core: `python benchmarks/gemm.py [--json]`.

Figures are the best of several runs. Memory-bound ones come with the machine's own read bandwidth,
measured in the same run, and compute-bound ones with NumPy's float32 matmul on the same shape, so
that a ratio can be compared between machines.
"""

import argparse
import json
import os
import sys
import time

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy starts its threads: one core against one core

import numpy as np  # noqa: E402

from tapeout.numerics import Format, Function  # noqa: E402
from tapeout.sim import _native  # noqa: E402

native = _native.math
TILE = 128  # rows and lanes of a stationary tile


def numpy_gflop_per_s(m: int, k: int, n: int) -> float:
    a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    best = min(_seconds(lambda: a @ b) for _ in range(5))
    return 2 * m * k * n / best / 1e9


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def gemm(m: int, k: int, n: int) -> dict[str, float]:
    """A product tile by tile, each tile set once and m rows moved past it."""
    repeats = max(5, int(2e9 / (2 * m * k * n)))
    rate = 2 * m * k * n / native.gemm_seconds(m, k, n, TILE, repeats) / 1e9
    return {"gflop_per_s": rate, "of_numpy": rate / numpy_gflop_per_s(m, k, n)}


def gemv(m: int, tiles: int, *, transposed: bool) -> dict[str, float]:
    """m rows against tiles that are read once: bytes of weights a second."""
    k = 64 if transposed else TILE
    size_bytes = tiles * k * TILE * 2
    repeats = max(3, int(2e8 / size_bytes))
    rate = size_bytes / native.gemv_seconds(m, k, TILE, tiles, transposed, repeats) / 1e9
    return {"gbyte_per_s": rate}


def measure() -> dict:
    read_bytes = 134_217_728
    read = read_bytes / native.read_seconds(read_bytes, 5) / 1e9
    out: dict = {"machine_read_gbyte_per_s": read, "levels": {}}
    before = native.isa_level()
    for level in native.isa_levels():
        if level == "plain":
            continue  # the definition in C++; its speed is nobody's concern
        native.set_isa_level(level)
        from_memory = {m: gemv(m, 4096, transposed=False) for m in (1, 4, 7)}
        for figures in from_memory.values():
            figures["of_machine_read"] = figures["gbyte_per_s"] / read
        out["levels"][level] = {
            "gemm_512x512_by_m": {m: gemm(m, 512, 512) for m in (8, 32, 128, 512)},
            "gemv_from_memory_by_m": from_memory,
            "gemv_from_cache_by_m": {m: gemv(m, 8, transposed=False) for m in (1, 4, 7)},
            "gemv_transposed_from_cache_by_m": {m: gemv(m, 16, transposed=True) for m in (1, 4)},
            "decode_gweight_per_s": {
                f.name.lower(): 256 * 128 / native.decode_seconds(f, 256, 128, 100) / 1e9
                for f in Format
                if f not in (Format.FP32, Format.INT32)
            },
            "function_glane_per_s": {
                f.name.lower(): 4096 / native.apply_seconds(f, 4096, 100) / 1e9 for f in Function
            },
        }
    native.set_isa_level(before)
    return out


def _print(figures: dict, indent: str = "") -> None:
    for key, value in figures.items():
        if isinstance(value, dict):
            print(f"{indent}{key}")
            _print(value, indent + "  ")
        else:
            print(f"{indent}{key:<24} {value:10.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    figures = measure()
    if parser.parse_args().json:
        print(json.dumps(figures, indent=2))
    else:
        _print(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
