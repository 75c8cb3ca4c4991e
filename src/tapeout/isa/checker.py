"""The definition of "unordered": a vector-clock checker of races and of single-ported banks.

Each queue q keeps a clock: `clocks[q, p]` is the highest instruction (counted from 1 as they issue)
of queue p known to have retired when q issues its next. A token carries its poster's clock, with
the poster's own entry at the posting instruction; `drain` raises a queue's own entry. An access by
instruction a of queue p is ordered before the current one of queue q iff clocks[q, p] >= a.

Rules (rows are what an instruction addresses, whichever lanes are valid):

* race: two unordered accesses to one row, or to one byte of HBM, at least one a write. In one queue
  a read before a write is safe, so is a write after a write (they land in order; not vpu writes
  to vmem, where reductions land later than results), and on the mxu an accumulation after a write.
* bank: two unordered accesses of different queues to one stripe of spm or acc. In one queue: a read
  of a stripe after an undrained write by vpu or dma; on the mxu an undrained access to an spm
  stripe by another of its ports (straight loads, transposed loads, moving rows).
* within one instruction: a row of acc or vmem that is both read and written is a race, except as
  the same position (t, m) of whole rows or as its own accumulation; a vpu result row written twice
  is a race; each spm operand or result of vpu.map has its stripes for itself, and an acc stripe
  serves one reading operand.
"""

from dataclasses import dataclass

import numpy as np

from tapeout.chip import Chip

from .errors import BankError, ProgramError, RaceError
from .memory import Access, are_distinct


@dataclass(frozen=True)
class Finding:
    """A broken rule: the error's class, its words, and the queue of the earlier access.

    `peer` is -1 where one instruction alone breaks the rule.
    """

    error: type[ProgramError]
    rule: str
    peer: int = -1


class Stamps:
    """For each place (row or stripe) and queue, the last instruction that touched it; 0 is none."""

    def __init__(self, queues: int, places: int) -> None:
        self.last = np.zeros((queues, places), np.int64)

    def unordered(self, places: np.ndarray, clock: np.ndarray) -> tuple[int, int, int] | None:
        """(queue, instruction, place) of one access that `clock` does not cover, or None."""
        late = self.last[:, places] > clock[:, None]
        if not late.any():
            return None
        queue, at = np.argwhere(late)[0]
        return int(queue), int(self.last[queue, places[at]]), int(places[at])

    def touch(self, queue: int, places: np.ndarray, index: int) -> None:
        self.last[queue, places] = index


class ByteStamps:
    """The accesses of each queue to HBM, as pieces of equal length, in order."""

    def __init__(self, queues: int) -> None:
        self.count = [0] * queues
        self.hull = [np.zeros((16, 3), np.int64) for _ in range(queues)]  # first, end, instruction
        self.pieces: list[list[tuple[np.ndarray, int]]] = [[] for _ in range(queues)]

    def unordered(
        self, starts: np.ndarray, nbytes: int, clock: np.ndarray
    ) -> tuple[int, int, int] | None:
        """(queue, instruction, byte address) of one overlapping access not in `clock`."""
        first, end = int(starts.min()), int(starts.max()) + nbytes
        for queue, pieces in enumerate(self.pieces):
            hull = self.hull[queue][: self.count[queue]]
            since = int(np.searchsorted(hull[:, 2], clock[queue], side="right"))
            near = (hull[since:, 0] < end) & (hull[since:, 1] > first)
            for at in np.flatnonzero(near) + since:
                byte = _common_byte(starts, nbytes, *pieces[at])
                if byte is not None:
                    return queue, int(hull[at, 2]), byte
        return None

    def touch(self, queue: int, starts: np.ndarray, nbytes: int, index: int) -> None:
        n = self.count[queue]
        if n == len(self.hull[queue]):
            self.hull[queue] = np.concatenate([self.hull[queue], np.zeros_like(self.hull[queue])])
        self.hull[queue][n] = starts.min(), starts.max() + nbytes, index
        self.pieces[queue].append((starts, nbytes))
        self.count[queue] = n + 1


def _common_byte(a: np.ndarray, a_bytes: int, b: np.ndarray, b_bytes: int) -> int | None:
    """A byte in some piece of a and some piece of b (all of a have one length, all of b too)."""
    b = np.sort(b)
    # The last piece of b that starts before a piece of a ends is the one that reaches furthest.
    at = np.searchsorted(b, a + a_bytes, side="left") - 1
    hit = (at >= 0) & (b[np.maximum(at, 0)] + b_bytes > a)
    if not hit.any():
        return None
    k = int(np.argmax(hit))
    return int(max(a[k], b[at[k]]))


class Checker:
    """State of the rules for one run; `clocks` is [queues, queues]."""

    def __init__(self, chip: Chip) -> None:
        queues = chip.queue_count
        self.chip, self.names = chip, chip.queue_names
        self.clocks = np.zeros((queues, queues), np.int64)
        self.pcs: list[list[int]] = [[] for _ in range(queues)]  # of each issued instruction
        rows = {"spm": chip.spm.rows, "vmem": chip.vmem.rows, "acc": chip.acc.rows}
        self.stripe_rows = {"spm": chip.spm.rows_per_stripe, "acc": chip.acc.rows_per_stripe}
        stripes = {"spm": chip.spm.stripes, "acc": chip.acc.stripes}
        self.read_rows = {m: Stamps(queues, n) for m, n in rows.items()}
        self.written_rows = {m: Stamps(queues, n) for m, n in rows.items()}
        self.read_bytes, self.written_bytes = ByteStamps(queues), ByteStamps(queues)
        self.stripes = {m: Stamps(queues, n) for m, n in stripes.items()}
        self.written_stripes = {m: Stamps(queues, n) for m, n in stripes.items()}
        self.ports = {p: Stamps(queues, chip.spm.stripes) for p in ("load", "transposed", "stream")}

    def check(
        self, queue: int, index: int, mnemonic: str, accesses: list[Access]
    ) -> Finding | None:
        """Judges and records what instruction `index` of `queue` accessed."""
        accesses = [a for a in accesses if len(a.rows)]
        finding = self._within(mnemonic, accesses)
        for access in accesses:
            finding = finding or self._race(queue, access)
        for access in accesses:
            finding = finding or self._bank(queue, access)
        for access in accesses:
            self._record(queue, index, access)
        return finding

    # --- races ---

    def _race(self, queue: int, access: Access) -> Finding | None:
        clock = self.clocks[queue]
        name = self.names[queue]
        lands_in_order = access.write and not (name == "vpu" and access.memory == "vmem")
        safe_chain = lands_in_order or (access.accumulating and name == "mxu")
        after_write = _all_of(clock, queue) if safe_chain else clock
        if access.memory == "hbm":
            found = self.written_bytes.unordered(access.rows, access.nbytes, after_write)
            place = "HBM byte"
        else:
            found = self.written_rows[access.memory].unordered(access.rows, after_write)
            place = f"{access.memory} row"
        earlier = "written"
        if found is None and access.write:
            after_read = _all_of(clock, queue)
            earlier = "read"
            if access.memory == "hbm":
                found = self.read_bytes.unordered(access.rows, access.nbytes, after_read)
            else:
                found = self.read_rows[access.memory].unordered(access.rows, after_read)
        if found is None:
            return None
        peer, instruction, where = found
        now = "written" if access.write else "read"
        return Finding(
            RaceError,
            f"{place} {where} is {now} here and {earlier} by "
            f"{self._earlier(peer, instruction)}, and {self._way_out(queue, peer)}",
            peer,
        )

    def _earlier(self, peer: int, instruction: int) -> str:
        pc = self.pcs[peer][instruction - 1]
        return f"instruction {instruction} of {self.names[peer]} (pc {pc})"

    def _way_out(self, queue: int, peer: int) -> str:
        if peer == queue:
            return "nothing says that one has retired: set `drain`"
        return "no token orders the two: let one post and the other wait"

    # --- banks ---

    def _bank(self, queue: int, access: Access) -> Finding | None:
        if access.memory not in self.stripes:
            return None
        memory, clock, name = access.memory, self.clocks[queue], self.names[queue]
        stripes = self._stripes(access)
        found = self.stripes[memory].unordered(stripes, _all_of(clock, queue))
        if found is None and name == "mxu" and memory == "spm":
            for port, stamps in self.ports.items():
                if port != access.port:
                    found = found or stamps.unordered(stripes, clock)
        elif found is None and not access.write and name != "mxu":
            found = self.written_stripes[memory].unordered(stripes, _only(clock, queue))
        if found is None:
            return None
        peer, instruction, stripe = found
        return Finding(
            BankError,
            f"{memory} stripe {stripe} (rows from {stripe * self.stripe_rows[memory]}) is "
            f"{'written' if access.write else 'read'} here while "
            f"{self._earlier(peer, instruction)} may use it, and {self._way_out(queue, peer)}",
            peer,
        )

    def _stripes(self, access: Access) -> np.ndarray:
        size = self.stripe_rows[access.memory]
        first, last = int(access.rows.min()) // size, int(access.rows.max()) // size
        return np.array([first]) if first == last else np.unique(access.rows // size)

    # --- one instruction ---

    def _within(self, mnemonic: str, accesses: list[Access]) -> Finding | None:
        reads = [a for a in accesses if not a.write and a.memory != "hbm"]
        writes = [a for a in accesses if a.write and a.memory != "hbm"]
        for k, w in enumerate(writes):
            if mnemonic == "vpu.map" and not w.packed and not are_distinct(w.rows):
                return Finding(
                    RaceError,
                    "the result writes a row more than once: give it strides that keep its rows "
                    "apart",
                )
            for other in reads + (writes[:k] if mnemonic == "vpu.map" else []):
                if other.memory == w.memory and w.memory != "spm" and _collide(other, w):
                    row = np.intersect1d(other.rows, w.rows)[0]
                    return Finding(
                        RaceError,
                        f"{w.memory} row {row} is used twice by one instruction, not as operand "
                        f"and result of the same position: place the result elsewhere",
                    )
        if mnemonic != "vpu.map":
            return None
        for memory, users in (("spm", reads + writes), ("acc", reads)):
            taken: set[int] = set()
            for access in (a for a in users if a.memory == memory):
                stripes = set(self._stripes(access).tolist())
                if taken & stripes:
                    return Finding(
                        BankError,
                        f"two operands of one vpu.map use {memory} stripe {min(taken & stripes)}: "
                        f"place them in stripes of their own",
                    )
                taken |= stripes
        return None

    def _record(self, queue: int, index: int, access: Access) -> None:
        if access.memory == "hbm":
            stamps = self.written_bytes if access.write else self.read_bytes
            stamps.touch(queue, access.rows, access.nbytes, index)
            return
        rows = self.written_rows if access.write else self.read_rows
        rows[access.memory].touch(queue, access.rows, index)
        if access.memory not in self.stripes:
            return
        stripes = self._stripes(access)
        self.stripes[access.memory].touch(queue, stripes, index)
        if access.write:
            self.written_stripes[access.memory].touch(queue, stripes, index)
        if access.memory == "spm" and self.names[queue] == "mxu":
            self.ports[access.port].touch(queue, stripes, index)


_NEVER_LATE = np.iinfo(np.int64).max


def _all_of(clock: np.ndarray, queue: int) -> np.ndarray:
    """A clock in which the queue's own instructions have all retired."""
    out = clock.copy()
    out[queue] = _NEVER_LATE
    return out


def _only(clock: np.ndarray, queue: int) -> np.ndarray:
    """A clock in which only the queue's own instructions may be late."""
    out = np.full_like(clock, _NEVER_LATE)
    out[queue] = clock[queue]
    return out


def _collide(other: Access, result: Access) -> bool:
    """Whether an operand (or an earlier result) meets a result's rows in a forbidden way."""
    if other.accumulating or not np.isin(other.rows, result.rows).any():
        return False
    if other.write or other.packed or result.packed or len(other.rows) != len(result.rows):
        return True
    differs = other.rows != result.rows
    return bool(np.isin(other.rows[differs], result.rows).any())
