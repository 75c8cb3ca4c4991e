"""`tapeout rtl`: the chip as Verilog."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tapeout.cli.options import ChipOption, JsonOption, SetOption


def rtl(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="The folder to write, new or empty."),
    ],
    chip: ChipOption = "tiny",
    settings: SetOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is in the folder, all of it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the chip as Verilog: AXI4 to memory, AXI4-Lite registers, an interrupt.

    DIR holds files.f, the modules, models of the memory macros, the register map (registers.md,
    .json and .h) and a guide, README.md. `verilator --lint-only -f files.f` finds nothing to say.

    Example: tapeout rtl --chip tiny -o build/tiny
    """
    from rich.console import Console

    from tapeout.chip import load
    from tapeout.rtl.export import export

    made = load(chip, settings or [])
    with Console(stderr=True, highlight=False).status(f"writing {made.name} as Verilog"):
        written = export(made, out, force=force)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "chip": made.name,
                    "folder": str(written.folder),
                    "modules": written.modules,
                    "bytes": written.bytes,
                    "memories": written.memories,
                },
                indent=2,
            )
        )
        return
    typer.echo(
        f"{made.name}: {written.modules} modules, {written.bytes / 1e6:.1f} MB of Verilog in {out}"
    )
    typer.echo(f"begin with {out / 'README.md'}")
