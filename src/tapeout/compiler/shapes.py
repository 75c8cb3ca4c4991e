"""Graphs with shapes that PyTorch leaves open: each set of sizes is compiled when it comes.

With buckets, open sizes are first rounded up to the next bucket: inputs are filled up with zeros,
results cut back, so that a few programs serve all sizes. That is right where the parts along such
dimensions do not meet (a batch, or the tokens of a causal model); who compiles decides.
"""

import bisect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter
from torch.fx.experimental.proxy_tensor import make_fx

from .trace import line_of

log = logging.getLogger("tapeout")

Run = Callable[[Sequence[Any]], list[Any]]


class NoBucket(ValueError):
    """A size beyond the largest bucket."""


def is_open(gm: GraphModule) -> bool:
    """The graph has sizes among its inputs."""
    return any(
        isinstance(n, torch.SymInt)
        for node in gm.graph.find_nodes(op="placeholder")
        for n in _sizes(node.meta["val"])
    )


def _sizes(val: Any) -> Sequence[Any]:
    return val.shape if isinstance(val, torch.Tensor) else [val]


class OpenGraph:
    """A graph with open sizes, as one that is compiled for each set of them.

    Args:
        compile: makes what runs of a graph of tensors with known shapes, and of the numbers of
            those that are a model's own.
        kept: numbers of inputs that are a model's own.
        buckets: sizes to round up to; none: sizes are taken as they are.
    """

    def __init__(
        self, gm: GraphModule, compile: Callable[[GraphModule, Sequence[int]], Run],
        kept: Sequence[int], buckets: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.gm, self.compile, self.kept = gm, compile, set(kept)
        self.buckets = sorted(buckets)
        self.inputs = [n.meta["val"] for n in gm.graph.find_nodes(op="placeholder")]
        (end,) = gm.graph.find_nodes(op="output")
        self.results = [n.meta["val"] if isinstance(n, torch.fx.Node) else n for n in end.args[0]]
        self.runs: dict[tuple[int, ...], Run] = {}

    def __call__(self, *args: Any) -> list[Any]:
        sizes = self._bound(args)
        rounded = {name: self._bucket(name, n) for name, n in sizes.items()}
        key = tuple(rounded.values())
        given = [
            self._filled(a, val, rounded) for a, val in zip(args, self.inputs, strict=True)
        ]  # fmt: skip
        if key not in self.runs:
            log.info("compiling for the sizes %s", ", ".join(f"{n} = {s}" for n, s in
                                                             rounded.items()))  # fmt: skip
            self.runs[key] = self._compiled(given)
        if rounded != sizes:
            log.info("%s filled up to %s", list(sizes.values()), list(key))
        got = self.runs[key]([a for a in given if isinstance(a, torch.Tensor)])
        if rounded == sizes:
            return got
        return [self._cut(r, val, sizes) for r, val in zip(got, self.results, strict=True)]

    def _compiled(self, args: Sequence[Any]) -> Run:
        at = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]

        def concrete(*tensors: torch.Tensor) -> Any:
            new = list(args)
            for i, t in zip(at, tensors, strict=True):
                new[i] = t
            return Interpreter(self.gm).run(*new)

        mode = FakeTensorMode()
        fakes = [mode.from_tensor(args[i].detach(), static_shapes=True) for i in at]
        with mode, torch.fx.traceback.preserve_node_meta():
            graph = make_fx(concrete)(*fakes)
        return self.compile(graph, [n for n, i in enumerate(at) if i in self.kept])

    # --- sizes ------------------------------------------------------------------------------------

    def _bound(self, args: Sequence[Any]) -> dict[str, int]:
        """The open sizes by their names."""
        sizes: dict[str, int] = {}
        for a, val in zip(args, self.inputs, strict=True):
            for n, known in zip(_sizes(val), _sizes(a), strict=True):
                if isinstance(n, torch.SymInt) and n.node.expr.is_Symbol:
                    sizes[str(n.node.expr)] = int(known)
        return sizes

    def _bucket(self, name: str, size: int) -> int:
        if not self.buckets:
            return size
        at = bisect.bisect_left(self.buckets, size)
        if at == len(self.buckets):
            raise NoBucket(
                f"a size of {size}{self._place(name)} is beyond the largest bucket, "
                f"{self.buckets[-1]}: compile with a larger one in options['buckets'], or with none"
            )
        return self.buckets[at]

    def _place(self, name: str) -> str:
        """Which dimension has an open size, and the line of the model that reads the tensor."""
        for node, val in zip(
            self.gm.graph.find_nodes(op="placeholder"), self.inputs, strict=True
        ):  # fmt: skip
            for d, n in enumerate(_sizes(val)):
                lines = [line for user in node.users if (line := line_of(user))]
                if isinstance(val, torch.Tensor) and str(n) == name and lines:
                    return f", dimension {d} of the tensor that is read{lines[0]},"
        return ""

    def _filled(self, a: Any, val: Any, sizes: dict[str, int]) -> Any:
        if not isinstance(a, torch.Tensor):
            return _value(val, sizes)
        wanted = [_value(n, sizes) for n in val.shape]
        if list(a.shape) == wanted:
            return a
        whole = a.new_zeros(wanted)
        whole[tuple(slice(n) for n in a.shape)] = a
        return whole

    def _cut(self, result: Any, val: Any, sizes: dict[str, int]) -> Any:
        if not isinstance(result, torch.Tensor):
            return _value(val, sizes)
        return result[tuple(slice(_value(n, sizes)) for n in val.shape)]


def _value(n: Any, sizes: dict[str, int]) -> Any:
    """A size, with the open ones put in."""
    if not isinstance(n, torch.SymInt):
        return n
    expression = n.node.expr
    return int(expression.subs({s: sizes[str(s)] for s in expression.free_symbols}))
