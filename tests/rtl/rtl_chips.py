"""The chips whose hardware the tests run: built once each, with Verilator, in minutes."""

import pytest

from tapeout.chip import load

CHIPS = {
    "tiny": load("tiny"),
    # Little of everything: queues, credits, registers, places; an array that is not square.
    "narrow": load(
        "tiny",
        ["lanes=4", "mxu.cols=4", "mxu.rows=3", "mxu.adder_stages=3", "mxu.column_group=3",
         "mxu.load_rows_per_cycle=2", "mxu.load_rows_per_cycle_transposed=2",
         "mxu.accumulate_cycles=6", "vpu.sublanes=1", "vpu.adder_stages=3",
         "vpu.function_steps=3", "spm.banks_per_stripe=2", "spm.rows_per_bank=128",
         "dma.queues=1", "dma.credits=2", "hbm.interleave_bytes=64", "dma.bytes_per_cycle=20",
         "dma.dequant_elements_per_cycle=12", "dma.request_cycles=9", "seq.retire_entries=2",
         "seq.fetch_lines=2", "seq.fetch_line_instructions=4", "seq.registers=10",
         "tokens.latency_cycles=1"],
    ),
    # Wider than long: tiles of fewer rows than banks, all rows loaded in one cycle.
    "wide": load(
        "tiny",
        ["lanes=4", "mxu.cols=4", "mxu.rows=4", "mxu.adder_stages=1", "mxu.column_group=1",
         "mxu.load_rows_per_cycle=4", "mxu.load_rows_per_cycle_transposed=4",
         "mxu.accumulate_cycles=3", "vpu.sublanes=4", "vpu.adder_stages=2",
         "vpu.function_steps=5", "spm.banks_per_stripe=8", "spm.rows_per_bank=32",
         "dma.queues=3", "dma.bytes_per_cycle=64", "dma.dequant_elements_per_cycle=32"],
    ),
}  # fmt: skip

# `tiny` always; `narrow`, a build more, with the slow tests.
PARAMS = [pytest.param(n, marks=pytest.mark.slow if n != "tiny" else ()) for n in CHIPS]
