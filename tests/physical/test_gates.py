"""Libraries, parts, and what the tools find in a small one."""

import pytest

from tapeout.chip import load
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


def test_cells_have_area_and_kind(pdk):
    cells = pdk.cells()
    assert cells["NAND2"].area_um2 == 2.0
    assert not cells["NAND2"].is_flop
    assert cells["DFF"].is_flop


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
    from tapeout.physical import opensta, synthesis

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    version = synthesis.tool_version if missing == "pyosys" else opensta.version
    with pytest.raises(PhysicalError, match=words):
        version()
