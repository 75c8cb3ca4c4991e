"""The host's side of HBM, the same for every target: a bump allocator, and bytes in and out.

Contract: a target derives from `HostHbm` and says where the bytes lie (`_bytes`); it may act around
the host's changes by overriding `write`.
"""

import numpy as np

from tapeout.chip import Chip

from .fields import WORD_BYTES
from .program import Program


class HostHbm:
    """HBM of `hbm_bytes` as the host sees it; `_used` bytes are allocated."""

    def __init__(self, hbm_bytes: int, way_out: str) -> None:
        self.hbm_bytes = hbm_bytes
        self._way_out = way_out  # where memory is short
        self._used = 0

    def _bytes(self) -> np.ndarray:
        """uint8 [at least `_used`], the bytes themselves."""
        raise NotImplementedError

    def allocate(self, nbytes: int, align: int = 4096) -> int:
        """The HBM address of `nbytes` fresh bytes, zero until written."""
        address = -(-self._used // align) * align
        if nbytes < 0 or address + nbytes > self.hbm_bytes:
            raise MemoryError(
                f"{nbytes} bytes do not fit HBM: {address} of {self.hbm_bytes} bytes are taken; "
                f"{self._way_out}"
            )
        self._used = address + nbytes
        return address

    def reset(self) -> None:
        """Frees all of HBM; it reads as zero again."""
        self._bytes()[: self._used] = 0
        self._used = 0

    def write(self, address: int, data: bytes | np.ndarray) -> int:
        """Copies bytes (an array's bytes, in C order) to HBM; how many."""
        raw = (
            np.ascontiguousarray(data).reshape(-1).view(np.uint8)
            if isinstance(data, np.ndarray)
            else np.frombuffer(data, np.uint8)
        )
        self._range(address, len(raw))[:] = raw
        return len(raw)

    def read(self, address: int, nbytes: int) -> np.ndarray:
        """uint8 [nbytes] copied from HBM."""
        return self._range(address, nbytes).copy()

    def write_code(self, program: Program, chip: Chip) -> list[tuple[int, bytes]]:
        """Address and image of each queue's code, in the order of queues.

        Whole lines are fetched, so each has room up to a line's end: it may reach past the stream.
        """
        line_bytes = chip.seq.fetch_line_instructions * WORD_BYTES
        placed = []
        for name in chip.queue_names:
            image = program.encode(name) if program.streams.get(name) else b""
            address = self.allocate(-(-len(image) // line_bytes) * line_bytes)
            self.write(address, image)
            placed.append((address, image))
        return placed

    def _range(self, address: int, nbytes: int) -> np.ndarray:
        if address < 0 or nbytes < 0 or address + nbytes > self._used:
            raise ValueError(
                f"bytes {address}..{address + nbytes} are outside the {self._used} allocated bytes"
            )
        return self._bytes()[address : address + nbytes]
