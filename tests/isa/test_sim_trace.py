"""Traces: what Perfetto is given."""

import gzip
import json
from pathlib import Path

from tapeout.chip import load
from tapeout.isa import Source
from tapeout.isa.assembler import assemble
from tapeout.sim import Sim

TEXT = """
.queue mxu
  mxu.load src=0 k=8 n=8
  mxu.matmul src=256 rows=1 dst=0
  mxu.load src=0 k=8 n=8
  mxu.matmul src=256 rows=1 dst=0 posts=vpu.0
  seq.halt
.queue vpu
  vpu.map rows=1 a=acc[0:0:0] dst=vmem[0:0:0] waits=mxu.0
  seq.halt
"""


def traced(path: Path) -> dict:
    chip = load("tiny")
    program = assemble(TEXT, chip)
    program.source_table = [Source("down", "layer.3", "linear.py", 7), Source("norm")]
    program.sources = {"mxu": [0] * 5, "vpu": [1] * 2}
    sim = Sim(chip, checks=False, hbm_bytes=1 << 20)
    result = sim.run(sim.load(program, {}), trace=path)
    assert result.trace is not None
    assert len(result.trace.issue) == 7
    raw = path.read_bytes()
    return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)


def test_slices_are_named_and_do_not_overlap(tmp_path: Path) -> None:
    events = traced(tmp_path / "run.json")["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    assert [e["name"] for e in slices if e["cat"] == "vpu"] == ["norm vpu.map"]
    assert sum(e["name"] == "layer.3/down mxu.matmul" for e in slices) == 2
    assert slices[0]["args"]["source"] == "linear.py:7"
    threads: dict[int, list] = {}
    for e in slices:
        threads.setdefault(e["tid"], []).append((e["ts"], e["ts"] + e["dur"]))
    for spans in threads.values():
        assert all(a[1] <= b[0] for a, b in zip(sorted(spans), sorted(spans)[1:], strict=False))
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names[0] == "mxu"
    assert "mxu overlap 1" in names.values()  # passes of 25 cycles, one every few


def test_tokens_are_flows(tmp_path: Path) -> None:
    events = traced(tmp_path / "run.json.gz")["traceEvents"]
    (start,) = [e for e in events if e["ph"] == "s"]
    (end,) = [e for e in events if e["ph"] == "f"]
    assert start["name"] == end["name"] == "vpu <- mxu.0"
    assert start["id"] == end["id"]
    (use,) = [e for e in events if e["ph"] == "X" and e["cat"] == "vpu"]
    assert end["ts"] == use["ts"]
    assert start["ts"] < end["ts"]
