"""Tapeout: an AI accelerator that exists as text.

Importing `tapeout` loads nothing else. Each package is imported by its own name:
`tapeout.chip`, `tapeout.isa`, `tapeout.sim`, `tapeout.compiler`, `tapeout.runtime`, ...
"""

import os
from pathlib import Path

__version__ = "0.1.0"


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/tapeout`, or `~/.cache/tapeout`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tapeout"
