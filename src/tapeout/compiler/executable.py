"""A compiled graph: one program, the HBM it works in, and how tensors go in and out."""

import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xxhash

from tapeout.chip import Chip
from tapeout.isa import Program
from tapeout.kernels import convolution, gemm, indexed, rowwise
from tapeout.kernels.epilogue import Epilogue, plain
from tapeout.lang import ARGS_BASE, Builder, HbmTensor

from .fusion import fuse, tile_weights
from .packing import Movable, Packed, recipe_of, tiled
from .programs import Emitter
from .recompute import recomputed
from .schedule import Fold, Group, Launch, Schedule, made_by, plan, reads_of
from .simplify import regrouped, simplified
from .values import (
    INT_MAX,
    INTS,
    Buffer,
    Number,
    Result,
    Value,
    View,
    as_view,
    copy,
    dense_strides,
    hbm_format,
    inverse,
    item_bytes,
    topological,
)

ALIGN = 512
REUSED_BYTES = 1 << 20  # smaller tensors keep their memory: who takes it would wait for its readers
HEAP = ARGS_BASE + 1  # base register of the memory that all tensors of a graph lie in


BOUND: "weakref.WeakSet[Executable]" = weakref.WeakSet()  # those that a target holds


class RangeError(ValueError):
    """An integer that the chip's numbers do not hold."""


@dataclass(frozen=True)
class Port:
    """A tensor that goes in or out: where it lies in the heap.

    Attributes:
        shape: as it lies, row-major.
        order: if not (), the dimensions of the tensor that those of `shape` are.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    order: tuple[int, ...] = ()

    def lying(self, t: torch.Tensor) -> torch.Tensor:
        """A tensor given for the port, with its dimensions as they lie."""
        return t.permute(self.order) if self.order else t

    @property
    def bytes(self) -> int:
        return item_bytes(self.dtype) * int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Output:
    """A result: a view of what the program left at `port`, or of input number `given`."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    port: Port | None = None
    given: int = -1


@dataclass(eq=False)
class Executable:
    """A graph compiled for a chip; `run` takes and gives PyTorch tensors."""

    chip: Chip
    program: Program
    inputs: list[Port]
    seeds: list[Port]
    outputs: list[Output]
    constants: list[tuple[int, np.ndarray]]
    heap_bytes: int
    packed: list[Packed] = field(default_factory=list)
    kept: frozenset[int] = frozenset()  # inputs that are uploaded when their values change
    unread: frozenset[int] = frozenset()  # inputs that the program itself does not read
    written: tuple[int, ...] = ()  # inputs that a run changes
    last: Any = field(default=None, repr=False)  # what the target said of the last run
    _target: Any = field(default=None, repr=False)
    _handle: Any = field(default=None, repr=False)
    _base: int = 0
    _digests: dict[int, bytes] = field(default_factory=dict, repr=False)

    def run(self, target: Any, tensors: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
        """Runs on a target with the inputs' values; those that are None stay as they are."""
        if len(tensors) != len(self.inputs):
            raise ValueError(f"the graph takes {len(self.inputs)} tensors, not {len(tensors)}")
        self.bind(target)
        self.upload({i: t for i, t in enumerate(tensors) if t is not None})
        for port in self.seeds:
            target.write(self._base + port.offset, encode(torch.randint(0, INT_MAX, port.shape)))
        self.last = target.run(self._handle)
        for number in self.written:
            tensor = tensors[number]
            if tensor is not None:
                self._mirror(number, tensor)
        results = []
        for out in self.outputs:
            if out.port is None:
                given = tensors[out.given]
                if given is None:
                    given = self.read(out.given)
                whole = self.inputs[out.given].lying(given).contiguous()
            else:
                raw = target.read(self._base + out.port.offset, out.port.bytes)
                whole = decode(raw, out.port.shape, out.port.dtype)
            results.append(whole.as_strided(out.shape, out.strides, out.offset))
        return results

    def timing(self, target: Any) -> Any:
        """What the target says of a run without values: cycles, and what each part did; `sim`."""
        self.bind(target)
        return target.run(self._handle, functional=False)

    def upload(self, tensors: Mapping[int, torch.Tensor]) -> None:
        """Gives inputs, by their numbers, values that they keep; after `bind`."""
        changed = set()
        for number, tensor in tensors.items():
            if number in self.kept or number in self.written:
                digest = _digest(tensor)
                if self._digests.get(number) == digest:
                    continue
                self._digests[number] = digest
            changed.add(number)
            self.write(number, tensor)
        for packed in self.packed:
            if changed & set(packed.sources):
                given = {i: self.inputs[i].lying(tensors[i]) for i in packed.sources}
                self._target.write(self._base + packed.offset, packed.make(given))

    def _mirror(self, number: int, tensor: torch.Tensor) -> None:
        """Copies what a run left in an input to the host's tensor; on the chip it is current."""
        with torch.no_grad():
            tensor.copy_(self.read(number))
        self._digests[number] = _digest(tensor)

    def write(self, number: int, tensor: torch.Tensor) -> None:
        """Gives input `number` a value, without what is packed of it; after `bind`."""
        port = self.inputs[number]
        tensor = port.lying(tensor)
        if (tuple(tensor.shape), tensor.dtype) != (port.shape, port.dtype):
            raise ValueError(
                f"input {number} is {port.dtype} {port.shape}, "
                f"not {tensor.dtype} {tuple(tensor.shape)}"
            )
        if port.bytes and number not in self.unread:
            self._target.write(self._base + port.offset, encode(tensor))

    def read(self, number: int) -> torch.Tensor:
        """The value of input `number` as it is now."""
        port = self.inputs[number]
        raw = self._target.read(self._base + port.offset, port.bytes)
        t = decode(raw, port.shape, port.dtype)
        return t.permute(inverse(port.order)) if port.order else t

    def release(self) -> None:
        """Lets go of the target."""
        self._target = self._handle = None

    def bind(self, target: Any) -> None:
        """Takes memory of the target and loads the program, once."""
        if self._target is target:
            return
        self._target = target
        self._digests.clear()
        BOUND.add(self)
        self._base = target.allocate(max(self.heap_bytes, ALIGN))
        args = target.allocate(64)
        for offset, data in self.constants:
            target.write(self._base + offset, data)
        self._handle = target.load(
            self.program,
            {ARGS_BASE: (args, 64, False), HEAP: (self._base, max(self.heap_bytes, ALIGN), True)},
        )


def _digest(t: torch.Tensor) -> bytes:
    """What tells a tensor's value from another's: data can change without a trace elsewhere."""
    raw = t.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return xxhash.xxh3_128_digest(raw)


def encode(t: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor as the chip holds it."""
    t = t.detach().contiguous()
    if t.dtype == torch.float32:
        return t.numpy()
    if t.dtype == torch.bfloat16:
        return t.view(torch.int16).numpy()
    if t.dtype == torch.bool:
        return np.where(t.numpy(), np.uint16(0x3F80), np.uint16(0))
    if t.dtype in INTS:
        values = t.numpy()
        if values.size and max(abs(int(values.min())), abs(int(values.max()))) > INT_MAX:
            raise RangeError(
                f"integers on the chip go up to {INT_MAX} in magnitude, a tensor {tuple(t.shape)} "
                f"holds {int(values.min())}..{int(values.max())}: scale it, or keep it on the host"
            )
        return values.astype(np.float32)
    raise TypeError(f"the chip has no {t.dtype}")


def decode(raw: np.ndarray, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The tensor of bytes that the chip left."""
    raw = np.ascontiguousarray(raw)
    if dtype == torch.float32:
        return torch.from_numpy(raw.view(np.float32).reshape(shape))
    if dtype == torch.bfloat16:
        return torch.from_numpy(raw.view(np.int16).reshape(shape)).view(torch.bfloat16)
    if dtype == torch.bool:
        return torch.from_numpy((raw.view(np.uint16) & 0x7FFF).astype(bool).reshape(shape))
    values = raw.view(np.float32).reshape(shape)
    if values.size and not bool((np.abs(values) <= INT_MAX).all()):
        raise RangeError(
            f"integers on the chip go up to {INT_MAX} in magnitude, a result {shape} does not fit"
        )
    return torch.from_numpy(values.astype(np.int64)).to(dtype)


def build(
    chip: Chip,
    inputs: list[Buffer],
    outputs: list[Value],
    *,
    seeds: Sequence[Buffer] = (),
    updates: Sequence[tuple[Buffer, Value]] = (),
    kept: Collection[int] = (),
) -> Executable:
    """Compiles expressions over the inputs.

    Args:
        seeds: further inputs, integers that the host draws for each run.
        updates: inputs with what they hold after a run.
        kept: numbers of inputs that seldom change (parameters): the host uploads them only when
            they do, and as kernels want them.
    """
    everything = simplified([*outputs, *(value for _, value in updates)])
    outputs, changes = everything[: len(outputs)], everything[len(outputs) :]
    updates = [(b, value) for (b, _), value in zip(updates, changes, strict=True)]
    ends: dict[Value, Buffer] = {}
    views = [_shown(v) for v in outputs]
    for view in views:
        if view.source not in inputs and view.source not in ends and view.numel:
            source = view.source
            ends[source] = Buffer(source.shape, source.dtype, f"out{len(ends)}")
    changed = frozenset(b for b, _ in updates)
    movable = Movable(frozenset(inputs[i] for i in kept) - changed)
    wanted = [*ends.items(), *((value, b) for b, value in updates)]
    most = rowwise.most_values(chip)
    schedule = plan(wanted, changed, movable, most)
    again = recomputed(schedule)
    if again is not None:
        wanted = list(zip(regrouped(again), (b for _, b in wanted), strict=True))
        schedule = plan(wanted, changed, movable, most)
    k = Builder(chip, weight_slots=2)
    tiles = tile_weights(schedule, lambda v: v not in schedule.ends and movable(v))
    fuse(schedule, k, changed)
    heap = _Heap()
    for b in (*inputs, *seeds):
        heap.place(b, writable=b in changed)
    constants = []
    for v in topological(list(schedule.stored)):
        if isinstance(v, Buffer) and v.data is not None:
            heap.place(v, writable=False)
            constants.append((heap.at[v].offset, v.data))
    packed = []
    for v, b in schedule.stored.items():
        if v in schedule.ends:
            heap.place(b, writable=True, beside=_scratch_bytes(v))
        elif movable(v):
            heap.place(b, writable=False)
            recipe, sources = recipe_of(v, inputs)
            if v in tiles:
                shape, turned = tiles[v]
                recipe = tiled(recipe, shape, chip.lanes, turned=turned)
            bf16 = item_bytes(b.dtype) == 2
            packed.append(Packed(heap.at[b].offset, bf16, recipe, sources))
    _place_others(heap, schedule)
    read = {view.source for step in schedule.steps for view in reads_of(step, schedule.roots)}
    shown = {view.source for view in views}
    unread = frozenset(
        i for i, b in enumerate(inputs) if b not in read and b not in shown and b not in changed
    )
    k.segment("heap", heap.size, writable=True)
    emitter = Emitter(schedule, chip.lanes, heap.at)
    for number, step in enumerate(schedule.steps):
        with k.scope("graph", f"step {number}"):  # so that traces tell them apart
            _emit(k, emitter, step)
    program = k.build()
    results = []
    for view in views:
        where = (view.shape, view.strides, view.offset)
        if view.source in ends:
            results.append(Output(*where, port=_port(ends[view.source], heap)))
        elif view.numel:
            given = next(i for i, b in enumerate(inputs) if b is view.source)
            results.append(Output(*where, given=given))
        else:
            results.append(Output(*where, port=Port(view.shape, view.dtype, 0)))
    return Executable(
        chip, program, [_port(b, heap) for b in inputs], [_port(b, heap) for b in seeds],
        results, constants, heap.size, packed, frozenset(kept), unread,
        tuple(i for i, b in enumerate(inputs) if b in changed),
    )  # fmt: skip


def _shown(v: Value) -> View:
    """A result as a view of what is stored: the host can show most views itself."""
    view = as_view(v)
    backwards = any(s < 0 for s in view.strides)
    if backwards or isinstance(v, Number) or 2 * v.numel < view.source.numel or not v.numel:
        return as_view(copy(v))
    return view


def _port(b: Buffer, heap: "_Heap") -> Port:
    return Port(b.shape, b.dtype, heap.at[b].offset, b.order)


class _Heap:
    """Places buffers in the order they come; memory that is given back is taken again."""

    def __init__(self) -> None:
        self.at: dict[Buffer, HbmTensor] = {}
        self.size = 0
        self.free: list[HbmTensor] = []  # the one that was given back first comes first

    def place(self, b: Buffer, *, writable: bool, beside: int = 0) -> None:
        """Takes memory for a buffer, and for `beside` more bytes behind it."""
        if b in self.at:
            return
        nbytes = b.bytes + beside
        fits = [t for t in self.free if nbytes <= t.bytes <= 2 * nbytes] if writable else []
        if fits:  # under its old name: who writes it waits for those who read it
            self.at[b] = min(fits, key=lambda t: t.bytes)
            self.free.remove(self.at[b])
            return
        name = f"{b.name}@{self.size}" if writable else None
        self.at[b] = HbmTensor(base=HEAP, offset=self.size, bytes=nbytes, resource=name)
        self.size += -(-max(nbytes, 1) // ALIGN) * ALIGN

    def give_back(self, b: Buffer) -> None:
        if self.at[b].bytes >= REUSED_BYTES:
            self.free.append(self.at[b])


def _place_others(heap: _Heap, schedule: Schedule) -> None:
    """Places what steps leave for later steps, each for as long as it is read."""
    steps = schedule.steps
    last: dict[Value, int] = {}
    alive: list[Value] = []
    for number, step in enumerate(steps):
        last |= {view.source: number for view in reads_of(step, schedule.roots)}
    for number, step in enumerate(steps):
        made = [v for v in made_by(step) if v in schedule.stored]
        others = [v for v in made if schedule.stored[v] not in heap.at]
        for v in made:
            heap.place(schedule.stored[v], writable=True, beside=_scratch_bytes(v))
        for v in others:
            last.setdefault(v, number)
        alive += others
        for v in [v for v in alive if last[v] <= number]:
            heap.give_back(schedule.stored[v])
            alive.remove(v)


def _emit(k: Builder, emitter: Emitter, step: Group | Fold | Launch) -> None:
    if isinstance(step, Group):
        for program in emitter.group(step):
            rowwise.run(k, program)
    elif isinstance(step, Fold):
        program, value, count, place = emitter.fold(step)
        rowwise.fold(k, program, value, step.root.op, count, place)
    else:
        KERNELS[step.kernel.op](k, emitter, step)


def _dense(emitter: Emitter, v: Value) -> HbmTensor:
    """Where a kernel's input lies, row-major."""
    view = as_view(v)
    where = emitter.hbm[emitter.buffer_of(view.source)]
    return where.beyond(view.offset * item_bytes(v.dtype))


def _epilogue(emitter: Emitter, step: Launch, shape: tuple[int, int]) -> Epilogue:
    """What becomes of a product [M, N]: what the step has for it, or it is stored."""
    (result,) = step.results
    if step.finish is not None:
        found = emitter.epilogue(step.finish, result, shape)
        assert found is not None
        return found
    out = emitter.hbm[emitter.schedule.stored[result]]
    return plain(shape, out, hbm_format(result.dtype))


def _pairs(emitter: Emitter, step: Launch) -> list[tuple[HbmTensor, HbmTensor]]:
    """Left and right factors of the products that are added."""
    terms = [_dense(emitter, v) for v in step.kernel.inputs]
    return list(zip(terms[::2], terms[1::2], strict=True))


def _mm(k: Builder, emitter: Emitter, step: Launch) -> None:
    """out[b] = sum of a[b] @ b[b] over pairs of inputs (bf16, dense)."""
    (batch, m, n, depth), left = step.kernel.params["shape"], step.kernel.params["left"]
    assert step.plan is None or isinstance(step.plan, gemm.Plan)
    products = [
        [
            (a.beyond(2 * (i % left) * m * depth), b.beyond(2 * i * depth * n))
            for a, b in _pairs(emitter, step)
        ]
        for i in range(batch)
    ]
    (result,) = step.results
    first, *more = products[0]
    stored = step.finish is None
    gemm.gemm(
        k, *first, emitter.hbm[emitter.schedule.stored[result]] if stored else None, (m, n, depth),
        out=hbm_format(result.dtype), more=more, plan=step.plan, tiled=step.tiled,
        transposed=step.kernel.params["transposed"] and not step.tiled,
        epilogue=None if stored else _epilogue(emitter, step, (m, n)), others=products[1:],
    )  # fmt: skip


def _convolution(k: Builder, emitter: Emitter, step: Launch) -> None:
    """A sum of convolutions of pairs of inputs (bf16, dense, channels last)."""
    shape = step.kernel.params["shape"]
    assert step.plan is None or isinstance(step.plan, convolution.Plan)
    convolution.convolve(
        k, _pairs(emitter, step), shape, _epilogue(emitter, step, shape.matrix),
        tiled=step.tiled, plan=step.plan,
    )  # fmt: skip


def _transpose(k: Builder, emitter: Emitter, step: Launch) -> None:
    """out[b] = in[b] turned, of bf16 matrices."""
    (result,) = step.results
    source = _dense(emitter, step.kernel.inputs[0])
    out = emitter.hbm[emitter.schedule.stored[result]]
    batch, columns, rows = result.shape
    for i in range(batch):
        at = 2 * i * rows * columns
        gemm.transpose(k, source.beyond(at), out.beyond(at), rows, columns)


def _assemble(k: Builder, emitter: Emitter, step: Launch) -> None:
    (result,) = step.results
    places = step.kernel.params["places"]
    for value, (strides, offset) in zip(step.kernel.inputs, places, strict=True):
        for program in emitter.assign(value, result, strides, offset):
            rowwise.run(k, program)


def _scratch_bytes(v: Value) -> int:
    """What a kernel needs behind its result."""
    makes = isinstance(v, Result) and v.kernel.op == "to_int32"
    return 2 * v.numel if makes else 0


def _to_int32(k: Builder, emitter: Emitter, step: Launch) -> None:
    (result,) = step.results
    out = emitter.hbm[emitter.schedule.stored[result]]
    source = _dense(emitter, step.kernel.inputs[0])
    indexed.to_int32(k, source, out, out.beyond(4 * result.numel), result.numel)


def _gather(k: Builder, emitter: Emitter, step: Launch) -> None:
    (result,) = step.results
    table, index = (_dense(emitter, v) for v in step.kernel.inputs)
    width = step.kernel.params["width"]
    indexed.gather(
        k, table, index, emitter.hbm[emitter.schedule.stored[result]], count=result.shape[0],
        width=width, pitch=width * item_bytes(result.dtype), format=hbm_format(result.dtype),
    )  # fmt: skip


def _scatter(k: Builder, emitter: Emitter, step: Launch) -> None:
    """The table is copied first, then rows of the copy are replaced."""
    (result,) = step.results
    table, index, source = step.kernel.inputs
    for program in emitter.assign(table, result, dense_strides(table.shape), 0):
        rowwise.run(k, program)
    width = step.kernel.params["width"]
    out = emitter.hbm[emitter.schedule.stored[result]]
    indexed.scatter(
        k, _dense(emitter, source), _dense(emitter, index), out, count=index.numel, width=width,
        pitch=width * item_bytes(result.dtype), format=hbm_format(result.dtype),
    )  # fmt: skip


KERNELS = {
    "mm": _mm, "convolution": _convolution, "assemble": _assemble, "to_int32": _to_int32,
    "gather": _gather, "scatter": _scatter, "transpose": _transpose,
}  # fmt: skip
