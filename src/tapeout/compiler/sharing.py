"""The same expression twice becomes one value."""

from collections.abc import Hashable, Sequence

from . import values as v
from .values import Buffer, Kernel, Map, Number, Reduce, Result, Value, View


def shared(ends: Sequence[Value]) -> list[Value]:
    """The values, with one value for all expressions that are alike."""
    new: dict[Value, Value] = {}
    first: dict[Hashable, Value] = {}
    kernels: dict[Kernel, Kernel] = {}
    alike: dict[Hashable, Kernel] = {}
    for value in v.topological(ends):
        args = tuple(new[i] for i in v.inputs_of(value))
        if isinstance(value, Result):
            if value.kernel not in kernels:
                kernel = with_inputs(value.kernel, args)
                key = (kernel.op, kernel.inputs, repr(kernel.params))
                kernels[value.kernel] = alike.setdefault(key, kernel)
            made: Value = of_kernel(value, kernels[value.kernel])
        else:
            made = with_arguments(value, args)
        new[value] = first.setdefault(_key(made), made)
    return [new[end] for end in ends]


def _key(value: Value) -> Hashable:
    """Equal for values that are computed alike."""
    what: tuple[Hashable, ...]
    if isinstance(value, Buffer):
        what = (value if value.data is None else value.data.tobytes(),)
    elif isinstance(value, Number):
        what = (repr(value.value),)  # -0.0 is not 0.0
    elif isinstance(value, Map):
        what = (value.op, value.args)
    elif isinstance(value, Reduce):
        what = (value.op, value.arg, value.dims)
    elif isinstance(value, View):
        what = (value.source, value.strides, value.offset)
    else:
        assert isinstance(value, Result)
        what = (value.kernel,)
    return (type(value), value.shape, value.dtype, *what)


def with_arguments(value: Value, args: Sequence[Value]) -> Value:
    """The value of other arguments; itself if they are its own. Not for results of kernels."""
    if tuple(args) == v.inputs_of(value):
        return value
    if isinstance(value, Map):
        return Map(value.shape, value.dtype, value.op, tuple(args))
    (arg,) = args
    if isinstance(value, Reduce):
        return Reduce(value.shape, value.dtype, value.op, arg, value.dims)
    assert isinstance(value, View)
    return View(value.shape, value.dtype, arg, value.strides, value.offset)


def with_inputs(kernel: Kernel, inputs: tuple[Value, ...]) -> Kernel:
    """The kernel over other inputs; itself if they are its own."""
    return kernel if inputs == kernel.inputs else Kernel(kernel.op, inputs, kernel.params)


def of_kernel(value: Result, kernel: Kernel) -> Result:
    return value if kernel is value.kernel else Result(value.shape, value.dtype, kernel)
