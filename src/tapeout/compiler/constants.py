"""Read-only data of a model in HBM: packed weights, tables, vectors, in one segment."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeout.isa.dma import HbmFormat
from tapeout.lang import HbmTensor, Matrix
from tapeout.numerics import formats

ALIGN = 512


class PackingError(ValueError):
    """A weight that cannot be stored in the format asked for."""


@dataclass(frozen=True)
class Entry:
    """Where an item lies: [offset, offset + bytes) of the segment."""

    offset: int
    bytes: int


class Constants:
    """Collects constants in the order programs first use them, once each.

    Args:
        parameters: name -> float32 array [out, in] (weights) or [n] (vectors).
        packed: name -> object with `kind` ("Q4_1", "Q8_0") and `blocks`, for packed storage.
        weights: "bf16" or "packed".
    """

    def __init__(
        self, parameters: Mapping[str, Any], packed: Mapping[str, Any], weights: str, lanes: int
    ) -> None:
        self.parameters, self.packed, self.weights, self.lanes = parameters, packed, weights, lanes
        self.entries: dict[Any, Entry] = {}
        self.makers: dict[Any, Callable[[], bytes]] = {}
        self.size = 0

    def _place(self, key: Any, nbytes: int, make: Callable[[], bytes]) -> Entry:
        if key not in self.entries:
            self.entries[key] = Entry(self.size, nbytes)
            self.makers[key] = make
            self.size += -(-nbytes // ALIGN) * ALIGN
        return self.entries[key]

    def _format(self, names: tuple[str, ...], k: int) -> HbmFormat:
        kinds = {self.packed[n].kind if n in self.packed else "BF16" for n in names}
        if self.weights == "bf16" or len(kinds) > 1 or k % 32:
            return HbmFormat.BF16
        return HbmFormat[kinds.pop()]

    def matrix(self, base: HbmTensor, names: tuple[str, ...]) -> Matrix:
        """The matrix [K, N] of one weight, or of several side by side."""
        shapes = [self.parameters[n].shape for n in names]
        k, n = shapes[0][1], sum(s[0] for s in shapes)
        fmt = self._format(names, k)
        nbytes = Matrix.bytes_for(k, n, fmt, self.lanes)
        entry = self._place(("matrix", names), nbytes, lambda: self._pack(names, fmt))
        return Matrix(
            name="+".join(names), k=k, n=n, format=fmt, hbm=base.slice(entry.offset, entry.bytes)
        )

    def _pack(self, names: tuple[str, ...], fmt: HbmFormat) -> bytes:
        lanes, parts = self.lanes, []
        if fmt == HbmFormat.BF16:
            values = [np.asarray(self.parameters[n], np.float32) for n in names]
            matrix = values[0] if len(values) == 1 else np.concatenate(values)
            for at in range(0, matrix.shape[0], lanes):  # no second copy of a large matrix
                bits = formats.f32_to_bf16(matrix[at : at + lanes])
                parts.append(np.ascontiguousarray(bits.T).tobytes())
            return b"".join(parts)
        blocks = np.concatenate([self.packed[n].blocks for n in names])
        repack = {
            HbmFormat.Q4_1: formats.repack_gguf_q4_1,
            HbmFormat.Q8_0: formats.repack_gguf_q8_0,
        }[fmt]
        k = blocks.shape[1] * 32
        for at in range(0, blocks.shape[0], lanes):
            tile = np.ascontiguousarray(blocks[at : at + lanes])
            parts.append(repack(tile.tobytes(), tile.shape[0], k))
        return b"".join(parts)

    def table(self, base: HbmTensor, key: str, values: np.ndarray | None = None) -> HbmTensor:
        """A float32 array as it lies in memory (a parameter unless `values` is given)."""
        data = np.ascontiguousarray(self.parameters[key] if values is None else values, np.float32)
        entry = self._place(("fp32", key), data.nbytes, data.tobytes)
        return base.slice(entry.offset, entry.bytes)

    def rows(self, base: HbmTensor, key: str) -> tuple[HbmTensor, int]:
        """A parameter [n, width] as bf16 rows, to gather from: (place, bytes of a row)."""
        shape = self.parameters[key].shape

        def make() -> bytes:
            values, step = self.parameters[key], 4096
            return b"".join(
                formats.f32_to_bf16(np.asarray(values[at : at + step], np.float32)).tobytes()
                for at in range(0, shape[0], step)
            )

        entry = self._place(("rows", key), 2 * shape[0] * shape[1], make)
        return base.slice(entry.offset, entry.bytes), 2 * shape[1]

    def image(self) -> np.ndarray:
        """The segment's bytes, uint8."""
        out = np.zeros(max(self.size, ALIGN), np.uint8)
        for key, entry in self.entries.items():
            data = self.makers[key]()
            if len(data) != entry.bytes:
                raise PackingError(f"{key} packed to {len(data)} bytes, not {entry.bytes}")
            out[entry.offset : entry.offset + entry.bytes] = np.frombuffer(data, np.uint8)
        return out
