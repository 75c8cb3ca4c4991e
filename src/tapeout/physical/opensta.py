"""Calls of OpenSTA."""

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .pdk import PhysicalError
from .tools import call

TIMEOUT_S = 1800


def version() -> str:
    """Raises: PhysicalError where OpenSTA is missing."""
    if shutil.which("sta") is None:
        raise PhysicalError(
            "timing needs OpenSTA, which is not installed: run `apt-get install opensta`"
        )
    return subprocess.run(["sta", "-version"], capture_output=True, text=True).stdout.strip()


def run(script: Iterable[str], top: str, folder: Path) -> str:
    """What the lines of a script print, run in a folder, on the netlist of `top`.

    Raises: PhysicalError where OpenSTA is missing, or does not come to the script's end.
    """
    version()
    (folder / "script.tcl").write_text("\n".join([*script, 'puts "== end"', "exit"]) + "\n")
    output = call(
        f"OpenSTA, for {top},", ["sta", "-no_splash", "-exit", "script.tcl"], folder, TIMEOUT_S
    ).output
    errors = [line for line in output.splitlines() if line.startswith("Error")]
    if errors or "== end" not in output:
        raise PhysicalError(f"OpenSTA failed on {top}: {errors[0] if errors else 'it ended early'}")
    return output
