"""Faults that change nothing, which no program can find.

Contract: `changes_nothing` is proven by SAT over the module that has the fault, in one of two ways,
whatever its inputs, its state and what modules in it give:

* its outputs, what it gives to modules in it, and its next state are the same as without the fault;
* or its outputs and what it gives are, from the cycle `_CYCLES` on, even where the two begin in
  different states: so for a pipeline, whose state is what came in before.

False says nothing: a fault may be out of reach for the whole core's sake.
"""

import importlib.util
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tapeout.rtl import yosys
from tapeout.rtl.build import BuildError
from tapeout.rtl.verilog import instantiated

_HEAD = re.compile(r"^module (\\\S+ ?|\w+)", re.MULTILINE)
_PORT = re.compile(r"  (input|output)\b")
_SECONDS = 60
_CYCLES = 8

_SCRIPT = """\
read_verilog pair.v
proc
opt_clean
memory -nomap -nordff
memory_map
{expose}
miter -equiv -flatten good bad miter
delete good bad
hierarchy -top miter
opt -full -purge
opt_merge -share_all
opt -full -purge
sat -timeout {seconds} {cycles} -verify -prove trigger 0 miter
"""


def changes_nothing(good: str, bad: str, bodies: Mapping[str, str]) -> bool:
    """Whether two texts of a module are proven to do the same.

    Args:
        bodies: texts of the modules that may lie in it, by name.

    Raises: BuildError where Yosys is not there.
    """
    if importlib.util.find_spec("pyosys") is None:
        raise BuildError("mutants need Yosys, which is missing: run `pip install 'tapeout[gates]'`")
    inner = sorted(instantiated(good) & bodies.keys())
    pair = [_HEAD.sub("module good", good, 1), _HEAD.sub("module bad", bad, 1)]
    text = "\n".join([*pair, *(_black(bodies[name]) for name in inner)])
    instances = [f"expose -sep ~ -evert t:{_pattern(name)}" for name in inner]
    evert = [line for module in ("good", "bad") for line in (f"cd {module}", *instances, "cd ..")]
    state = "expose -sep ~ -evert-dff -dff good bad"
    later = f"-seq {_CYCLES} -prove-skip {_CYCLES - 1}"
    return _proven(text, [state, *evert], "") or _proven(text, evert, later)


def _proven(text: str, expose: list[str], cycles: str) -> bool:
    script = _SCRIPT.format(expose="\n".join(expose), cycles=cycles, seconds=_SECONDS)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "pair.v").write_text(text)
        code, log = yosys.run(script, Path(scratch))
    if code == 0:
        return True
    # Without a matching port one of the two has a register that never changes.
    undecided = ("proof did fail", "timed out", "No matching port")
    if any(words.lower() in log.lower() for words in undecided):
        return False
    raise BuildError(f"Yosys ended with code {code}: {log.strip().splitlines()[-1]}")


def _pattern(name: str) -> str:
    return re.sub(r"[^\w.]", "?", name)


def _black(text: str) -> str:
    """A module without its inside."""
    end = text.index(");") + 2
    head, lines = text[:end], text[end:].splitlines()
    ports = [] if re.search(r"\n +(input|output)\b", head) else [x for x in lines if _PORT.match(x)]
    return "\n".join(["(* blackbox *)", head, *ports, "endmodule"])
