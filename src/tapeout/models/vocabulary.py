"""Building a `Tokenizer` from a model's source: GGUF metadata or a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapeout.models import gguf_file
from tapeout.models.errors import ModelError
from tapeout.models.gguf_file import GgufFile
from tapeout.models.source import ModelSource, SourceKind, resolve
from tapeout.models.tokenizer import Generation, Tokenizer, read_backend

if TYPE_CHECKING:
    import tokenizers

_CONTROL, _USER_DEFINED = 3, 4
_GPT2_SPLITS = frozenset({"gpt-2", "gpt2", "mpt", "olmo", "jais"})
_DIGIT_SPLITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})

GGUF_SPLITS = _GPT2_SPLITS | _DIGIT_SPLITS
"""Values of ``tokenizer.ggml.pre`` built here: GPT-2's split, in the second group with each digit
alone first (source: llama.cpp, src/llama-vocab.cpp; transformers 5.23 ignores the digits)."""

END_TEXTS = frozenset(
    {
        "<|im_end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<end_of_turn>",
        "</s>",
        "<eos>",
    }
)
"""Control tokens that end a text or a turn whatever the metadata's single EOS says."""


def load_tokenizer(model: str | Path | ModelSource) -> Tokenizer:
    """The tokenizer of `model` (see `source.resolve`).  Errors: `ModelError`."""
    source = model if isinstance(model, ModelSource) else resolve(model)
    if source.kind is SourceKind.HUGGING_FACE:
        return _from_directory(source.path)
    return _from_gguf(gguf_file.read(source.path))


def _from_gguf(file: GgufFile) -> Tokenizer:
    def field(name: str) -> Any:
        return file.fields.get(f"tokenizer.ggml.{name}")

    tokens = field("tokens")
    if not tokens:
        raise ModelError(f"{file.path}: the file has no vocabulary (tokenizer.ggml.tokens)")
    byte_level = field("model") == "gpt2" and field("pre") in GGUF_SPLITS
    if byte_level and field("merges"):
        backend = _byte_level(file)
    else:
        backend = _by_transformers(file)
    kinds = field("token_type") or [0] * len(tokens)
    ends = {field(name) for name in ("eos_token_id", "eot_token_id", "eom_token_id")} - {None}
    ends |= {
        index
        for index, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == _CONTROL and text in END_TEXTS
    }
    bos, eos = field("bos_token_id"), field("eos_token_id")
    return Tokenizer(
        backend,
        Generation(
            bos_id=bos,
            end_ids=tuple(sorted(ends)),
            bos_text=tokens[bos] if bos is not None else "",
            eos_text=tokens[eos] if eos is not None else "",
            chat_template=file.fields.get("tokenizer.chat_template"),
        ),
    )


def _byte_level(file: GgufFile) -> tokenizers.Tokenizer:
    """GPT-2-style byte-level BPE from the file's vocabulary and merges."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    fields = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in file.fields.items()
        if key.startswith("tokenizer.ggml.")
    }
    tokens: list[str] = fields["tokens"]
    vocabulary = {text: index for index, text in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in fields["merges"]]
    try:
        backend = Backend(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"{file.path}: damaged vocabulary: {error}") from error
    split: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if fields["pre"] in _DIGIT_SPLITS:
        split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    kinds = fields.get("token_type") or [0] * len(tokens)
    for wanted in (_CONTROL, _USER_DEFINED):
        added = [
            AddedToken(text, normalized=False, special=wanted == _CONTROL)
            for text, kind in zip(tokens, kinds, strict=True)
            if kind == wanted
        ]
        (backend.add_special_tokens if wanted == _CONTROL else backend.add_tokens)(added)
    if fields.get("add_bos_token") and (bos := fields.get("bos_token_id")) is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
        )
    return backend


def _by_transformers(file: GgufFile) -> tokenizers.Tokenizer:
    """Vocabularies that transformers converts (SentencePiece, Unigram, other splits)."""
    from tapeout.models.loading import quiet

    try:
        from transformers import AutoTokenizer

        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                file.path.parent, gguf_file=file.path.name, local_files_only=True
            )
    except Exception as error:  # transformers raises whatever its parts raise
        text = " ".join(str(error).split())
        raise ModelError(f"{file.path}: its vocabulary cannot be read: {text[:300]}") from error
    backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
    return backend


def _from_directory(path: Path) -> Tokenizer:
    backend = read_backend(path / "tokenizer.json")
    settings, generation, config = (
        _json(path / name)
        for name in ("tokenizer_config.json", "generation_config.json", "config.json")
    )
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    ends = set(eos if isinstance(eos, list) else [eos]) - {None}
    eos_text, bos_text = _text(settings.get("eos_token")), _text(settings.get("bos_token"))
    added = {token.content: index for index, token in backend.get_added_tokens_decoder().items()}
    ends |= {index for text, index in added.items() if text in END_TEXTS or text == eos_text}
    template_file = path / "chat_template.jinja"
    template = settings.get("chat_template")
    if template_file.is_file():
        template = template_file.read_text(encoding="utf-8")
    if isinstance(template, list):  # several named templates: the default one
        template = {item["name"]: item["template"] for item in template}.get("default")
    return Tokenizer(
        backend,
        Generation(
            bos_id=backend.token_to_id(bos_text) if bos_text else None,
            end_ids=tuple(sorted(ends)),
            bos_text=bos_text,
            eos_text=eos_text,
            chat_template=template,
        ),
    )


def _text(token: Any) -> str:
    """A special token as tokenizer_config.json writes it: a string, or a dict with `content`."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from error
    return values if isinstance(values, dict) else {}
