"""Options that several verbs share, so that they are spelled and explained once."""

from typing import Annotated

import typer

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
