"""Running a compiled model: memory on a target, launches, the KV cache's position."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeout.compiler.artifact import Artifact, Entry


class SessionError(ValueError):
    """A request that the compiled model cannot serve: says the limit and the way out."""


@dataclass(frozen=True)
class Launch:
    """One run of the program `kind`: its input tokens, its arguments, its (first) sequence."""

    kind: str
    tokens: list[int]
    args: dict[str, int]
    sequence: int = 0

    @property
    def end(self) -> int:
        """Positions that the KV cache holds after the launch: what its last token attends to."""
        return self.args["position"] + self.args.get("tokens", 1)


@dataclass(frozen=True)
class Step:
    """What one launch gave.

    Attributes:
        tokens: the most likely token of each output row, as the chip found it.
        stats: the target's result (cycles, counters; instruction counts on interp).
        launch: what was asked for.
    """

    tokens: np.ndarray
    stats: Any
    launch: Launch


class Session:
    """A model in a target's HBM, with KV caches for `artifact.batch` sequences.

    All sequences of a batch stand at one position.
    """

    def __init__(self, artifact: Artifact, target: Any) -> None:
        self.artifact, self.target = artifact, target
        self.position = 0
        self.memory: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self._allocate("weights", artifact.image.nbytes)
        target.write(self.memory["weights"], artifact.image)
        self._allocate("kv", artifact.kv_bytes)
        self.handles: dict[tuple[str, int], Any] = {}
        for kind, entry in artifact.programs.items():
            self._prepare(kind, entry)

    def _allocate(self, name: str, nbytes: int) -> None:
        try:
            self.memory[name] = self.target.allocate(nbytes)
        except MemoryError as error:
            chip = self.artifact.chip
            raise SessionError(
                f"the chip is too small: {name} of {nbytes} bytes does not fit what is left of the "
                f"{chip.hbm.capacity_bytes} bytes of HBM of {chip.name}: raise "
                f"hbm.capacity_gib_per_stack, or take a smaller batch or context"
            ) from error
        self.sizes[name] = nbytes

    def _prepare(self, kind: str, entry: Entry) -> None:
        segments = {s.name: s for s in entry.program.segments}
        for name in ("args", "tokens", "logits", "best"):
            self._allocate(f"{kind}.{name}", segments[name].bytes)
        share = self.artifact.kv_bytes // self.artifact.batch
        for sequence in range(self.artifact.batch if entry.batch == 1 else 1):
            bases = {}
            for name, segment in segments.items():
                if name == "weights":
                    place = (self.memory[name], self.sizes[name])
                elif name == "kv":
                    size = share * entry.batch
                    place = (self.memory[name] + sequence * share, size)
                else:
                    place = (self.memory[f"{kind}.{name}"], segment.bytes)
                bases[segment.base] = (*place, segment.writable)
            self.handles[kind, sequence] = self.target.load(entry.program, bases)

    def run(self, launch: Launch, **options: Any) -> Step:
        """Runs a launch. A repeated one writes the same K and V to the same positions again."""
        kind = launch.kind
        entry = self.artifact.programs[kind]
        padded = np.zeros(entry.batch * entry.tokens, np.int32)
        padded[: len(launch.tokens)] = launch.tokens
        self.target.write(self.memory[f"{kind}.tokens"], padded)
        values = np.array([launch.args[name] for name in entry.args], np.int32)
        self.target.write(self.memory[f"{kind}.args"], values)
        stats = self.target.run(self.handles[kind, launch.sequence], **options)
        return Step(self._best(kind, entry), stats, launch)

    def _best(self, kind: str, entry: Entry) -> np.ndarray:
        """The chip reports a maximum and its column for each group of columns: the best of them."""
        rows, lanes = entry.output_rows, self.artifact.chip.lanes
        padded = -(-rows // lanes) * lanes
        groups = -(-self.artifact.vocab // entry.group_width)
        raw = self.target.read(self.memory[f"{kind}.best"], 8 * padded * groups)
        table = np.asarray(raw).view(np.float32).reshape(groups, 2, padded)[:, :, :rows]
        value, index = table[:, 0], np.ascontiguousarray(table[:, 1]).view(np.int32)
        group = np.argmax(value, axis=0)
        return index[group, np.arange(rows)] + group * entry.group_width

    def logits(self, kind: str) -> np.ndarray:
        """float32 [rows, vocab] of the last launch of `kind`."""
        rows, vocab = self.artifact.programs[kind].output_rows, self.artifact.vocab
        raw = self.target.read(self.memory[f"{kind}.logits"], 4 * rows * vocab)
        return np.asarray(raw).view(np.float32).reshape(rows, vocab)

    def _check_room(self, count: int) -> None:
        if self.position + count > self.artifact.context:
            raise SessionError(
                f"{self.position} + {count} tokens do not fit a KV cache of "
                f"{self.artifact.context} positions: compile with a larger context"
            )

    def prefill(
        self, tokens: list[int], *, sequences: int | None = None, **options: Any
    ) -> list[Step]:
        """Feeds a prompt to every sequence; the last step holds the first new token.

        Chunks end where a tile of the cache ends. Steps of all sequences are returned in order.
        """
        if not tokens:
            raise SessionError("the prompt has no tokens: give some text")
        self._check_room(len(tokens))
        entry, lanes = self.artifact.programs["prefill"], self.artifact.chip.lanes
        steps: list[Step] = []
        at = 0
        while at < len(tokens):
            here = self.position + at
            count = min(entry.tokens, len(tokens) - at, lanes - here % lanes)
            args = {"position": here, "tokens": count, "select": count - 1}
            for sequence in range(self.artifact.batch if sequences is None else sequences):
                chunk = tokens[at : at + count]
                steps.append(self.run(Launch("prefill", chunk, args, sequence), **options))
            at += count
        self.position += len(tokens)
        return steps

    def decode(self, tokens: list[int], **options: Any) -> Step:
        """One token of each sequence in, the next one of each out."""
        if len(tokens) != self.artifact.batch:
            raise SessionError(f"decode takes {self.artifact.batch} tokens, not {len(tokens)}")
        self._check_room(1)
        step = self.run(Launch("decode", tokens, {"position": self.position}), **options)
        self.position += 1
        return step
