"""Tapeout: an AI accelerator that exists as text.

Importing `tapeout` loads nothing else. Each package is imported by its own name:
`tapeout.chip`, `tapeout.isa`, `tapeout.sim`, `tapeout.compiler`, `tapeout.runtime`, ...

`tapeout.compile` and `tapeout.Model` compile a PyTorch module ahead of time, and load what was
saved (`tapeout.compiler.ahead`); they need the extra `torch`.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tapeout.compiler.ahead import Model, compile

__all__ = ["Model", "__version__", "cache_folder", "compile"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in ("Model", "compile"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tapeout.compiler import ahead

    return getattr(ahead, name)


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/tapeout`, or `~/.cache/tapeout`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tapeout"
