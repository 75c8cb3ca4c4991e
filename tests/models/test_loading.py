"""Weights: exactly the file's values, in Hugging Face's order, packed blocks beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from conftest import make_model, write_gguf  # noqa: E402

from tapeout.models import ModelError, load, loading  # noqa: E402

pytestmark = pytest.mark.torch


def assert_same_weights(ours: Any, reference: Any) -> None:
    """Equal names, types and bits, buffers (rotary frequencies) included."""
    mine, theirs = ours.state_dict(), reference.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert mine[name].dtype == value.dtype
        assert torch.equal(mine[name], value), name
    for (name, value), (_, other) in zip(
        ours.named_buffers(), reference.named_buffers(), strict=True
    ):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("llama", {"head_dim": 32}), ("qwen2", {}), ("qwen3", {"head_dim": 32})],
)
def test_float32_gguf_gives_back_the_model(
    tmp_path: Path, family: str, changes: dict[str, Any], tied: bool
) -> None:
    model = make_model(family, tie_word_embeddings=tied, **changes)
    loaded = load(write_gguf(tmp_path / "m.gguf", model))
    assert_same_weights(loaded.module, model)
    assert loaded.packed == {}
    tokens = torch.arange(3, 40)[None]
    assert torch.equal(loaded.module(tokens).logits, model(tokens).logits)


def test_packed_blocks_unpack_to_the_parameters(tiny_gguf: Path) -> None:
    loaded = load(tiny_gguf)
    parameters = dict(loaded.module.named_parameters(remove_duplicate=False))
    kinds = {name: weight.kind for name, weight in loaded.packed.items()}
    assert kinds["model.layers.1.self_attn.q_proj.weight"] == "Q4_1"
    assert kinds["model.layers.0.mlp.down_proj.weight"] == "Q8_0"
    assert len(kinds) == 14  # 7 matrices in each of 2 layers; the F16 embedding stays out
    for name, weight in loaded.packed.items():
        assert weight.shape == tuple(parameters[name].shape)
        assert weight.blocks.shape[2] == loading.PACKED_KINDS[weight.kind]
        assert torch.equal(torch.from_numpy(weight.dequantised()), parameters[name])


def test_without_unpermuting_the_logits_are_wrong(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.arange(3, 40)[None]
    right = load(tiny_gguf).module(tokens).logits
    monkeypatch.setattr(loading, "unpermute", lambda data, heads: data)
    assert not torch.allclose(load(tiny_gguf).module(tokens).logits, right, atol=0.1)


def test_equal_to_transformers_own_reader(tiny_gguf: Path) -> None:
    loaded = load(tiny_gguf)
    reference = loading._from_pretrained(tiny_gguf.parent, gguf_file=tiny_gguf.name)
    assert_same_weights(loaded.module, reference)


def test_other_families_go_through_transformers(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = load(tiny_gguf)
    monkeypatch.setattr(loading, "DIRECT_ARCHITECTURES", frozenset())
    loaded = load(tiny_gguf)
    assert_same_weights(loaded.module, direct.module)
    # q and k are permuted in the file, so their blocks are not the parameter's: left out.
    assert set(loaded.packed) == {
        name for name in direct.packed if "q_proj" not in name and "k_proj" not in name
    }
    for name, weight in loaded.packed.items():
        np.testing.assert_array_equal(weight.blocks, direct.packed[name].blocks)


def test_tied_names_share_their_blocks(tmp_path: Path) -> None:
    model = make_model(tie_word_embeddings=True)
    loaded = load(write_gguf(tmp_path / "m.gguf", model, lambda name: "Q8_0"))
    assert loaded.packed["lm_head.weight"] is loaded.packed["model.embed_tokens.weight"]


def test_hugging_face_directory(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    loaded = load(tmp_path / "m")
    assert_same_weights(loaded.module, model)
    assert loaded.packed == {}
    assert loaded.name == "m"


def test_unsupported_architecture(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "abacus")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="abacus is not supported") as caught:
        load(tmp_path / "x.gguf")
    assert "\n" not in str(caught.value)


def test_unsupported_hugging_face_architecture(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    (tmp_path / "m" / "config.json").write_text('{"model_type": "abacus"}')
    with pytest.raises(ModelError, match="transformers cannot load it"):
        load(tmp_path / "m")


def test_variants_that_change_the_arithmetic_are_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "m.gguf", make_model()
    write_gguf(path, model, extra={"rope_freqs.weight": np.ones(8, np.float32)})
    with pytest.raises(ModelError, match="scaled rotary frequencies"):
        load(path)
    write_gguf(path, model, fields={"llama.rope.scaling.type": "yarn"})
    with pytest.raises(ModelError, match="scaled rotary frequencies"):
        load(path)
    write_gguf(path, model, fields={"llama.expert_count": 8})
    with pytest.raises(ModelError, match="mixture-of-experts"):
        load(path)


def test_tensors_must_fit_the_model(tmp_path: Path) -> None:
    path, model = tmp_path / "m.gguf", make_model()
    write_gguf(path, model, skip="blk.1.ffn_up.weight")
    with pytest.raises(ModelError, match=r"missing, the first is 'model\.layers\.1\.mlp\.up_proj"):
        load(path)
    write_gguf(path, model, extra={"blk.0.attn_sinks.weight": np.ones(4, np.float32)})
    with pytest.raises(ModelError, match=r"'blk\.0\.attn_sinks\.weight' has no place"):
        load(path)
    wrong = {"blk.0.ffn_up.weight": np.ones((8, 64), np.float32)}
    write_gguf(path, model, skip="blk.0.ffn_up.weight", extra=wrong)
    with pytest.raises(ModelError, match="do not fit the metadata") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_smollm2(smollm2: Any) -> None:
    assert smollm2.config.num_hidden_layers == 30
    assert smollm2.config.head_dim == 64
    assert len(smollm2.packed) == 7 * 30 + 2
    unique = {id(weight): weight.blocks.nbytes for weight in smollm2.packed.values()}
    assert sum(unique.values()) == 66_355_200 + 30_081_024
    assert all(p.dtype == torch.float32 for p in smollm2.module.parameters())


@pytest.mark.slow
def test_smollm2_equals_transformers_bit_for_bit(smollm2: Any) -> None:
    path = smollm2.source.path
    reference = loading._from_pretrained(path.parent, gguf_file=path.name)
    assert_same_weights(smollm2.module, reference)
    for name, weight in smollm2.packed.items():
        parameter = reference.get_parameter(name)
        assert torch.equal(torch.from_numpy(weight.dequantised()), parameter), name
