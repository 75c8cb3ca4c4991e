"""The chip description: every hardware number once, frozen, with its unit in its name.

`load("solo")` gives a preset, `load("my.toml")` a file of your own, and either takes overrides:

>>> from tapeout.chip import load
>>> load("solo", ["clock_ghz=1.2"]).clock_ghz
1.2
"""

from tapeout.chip.load import apply_overrides, load, presets, to_dict, to_toml
from tapeout.chip.spec import (
    FORMATS,
    WIDE_FORMATS,
    Acc,
    Chip,
    ChipError,
    Dma,
    Hbm,
    HbmTiming,
    Links,
    Mxu,
    Seq,
    Spm,
    Tokens,
    Vmem,
    Vpu,
)

__all__ = [
    "FORMATS",
    "WIDE_FORMATS",
    "Acc",
    "Chip",
    "ChipError",
    "Dma",
    "Hbm",
    "HbmTiming",
    "Links",
    "Mxu",
    "Seq",
    "Spm",
    "Tokens",
    "Vmem",
    "Vpu",
    "apply_overrides",
    "load",
    "presets",
    "to_dict",
    "to_toml",
]
