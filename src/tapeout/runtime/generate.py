"""Generating text with a session: prefill, decode steps, the choice of tokens, and the books.

Contract: `generate` feeds a prompt to every sequence of a session and adds tokens until an end id,
the number asked for, or the end of the KV cache. Prefill and decode are counted apart (`Work`).

The choice of a token: at temperature 0 it is the most likely one, found by the chip itself. Above,
the host reads the logits from HBM, keeps the `top_k` largest (all for 0), and draws from
softmax(logits / temperature) with NumPy's PCG64 started from `seed`; the same seed gives the same
text. The draw takes no time on the chip.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from tapeout.compiler.artifact import Entry

from .session import Session, Step


class Finish(StrEnum):
    """Why a generation stopped."""

    END = "end"  # every sequence came to an end id
    TOKENS = "tokens"  # as many tokens as asked for
    CONTEXT = "context"  # the KV cache is full
    STOPPED = "stopped"  # Ctrl-C


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen; see the module's docstring."""

    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0


@dataclass(kw_only=True)
class Work:
    """What the launches of one phase did, in sum.

    Attributes:
        launches, tokens: runs of the program; tokens that went in, over all sequences.
        cycles: chip cycles; 0 on a target without a clock.
        required_bytes: HBM bytes that the launches need, each byte of a launch once: its weights,
            and K and V of every position that its last token attends to.
        macs, mac_capacity: products made, and those the array could have made in the cycles.
        moved: bytes by memory and direction.
        hbm: events of the HBM model.
        busy, occupied, idle: cycles by queue: issuing, engine at work, after its halt.
        stalls: cycles between issues by queue and cause.
        host_s: wall seconds on the host.
    """

    launches: int = 0
    tokens: int = 0
    cycles: int = 0
    instructions: int = 0
    required_bytes: int = 0
    macs: int = 0
    mac_capacity: int = 0
    moved: Counter[str] = field(default_factory=Counter)
    hbm: Counter[str] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    occupied: Counter[str] = field(default_factory=Counter)
    idle: Counter[str] = field(default_factory=Counter)
    stalls: dict[str, Counter[str]] = field(default_factory=dict)
    host_s: float = 0.0

    def add(self, step: Step, entry: Entry) -> None:
        """Counts a step of the program `entry`."""
        launch, stats = step.launch, step.stats
        self.launches += 1
        self.tokens += len(launch.tokens)
        self.required_bytes += entry.weight_bytes + entry.kv_bytes_per_position * launch.end
        self.instructions += stats.instructions
        if not hasattr(stats, "cycles"):
            return
        self.cycles += stats.cycles
        if stats.macs is not None:
            self.macs += stats.macs
            self.mac_capacity += stats.mac_capacity
        self.moved.update(stats.bytes)
        self.hbm.update(stats.hbm)
        for name, queue in stats.queues.items():
            self.busy[name] += queue.busy_cycles
            self.occupied[name] += queue.occupied_cycles
            self.idle[name] += queue.idle_cycles
            self.stalls.setdefault(name, Counter()).update(queue.stalls)


@dataclass(kw_only=True)
class Generation:
    """What `generate` did.

    Attributes:
        token_ids: new tokens of each sequence, an end id included.
        unfed: tokens of the first sequence that are not in the KV cache yet.
        prefill, decode: the work of each phase.
        last: the last step of each phase ("prefill", "decode").
    """

    token_ids: list[list[int]]
    finish: Finish = Finish.TOKENS
    unfed: list[int] = field(default_factory=list)
    prefill: Work = field(default_factory=Work)
    decode: Work = field(default_factory=Work)
    last: dict[str, Step] = field(default_factory=dict)


def generate(
    session: Session,
    prompt: Sequence[int],
    count: int,
    *,
    end_ids: Sequence[int] = (),
    sampling: Sampling | None = None,
    functional: bool = True,
    on_token: Callable[[int], None] = lambda token: None,
) -> Generation:
    """Feeds `prompt` to every sequence behind what the session holds, and adds `count` tokens.

    Args:
        functional: False counts cycles only: no values exist, so the tokens fed are the prompt's
            last one again and again, end ids do not stop, and `on_token` is not called.
        on_token: called with each new token of the first sequence, an end id excepted.

    Raises: SessionError where the prompt does not fit the KV cache.
    """
    run = _Run(session, list(prompt), end_ids, sampling or Sampling(), functional, on_token)
    try:
        run.prefill()
        while run.goes_on(count):
            run.decode()
    except KeyboardInterrupt:
        run.out.finish = Finish.STOPPED
    fed = session.position - run.start
    run.out.unfed = (run.prompt + run.out.token_ids[0])[fed:]
    return run.out


class _Run:
    """One call of `generate`."""

    def __init__(
        self,
        session: Session,
        prompt: list[int],
        end_ids: Sequence[int],
        sampling: Sampling,
        functional: bool,
        on_token: Callable[[int], None],
    ) -> None:
        self.session, self.prompt, self.end_ids = session, prompt, frozenset(end_ids)
        self.sampling, self.on_token = sampling, on_token
        self.functional = functional
        self.options: dict[str, Any] = {} if functional else {"functional": False}
        self.generator = np.random.default_rng(sampling.seed)
        self.batch = session.artifact.batch
        self.start = session.position
        self.next: list[int] = []  # what each sequence is fed next
        self.ended = [False] * self.batch
        self.out = Generation(token_ids=[[] for _ in range(self.batch)])

    def prefill(self) -> None:
        out, entry = self.out, self.session.artifact.programs["prefill"]
        begin = time.perf_counter()
        steps = self.session.prefill(self.prompt, **self.options)
        last = steps[-self.batch :]
        # Every sequence has the same prompt, so the last one's logits are everyone's.
        self.choose([int(step.tokens[0]) for step in last], "prefill")
        out.prefill.host_s += time.perf_counter() - begin
        for step in steps:
            out.prefill.add(step, entry)
        out.last["prefill"] = steps[-1]
        self.take()

    def decode(self) -> None:
        out, entry = self.out, self.session.artifact.programs["decode"]
        begin = time.perf_counter()
        step = self.session.decode(self.next, **self.options)
        self.choose([int(token) for token in step.tokens], "decode")
        out.decode.host_s += time.perf_counter() - begin
        out.decode.add(step, entry)
        out.last["decode"] = step
        self.take()

    def choose(self, likeliest: list[int], kind: str) -> None:
        """Sets `next` from the chip's choice or by sampling."""
        if not self.functional:
            self.next = [self.prompt[-1]] * self.batch
        elif self.sampling.temperature > 0:
            logits = self.session.logits(kind)
            rows = np.broadcast_to(logits[-1:], (self.batch, logits.shape[1]))
            rows = rows if kind == "prefill" else logits
            self.next = [draw(row, self.sampling, self.generator) for row in rows]
        else:
            self.next = likeliest

    def take(self) -> None:
        """Adds `next` to the sequences that have not ended."""
        for sequence, token in enumerate(self.next):
            if self.ended[sequence]:
                continue
            self.out.token_ids[sequence].append(token)
            if not self.functional:
                continue
            self.ended[sequence] = token in self.end_ids
            if sequence == 0 and not self.ended[0]:
                self.on_token(token)

    def goes_on(self, count: int) -> bool:
        out = self.out
        if all(self.ended):
            out.finish = Finish.END
        elif max(map(len, out.token_ids)) >= count:
            out.finish = Finish.TOKENS
        elif self.session.position >= self.session.artifact.context:
            out.finish = Finish.CONTEXT
        else:
            return True
        return False


def draw(logits: np.ndarray, sampling: Sampling, generator: np.random.Generator) -> int:
    """One token id from float32 [vocab]."""
    values = np.asarray(logits, np.float64)
    kept = np.arange(len(values))
    if 0 < sampling.top_k < len(values):
        kept = np.sort(np.argpartition(values, -sampling.top_k)[-sampling.top_k :])
    scaled = values[kept] / sampling.temperature
    weights = np.cumsum(np.exp(scaled - scaled.max()))
    return int(kept[np.searchsorted(weights, generator.random() * weights[-1], side="right")])
