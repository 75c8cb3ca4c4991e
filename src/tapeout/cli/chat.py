"""`tapeout chat`: a conversation with a language model on the chip."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from tapeout.cli.options import (
    ChecksOption,
    ChipOption,
    ContextOption,
    ModelArgument,
    SeedOption,
    SetOption,
    Target,
    TargetOption,
    TemperatureOption,
    TopKOption,
    Weights,
    WeightsOption,
)

if TYPE_CHECKING:
    from tapeout.models import Tokenizer


def chat(
    model: ModelArgument,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="A system message before the first turn."),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", min=1, metavar="N", help="Tokens of a reply, at most.")
    ] = 256,
    chip: ChipOption = "solo",
    settings: SetOption = None,
    weights: WeightsOption = Weights.BF16,
    context: ContextOption = None,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    seed: SeedOption = 0,
    target: TargetOption = Target.SIM,
    checks: ChecksOption = True,
) -> None:
    """Talk with a model: one turn a line; Ctrl-C stops a reply, /exit or Ctrl-D ends.

    The KV cache stays on the chip between turns: each turn feeds its new tokens only.

    Example: tapeout chat smollm2-135m
    """
    from rich.console import Console

    from tapeout.chip import load
    from tapeout.cli.start import start
    from tapeout.runtime.cache import Options
    from tapeout.runtime.chat import Conversation
    from tapeout.runtime.generate import Finish, Sampling
    from tapeout.runtime.report import one_line

    def check(tokenizer: "Tokenizer") -> None:
        tokenizer.chat_text([{"role": "user", "content": "?"}])  # refuses a model without template

    started = start(
        model,
        load(chip, settings or []),
        Options(weights=weights.value, context=context),
        target=target,
        checks=checks,
        check=check,
    )
    console = Console(highlight=False)
    conversation = Conversation(started.session, started.tokenizer, system=system)
    for number, text in enumerate(_turns(console.is_terminal)):
        out = conversation.turn(
            text,
            tokens,
            sampling=Sampling(temperature=temperature, top_k=top_k, seed=seed + number),
            on_text=_say,
        )
        _say("\n")
        if out.finish is Finish.CONTEXT:
            console.print("[yellow]the KV cache is full: start again with a larger --context[/]")
        if out.last:
            console.print(f"[dim]{one_line(started.session, out)}[/dim]\n")


def _turns(interactive: bool) -> Iterator[str]:
    """What the user says, line by line, until /exit or the end of the input."""
    if interactive:
        import readline  # noqa: F401  (line editing and history for input())

        print("one turn a line; Ctrl-C stops a reply, /exit or Ctrl-D ends\n")
    while True:
        try:
            text = input("> " if interactive else "").strip()
        except EOFError:
            if interactive:
                print()
            return
        if text in ("/exit", "/quit"):
            return
        if text:
            yield text


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
