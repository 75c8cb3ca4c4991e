"""Writes what `python -m MODULE` prints to a file: `generate.py SOURCE_DIR MODULE HEADER`.

Called by CMake. The module comes from SOURCE_DIR, never from an installed (editable) tapeout, and
nothing is written when it fails.
"""

import contextlib
import io
import runpy
import sys
from pathlib import Path

source_dir, module, header = sys.argv[1:]
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
sys.path[0] = source_dir
sys.argv = [module]
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    runpy.run_module(module, run_name="__main__", alter_sys=True)
if not printed.getvalue().strip():
    sys.exit(f"{module} printed nothing: {header} is not written")
path = Path(header)
if not path.exists() or path.read_text(encoding="utf-8") != printed.getvalue():
    path.write_text(printed.getvalue(), encoding="utf-8")  # untouched: nothing is recompiled
