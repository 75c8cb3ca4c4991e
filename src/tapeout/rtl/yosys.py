"""Yosys as SymbiYosys calls it (`yosys -ql LOG SCRIPT`), from the package pyosys."""

import subprocess
import sys
from pathlib import Path

# In a process of its own, with the two arguments behind.
COMMAND = [sys.executable, "-m", "tapeout.rtl.yosys"]


def run(script: str, folder: Path) -> tuple[int, str]:
    """Runs a script in a folder, for its files: (exit code, log)."""
    (folder / "script.ys").write_text(script)
    command = [*COMMAND, "-ql", "log", "script.ys"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    log = folder / "log"
    return done.returncode, log.read_text() if log.exists() else done.stderr


def main(arguments: list[str]) -> None:
    from pyosys import libyosys

    match arguments:
        case ["-ql", log, script]:
            libyosys.run_pass(f"tee -q -o {log} script {script}", libyosys.Design())
        case _:
            sys.exit(f"unknown arguments {arguments}: expected -ql LOG SCRIPT")


if __name__ == "__main__":
    main(sys.argv[1:])
