"""`tapeout chip`: a chip with its derived peaks."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapeout.cli.options import JsonOption, SetOption

if TYPE_CHECKING:
    from rich.console import Console

    from tapeout.chip import Chip


def chip(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A preset or a path to a .toml; none lists presets."),
    ] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
    as_toml: Annotated[
        bool, typer.Option("--toml", help="Print the chip file, every number spelled out.")
    ] = False,
) -> None:
    """Show a chip and what follows from its numbers: peaks, bandwidths, limits.

    Example: tapeout chip solo --set clock_ghz=1.2 --set hbm.pin_rate_gbps=6.4
    """
    from tapeout.chip import ChipError, load, presets, to_toml

    if name is None:
        if settings or as_toml:
            raise ChipError("--set and --toml need a chip: tapeout chip NAME --set KEY=VALUE")
        _show_presets([load(preset) for preset in presets()], as_json)
        return
    loaded = load(name, settings or [])
    if as_toml:
        typer.echo(to_toml(loaded), nl=False)
    elif as_json:
        typer.echo(json.dumps(_as_json(loaded), indent=2))
    else:
        _show(loaded)


def _as_json(loaded: "Chip") -> dict[str, Any]:
    from tapeout.chip import to_dict
    from tapeout.chip.figures import figures

    derived = {f.key: f.value for group in figures(loaded).values() for f in group}
    return {"chip": to_dict(loaded), "derived": derived}


def _show_presets(chips: "list[Chip]", as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"presets": {c.name: _as_json(c) for c in chips}}, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("chip", style="bold")
    table.add_column("dense bf16", justify="right", no_wrap=True)
    table.add_column("HBM", justify="right", no_wrap=True)
    table.add_column("what it is")
    for c in chips:
        peak = f"{c.peak_flops / 1e12:.4g} TFLOP/s"
        table.add_row(c.name, peak, f"{c.hbm.peak_bytes_per_s / 1e9:.4g} GB/s", c.description)
    Console().print(table)


def _show(loaded: "Chip") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tapeout.chip import to_dict
    from tapeout.chip.figures import figures

    console = Console(highlight=False)
    cores = f"{loaded.cores} core{'s' if loaded.cores > 1 else ''}"
    console.print(f"[bold]{loaded.name}[/bold]: {loaded.description}")
    console.print(f"{loaded.process}, {loaded.clock_ghz:g} GHz, {cores}, {loaded.lanes} lanes")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("derived", style="bold", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("from", style="dim")
    for group, members in figures(loaded).items():
        table.add_section()
        table.add_row(f"[cyan]{group}[/cyan]")
        for figure in members:
            table.add_row(f"  {figure.label}", figure.text, figure.formula)
    console.print(table)
    console.print("[bold]what the chip file says[/bold] (each key can be given to --set)")
    top = {k: v for k, v in to_dict(loaded).items() if isinstance(v, (int, float, dict))}
    _show_keys(console, "", top)


def _show_keys(console: "Console", prefix: str, values: dict[str, Any]) -> None:
    """One paragraph of dotted `key=value` for the values, one more for each table in them."""
    settings = [
        f"{prefix}{k}={','.join(v) if isinstance(v, list) else v}"
        for k, v in values.items() if not isinstance(v, dict)
    ]  # fmt: skip
    console.print("  " + "  ".join(settings))
    for key, value in values.items():
        if isinstance(value, dict):
            _show_keys(console, f"{prefix}{key}.", value)
