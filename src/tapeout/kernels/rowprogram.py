"""Elementwise programs over rows and lanes, before they are traced (`rowwise`).

A `RowProgram` is a list of nodes; `steps_of` makes vector instructions of them. `merge_dims` and
`pieces` say how rows of several dimensions lie in HBM.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from tapeout.isa.dma import HbmFormat
from tapeout.isa.vpu import Combine, Combine2, Function, Reduce
from tapeout.lang import HbmTensor

COMBINES = {
    "add": Combine.ADD, "sub": Combine.SUB, "mul": Combine.MUL, "fma": Combine.FMA,
    "fms": Combine.FMS, "max": Combine.MAX, "min": Combine.MIN, "select": Combine.SELECT,
    "ge": Combine.GE, "gt": Combine.GT, "eq": Combine.EQ,
}  # fmt: skip
SECOND = {
    "add": Combine2.ADD, "sub": Combine2.SUB, "mul": Combine2.MUL, "max": Combine2.MAX,
    "min": Combine2.MIN, "rsub": Combine2.RSUB,
}  # fmt: skip
FUNCTIONS = {f.name.lower(): f for f in Function if f != Function.NONE}
COMMUTE = ("add", "mul", "max", "min", "eq", "fma", "fms")  # in their first two operands
REDUCES = {"sum": Reduce.SUM, "max": Reduce.MAX}
SECOND_OF = {"sum": "add", "max": "max"}  # the operation that joins two parts
OPS = (*COMBINES, *FUNCTIONS, "copy", "bf16")

FULL, STAT, VECTOR = "full", "stat", "vector"


@dataclass(frozen=True)
class Place:
    """A strided tensor in HBM over the domain.

    Attributes:
        strides: elements, of each dimension of rows and of the lanes.
        offset: elements from the start of `hbm`.
    """

    hbm: HbmTensor
    format: HbmFormat
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return self.format.format.bits // 8

    @property
    def still(self) -> bool:
        """It is one element, everywhere."""
        return not any(self.strides)

    def at(self, element: int) -> HbmTensor:
        return self.hbm.beyond(self.size * (self.offset + element))


Arg = int | float  # a node's number, or a constant


@dataclass
class Node:
    """One value. `op`: "load", one of `OPS`, or "reduce" (how: `REDUCES`)."""

    op: str
    args: tuple[Arg, ...] = ()
    place: Place | None = None
    how: str = ""
    form: str = FULL


@dataclass
class RowProgram:
    """What to compute over rows `dims` x lanes `width`.

    Attributes:
        stores: (node, place) pairs; a stat is stored where the place's stride along lanes is 0.
    """

    dims: tuple[int, ...]
    width: int
    nodes: list[Node] = field(default_factory=list)
    stores: list[tuple[int, Place]] = field(default_factory=list)

    def add(self, node: Node) -> int:
        node.form = self._form(node)
        self.nodes.append(node)
        return len(self.nodes) - 1

    def load(self, place: Place) -> int:
        for number, node in enumerate(self.nodes):
            if node.place == place:
                return number
        return self.add(Node("load", place=place))

    def op(self, name: str, *args: Arg) -> int:
        assert name in OPS, name
        return self.add(Node(name, args))

    def reduce(self, how: str, arg: int) -> int:
        return self.add(Node("reduce", (arg,), how=how))

    def full(self, arg: Arg) -> int:
        """`arg` in every lane of every row."""
        return self.add(Node("spread", (arg,)))

    @property
    def rows(self) -> int:
        return math.prod(self.dims)

    def _form(self, node: Node) -> str:
        if node.op == "reduce":
            return STAT
        if node.op == "spread":
            return FULL
        if node.place is not None:
            *rows, lane = node.place.strides
            if lane == 0 and self.width > 1:
                return STAT
            still = all(s == 0 for s, n in zip(rows, self.dims, strict=True) if n > 1)
            return VECTOR if still and self.rows > 1 else FULL
        forms = {self.nodes[a].form for a in node.args if isinstance(a, int)}
        return forms.pop() if len(forms) == 1 else FULL


@dataclass
class Step:
    """One `vpu.map`: `combine` of operands, `function`, `second` with d, and a reduction."""

    node: int  # whose value is stored; -1: none
    form: str
    combine: str = ""
    operands: tuple[Arg, ...] = ()
    function: str = ""
    second: str = ""
    d: Arg | None = None
    reduce: int = -1  # node of the reduction

    @property
    def reads(self) -> tuple[Arg, ...]:
        return (*self.operands, *(() if self.d is None else (self.d,)))

    @property
    def nodes(self) -> tuple[int, ...]:
        """The nodes among what it reads."""
        return tuple(a for a in self.reads if isinstance(a, int))


def steps_of(program: RowProgram, keep: set[int]) -> list[Step]:
    """Nodes as vector instructions, up to three of them in one; `keep` must be stored."""
    nodes = program.nodes
    uses = [0] * len(nodes)
    alive = [n in keep for n in range(len(nodes))]
    for number in reversed(range(len(nodes))):
        for a in nodes[number].args if alive[number] else ():
            if isinstance(a, int):
                uses[a] += 1
                alive[a] = True
    steps: dict[int, Step] = {}
    order: list[int] = []
    absorbed: set[int] = set()

    def alone(arg: Arg, form: str) -> Step | None:
        """The step of a value that only this use needs."""
        if not isinstance(arg, int) or arg in keep or uses[arg] != 1 or nodes[arg].form != form:
            return None
        step = steps.get(arg)
        if step is None or step.second or step.reduce >= 0 or nodes[arg].op == "bf16":
            return None
        return step

    for number, node in enumerate(nodes):
        if node.op == "load" or not alive[number]:
            continue
        if node.op == "reduce":
            (arg,) = node.args
            assert isinstance(arg, int)
            source = steps.get(arg)
            if (
                source is not None and source.form == FULL and source.reduce < 0
                and nodes[arg].op != "bf16"
            ):  # fmt: skip
                source.reduce = number
                if uses[arg] == 1 and arg not in keep:
                    source.node = -1
                continue
            steps[number] = Step(-1, FULL, "", (arg,), reduce=number)
            order.append(number)
            continue
        step = Step(number, node.form)
        if node.op in FUNCTIONS:
            inner = alone(node.args[0], node.form)
            if inner is not None and not inner.function:
                absorbed.add(inner.node)
                step = replace(inner, node=number, function=node.op)
            else:
                step.operands, step.function = node.args, node.op
        elif node.op == "spread" and isinstance(node.args[0], int):
            step.combine, step.operands = "mul", (1.0, *node.args)
        elif node.op in ("copy", "bf16", "spread"):
            step.operands = node.args
        else:
            step.combine, step.operands = node.op, node.args
            if node.op in SECOND:
                a, b = node.args
                swapped = "rsub" if node.op == "sub" else node.op
                for u, d, second in ((a, b, node.op), (b, a, swapped)):
                    inner = alone(u, node.form)
                    if inner is not None and u != d:
                        absorbed.add(inner.node)
                        step = replace(inner, node=number, second=second, d=d)
                        break
        steps[number] = step
        order.append(number)
    return [steps[n] for n in order if n not in absorbed]


Dims = list[tuple[int, int]]


def merge_dims(
    sizes: Sequence[int], strides: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Dimensions without those of size 1, neighbours made one where all of `strides` step alike;
    at least one dimension."""
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


def merged(sizes: Sequence[int], strides: Sequence[int]) -> Dims:
    """(size, stride) of dimensions merged; one of size 1 counts as consecutive."""
    dims, (steps,) = merge_dims(sizes, [strides])
    return [(1, 1)] if dims == (1,) else list(zip(dims, steps, strict=True))


def pieces(a: int, b: int, dims: Dims) -> Iterator[tuple[int, int, int, int, int]]:
    """(offset, rows, stride, runs, their stride) of the rows [a, b) of dims, in order.

    Strides that no transfer has (negative ones) give rows one by one.
    """
    if a >= b:
        return
    if len(dims) == 1:
        step = dims[0][1]
        if step >= 0:
            yield a * step, b - a, step, 1, 0
        else:
            yield from ((i * step, 1, 0, 1, 0) for i in range(a, b))
        return
    inner = math.prod(n for n, _ in dims[1:])
    stride = dims[0][1]
    i = a // inner
    if a % inner or b < (i + 1) * inner:
        end = min(b, (i + 1) * inner)
        for at, *rest in pieces(a - i * inner, end - i * inner, dims[1:]):
            yield (at + i * stride, *rest)  # type: ignore[misc]
        yield from pieces(end, b, dims)
        return
    whole = b // inner - i
    if len(dims) == 2 and dims[1][1] >= 0 and stride >= 0:
        yield i * stride, inner, dims[1][1], whole, stride
    else:
        for j in range(i, i + whole):
            for at, *rest in pieces(0, inner, dims[1:]):
                yield (at + j * stride, *rest)  # type: ignore[misc]
    yield from pieces((i + whole) * inner, b, dims)
