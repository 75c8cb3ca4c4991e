"""`tapeout synth`: parts of a chip as gates of a cell library, and their sum."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapeout.cli.options import ChipOption, JsonOption, SetOption

if TYPE_CHECKING:
    from tapeout.chip import Chip
    from tapeout.physical.measure import Measured
    from tapeout.physical.parts import Part
    from tapeout.physical.pdk import Pdk
    from tapeout.physical.power import Power

    Found = list[tuple[Part, Measured, dict[str, Power]]]


def synth(
    pdk: Annotated[
        str,
        typer.Option(
            "--pdk",
            metavar="DIR",
            help="A folder with the liberty files of ASAP7, GT2N or IHP SG13G2, or osu018: "
            "Debian's qflow-tech-osu018.",
        ),
    ],
    chip: ChipOption = "tiny",
    settings: SetOption = None,
    part: Annotated[
        list[str] | None,
        typer.Option("--part", metavar="PART", help="Only this part. Repeatable; default: all."),
    ] = None,
    clock_ghz: Annotated[
        float | None,
        typer.Option(
            "--clock-ghz", min=1e-3, metavar="F", help="Synthesise for F GHz; default: the chip's."
        ),
    ] = None,
    paths: Annotated[
        bool, typer.Option("--paths", help="Print the slowest path of parts that miss the clock.")
    ] = False,
    power: Annotated[
        bool,
        typer.Option(
            "--power", help="Power, too, while a matmul and an attention run on the chip's RTL."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn parts of a chip into gates: area, slowest path, power, and the sum over the chip.

    The first run of a part takes seconds to minutes; later ones find it in the cache.

    Example: tapeout synth --chip tiny --pdk osu018 --part token --clock-ghz 0.1
    """
    import signal
    import sys

    from rich.console import Console

    from tapeout.chip import load
    from tapeout.physical.activity import PROGRAMS, record
    from tapeout.physical.measure import measure, measure_power
    from tapeout.physical.parts import chosen
    from tapeout.physical.pdk import find

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what cleans up
    library = find(pdk)
    loaded = load(chip, settings or [])
    clock = clock_ghz or loaded.clock_ghz
    console = Console(stderr=True, highlight=False)
    parts = chosen(loaded, part or [])
    programs = []
    for name in PROGRAMS if power else ():
        with console.status(f"{name} on the hardware of {loaded.name}"):
            programs.append(record(loaded, name))
    found: Found = []
    for each in parts:
        with console.status(f"{each.title}: synthesis for {library.library.name}"):
            measured = measure(each, library, clock_ghz=clock)
            watts = {p.program: measure_power(each, library, p, clock_ghz=clock) for p in programs}
            found.append((each, measured, watts))
    if as_json:
        typer.echo(json.dumps(_as_json(loaded, library, clock, found), indent=2))
    else:
        _show(loaded, library, clock, found, paths)


def _as_json(chip: "Chip", pdk: "Pdk", clock_ghz: float, found: "Found") -> dict[str, Any]:
    from dataclasses import asdict

    from tapeout.physical.parts import memory_bits

    return {
        "chip": chip.name,
        "library": pdk.library.name,
        "clock_ghz": clock_ghz,
        "parts": {
            part.name: {
                "count": part.count,
                **asdict(m),
                "f_max_ghz": m.f_max_ghz,
                "power": {name: asdict(p) | {"total_w": p.total_w} for name, p in watts.items()},
            }
            for part, m, watts in found
        },
        "area_um2": sum(part.count * m.area_um2 for part, m, _ in found),
        "power_w": _sums(found),
        "memory_bits": memory_bits(chip),
    }


def _power_table(found: "Found") -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("part", style="bold", no_wrap=True)
    table.add_column("count", justify="right")
    sums = _sums(found)
    for name in sums:
        for column in (f"{name}, mW each", "mW"):
            table.add_column(column, justify="right", no_wrap=True)
    for part, _, watts in found:
        figures = (
            (f"{1e3 * p.total_w:.4f}", f"{1e3 * part.count * p.total_w:.2f}")
            for p in watts.values()
        )
        table.add_row(part.name, str(part.count), *(text for pair in figures for text in pair))
    table.add_section()
    totals = (("", f"{1e3 * total:.1f}") for total in sums.values())
    table.add_row("sum", "", *(text for pair in totals for text in pair))
    return table


def _sums(found: "Found") -> dict[str, float]:
    """Watts of all parts together, by program."""
    sums: dict[str, float] = {}
    for part, _, watts in found:
        for name, power in watts.items():
            sums[name] = sums.get(name, 0) + part.count * power.total_w
    return sums


def _show(chip: "Chip", pdk: "Pdk", clock_ghz: float, found: "Found", paths: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tapeout.physical.parts import memory_bits

    console = Console(highlight=False)
    console.print(f"[bold]{chip.name}[/bold] in {pdk.library.process}, for {clock_ghz:g} GHz")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("part", style="bold", no_wrap=True)
    for column in ("count", "cells", "registers", "um2 each", "um2", "ns", "GHz"):
        table.add_column(column, justify="right", no_wrap=True)
    for part, m, _ in found:
        delay = m.timing.slowest.delay_ns
        style = "red" if delay > 1 / clock_ghz else "green"
        table.add_row(
            part.name, str(part.count), str(m.cells), str(m.flops), f"{m.area_um2:.1f}",
            f"{part.count * m.area_um2:.0f}", f"[{style}]{delay:.3f}[/{style}]",
            f"{m.f_max_ghz:.2f}",
        )  # fmt: skip
    table.add_section()
    total = sum(part.count * m.area_um2 for part, m, _ in found)
    table.add_row("sum", "", "", "", "", f"{total:.0f}", "", "")
    console.print(table)
    if _sums(found):
        console.print(_power_table(found))
    bits = ", ".join(f"{name} {n / 2**13:g} KiB" for name, n in memory_bits(chip).items())
    console.print(f"memories, macros that are not in the sum: {bits}")
    for part, m, _ in found:
        slowest = m.timing.slowest
        if slowest.delay_ns > 1 / clock_ghz:
            console.print(
                f"[red]{part.name} misses the clock[/red]: {slowest.delay_ns:.3f} ns from "
                f"{slowest.start} to {slowest.end}",
                soft_wrap=True, markup=True,
            )  # fmt: skip
            if paths:
                console.print(slowest.report, markup=False)
