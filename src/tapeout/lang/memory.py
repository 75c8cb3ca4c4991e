"""Where tensors lie on chip: spm and acc by stripes, vmem by rows."""

from tapeout.chip import Chip


class ChipTooSmall(ValueError):
    """A tensor that no free place on the chip holds: names memory, need and what is free."""


class StripeAllocator:
    """First-fit rows inside stripes; prefers the emptiest stripe, so that tensors seldom share one.

    Sharing a stripe is correct (accesses are then ordered by tokens) but costs overlap.
    """

    def __init__(self, memory: str, stripes: range, rows_per_stripe: int, align: int = 1) -> None:
        self.memory, self.stripes, self.rows_per_stripe = memory, stripes, rows_per_stripe
        self.align = align  # places begin at multiples of it
        self.used: dict[int, list[tuple[int, int]]] = {s: [] for s in stripes}
        self.age = dict.fromkeys(stripes, 0)  # when a stripe was last given back: oldest first
        self.clock = 0

    def _gap(self, stripe: int, rows: int) -> int | None:
        at = 0
        for low, high in sorted(self.used[stripe]):
            if low - at >= rows:
                return at
            at = self._aligned(high)
        return at if self.rows_per_stripe - at >= rows else None

    def _aligned(self, row: int) -> int:
        return -(-row // self.align) * self.align

    def allocate(self, rows: int, avoid: frozenset = frozenset()) -> tuple[int, int]:
        """(first row, stripes taken). Raises ChipTooSmall."""
        if rows > self.rows_per_stripe:
            return self._allocate_whole(rows, avoid)
        order = sorted(
            (s for s in self.stripes if s not in avoid),
            key=lambda s: (sum(h - low for low, h in self.used[s]), self.age[s], s),
        )
        for stripe in order:
            at = self._gap(stripe, rows)
            if at is not None:
                self.used[stripe].append((at, at + rows))
                return stripe * self.rows_per_stripe + at, 1
        raise ChipTooSmall(self._message(rows, avoid))

    def _allocate_whole(self, rows: int, avoid: frozenset) -> tuple[int, int]:
        count = -(-rows // self.rows_per_stripe)
        free = {s for s in self.stripes if not self.used[s] and s not in avoid}
        spans = _runs(free, count)
        # Oldest first; but one that leaves room for another like it, which often follows.
        for span in sorted(
            spans, key=lambda r: (not _runs(free - set(r), count), max(self.age[s] for s in r))
        ):
            first = span[0]
            for s in span:
                left = rows - (s - first) * self.rows_per_stripe
                self.used[s].append((0, min(left, self.rows_per_stripe)))
            return first * self.rows_per_stripe, count
        raise ChipTooSmall(self._message(rows, avoid))

    def allocate_column(
        self, rows: int, slots: int, avoid: frozenset = frozenset()
    ) -> tuple[int, int]:
        """`slots` places of `rows` rows at one offset of stripes: (first row, distance in rows)."""
        spans = [
            range(first, first + slots * step, step)
            for step in range(1, len(self.stripes))
            for first in self.stripes
        ]
        spans = [s for s in spans if all(x in self.used and x not in avoid for x in s)]
        for span in sorted(spans, key=lambda span: sum(h for s in span for _, h in self.used[s])):
            at = self._aligned(max((high for s in span for _, high in self.used[s]), default=0))
            if at + rows <= self.rows_per_stripe:
                for s in span:
                    self.used[s].append((at, at + rows))
                return span[0] * self.rows_per_stripe + at, span.step * self.rows_per_stripe
        raise ChipTooSmall(self._message(rows, avoid))

    def _message(self, rows: int, avoid: frozenset) -> str:
        free = {
            s: self.rows_per_stripe - sum(h - low for low, h in self.used[s])
            for s in self.stripes
            if s not in avoid
        }
        return (
            f"the chip is too small: {self.memory} has no room for {rows} rows together "
            f"(stripes of {self.rows_per_stripe} rows; free rows by stripe: {free}); raise "
            f"{self.memory}.stripes or the rows of a stripe, or take a smaller batch"
        )

    def free(self, row: int, rows: int) -> None:
        self.clock += 1
        while rows > 0:
            stripe, at = divmod(row, self.rows_per_stripe)
            here = min(rows, self.rows_per_stripe - at)
            self.used[stripe].remove((at, at + here))
            self.age[stripe] = self.clock
            row, rows = row + here, rows - here


def _runs(stripes: set[int], count: int) -> list[range]:
    """All runs of `count` stripes that follow each other."""
    runs = [range(s, s + count) for s in sorted(stripes)]
    return [r for r in runs if stripes.issuperset(r)]


class Places:
    """The allocators of one program."""

    def __init__(self, chip: Chip, ring_stripes: int) -> None:
        spm, acc = chip.spm, chip.acc
        self.ring = range(spm.stripes - ring_stripes, spm.stripes)
        self.spm = StripeAllocator(
            "spm", range(spm.stripes - ring_stripes), spm.rows_per_stripe,
            max(2, spm.banks_per_stripe),  # pairs of rows, rows of a stationary load
        )  # fmt: skip
        self.acc = StripeAllocator("acc", range(acc.stripes), acc.rows_per_stripe)
        self.vmem = StripeAllocator("vmem", range(1), chip.vmem.rows)
