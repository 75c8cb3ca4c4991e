"""Text and ids: equal to transformers, whole characters in a stream, chat as Hugging Face does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tapeout.models import Generation, ModelError, Tokenizer, load_tokenizer, resolve

TEXTS = [
    "The capital of France is",
    "  leading and trailing  ",
    "tabs\tand\r\nlines\n\n\nhere",
    "don't, it's, we'll, I'm, they've; DON'T",
    "3.14159 + 2 = 5.14159, 1,000,000",
    "naïve café, Ωμέγα, Привет, 日本語, 한국어, مرحبا",
    "😀 👨‍👩‍👧 🏳️‍🌈 \u200b\u00a0",
    "def f(x):\n    return x ** 2  # square\n",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<html><body class='a'>&amp;</body></html>",
    "",
]
CHAT = [
    {"role": "user", "content": "Hi! 😀"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "  What is 12 x 3?\n"},
]


@pytest.fixture(scope="module")
def reference() -> Any:
    """transformers' own tokenizer from the same GGUF (5 s)."""
    transformers = pytest.importorskip("transformers")
    path = resolve("smollm2-135m").path
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.slow
def test_equal_to_transformers(smollm2_tokenizer: Any, reference: Any, english: str) -> None:
    for text in [*TEXTS, english]:
        ids = smollm2_tokenizer.encode(text)
        assert ids == reference.encode(text), text
        assert smollm2_tokenizer.decode(ids) == reference.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    assert smollm2_tokenizer.vocab_size == len(reference)


@pytest.mark.slow
def test_chat_equals_transformers(smollm2_tokenizer: Any, reference: Any) -> None:
    for messages in (CHAT, [{"role": "system", "content": "Be brief."}, *CHAT]):
        for prompt in (True, False):
            expected = reference.apply_chat_template(
                messages, add_generation_prompt=prompt, tokenize=False
            )
            got = smollm2_tokenizer.chat_text(messages, add_generation_prompt=prompt)
            assert got == expected
            assert smollm2_tokenizer.chat(messages, add_generation_prompt=prompt) == (
                reference.encode(expected, add_special_tokens=False)
            )


def test_digits_are_split_before_spaces(smollm2_tokenizer: Any) -> None:
    """As the model was trained (llama.cpp agrees); transformers' GGUF reader forgets the rule."""
    pieces = [smollm2_tokenizer.backend.id_to_token(i) for i in smollm2_tokenizer.encode("a  12")]
    assert pieces == ["a", "ĠĠ", "1", "2"]


def test_smollm2_generation(smollm2_tokenizer: Any) -> None:
    generation = smollm2_tokenizer.generation
    assert generation.end_ids == (0, 2)
    assert (generation.bos_id, generation.bos_text) == (1, "<|im_start|>")
    assert smollm2_tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    ids = smollm2_tokenizer.chat(CHAT)
    assert ids[0] == 1
    assert ids.count(2) == 4  # three messages and the default system prompt
    assert smollm2_tokenizer.decode(ids).endswith("assistant\n")


@pytest.mark.parametrize("skip", [True, False])
def test_stream_joins_to_the_whole(smollm2_tokenizer: Any, skip: bool) -> None:
    chance = random.Random(11)
    sequences = [smollm2_tokenizer.encode(text) for text in TEXTS]
    sequences += [[chance.randrange(49152) for _ in range(60)] for _ in range(50)]
    sequences += [[chance.randrange(300) for _ in range(60)] for _ in range(50)]  # lone bytes
    for ids in sequences:
        stream = smollm2_tokenizer.stream(skip_special=skip)
        pieces = [stream.push(token) for token in ids] + [stream.flush()]
        assert "".join(pieces) == smollm2_tokenizer.decode(ids, skip_special=skip)


def test_stream_never_shows_half_a_character(smollm2_tokenizer: Any) -> None:
    stream = smollm2_tokenizer.stream()
    ids = smollm2_tokenizer.encode("a 👨‍👩‍👧 b")
    pieces = [stream.push(token) for token in ids]
    assert "\ufffd" not in "".join(pieces)
    assert "" in pieces
    assert stream.flush() == ""


def test_stream_keeps_sentencepiece_spaces() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    words = {"▁Hello": 0, "▁world": 1, "s": 2}
    backend = Backend(models.WordLevel(words, unk_token="s"))
    backend.decoder = decoders.Metaspace()
    stream = Tokenizer(backend, Generation()).stream()
    assert [stream.push(token) for token in (0, 1, 2, 1)] == ["Hello", " world", "s", " world"]


def test_saved_and_read_back(smollm2_tokenizer: Any, tmp_path: Path) -> None:
    smollm2_tokenizer.save(tmp_path)
    again = Tokenizer.read(tmp_path)
    assert again.generation == smollm2_tokenizer.generation
    for text in TEXTS:
        assert again.encode(text) == smollm2_tokenizer.encode(text)
    assert again.chat(CHAT) == smollm2_tokenizer.chat(CHAT)
    (tmp_path / "generation.json").write_text('{"surprise": 1, "end_ids": []}')
    with pytest.raises(ModelError, match="not a saved tokenizer's metadata"):
        Tokenizer.read(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    smollm2_tokenizer.save(tmp_path / ".")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"not a readable tokenizer\.json"):
        Tokenizer.read(tmp_path)


def test_bos_is_added_where_the_file_says_so(tiny_gguf: Path) -> None:
    tokenizer = load_tokenizer(tiny_gguf)
    assert tokenizer.encode("ab")[0] == 1
    assert tokenizer.encode("ab", special=False) == tokenizer.encode("ab")[1:]
    assert tokenizer.generation.end_ids == (2,)
    # The template writes its own BOS: chat must not add a second one.
    assert tokenizer.chat([{"role": "user", "content": "ab"}]) == tokenizer.encode("ab")


def test_hugging_face_directory(smollm2_tokenizer: Any, tmp_path: Path) -> None:
    smollm2_tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "eos_token_id": 7}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    (tmp_path / "tokenizer_config.json").write_text(
        '{"bos_token": {"content": "<|im_start|>"}, "eos_token": "<file_sep>",'
        ' "chat_template": [{"name": "default", "template": "{{ eos_token }}"}]}'
    )
    header = b'{"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    tokenizer = load_tokenizer(tmp_path)
    file_sep = smollm2_tokenizer.backend.token_to_id("<file_sep>")
    assert set(tokenizer.generation.end_ids) == {0, 2, 5, 6, file_sep}
    assert tokenizer.generation.bos_id == 1
    assert tokenizer.chat(CHAT) == [file_sep]
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}")
    assert load_tokenizer(tmp_path).chat(CHAT) == [1]


def test_chat_refusals(smollm2_tokenizer: Any) -> None:
    backend = smollm2_tokenizer.backend
    with pytest.raises(ModelError, match="no chat template"):
        Tokenizer(backend, Generation()).chat(CHAT)
    strict = Generation(chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ModelError, match="roles must alternate"):
        Tokenizer(backend, strict).chat(CHAT)
    unsafe = Generation(chat_template="{{ messages.__class__.__mro__ }}")
    with pytest.raises(ModelError, match="unsafe"):
        Tokenizer(backend, unsafe).chat(CHAT)
    broken = Generation(chat_template="{% if %}")
    with pytest.raises(ModelError, match="chat template"):
        Tokenizer(backend, broken).chat(CHAT)


def test_vocabulary_of_another_kind_needs_transformers_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tokenizer_model("abacus")
    writer.add_token_list(["a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="its vocabulary cannot be read"):
        load_tokenizer(tmp_path / "x.gguf")
