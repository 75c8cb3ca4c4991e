"""Random vector maps that are legal by construction: operands and results keep to places apart."""

import random
from dataclasses import dataclass

import numpy as np

from tapeout.chip import Chip
from tapeout.isa import Addr, Count, Kind, Operand, vpu
from tapeout.isa.vpu import Combine, Combine2, Function, Map, Mask, Reduce

_IN_SPM = (Kind.SPM_BF16, Kind.SPM_FP32)


@dataclass(frozen=True)
class Place:
    """Rows first .. end - 1 of a memory, for one operand or result."""

    first: int
    end: int


class Maps:
    """Draws maps: operands read stripes of their own, results write others; vmem likewise."""

    def __init__(self, seed: int, chip: Chip) -> None:
        self.rng = random.Random(seed)
        self.chip = chip
        spm, acc = chip.spm.rows_per_stripe, chip.acc.rows_per_stripe
        self.vmem_read = Place(0, chip.vmem.rows // 2)
        self.vmem_write = Place(chip.vmem.rows // 2, chip.vmem.rows * 3 // 4)
        self.vmem_reduce = Place(chip.vmem.rows * 3 // 4, chip.vmem.rows)
        self.spm = {name: Place(n * 2 * spm, (n + 1) * 2 * spm) for n, name in enumerate("abcd")}
        self.acc = {name: Place(n * acc, (n + 1) * acc) for n, name in enumerate("abcd")}
        self.spm["dst"] = Place(8 * spm, chip.spm.rows)
        self.acc["dst"] = Place(4 * acc, chip.acc.rows)

    def draw(self, **fixed: object) -> Map:
        """One map; `fixed` fields are as given."""
        while True:
            try:
                return self._map(fixed)
            except ValueError:  # no room for the rows that were drawn
                continue

    def _map(self, fixed: dict) -> Map:
        rng, lanes = self.rng, self.chip.lanes
        tiles = rng.choice([1, 1, 2, 3, 5])
        rows = rng.choice([1, 1, 2, 3, 4, 7, lanes + 3])
        combine = fixed.get("combine", rng.choice(list(Combine)))
        combine2 = fixed.get("combine2", rng.choice([Combine2.U, *Combine2]))
        reduce = fixed.get("reduce", rng.choice([*[Reduce.NONE] * 4, *Reduce]))
        mask = fixed.get("mask", rng.choice([*[Mask.NONE] * 3, *Mask]))
        three = combine in (Combine.FMA, Combine.FMS, Combine.SELECT)
        rows_in = [Kind.SPM_BF16, Kind.SPM_FP32, Kind.VMEM, Kind.ACC]
        others = [*rows_in, Kind.ROW_SCALAR, Kind.IMMEDIATE]
        first = rows_in if mask else [*rows_in, Kind.IMMEDIATE]
        full = tiles * lanes
        fields: dict = {
            "tiles": tiles,
            "rows": Count(rows),
            "width": Count(rng.choice([0, 0, full, rng.randrange(1, full + 1)])),
            "a": self._operand("a", first, tiles, rows),
            "roll": rng.choice([0, 0, rng.randrange(lanes)]),
            "xor": rng.choice([0, 0, rng.randrange(lanes)]),
            "lane_begin": rng.choice([0, 0, rng.randrange(lanes + 1)]),
            "lane_end": rng.choice([0, 0, rng.randrange(lanes + 1)]),
            "combine": combine,
            "function": rng.choice([*[Function.NONE] * 8, *Function]),
            "combine2": combine2,
            "mask": mask,
            "reduce": reduce,
        }
        if combine != Combine.A:
            fields["b"] = self._operand("b", others, tiles, rows)
        if three:
            fields["c"] = self._operand("c", others, tiles, rows)
        if combine2 != Combine2.U:
            fields["d"] = self._operand("d", others, tiles, rows)
        results = [*rows_in, *([Kind.NONE] * 2 if reduce else [])]
        fields["dst"] = self._result(results, tiles, rows)
        if mask == Mask.BELOW:
            fields |= {"limit": rng.randrange(-2, full + 2), "limit_step": rng.randrange(2)}
        if mask == Mask.NOT_INDEX:
            fields["limit"] = self._packed(self.vmem_read, rows)
        if reduce:
            fields["reduce_dst"] = Addr(self._packed(self.vmem_reduce, rows))
            fields["reduce_accumulate"] = reduce != Reduce.ARGMAX and rng.random() < 0.4
        return vpu.Map(**(fields | fixed))

    def _packed(self, place: Place, rows: int) -> int:
        return self.rng.randrange(place.first, place.end - (rows - 1) // self.chip.lanes)

    def _place(self, name: str, kind: Kind) -> Place:
        if kind in _IN_SPM:
            return self.spm[name]
        if kind == Kind.ACC:
            return self.acc[name]
        return self.vmem_write if name == "dst" else self.vmem_read

    def _fit(self, kind: Kind, place: Place, tile: int, row: int, tiles: int, rows: int) -> Operand:
        pair = 2 if kind == Kind.SPM_FP32 else 1
        span = (tiles - 1) * tile * pair + (rows - 1) * row * pair + pair
        if kind == Kind.ROW_SCALAR:
            span = (tiles - 1) * tile + (rows - 1) // self.chip.lanes + 1
        start = self.rng.randrange(place.first, place.end - span + 1)
        start -= (start % 2) if pair == 2 else 0
        return Operand(kind, start, tile_stride=pair * tile, row_stride=pair * row)

    def _operand(self, name: str, kinds: list[Kind], tiles: int, rows: int) -> Operand:
        rng, kind = self.rng, self.rng.choice(kinds)
        if kind == Kind.IMMEDIATE:
            values = [0.0, -0.0, 1.0, 0.125, -3.0, float("inf"), float("nan"), 2.0**-126]
            return Operand(kind, value=rng.choice(values))
        strides = [0, 1, 1, 2, 3, 4, 5, 8]
        return self._fit(kind, self._place(name, kind), rng.choice(strides), rng.choice(strides),
                         tiles, rows)  # fmt: skip

    def _result(self, kinds: list[Kind], tiles: int, rows: int) -> Operand:
        rng, kind = self.rng, self.rng.choice(kinds)
        if kind == Kind.NONE:
            return Operand()
        step = rng.choice([1, 1, 2, 3, 4])
        apart = [(step * rows + rng.randrange(3), step), (step, step * tiles + rng.randrange(3))]
        tile, row = rng.choice(apart)
        return self._fit(kind, self._place("dst", kind), tile, row, tiles, rows)

    def contents(self) -> dict[str, np.ndarray]:
        """Values for all memories: any bits, special ones, and ones of everyday size."""
        rng = np.random.default_rng(self.rng.randrange(1 << 32))
        lanes = self.chip.lanes

        def fp32(rows: int) -> np.ndarray:
            specials = np.array(
                [0, 0x80000000, 1, 0x807FFFFF, 0x00800000, 0x7F800000, 0xFF800000, 0x7F800001,
                 0xFFC01234, 0x3F800000, 0xBF800000, 0x7F7FFFFF, 3, 7], np.uint32,
            )  # fmt: skip
            usual = rng.normal(0, 4, (rows, lanes)).astype(np.float32).view(np.uint32)
            bits = rng.integers(0, 1 << 32, (rows, lanes), np.uint32)
            kind = rng.integers(0, 10, (rows, lanes))
            bits = np.where(kind < 8, usual, bits)
            return np.where(kind == 9, rng.choice(specials, (rows, lanes)), bits).astype(np.uint32)

        spm = fp32(self.chip.spm.rows)
        low = rng.integers(0, 1 << 16, spm.shape, np.uint16)
        halves = np.where(rng.random((len(spm), 1)) < 0.3, low, (spm >> 16).astype(np.uint16))
        return {
            "spm": halves.astype(np.uint16),
            "vmem": fp32(self.chip.vmem.rows).view(np.float32),
            "acc": fp32(self.chip.acc.rows).view(np.float32),
        }
