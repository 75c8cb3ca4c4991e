"""What is cheaper to compute again than to store and load.

A value that steps beyond its own read is stored, however little it takes to make it: the half of an
activation, the exponential that a softmax and its gradient both need. Where what it is made of lies
in HBM anyhow, those steps make it themselves.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

from .schedule import PRODUCTS, Fold, Group, Launch, Schedule, made_by, reads_of
from .sharing import of_kernel, with_arguments, with_inputs
from .values import (
    Buffer,
    Kernel,
    Map,
    Number,
    Reduce,
    Result,
    Value,
    View,
    as_view,
    inputs_of,
    regroups,
    topological,
)

LEAST_BYTES = 1 << 16  # smaller tensors cost a step more than their bytes
MOST_OPERATIONS = 24  # to compute a value again: a load and a store cost about as much


def recomputed(schedule: Schedule) -> list[Value] | None:
    """The schedule's ends with other expressions in their steps; None if nothing changes."""
    choice = _Choice(schedule)
    return _rewritten(schedule, choice) if choice.again else None


class _Choice:
    """Which values are computed again: `again`, by all steps but their own (`step_of`)."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.step_of: dict[Value, int] = {}
        self.again: set[Value] = set()
        self.stored = set(schedule.stored)
        self.readers: dict[Value, set[int]] = defaultdict(set)
        self.shown: dict[Value, list[View]] = defaultdict(list)
        for number, step in enumerate(schedule.steps):
            self.step_of |= dict.fromkeys(made_by(step), number)
            for view in reads_of(step, schedule.roots):
                self.readers[view.source].add(number)
                self.shown[view.source].append(view)
        for step in schedule.steps:
            if isinstance(step, Group):
                self._decide(step)

    def made_again(self, v: Value, step: int) -> bool:
        """A step that needs v makes it."""
        if not isinstance(v, Map) or self.step_of.get(v) == step:
            return False
        if v not in self.schedule.roots or v in self.again:
            return True
        return v not in self.stored and v.bytes >= LEAST_BYTES

    def _decide(self, group: Group) -> None:
        """Of the group's values, which are made again: perhaps of one that then is stored."""
        candidates = [root for root in group.roots if self._may_be_again(root)]
        if not candidates:
            return
        bases = [r for r in group.roots if isinstance(r, Map) and r.bytes >= LEAST_BYTES]
        saved, again, base = max(
            (self._with(base, candidates) for base in (None, *bases)), key=lambda found: found[0]
        )
        if saved <= 0:
            return
        if base is not None:
            self.stored.add(base)
        for root in again:
            self.again.add(root)
            for leaf in self._leaves(root)[0]:
                self.readers[leaf] |= self.readers[root]

    def _may_be_again(self, root: Value) -> bool:
        schedule = self.schedule
        return (
            isinstance(root, Map) and root not in schedule.ends and root in schedule.stored
            and bool(self.readers[root]) and root.bytes >= LEAST_BYTES
            and all(regroups(view) for view in self.shown[root])
            and all(_computes(schedule.steps[n]) for n in self.readers[root])
        )  # fmt: skip

    def _with(
        self, base: Value | None, candidates: Sequence[Value]
    ) -> tuple[int, list[Value], Value | None]:  # fmt: skip
        """(bytes that are not moved, values to be made again) where `base` is stored."""
        saved, again = 0, list[Value]()
        read = {leaf: set(steps) for leaf, steps in self.readers.items()}
        new = base is not None and base not in self.stored
        if base is not None and new:
            self.stored.add(base)
            saved -= base.bytes
        for root in candidates:
            if root is base:
                continue
            leaves, operations = self._leaves(root)
            fits = all(self._lies(leaf, root) for leaf in leaves)
            if operations > MOST_OPERATIONS or not fits:
                continue
            outside = self.readers[root]
            more = sum(v.bytes for n in outside for v in leaves if n not in read.get(v, ()))
            gain = root.bytes * (1 + len(outside)) - more
            if gain > 0 or base in leaves:
                saved += gain
                again.append(root)
                self.again.add(root)
                for leaf in leaves:
                    read.setdefault(leaf, set()).update(outside)
        self.again -= set(again)
        if base is not None and new:
            self.stored.discard(base)
        return saved, again, base

    def _leaves(self, root: Value) -> tuple[set[Value], int]:
        """What making a value again reads, and in how many operations it makes it."""
        nodes = inner(inputs_of(root), lambda v: self.made_again(v, -1))
        made = [v for v in nodes if isinstance(v, Map) and self.made_again(v, -1)]
        leaves = {
            as_view(v).source for v in nodes
            if not isinstance(v, Number) and not self.made_again(as_view(v).source, -1)
        }  # fmt: skip
        return leaves, 1 + sum(v.bytes >= LEAST_BYTES for v in made)

    def _lies(self, leaf: Value, root: Value) -> bool:
        """The leaf is in HBM whether or not more is computed of it, or it is little."""
        if isinstance(leaf, Buffer) or 64 * leaf.numel <= root.numel:
            return True
        if isinstance(leaf, Result) and leaf.kernel.op in PRODUCTS:
            steps = [self.schedule.steps[n] for n in self.readers[leaf]]
            return len(steps) > 1 or any(not isinstance(s, Group) or s.lanes for s in steps)
        return leaf in self.stored and leaf not in self.again


def _computes(step: Group | Fold | Launch) -> bool:
    """The step computes expressions, and does not only read tensors."""
    return not isinstance(step, Launch) or step.kernel.op == "assemble"


def inner(ends: Sequence[Value], into: Callable[[Value], bool]) -> list[Value]:
    """The ends and what they need, up to values that `into` does not hold of; each behind what it
    needs. Views are looked through."""
    return topological(ends, lambda v: into(v) or (isinstance(v, View) and into(v.source)))


def _rewritten(schedule: Schedule, choice: _Choice) -> list[Value]:
    """The ends, with an expression of its own in every step for what it computes again."""
    new: dict[Value, Value] = {}
    kernels: dict[Kernel, Kernel] = {}
    own: dict[tuple[Value, int], Value] = {}

    def argument(v: Value, step: int) -> Value:
        """v as the step computes it."""
        for x in inner([v], lambda i: choice.made_again(i, step) and (i, step) not in own):
            if (x, step) in own:
                continue
            source = x.source if isinstance(x, View) else x
            if choice.made_again(source, step):
                args = tuple(own[i, step] for i in inputs_of(x))
                if isinstance(x, Map):  # another value, even of the same arguments
                    own[x, step] = Map(x.shape, x.dtype, x.op, args)
                else:
                    own[x, step] = with_arguments(x, args)
            elif isinstance(x, View):
                own[x, step] = with_arguments(x, [new[x.source]])
            else:
                own[x, step] = new[x]
        return own[v, step]

    for value in topological(schedule.ends):
        if isinstance(value, (Buffer, Number)):
            new[value] = value
        elif value in schedule.roots:
            step = choice.step_of.get(value, -1)
            args = tuple(argument(i, step) for i in inputs_of(value))
            if isinstance(value, Result):
                if value.kernel not in kernels:
                    kernels[value.kernel] = with_inputs(value.kernel, args)
                new[value] = of_kernel(value, kernels[value.kernel])
            else:
                assert isinstance(value, (Map, Reduce))
                new[value] = with_arguments(value, args)
    return [new[end] for end in schedule.ends]
