"""The figures of a generation: as one JSON object and as tables.

Definitions. A token of decode is one new token of one sequence: a step of a batch of B makes B.
Chip time is cycles at `clock_ghz`. HBM utilisation is the bytes that the tokens need, each byte of
weights, K and V once a launch, over what the pins could have moved in the cycles; MXU utilisation
is products of valid elements over what the array could have made. Host time is the wall time of the
launches on this machine and of the choice of tokens, without loading and printing.
"""

from typing import TYPE_CHECKING, Any

from tapeout.chip import Chip

from .cache import Compiled
from .generate import Generation, Work
from .session import Session

if TYPE_CHECKING:
    from rich.console import RenderableType


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None


def phase_figures(work: Work, chip: Chip) -> dict[str, Any]:
    """The figures of one phase; None where there is no clock or nothing ran."""
    seconds = work.cycles / (chip.clock_ghz * 1e9)
    return {
        "launches": work.launches,
        "tokens": work.tokens,
        "cycles": work.cycles or None,
        "cycles_per_token": _ratio(work.cycles, work.tokens) if work.cycles else None,
        "chip_s": seconds or None,
        "chip_tokens_per_s": _ratio(work.tokens, seconds),
        "instructions": work.instructions,
        "macs": work.macs if work.mac_capacity else None,
        "mxu_utilization": _ratio(work.macs, work.mac_capacity),
        "required_hbm_bytes": work.required_bytes,
        "required_hbm_bytes_per_token": _ratio(work.required_bytes, work.tokens),
        "hbm_utilization": _ratio(work.required_bytes, work.cycles * chip.hbm_bytes_per_cycle),
        "bytes": dict(work.moved),
        "hbm": dict(work.hbm),
        "queues": {
            name: {
                "issue_cycles": work.busy[name],
                "engine_cycles": work.occupied[name],
                "idle_cycles": work.idle[name],
                "stall_cycles": dict(work.stalls[name]),
            }
            for name in work.stalls
        },
        "host_s": work.host_s,
        "host_tokens_per_s": _ratio(work.tokens, work.host_s),
    }


_FRONT = (
    "required_hbm_bytes_per_token",
    "mxu_utilization",
    "hbm_utilization",
    "chip_tokens_per_s",
    "host_tokens_per_s",
)  # of decode under their own names, of prefill with "prefill_" before them


def json_object(
    session: Session, generation: Generation, compiled: Compiled, prompt: str, functional: bool
) -> dict[str, Any]:
    """What `tapeout run --json` prints. Text and ids are null where no values were computed."""
    artifact, tokenizer = session.artifact, compiled.artifact.tokenizer
    decode = phase_figures(generation.decode, artifact.chip)
    prefill = phase_figures(generation.prefill, artifact.chip)
    texts = [tokenizer.decode(ids) for ids in generation.token_ids] if functional else [None]
    ids = generation.token_ids if functional else [None]
    return {
        "model": artifact.name,
        "chip": artifact.chip.name,
        "clock_ghz": artifact.chip.clock_ghz,
        "target": type(session.target).__name__.lower(),
        "weights": artifact.weights,
        "batch": artifact.batch,
        "context": artifact.context,
        "prompt": prompt,
        "text": texts[0],
        "token_ids": ids[0],
        "finish": str(generation.finish),
        "decode_cycles_per_token": decode["cycles_per_token"],
        "prefill_cycles": prefill["cycles"],
        **{name: decode[name] for name in _FRONT},
        **{f"prefill_{name}": prefill[name] for name in _FRONT},
        "compile_s": compiled.seconds,
        "from_cache": compiled.from_cache,
        "sequences": [
            {"text": text, "token_ids": tokens} for text, tokens in zip(texts, ids, strict=True)
        ],
        "prefill": prefill,
        "decode": decode,
    }


# --- for people -----------------------------------------------------------------------------------


def tables(
    session: Session, generation: Generation, compiled: Compiled, functional: bool
) -> "list[RenderableType]":
    """What `tapeout run` prints under the text."""
    from rich.text import Text

    artifact = session.artifact
    head = (
        f"{artifact.name} on {artifact.chip.name} at {artifact.chip.clock_ghz:g} GHz: "
        f"{artifact.weights} weights, batch {artifact.batch}, {artifact.context} positions"
    )
    how = "taken from the cache" if compiled.from_cache else "compiled"
    target = "" if hasattr(generation.last["prefill"].stats, "cycles") else " (interp has no clock)"
    notes = f"{how} in {compiled.seconds:.1f} s{target}"
    if not functional:
        notes += "; timing only: cycles were counted, no values computed, so there is no text"
    out: list[RenderableType] = [
        Text(head, style="bold"), Text(notes + "\n", style="dim"),
        _phases(generation, artifact.chip), Text(),
    ]  # fmt: skip
    if generation.prefill.cycles:
        out += [_queues(generation), Text(_QUEUES_NOTE, style="dim")]
    return out


def _phases(generation: Generation, chip: Chip) -> "RenderableType":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    works = [w for w in (generation.prefill, generation.decode) if w.launches]
    for name in ("prefill", "decode")[: len(works)]:
        table.add_column(name, justify="right", no_wrap=True)
    found = [phase_figures(work, chip) for work in works]

    def row(label: str, key: str, form: Any) -> None:
        if any(f[key] is not None for f in found):
            table.add_row(label, *("-" if f[key] is None else form(f[key]) for f in found))

    row("tokens", "tokens", str)
    row("launches", "launches", str)
    row("cycles", "cycles", _count)
    row("cycles per token", "cycles_per_token", _count)
    table.add_section()
    for f in found:
        f["chip_s_per_token"] = f["chip_s"] and f["chip_s"] / f["tokens"]
    row("chip time per token", "chip_s_per_token", _time)
    row("chip tokens/s", "chip_tokens_per_s", _figure)
    row("MXU utilisation", "mxu_utilization", _percent)
    row("HBM utilisation", "hbm_utilization", _percent)
    row("HBM bytes needed per token", "required_hbm_bytes_per_token", _bytes)
    table.add_section()
    row("host tokens/s", "host_tokens_per_s", _figure)
    return table


_WAITS = {
    "mxu": ("token mxu",),
    "vpu": ("token vpu",),
    "dma": ("token dma",),
    "engine": ("port",),  # its own, or HBM's credits
    "drain": ("drain",),
    "load": ("memory",),  # scalars from HBM
    "code": ("fetch",),
}  # column of the table: prefixes of the causes in `sim`'s reports


_QUEUES_NOTE = (
    "\nbusy: the queue's engine works. The rest is its sequencer: it issues, or waits for a token "
    "of mxu, vpu or dma, for its engine (a dma queue: for HBM), for its results to drain, for "
    "scalar loads or for code, or it is at its end."
)


def _queues(generation: Generation) -> "RenderableType":
    """For each queue, in percent of the cycles: its engine at work, and what its sequencer did."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column("% of cycles", no_wrap=True)
    for name in ("queue", "busy", "issues", *_WAITS, "end"):
        table.add_column(name, justify="left" if name == "queue" else "right", no_wrap=True)
    for phase in ("prefill", "decode"):
        work: Work = getattr(generation, phase)
        table.add_section()
        for number, name in enumerate(work.stalls):
            waits = [
                sum(n for cause, n in work.stalls[name].items() if cause.startswith(causes))
                for causes in _WAITS.values()
            ]
            values = (work.occupied[name], work.busy[name], *waits, work.idle[name])
            cells = (f"{100 * n / work.cycles:.0f}" if n else "" for n in values)
            table.add_row("" if number else phase, name, *cells)
    return table


def one_line(session: Session, generation: Generation) -> str:
    """What `tapeout chat` prints under a reply."""
    artifact = session.artifact
    prefill, decode = generation.prefill, generation.decode
    figures = phase_figures(decode if decode.launches else prefill, artifact.chip)
    parts = [f"{prefill.tokens} in, {len(generation.token_ids[0])} out"]
    if figures["cycles"]:
        rate, share = figures["chip_tokens_per_s"], figures["hbm_utilization"]
        parts.append(f"chip {_figure(rate)} tokens/s, HBM {_percent(share)}")
    parts.append(f"host {_figure(figures['host_tokens_per_s'])} tokens/s")
    parts.append(f"KV {session.position}/{artifact.context}")
    return " · ".join(parts)


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _figure(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _time(seconds: float) -> str:
    for scale, unit in ((1, "s"), (1e3, "ms")):
        if seconds * scale >= 1:
            return f"{_figure(seconds * scale)} {unit}"
    return f"{_figure(seconds * 1e6)} µs"


def _bytes(count: float) -> str:
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{_figure(count / scale)} {unit}"
    return f"{count:.0f} B"
