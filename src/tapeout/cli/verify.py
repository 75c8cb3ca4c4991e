"""`tapeout verify`: interp, sim and rtl against each other on random programs."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapeout.cli.options import ChipOption, JsonOption, SetOption

if TYPE_CHECKING:
    from rich.console import Console

    from tapeout.chip import Chip
    from tapeout.rtl.verification.run import Campaign


def verify(
    chip: ChipOption = "tiny",
    settings: SetOption = None,
    programs: Annotated[
        int, typer.Option("--programs", min=0, metavar="N", help="Run N programs at least.")
    ] = 20,
    instructions: Annotated[
        int,
        typer.Option("--instructions", min=0, metavar="N", help="Run N instructions at least."),
    ] = 0,
    random_chips: Annotated[
        int,
        typer.Option(
            "--random-chips", min=0, metavar="N", help="Instead of --chip: N chips drawn at random."
        ),
    ] = 0,
    seed: Annotated[
        int, typer.Option("--seed", min=0, metavar="S", help="The first program's seed.")
    ] = 0,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, metavar="N", help="Processes that run programs.")
    ] = 1,
    mutants: Annotated[
        int,
        typer.Option(
            "--mutants",
            min=0,
            metavar="N",
            help="Instead: draw N faults in the hardware, and count those that --programs find.",
        ),
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Run random programs on interp, sim and the hardware, and compare every bit and cycle.

    The hardware is built once for a chip, then found in the cache. The first difference ends the
    run with the seed and the smallest program that shows it; the exit code is then 1.

    Example: tapeout verify --chip tiny --programs 100
    """
    from rich.console import Console

    from tapeout.chip import load
    from tapeout.rtl.verification.chips import random_chip
    from tapeout.rtl.verification.run import verify as run

    console = Console(stderr=True, highlight=False)
    if mutants:
        _mutants(console, load(chip, settings or []), mutants, programs, seed, jobs, as_json)
        return
    chips = [random_chip(seed + k) for k in range(random_chips)] or [load(chip, settings or [])]
    campaigns = []
    for number, each in enumerate(chips):
        name = f"random chip {seed + number}" if random_chips else each.name
        with console.status(f"building the hardware of {name}") as status:

            def show(c: "Campaign", name: str = name, status: Any = status) -> None:
                status.update(f"{name}: {c.programs} programs, {c.instructions} instructions agree")

            campaign = run(
                each,
                instructions=instructions,
                programs=programs,
                seed=seed,
                jobs=jobs,
                progress=show,
            )
        campaigns.append((name, campaign))
        if campaign.failure is not None:
            break
    if as_json:
        typer.echo(json.dumps([_as_json(name, c) for name, c in campaigns], indent=2))
    else:
        _show(Console(highlight=False), campaigns)
    if any(c.failure is not None for _, c in campaigns):
        raise typer.Exit(1)


def _mutants(
    console: "Console",
    chip: "Chip",
    count: int,
    programs: int,
    seed: int,
    jobs: int,
    as_json: bool,
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tapeout.rtl.verification.mutants import Mutant, hunt

    with console.status(f"building the hardware of {chip.name} with {count} faults") as status:

        def show(judged: Sequence[Mutant]) -> None:
            caught = sum(m.caught_by is not None for m in judged)
            status.update(f"{caught} of {len(judged)} faults caught")

        judged = hunt(chip, count=count, programs=programs, seed=seed, jobs=jobs, progress=show)
    if as_json:
        typer.echo(json.dumps([vars(m) for m in judged], indent=2))
        return
    out = Console(highlight=False)
    left = [m for m in judged if m.caught_by is None and not m.is_equal]
    faults = sum(not m.is_equal for m in judged)
    out.print(
        f"[bold]{chip.name}[/bold]: {faults - len(left)} of {faults} faults in the hardware "
        f"({(faults - len(left)) / max(1, faults):.1%}) caught by {programs} programs; "
        f"{count - faults} more change nothing (proven)"
    )
    if left:
        table = Table(box=box.SIMPLE_HEAD, title="not caught")
        for column in ("fault", "module", "line", "becomes"):
            table.add_column(column, overflow="fold")
        for m in left:
            table.add_row(m.kind, m.module, m.line, m.becomes)
        out.print(table)


def _as_json(name: str, c: "Campaign") -> dict[str, Any]:
    return {
        "chip": name,
        "programs": c.programs,
        "instructions": c.instructions,
        "cycles": c.cycles,
        "faults": dict(c.faults),
        "coverage": {f"{v} / {k}": n for (v, k), n in sorted(c.coverage.cells.items())},
        "missing": [f"{v} / {k}" for v, k in c.coverage.missing(c.chip)],
        "failure": vars(c.failure) if c.failure is not None else None,
    }


def _show(console: "Console", campaigns: "list[tuple[str, Campaign]]") -> None:
    from rich import box
    from rich.table import Table

    from tapeout.rtl.verification.coverage import CIRCUMSTANCES, Coverage, impossible, universe

    total = Coverage()
    for name, c in campaigns:
        total.cells.update(c.coverage.cells)
        faults = ", ".join(f"{count} {fault}" for fault, count in sorted(c.faults.items()))
        console.print(
            f"[bold]{name}[/bold]: {c.programs} programs, {c.instructions} instructions, "
            f"{c.cycles} cycles agree in every bit and cycle; planted faults: {faults or 'none'}"
        )
    table = Table(box=box.SIMPLE_HEAD, title="instructions compared")
    table.add_column("variant", style="bold", no_wrap=True)
    for circumstance in CIRCUMSTANCES:
        table.add_column(circumstance, justify="right")
    chips = [c.chip for _, c in campaigns]
    for variant in universe(*chips):
        cells = [
            str(total.cells[variant, k] or ("-" if impossible(variant, k) else "[red]0[/red]"))
            for k in CIRCUMSTANCES
        ]
        table.add_row(variant, *cells)
    console.print(table)
    console.print(f"{len(total.missing(*chips))} cells not reached (0); - cannot happen")
    failure = campaigns[-1][1].failure
    if failure is not None:
        console.print(
            f"[red]difference[/red] on {campaigns[-1][0]}, seed {failure.seed}: {failure.what}\n"
            f"smallest program:\n{failure.assembly}"
        )
