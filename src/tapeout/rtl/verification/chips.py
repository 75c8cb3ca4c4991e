"""Random small chips: the generator's equality, not one preset's."""

import random

from tapeout.chip import FORMATS, WIDE_FORMATS, Chip, load


def random_chip(seed: int) -> Chip:
    """A chip that Verilator builds in minutes; the same for the same seed."""
    rng = random.Random(seed)
    lanes = rng.choice([4, 8, 8, 16])
    rows = rng.choice([lanes, rng.randrange(2, lanes + 1)])
    banks = rng.choice([2, 4, 8])
    sublanes = rng.choice([1, 2, 4])
    settings: dict[str, int | str] = {
        "lanes": lanes,
        "mxu.cols": lanes,
        "mxu.rows": rows,
        "mxu.adder_stages": rng.choice([1, 2, 3]),
        "mxu.column_group": rng.choice([1, 2, 3, 4, 8]),
        "mxu.load_rows_per_cycle": rng.choice([n for n in (1, 2, 4, 8) if n <= min(banks, rows)]),
        "mxu.load_rows_per_cycle_transposed": rng.choice([n for n in (1, 2, 4) if n <= banks]),
        "mxu.accumulate_cycles": rng.choice([3, 4, 5, 6]),
        "spm.stripes": rng.choice([8, 10, 12]),
        "spm.banks_per_stripe": banks,
        "spm.rows_per_bank": rng.choice([256 // banks, 240 // banks]),
        "acc.stripes": rng.choice([3, 4, 8]),
        "acc.rows_per_stripe": rng.choice([64, 48]),
        "vmem.rows": rng.choice([96, 128]),
        "vpu.sublanes": sublanes,
        "dma.queues": rng.choice([1, 2, 3]),
        "dma.credits": rng.choice([1, 2, 8]),
        "dma.bytes_per_cycle": 4 * lanes * rng.choice([1, 2]),
        "dma.dequant_elements_per_cycle": lanes * rng.choice([1, 2, 3]),
        "dma.request_cycles": rng.randrange(8, 16),
        "dma.response_cycles": rng.randrange(8, 16),
        "hbm.interleave_bytes": rng.choice([128, 256, 1024]),
        "seq.registers": rng.choice([12, 32]),
        "seq.loop_depth": rng.choice([2, 4]),
        "seq.fetch_line_instructions": rng.choice([2, 4, 16]),
        "seq.fetch_lines": rng.choice([2, 4]),
        "seq.retire_entries": rng.choice([1, 2, 8]),
        "tokens.channels_per_pair": rng.choice([2, 4]),
        "tokens.capacity": rng.choice([9, 16, 63]),
        "tokens.latency_cycles": rng.choice([1, 2, 4]),
        "vpu.adder_stages": rng.choice([1, 2, 3]),
        "vpu.function_steps": rng.choice([1, 2, 3, 5, 6]),
    }
    narrow = [name for name in FORMATS if name not in WIDE_FORMATS]
    count = rng.choice([0, len(narrow), *rng.sample(range(1, len(narrow)), 3)])
    settings["dma.formats"] = ",".join(["bf16", "fp32", *rng.sample(narrow, count)])
    return load("tiny", [f"{key}={value}" for key, value in settings.items()])
