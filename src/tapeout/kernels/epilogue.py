"""What becomes of a product before it is stored: vector maps on its rows while they are in acc.

An `Epilogue` is a row program over the product [M, N], which is one of its loads. Other operands
are tensors [M, N], which come by DMA beside the product's own, and vectors [N], which all rows
share.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tapeout.chip import Chip
from tapeout.isa import Kind
from tapeout.isa.dma import HbmFormat
from tapeout.lang import Builder, ChipTooSmall, HbmTensor, Tensor
from tapeout.lang.builder import VMEM_BLOCK

from .rings import Rings
from .rowblock import Block, Region, padded_rows
from .rowprogram import FULL, STAT, VECTOR, Place, RowProgram, Step, steps_of
from .rows import load_rows, spm_kind, store_rows
from .wideblock import copied_apart

MOST_TEMPORARIES = 8
MOST_TENSORS = 4  # [M, N] that go in and out: each takes two slots of spm
ROWS_MAX = 1023  # of one vector instruction on a part of a block


@dataclass(frozen=True)
class Epilogue:
    """A row program over a product.

    Attributes:
        program: dims (M,) and width N. Loads and stores are dense [M, N]; loads may be vectors [N].
        product: the load that stands for the product.
    """

    program: RowProgram
    product: int

    @property
    def operands(self) -> list[int]:
        """Loads [M, N] beside the product."""
        nodes = self.program.nodes
        return [
            i for i, n in enumerate(nodes)
            if n.op == "load" and n.form == FULL and i != self.product
        ]  # fmt: skip

    @property
    def formats(self) -> list[HbmFormat]:
        """How the tensors [M, N] that go in and out beside the product lie in HBM."""
        places = [self.program.nodes[i].place for i in self.operands]
        return [p.format for p in (*places, *(p for _, p in self.program.stores)) if p is not None]


def plain(shape: tuple[int, int], out: HbmTensor, fmt: HbmFormat) -> Epilogue:
    """The product [M, N] is stored, row-major, as it is."""
    m, n = shape
    program = RowProgram((m,), n)
    product = program.load(Place(out, fmt, (n, 1)))
    program.stores.append((product, Place(out, fmt, (n, 1))))
    return Epilogue(program, product)


def possible(epilogue: Epilogue) -> bool:
    """Whether `Finish` can do it; else the product is stored first."""
    program = epilogue.program
    nodes, dense = program.nodes, (program.width, 1)
    stored = {n for n, _ in program.stores}
    if len(program.dims) != 1 or len(stored) != len(program.stores):
        return False
    if any(n.form == STAT or n.op in ("reduce", "bf16") for n in nodes):
        return False
    if any(nodes[n].form != FULL for n in stored) or stored & set(epilogue.operands):
        return False
    full = [nodes[i].place for i in (*epilogue.operands, epilogue.product)]
    full += [p for _, p in program.stores]
    vectors = [n.place for n in nodes if n.place is not None and n.form == VECTOR]
    return (
        len(epilogue.formats) <= MOST_TENSORS
        and all(p is not None and p.strides == dense for p in full)
        and all(p.strides[-1] == 1 for p in vectors)
        and _temporaries(epilogue, steps_of(program, stored)) <= MOST_TEMPORARIES
    )


def _temporaries(epilogue: Epilogue, steps: Sequence[Step]) -> int:
    """How many values [M, N] that are neither loaded nor stored are alive at once."""
    stored = {n for n, _ in epilogue.program.stores}
    full = [s for s in steps if s.form == FULL]
    last = {a: i for i, s in enumerate(full) for a in s.reads}
    alive: set[int] = set()
    most = 0
    for i, s in enumerate(full):
        if s.node not in stored:
            alive.add(s.node)
        # What lies in spm or acc has one port: to be read twice it is copied.
        most = max(most, len(alive) + len(s.nodes) - len(set(s.nodes)))
        alive = {n for n in alive if last.get(n, -1) > i}
    return most


def vmem_sizes(chip: Chip, epilogue: Epilogue, rows: int, tiles: int) -> tuple[int, int] | None:
    """(columns of blocks whose vectors are held, rows of a part) for blocks of `rows` x `tiles`.

    None if the epilogue needs nothing of vmem. ChipTooSmall where not even one row fits.
    """
    steps = steps_of(epilogue.program, {n for n, _ in epilogue.program.stores})
    temporaries = _temporaries(epilogue, steps)
    shared = len({s.node for s in steps if s.form == VECTOR} | _vectors_read(epilogue, steps))
    if not temporaries and not shared:
        return None
    quarter, half = _division(chip.vmem.rows // VMEM_BLOCK * VMEM_BLOCK)
    columns = quarter // (max(1, shared) * padded_rows(tiles))
    room = half // max(1, temporaries) // VMEM_BLOCK * VMEM_BLOCK // tiles
    if columns < 1 or room < 1:
        raise ChipTooSmall(
            f"vmem has {chip.vmem.rows} rows: too few for an epilogue with {temporaries} "
            f"temporaries and {shared} vectors of {tiles} tiles"
        )
    parts = -(-rows // min(room, ROWS_MAX)) if temporaries else 1
    return columns, -(-rows // parts)


def _vectors_read(epilogue: Epilogue, steps: Sequence[Step]) -> set[int]:
    nodes = epilogue.program.nodes
    reads = {a for s in steps for a in s.nodes}
    return {n for n in reads if nodes[n].op == "load" and nodes[n].form == VECTOR}


def _division(rows: int) -> tuple[int, int]:
    """(rows for vectors, rows for the temporaries of a part)."""
    quarter = rows // 4 // VMEM_BLOCK * VMEM_BLOCK
    return quarter, (rows - quarter) // 2 // VMEM_BLOCK * VMEM_BLOCK


class Finish:
    """Traces an epilogue, block by block: `fetch` before the block's product, `store` behind it."""

    def __init__(self, k: Builder, epilogue: Epilogue, rows: int, width: int, rings: Rings) -> None:
        """For blocks of up to `rows` x `width`, whose tensors join the kernel's rings."""
        self.k, self.p, self.epilogue = k, epilogue.program, epilogue
        self.lanes = k.chip.lanes
        self.rows, self.tiles = rows, -(-width // self.lanes)
        self.keep = {n for n, _ in self.p.stores}
        self.scalar_loads: list[int] = []
        steps = steps_of(self.p, self.keep)
        self.shared_steps = [s for s in steps if s.form == VECTOR]
        self.steps = [s for s in steps if s.form == FULL]
        if epilogue.product in self.keep:
            self.steps.append(Step(epilogue.product, FULL, "", (epilogue.product,)))
        self.last_use = {a: i for i, s in enumerate(self.steps) for a in s.reads}
        self.loads = {
            n: rings.make(spm_kind(self._place(n).format), rows, width, 2)
            for n in epilogue.operands
        }
        self.outs = {n: rings.make(spm_kind(p.format), rows, width, 2) for n, p in self.p.stores}
        self.turn = 0
        self.skip = 0  # elements of products before this one
        self.level = [0] * len(self.p.nodes)  # of reductions, which there are none of
        self.read = _vectors_read(epilogue, steps)
        self.vectors: dict[int, Tensor] = {}  # a part is given its own
        self.columns: dict[tuple[int, int], dict[int, Tensor]] = {}
        self.vmem: Tensor | None = None
        self.regions = [Region(k, 0, 0)]
        self.sub_rows = rows
        self._take_vmem()

    def _take_vmem(self) -> None:
        """Vectors lie in a quarter of vmem, the temporaries of two parts of a block in the rest."""
        k = self.k
        sizes = vmem_sizes(k.chip, self.epilogue, self.rows, self.tiles)
        if sizes is None:
            return
        self.vmem = k.tensor(Kind.VMEM, k.chip.vmem.rows // VMEM_BLOCK * VMEM_BLOCK, 1)
        self.columns_held, self.sub_rows = sizes
        quarter, half = _division(self.vmem.rows)
        first = self.vmem.base + quarter
        self.shared = Region(k, self.vmem.base, quarter)
        self.regions = [Region(k, first, half), Region(k, first + half, half)]

    def _place(self, node: int) -> Place:
        place = self.p.nodes[node].place
        assert place is not None
        return place

    def fetch(self, row: int, rows: int, column: int, width: int) -> None:
        """Loads the operands of a block."""
        for n, slots in self.loads.items():
            place, slot = self._place(n), slots[self.turn % 2]
            load_rows(
                self.k, replace(slot, rows=rows, width=width), self._at(place, row, column), width,
                self.lanes, place.size * self.p.width, queue=self.k.vmem_queue, fmt=place.format,
            )  # fmt: skip

    def store(self, acc: Tensor, row: int, rows: int, column: int, width: int) -> None:
        """Computes and stores a block whose product is in `acc`."""
        acc = replace(acc, width=width)
        held = {self.epilogue.product: acc}
        held |= {n: replace(s[self.turn % 2], width=width) for n, s in self.loads.items()}
        outs = {n: replace(s[self.turn % 2], width=width) for n, s in self.outs.items()}
        span = (column // self.lanes, -(-(column + width) // self.lanes))
        shared = self._vectors(span)
        works = []
        for number, at in enumerate(range(0, rows, self.sub_rows)):
            part = _Part(self, number, row + at, min(self.sub_rows, rows - at))
            part.held = {n: t.rows_from(at, part.count) for n, t in held.items()} | shared
            part.outs = {n: t.rows_from(at, part.count) for n, t in outs.items()}
            works.append(part.compute(span))
        for i in range(0, len(works), 2):
            for _ in itertools.zip_longest(*works[i : i + 2]):  # one hides the other's waiting
                pass
        for n, place in self.p.stores:
            store_rows(
                self.k, replace(outs[n], rows=rows), self._at(place, row, column), width,
                place.size * self.p.width, place.format, queue=self.k.store_queue,
            )  # fmt: skip
        self.turn += 1

    def _at(self, place: Place, row: int, column: int) -> HbmTensor:
        return place.at(self.skip + row * self.p.width + column)

    def _vectors(self, span: tuple[int, int]) -> dict[int, Tensor]:
        """Vectors of the columns, loaded and computed when they are first asked for."""
        if self.vmem is None or span in self.columns:
            return self.columns.get(span, {})
        if len(self.columns) >= self.columns_held:
            for t in self.columns.pop(next(iter(self.columns))).values():
                self.shared.free(t)
        block = Block(self, [self.shared], 0, 0, 1, 1, self.tiles)
        for n in sorted(self.read):
            block.fetch(n, span)
        for step in self.shared_steps:
            block.step(step, span, first=True)
        self.columns[span] = block.held
        return block.held

    def load_queue(self) -> int:
        """The queue that vectors come by."""
        return self.k.vmem_queue

    def free(self) -> None:
        """Gives back what it has beside the rings."""
        if self.vmem is not None:
            self.k.free(self.vmem)


class _Part(Block):
    """Rows of a block."""

    finish: Finish
    outs: dict[int, Tensor]

    def __init__(self, finish: Finish, number: int, row: int, count: int) -> None:
        size, tiles = finish.sub_rows, finish.tiles
        super().__init__(finish, finish.regions, number, row, row + count, size, tiles)
        self.finish = finish

    def compute(self, span: tuple[int, int]) -> Iterator[None]:
        """Step by step."""
        finish, temporary = self.finish, set[int]()
        for i, step in enumerate(finish.steps):
            if step.node not in self.outs:
                temporary.add(step.node)
            self.step(step, span, first=True)
            for n in [n for n in temporary if finish.last_use.get(n, -1) <= i]:
                self.free(self.held[n])
                temporary.discard(n)
            yield

    def _apart(
        self, operands: list[Tensor | float], d: Tensor | float | None, spare: list[Tensor],
        span: tuple[int, int],
    ) -> tuple[list[Tensor | float], Tensor | float | None]:  # fmt: skip
        return copied_apart(self.k, operands, d, spare, lambda _: self._tensor(FULL, span))

    def _result(self, step: Step, span: tuple[int, int]) -> Tensor:
        if step.node not in self.outs:
            return super()._result(step, span)
        self.held[step.node] = self.outs[step.node]
        return self.outs[step.node]
