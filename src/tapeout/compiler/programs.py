"""From steps to row programs: how a group or a fold goes over its domain.

A step's domain becomes rows and lanes: dimensions that all accesses step through alike are one, and
where nothing is reduced the lanes are the dimension along which most accesses are consecutive.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tapeout.isa.dma import HbmFormat
from tapeout.kernels import rowprogram
from tapeout.kernels.epilogue import Epilogue, possible
from tapeout.lang import HbmTensor

from .schedule import Fold, Group, Schedule, read_by
from .values import (
    Buffer,
    Map,
    Number,
    Reduce,
    Shape,
    Value,
    View,
    as_view,
    dense_strides,
    hbm_format,
    inputs_of,
)

PRODUCT = HbmTensor(-1, 0, 0)  # stands for what a kernel has just made; no memory has this base


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

    def group(self, group: Group) -> list[rowprogram.RowProgram]:
        """Programs that compute the group, one after another."""
        reads, stores, strides = self._accesses(group, group.lanes)
        layouts = _layouts(group.domain, group.lanes, strides, self.lanes)
        return [self._evaluated(group, layout, reads, stores).program for layout in layouts]

    def epilogue(self, group: Group, product: Value, shape: tuple[int, int]) -> Epilogue | None:
        """The group as an epilogue of the kernel that gives `product`, as a matrix of `shape`; None
        where their elements do not go together."""
        lanes = _trailing(group.domain, shape[1])
        if lanes is None:
            return None
        reads, stores, strides = self._accesses(group, 0)
        rows = len(group.domain) - lanes
        dims, across = rowprogram.merge_dims(group.domain[:rows], [s[:rows] for s in strides])
        widths, along = rowprogram.merge_dims(group.domain[rows:], [s[rows:] for s in strides])
        if dims != shape[:1] or widths != shape[1:]:
            return None
        joined = [(*a, *b) for a, b in zip(across, along, strict=True)]
        layout = Layout(dims, shape[1], joined, [0] * len(strides))
        evaluation = self._evaluated(group, layout, reads, stores, product)
        shown = [v for v in reads if as_view(v).source is product]
        nodes = {evaluation.numbers[v] for v in shown}
        if len(nodes) != 1 or any(as_view(v).offset for v in shown):
            return None
        (node,) = nodes
        assert isinstance(node, int)
        found = Epilogue(evaluation.program, node)
        return found if possible(found) else None

    def _accesses(
        self, group: Group, lanes: int
    ) -> tuple[list[Value], list[Value], list[Shape]]:  # fmt: skip
        """What a group reads and what it stores, and the strides of both over its domain."""
        domain = group.domain
        reads = self._reads([i for r in group.roots for i in inputs_of(r)], group.roots)
        stores = [r for r in group.roots if r in self.schedule.stored]
        strides = [_spread(domain, lanes, v.shape, as_view(v).strides) for v in reads]
        strides += [_spread(domain, lanes, r.shape, dense_strides(r.shape)) for r in stores]
        return reads, stores, strides

    def _evaluated(
        self, group: Group, layout: Layout, reads: list[Value], stores: list[Value],
        product: Value | None = None,
    ) -> "_Evaluation":  # fmt: skip
        """The group's program; `product` lies on chip when it begins."""
        evaluation = _Evaluation(self, layout, reads, product)
        for root in group.roots:
            evaluation.make(root)
        for i, r in enumerate(stores, len(reads)):
            evaluation.store(r, self.place(self.schedule.stored[r], layout, i, 0))
        return evaluation

    def fold(self, step: Fold) -> tuple[rowprogram.RowProgram, int, int, rowprogram.Place]:
        """(program, node to fold, how many there are, where the result goes)."""
        root = step.root
        shape = root.arg.shape
        folded = [d for d in root.dims if shape[d] != 1]
        kept = [d for d in range(len(shape)) if d not in folded]
        reads = self._reads([root.arg])
        strides = [as_view(v).strides for v in reads]
        out = dense_strides(root.shape)
        strides.append(tuple(0 if d in folded else s for d, s in enumerate(out)))
        lane = max(kept, key=lambda d: (_lane_score(shape, strides, d), d))
        kept.remove(lane)
        first = rowprogram.merge_dims(
            [shape[d] for d in folded], [[s[d] for d in folded] for s in strides[:-1]]
        )
        rest = rowprogram.merge_dims(
            [shape[d] for d in kept], [[s[d] for d in kept] for s in strides]
        )
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
        if not isinstance(value, int) or program.nodes[value].form == rowprogram.STAT:
            value = program.full(value)
        return evaluation.program, value, math.prod(first[0]), place

    def buffer_of(self, v: Value) -> Buffer:
        """Where a value is stored."""
        return v if isinstance(v, Buffer) else self.schedule.stored[v]

    def assign(
        self, v: Value, out: Value, strides: Shape, offset: int
    ) -> list[rowprogram.RowProgram]:
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
        """What computing the values reads from HBM; `inside`: what the program itself makes."""
        found = read_by(values, self.schedule.roots)
        return [v for v in found if as_view(v).source not in inside]

    def place(self, buffer: Buffer, layout: Layout, access: int, offset: int) -> rowprogram.Place:
        return rowprogram.Place(
            self.hbm[buffer],
            hbm_format(buffer.dtype),
            layout.strides[access],
            offset + layout.starts[access],
        )


class _Evaluation:
    """One program being filled: `numbers` holds each value's node, or the constant it is."""

    def __init__(
        self, emitter: Emitter, layout: Layout, reads: list[Value], product: Value | None = None
    ) -> None:
        """`product`: what lies on chip when the program begins."""
        self.emitter, self.layout, self.product = emitter, layout, product
        self.access = {v: i for i, v in enumerate(reads)}
        self.program = rowprogram.RowProgram(layout.dims, layout.width)
        self.numbers: dict[Value, rowprogram.Arg] = {}

    def make(self, root: Value) -> rowprogram.Arg:
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

    def store(self, root: Value, place: rowprogram.Place) -> None:
        program, node = self.program, self.numbers[root]
        form = program.nodes[node].form if isinstance(node, int) else ""
        if not isinstance(node, int) or (
            form == rowprogram.STAT and place.strides[-1] != 0 and self.layout.width > 1
        ):
            node = program.full(node)
        elif form == rowprogram.FULL and any(node == n for n, _ in program.stores):
            node = program.op("copy", node)  # in two formats
        program.stores.append((node, place))

    def _needs(self, v: Value) -> tuple[Value, ...]:
        if v in self.access or isinstance(v, Number):
            return ()
        return inputs_of(v)

    def _node(self, v: Value) -> rowprogram.Arg:
        program = self.program
        if isinstance(v, Number):
            return float(np.float32(v.value))
        if v in self.access:
            view = as_view(v)
            if view.source is self.product:
                place = rowprogram.Place(
                    PRODUCT, HbmFormat.FP32, self.layout.strides[self.access[v]]
                )
                return program.load(place)
            buffer = self.emitter.buffer_of(view.source)
            return program.load(
                self.emitter.place(buffer, self.layout, self.access[v], view.offset)
            )
        if isinstance(v, View):
            return self.numbers[v.source]
        if isinstance(v, Reduce):
            arg = self.numbers[v.arg]
            form = program.nodes[arg].form if isinstance(arg, int) else ""
            if form != rowprogram.FULL:  # once for every row and lane
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


def _trailing(shape: Shape, size: int) -> int | None:
    """How many last dimensions have `size` elements together."""
    for lanes in range(1, len(shape) + 1):
        if math.prod(shape[-lanes:]) == size:
            return lanes
    return None


def _lane_score(dims: Shape, strides: Sequence[Shape], at: int) -> int:
    """How well a dimension suits the lanes: elements of accesses that are consecutive along it."""
    if dims[at] == 1:
        return -1
    last = len(strides) - 1
    return sum(
        (1 + (i == last)) * math.prod(n for n, s in zip(dims, steps, strict=True) if s)
        for i, steps in enumerate(strides) if steps[at] == 1
    )  # fmt: skip


def _layouts(domain: Shape, lanes: int, strides: Sequence[Shape], chip_lanes: int) -> list[Layout]:
    """How to go over a domain whose last `lanes` dimensions are the row (0: any)."""
    if lanes:
        rows = len(domain) - lanes
        dims, across = rowprogram.merge_dims(domain[:rows], [s[:rows] for s in strides])
        widths, along = rowprogram.merge_dims(domain[rows:], [s[rows:] for s in strides])
        assert len(widths) == 1, "lanes that are not one dimension"
        joined = [(*a, *b) for a, b in zip(across, along, strict=True)]
        return [Layout(dims, widths[0], joined, [0] * len(strides))]
    dims, merged = rowprogram.merge_dims(domain, strides)
    if len(dims) == 1:
        return _flat(dims[0], [s[0] for s in merged], chip_lanes)
    best = max(range(len(dims)), key=lambda d: (_lane_score(dims, merged, d), d))
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
