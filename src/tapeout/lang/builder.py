"""Traces kernels into per-queue instruction streams and assigns tokens.

A kernel calls the builder's operations in program order. Every operation names the resources it
touches (spm and acc stripes, vmem blocks, HBM buffers); when consecutive accesses to a resource
come from different queues, the earlier instruction posts a token and the later one waits for it,
unless tokens already there imply it. Within a queue, a read after an undrained write sets the drain
flag.
Since all edges point forward in program order, the result cannot deadlock, and reordering never
happens: overlap comes from queues running ahead of each other.

Loops (`Builder.loop`) are traced once. Edges inside a body post and wait once an iteration, on a
token channel of their own; accesses before and after the loop meet it at an entry and an exit
instruction; edges to the next iteration carry tokens posted before the loop and taken after it.
"""

import bisect
import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from tapeout.chip import Chip
from tapeout.isa import (
    Addr,
    Count,
    HbmAddr,
    Instruction,
    Kind,
    Operand,
    Program,
    Segment,
    Source,
    seq,
)
from tapeout.isa.program import channel_bit

from .memory import Places
from .registers import Registers
from .scalar import Arg, LoopVar, Scalar
from .tensor import HbmTensor, Tensor

ARGS_BASE = 1  # base register of the launch arguments
_STRAIGHT, _INSIDE, _CARRIED, _RING = range(4)  # token channels of a pair of queues
_SLACK = 8  # tokens below a channel's capacity at which its producer asks how far its consumer is
_KNOWN = 32  # tokens that it then leaves unknown
VMEM_BLOCK = 8  # vmem is ordered in blocks of this many rows
MEMORIES = {Kind.SPM_BF16: "spm", Kind.SPM_FP32: "spm", Kind.VMEM: "vmem", Kind.ACC: "acc"}
_NOT_KERNELS = (str(Path(__file__).parent), contextlib.__file__)  # frames between kernel and node


@cache
def _short(file: str) -> str:
    """A file's name with its folder's."""
    return "/".join(Path(file).parts[-2:])


@dataclass
class Node:
    """An instruction being built; `before` holds plain instructions that precede it."""

    cls: type[Instruction]
    fields: dict[str, Any]
    source: int
    loop: "Loop | None" = None
    waits: int = 0
    posts: int = 0
    drain: bool = False
    clock: dict[int, int] = field(default_factory=dict)
    waits_for: dict[tuple[int, int], int] = field(default_factory=dict)  # (queue, channel) -> node
    before: list["Node"] = field(default_factory=list)
    opens: "Loop | None" = None

    @property
    def idle(self) -> bool:
        """A nop that carries nothing."""
        return self.cls is seq.Nop and not (self.waits or self.posts or self.drain or self.before)


@dataclass
class Touch:
    """The last accesses to a resource: node by queue, undrained writes by queue, mxu ports."""

    last: dict[int, int] = field(default_factory=dict)
    written: dict[int, int] = field(default_factory=dict)
    port: dict[tuple[int, str], int] = field(default_factory=dict)


@dataclass
class Loop:
    """A loop being traced, or traced."""

    ident: int
    queues: tuple[int, ...]
    ring: int  # iterations after which a ring slot is used again
    rings: frozenset
    entry: dict[int, int] = field(default_factory=dict)
    head: dict[int, int] = field(default_factory=dict)
    exit: dict[int, int] = field(default_factory=dict)
    entry_clock: dict[int, dict[int, int]] = field(default_factory=dict)
    first: dict[Any, tuple[int, int]] = field(default_factory=dict)  # resource -> (queue, node)
    final: dict[Any, tuple[int, int]] = field(default_factory=dict)
    touched: dict[Any, set[int]] = field(default_factory=dict)
    first_read: dict[tuple[int, Any], int] = field(default_factory=dict)
    wrote: set[tuple[int, Any]] = field(default_factory=set)
    variables: int = 0

    def var(self, init: Scalar | int, step: Scalar | int, wrap: int = 0) -> LoopVar:
        """A register that starts at `init` and grows by `step` an iteration (`LoopVar`)."""
        self.variables += 1
        return LoopVar(loop=self.ident, init=init, step=step, wrap=wrap, key=self.variables)


Access = tuple[Any, bool, str]  # resource, is a write, port


class Builder:
    """One program under construction for `chip`.

    `weight_slots` stripes of spm form the ring through which weights stream.
    """

    def __init__(self, chip: Chip, *, weight_slots: int | None = None) -> None:
        self.chip = chip
        self.ring_stripes = chip.spm.stripes // 3 if weight_slots is None else weight_slots
        self.places = Places(chip, self.ring_stripes)
        self.queues = chip.queue_names
        self.streams: list[list[Node]] = [[] for _ in self.queues]
        self.clocks: list[dict[int, int]] = [{} for _ in self.queues]
        self.touches: dict[Any, Touch] = {}
        self.taken: dict[tuple[int, int], list[int]] = {}  # (producer, consumer): nodes that took
        self.loop_open: Loop | None = None
        self.loop_count = 0
        self.drains: dict[int, list[Node]] = {}
        self.args: dict[str, Arg] = {}
        self.registers = [Registers(self, q) for q in range(len(self.queues))]
        self.segments: list[Segment] = []
        self.source_table: list[Source] = []
        self.source_index: dict[Source, int] = {}
        self.scopes: list[tuple[str, str]] = [("", "")]
        n = chip.dma.queues
        self.weights_queue, self.load_queue = 2, 2 + min(1, n - 1)
        self.store_queue, self.vmem_queue = 2 + min(2, n - 1), 2 + min(3, n - 1)

    # --- names ----------------------------------------------------------------------------------

    @contextmanager
    def scope(self, kernel: str, layer: str | None = None) -> Iterator[None]:
        """Instructions traced inside carry this kernel (and layer) name."""
        self.scopes.append((kernel, self.scopes[-1][1] if layer is None else layer))
        yield
        self.scopes.pop()

    def _source(self) -> int:
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_KERNELS):
            frame = frame.f_back
        kernel, layer = self.scopes[-1]
        key = Source(kernel, layer, _short(frame.f_code.co_filename), frame.f_lineno)
        if key not in self.source_index:
            self.source_index[key] = len(self.source_table)
            self.source_table.append(key)
        return self.source_index[key]

    def arg(self, name: str) -> Arg:
        """The int32 launch argument of this name."""
        if name not in self.args:
            self.args[name] = Arg(index=len(self.args), name=name)
        return self.args[name]

    # --- memory ---------------------------------------------------------------------------------

    def segment(self, name: str, nbytes: int, *, writable: bool) -> HbmTensor:
        """A range of HBM with a base register of its own (at most 15 besides the arguments)."""
        base = ARGS_BASE + 1 + len(self.segments)
        self.segments.append(Segment(name=name, base=base, bytes=nbytes, writable=writable))
        return HbmTensor(base=base, offset=0, bytes=nbytes, resource=name if writable else None)

    def _stripes(self, memory: str, base: int, rows: int) -> frozenset:
        per = (self.chip.spm if memory == "spm" else self.chip.acc).rows_per_stripe
        return frozenset((memory, s) for s in range(base // per, (base + rows - 1) // per + 1))

    def tensor(
        self,
        kind: Kind,
        rows: int,
        width: int,
        *,
        avoid: tuple[Tensor, ...] = (),
        stationary: bool = False,
    ) -> Tensor:
        """A new on-chip tensor [rows, width], in stripes not used by the tensors to avoid.

        With `stationary`, each of its tiles can be loaded straight into the array.
        """
        lanes = self.chip.lanes
        tiles = -(-width // lanes)
        depth = 2 if kind == Kind.SPM_FP32 else 1
        tile_stride = self.stationary_rows(rows) if stationary else rows * depth
        total = tiles * tile_stride
        name = MEMORIES[kind]
        if kind == Kind.VMEM:
            base, _ = self.places.vmem.allocate(-(-total // VMEM_BLOCK) * VMEM_BLOCK)
            blocks = range(base // VMEM_BLOCK, (base + total - 1) // VMEM_BLOCK + 1)
            resources = frozenset(("vmem", block) for block in blocks)
        else:
            shun = frozenset(r[1] for t in avoid for r in t.resources if r[0] == name)
            place = self.places.spm if name == "spm" else self.places.acc
            base, _ = place.allocate(total, shun)
            resources = self._stripes(name, base, total)
        return Tensor(
            kind=kind, base=base, rows=rows, width=width, tile_stride=tile_stride,
            row_stride=depth, lanes=lanes, resources=resources,
        )  # fmt: skip

    def stationary_rows(self, rows: int) -> int:
        """Rows of spm from one tile of stationary weights to the next."""
        banks = self.chip.spm.banks_per_stripe
        return -(-rows // banks) * banks

    def packed(self, count: int, rows: int = 1) -> Tensor:
        """`rows` vectors of `count` fp32 in vmem, lanes side by side: statistics of moving rows."""
        lanes = self.chip.lanes
        depth = -(-count // lanes)
        t = self.tensor(Kind.VMEM, rows * depth, lanes)
        return replace(t, rows=rows, width=count, tile_stride=1, row_stride=depth)

    def free_packed(self, t: Tensor) -> None:
        """Gives back what `packed` made."""
        depth = -(-t.width // self.chip.lanes)
        rows = t.rows * depth
        self.free(replace(t, rows=rows, width=self.chip.lanes, tile_stride=rows))

    def ring(
        self, rows: int, width: int, slots: int, *, avoid: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, int]:
        """`slots` spm tensors [rows, width]: the first, and the distance in rows to the next.

        They lie at one offset of different stripes; all count as one resource.

        Args:
            avoid: the other spm tensors that the ring's loop uses: they must share no stripe with
                it, as the loop fills a slot while earlier iterations use theirs.
        """
        tiles = -(-width // self.chip.lanes)
        shun = frozenset(r[1] for t in avoid for r in t.resources if r[0] == "spm")
        base, step = self.places.spm.allocate_column(rows * tiles, slots, shun)
        per = self.chip.spm.rows_per_stripe
        resources = frozenset(("spm", (base + i * step) // per) for i in range(slots))
        tensor = Tensor(
            kind=Kind.SPM_BF16, base=base, rows=rows, width=width, tile_stride=rows, row_stride=1,
            lanes=self.chip.lanes, resources=resources,
        )  # fmt: skip
        return tensor, step

    def free_ring(self, t: Tensor, step: int) -> None:
        """Gives back what `ring` made."""
        for i in range(len(t.resources)):
            self.places.spm.free(t.base + i * step, t.tiles * t.rows)

    def free(self, *tensors: Tensor) -> None:
        """Gives back tensors made by `tensor` (not views of them)."""
        for t in tensors:
            total = t.tiles * t.tile_stride
            if t.memory == "vmem":
                total = -(-total // VMEM_BLOCK) * VMEM_BLOCK
            getattr(self.places, t.memory).free(t.base, total)

    # --- dependences ----------------------------------------------------------------------------

    def _leave(self, queue: int, node: int) -> int:
        """The node by which those outside a closed loop meet `node`: the loop's exit."""
        loop = self.streams[queue][node].loop
        return node if loop is None or loop is self.loop_open else loop.exit[queue]

    def _needs(self, queue: int, accesses: list[Access]) -> dict[tuple[int, bool], int]:
        """For each queue, the last node of it that must retire before these accesses: the last one
        before the open loop and the last one in its body, since the body may not run."""
        needs: dict[tuple[int, bool], int] = {}

        def need(other: int, at: int) -> None:
            at = self._leave(other, at)
            key = (other, self.streams[other][at].loop is not None)
            needs[key] = max(needs.get(key, -1), at)

        for resource, write, port in accesses:
            touch = self.touches.get(resource)
            if touch is None:
                continue
            for other, at in touch.last.items():
                if other != queue:
                    need(other, at)
            if queue in touch.written and not write and port != "accumulate":
                need(queue, touch.written[queue])
            for (q, p), at in touch.port.items():
                if q == queue and p != port and {p, port} <= {"load", "transposed", "stream"}:
                    need(queue, at)
        return needs

    def _order(self, queue: int, index: int, before: int, at: int) -> None:
        """Node `index` of `queue` comes after node `at` of queue `before` has retired."""
        loop = self.streams[queue][index].loop
        inside = loop is not None and self.streams[before][at].loop is loop
        known = self.clocks[queue]
        if loop is not None and not inside:  # must hold if the loop runs zero times, too
            index, known = loop.entry[queue], loop.entry_clock[queue]
        if known.get(before, -1) >= at:
            return
        node = self.streams[queue][index]
        if before == queue:
            node.drain = True
            gained = {queue: index - 1}
        else:
            known = self.streams[before][at].clock
            if not inside and self._outstanding(before, queue, known) >= self._limit:
                at = self._leave(before, len(self.streams[before]) - 1)  # one token for many
            self._token(before, at, queue, index, _INSIDE if inside else _STRAIGHT)
            gained = {**self.streams[before][at].clock, before: at}
        clocks = [self.clocks[queue]]
        if loop is not None and not inside:
            clocks.append(loop.entry_clock[queue])
        for clock in clocks:
            for q, seen in gained.items():
                clock[q] = max(clock.get(q, -1), seen)

    def _token(self, before: int, at: int, queue: int, index: int, channel: int) -> None:
        per_pair = self.chip.tokens.channels_per_pair
        node = self.streams[queue][index]
        post = 1 << channel_bit(before, queue, channel, per_pair)
        old = node.waits_for.get((before, channel))
        if old is not None:  # one token a wait: the later post stands for both
            self.streams[before][old].posts &= ~post
        elif channel == _STRAIGHT:
            self.taken.setdefault((before, queue), []).append(index)
        node.waits_for[before, channel] = at
        self.streams[before][at].posts |= post
        node.waits |= 1 << channel_bit(queue, before, channel, per_pair)

    def _record(self, queue: int, first: int, last: int, accesses: list[Access]) -> None:
        """Notes accesses that begin at node `first` and are over when node `last` retires."""
        loop = self.loop_open
        for resource, write, port in accesses:
            touch = self.touches.setdefault(resource, Touch())
            touch.last = {queue: last}
            touch.port[queue, port] = last
            if write:
                touch.written[queue] = last
            if loop is None:
                continue
            loop.first.setdefault(resource, (queue, first))
            loop.final[resource] = (queue, last)
            loop.touched.setdefault(resource, set()).add(queue)
            if write:
                loop.wrote.add((queue, resource))
            elif port != "accumulate" and (queue, resource) not in loop.wrote:
                loop.first_read.setdefault((queue, resource), first)

    # --- emission -------------------------------------------------------------------------------

    def append(self, queue: int, cls: type[Instruction], **fields: Any) -> int:
        """Appends an instruction without accesses of its own (registers, loops); its index."""
        loop = self.loop_open
        if loop is not None and queue not in loop.queues:
            raise ValueError(
                f"queue {self.queues[queue]} is used in a loop that does not list it: "
                f"add it to Builder.loop(queues=...)"
            )
        self.streams[queue].append(Node(cls, fields, self._source(), loop))
        return len(self.streams[queue]) - 1

    def emit(
        self, queue: int, cls: type[Instruction], accesses: list[Access], **fields: Any
    ) -> int:
        """Appends an instruction with its accesses; its index."""
        index = self.append(queue, cls, **fields)
        self.settle(queue, index, accesses)
        return index

    def settle(self, queue: int, first: int, accesses: list[Access]) -> None:
        """Declares the accesses of the nodes from `first` to the last one of the queue."""
        last = len(self.streams[queue]) - 1
        if self.loop_open is None:
            self._bound(queue, first)
        for (before, _), at in sorted(self._needs(queue, accesses).items()):
            self._order(queue, first, before, at)
        self._record(queue, first, last, accesses)
        for index in range(first, last + 1):
            self.streams[queue][index].clock = dict(self.clocks[queue])

    @property
    def _limit(self) -> int:
        """Tokens of a channel that its producer may know nothing of."""
        return self.chip.tokens.capacity - _SLACK

    def _outstanding(self, producer: int, consumer: int, clock: dict[int, int]) -> int:
        """Tokens that the producer, at this clock, does not know to be taken."""
        nodes = self.taken.get((producer, consumer), [])
        return len(nodes) - bisect.bisect_right(nodes, clock.get(consumer, -1))

    def _bound(self, queue: int, index: int) -> None:
        """Waits until no channel from this queue can overflow: its consumers have taken tokens."""
        for (producer, consumer), nodes in list(self.taken.items()):
            if producer != queue:
                continue
            if self._outstanding(queue, consumer, self.clocks[queue]) >= self._limit:
                keep = min(_KNOWN, self._limit // 2)
                self._order(queue, index, consumer, self._leave(consumer, nodes[-keep]))

    def addr(self, queue: int, imm: int, reg: Scalar | LoopVar | None = None) -> Addr:
        return Addr(imm, self.registers[queue].number(reg))

    def count(self, queue: int, value: Scalar | int) -> Count:
        if isinstance(value, int):
            return Count(value)
        return Count(0, self.registers[queue].number(value))

    def hbm(self, queue: int, t: HbmTensor) -> HbmAddr:
        return HbmAddr(t.base, t.offset, self.registers[queue].number(t.reg))

    def operand(self, queue: int, t: Tensor | float | None) -> Operand:
        if t is None:
            return Operand()
        if isinstance(t, (int, float)):
            return Operand(kind=Kind.IMMEDIATE, value=float(t))
        return Operand(
            kind=t.kind, imm=t.base, reg=self.registers[queue].number(t.reg),
            tile_stride=t.tile_stride, row_stride=t.row_stride,
        )  # fmt: skip

    # --- loops ----------------------------------------------------------------------------------

    @contextmanager
    def loop(
        self,
        count: Scalar | int,
        queues: tuple[int, ...],
        *,
        ring: int = 1,
        rings: tuple[Tensor, ...] = (),
    ) -> Iterator[Loop]:
        """A hardware loop on `queues`; tensors in `rings` have `ring` slots used in turn.

        Accesses in the body are traced once, for one iteration.
        """
        if self.loop_open is not None:
            raise ValueError("Builder.loop does not nest: unroll the outer loop")
        self.loop_count += 1
        loop = Loop(self.loop_count, queues, ring, frozenset().union(*(t.resources for t in rings)))
        for q in queues:
            loop.entry[q] = self.append(q, seq.Nop)
            loop.entry_clock[q] = dict(self.clocks[q])
            self.streams[q][-1].clock = dict(self.clocks[q])
            loop.head[q] = self.append(q, seq.Loop, count=self.count(q, count))
            self.streams[q][-1].opens = loop
        self.loop_open = loop
        yield loop
        self._carry(loop)
        for q in queues:
            init, step = self.registers[q].loop_code(loop)
            self.streams[q][loop.head[q]].before += [Node(c, f, 0) for c, f in init]
            for cls, fields in step:
                self.append(q, cls, **fields)
            if self.streams[q][-1].loop is not loop:
                self.append(q, seq.Nop)
            self.registers[q].end_loop(loop)
        self.loop_open = None
        for q in queues:
            self.clocks[q] = loop.entry_clock[q]
            loop.exit[q] = self.append(q, seq.Nop)
            self.streams[q][-1].clock = dict(self.clocks[q])
            self.streams[q][-1].before += self.drains.pop(q, [])
        for resource, touched in loop.touched.items():
            self.touches[resource].last = {q: loop.exit[q] for q in touched}

    def _carry(self, loop: Loop) -> None:
        """Edges from one iteration to the next: posted ahead of the loop, taken after it."""
        edges: dict[tuple[int, int, int], tuple[int, int]] = {}
        for resource, (queue, first) in loop.first.items():
            before, last = loop.final[resource]
            if before == queue:
                continue
            distance = loop.ring if resource in loop.rings else 1
            at, index = edges.get((before, queue, distance), (last, first))
            edges[before, queue, distance] = (max(at, last), min(index, first))
        for (q, resource), index in loop.first_read.items():
            if (q, resource) in loop.wrote:
                self.streams[q][index].drain = True
        per_pair = self.chip.tokens.channels_per_pair
        for (before, queue, distance), (at, index) in edges.items():
            channel = _RING if distance > 1 else _CARRIED
            self._token(before, at, queue, index, channel)
            post = 1 << channel_bit(before, queue, channel, per_pair)
            wait = 1 << channel_bit(queue, before, channel, per_pair)
            source = self.streams[queue][index].source
            head = self.streams[before][loop.head[before]]
            head.before += [Node(seq.Nop, {}, source, posts=post) for _ in range(distance)]
            self.drains.setdefault(queue, []).extend(
                Node(seq.Nop, {}, source, waits=wait) for _ in range(distance)
            )

    # --- result ---------------------------------------------------------------------------------

    def build(self) -> Program:
        """The finished program: prologues, idle nops dropped, loop lengths set, halts added."""
        streams: dict[str, list[Instruction]] = {}
        sources: dict[str, list[int]] = {}
        for q, name in enumerate(self.queues):
            nodes = [Node(c, f, 0) for c, f in self.registers[q].prologue]
            lengths: dict[int, int] = {}
            for node in self.streams[q]:
                if node.loop is not None:
                    lengths[node.loop.ident] = lengths.get(node.loop.ident, 0) + 1
                elif node.idle:
                    continue
                nodes += [*node.before, node]
            for node in nodes:
                if node.opens is not None:
                    node.fields["length"] = lengths[node.opens.ident]
            nodes.append(Node(seq.Halt, {}, 0))
            streams[name] = [
                n.cls(**n.fields, waits=n.waits, posts=n.posts, drain=n.drain) for n in nodes
            ]
            sources[name] = [n.source for n in nodes]
        args = Segment("args", ARGS_BASE, 4 * max(1, len(self.args)), False)
        return Program(
            chip=self.chip.name,
            streams=streams,
            segments=[args, *self.segments],
            sources=sources,
            source_table=self.source_table or [Source("")],
        )
