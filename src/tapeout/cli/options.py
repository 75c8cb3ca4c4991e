"""Options that several verbs share, so that they are spelled and explained once."""

from enum import StrEnum
from typing import Annotated

import typer


class Weights(StrEnum):
    """How weights lie in HBM."""

    BF16 = "bf16"
    PACKED = "packed"


class Target(StrEnum):
    """What runs the programs."""

    SIM = "sim"
    RTL = "rtl"
    RTL_DPI = "rtl-dpi"
    INTERP = "interp"


ChipOption = Annotated[
    str,
    typer.Option(
        "--chip", metavar="NAME", help="A preset (`tapeout chip` lists them) or a path to a .toml."
    ),
]

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one number of the chip for this run, e.g. mxu.adder_stages=3. Repeatable.",
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="smollm2-135m, a .gguf file, or a Hugging Face model's directory."
    ),
]

WeightsOption = Annotated[
    Weights,
    typer.Option(
        "--weights", help="bf16, or packed: blocks of 4 or 8 bits stay packed in HBM (GGUF)."
    ),
]

ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context",
        min=1,
        metavar="N",
        help="Positions of the KV cache, rounded up to whole tiles of the chip; "
        "1024 where the model has as many.",
        show_default=False,
    ),
]

TemperatureOption = Annotated[
    float,
    typer.Option(
        "--temperature", min=0.0, metavar="T", help="0 takes the likeliest token; above, draw."
    ),
]

TopKOption = Annotated[
    int,
    typer.Option("--top-k", min=0, metavar="K", help="Draw among the K likeliest tokens; 0: all."),
]

SeedOption = Annotated[
    int, typer.Option("--seed", min=0, metavar="S", help="The same seed draws the same text.")
]

TargetOption = Annotated[
    Target,
    typer.Option(
        "--target",
        help="sim counts cycles; rtl runs the hardware itself, built for the chip once (minutes), "
        "slowly; rtl-dpi takes the multiply-adds of its array from C, for arrays beyond 32 x 32; "
        "interp is the slow definition, without a clock.",
    ),
]

ChecksOption = Annotated[
    bool,
    typer.Option(
        "--checks/--no-checks", help="Look for races, bank conflicts and unwritten reads."
    ),
]
