"""`tapeout run`: a language model continues a prompt on the chip."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapeout.cli.options import (
    ChecksOption,
    ChipOption,
    ContextOption,
    JsonOption,
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
    from tapeout.cli.start import Started
    from tapeout.runtime.generate import Generation


def run(
    model: ModelArgument,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What to continue.")],
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", min=1, metavar="N", help="New tokens, at most.")
    ] = 32,
    chip: ChipOption = "solo",
    settings: SetOption = None,
    weights: WeightsOption = Weights.BF16,
    batch: Annotated[
        int,
        typer.Option(
            "--batch", min=1, metavar="B", help="Sequences at once, each with this prompt."
        ),
    ] = 1,
    context: ContextOption = None,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    seed: SeedOption = 0,
    timing_only: Annotated[
        bool, typer.Option("--timing-only", help="Count cycles, compute no values: no text.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE",
            help="Write the last prefill launch and decode step for ui.perfetto.dev "
            "(.json or .json.gz).",
        ),
    ] = None,
    target: TargetOption = Target.SIM,
    checks: ChecksOption = True,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt: compile the model for the chip, run it, print the text and what it took.

    A compiled model is kept and found again by the next run with the same chip and options.

    Example: tapeout run smollm2-135m --prompt "The capital of France is" --tokens 32
    """
    _check_usage(target, timing_only, trace)
    from tapeout.chip import load
    from tapeout.cli.start import start
    from tapeout.runtime.cache import DEFAULT_CONTEXT, Options
    from tapeout.runtime.generate import Finish, Sampling, generate

    ids: list[int] = []

    def check(tokenizer: Any) -> None:
        ids.extend(tokenizer.encode(prompt))
        check_prompt(len(ids), context or DEFAULT_CONTEXT)

    started = start(
        model,
        load(chip, settings or []),
        Options(weights=weights.value, batch=batch, context=context),
        target=target,
        checks=checks,
        check=check,
    )
    check_prompt(len(ids), started.session.artifact.context)
    show = not as_json and not timing_only
    stream = started.tokenizer.stream()
    if show:
        _say(_prompt_style(prompt))
    out = generate(
        started.session,
        ids,
        tokens,
        end_ids=started.tokenizer.generation.end_ids,
        sampling=Sampling(temperature=temperature, top_k=top_k, seed=seed),
        functional=not timing_only,
        on_token=(lambda token: _say(stream.push(token))) if show else (lambda token: None),
    )
    if show:
        _say(stream.flush() + "\n\n")
    if not out.last:  # stopped before there was a token
        raise KeyboardInterrupt
    if trace is not None:
        from tapeout.runtime.tracing import write_generation_trace

        write_generation_trace(trace, started.session, out, functional=not timing_only)
    _report(started, out, prompt, as_json, functional=not timing_only)
    if out.finish is Finish.STOPPED:
        raise KeyboardInterrupt


def check_prompt(count: int, context: int) -> None:
    """Raises SessionError for a prompt that no KV cache of `context` positions can hold."""
    from tapeout.runtime.session import SessionError

    if count == 0:
        raise SessionError("the prompt has no tokens: give some text")
    if count > context:
        raise SessionError(
            f"the prompt has {count} tokens, the KV cache {context} positions: shorten it, or give "
            f"--context {count} or more"
        )


def _check_usage(target: Target, timing_only: bool, trace: Path | None) -> None:
    if target is not Target.SIM and (timing_only or trace):
        name = "--timing-only" if timing_only else "--trace"
        raise typer.BadParameter(f"{target.value} cannot do that: {name} needs --target sim")
    if trace is not None and not trace.name.endswith((".json", ".json.gz")):
        raise typer.BadParameter(f"--trace {trace}: the file's name must end in .json or .json.gz")


def _prompt_style(prompt: str) -> str:
    """The prompt as it stands before the answer: bold on a terminal."""
    return f"\033[1m{prompt}\033[0m" if sys.stdout.isatty() else prompt


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _report(
    started: "Started", out: "Generation", prompt: str, as_json: bool, functional: bool
) -> None:
    from tapeout.runtime.report import json_object, tables

    if as_json:
        found = json_object(started.session, out, started.compiled, prompt, functional)
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    for part in tables(started.session, out, started.compiled, functional):
        console.print(part)
