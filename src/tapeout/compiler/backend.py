"""`torch.compile(model, backend="tapeout")`: graphs of PyTorch run on a simulated chip.

AOTAutograd traces forward and backward and makes them functional; `trace` lowers each graph to an
`Executable`.
"""

import atexit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule

from tapeout.chip import Chip, load

from . import store
from .executable import BOUND, Executable, build
from .shapes import OpenGraph, is_open
from .trace import lower_graph
from .values import Value

DEFAULT_CHIP, DEFAULT_TARGET = "solo", "sim"


@dataclass(frozen=True)
class _Strides:
    """A tensor among the results of a graph, and the strides that PyTorch gives it."""

    strides: tuple[int, ...]


@dataclass
class Compiled:
    """A graph for a chip.

    Attributes:
        rest: results that are no tensors; `_Strides` where the executable gives one.
    """

    executable: Executable
    rest: list[Any]

    def results(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        """All results of the graph, of those that the executable has given."""
        given = iter(tensors)
        return [_laid_out(next(given), r) if isinstance(r, _Strides) else r for r in self.rest]


def _laid_out(t: torch.Tensor, wanted: _Strides) -> torch.Tensor:
    if t.stride() == wanted.strides or 0 in wanted.strides:  # 0: as PyTorch shows an expansion
        return t
    return torch.empty_strided(t.shape, wanted.strides, dtype=t.dtype).copy_(t)


def compile_graph(gm: GraphModule, chip: Chip, kept: Sequence[int] = ()) -> Compiled:
    """Compiles a functional graph of ATen operators with static shapes, or finds what an earlier
    process made of the same one.

    Args:
        kept: numbers of inputs that are a model's parameters and buffers.
    """
    key = store.graph_key(gm, chip, kept)
    (end,) = gm.graph.find_nodes(op="output")
    found = store.find(key, chip)
    if found is not None:
        executable, rest = found
    else:
        graph = lower_graph(gm)
        values = [o for o in graph.outputs if isinstance(o, Value)]
        executable = build(
            chip, graph.inputs, values, seeds=graph.seeds, updates=list(graph.updates.items()),
            kept=kept,
        )  # fmt: skip
        rest = [{} if isinstance(value, Value) else value for value in graph.outputs]
        store.keep(key, executable, rest)
    return Compiled(executable, [
        _Strides(tuple(node.meta["val"].stride())) if value == {} else value
        for node, value in zip(end.args[0], rest, strict=True)
    ])  # fmt: skip


class Device:
    """A chip on a target, with everything that runs on it."""

    def __init__(self, chip: Chip, target: str) -> None:
        from tapeout.isa.interp import Interp
        from tapeout.sim import Sim

        kinds: dict[str, Callable[[Chip], Any]] = {"sim": Sim, "interp": Interp}
        if target not in kinds:
            raise ValueError(f"target must be one of {', '.join(kinds)}, not {target!r}")
        self.chip, self.target = chip, kinds[target](chip)
        self.last: Executable | None = None

    def run(
        self, executable: Executable, tensors: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor]:
        """Runs an executable here (`Executable.run`), which then is the `last`."""
        self.last = executable
        return executable.run(self.target, tensors)


_devices: dict[tuple[str, str], Device] = {}


@atexit.register
def _close() -> None:
    """Gives the simulators' memory back while there is an interpreter to do so: compiled graphs,
    which PyTorch keeps, refer to them."""
    for executable in list(BOUND):
        executable.release()
    for each in _devices.values():
        vars(each.target).clear()


def device(chip: str | Chip = DEFAULT_CHIP, target: str = DEFAULT_TARGET) -> Device:
    """The device that `torch.compile` uses for a chip and target."""
    described = load(chip) if isinstance(chip, str) else chip
    key = (repr(described), target)
    if key not in _devices:
        _devices[key] = Device(described, target)
    return _devices[key]


def _parameters() -> Sequence[int]:
    """Inputs of the forward graph in the making that are a model's own."""
    context = torch._guards.TracingContext.try_get()
    metadata = None if context is None else context.fw_metadata
    return [] if metadata is None else metadata.static_input_indices


def backend(
    gm: GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """The `torch.compile` backend.

    Options: `chip`, `target`, and `buckets`, sizes that dimensions of changing size are rounded up
    to (`shapes`).
    """
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    from .operators import decompositions

    options = dict(options or {})
    where = device(options.pop("chip", DEFAULT_CHIP), options.pop("target", DEFAULT_TARGET))
    buckets = options.pop("buckets", ())
    if options:
        raise ValueError(f"unknown options {', '.join(options)}: there are chip, target, buckets")

    def closed(graph: GraphModule, kept: Sequence[int]) -> Callable[[Sequence[Any]], list[Any]]:
        compiled = compile_graph(graph, where.chip, kept)
        return lambda args: compiled.results(where.run(compiled.executable, args))

    def compiler(
        graph: GraphModule, kept: Sequence[int] = (), sizes: Sequence[int] = ()
    ) -> Callable[..., Any]:
        if is_open(graph):
            return make_boxed_func(OpenGraph(graph, closed, kept, sizes))
        run = closed(graph, kept)
        return make_boxed_func(lambda *args: run(args))

    def inference(graph: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        return compiler(graph, _parameters(), buckets)

    def forward(graph: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        if buckets:
            raise ValueError("buckets are for inference: compile under torch.no_grad(), or without")
        return compiler(graph, _parameters())

    def backward(graph: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        return compiler(graph)

    aot = aot_autograd(
        fw_compiler=forward, bw_compiler=backward, inference_compiler=inference,
        decompositions=decompositions(), keep_inference_input_mutations=True,
    )  # fmt: skip
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return aot(gm, list(example_inputs))
