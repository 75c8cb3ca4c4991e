"""Rings of on-chip tensors that a kernel fills in turn, so that it runs ahead of their readers."""

from collections.abc import Callable
from typing import Any

from tapeout.isa import Kind
from tapeout.lang import Builder, Tensor


class Rings:
    """The rings of one kernel: each of their tensors is in stripes of its own."""

    def __init__(self, k: Builder) -> None:
        self.k = k
        self.taken: tuple[Tensor, ...] = ()

    def make(
        self, kind: Kind, rows: int, width: int, slots: int, *, stationary: bool = False
    ) -> list[Tensor]:
        ring = []
        for _ in range(slots):
            ring.append(self.k.tensor(kind, rows, width, avoid=self.taken, stationary=stationary))
            self.taken = (*self.taken, ring[-1])
        return ring

    def free(self) -> None:
        self.k.free(*self.taken)


class Chunks:
    """A ring of chunks of a tensor; the one that came last is not loaded again."""

    def __init__(self, ring: list[Tensor], load: Callable[..., Tensor]) -> None:
        """`load` fills a slot with what its other arguments name, and says how it lies there."""
        self.ring, self.load, self.turn = ring, load, 0
        self.what: tuple[Any, ...] = ()
        self.last: Tensor | None = None

    def get(self, *what: Any) -> Tensor:
        """The chunk that the arguments name."""
        if self.last is None or self.what != what:
            self.what, self.last = what, self.load(self.ring[self.turn % len(self.ring)], *what)
            self.turn += 1
        return self.last
