"""A small random Llama as a Hugging Face directory, with a tokenizer of single bytes."""

import json
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")


def write_tokenizer(folder: Path) -> int:
    """One token a byte, and the special ones; returns the size of the vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(letters) + len(SPECIAL)


def write_model(folder: Path, **changes: Any) -> Path:
    """A random Llama of two layers with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tapeout.models.loading import quiet

    folder.mkdir(parents=True)
    vocab = write_tokenizer(folder)
    values = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "eos_token_id": vocab - len(SPECIAL),
        "bos_token_id": None,
    }
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**(values | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3)
    with quiet():
        model.save_pretrained(folder)
    return folder
