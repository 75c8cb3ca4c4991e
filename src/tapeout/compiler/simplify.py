"""Expressions without views that only regroup or repeat their elements.

A view of an expression makes the scheduler store it. Where nothing else uses the expression, it is
written in the shape of the view instead: a bias broadcast to rows, or the activation behind a
product whose rows are given as batch and sequence, then become part of what uses them.
"""

from collections.abc import Sequence

from . import values as v
from .values import Kernel, Map, Number, Reduce, Result, Shape, Value, View

MOST_REPEATED = 6  # operations that are done again for each repetition, at most


def simplified(ends: Sequence[Value]) -> list[Value]:
    """The values, computed alike."""
    return _Simplifier(ends).run()


class _Simplifier:
    def __init__(self, ends: Sequence[Value]) -> None:
        self.ends = ends
        self.order = v.topological(ends)
        self.users: dict[Value, int] = {}
        for value in self.order:
            for i in dict.fromkeys(v.inputs_of(value)):
                self.users[i] = self.users.get(i, 0) + 1
        for end in ends:
            self.users[end] = self.users.get(end, 0) + 1
        self.new: dict[Value, Value] = {}
        self.kernels: dict[Kernel, Kernel] = {}
        self.single: set[Value] = set()  # new values that have one user

    def run(self) -> list[Value]:
        for value in self.order:
            new = self._again(value)
            self.new[value] = new
            if self.users.get(value, 0) == 1:
                self.single.add(new)
        return [self.new[end] for end in self.ends]

    def _again(self, value: Value) -> Value:
        """The value of new inputs."""
        inputs = v.inputs_of(value)
        changed = any(self.new[i] is not i for i in inputs)
        if isinstance(value, View):
            source = self.new[value.source]
            pushed = self._pushed(value, source)
            if pushed is not None:
                return pushed
            return (
                View(value.shape, value.dtype, source, value.strides, value.offset)
                if changed else value
            )  # fmt: skip
        if not changed:
            return value
        args = tuple(self.new[i] for i in inputs)
        if isinstance(value, Map):
            return Map(value.shape, value.dtype, value.op, args)
        if isinstance(value, Reduce):
            return Reduce(value.shape, value.dtype, value.op, args[0], value.dims)
        assert isinstance(value, Result)
        if value.kernel not in self.kernels:
            self.kernels[value.kernel] = Kernel(value.kernel.op, args, value.kernel.params)
        return Result(value.shape, value.dtype, self.kernels[value.kernel])

    def _pushed(self, view: View, source: Value) -> Value | None:
        """The view as an expression of its own; None where it has to stay one."""
        if view.offset or not view.numel or source not in self.single:
            return None
        if not isinstance(source, Map):
            return None
        dense = v.dense_strides(source.shape)
        if view.numel == source.numel:
            flat = v.reshape_strides(source.shape, dense, view.shape)
            same = flat is not None and all(
                n == 1 or a == b for n, a, b in zip(view.shape, flat, view.strides, strict=True)
            )
            return self._reshaped(source, view.shape) if same else None
        if self._operations(source) > MOST_REPEATED:
            return None
        return self._spread(source, view)

    def _reshaped(self, value: Value, shape: Shape) -> Value | None:
        if isinstance(value, Map) and value in self.single:
            args = [self._reshaped(a, shape) for a in value.args]
            if any(a is None for a in args):
                return None
            return self._alone(value, shape, [a for a in args if a is not None])
        if isinstance(value, Number):
            return Number(shape, value.dtype, value.value)
        view = v.as_view(value)
        strides = v.reshape_strides(view.shape, view.strides, shape)
        return None if strides is None else v.moved(value, shape, strides, view.offset)

    def _spread(self, value: Value, view: View) -> Value | None:
        """`value` with its dimensions where the view has them, and the others repeated."""
        at = _places(value.shape, view)
        if at is None:
            return None

        def spread(x: Value) -> Value | None:
            if isinstance(x, Map) and x in self.single:
                args = [spread(a) for a in x.args]
                if any(a is None for a in args):
                    return None
                return self._alone(x, view.shape, [a for a in args if a is not None])
            if isinstance(x, Number):
                return Number(view.shape, x.dtype, x.value)
            if isinstance(x, Map):
                return None
            seen = v.as_view(x)
            strides = [0] * len(view.shape)
            for d, target in at.items():
                strides[target] = seen.strides[d]
            return v.moved(x, view.shape, tuple(strides), seen.offset)

        return spread(value)

    def _alone(self, like: Map, shape: Shape, args: Sequence[Value]) -> Map:
        new = Map(shape, like.dtype, like.op, tuple(args))
        self.single.add(new)
        return new

    def _operations(self, value: Value) -> int:
        if not isinstance(value, Map):
            return 0
        return 1 + sum(self._operations(a) for a in value.args)


def _places(shape: Shape, view: View) -> dict[int, int] | None:
    """For each dimension of a dense tensor that is not 1, the view's that steps as it does; None if
    the view is anything but a repetition."""
    dense = v.dense_strides(shape)
    wanted = {(n, s): d for d, (n, s) in enumerate(zip(shape, dense, strict=True)) if n > 1}
    at: dict[int, int] = {}
    last = -1
    for target, (n, s) in enumerate(zip(view.shape, view.strides, strict=True)):
        if n == 1 or s == 0:
            continue
        d = wanted.pop((n, s), None)
        if d is None or d < last:
            return None
        at[d], last = target, d
    return None if wanted else at
