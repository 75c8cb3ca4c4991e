"""Small parts through Yosys, ABC and OpenSTA, in a library whose figures are round."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from round_library import AREA, CLOCK_TO_Q_NS, GATE_NS, SETUP_NS

from tapeout.physical.measure import measure
from tapeout.physical.parts import Part
from tapeout.physical.pdk import PhysicalError
from tapeout.physical.tools import call


class Pair(wiring.Component):
    """Two registers whose NAND is a third."""

    a: In(1)
    b: In(1)
    y: Out(1)

    def elaborate(self, platform):
        m = Module()
        first = Signal(reset_less=True)
        second = Signal(reset_less=True)
        last = Signal(reset_less=True)
        m.d.sync += [first.eq(self.a), second.eq(self.b), last.eq(~(first & second))]
        m.d.comb += self.y.eq(last)
        return m


class Store(wiring.Component):
    """A memory of 64 words of 64 bits, read into registers and written where a register says."""

    address: In(6)
    y: Out(64)

    def elaborate(self, platform):
        m = Module()
        m.submodules.words = words = memory.Memory(shape=64, depth=64, init=[])
        read, write = words.read_port(), words.write_port()
        at = Signal(6, reset_less=True)
        word = Signal(64, reset_less=True)
        m.d.sync += [at.eq(self.address), word.eq(read.data)]
        m.d.comb += self.y.eq(word)
        m.d.comb += [read.addr.eq(at), write.addr.eq(at)]
        m.d.comb += [write.en.eq(at[0] & at[1]), write.data.eq(at)]
        return m


def _measured(make, pdk, tmp_path):
    part = Part(name="part", title="", count=1, make=make)
    return measure(part, pdk, clock_ghz=0.1, folder=tmp_path / "cache")


def test_area_and_paths_are_the_sums_of_cells(pdk, tmp_path):
    found = _measured(Pair, pdk, tmp_path)
    assert (found.cells, found.flops) == (4, 3)
    assert found.area_um2 == 3 * AREA["DFFPOSX1"] + AREA["NAND2X1"]
    between = found.timing.between
    assert between.delay_ns == pytest.approx(CLOCK_TO_Q_NS + GATE_NS + SETUP_NS)
    assert between.start in ("first", "second")
    assert between.end in ("last", "y")
    assert found == _measured(Pair, pdk, tmp_path)  # from the cache
    assert len(list((tmp_path / "cache").glob("*.json"))) == 1


def test_a_memory_is_a_macro_whose_ports_are_paths_ends(pdk, tmp_path):
    found = _measured(Store, pdk, tmp_path)
    # Each bit of `at` leaves by three ports, each with a buffer; the write enable has two gates.
    assert (found.cells, found.flops) == (6 + 64 + 2 + 3 * 6, 6 + 64)
    slowest = found.timing.slowest
    assert slowest.delay_ns == pytest.approx(CLOCK_TO_Q_NS + 2 * GATE_NS)
    assert slowest.start in ("at[0]", "at[1]")
    assert slowest.end.startswith("words.WRITE_ENABLE")


def test_a_library_without_gates_is_yosys_error(pdk, tmp_path):
    (pdk.paths[0]).write_text("library (empty) {\n}\n")
    with pytest.raises(PhysicalError, match="Yosys failed on part: ERROR"):
        _measured(Pair, pdk, tmp_path)


def test_a_call_that_takes_too_long_ends(tmp_path):
    with pytest.raises(PhysicalError, match=r"sleeping took more than 0\.2 s"):
        call("sleeping", ["sleep", "60"], tmp_path, 0.2)


def test_the_end_of_the_command_ends_its_tools(tmp_path):
    """A terminated caller leaves neither the tool, nor what the tool started."""
    script = (
        "import signal, sys; from pathlib import Path; from tapeout.physical.tools import call\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "call('x', ['sh', '-c', 'sleep 600 & echo $! >pid; wait'], Path(sys.argv[1]), 600)"
    )
    caller = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    written = tmp_path / "pid"
    until = time.monotonic() + 30
    while not (written.exists() and written.read_text().strip()):
        assert time.monotonic() < until
        time.sleep(0.05)
    caller.send_signal(signal.SIGTERM)
    assert caller.wait(30) == 143
    sleeper = int(written.read_text())
    while _runs(sleeper):
        assert time.monotonic() < until
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def test_the_command_says_which_parts_miss_the_clock(pdk, tmp_path):
    command = [sys.executable, "-m", "tapeout", "synth", "--chip", "tiny"]
    command += ["--pdk", str(tmp_path), "--part", "token"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "120"}
    shown = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert shown.returncode == 0, shown.stderr
    assert "token misses the clock" in shown.stdout
    said = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment)
    found = json.loads(said.stdout)["parts"]["token"]
    assert found["count"] == 48
    assert found["flops"] == 7
    assert found["area_um2"] > 7 * AREA["DFFPOSX1"]
    slowest = found["timing"]["slowest"]
    assert slowest["delay_ns"] > CLOCK_TO_Q_NS + GATE_NS
    assert slowest["report"].count("NAND2X1") >= 1
