"""Tapeout: an AI accelerator that exists as text.

Importing `tapeout` loads nothing else. Each package is imported by its own name:
`tapeout.chip`, `tapeout.isa`, `tapeout.sim`, `tapeout.compiler`, `tapeout.runtime`, ...
"""

__version__ = "0.1.0"
