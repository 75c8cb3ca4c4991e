"""Pages and pictures made from the code and from data files."""

import csv
import json
import re
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


def write_architectures(source: Path, path: Path) -> None:
    """What came of the architectures of the report of benchmarks/zoo.py, by task."""
    tasks: dict[str, list[dict]] = {}
    for r in json.loads(source.read_text(encoding="utf-8"))["reports"]:
        tasks.setdefault(r["key"][0], []).append(r)
    lines = _row(["task", "in the list", "built", "match"]) + _row(["---"] * 4)
    for task, reports in tasks.items():
        built = [r for r in reports if r["outcome"] != "not built"]
        good = sum(r["outcome"] == "matches" for r in built)
        lines += _row([task, str(len(reports)), str(len(built)), str(good)])
    lines += "\nThose that do not match, or that no small configuration builds:\n\n"
    lines += _row(["task", "architecture", "outcome", "reason"]) + _row(["---"] * 4)
    for task, reports in tasks.items():
        for r in reports:
            if r["outcome"] != "matches":
                reason = re.sub(r"\S*site-packages/", "", r["reason"])
                reason = reason.split(" Set TORCHDYNAMO")[0].replace("|", "\\|")[:300]
                lines += _row([task, r["key"][1], r["outcome"], f"`{reason}`" if reason else ""])
    path.write_text(lines, encoding="utf-8")


def write_training_step(source: Path, path: Path) -> None:
    """The figures of the report of benchmarks/train_step.py."""
    step = json.loads(source.read_text(encoding="utf-8"))["figures"]
    moved = step["bytes"]["hbm_read"] + step["bytes"]["hbm_write"]
    lines = _row(["figure", "value"]) + _row(["---", "---:"])
    for name, value in (
        ("cycles", f"{step['cycles']:,}"),
        ("multiplications that the model needs", f"{step['macs_needed'] / 1e9:.1f} G"),
        ("share of the array for these", f"{step['share_of_array']:.1%}"),
        ("multiplications done, with sums that are computed as products",
         f"{step['macs_done'] / 1e9:.1f} G"),
        ("HBM traffic", f"{moved / 1e9:.1f} GB"),
        ("memory", f"{step['heap_bytes'] / 1e9:.2f} GB"),
        ("instructions", f"{step['instructions']:,}"),
    ):  # fmt: skip
        lines += _row([name, value])
    path.write_text(lines, encoding="utf-8")


def draw_losses(reports: dict[str, Path], path: Path) -> None:
    """Training losses of chip and PyTorch, a panel for each report of a training benchmark."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(reports), figsize=(9, 3.2), layout="constrained")
    for panel, (title, source) in zip(panels, reports.items(), strict=True):
        report = json.loads(source.read_text(encoding="utf-8"))
        sides = zip(*report["training"], strict=True)
        for side, name, colour, width in zip(
            sides, ("Tapeout", "PyTorch"), ("#0072b2", "#d55e00"), (2.2, 0.9), strict=True
        ):
            smooth = [sum(side[max(0, i - 9) : i + 1]) / min(i + 1, 10) for i in range(len(side))]
            panel.plot(smooth, color=colour, linewidth=width, label=name)
        if "held_out" in report:
            steps, chip, _ = zip(*report["held_out"], strict=True)
            panel.plot(steps, chip, "o", color="black", markersize=3, label="held out, Tapeout")
        panel.set(title=title, xlabel="step", ylabel="cross entropy, nats")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _texts(chip: Chip) -> dict[str, str]:
    groups = figures(chip).items()
    return {f"{group}: {f.label}": f.text for group, members in groups for f in members}


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
