"""Yosys as SymbiYosys calls it (`yosys -ql LOG SCRIPT`), from the package pyosys."""

import sys

# In a process of its own, with the two arguments behind.
COMMAND = [sys.executable, "-m", "tapeout.rtl.yosys"]


def main(arguments: list[str]) -> None:
    from pyosys import libyosys

    match arguments:
        case ["-ql", log, script]:
            libyosys.run_pass(f"tee -q -o {log} script {script}", libyosys.Design())
        case _:
            sys.exit(f"unknown arguments {arguments}: expected -ql LOG SCRIPT")


if __name__ == "__main__":
    main(sys.argv[1:])
