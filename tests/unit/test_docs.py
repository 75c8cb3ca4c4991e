"""What the documentation shows is run: Python blocks, chip files, and `$ tapeout ...` commands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[Path, str]]:
    return [
        (page, text)
        for page in PAGES
        for found, text in BLOCK.findall(page.read_text(encoding="utf-8"))
        if found == language
    ]


def commands() -> list:
    """Each `$ tapeout` line of the console blocks; what compiles models or hardware is slow."""
    lines = {
        line.removeprefix("$ ")
        for _, text in blocks("console")
        for line in text.splitlines()
        if line.startswith("$ tapeout ")
    }
    slow = [pytest.mark.slow, pytest.mark.model, pytest.mark.torch]
    return [
        pytest.param(line, marks=slow if re.match("tapeout (run|chat|verify)", line) else [])
        for line in sorted(lines)
    ]


def test_there_is_something_to_run():
    assert len(blocks("python")) >= 2
    assert len(blocks("toml")) >= 1
    assert len(commands()) >= 5


@pytest.mark.parametrize(
    ("page", "text"), blocks("python"), ids=lambda v: v.name if isinstance(v, Path) else ""
)
def test_python_runs(page, text, tmp_path, monkeypatch):
    if "import torch" in text:
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    exec(compile(text, str(page), "exec"), {"__name__": "docs"})


@pytest.fixture
def folder(tmp_path):
    """A working folder with the chip files that the pages show, under the names they give."""
    for _, text in blocks("toml"):
        name = re.search(r'^name = "(\w+)"', text, re.MULTILINE)
        assert name, f"a chip file in the documentation needs a name:\n{text}"
        (tmp_path / f"{name[1]}.toml").write_text(text)
    return tmp_path


@pytest.mark.parametrize("line", commands())
def test_a_command_runs(line, folder):
    arguments = shlex.split(line)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "tapeout", *arguments], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    ("page", "text"), blocks("diff"), ids=lambda v: v.name if isinstance(v, Path) else ""
)
def test_patches_apply(page, text):
    done = subprocess.run(
        ["git", "apply", "--check", "-"], input=text, cwd=ROOT, capture_output=True, text=True
    )
    assert not done.returncode, f"{page.name}: {done.stderr}"
