"""Host time of a 128-token prefill beside the same products in the bare GEMM kernel, in one run.

    python benchmarks/prefill_host.py

The products: every matrix of SmolLM2-135M over 128 rows, the LM head over one; attention's own
products are left out on the bare side. CPU seconds, the best of several.
"""

import json
import time
from pathlib import Path

import gemm
from machine import describe

from tapeout.chip import load as load_chip
from tapeout.models import resolve
from tapeout.runtime.cache import Options, compiled
from tapeout.runtime.session import Session
from tapeout.sim import Sim

TOKENS, LAYERS = 128, 30
PRODUCTS = [  # (rows, K, N), times
    ((TOKENS, 576, 960), LAYERS),  # q, k, v
    ((TOKENS, 576, 576), LAYERS),  # o
    ((TOKENS, 576, 3072), LAYERS),  # gate, up
    ((TOKENS, 1536, 576), LAYERS),  # down
    ((1, 576, 49152), 1),  # head
]
RESULTS = Path(__file__).parent / "results/prefill_host.json"


def prefill_s(session: Session) -> float:
    """CPU seconds of one prefill, values and cycles."""
    session.position = 0
    start = time.process_time()
    session.prefill(list(range(100, 100 + TOKENS)))
    return time.process_time() - start


def bare_s() -> float:
    """CPU seconds of the products alone."""
    rates = {
        shape: max(gemm.gemm(*shape)["gflop_per_s"] for _ in range(2)) for shape, _ in PRODUCTS
    }
    return sum(times * 2e-9 * m * k * n / rates[m, k, n] for (m, k, n), times in PRODUCTS)


def main() -> None:
    chip = load_chip("solo")
    found = compiled(resolve("smollm2-135m"), chip, Options())
    session = Session(found.artifact, Sim(chip))
    before = min(prefill_s(session) for _ in range(3))
    bare = bare_s()
    ours = min(before, *(prefill_s(session) for _ in range(3)))
    result = {"prefill_s": ours, "bare_products_s": bare, "ratio": ours / bare}
    print(json.dumps(result, indent=1))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": describe(), "result": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
