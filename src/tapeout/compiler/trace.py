"""From a functional FX graph of ATen operators to values."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import GraphModule, Node

from .executable import encode
from .operators import LOWERINGS, Meta, Unsupported, experts, random
from .operators.products import stored
from .operators.registry import cast
from .values import DTYPES, Buffer, Value, dense_strides, inverse, permute

# Of what tracing knows already: types and devices.
CHECKS = (torch.ops.aten._assert_tensor_metadata.default,)

# They address their first argument's memory.
BY_MEMORY = (torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_scatter.default)


class UnsupportedGraph(Exception):
    """What of a model the compiler does not have, each with its place in the user's code."""


@dataclass
class Lowered:
    """A graph as values.

    Attributes:
        seeds: integers that every launch draws.
        outputs: values, or what is no tensor.
        updates: inputs that the graph writes, with what they hold afterwards.
    """

    inputs: list[Buffer] = field(default_factory=list)
    seeds: list[Buffer] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    updates: dict[Buffer, Value] = field(default_factory=dict)


def lower_graph(gm: GraphModule) -> Lowered:
    """Raises UnsupportedGraph, which names all that the compiler does not have."""
    experts.lower_transformers()
    with random.drawing() as seeds:
        lowered = _lowered(gm)
        lowered.seeds = list(seeds)
        return lowered


def _lowered(gm: GraphModule) -> Lowered:
    lowered = Lowered()
    inputs, updates = lowered.inputs, lowered.updates
    env: dict[Node, Any] = {}
    given: dict[Node, Buffer] = {}
    problems: list[str] = []
    for node in gm.graph.nodes:
        try:
            if node.op == "placeholder":
                env[node] = _placeholder(node, inputs)
                given[node] = inputs[-1]
            elif node.op == "get_attr":
                env[node] = _attribute(gm, node)
            elif node.op == "output":
                lowered.outputs = list(_resolve(node.args[0], env))
            elif node.target in CHECKS:
                pass
            elif node.target is torch.ops.aten.copy_.default:
                env[node] = _overwrite(node, env, given, updates)
            elif node.target is operator.getitem:
                source, index = node.args
                env[node] = _resolve(source, env)[index]
            else:
                env[node] = _call(node, env)
        except Unsupported as problem:
            problems.append(f"{problem}{line_of(node)}")
            env[node] = None
        except _Blocked:
            env[node] = None
    if problems:
        raise UnsupportedGraph(
            "the compiler cannot take this model:\n  " + "\n  ".join(dict.fromkeys(problems))
        )
    return lowered


class _Blocked(Exception):
    """An argument that could not be lowered."""


def _resolve(x: Any, env: dict[Node, Any]) -> Any:
    def get(n: Node) -> Any:
        value = env[n]
        if value is None and n.meta.get("val") is not None:
            raise _Blocked
        return value

    return torch.fx.node.map_arg(x, get)


def _meta(val: Any) -> Any:
    if isinstance(val, (list, tuple)):
        return [_meta(x) for x in val]
    if not isinstance(val, torch.Tensor):
        return val
    _check(val)
    return Meta(tuple(val.shape), val.dtype)


def _check(t: torch.Tensor) -> None:
    if t.dtype not in DTYPES:
        raise Unsupported(f"{str(t.dtype).removeprefix('torch.')} tensors")
    if t.layout != torch.strided:
        raise Unsupported(f"{t.layout} tensors")
    if any(isinstance(n, torch.SymInt) for n in t.shape):
        raise Unsupported(f"a shape that is not known: {tuple(t.shape)}")


def _placeholder(node: Node, inputs: list[Buffer]) -> Value:
    val = node.meta["val"]
    if not isinstance(val, torch.Tensor):
        raise Unsupported(f"an input that is no tensor: {val!r}")
    _check(val)
    order = _lying(val)
    shape = tuple(val.shape[d] for d in order)
    rows_first = order == tuple(range(len(order)))
    buffer = Buffer(shape, val.dtype, f"in{len(inputs)}", order=() if rows_first else order)
    inputs.append(buffer)
    return buffer if rows_first else permute(buffer, inverse(order))


def _lying(t: torch.Tensor) -> tuple[int, ...]:
    """Dimensions of a dense tensor as they lie, outermost first (`torch.channels_last`, say); of
    any other, which the host makes dense, as they are numbered."""
    plain = tuple(range(t.ndim))
    order = sorted(plain, key=lambda d: (-t.stride(d), d) if t.shape[d] > 1 else (0, d))
    wide = [d for d in order if t.shape[d] > 1]
    dense = dense_strides(tuple(t.shape[d] for d in wide))
    if not t.numel() or tuple(t.stride(d) for d in wide) != dense or t.is_contiguous():
        return plain
    return tuple(order)


def _attribute(gm: GraphModule, node: Node) -> Value:
    value = operator.attrgetter(node.target)(gm)
    _check(value)
    with unset_fake_temporarily():
        return Buffer(tuple(value.shape), value.dtype, str(node.target), encode(value))


def _call(node: Node, env: dict[Node, Any]) -> Any:
    meta = _meta(node.meta.get("val"))
    f = LOWERINGS.get(node.target)
    if f is None:
        raise Unsupported(f"operator {node.target}")
    args, kwargs = _resolve(node.args, env), _resolve(node.kwargs, env)
    if node.target in BY_MEMORY and node.args[0].meta["val"].is_contiguous():
        args = (stored(args[0]), *args[1:])  # as PyTorch has it, not as it lies here
    try:
        result = f(meta, *args, **kwargs)
    except (TypeError, AttributeError) as problem:
        raise Unsupported(f"operator {node.target} used like this ({problem})") from problem
    _agree(node, meta, result)
    return result


def _overwrite(
    node: Node, env: dict[Node, Any], given: dict[Node, Buffer], updates: dict[Buffer, Value]
) -> Value:
    """A copy into an input, or into a tensor that nothing else shows: later uses see the new
    value."""
    target = node.args[0]
    assert isinstance(target, Node)
    if target not in given and target.target is not torch.ops.aten.clone.default:
        raise Unsupported(f"operator {node.target} into what may be shown elsewhere")
    new = cast(_resolve(node.args[1], env), _meta(node.meta["val"]))
    if target in given:
        buffer = given[target]
        updates[buffer] = permute(new, buffer.order) if buffer.order else new
    env[target] = new
    return new


def _agree(node: Node, meta: Any, result: Any) -> None:
    """A lowering gives what the graph says; anything else is an error of the compiler."""
    if isinstance(meta, list):
        for m, r in zip(meta, result, strict=True):
            _agree(node, m, r)
    elif isinstance(meta, Meta) and (result.shape, result.dtype) != (meta.shape, meta.dtype):
        raise AssertionError(
            f"{node.target} was lowered to {result.dtype} {result.shape}, not {meta}"
        )


def line_of(node: Node) -> str:
    """ " at " and the user's line that a node comes from; nothing if that is not known."""
    lines: Sequence[str] = (node.meta.get("stack_trace") or "").strip().splitlines()
    for at in range(len(lines) - 1, -1, -1):
        if lines[at].lstrip().startswith("File "):
            code = f": {lines[at + 1].strip()}" if at + 1 < len(lines) else ""
            return f" at {lines[at].strip()}{code}"
    return ""
