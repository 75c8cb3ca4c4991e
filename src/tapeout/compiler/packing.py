"""Parameters as kernels want them: rearranged and split by the host, once, when they are uploaded.

What is computed of parameters only by moving elements, rounding to bf16 and taking the rest (how
float32 is split into bf16 parts) need not be computed on the chip in every run. A `Recipe` says how
the host makes it, with the chip's bits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tapeout.kernels import gemm
from tapeout.numerics import arith, encodings

from .values import Buffer, Map, Number, Result, Value, View, inputs_of

OPS, KERNELS = ("copy", "bf16", "sub"), ("assemble", "transpose")

Recipe = list[list[Any]]  # steps in JSON's types; arguments are numbers of earlier steps


class Movable:
    """Which values a host can make of some buffers."""

    def __init__(self, buffers: frozenset[Buffer]) -> None:
        self.buffers = buffers
        self.known: dict[Value, tuple[bool, bool]] = {}  # (can be made, of at least one buffer)

    def __call__(self, v: Value) -> bool:
        return isinstance(v, (Map, Result)) and self._of(v) == (True, True)

    def _of(self, v: Value) -> tuple[bool, bool]:
        if v not in self.known:
            self.known[v] = self._decide(v)
        return self.known[v]

    def _decide(self, v: Value) -> tuple[bool, bool]:
        if isinstance(v, Buffer):
            return v in self.buffers, v in self.buffers
        if isinstance(v, Number):
            return True, False
        if isinstance(v, View):
            return self._of(v.source)
        moves = isinstance(v, Result) and v.kernel.op in KERNELS
        if not moves and not (isinstance(v, Map) and v.op in OPS):
            return False, False
        args = [self._of(a) for a in inputs_of(v)]
        return all(can for can, _ in args), any(own for _, own in args)


@dataclass(frozen=True)
class Packed:
    """Memory that holds what a recipe makes of inputs.

    Attributes:
        offset: bytes from the start of the heap.
        bf16: elements are stored as bf16, not as fp32.
        sources: numbers of the inputs.
    """

    offset: int
    bf16: bool
    recipe: Recipe
    sources: tuple[int, ...]

    def make(self, tensors: Mapping[int, torch.Tensor]) -> np.ndarray:
        """The bytes for the inputs' values."""
        made: list[np.ndarray] = []
        for op, *args in self.recipe:
            made.append(_STEPS[op](made, tensors, *args))
        return np.ascontiguousarray(_bf16(made[-1]) if self.bf16 else _f32(made[-1]))


def tiled(
    recipe: Recipe, shape: tuple[int, int, int], lanes: int, *, turned: bool
) -> Recipe:  # fmt: skip
    """The recipe of matrices [count, K, N] continued: column tile by column tile, as `kernels.gemm`
    takes them with `tiled`. `turned`: they are given as [count, N, K]."""
    return [*recipe, ["tiles", len(recipe) - 1, list(shape), lanes, turned]]


def recipe_of(v: Value, inputs: Sequence[Buffer]) -> tuple[Recipe, tuple[int, ...]]:
    """How a movable value is made, and the inputs that it is made of."""
    numbers = {b: i for i, b in enumerate(inputs)}
    recipe: Recipe = []
    at: dict[Value, int] = {}

    def add(v: Value) -> int:
        if v in at:
            return at[v]
        if isinstance(v, Buffer):
            step: list[Any] = ["input", numbers[v]]
        elif isinstance(v, Number):
            step = ["number", v.value, list(v.shape)]
        elif isinstance(v, View):
            step = ["view", add(v.source), list(v.shape), list(v.strides), v.offset]
        elif isinstance(v, Result) and v.kernel.op == "transpose":
            step = ["turn", add(v.kernel.inputs[0])]
        elif isinstance(v, Result):
            parts = [
                [add(part), list(strides), offset]
                for part, (strides, offset) in zip(
                    v.kernel.inputs, v.kernel.params["places"], strict=True
                )
            ]
            step = ["assemble", list(v.shape), parts]
        else:
            assert isinstance(v, Map)
            args = [add(a) for a in v.args]
            rounds = v.op == "bf16" or v.dtype == torch.bfloat16
            step = [v.op, *args] if v.op == "sub" else ["bf16" if rounds else "copy", *args]
        recipe.append(step)
        at[v] = len(recipe) - 1
        return at[v]

    add(v)
    return recipe, tuple(sorted(step[1] for step in recipe if step[0] == "input"))


# A step gives an array of float32, or of uint16 where every element is the bits of a bf16.


def _input(_: list[np.ndarray], tensors: Mapping[int, torch.Tensor], number: int) -> np.ndarray:
    t = tensors[number].detach().contiguous()
    if t.dtype == torch.bfloat16:
        return t.view(torch.uint16).numpy()
    return t.float().numpy()


def _number(_: Any, __: Any, value: float, shape: list[int]) -> np.ndarray:
    return np.full(shape, value, np.float32)


def _view(
    made: list[np.ndarray], _: Any, source: int, shape: list[int], strides: list[int], offset: int
) -> np.ndarray:
    flat = np.ascontiguousarray(made[source]).reshape(-1)
    steps = [flat.itemsize * s for s in strides]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)


def _turn(made: list[np.ndarray], _: Any, source: int) -> np.ndarray:
    return np.swapaxes(made[source], -1, -2)


def _assemble(
    made: list[np.ndarray], _: Any, shape: list[int], parts: list[list[Any]]
) -> np.ndarray:
    given = [made[source] for source, _, _ in parts]
    narrow = all(x.dtype == np.uint16 for x in given)
    whole = np.zeros(shape, np.uint16 if narrow else np.float32)
    flat = whole.reshape(-1)
    for x, (_, strides, offset) in zip(given, parts, strict=True):
        steps = [flat.itemsize * s for s in strides]
        place = np.lib.stride_tricks.as_strided(flat[offset:], x.shape, steps)
        place[...] = x if narrow else _f32(x)
    return whole


def _copy(made: list[np.ndarray], _: Any, source: int) -> np.ndarray:
    return made[source]


def _round(made: list[np.ndarray], _: Any, source: int) -> np.ndarray:
    return _bf16(made[source])


def _sub(made: list[np.ndarray], _: Any, a: int, b: int) -> np.ndarray:
    return arith.sub(_f32(made[a]), _f32(made[b]))


def _tiles(
    made: list[np.ndarray], _: Any, source: int, shape: list[int], lanes: int, turned: bool
) -> np.ndarray:
    count, rows, columns = shape
    if turned:
        x = np.swapaxes(made[source].reshape(count, columns, rows), 1, 2)
    else:
        x = made[source].reshape(shape)
    parts = [gemm.tile_columns(matrix, lanes) for matrix in x]
    return np.concatenate(parts)


def _bf16(x: np.ndarray) -> np.ndarray:
    return x if x.dtype == np.uint16 else encodings.f32_to_bf16(x)


def _f32(x: np.ndarray) -> np.ndarray:
    return encodings.bf16_to_f32(x) if x.dtype == np.uint16 else x


_STEPS: dict[str, Callable[..., np.ndarray]] = {
    "input": _input, "number": _number, "view": _view, "copy": _copy, "bf16": _round, "sub": _sub,
    "assemble": _assemble, "turn": _turn, "tiles": _tiles,
}  # fmt: skip
