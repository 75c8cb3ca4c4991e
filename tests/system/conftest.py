"""A small random Llama as a Hugging Face directory, and the `tapeout` command in this process."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Said:
    """What a command wrote and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model's directory."""
    pytest.importorskip("torch")
    return write_model(tmp_path_factory.mktemp("models") / "small-llama")


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session's compiled models go."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tapeout(cache_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Runs the command with these arguments, as the console script does."""
    from tapeout.cli.main import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))

    def command(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["tapeout", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        written = capsys.readouterr()
        return Said(code, written.out, written.err)

    return command
