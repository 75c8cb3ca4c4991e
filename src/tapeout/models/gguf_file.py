"""Reading a GGUF file: metadata and tensors, every offset checked against the file's size.

The `gguf` package supplies the format's constants and the dequantisation.  Its own reader takes 4 s
on SmolLM2 (a NumPy view per vocabulary string) and fails with whatever NumPy says on a damaged
file, so the container is parsed here; a test compares the two field by field.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (little-endian, versions 2 and 3).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapeout.models.errors import ModelError

MAGIC = b"GGUF"
_DEFAULT_ALIGNMENT_BYTES = 32
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor: `shape` in PyTorch order (slowest first), `kind` is the GGML type's name.

    `data` is a read-only view of the file: uint8 [..., row bytes] for block types, else numbers.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    data: NDArray[Any]

    def dequantised(self) -> NDArray[np.float32]:
        """float32 values of `shape`, exactly as ggml unpacks the blocks."""
        return dequantise(self.data, self.kind)


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """Metadata (`fields`: key to int, float, bool, str or list) and `tensors` in file order."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """The model family, for example ``llama``."""
        return str(self.fields["general.architecture"])


def dequantise(data: NDArray[Any], kind: str) -> NDArray[np.float32]:
    """float32 values of rows of blocks (``uint8 [..., row bytes]``) of the GGML type `kind`."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        return np.asarray(dequantize(data, GGMLQuantizationType[kind]), dtype=np.float32)
    except NotImplementedError as error:
        raise ModelError(
            f"tensors of GGML type {kind} cannot be unpacked; use a file of another type "
            "(Q4_1, Q8_0, Q4_K, F16 and most others work)"
        ) from error


class _Cursor:
    """A bounds-checked position in the file's bytes."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path, self.offset = data, path, 0

    def take(self, size_bytes: int, what: str) -> memoryview:
        end = self.offset + size_bytes
        if size_bytes < 0 or end > len(self.data):
            raise ModelError(
                f"{self.path}: truncated GGUF file: {what} needs bytes {self.offset} to {end}, "
                f"the file has {len(self.data)}; download it again"
            )
        view = self.data[self.offset : end]
        self.offset = end
        return view

    def number(self, code: str, what: str) -> int:
        return int(struct.unpack(code, self.take(struct.calcsize(code), what))[0])

    def text(self, what: str) -> str:
        size_bytes = self.number("<Q", what)
        return str(self.take(size_bytes, what), "utf-8", "replace")

    def texts(self, count: int, what: str) -> list[str]:
        """`text` `count` times; vocabularies have 100,000 of them, so the loop is bare."""
        data, offset, end = self.data, self.offset, len(self.data)
        found = []
        for _ in range(count):
            begin = offset + 8
            offset = begin + int.from_bytes(data[offset:begin], "little")
            if offset > end or begin > end:
                break
            found.append(str(data[begin:offset], "utf-8", "replace"))
        else:
            self.offset = offset
            return found
        self.take(end - self.offset + 1, what)  # raises: the array does not fit
        return found

    def values(self, item: int, count: int, key: str) -> list[Any]:
        """An array of arrays; refused early where a damaged count could not fit."""
        if count > len(self.data) - self.offset:
            self.take(count, key)
        return [self.value(item, key) for _ in range(count)]

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.text(key)
        if kind == _ARRAY:
            item, count = self.number("<I", key), self.number("<Q", key)
            if item in _SCALARS:
                dtype = np.dtype(_SCALARS[item])
                return np.frombuffer(self.take(count * dtype.itemsize, key), dtype).tolist()
            return self.texts(count, key) if item == _STRING else self.values(item, count, key)
        if kind not in _SCALARS:
            raise ModelError(
                f"{self.path}: damaged GGUF file: metadata key {key!r} has type {kind}, "
                "known types are 0 to 12; download it again"
            )
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(dtype.itemsize, key), dtype)[0].item()


def read(path: Path) -> GgufFile:
    """Parse `path`; the file is mapped, not loaded.  `ModelError` for a foreign or damaged file."""
    try:
        size_bytes = path.stat().st_size
        mapped = np.memmap(path, mode="r") if size_bytes else np.empty(0, np.uint8)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    cursor = _Cursor(memoryview(mapped), path)  # type: ignore[arg-type]
    if bytes(mapped[:4]) != MAGIC:
        raise ModelError(
            f"{path}: not a GGUF file: it starts with {bytes(mapped[:4])!r}, GGUF with {MAGIC!r}"
        )
    cursor.offset = 4
    version = cursor.number("<I", "the version")
    if version not in (2, 3):
        raise ModelError(f"{path}: GGUF version {version} is not supported (2 and 3 are)")
    tensor_count = cursor.number("<Q", "the tensor count")
    field_count = cursor.number("<Q", "the metadata count")
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        key = cursor.text("a metadata key")
        fields[key] = cursor.value(cursor.number("<I", key), key)
    if "general.architecture" not in fields:
        raise ModelError(f"{path}: GGUF file without general.architecture: not a model")
    headers = [_tensor_header(cursor) for _ in range(tensor_count)]
    alignment = int(fields.get("general.alignment", _DEFAULT_ALIGNMENT_BYTES))
    start = -(-cursor.offset // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in headers:
        cursor.offset = start + offset
        tensors[name] = _tensor(cursor, mapped, name, shape, kind)
    return GgufFile(path=path, fields=fields, tensors=tensors)


def _tensor_header(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text("a tensor name")
    dims = cursor.number("<I", name)
    if dims > 8:
        raise ModelError(f"{cursor.path}: damaged GGUF file: tensor {name!r} has {dims} dimensions")
    shape = tuple(cursor.number("<Q", name) for _ in range(dims))[::-1]
    return name, shape, cursor.number("<I", name), cursor.number("<Q", name)


def _tensor(
    cursor: _Cursor, mapped: NDArray[np.uint8], name: str, shape: tuple[int, ...], kind: int
) -> GgufTensor:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        ggml = GGMLQuantizationType(kind)
    except ValueError as error:
        raise ModelError(
            f"{cursor.path}: tensor {name!r} has GGML type {kind}, which the installed gguf "
            "package does not know: run `pip install -U gguf`, or download a damaged file again"
        ) from error
    block, block_bytes = GGML_QUANT_SIZES[ggml]
    width = shape[-1] if shape else 1
    if width % block:
        raise ModelError(
            f"{cursor.path}: damaged GGUF file: rows of tensor {name!r} have {width} elements, "
            f"not a multiple of the {block} in a {ggml.name} block"
        )
    row_bytes = width // block * block_bytes
    total_bytes = row_bytes
    for extent in shape[:-1]:
        total_bytes *= extent
    begin = cursor.offset
    cursor.take(total_bytes, f"tensor {name!r}")
    data: NDArray[Any] = mapped[begin : begin + total_bytes]
    plain = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "i1"}
    if ggml.name in plain:
        data = np.frombuffer(memoryview(data), plain[ggml.name]).reshape(shape)  # type: ignore[arg-type]
    else:
        data = np.asarray(data).reshape(*shape[:-1], row_bytes)
    return GgufTensor(name=name, kind=ggml.name, shape=shape, data=data)
