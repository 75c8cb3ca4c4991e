"""Graphs as Dynamo captures them: which of them need not be traced again.

Tracing by AOTAutograd takes longer than finding the executable that it leads to. Where a graph of
PyTorch functions does nothing but compute results of its inputs, what was traced is a function of
the graph, of its inputs' metadata and of few global settings; their hash leads to the executable.
"""

import builtins
from collections.abc import Sequence
from contextlib import suppress
from types import NoneType
from typing import Any

import torch
from torch._functorch._aot_autograd.schemas import OutputType, ViewAndMutationMeta
from torch.fx import GraphModule
from torch.fx.node import _get_qualified_name, map_aggregate

from tapeout.chip import Chip

from . import store

# Whose repr is the same in every process, and says all there is to say.
_PLAIN = (
    NoneType, bool, int, float, complex, str, slice, type(...),
    torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size,
)  # fmt: skip
# Functions of these do the same in every process; a user's can have changed.
_KNOWN = ("torch.", "_operator.", "math.")


class _Unknown(Exception):
    """Something that has no name in another process."""


def key(gm: GraphModule, inputs: Sequence[Any], chip: Chip) -> str | None:
    """The name of a graph for inference; None where more than that decides what it is.

    Args:
        inputs: tensors, as Dynamo gives them to a backend.
    """
    if torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in inputs):
        return None
    try:
        parts = [_node(node) for node in gm.graph.nodes]
        parts += [_tensor(t) for t in inputs]
    except _Unknown:
        return None
    return store.hashed(chip, [*parts, _settings()])


def is_plain(made: ViewAndMutationMeta | None) -> bool:
    """AOTAutograd found nothing in a graph but results computed of inputs: none of those is
    changed, or shares memory with a result."""
    return (
        made is not None
        and not any(i.mutates_data or i.mutates_metadata for i in made.input_info)
        and all(
            o.output_type == OutputType.non_alias and issubclass(o.raw_type, torch.Tensor)
            for o in made.output_info
        )
        and made.grad_enabled_mutation is None
        and not made.tokens
    )  # fmt: skip


def _settings() -> tuple[Any, ...]:
    """What tracing depends on and the graph does not show."""
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"),
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


def _node(node: torch.fx.Node) -> tuple[Any, ...]:
    if node.op == "placeholder":
        return (node.op, node.name)
    if node.op not in ("call_function", "call_method", "output"):
        raise _Unknown(node.op)
    target = str(node.target)
    if node.op == "call_function":
        target = _function(node.target)
    return (node.op, node.name, target, map_aggregate((node.args, node.kwargs), _argument))


def _function(f: Any) -> str:
    if isinstance(f, torch._ops.OpOverload):
        if f.namespace == "aten":
            return str(f)
    elif not isinstance(f, (torch._ops.OpOverloadPacket, torch._ops.HigherOrderOperator)):
        with suppress(RuntimeError, AttributeError):  # it has no name
            name = _get_qualified_name(f)
            if name.startswith(_KNOWN) or getattr(builtins, name, None) is f:
                return name
    raise _Unknown(f)


def _argument(a: Any) -> Any:
    if isinstance(a, torch.fx.Node):
        return f"%{a.name}"
    if not isinstance(a, _PLAIN):
        raise _Unknown(type(a))
    return a


def _tensor(t: Any) -> tuple[Any, ...]:
    if type(t) not in (torch.Tensor, torch.nn.Parameter) and not isinstance(
        t, torch._subclasses.FakeTensor
    ):
        raise _Unknown(type(t))
    sizes = (*t.shape, *t.stride())
    if not all(isinstance(n, int) for n in sizes):
        raise _Unknown("an open size")
    return (t.shape, t.stride(), t.dtype, t.device, t.is_conj(), t.is_neg())
