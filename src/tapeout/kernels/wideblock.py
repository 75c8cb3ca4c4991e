"""Blocks of large elementwise programs: their full values lie in stripes of spm and acc."""

from collections.abc import Callable

from tapeout.isa import Kind
from tapeout.isa.dma import HbmFormat
from tapeout.lang import Builder, ChipTooSmall, Tensor, ops

from .rowblock import Block
from .rowprogram import FULL, VECTOR, Place, Step
from .rows import spm_kind


class WideBlock(Block):
    """A block whose full values lie in stripes of their own: in spm what comes and goes, so that
    the next block's can come meanwhile, and in acc, as long as there is room, the others."""

    def _tensor(self, form: str, span: tuple[int, int]) -> Tensor:
        if form == FULL:
            return self._stripe(Kind.SPM_FP32, span)
        if form == VECTOR:
            tiles = span[1] - span[0]
            return self.region.tensor(1, tiles, self._width(span), slot=self.chunk)
        return super()._tensor(form, span)

    def _stripe(self, kind: Kind, span: tuple[int, int]) -> Tensor:
        live = tuple(t for t in self.held.values() if t.memory != "vmem")
        return self.k.tensor(kind, self.count, self._width(span), avoid=live)

    def _temporary(self, span: tuple[int, int]) -> Tensor:
        try:
            return self._stripe(Kind.ACC, span)
        except ChipTooSmall:
            return self._stripe(Kind.SPM_FP32, span)

    def free(self, t: Tensor) -> None:
        if t.memory != "vmem":
            self.k.free(t)
        else:
            super().free(t)

    def fetch(self, n: int, span: tuple[int, int]) -> None:
        node = self.p.nodes[n]
        if node.form != FULL:
            super().fetch(n, span)
            return
        assert node.place is not None
        t = self._stripe(spm_kind(node.place.format), span)
        self._load(t, node.place, (self.a, self.b), span)
        self.held[n] = t

    def _result(self, step: Step, span: tuple[int, int]) -> Tensor:
        if step.form == FULL and step.node not in self.held:
            formats = {place.format for n, place in self.p.stores if n == step.node}
            read = any(step.node in other.reads for other in self.outer.steps)
            narrow = formats == {HbmFormat.BF16} and not read
            rounds = self.p.nodes[step.node].op == "bf16"
            if rounds or step.node in self.outer.keep:
                kind = Kind.SPM_BF16 if narrow or rounds else Kind.SPM_FP32
                self.held[step.node] = self._stripe(kind, span)
            else:
                self.held[step.node] = self._temporary(span)
        return super()._result(step, span)

    def _apart(
        self, operands: list[Tensor | float], d: Tensor | float | None, spare: list[Tensor],
        span: tuple[int, int],
    ) -> tuple[list[Tensor | float], Tensor | float | None]:  # fmt: skip
        """A stripe has one port: what is read twice is copied."""

        def another(x: Tensor) -> Tensor:
            avoid = (*(t for t in self.held.values() if t.memory != "vmem"), *spare)
            kind = Kind.SPM_FP32 if x.kind == Kind.ACC else x.kind
            return self.k.tensor(kind, x.rows, x.width, avoid=avoid)

        return copied_apart(self.k, operands, d, spare, another)

    def _store(self, t: Tensor, place: Place, span: tuple[int, int]) -> None:
        kind = spm_kind(place.format)
        if t.memory == "vmem" or t.kind == kind:
            super()._store(t, place, span)
            return
        other = self._stripe(kind, span)
        ops.vector(self.k, t, dst=other)
        super()._store(other, place, span)
        self.k.free(other)


def copied_apart(
    k: Builder, operands: list[Tensor | float], d: Tensor | float | None, spare: list[Tensor],
    another: Callable[[Tensor], Tensor],
) -> tuple[list[Tensor | float], Tensor | float | None]:  # fmt: skip
    """Operands of one instruction; what it would read twice from a stripe is copied to `another`
    tensor, which goes to `spare`."""
    seen: set = set()
    out: list[Tensor | float | None] = []
    for x in (*operands, d):
        if isinstance(x, Tensor) and x.memory in ("spm", "acc"):
            if seen & x.resources:
                copy = another(x)
                ops.vector(k, x, dst=copy, rows=x.rows)
                spare.append(copy)
                x = copy
            seen |= x.resources
        out.append(x)
    return [x for x in out[:-1] if x is not None], out[-1]
