"""Expressions without views and copies that only regroup or repeat their elements.

A view of an expression makes the scheduler store it. So an expression is written in the shape in
which what it reads already lies:

- *upwards*: where nothing else uses the expression behind a view, it takes the view's shape: a bias
  broadcast to rows, or the activation behind a product whose rows are batch and sequence.
- *downwards*: what is computed of a regrouped expression, or of a copy made only to regroup, is
  computed in the shape before and regrouped behind: a loss over [batch * tokens, vocabulary] reads
  the logits of all but the last token where they are.

What is put together from parts and then only rounded is put together from rounded parts.
"""

import math
from collections.abc import Callable, Sequence

import torch

from . import values as v
from .sharing import of_kernel, shared, with_arguments, with_inputs
from .values import Kernel, Map, Number, Reduce, Result, Shape, Value, View

MOST_REPEATED = 6  # operations that are done again for each repetition, at most


def simplified(ends: Sequence[Value]) -> list[Value]:
    """The values, computed alike."""
    return shared(regrouped(shared(ends)))


def regrouped(ends: Sequence[Value]) -> list[Value]:
    """The values, where expressions that are alike stay apart."""
    return _Simplifier(ends).run()


class _Simplifier:
    def __init__(self, ends: Sequence[Value]) -> None:
        self.ends = ends
        self.order = v.topological(ends)
        self.users = v.users_of(self.order)
        for end in ends:
            self.users.setdefault(end, []).append(end)  # whoever reads the result
        self.new: dict[Value, Value] = {}
        self.kernels: dict[Kernel, Kernel] = {}
        self.single: set[Value] = set()  # new values that have one user

    def run(self) -> list[Value]:
        for value in self.order:
            new = self._again(value)
            self.new[value] = new
            if len(self.users.get(value, ())) == 1:
                self.single.add(new)
        return [self.new[end] for end in self.ends]

    def _again(self, value: Value) -> Value:
        """The value of new inputs."""
        args = tuple(self.new[i] for i in v.inputs_of(value))
        if isinstance(value, View):
            (source,) = args
            pushed = self._pushed(value, source)
            if pushed is not None:
                return pushed
            if isinstance(source, View):  # what was regrouped lies as before
                source = source.source
            return self._turned_product(value, source) or with_arguments(value, (source,))
        if isinstance(value, Result):
            if value.kernel not in self.kernels:
                kernel = with_inputs(value.kernel, args)
                self.kernels[value.kernel] = _with_parts_as_made(kernel)
            return of_kernel(value, self.kernels[value.kernel])
        if isinstance(value, Map):
            found = self._rounded_parts(value, args[0]) or self._regrouped(value, args)
            return with_arguments(value, args) if found is None else found
        if isinstance(value, Reduce):
            found = self._regrouped_reduction(value, args[0])
            return with_arguments(value, args) if found is None else found
        return value

    # --- upwards ----------------------------------------------------------------------------------

    def _pushed(self, view: View, source: Value) -> Value | None:
        """The view as an expression of its own; None where it has to stay one."""
        if view.offset or not view.numel or source not in self.single:
            return None
        if not isinstance(source, Map):
            return None
        if view.numel == source.numel:
            if v.regroups(view):
                return self._reshaped(source, view.shape)
            if _keeps_last(source.shape, view) or self._tensors_read(source) == 1:
                finer = _finer(source.shape, view)
                made = None if finer is None else self._spread(source, finer)
                return made if made is None else _viewed(made, view.shape)
            return None
        if self._operations(source) > MOST_REPEATED:
            return None
        return self._spread(source, view)

    def _reshaped(self, value: Value, shape: Shape) -> Value | None:
        """`value` in another shape; None where something would have to be stored for it."""

        def reshaped(x: Value) -> Value | None:
            return None if isinstance(x, (Map, Reduce)) else _viewed(x, shape)

        return self._in(shape, value, reshaped)

    def _in(
        self, shape: Shape, value: Value, leaf: Callable[[Value], Value | None]
    ) -> Value | None:  # fmt: skip
        """The expression of `leaf` of what it reads, as far as nobody else uses it."""
        if not isinstance(value, Map) or value not in self.single:
            return leaf(value)
        args: list[Value] = []
        for a in value.args:
            arg = self._in(shape, a, leaf)
            if arg is None:
                return None
            args.append(arg)
        new = Map(shape, value.dtype, value.op, tuple(args))
        self.single.add(new)
        return new

    def _spread(self, value: Value, view: View) -> Value | None:
        """`value` with its dimensions where the view has them, and the others repeated."""
        at = _places(value.shape, view)
        if at is None:
            return None

        def spread(x: Value) -> Value | None:
            if isinstance(x, Number):
                return Number(view.shape, x.dtype, x.value)
            if isinstance(x, Map):
                return None
            seen = v.as_view(x)
            strides = [0] * len(view.shape)
            for d, target in at.items():
                strides[target] = seen.strides[d]
            return v.moved(x, view.shape, tuple(strides), seen.offset)

        return self._in(view.shape, value, spread)

    def _operations(self, value: Value) -> int:
        """How many operations `_in` would write again."""
        if not isinstance(value, Map) or value not in self.single:
            return 0
        return 1 + sum(self._operations(a) for a in value.args)

    def _tensors_read(self, value: Value) -> int:
        """How many tensors an expression reads that have an element for each of its own."""
        if isinstance(value, Map) and value in self.single:
            return sum(self._tensors_read(a) for a in value.args)
        return int(not isinstance(value, Number) and v.moves(v.as_view(value)))

    # --- products that are read turned ------------------------------------------------------------

    def _turned_product(self, view: View, source: Value) -> View | None:
        """A view whose rows are columns of a product, as one of the turned product B^T A^T."""
        if not isinstance(source, Result) or source.kernel.op != "mm" or not view.numel:
            return None
        batch, m, n, depth = source.kernel.params["shape"]
        if source not in self.single or source.kernel.params["left"] != batch:
            return None
        strides = _seen_turned(view, batch, m, n)
        if strides is None:
            return None
        turned = source.kernel.params["transposed"]
        inputs: list[Value] = []
        lefts = source.kernel.inputs[::2]
        rows = [isinstance(a, Result) and a.kernel.op == "transpose" for a in lefts]
        if any(rows) and not all(rows):
            return None
        for a, b in zip(lefts, source.kernel.inputs[1::2], strict=True):
            left = b if turned else Result((batch, n, depth), b.dtype, Kernel("transpose", (b,)))
            right = a.kernel.inputs[0] if isinstance(a, Result) and rows[0] else a
            inputs += [left, right]
        params = {"shape": (batch, n, m, depth), "left": batch, "transposed": not rows[0]}
        product = Result((batch, n, m), source.dtype, Kernel("mm", tuple(inputs), params))
        return View(view.shape, view.dtype, product, strides)

    # --- downwards --------------------------------------------------------------------------------

    def _regrouped(self, value: Map, args: Sequence[Value]) -> Value | None:
        """The map in the shape that an argument had before it was regrouped, regrouped."""
        for before in (_before(a) for a in args):
            if before is None:
                continue
            shape = before.shape
            inside = tuple(x for a in args if (x := self._in_shape(a, shape)) is not None)
            if len(inside) < len(args):
                continue
            new = Map(shape, value.dtype, value.op, inside)
            return View(value.shape, value.dtype, new, v.dense_strides(value.shape))
        return None

    def _in_shape(self, arg: Value, shape: Shape) -> Value | None:
        """An argument in a shape with as many elements; None where it would have to be stored."""
        before = _before(arg)
        if before is not None and before.shape == shape:
            return before
        return self._reshaped(arg, shape)

    def _regrouped_reduction(self, value: Reduce, arg: Value) -> Value | None:
        before = _before(arg)
        dims = None if before is None else _regrouped_dims(arg.shape, before.shape, value.dims)
        if before is None or dims is None:
            return None
        shape = tuple(1 if d in dims else n for d, n in enumerate(before.shape))
        new = Reduce(shape, value.dtype, value.op, before, dims)
        return View(value.shape, value.dtype, new, v.dense_strides(value.shape))

    # --- parts ------------------------------------------------------------------------------------

    def _rounded_parts(self, value: Map, arg: Value) -> Value | None:
        """What is put together and then only rounded, put together from rounded parts."""
        whole = arg.source if isinstance(arg, View) else arg
        if (
            value.op != "copy" or value.dtype != torch.bfloat16 or whole not in self.single
            or arg not in self.single or not isinstance(whole, Result)
            or whole.kernel.op != "assemble"
        ):  # fmt: skip
            return None
        if isinstance(arg, View) and not v.regroups(arg):
            return None
        parts = tuple(
            Number(p.shape, value.dtype, p.value) if isinstance(p, Number)
            else Map(p.shape, value.dtype, "copy", (p,))
            for p in whole.kernel.inputs
        )  # fmt: skip
        kernel = Kernel("assemble", parts, whole.kernel.params)
        return v.reshape(Result(whole.shape, value.dtype, kernel), value.shape)


def _with_parts_as_made(kernel: Kernel) -> Kernel:
    """Parts of what is put together in the shape in which they are computed, not regrouped."""
    if kernel.op != "assemble":
        return kernel
    parts: list[Value] = []
    places: list[tuple[Shape, int]] = []
    for part, (strides, offset) in zip(kernel.inputs, kernel.params["places"], strict=True):
        before = _before(part)
        steps = None if before is None else v.reshape_strides(part.shape, strides, before.shape)
        if before is not None and steps is not None:
            part, strides = before, steps
        parts.append(part)
        places.append((strides, offset))
    if all(a is b for a, b in zip(parts, kernel.inputs, strict=True)):
        return kernel
    return Kernel("assemble", tuple(parts), {"places": places})


def _before(arg: Value) -> Value | None:
    """What an argument regroups: an expression, or what was copied only for that."""
    if not isinstance(arg, View) or not arg.numel or not v.regroups(arg):
        return None
    source = arg.source
    if isinstance(source, Map) and source.op == "copy" and source.dtype == source.args[0].dtype:
        (seen,) = source.args
        if isinstance(seen, View):
            return seen if seen.shape and seen.strides[-1] == 1 else None
    return source if isinstance(source, (Map, Reduce)) else None


def _viewed(value: Value, shape: Shape) -> Value | None:
    """A value in another shape without a copy; None: there are no such strides."""
    if isinstance(value, Number):
        return Number(shape, value.dtype, value.value)
    view = v.as_view(value)
    strides = v.reshape_strides(view.shape, view.strides, shape)
    return None if strides is None else v.moved(value, shape, strides, view.offset)


def _regrouped_dims(shape: Shape, other: Shape, dims: tuple[int, ...]) -> tuple[int, ...] | None:
    """The dimensions of `other` that are `dims` of `shape`; None where one is more than that, or
    where one of `shape` would be several."""
    found: list[int] = []
    for mine, its in _segments(shape, other):
        reduced = [d in dims for d in mine if shape[d] != 1]
        if any(reduced):
            if not all(reduced) or sum(other[d] != 1 for d in its) > 1:
                return None
            found += its
    return tuple(found) if found else None


def _segments(a: Shape, b: Shape) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of dimensions that have as many elements in both shapes."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(a) or j < len(b):
        mine, its = [i] if i < len(a) else [], [j] if j < len(b) else []
        i, j = i + len(mine), j + len(its)
        while math.prod(a[d] for d in mine) != math.prod(b[d] for d in its):
            if math.prod(a[d] for d in mine) < math.prod(b[d] for d in its):
                mine.append(i)
                i += 1
            else:
                its.append(j)
                j += 1
        runs.append((mine, its))
    return runs


def _places(shape: Shape, view: View) -> dict[int, int] | None:
    """For each dimension of a dense tensor that is not 1, the view's that steps as it does; None if
    the view is anything but a repetition."""
    dense = v.dense_strides(shape)
    wanted = {(n, s): d for d, (n, s) in enumerate(zip(shape, dense, strict=True)) if n > 1}
    at: dict[int, int] = {}
    for target, (n, s) in enumerate(zip(view.shape, view.strides, strict=True)):
        if n == 1 or s == 0:
            continue
        d = wanted.pop((n, s), None)
        if d is None:
            return None
        at[d] = target
    return None if wanted else at


def _finer(shape: Shape, view: View) -> View | None:
    """The view with a dimension for each of a dense tensor's; None if one is a part of one."""
    steps = dict(zip(v.dense_strides(shape)[::-1], shape[::-1], strict=True))
    sizes: list[int] = []
    strides: list[int] = []
    for n, s in zip(view.shape, view.strides, strict=True):
        at, found = s, list[tuple[int, int]]()
        while n > 1:
            size = steps.get(at, 0)
            if size < 2 or n % size:
                return None
            found.insert(0, (size, at))
            n, at = n // size, at * size
        sizes += [size for size, _ in found] or [1]
        strides += [step for _, step in found] or [0]
    return View(tuple(sizes), view.dtype, view.source, tuple(strides), view.offset)


def _keeps_last(shape: Shape, view: View) -> bool:
    """The elements of a row of a dense tensor follow each other in the view, too."""
    mine = [n for n in shape if n != 1]
    last = [(n, s) for n, s in zip(view.shape, view.strides, strict=True) if n != 1]
    return not mine or (bool(last) and last[-1] == (mine[-1], 1))


def _seen_turned(view: View, batch: int, m: int, n: int) -> Shape | None:
    """Strides of the view of a product [batch, m, n] as one of [batch, n, m], where that has the
    elements of a row one after another, and now they lie apart."""
    strides: list[int] = []
    lanes = 0  # new stride of the last dimension
    for size, s in zip(view.shape, view.strides, strict=True):
        reach = (size - 1) * s
        if size == 1 or s == 0:
            strides.append(0)
            continue
        if s % (m * n) == 0:
            new = s
        elif s % n == 0 and 0 < reach < m * n:
            new = s // n
        elif s > 0 and reach < n:
            new = s * m
        else:
            return None
        strides.append(new)
        lanes = new
    return tuple(strides) if lanes == 1 and not view.offset else None
