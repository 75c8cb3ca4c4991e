"""`torch.compile(model, backend="tapeout")`: graphs of PyTorch run on a simulated chip.

AOTAutograd traces forward and backward and makes them functional; `trace` lowers each graph to an
`Executable`. A graph of which an earlier process found that its tracing depends on nothing else is
not traced again (`captured`).
"""

import atexit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._functorch._aot_autograd.schemas import ViewAndMutationMeta
from torch.fx import GraphModule

from tapeout.chip import Chip, load

from . import captured, store
from .executable import BOUND, Executable, build
from .shapes import OpenGraph, is_open
from .trace import lower_graph
from .values import Value

DEFAULT_CHIP, DEFAULT_TARGET = "solo", "sim"


@dataclass
class Compiled:
    """A graph for a chip.

    Attributes:
        key: its name in the cache.
        rest: results that are no tensors; {"strides": those that PyTorch gives it} where the
            executable gives one.
    """

    key: str
    executable: Executable
    rest: list[Any]

    def results(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        """All results of the graph, of those that the executable has given."""
        given = iter(tensors)
        return [
            _laid_out(next(given), tuple(r["strides"])) if isinstance(r, dict) else r
            for r in self.rest
        ]


def _laid_out(t: torch.Tensor, wanted: tuple[int, ...]) -> torch.Tensor:
    if t.stride() == wanted or 0 in wanted:  # 0: as PyTorch shows an expansion
        return t
    return torch.empty_strided(t.shape, wanted, dtype=t.dtype).copy_(t)


def compile_graph(gm: GraphModule, chip: Chip, kept: Sequence[int] = ()) -> Compiled:
    """Compiles a functional graph of ATen operators with static shapes, or finds what an earlier
    process made of the same one.

    Args:
        kept: numbers of inputs that are a model's parameters and buffers.
    """
    key = store.graph_key(gm, chip, kept)
    found = store.find(key, chip)
    if found is not None:
        return Compiled(key, *found)
    graph = lower_graph(gm)
    values = [o for o in graph.outputs if isinstance(o, Value)]
    executable = build(
        chip, graph.inputs, values, seeds=graph.seeds, updates=list(graph.updates.items()),
        kept=kept,
    )  # fmt: skip
    (end,) = gm.graph.find_nodes(op="output")
    rest = [
        {"strides": node.meta["val"].stride()} if isinstance(value, Value) else value
        for node, value in zip(end.args[0], graph.outputs, strict=True)
    ]
    store.keep(key, executable, rest)
    return Compiled(key, executable, rest)


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

    def runs(self, compiled: Compiled) -> Callable[..., list[Any]]:
        """A function of a compiled graph's inputs that runs it here."""
        return lambda *args: compiled.results(self.run(compiled.executable, args))


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


def _metadata() -> ViewAndMutationMeta | None:
    """What AOTAutograd knows of the graph in the making."""
    context = torch._guards.TracingContext.try_get()
    return None if context is None else context.fw_metadata


def _parameters() -> Sequence[int]:
    """Inputs of the forward graph in the making that are a model's own."""
    metadata = _metadata()
    return [] if metadata is None else metadata.static_input_indices


def _recalled(name: str, chip: Chip) -> Compiled | None:
    """What an earlier process made of a captured graph with this name."""
    key = store.linked(name)
    found = None if key is None else store.find(key, chip)
    return None if key is None or found is None else Compiled(key, *found)


def backend(
    gm: GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """The `torch.compile` backend.

    Options: `chip`, `target`, and `buckets`, sizes that dimensions of changing size are rounded up
    to (`shapes`).
    """
    options = dict(options or {})
    where = device(options.pop("chip", DEFAULT_CHIP), options.pop("target", DEFAULT_TARGET))
    buckets = options.pop("buckets", ())
    if options:
        raise ValueError(f"unknown options {', '.join(options)}: there are chip, target, buckets")

    name = captured.key(gm, example_inputs, where.chip)
    found = None if name is None else _recalled(name, where.chip)
    if found is not None:
        return torch._dynamo.disable(where.runs(found), reason="it is compiled")
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    from .operators import decompositions

    def compiler(
        graph: GraphModule, kept: Sequence[int] = (), sizes: Sequence[int] = ()
    ) -> Callable[..., Any]:
        if is_open(graph):

            def closed(graph: GraphModule, kept: Sequence[int]) -> Callable[..., list[Any]]:
                run = where.runs(compile_graph(graph, where.chip, kept))
                return lambda args: run(*args)

            return make_boxed_func(OpenGraph(graph, closed, kept, sizes))
        compiled = compile_graph(graph, where.chip, kept)
        if name is not None and captured.is_plain(_metadata()):
            store.link(name, compiled.key)
        return make_boxed_func(where.runs(compiled))

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
