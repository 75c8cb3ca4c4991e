"""The memories of `interp`: arrays that check addresses and log what an instruction touched.

On-chip memories are arrays of rows x lanes with a mask of the lanes written since the launch. HBM
is bytes, reached by programs through base registers and by the host directly. Every access of a
program is appended to a log; `checker` judges the log once the instruction is done.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .instruction import Fault, HardwareError

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Access:
    """One operand or result of one instruction.

    Attributes:
        memory: "spm", "vmem", "acc" or "hbm".
        rows: row of each position in the instruction's order; in HBM the first byte of each piece.
        write: False for a read.
        accumulating: part of a read-modify-write of the same rows.
        packed: single lanes of packed rows, not whole rows.
        nbytes: bytes of a piece, in HBM.
        port: "load", "transposed" or "stream", of the mxu into spm.
    """

    memory: str
    rows: Rows
    write: bool
    accumulating: bool = False
    packed: bool = False
    nbytes: int = 0
    port: str = ""


@dataclass
class Log:
    """What the running instruction touched, and its first read of lanes that nothing wrote."""

    accesses: list[Access] = field(default_factory=list)
    unwritten: str = ""

    def clear(self) -> None:
        self.accesses.clear()
        self.unwritten = ""


def are_distinct(rows: Rows) -> bool:
    """Whether no row comes twice; at once where they increase, as they mostly do."""
    return bool((rows[1:] > rows[:-1]).all()) or len(np.unique(rows)) == len(rows)


class RowMemory:
    """spm, vmem or acc: `values` [rows, lanes] and `written` [rows, lanes]."""

    def __init__(
        self, name: str, rows: int, lanes: int, dtype: type, fault: Fault, log: Log
    ) -> None:
        self.name, self.fault, self.log = name, fault, log
        self.values: np.ndarray = np.zeros((rows, lanes), dtype)
        self.written = np.zeros((rows, lanes), bool)

    def read(
        self, rows: Rows, valid: Mask, accumulating: bool = False, port: str = ""
    ) -> np.ndarray:
        """Rows [n, lanes]; lanes that are not valid hold anything."""
        rows = self.require(rows)
        self.log.accesses.append(Access(self.name, rows, False, accumulating, port=port))
        missing = valid & ~self.written[rows]
        if missing.any():
            at = np.argwhere(missing)[0]
            self._unwritten(int(rows[at[0]]), int(at[1]))
        return self.values[rows]

    def write(
        self, rows: Rows, values: np.ndarray, valid: Mask, accumulating: bool = False
    ) -> None:
        """Writes the valid lanes of rows [n, lanes], in order where rows repeat."""
        rows = self.require(rows)
        self.log.accesses.append(Access(self.name, rows, True, accumulating))
        if are_distinct(rows):
            self.values[rows] = np.where(valid, values, self.values[rows])
            self.written[rows] |= valid
            return
        for row, value, lanes in zip(rows, values, valid, strict=True):
            self.values[row, lanes] = value[lanes]
            self.written[row, lanes] = True

    def read_lane(self, rows: Rows, lanes: np.ndarray, accumulating: bool = False) -> np.ndarray:
        """One element from each of rows [n], at lanes [n]."""
        rows = self.require(rows)
        self.log.accesses.append(Access(self.name, rows, False, accumulating, packed=True))
        missing = ~self.written[rows, lanes]
        if missing.any():
            at = int(np.argmax(missing))
            self._unwritten(int(rows[at]), int(lanes[at]))
        return self.values[rows, lanes]

    def write_lane(self, rows: Rows, lanes: np.ndarray, values: np.ndarray) -> None:
        """One element into each of rows [n], at lanes [n]."""
        rows = self.require(rows)
        self.log.accesses.append(Access(self.name, rows, True, packed=True))
        self.values[rows, lanes] = values
        self.written[rows, lanes] = True

    def require(self, rows: Rows) -> Rows:
        """The rows, as int64.

        Raises: HardwareError for one that the memory does not have.
        """
        rows = np.asarray(rows, np.int64)
        outside = (rows < 0) | (rows >= len(self.values))
        if outside.any():
            raise HardwareError(
                self.fault,
                f"{self.name} row {rows[outside][0]} is outside its rows 0..{len(self.values) - 1}",
            )
        return rows

    def _unwritten(self, row: int, lane: int) -> None:
        self.log.unwritten = self.log.unwritten or (
            f"{self.name} row {row} lane {lane} is read, and nothing has written it in this "
            f"launch: load or compute it first"
        )


class HbmMemory:
    """Bytes that grow up to a limit, and the base registers by which programs reach them."""

    def __init__(self, limit_bytes: int, log: Log) -> None:
        self.limit_bytes, self.log = limit_bytes, log
        self.data = np.zeros(0, np.uint8)
        self.bases: dict[int, tuple[int, int, bool]] = {}

    def grow(self, nbytes: int) -> None:
        """Makes room for `nbytes` in all; what is new is zero."""
        if nbytes > len(self.data):
            grown = np.zeros(min(max(2 * len(self.data), nbytes), self.limit_bytes), np.uint8)
            grown[: len(self.data)] = self.data
            self.data = grown

    def read(self, base: int, offsets: Rows, nbytes: int) -> np.ndarray:
        """uint8 [n, nbytes]: the pieces at `offsets` of a base's segment."""
        starts = self._resolve(base, offsets, nbytes, write=False)
        step = int(starts[1] - starts[0]) if len(starts) > 1 else 0
        if len(starts) > 1 and step >= 0 and (np.diff(starts) == step).all():
            window = np.lib.stride_tricks.as_strided(
                self.data[starts[0] :], (len(starts), nbytes), (step, 1)
            )
            return window.copy()
        return self.data[starts[:, None] + np.arange(nbytes)]

    def write(self, base: int, offsets: Rows, data: np.ndarray) -> None:
        """Writes uint8 [n, nbytes], piece by piece in order."""
        starts = self._resolve(base, offsets, data.shape[1], write=True)
        for start, piece in zip(starts, data, strict=True):
            self.data[start : start + data.shape[1]] = piece

    def _resolve(self, base: int, offsets: Rows, nbytes: int, write: bool) -> Rows:
        offsets = np.asarray(offsets, np.int64)
        if base not in self.bases:
            raise HardwareError(Fault.HBM_BOUNDS, f"base b{base} has no segment")
        address, limit, writable = self.bases[base]
        outside = (offsets < 0) | (offsets + nbytes > limit)
        if outside.any():
            first = offsets[outside][0]
            raise HardwareError(
                Fault.HBM_BOUNDS,
                f"bytes {first}..{first + nbytes} are outside the {limit} bytes of base b{base}",
            )
        if write and not writable and len(offsets):
            raise HardwareError(Fault.HBM_PROTECTION, f"base b{base} is read-only")
        starts = address + offsets
        self.log.accesses.append(Access("hbm", starts, write, nbytes=nbytes))
        return starts
