"""The element of the array as a routed layout: `python benchmarks/layout.py FOLDER`.

qflow maps `tiny`'s element to the cells of OSU018 (180 nm), places and routes it in FOLDER, within
the hour. What came of it goes to benchmarks/results/layout.json, the picture to docs/element.png.
Needs `apt-get install qflow qflow-tech-osu018 graywolf qrouter` and `pip install klayout`. A folder
that holds a routed layout is only looked at.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import klayout.db as db
import klayout.lay as lay
import machine

from tapeout.chip import load
from tapeout.physical.parts import parts

NAME, TECHNOLOGY = "element", "osu018"
LEF = f"/usr/share/qflow/tech/{TECHNOLOGY}/{TECHNOLOGY}_stdcells.lef"
RESULTS = Path(__file__).parent / "results" / "layout.json"
PICTURE = Path(__file__).parents[1] / "docs" / f"{NAME}.png"
WIDTH, HEIGHT = 1200, 845
# By layer, from the bottom: cells and their registers, then the metals of the wires.
COLOURS = {
    "cells": 0xE4E4E4, "registers": 0xBFCDE0, "metal1": 0x3B6FB6, "metal2": 0xD1495B,
    "metal3": 0x2A9D8F, "metal4": 0xE9A23B, "metal5": 0x7B4FA3, "metal6": 0x555555,
}  # fmt: skip


def place_and_route(folder: Path) -> None:
    """Runs qflow; exits with its last words where it fails."""
    for part in ("source", "synthesis", "layout"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "source" / f"{NAME}.v").write_text(parts(load("tiny"))[NAME].verilog)
    command = ["qflow", "synthesize", "place", "sta", "route", "-T", TECHNOLOGY, NAME]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode or not is_routed(folder):
        sys.exit(f"qflow failed: {(done.stdout + done.stderr)[-500:]}")


def is_routed(folder: Path) -> bool:
    log = folder / "log" / "route.log"
    return log.is_file() and "Final: No failed routes!" in log.read_text()


def figures(folder: Path) -> dict[str, Any]:
    """Sizes of the layout, and the slowest path before routing."""
    layout = (folder / "layout" / f"{NAME}.def").read_text()
    x0, y0, x1, y1 = map(int, re.findall(r"-?\d+", re.search(r"DIEAREA.*", layout)[0]))
    per_um = int(re.search(r"UNITS DISTANCE MICRONS (\d+)", layout)[1])
    placed = re.findall(r"^- \S+ (\S+)", layout.split("END COMPONENTS")[0], re.MULTILINE)
    slowest = re.search(r"delay ([\d.]+) ps", (folder / "log/sta.log").read_text())
    return {
        "technology": TECHNOLOGY,
        "width_um": (x1 - x0) / per_um,
        "height_um": (y1 - y0) / per_um,
        "cells": sum(not cell.startswith("FILL") for cell in placed if is_cell(cell)),
        "registers": sum(cell.startswith("DFF") for cell in placed),
        "nets": int(re.search(r"^NETS (\d+)", layout, re.MULTILINE)[1]),
        "slowest_path_ns": round(float(slowest[1]) / 1000, 3),
    }


def is_cell(name: str) -> bool:
    return name[0].isupper()  # vias are not


def draw(folder: Path) -> None:
    """Cells in grey, registers in blue, and the wires on them."""
    options = db.LoadLayoutOptions()
    options.lefdef_config.lef_files = [LEF]
    options.lefdef_config.macro_resolution_mode = 1
    view = lay.LayoutView()
    view.load_layout(str(folder / "layout" / f"{NAME}.def"), options)
    view.max_hier()
    layout = view.active_cellview().layout()
    top = layout.top_cell()
    layers = {n: layout.layer(100 + k, 0, n) for k, n in enumerate(("cells", "registers"))}
    outline = layout.layer(next(i for i in layout.layer_infos() if i.name == "OUTLINE"))
    for instance in top.each_inst():
        name = instance.cell.name
        if is_cell(name) and not name.startswith("FILL"):
            layer = layers["registers" if name.startswith("DFF") else "cells"]
            top.shapes(layer).insert(instance.bbox(outline).enlarged(-150, -150))
    top.shapes(outline).clear()
    view.clear_layers()
    for name, colour in COLOURS.items():
        info = next(i for i in layout.layer_infos() if i.name == name)
        shown = lay.LayerProperties()
        shown.source_layer, shown.source_datatype = info.layer, info.datatype
        shown.fill_color = shown.frame_color = colour
        shown.dither_pattern, shown.transparent = 0, False
        view.insert_layer(view.end_layers(), shown)
    hidden = ("grid-visible", "text-visible", "inst-visible", "ghost-cells-visible",
              "cell-box-visible")  # fmt: skip
    for setting in hidden:
        view.set_config(setting, "false")
    view.set_config("background-color", "#ffffff")
    view.zoom_box(top.dbbox())
    view.save_image_with_options(str(PICTURE), WIDTH, HEIGHT, 0, 2, 0.0, db.DBox(), False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.absolute()
    if not is_routed(folder):
        place_and_route(folder)
    found = figures(folder)
    draw(folder)
    print(json.dumps(found, indent=1))
    RESULTS.write_text(json.dumps({"machine": machine.describe(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
