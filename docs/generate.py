"""Pages and pictures made from the code and from data files."""

import csv
import json
from pathlib import Path

from tapeout.chip import Chip, load, presets
from tapeout.chip.figures import figures
from tapeout.rtl.diagram import core_svg


def write_presets(path: Path) -> None:
    """One table: a row for each derived figure, a column for each preset."""
    chips = [load(name) for name in presets()]
    lines = _row(["", *(f"`{c.name}`" for c in chips)]) + _row(["---", *(["---:"] * len(chips))])
    lines += _row(["clock", *(f"{c.clock_ghz:g} GHz" for c in chips)])
    lines += _row(["cores", *(str(c.cores) for c in chips)])
    lines += _row(["array", *(f"{c.mxu.rows} x {c.mxu.cols}" for c in chips)])
    texts = [_texts(c) for c in chips]
    for label in max(texts, key=len):
        lines += _row([label, *(column.get(label, "none") for column in texts)])
    path.write_text(lines, encoding="utf-8")


def write_diagram(chip: str, path: Path) -> None:
    """The block diagram of a preset's core."""
    path.write_text(core_svg(load(chip)), encoding="utf-8")


def write_accelerators(source: Path, path: Path) -> None:
    """The rows of the CSV file, each figure with its source and how sure it is."""
    lines = _row(["accelerator", "figure", "value", "source", "kind"]) + _row(["---"] * 5)
    with source.open(encoding="utf-8", newline="") as rows:
        for row in csv.DictReader(rows):
            link = f"[{row['source_title']}]({row['url']})"
            value = f"{row['value']} {row['unit']}".strip()
            lines += _row([row["chip"], row["metric"], value, link, row["confidence"]])
    path.write_text(lines, encoding="utf-8")


def write_operators(source: Path, path: Path) -> None:
    """The operators of the report of benchmarks/opinfo.py, and why some do not pass."""
    whole = json.loads(source.read_text(encoding="utf-8"))
    reports = sorted(((name, r) for r in whole["reports"] for name in r["key"]), key=lambda x: x[0])
    passed = sum(bool(r["samples"]) and r["passed"] == r["samples"] for _, r in reports)
    lines = f"{passed} of the {len(reports)} operators pass all their samples "
    lines += f"({100 * passed / len(reports):.1f} %).\n\n"
    lines += _row(["operator", "samples", "passed", "what stops the others"]) + _row(["---"] * 4)
    for name, r in reports:
        reasons = "; ".join(f"{why} ({count})" for why, count in r["failures"][:3])
        reasons = reasons.replace("|", "\\|").replace("\n", " ")
        lines += _row([f"`{name}`", str(r["samples"]), str(r["passed"]), reasons])
    path.write_text(lines, encoding="utf-8")


def _texts(chip: Chip) -> dict[str, str]:
    groups = figures(chip).items()
    return {f"{group}: {f.label}": f.text for group, members in groups for f in members}


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
