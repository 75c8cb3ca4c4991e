"""Yosys as SymbiYosys calls it (`yosys -ql LOG SCRIPT`), from the package pyosys."""

import sys

from pyosys import libyosys


def main(arguments: list[str]) -> None:
    match arguments:
        case ["-ql", log, script]:
            libyosys.run_pass(f"tee -q -o {log} script {script}", libyosys.Design())
        case _:
            sys.exit(f"unknown arguments {arguments}: expected -ql LOG SCRIPT")


if __name__ == "__main__":
    main(sys.argv[1:])
