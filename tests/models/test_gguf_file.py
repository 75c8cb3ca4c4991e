"""The GGUF container: equal to the gguf package's reader, and never anything but ModelError."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

from tapeout.models import ModelError, resolve  # noqa: E402
from tapeout.models.gguf_file import read  # noqa: E402


def same_as_reference(path: Path) -> None:
    """Every metadata field and tensor as gguf.GGUFReader sees them."""
    ours, reference = read(path), gguf.GGUFReader(path)
    fields = {key: field for key, field in reference.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.fields) == list(fields)
    for key, field in fields.items():
        assert ours.fields[key] == field.contents(), key
    assert list(ours.tensors) == [tensor.name for tensor in reference.tensors]
    for tensor in reference.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.kind == tensor.tensor_type.name
        assert list(mine.shape) == tensor.shape.tolist()[::-1]
        np.testing.assert_array_equal(mine.data, tensor.data)


def test_equal_to_the_gguf_package(tiny_gguf: Path) -> None:
    same_as_reference(tiny_gguf)


@pytest.mark.slow
def test_equal_to_the_gguf_package_on_smollm2() -> None:
    same_as_reference(resolve("smollm2-135m").path)


def test_types_of_smollm2() -> None:
    tensors = read(resolve("smollm2-135m").path).tensors.values()
    counts = {kind: sum(t.kind == kind for t in tensors) for kind in {t.kind for t in tensors}}
    assert counts == {"Q4_1": 210, "Q8_0": 1, "F32": 61}


def test_every_truncation_is_named(tiny_gguf: Path, tmp_path: Path) -> None:
    whole = tiny_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    lengths = [*range(4, 400, 7), *range(400, len(whole), 997), len(whole) - 64]
    for length in lengths:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="truncated GGUF file"):
            read(cut)


def test_flipped_bytes_raise_nothing_else(tiny_gguf: Path, tmp_path: Path) -> None:
    whole = tiny_gguf.read_bytes()
    bad = tmp_path / "bad.gguf"
    chance = random.Random(5)
    refused: list[str] = []
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[chance.randrange(6000)] ^= 1 << chance.randrange(8)
        bad.write_bytes(damaged)
        try:
            read(bad)
        except ModelError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert not [text for text in refused if "\n" in text]


def test_other_versions_and_empty_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + (9).to_bytes(4, "little") + bytes(16))
    with pytest.raises(ModelError, match="GGUF version 9 is not supported"):
        read(path)
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    with pytest.raises(ModelError, match=r"without general\.architecture"):
        read(path)
    path.write_bytes(b"RIFF")
    with pytest.raises(ModelError, match="not a GGUF file"):
        read(path)
