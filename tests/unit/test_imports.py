"""The order of the packages: each may import itself and those before it, never one after it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tapeout

# In the order data flows, as the architecture lists them.
ORDER = (
    "chip", "numerics", "isa", "sim", "rtl", "lang", "kernels", "compiler", "models", "runtime",
    "physical", "system", "economics", "serve", "cli",
)  # fmt: skip

ROOT = Path(tapeout.__file__).parent


def package_of(path: Path, root: Path) -> str:
    """`isa` for isa/mxu.py; `` for files of `tapeout` itself."""
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else ""


def imported(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted module, absolute, of every import in the file, wherever it stands."""
    module = ("tapeout", *path.relative_to(root).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = module[: len(module) - node.level] if node.level else ()
            base = ".".join([*parent, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def violations(root: Path) -> list[str]:
    found = []
    for path in sorted(root.rglob("*.py")):
        here = package_of(path, root)
        if here == "":
            continue
        if here not in ORDER:
            found.append(f"{path}: package {here!r} is not in the architecture's list")
            continue
        for line, name in imported(path, root):
            top, _, rest = name.partition(".")
            there = rest.partition(".")[0]
            if top == "tapeout" and there in ORDER and ORDER.index(there) > ORDER.index(here):
                found.append(f"{path}:{line}: {here} imports {there}, which comes after it")
    return found


def test_imports_point_upward_only():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    "planted",
    [
        "from tapeout.cli import main",
        "import tapeout.compiler.graph",
        "from tapeout import runtime",
        "from ..kernels import matmul",
        "from .. import models",
        "def late():\n    import tapeout.lang",
    ],
)
def test_a_planted_downward_import_is_found(tmp_path, planted):
    (tmp_path / "isa").mkdir()
    (tmp_path / "isa" / "mxu.py").write_text(f"from tapeout.chip import Chip\n{planted}\n")
    (found,) = violations(tmp_path)
    assert "isa imports" in found


def test_a_package_outside_the_list_is_found(tmp_path):
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "x.py").write_text("")
    (found,) = violations(tmp_path)
    assert "'helpers' is not in the architecture's list" in found


def test_only_the_command_line_may_stand_beside_the_packages():
    assert sorted(p.name for p in ROOT.glob("*.py")) == ["__init__.py", "__main__.py"]
