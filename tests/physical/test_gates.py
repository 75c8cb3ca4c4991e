"""Cell functions, netlist simulation, libraries and parts; what needs tools asks for them."""

import pytest

from tapeout.chip import load
from tapeout.physical.functions import expression
from tapeout.physical.gates import GateSimulator
from tapeout.physical.parts import chosen, memory_bits, parts
from tapeout.physical.pdk import PhysicalError, find

LIBERTY = """
library (osu) {
  cell (NAND2) {
    area : 2.0;
    pin (Y) {
      function : "!(A*B)";
    }
  }
  cell (DFF) {
    area : 8.5;
    ff (IQ, IQN) {
      next_state : "D";
    }
    pin (Q) {
      function : "IQ";
    }
  }
}
"""


@pytest.fixture
def pdk(tmp_path):
    (tmp_path / "osu018_stdcells.lib").write_text(LIBERTY)
    return find(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("!(A*B)", 0b0111),
        ("A + B C", 0b1110),
        ("(A^B)", 0b0110),
        ("!A & !B", 0b0001),
        ("(!A) | B", 0b1011),
        ("A !B", 0b0100),
    ],
)
def test_liberty_functions_become_python(text, value):
    names = {"A": "a", "B": "b", "C": "ones"}
    assert eval(expression(text, names), {"a": 0b1100, "b": 0b1010, "ones": 0b1111}) == value


@pytest.mark.parametrize("text", ["A'", "(A", "A*X", ""])
def test_what_is_no_function_is_refused(text):
    with pytest.raises(PhysicalError, match="is not read"):
        expression(text, {"A": "a"})


def test_cells_have_area_and_kind(pdk):
    cells = pdk.cells()
    assert cells["NAND2"].area_um2 == 2.0
    assert not cells["NAND2"].is_flop
    assert cells["DFF"].is_flop


def test_a_netlist_runs_and_its_changes_are_counted(pdk):
    """q' = !(go * q): q turns where go is set, else it is one."""
    module = {
        "ports": {
            "clk": {"direction": "input", "bits": [2]},
            "go": {"direction": "input", "bits": [3]},
            "q": {"direction": "output", "bits": [4]},
        },
        "cells": {
            "n": {"type": "NAND2", "connections": {"A": [3], "B": [4], "Y": [5]}},
            "f": {"type": "DFF", "connections": {"CLK": [2], "D": [5], "Q": [4]}},
        },
    }
    simulator = GateSimulator(module, pdk, streams=2)
    outputs, activity = simulator.run([{"go": [0b01]}] * 5)
    assert [o["q"][0] for o in outputs] == [0b00, 0b11, 0b10, 0b11, 0b10]
    # Stream 0 changes in each of four steps, stream 1 once.
    assert activity["f/Q"][0] == 5 / 8
    assert activity["f/Q"][1] == 6 / 10


def test_a_cell_without_a_function_is_named(pdk):
    module = {"ports": {}, "cells": {"x": {"type": "MUX", "connections": {"Y": [2]}}}}
    with pytest.raises(PhysicalError, match="MUX of x has no function"):
        GateSimulator(module, pdk, streams=1)


def test_a_folder_without_a_library_says_what_is_known(tmp_path):
    with pytest.raises(PhysicalError, match="no cell library is recognised there; known are asap7"):
        find(str(tmp_path))
    with pytest.raises(PhysicalError, match=r"no such folder.*apt-get install qflow-tech-osu018"):
        find(str(tmp_path / "none"))


def test_counts_of_parts_follow_the_chip():
    chip = load("tiny")
    counts = {name: part.count for name, part in parts(chip).items()}
    assert counts["element"] == 64
    assert counts["row"] == 8
    assert counts["lane"] == 16
    assert counts["dma"] == counts["seq_dma"] == 2
    assert counts["token"] == 4 * 3 * 4
    assert memory_bits(chip) == {"spm": 48 * 2**13, "vmem": 4 * 2**13, "acc": 16 * 2**13}


def test_an_unknown_part_is_refused():
    with pytest.raises(PhysicalError, match=r"--part alu: no such part; known are element, row"):
        chosen(load("tiny"), ["alu"])


@pytest.mark.parametrize(
    ("missing", "words"),
    [("pyosys", r"pip install 'tapeout\[gates\]'"), ("sta", "apt-get install opensta")],
)
def test_a_missing_tool_says_what_to_install(monkeypatch, missing, words):
    from tapeout.physical import synthesis, timing

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    tool = synthesis if missing == "pyosys" else timing
    with pytest.raises(PhysicalError, match=words):
        tool.tool_version()
