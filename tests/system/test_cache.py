"""The cache of compiled models: what makes an entry another one, damage, and room."""

import os
import shutil

import pytest

from tapeout.chip import load as load_chip
from tapeout.compiler import folder as cache_files
from tapeout.models import resolve
from tapeout.runtime import cache
from tapeout.runtime.cache import Options

pytestmark = pytest.mark.torch


def test_the_key_follows_model_chip_and_options(model, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(model, folder)
    source, chip = resolve(folder), load_chip("tiny")
    keys = [cache.key(source, chip, Options())]
    assert cache.key(source, chip, Options()) == keys[0]
    keys.append(cache.key(source, chip, Options(batch=2)))
    keys.append(cache.key(source, load_chip("tiny", ["clock_ghz=2"]), Options()))
    config = folder / "config.json"
    config.write_text(config.read_text() + " ")
    keys.append(cache.key(source, chip, Options()))
    monkeypatch.setattr(cache, "sources", lambda: "another compiler")
    keys.append(cache.key(source, chip, Options()))
    assert len(set(keys)) == 5


def test_a_damaged_entry_is_compiled_again(model, tmp_path):
    source, chip = resolve(model), load_chip("tiny")
    options = Options(context=16)
    first = cache.compiled(source, chip, options, folder=tmp_path)
    assert not first.from_cache
    image = bytes(first.artifact.image)
    assert cache.compiled(source, chip, options, folder=tmp_path).from_cache
    (place,) = tmp_path.iterdir()
    weights = place / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-512])
    again = cache.compiled(source, chip, options, folder=tmp_path)
    assert not again.from_cache
    assert bytes(again.artifact.image) == image


def test_entries_unused_for_longest_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_files, "LIMIT_BYTES", 250)
    for age, name in enumerate(("newest", "used", "unused")):
        entry = tmp_path / name
        entry.mkdir()
        (entry / "weights.bin").write_bytes(bytes(100))
        os.utime(entry, (1e9 - age, 1e9 - age))
    dead = tmp_path / ".tapeout-dead"
    dead.mkdir()
    os.utime(dead, (1e9, 1e9))
    cache_files.make_room(tmp_path, tmp_path / "newest")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["newest", "used"]


def test_compiling_without_torch_says_what_to_install(model, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tapeout.models.loading", None)
    with pytest.raises(cache.CompileError, match=r"pip install 'tapeout\[models,torch\]'"):
        cache.compiled(resolve(model), load_chip("tiny"), Options(), folder=tmp_path)
