"""What `run` and `chat` do first: find the model, compile it or take it from the cache, load it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tapeout.cli.options import Target

if TYPE_CHECKING:
    from tapeout.chip import Chip
    from tapeout.runtime.cache import Compiled, Options
    from tapeout.runtime.session import Session


@dataclass(frozen=True, kw_only=True)
class Started:
    """A session ready for its first launch."""

    session: "Session"
    compiled: "Compiled"
    tokenizer: Any


def start(
    model: str,
    chip: "Chip",
    options: "Options",
    *,
    target: Target,
    checks: bool,
    check: Callable[[Any], None] = lambda tokenizer: None,
) -> Started:
    """A session of `model` on `chip`; progress goes to stderr. `check` as in `cache.compiled`."""
    from tapeout.models import resolve
    from tapeout.runtime.cache import compiled

    source = resolve(model)
    with _progress() as progress:
        found = compiled(source, chip, options, check=check, progress=progress)
        session = _session(found, target, checks)
    return Started(session=session, compiled=found, tokenizer=found.artifact.tokenizer)


def _session(found: "Compiled", target: Target, checks: bool) -> "Session":
    from tapeout.runtime.session import Session

    chip = found.artifact.chip
    if target is Target.INTERP:
        from tapeout.isa.interp import Interp

        return Session(found.artifact, Interp(chip, checks=checks))
    if target in (Target.RTL, Target.RTL_DPI):
        from tapeout.rtl.build import Elements
        from tapeout.rtl.target import Rtl

        elements = Elements.DPI if target is Target.RTL_DPI else Elements.GATES
        return Session(found.artifact, Rtl(chip, elements=elements))
    from tapeout.sim import Sim

    return Session(found.artifact, Sim(chip, checks=checks))


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A bar on stderr while a model is compiled, gone afterwards; nothing where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from tapeout.runtime.cache import STEPS

    console = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = None

        def progress(message: str) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task(message, total=STEPS)
            else:
                bar.update(task, description=message, advance=1)

        yield progress
