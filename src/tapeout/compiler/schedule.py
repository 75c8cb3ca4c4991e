"""From values to steps: what is stored, and what is computed together.

A step is a kernel over buffers. Maps are computed where they are used; one that several others use,
that is shown through a view, or that is a result, is stored. Neighbours over one domain become one
step: a value that the same step has made, at the same place, is not loaded again. Reductions along
the last dimensions and what is computed from them, a number a row, take part (softmax and norms are
one step each); reductions along others are steps of their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tapeout.kernels import convolution, gemm, rowprogram

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
    inputs_of,
    regroups,
    topological,
    users_of,
)

PRODUCTS = ("mm", "convolution")
MOST_IN_GROUP = 40  # values that it reads and makes: vmem holds a row of each
SMALL = 1 << 14  # elements
SEARCH = 24  # groups that a value may join, counted from the last
NEAR = 3  # the same, of a value that is stored only if it joins one far from where it is needed


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
    """A kernel of its own.

    Attributes:
        finish: what is computed of its result, which then is not stored.
        plan: the kernel's sizes, where they are chosen with `finish`.
        tiled: right factors of a product lie column tile by column tile.
    """

    kernel: Kernel
    results: list[Result]
    finish: Group | None = None
    plan: gemm.Plan | convolution.Plan | None = None
    tiled: bool = False


Step = Group | Fold | Launch


@dataclass
class Schedule:
    """Steps in order; `stored` has a buffer for every value that is in HBM at some time."""

    steps: list[Step]
    stored: dict[Value, Buffer]
    roots: set[Value]
    ends: list[Value]  # what is left behind


def read_by(values: Sequence[Value], roots: set[Value]) -> list[Value]:
    """What computing the values reads: views, buffers, and roots, which are stored or at hand."""
    found: list[Value] = []
    seen: set[Value] = set()
    stack = list(values)
    while stack:
        v = stack.pop(0)
        if v in seen:
            continue
        seen.add(v)
        if isinstance(v, Map) and v not in roots:
            stack.extend(v.args)
        elif not isinstance(v, Number):
            found.append(v)
    return found


def plan(
    outputs: Sequence[tuple[Value, Buffer]],
    in_place: frozenset[Buffer] = frozenset(),
    given: Callable[[Value], bool] = lambda _: False,
    most: int = MOST_IN_GROUP,
) -> Schedule:
    """Steps that leave each value in its buffer.

    Args:
        in_place: buffers among them that hold inputs, which steps read before they are written.
        given: says of values that would be stored whether they come from elsewhere.
        most: values of which vmem holds a row each.
    """
    return _Planner(outputs, in_place, given, min(most, MOST_IN_GROUP)).run()


class _Planner:
    def __init__(
        self, outputs: Sequence[tuple[Value, Buffer]], in_place: frozenset[Buffer],
        given: Callable[[Value], bool], most: int,
    ) -> None:  # fmt: skip
        self.in_place, self.given, self.most = in_place, given, most
        self.stored: dict[Value, Buffer] = {}
        self.roots: set[Value] = set()
        self.ends = ends = list[Value]()
        for value, buffer in outputs:
            made = value.source if isinstance(value, View) and regroups(value) else value
            if isinstance(made, (Map, Reduce, Result)) and made not in self.stored:
                self.stored[made] = buffer
                ends.append(made)
            else:
                end = copy(value)
                self.stored[end] = buffer
                ends.append(end)
        self.order = _small_first(_when_needed(topological(ends), set(ends)))
        self.steps: list[Step] = []
        self.made: dict[Value, int] = {}  # root -> its step
        self.users = users_of(self.order)
        self.read_stored = {  # what is stored wherever it is made
            as_view(i).source for v in self.order for i in inputs_of(v)
            if isinstance(i, View) or _wants_stored(v, i)
        } | set(ends)  # fmt: skip

    def run(self) -> Schedule:
        self._choose_roots()
        launches: dict[Kernel, Launch] = {}
        for v in self.order:
            if v not in self.roots or (v not in self.stored and self.given(v)):
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
        return Schedule(self.steps, self.stored, self.roots, self.ends)

    def _choose_roots(self) -> None:
        for i, users in self.users.items():
            for v in users if isinstance(i, Map) else ():
                if isinstance(v, View) or _wants_stored(v, i):
                    self.roots.add(i)
                elif isinstance(v, Result) and self._reads_product(i):
                    self.roots.add(i)  # it becomes the product's epilogue
        inside = self._inside_assembled()
        for v in self.order:
            if (
                isinstance(v, (Reduce, Result))
                or v in self.stored
                or (isinstance(v, Map) and len(self.users.get(v, ())) > 1 and v not in inside)
            ):
                self.roots.add(v)
        self._cut_large()

    def _inside_assembled(self) -> set[Value]:
        """Maps that nothing but one assembled tensor needs: each of its parts computes them."""
        users = self.users
        owner: dict[Value, Value] = {}
        for v in reversed(self.order):
            if isinstance(v, Result) and v.kernel.op == "assemble":
                owner[v] = v
            elif isinstance(v, Map) and v not in self.roots and v not in self.stored:
                owned = [owner[u] for u in users.get(v, []) if u in owner]
                if owned and len(owned) == len(users[v]) and len(set(owned)) == 1:
                    owner[v] = owned[0]
        inside: dict[Value, set[Value]] = {}
        for v, result in owner.items():
            if len(users.get(v, [])) > 1:
                inside.setdefault(result, set()).add(v)
        return set().union(
            *(
                found for result, found in inside.items()
                if len(found) + len(leaves_of(result, self.roots)) <= self.most // 2
            )
        )  # fmt: skip

    def _reads_product(self, v: Value) -> bool:
        """Something of a product, and of nothing else, is computed element by element."""
        return any(
            isinstance(i.source, Result) and i.source.kernel.op in PRODUCTS
            and len(self.users[i.source]) == 1
            for i in leaves_of(v, set())
        )  # fmt: skip

    def _cut_large(self) -> None:
        """Stores parts of expressions that read more tensors than vmem holds rows of."""
        reads: dict[Value, frozenset[Value]] = {}
        for v in self.order:
            if not isinstance(v, Map):
                continue
            args = dict.fromkeys(a for a in v.args if not isinstance(a, Number))
            found = {a: reads[a] if self._inner(a) else frozenset([a]) for a in args}
            while len(frozenset().union(*found.values())) > self.most:
                largest = max(found, key=lambda a: len(found[a]))
                if len(found[largest]) == 1:
                    break
                self.roots.add(largest)
                found[largest] = frozenset([largest])
            reads[v] = frozenset().union(*found.values())

    def _inner(self, v: Value) -> bool:
        return isinstance(v, Map) and v not in self.roots

    # --- groups -----------------------------------------------------------------------------------

    def leaves(self, root: Value) -> list[View]:
        return leaves_of(root, self.roots)

    def _join(self, root: Value) -> None:
        """Puts a map, or a reduction along the last dimensions, into a group."""
        leaves = self.leaves(root)
        lanes = _reduced(root) if isinstance(root, Reduce) else 0
        domain = root.arg.shape if isinstance(root, Reduce) else root.shape
        search = SEARCH if root in self.read_stored or isinstance(root, Reduce) else NEAR
        for at in range(len(self.steps) - 1, max(-1, len(self.steps) - 1 - search), -1):
            step = self.steps[at]
            reads = [v for v in leaves if self.made.get(v.source) == at]
            if isinstance(step, Group) and (reads or self._shares(step, leaves)):
                merged = self._merged(step, root, domain, lanes, leaves)
                if (
                    merged is not None
                    and self._size(step, leaves) < self.most
                    and all(self._aligned(merged, root, v) for v in reads)
                ):
                    step.lanes = merged.lanes
                    step.roots.append(root)
                    self.made[root] = at
                    return
            if reads:
                break
        self.steps.append(Group(domain, lanes, [root]))
        self.made[root] = len(self.steps) - 1

    def _size(self, group: Group, leaves: list[View]) -> int:
        """Values that the group reads and makes, with further ones."""
        read = {v.source for r in group.roots for v in self.leaves(r)}
        return len(read | {v.source for v in leaves} | set(group.roots))

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
        """Buffers for what other steps read, and for what kernels give."""
        for step in self.steps:
            given = step.results if isinstance(step, Launch) else []
            for v in (*given, *(view.source for view in reads_of(step, self.roots))):
                if not isinstance(v, Buffer) and v not in self.stored:
                    self.stored[v] = Buffer(v.shape, v.dtype, f"t{len(self.stored)}")

    # --- buffers that are read and written --------------------------------------------------------

    def _write_last(self) -> None:
        """Steps that only write buffers in place, for nobody else, come last; where one is read
        behind its write even so, or elsewhere than it is written, it is copied at the end."""
        reads = [reads_of(step, self.roots) for step in self.steps]
        wanted = {v.source for views in reads for v in views}
        last = [
            all(self.stored.get(r) in self.in_place and r not in wanted for r in made_by(step))
            for step in self.steps
        ]
        order = sorted(range(len(self.steps)), key=lambda i: last[i])
        self.steps, reads = [self.steps[i] for i in order], [reads[i] for i in order]
        for at, step in enumerate(list(self.steps)):
            for root in made_by(step):
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


def _small_first(order: list[Value]) -> list[Value]:
    """What is little and computed of inputs comes first, for steps that need it."""
    small: set[Value] = set()
    for v in order:
        if v.numel <= SMALL and not isinstance(v, Result) and all(i in small for i in _sources(v)):
            small.add(v)
    return sorted(order, key=lambda v: v not in small)


def _when_needed(order: list[Value], ends: set[Value]) -> list[Value]:
    """Expressions come just before what is reduced, stored or given to a kernel of them, if they
    read no more than they make: else a step far from there would store them."""
    new: list[Value] = []
    done: set[Value] = set()
    read: dict[Value, frozenset[Value]] = {}  # of what waits

    for v in order:
        if isinstance(v, Map) and v not in ends:
            args = [as_view(i).source for i in v.args if not isinstance(i, Number)]
            found = [read[a] if a in read and a not in done else frozenset([a]) for a in args]
            read[v] = frozenset().union(*found)
            size = sum(a.bytes for a in read[v])
            if 0 < 10 * size <= 11 * v.bytes:
                continue
        elif isinstance(v, View):
            continue
        needed = [x for x in topological([v], lambda x: x not in done) if x not in done]
        done.update(needed)
        new += needed
    return new


def _sources(v: Value) -> list[Value]:
    """What a value is computed of, but inputs."""
    return [
        i
        for i in inputs_of(v)
        if not isinstance(i, (Buffer, Number)) and not isinstance(as_view(i).source, Buffer)
    ]


def made_by(step: Step) -> list[Value]:
    if isinstance(step, Group):
        return step.roots
    if isinstance(step, Launch):
        return list(step.results) if step.finish is None else step.finish.roots
    return [step.root]


def reads_of(step: Step, roots: set[Value]) -> list[View]:
    """Views of stored values that a step reads."""
    if isinstance(step, Group):
        found = [v for r in step.roots for v in leaves_of(r, roots)]
        return [v for v in found if v.source not in step.roots]
    if isinstance(step, Fold):
        return leaves_of(step.root, roots)
    beside = [] if step.finish is None else reads_of(step.finish, roots)
    own = [v for v in beside if v.source not in step.results]
    return [*leaves_of(step.results[0], roots), *own]


def leaves_of(root: Value, roots: set[Value]) -> list[View]:
    """Views of stored values that computing `root` reads."""
    return [as_view(v) for v in read_by(inputs_of(root), roots)]


def _in_step(step: Step, view: View) -> bool:
    """The step reads each element once, where it writes it."""
    return (
        isinstance(step, Group) and not step.lanes and view.shape == step.domain and regroups(view)
    )


def _wants_stored(v: Value, i: Value) -> bool:
    """A kernel that reads i from HBM. `assemble` computes what it puts together, `scatter` the
    table that it begins with."""
    if not isinstance(v, Result) or v.kernel.op == "assemble":
        return False
    return v.kernel.op != "scatter" or i in v.kernel.inputs[1:]


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
    return len(rowprogram.merge_dims(domain[-lanes:], [leaf.strides[-lanes:]])[0]) == 1
