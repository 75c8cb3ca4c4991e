"""From values to steps: what is stored, and what is computed together.

A step is a kernel over buffers. Maps are computed where they are used; one that several others use,
that is shown through a view, or that is a result, is stored. Neighbours over one domain become one
step: a value that the same step has made, at the same place, is not loaded again. Reductions along
the last dimensions and what is computed from them, a number a row, take part (softmax and norms are
one step each); reductions along others are steps of their own.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tapeout.isa.dma import HbmFormat
from tapeout.kernels import rowwise
from tapeout.lang import HbmTensor

from .values import (
    Buffer,
    Kernel,
    Map,
    Number,
    Reduce,
    Result,
    Shape,
    Value,
    View,
    as_view,
    copy,
    dense_strides,
    item_bytes,
)

SEARCH = 24  # groups that a value may join, counted from the last


@dataclass
class Group:
    """Roots computed together over `domain`; its last `lanes` dimensions are reduced (0: none)."""

    domain: Shape
    lanes: int
    roots: list[Value] = field(default_factory=list)

    @property
    def row_shape(self) -> Shape:
        return self.domain[: len(self.domain) - self.lanes]


@dataclass
class Fold:
    """A reduction along dimensions that are not the last."""

    root: Reduce


@dataclass
class Launch:
    """A kernel of its own."""

    kernel: Kernel
    results: list[Result]


Step = Group | Fold | Launch


@dataclass
class Schedule:
    """Steps in order; `stored` has a buffer for every value that is in HBM at some time."""

    steps: list[Step]
    stored: dict[Value, Buffer]
    roots: set[Value]


def inputs_of(v: Value) -> tuple[Value, ...]:
    if isinstance(v, Map):
        return v.args
    if isinstance(v, Reduce):
        return (v.arg,)
    if isinstance(v, View):
        return (v.source,)
    if isinstance(v, Result):
        return v.kernel.inputs
    return ()


def topological(outputs: Sequence[Value]) -> list[Value]:
    """All values that the outputs need, each behind what it needs."""
    order: list[Value] = []
    seen: set[Value] = set()
    stack: list[tuple[Value, bool]] = [(v, False) for v in reversed(outputs)]
    while stack:
        v, done = stack.pop()
        if done:
            order.append(v)
            continue
        if v in seen:
            continue
        seen.add(v)
        stack.append((v, True))
        stack.extend((i, False) for i in reversed(inputs_of(v)) if i not in seen)
    return order


def plan(
    outputs: Sequence[tuple[Value, Buffer]], in_place: frozenset[Buffer] = frozenset()
) -> Schedule:
    """Steps that leave each value in its buffer.

    Args:
        in_place: buffers among them that hold inputs, which steps read before they are written.
    """
    return _Planner(outputs, in_place).run()


class _Planner:
    def __init__(
        self, outputs: Sequence[tuple[Value, Buffer]], in_place: frozenset[Buffer]
    ) -> None:
        self.in_place = in_place
        self.stored: dict[Value, Buffer] = {}
        self.roots: set[Value] = set()
        ends: list[Value] = []
        for value, buffer in outputs:
            if isinstance(value, (Map, Reduce, Result)) and value not in self.stored:
                self.stored[value] = buffer
                ends.append(value)
            else:
                end = copy(value)
                self.stored[end] = buffer
                ends.append(end)
        self.ends = ends
        self.order = topological(ends)
        self.steps: list[Step] = []
        self.made: dict[Value, int] = {}  # root -> its step

    def run(self) -> Schedule:
        self._choose_roots()
        launches: dict[Kernel, Launch] = {}
        for v in self.order:
            if v not in self.roots:
                continue
            if isinstance(v, Result):
                launch = launches.get(v.kernel)
                if launch is None:
                    launch = launches[v.kernel] = Launch(v.kernel, [])
                    self.steps.append(launch)
                launch.results.append(v)
                self.made[v] = self.steps.index(launch)
            elif isinstance(v, Reduce) and not _is_trailing(v):
                self.steps.append(Fold(v))
                self.made[v] = len(self.steps) - 1
            else:
                self._join(v)
        self._store()
        self._write_last()
        return Schedule(self.steps, self.stored, self.roots)

    def _choose_roots(self) -> None:
        users: dict[Value, int] = {}
        for v in self.order:
            for i in dict.fromkeys(inputs_of(v)):
                users[i] = users.get(i, 0) + 1
                if isinstance(i, Map) and (isinstance(v, View) or _wants_stored(v)):
                    self.roots.add(i)
        for v in self.order:
            if (
                isinstance(v, (Reduce, Result))
                or v in self.stored
                or (isinstance(v, Map) and users.get(v, 0) > 1)
            ):
                self.roots.add(v)

    # --- groups -----------------------------------------------------------------------------------

    def leaves(self, root: Value) -> Iterator[View]:
        """Views of stored values that computing `root` reads."""
        stack = list(inputs_of(root))
        seen: set[Value] = set()
        while stack:
            v = stack.pop()
            if v in seen:
                continue
            seen.add(v)
            if isinstance(v, Map) and v not in self.roots:
                stack.extend(v.args)
            elif not isinstance(v, Number):
                yield as_view(v)

    def _join(self, root: Value) -> None:
        """Puts a map, or a reduction along the last dimensions, into a group."""
        leaves = list(self.leaves(root))
        lanes = _reduced(root) if isinstance(root, Reduce) else 0
        domain = root.arg.shape if isinstance(root, Reduce) else root.shape
        for at in range(len(self.steps) - 1, max(-1, len(self.steps) - 1 - SEARCH), -1):
            step = self.steps[at]
            reads = [v for v in leaves if self.made.get(v.source) == at]
            if isinstance(step, Group) and (reads or self._shares(step, leaves)):
                merged = self._merged(step, root, domain, lanes, leaves)
                if merged is not None and all(self._aligned(merged, root, v) for v in reads):
                    step.lanes = merged.lanes
                    step.roots.append(root)
                    self.made[root] = at
                    return
            if reads:
                break
        self.steps.append(Group(domain, lanes, [root]))
        self.made[root] = len(self.steps) - 1

    def _shares(self, group: Group, leaves: list[View]) -> bool:
        sources = {v.source for v in leaves}
        return any(v.source in sources for r in group.roots for v in self.leaves(r))

    def _merged(
        self, group: Group, root: Value, domain: Shape, lanes: int, leaves: list[View]
    ) -> Group | None:
        """The group as it would be with the root; None where that cannot be."""
        if domain == group.domain:
            if lanes and group.lanes and lanes != group.lanes:
                return None
            new = replace(group, lanes=lanes or group.lanes)
            if new.lanes and not group.lanes:
                members = [v for r in group.roots for v in self.leaves(r)]
                if not all(_lanes_merge(v, domain, new.lanes) for v in members):
                    return None
            if new.lanes and not all(_lanes_merge(v, domain, new.lanes) for v in leaves):
                return None
            return new
        if (
            group.lanes
            and isinstance(root, Map)
            and _ones_off(domain) == _ones_off(group.row_shape)
        ):
            return group
        return None

    def _aligned(self, group: Group, root: Value, leaf: View) -> bool:
        """True if the leaf shows each element of its source where the group has computed it."""
        whole, is_stat = group.domain, root.shape != group.domain and isinstance(root, Map)
        source_is_stat = leaf.source.shape != whole
        if leaf.offset or (is_stat and not source_is_stat):
            return False
        if is_stat:
            shown = [s for n, s in zip(leaf.shape, leaf.strides, strict=True) if n != 1]
            return shown == _steps_of(group.row_shape)
        if not source_is_stat:
            return leaf.shape == whole and _equal(whole, leaf.strides, dense_strides(whole))
        if leaf.shape != whole or not group.lanes:
            return False
        rows = len(whole) - group.lanes
        shown = [s for n, s in zip(whole[:rows], leaf.strides[:rows], strict=True) if n != 1]
        still = all(s == 0 for n, s in zip(whole[rows:], leaf.strides[rows:], strict=True) if n > 1)
        return still and shown == _steps_of(group.row_shape)

    def _store(self) -> None:
        """Buffers for what other steps read."""
        for at, step in enumerate(self.steps):
            if isinstance(step, Group):
                needed = [v for r in step.roots for v in self.leaves(r)]
            elif isinstance(step, Fold):
                needed = list(self.leaves(step.root))
            else:
                needed = list(self.leaves(step.results[0]))
                for r in step.results:
                    self._buffer(r)
            for v in needed:
                source = v.source
                if not isinstance(source, Buffer) and self.made[source] != at:
                    self._buffer(source)

    # --- buffers that are read and written --------------------------------------------------------

    def _write_last(self) -> None:
        """Steps that only write buffers in place, for nobody else, come last; where one is read
        behind its write even so, or elsewhere than it is written, it is copied at the end."""
        reads = [self._reads(step) for step in self.steps]
        wanted = {v.source for views in reads for v in views}
        last = [
            all(self.stored.get(r) in self.in_place and r not in wanted for r in _made_by(step))
            for step in self.steps
        ]
        order = sorted(range(len(self.steps)), key=lambda i: last[i])
        self.steps, reads = [self.steps[i] for i in order], [reads[i] for i in order]
        for at, step in enumerate(list(self.steps)):
            for root in _made_by(step):
                buffer = self.stored.get(root)
                if buffer not in self.in_place or buffer is None:
                    continue
                late = any(v.source is buffer for views in reads[at + 1 :] for v in views)
                if late or not all(_in_step(step, v) for v in reads[at] if v.source is buffer):
                    self.stored[root] = Buffer(root.shape, root.dtype, f"new {buffer.name}")
                    end = copy(root)
                    self.stored[end] = buffer
                    self.roots.add(end)
                    self.steps.append(Group(root.shape, 0, [end]))

    def _reads(self, step: Step) -> list[View]:
        if isinstance(step, Group):
            return [v for r in step.roots for v in self.leaves(r) if v.source not in step.roots]
        return list(self.leaves(step.root if isinstance(step, Fold) else step.results[0]))

    def _buffer(self, v: Value) -> None:
        if v not in self.stored:
            self.stored[v] = Buffer(v.shape, v.dtype, f"t{len(self.stored)}")


def _made_by(step: Step) -> list[Value]:
    if isinstance(step, Group):
        return step.roots
    return [step.root] if isinstance(step, Fold) else list(step.results)


def _in_step(step: Step, view: View) -> bool:
    """The step reads each element once, where it writes it."""
    return (
        isinstance(step, Group)
        and not step.lanes
        and not view.offset
        and view.shape == view.source.shape == step.domain
        and _equal(view.shape, view.strides, dense_strides(view.shape))
    )


def _wants_stored(v: Value) -> bool:
    """A kernel that reads tensors from HBM; `assemble` computes what it puts together."""
    return isinstance(v, Result) and v.kernel.op != "assemble"


def _is_trailing(v: Reduce) -> bool:
    """The reduced dimensions are the last ones (dimensions of size 1 aside)."""
    shape = v.arg.shape
    kept = [d for d in range(len(shape)) if d not in v.dims and shape[d] != 1]
    reduced = [d for d in v.dims if shape[d] != 1]
    return not kept or not reduced or max(kept) < min(reduced)


def _reduced(v: Reduce) -> int:
    """How many last dimensions of the argument a trailing reduction covers."""
    shape = v.arg.shape
    kept = [d for d in range(len(shape)) if d not in v.dims and shape[d] != 1]
    first = max(kept) + 1 if kept else 0
    return max(1, len(shape) - first)


def _ones_off(shape: Shape) -> list[int]:
    return [n for n in shape if n != 1]


def _steps_of(shape: Shape) -> list[int]:
    """Dense strides of the dimensions that are not 1."""
    return [s for n, s in zip(shape, dense_strides(shape), strict=True) if n != 1]


def _equal(shape: Shape, a: Shape, b: Shape) -> bool:
    return all(n == 1 or x == y for n, x, y in zip(shape, a, b, strict=True))


def _lanes_merge(leaf: View, domain: Shape, lanes: int) -> bool:
    """True if the last `lanes` dimensions of the leaf are one dimension, or it has none of them."""
    if leaf.shape != domain:
        return True  # a number a row
    pairs = [(n, s) for n, s in zip(domain[-lanes:], leaf.strides[-lanes:], strict=True) if n != 1]
    return all(a == b * n for (_, a), (n, b) in itertools.pairwise(pairs))


# --- programs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How a program goes over a domain: `strides` and `starts` (elements) for each access."""

    dims: Shape
    width: int
    strides: list[Shape]
    starts: list[int]


class Emitter:
    """Makes row programs of groups and folds; `hbm` says where buffers lie."""

    def __init__(self, schedule: Schedule, lanes: int, hbm: dict[Buffer, HbmTensor]) -> None:
        self.schedule, self.lanes, self.hbm = schedule, lanes, hbm

    def group(self, group: Group) -> list[rowwise.RowProgram]:
        """Programs that compute the group, one after another."""
        domain, lanes = group.domain, group.lanes
        reads = self._reads([i for r in group.roots for i in inputs_of(r)], group.roots)
        stores = [r for r in group.roots if r in self.schedule.stored]
        strides = [_spread(domain, lanes, v.shape, as_view(v).strides) for v in reads]
        strides += [_spread(domain, lanes, r.shape, dense_strides(r.shape)) for r in stores]
        programs = []
        for layout in _layouts(domain, lanes, strides, self.lanes):
            evaluation = _Evaluation(self, layout, reads)
            for root in group.roots:
                evaluation.make(root)
            for i, r in enumerate(stores, len(reads)):
                place = self.place(self.schedule.stored[r], layout, i, 0)
                evaluation.store(r, place)
            programs.append(evaluation.program)
        return programs

    def fold(self, step: Fold) -> tuple[rowwise.RowProgram, int, int, rowwise.Place]:
        """(program, node to fold, how many there are, where the result goes)."""
        root = step.root
        shape = root.arg.shape
        folded = [d for d in root.dims if shape[d] != 1]
        kept = [d for d in range(len(shape)) if d not in folded]
        reads = self._reads([root.arg])
        strides = [as_view(v).strides for v in reads]
        out = dense_strides(root.shape)
        strides.append(tuple(0 if d in folded else s for d, s in enumerate(out)))
        lane = max(kept, key=lambda d: (_lane_score(shape[d], [s[d] for s in strides]), d))
        kept.remove(lane)
        first = _merge([shape[d] for d in folded], [[s[d] for d in folded] for s in strides[:-1]])
        rest = _merge([shape[d] for d in kept], [[s[d] for d in kept] for s in strides])
        zeros = [0] * len(first[0])
        layout = Layout(
            (*first[0], *rest[0]),
            shape[lane],
            [
                (*a, *b, s[lane])
                for a, b, s in zip([*first[1], zeros], rest[1], strides, strict=True)
            ],
            [0] * len(strides),
        )
        evaluation = _Evaluation(self, layout, reads)
        value = evaluation.make(root.arg)
        place = self.place(self.schedule.stored[root], layout, len(reads), 0)
        program = evaluation.program
        if not isinstance(value, int) or program.nodes[value].form == rowwise.STAT:
            value = program.full(value)
        return evaluation.program, value, math.prod(first[0]), place

    def inline(self, v: Value) -> bool:
        """`v` is computed where it is used."""
        return isinstance(v, Map) and v not in self.schedule.roots

    def buffer_of(self, v: Value) -> Buffer:
        """Where a value is stored."""
        return v if isinstance(v, Buffer) else self.schedule.stored[v]

    def assign(self, v: Value, out: Value, strides: Shape, offset: int) -> list[rowwise.RowProgram]:
        """Programs that write v into elements of where `out` is stored."""
        reads = self._reads([v])
        programs = []
        both = [*(as_view(r).strides for r in reads), strides]
        for layout in _layouts(v.shape, 0, both, self.lanes):
            evaluation = _Evaluation(self, layout, reads)
            evaluation.make(v)
            place = self.place(self.schedule.stored[out], layout, len(reads), offset)
            evaluation.store(v, place)
            programs.append(evaluation.program)
        return programs

    def _reads(self, values: Sequence[Value], inside: Sequence[Value] = ()) -> list[Value]:
        """What computing the values reads from HBM: views, or what other steps have stored.

        Args:
            inside: what the program itself makes.
        """
        found: list[Value] = []
        seen: set[Value] = set()
        stack = list(values)
        while stack:
            v = stack.pop(0)
            if v in seen:
                continue
            seen.add(v)
            if self.inline(v):
                stack.extend(inputs_of(v))
            elif not isinstance(v, Number) and as_view(v).source not in inside:
                found.append(v)
        return found

    def place(self, buffer: Buffer, layout: Layout, access: int, offset: int) -> rowwise.Place:
        fmt = HbmFormat.BF16 if item_bytes(buffer.dtype) == 2 else HbmFormat.FP32
        return rowwise.Place(
            self.hbm[buffer], fmt, layout.strides[access], offset + layout.starts[access]
        )


class _Evaluation:
    """One program being filled: `numbers` holds each value's node, or the constant it is."""

    def __init__(self, emitter: Emitter, layout: Layout, reads: list[Value]) -> None:
        self.emitter, self.layout = emitter, layout
        self.access = {v: i for i, v in enumerate(reads)}
        self.program = rowwise.RowProgram(layout.dims, layout.width)
        self.numbers: dict[Value, rowwise.Arg] = {}

    def make(self, root: Value) -> rowwise.Arg:
        """The node of `root`, and of all that it needs."""
        stack = [root]
        while stack:
            v = stack[-1]
            if v in self.numbers:
                stack.pop()
                continue
            missing = [i for i in self._needs(v) if i not in self.numbers]
            if missing:
                stack.extend(missing)
                continue
            self.numbers[v] = self._node(v)
            stack.pop()
        return self.numbers[root]

    def store(self, root: Value, place: rowwise.Place) -> None:
        program, node = self.program, self.numbers[root]
        form = program.nodes[node].form if isinstance(node, int) else ""
        if not isinstance(node, int) or (
            form == rowwise.STAT and place.strides[-1] != 0 and self.layout.width > 1
        ):
            node = program.full(node)
        program.stores.append((node, place))

    def _needs(self, v: Value) -> tuple[Value, ...]:
        if v in self.access or isinstance(v, Number):
            return ()
        return inputs_of(v)

    def _node(self, v: Value) -> rowwise.Arg:
        program = self.program
        if isinstance(v, Number):
            return float(np.float32(v.value))
        if v in self.access:
            view = as_view(v)
            buffer = self.emitter.buffer_of(view.source)
            return program.load(
                self.emitter.place(buffer, self.layout, self.access[v], view.offset)
            )
        if isinstance(v, View):
            return self.numbers[v.source]
        if isinstance(v, Reduce):
            arg = self.numbers[v.arg]
            form = program.nodes[arg].form if isinstance(arg, int) else ""
            if form != rowwise.FULL:  # once for every row and lane
                arg = program.full(arg)
            assert isinstance(arg, int)
            return program.reduce(v.op, arg)
        assert isinstance(v, Map)
        args = [self.numbers[a] for a in v.args]
        if v.op == "copy" and isinstance(args[0], int):
            return args[0]
        return program.op(v.op, *args)


# --- layouts ------------------------------------------------------------------------------------


def _spread(domain: Shape, lanes: int, shape: Shape, strides: Shape) -> Shape:
    """Strides over all dimensions of the domain; a number a row does not move along its lanes."""
    if shape == domain:
        return strides
    rows = len(domain) - lanes
    shown = iter([s for n, s in zip(shape, strides, strict=True) if n != 1])
    return (*(next(shown) if n != 1 else 0 for n in domain[:rows]), *[0] * lanes)


def _merge(sizes: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[Shape, list[Shape]]:
    """Dimensions with neighbours made one where all accesses allow it; at least one dimension."""
    dims: list[int] = []
    out: list[list[int]] = [[] for _ in strides]
    for d, n in enumerate(sizes):
        if n == 1:
            continue
        here = [s[d] for s in strides]
        if dims and all(o[-1] == s * n for o, s in zip(out, here, strict=True)):
            dims[-1] *= n
            for o, s in zip(out, here, strict=True):
                o[-1] = s
            continue
        dims.append(n)
        for o, s in zip(out, here, strict=True):
            o.append(s)
    if not dims:
        return (1,), [(0,) for _ in strides]
    return tuple(dims), [tuple(o) for o in out]


def _lane_score(size: int, strides: Sequence[int]) -> int:
    """How well a dimension suits the lanes: accesses that are consecutive along it."""
    if size == 1:
        return -1
    return sum(1 + (i == len(strides) - 1) for i, s in enumerate(strides) if s == 1)


def _layouts(domain: Shape, lanes: int, strides: Sequence[Shape], chip_lanes: int) -> list[Layout]:
    """How to go over a domain whose last `lanes` dimensions are the row (0: any)."""
    if lanes:
        rows = len(domain) - lanes
        dims, across = _merge(domain[:rows], [s[:rows] for s in strides])
        widths, along = _merge(domain[rows:], [s[rows:] for s in strides])
        assert len(widths) == 1, "lanes that are not one dimension"
        joined = [(*a, *b) for a, b in zip(across, along, strict=True)]
        return [Layout(dims, widths[0], joined, [0] * len(strides))]
    dims, merged = _merge(domain, strides)
    if len(dims) == 1:
        return _flat(dims[0], [s[0] for s in merged], chip_lanes)
    best = max(range(len(dims)), key=lambda d: (_lane_score(dims[d], [s[d] for s in merged]), d))
    rest = [d for d in range(len(dims)) if d != best]
    order = [(*(s[d] for d in rest), s[best]) for s in merged]
    return [Layout(tuple(dims[d] for d in rest), dims[best], order, [0] * len(strides))]


def _flat(size: int, steps: Sequence[int], chip_lanes: int) -> list[Layout]:
    """One dimension as rows of whole tiles, and what is left over as a row."""
    count = len(steps)
    whole = size // chip_lanes * chip_lanes
    layouts = []
    if whole:
        rows: list[Shape] = [(chip_lanes * s, s) for s in steps]
        layouts.append(Layout((whole // chip_lanes,), chip_lanes, rows, [0] * count))
    if size > whole:
        row: list[Shape] = [(0, s) for s in steps]
        layouts.append(Layout((1,), size - whole, row, [whole * s for s in steps]))
    return layouts
