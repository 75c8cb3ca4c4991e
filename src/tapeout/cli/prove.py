"""`tapeout prove`: properties of the hardware, by model checking."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapeout.cli.options import ChipOption, JsonOption, SetOption

if TYPE_CHECKING:
    from tapeout.rtl.formal.run import Outcome


def prove(
    chip: ChipOption = "tiny",
    settings: SetOption = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--property", metavar="NAME", help="Prove this one; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prove properties of the hardware, without bound where the table says so.

    A property that does not hold is shown with a run that breaks it, cycle by cycle; the exit code
    is then 1.

    Example: tapeout prove --chip tiny --property tokens
    """
    from rich.console import Console

    from tapeout.chip import load
    from tapeout.rtl.formal.properties import find
    from tapeout.rtl.formal.run import prove as run

    loaded = load(chip, settings or [])
    properties = find(names or [])
    console = Console(stderr=True, highlight=False)
    outcomes = {}
    for name, cls in properties.items():
        with console.status(f"proving {name}"):
            outcomes[name] = run(cls(loaded))
    if as_json:
        typer.echo(json.dumps([_as_json(n, o) for n, o in outcomes.items()], indent=2))
    else:
        _show(outcomes)
    if not all(o.holds for o in outcomes.values()):
        raise typer.Exit(1)


def _as_json(name: str, outcome: "Outcome") -> dict[str, Any]:
    return {
        "property": name,
        "method": outcome.method,
        "holds": outcome.holds,
        "claims": outcome.claims,
        "failed": outcome.failed,
        "unreached": outcome.unreached,
        "seconds": round(outcome.seconds, 2),
        "trace": outcome.trace.values if outcome.trace else None,
    }


def _result(outcome: "Outcome") -> str:
    if outcome.unreached:
        return f"[red]not reached: {', '.join(outcome.unreached)}[/red]"
    if outcome.failed is not None:
        return f"[red]fails: {outcome.failed}[/red]"
    return "proven" if outcome.is_unbounded else "holds"


def _show(outcomes: "dict[str, Outcome]") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("property", style="bold", no_wrap=True)
    table.add_column("claims", justify="right")
    table.add_column("method")
    table.add_column("result")
    table.add_column("seconds", justify="right")
    for name, outcome in outcomes.items():
        table.add_row(
            name, str(len(outcome.claims)), outcome.method, _result(outcome),
            f"{outcome.seconds:.1f}",
        )  # fmt: skip
    console.print(table)
    for name, outcome in outcomes.items():
        if outcome.trace is not None:
            console.print(f"{name}: {outcome.failed} fails in the last cycle")
            typer.echo(outcome.trace.table())
