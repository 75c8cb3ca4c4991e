"""Random programs written in the tile language, each with what it must leave in HBM.

All values are integers that bf16 and fp32 hold exactly, so the plain reference is an equality.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapeout.chip import Chip, load
from tapeout.isa import Kind, Program
from tapeout.isa.dma import HbmFormat
from tapeout.isa.interp import Interp
from tapeout.isa.program import channel_bit, channel_peer
from tapeout.isa.vpu import Combine, Reduce
from tapeout.lang import Builder, HbmTensor, Tensor, ops
from tapeout.numerics.encodings import f32_to_bf16
from tapeout.sim import Sim

CHIP = load("tiny", ["dma.queues=3"])
N = CHIP.lanes  # every tensor is N x N
EXACT = 256  # integers up to this are exact in bf16
SOURCES = 6  # matrices the host gives, with values up to SOURCE_BOUND
SOURCE_BOUND = 3
HBM_BYTES = 1 << 20
COMBINES = {
    Combine.ADD: np.add, Combine.SUB: np.subtract, Combine.MAX: np.maximum,
    Combine.MIN: np.minimum,
}  # fmt: skip


def launch(
    target: Interp | Sim, program: Program, given: dict[str, np.ndarray], **options: Any
) -> dict[str, np.ndarray]:
    """uint8 contents of the writable segments after a run; `given` is written before it."""
    bases = {}
    for s in program.segments:
        address = target.allocate(max(s.bytes, 4))
        bases[s.base] = (address, s.bytes, s.writable)
        if s.name in given:
            target.write(address, given[s.name])
    target.run(target.load(program, bases), **options)
    return {s.name: target.read(*bases[s.base][:2]) for s in program.segments if s.writable}


@dataclass
class Written:
    """A program, its data, and float32 [tensors, N, N] that it must store, by trip count."""

    program: Program
    given: dict[str, np.ndarray]
    reference: Callable[[int], np.ndarray]

    def run(self, target: Interp | Sim, trips: int, **options: Any) -> np.ndarray:
        given = {**self.given, "args": np.array([trips], np.int32)}
        out = launch(target, self.program, given, **options)["out"]
        return out.view(np.float32).reshape(-1, N, N)


@dataclass
class Step:
    """An operation: what the builder traces, and what it does to the values in a reference run.

    `apply` takes the values by tensor name and the iteration of the loop it stands in.
    """

    trace: Callable[[], None]
    apply: Callable[[dict[str, np.ndarray], int], None]


@dataclass
class Author:
    """Writes one random program."""

    choose: random.Random
    k: Builder
    tensors: dict[str, Tensor] = field(default_factory=dict)
    bound: dict[str, int] = field(default_factory=dict)
    in_loop: bool = False

    def __post_init__(self) -> None:
        k = self.k
        rng = np.random.default_rng(self.choose.getrandbits(32))
        values = rng.integers(-SOURCE_BOUND, SOURCE_BOUND + 1, (SOURCES, N, N))
        self.values = values.astype(np.float32)
        self.wide = k.segment("wide", 4 * SOURCES * N * N, writable=False)
        self.narrow = k.segment("narrow", 2 * SOURCES * N * N, writable=False)
        self.scratch = k.segment("scratch", 4 * N * N, writable=True)
        self.trips = k.arg("trips")
        kinds = [Kind.SPM_BF16] * 4 + [Kind.SPM_FP32] * 2 + [Kind.VMEM] * 2 + [Kind.ACC] * 3
        for at, kind in enumerate(kinds):
            self.tensors[f"{kind.name.lower()}{at}"] = k.tensor(kind, N, N)
        self.given = {"wide": self.values, "narrow": f32_to_bf16(self.values)}

    def queue(self) -> int:
        return 2 + self.choose.randrange(self.k.chip.dma.queues)

    def kind(self, *kinds: Kind) -> list[str]:
        return [n for n, t in self.tensors.items() if t.kind in kinds]

    def apart(self, *names: str) -> bool:
        """A map's spm and acc operands, result last, lie in stripes of their own."""
        taken: set = set()
        for name in names:
            t = self.tensors[name]
            if t.memory != "vmem" and taken & t.resources:
                return False
            taken |= t.resources
        return True

    # --- operations: each returns a Step or None if it cannot be had ---

    def load(self, name: str | None = None) -> Step | None:
        """A matrix from the host; in a loop, another one each iteration."""
        name = name or self.choose.choice(self.kind(Kind.SPM_BF16, Kind.SPM_FP32, Kind.VMEM))
        t, at, queue = self.tensors[name], self.choose.randrange(3), self.queue()
        narrow = t.kind == Kind.SPM_BF16
        size = 2 if narrow else 4
        segment = (self.narrow if narrow else self.wide).slice(size * at * N * N, 0)
        moving = self.in_loop and self.choose.random() < 0.5
        self.bound[name] = SOURCE_BOUND

        def trace() -> None:
            src: HbmTensor = segment
            if moving:
                loop = self.k.loop_open
                assert loop is not None
                src = segment.at(loop.var(0, size * N * N, wrap=size * 3 * N * N))
            fmt = HbmFormat.BF16 if narrow else HbmFormat.FP32
            ops.load(self.k, t, src, queue=queue, format=fmt)

        def apply(values: dict[str, np.ndarray], iteration: int) -> None:
            values[name] = self.values[at + (iteration % 3 if moving else 0)]

        return Step(trace, apply)

    def vector(self) -> Step | None:
        names = list(self.tensors)
        a, b, dst = (self.choose.choice(names) for _ in range(3))
        combines = list(COMBINES)[2:] if self.in_loop else list(COMBINES)
        combine = self.choose.choice(combines)
        grows = combine in (Combine.ADD, Combine.SUB)
        bound = self.bound[a] + self.bound[b] if grows else max(self.bound[a], self.bound[b])
        if bound > EXACT or a == b or not self.apart(a, b, dst):
            return None
        self.bound[dst] = max(bound, self.bound[dst] if self.in_loop else 0)
        ta, tb, td = (self.tensors[n] for n in (a, b, dst))

        def apply(values: dict[str, np.ndarray], iteration: int) -> None:
            values[dst] = COMBINES[combine](values[a], values[b])

        return Step(lambda: ops.vector(self.k, ta, tb, dst=td, combine=combine), apply)

    def matmul(self) -> Step | None:
        x, w = (self.choose.choice(self.kind(Kind.SPM_BF16)) for _ in range(2))
        dst = self.choose.choice(self.kind(Kind.ACC))
        accumulate = not self.in_loop and self.choose.random() < 0.4
        bound = N * self.bound[x] * self.bound[w] + (self.bound[dst] if accumulate else 0)
        if bound > EXACT or x == w or not self.apart(x, w):
            return None
        self.bound[dst] = max(bound, self.bound[dst] if self.in_loop else 0)
        tx, tw, td = (self.tensors[n] for n in (x, w, dst))

        def apply(values: dict[str, np.ndarray], iteration: int) -> None:
            values[dst] = values[x] @ values[w] + (values[dst] if accumulate else 0)

        return Step(lambda: ops.matmul(self.k, td, tx, tw, accumulate=accumulate), apply)

    def row_maximum(self) -> Step | None:
        """dst = a - the largest of its row: through a packed statistic in vmem."""
        a, dst = (self.choose.choice(list(self.tensors)) for _ in range(2))
        if self.in_loop or 2 * self.bound[a] > EXACT or a == dst or not self.apart(a, dst):
            return None
        self.bound[dst] = 2 * self.bound[a]
        ta, td = self.tensors[a], self.tensors[dst]

        def trace() -> None:
            stat = self.k.packed(N)
            ops.vector(self.k, ta, reduce=Reduce.MAX, reduce_dst=stat)
            ops.vector(self.k, ta, stat.scalars(), dst=td, combine=Combine.SUB)
            self.k.free_packed(stat)

        def apply(values: dict[str, np.ndarray], iteration: int) -> None:
            values[dst] = values[a] - values[a].max(1, keepdims=True)

        return Step(trace, apply)

    def through_hbm(self) -> Step | None:
        """dst = a, by a store and a load of one place in HBM from any two queues."""
        names = self.kind(Kind.SPM_FP32, Kind.VMEM)
        a, dst = (self.choose.choice(names) for _ in range(2))
        first, second = self.queue(), self.queue()
        self.bound[dst] = self.bound[a]
        ta, td = self.tensors[a], self.tensors[dst]

        def trace() -> None:
            ops.store(self.k, ta, self.scratch, queue=first, format=HbmFormat.FP32)
            ops.load(self.k, td, self.scratch, queue=second, format=HbmFormat.FP32)

        def apply(values: dict[str, np.ndarray], iteration: int) -> None:
            values[dst] = values[a]

        return Step(trace, apply)

    def step(self) -> Step:
        """A random operation."""
        while True:
            make = self.choose.choice(
                [self.load, self.vector, self.vector, self.matmul, self.row_maximum]
                + ([] if self.in_loop else [self.through_hbm])
            )
            if (step := make()) is not None:
                return step

    def loop(self) -> Step:
        """`trips` iterations of a few operations, the first of them on a ring of two buffers."""
        self.in_loop = True
        ring, stride = self.k.ring(N, N, 2, avoid=tuple(self.tensors.values()))
        into = self.choose.choice(self.kind(Kind.ACC))
        partner = self.choose.choice(self.kind(Kind.SPM_BF16))
        held = self.tensors[partner]
        queue = self.queue()
        self.bound[into] = max(self.bound[into], self.bound[partner], SOURCE_BOUND)
        body = [self.step() for _ in range(self.choose.randrange(4))]
        self.in_loop = False
        queues = tuple(range(len(self.k.queues)))

        def trace() -> None:
            with self.k.loop(self.trips, queues, ring=2, rings=(ring,)) as loop:
                here = ring.at(loop.var(0, stride, wrap=2 * stride))
                src = self.narrow.at(loop.var(0, 2 * N * N, wrap=2 * SOURCES * N * N))
                ops.load(self.k, here, src, queue=queue)
                ops.vector(self.k, here, held, dst=self.tensors[into], combine=Combine.MAX)
                for step in body:
                    step.trace()
            self.k.free_ring(ring, stride)

        def apply(values: dict[str, np.ndarray], iteration: int) -> None:
            for turn in range(values["trips"].item()):
                values[into] = np.maximum(self.values[turn % SOURCES], values[partner])
                for step in body:
                    step.apply(values, turn)

        return Step(trace, apply)

    # --- the program ---

    def write(self, steps: int, loops: int) -> Written:
        first = [self.load(n) for n in self.kind(Kind.SPM_BF16, Kind.SPM_FP32, Kind.VMEM)]
        todo = [s for s in first if s is not None]
        for name in self.kind(Kind.ACC):
            todo.append(self.copy(self.choose.choice(self.kind(Kind.VMEM)), name))
        places = sorted(self.choose.sample(range(steps), loops))
        for at in range(steps):
            todo.append(self.loop() if at in places else self.step())
        for step in todo:
            step.trace()
        out = self.k.segment("out", 4 * N * N * len(self.tensors), writable=True)
        for at, t in enumerate(self.tensors.values()):
            copy = self.k.tensor(Kind.VMEM, N, N)
            ops.vector(self.k, t, dst=copy)
            place = out.slice(4 * at * N * N, 0)
            ops.store(self.k, copy, place, queue=self.queue(), format=HbmFormat.FP32)
            self.k.free(copy)

        def reference(trips: int) -> np.ndarray:
            values = {"trips": np.array(trips)}
            for step in todo:
                step.apply(values, 0)
            return np.stack([values[name] for name in self.tensors]).astype(np.float32)

        return Written(self.k.build(), self.given, reference)

    def copy(self, a: str, dst: str) -> Step:
        self.bound[dst] = self.bound[a]

        def apply(values: dict[str, np.ndarray], iteration: int) -> None:
            values[dst] = values[a]

        ta, td = self.tensors[a], self.tensors[dst]
        return Step(lambda: ops.vector(self.k, ta, dst=td), apply)


def random_program(seed: int, *, steps: int = 14, loops: int = 0, chip: Chip = CHIP) -> Written:
    """Every second program has few stripes, so that tensors share them."""
    choose = random.Random(seed)
    k = Builder(chip, weight_slots=0 if seed % 2 or loops else chip.spm.stripes - 4)
    return Author(choose, k).write(steps, loops)


def tokens(program: Program, chip: Chip) -> list[tuple[str, int, str, int, int, int]]:
    """Matched posts and waits: (producer, pc, consumer, pc, post bit, wait bit).

    Only tokens between two instructions that both run once, or once an iteration of one loop
    (channels 0 and 1 of a pair): there the n-th post in the stream meets the n-th wait.
    """
    names, per_pair = chip.queue_names, chip.tokens.channels_per_pair
    posts: dict[tuple[int, int, int], list[int]] = {}
    waits: dict[tuple[int, int, int], list[int]] = {}
    for number, name in enumerate(names):
        for pc, instruction in enumerate(program.streams[name]):
            for bit in range(per_pair * (len(names) - 1)):
                peer, channel = channel_peer(number, bit, per_pair)
                if channel > 1:
                    continue
                if instruction.posts >> bit & 1:
                    posts.setdefault((number, peer, channel), []).append(pc)
                if instruction.waits >> bit & 1:
                    waits.setdefault((peer, number, channel), []).append(pc)
    found = []
    for (producer, consumer, channel), at in posts.items():
        for first, second in zip(at, waits[producer, consumer, channel], strict=True):
            post = channel_bit(producer, consumer, channel, per_pair)
            wait = channel_bit(consumer, producer, channel, per_pair)
            found.append((names[producer], first, names[consumer], second, post, wait))
    return found
