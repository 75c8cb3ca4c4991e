"""Text to token ids and back, and chat templates, without torch or transformers.

Contract: a `Tokenizer` is a `tokenizers` tokenizer plus what generation needs (ids that end a text,
the chat template).  `save` and `read` move it through two JSON files, so that a compiled artifact
carries its own.  `vocabulary.load_tokenizer` builds one from a model; it needs transformers only
for GGUF vocabularies other than the byte-level ones in `vocabulary.GGUF_SPLITS`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapeout.models.errors import ModelError

if TYPE_CHECKING:
    import jinja2
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"
GENERATION_FILE = "generation.json"


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What a model's files say about generating text.

    `end_ids` end a text when sampled; `bos_text`, `eos_text` are what the chat template (Jinja)
    sees as ``bos_token`` and ``eos_token``.
    """

    bos_id: int | None = None
    end_ids: tuple[int, ...] = ()
    bos_text: str = ""
    eos_text: str = ""
    chat_template: str | None = None


class Tokenizer:
    """Encode, decode, stream and chat.  Ids are ints, text is str."""

    def __init__(self, backend: tokenizers.Tokenizer, generation: Generation) -> None:
        self.backend, self.generation = backend, generation

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to this, exclusive."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of `text`; `special` adds what the model puts around a text (for many a BOS)."""
        return list(self.backend.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special))

    def stream(self, *, skip_special: bool = True) -> TextStream:
        """A decoder fed one id at a time."""
        return TextStream(self, skip_special=skip_special)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Ids of a conversation; `messages` are ``{"role": ..., "content": ...}``."""
        return self.encode(
            self.chat_text(messages, add_generation_prompt=add_generation_prompt), special=False
        )

    def chat_text(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """The conversation as the chat template writes it.  `ModelError` without a template."""
        import jinja2

        if self.generation.chat_template is None:
            raise ModelError(
                "this model has no chat template: it was not trained for conversation; "
                "use `tapeout run` with a prompt"
            )
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                bos_token=self.generation.bos_text,
                eos_token=self.generation.eos_text,
            )
        except jinja2.TemplateError as error:
            raise ModelError(
                f"the model's chat template refuses these messages: {error}"
            ) from error

    @cached_property
    def _template(self) -> jinja2.Template:
        """The template in the sandbox and with the extras that Hugging Face templates rely on."""
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> str:
            raise jinja2.TemplateError(message)

        def to_json(value: Any, indent: int | None = None) -> str:
            return json.dumps(value, ensure_ascii=False, indent=indent)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment.from_string(self.generation.chat_template or "")

    def save(self, directory: Path) -> None:
        """Write `TOKENIZER_FILE` and `GENERATION_FILE` into `directory`."""
        self.backend.save(str(directory / TOKENIZER_FILE), pretty=False)
        text = json.dumps(asdict(self.generation), indent=1)
        (directory / GENERATION_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Tokenizer:
        """What `save` wrote."""
        path = directory / GENERATION_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            generation = Generation(**(values | {"end_ids": tuple(values["end_ids"])}))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{path}: not a saved tokenizer's metadata: {error}") from error
        return cls(read_backend(directory / TOKENIZER_FILE), generation)


class TextStream:
    """Turns ids into text as they come, never inside a character.

    The pieces from `push`, with `flush` at the end, join to `Tokenizer.decode` of all ids: text is
    held back while it ends in U+FFFD (the bytes of a character may still be on their way), and each
    piece is decoded behind the one before it, so that decoders which treat the first token of a
    text in a special way (SentencePiece's leading space) see no new text.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special
        self._shown: list[int] = []  # ids of the last piece, kept as context
        self._held: list[int] = []  # ids not shown yet

    def push(self, token: int) -> str:
        """The text that `token` completes, often empty inside a multi-byte character."""
        self._held.append(token)
        piece = self._piece()
        if not piece or piece.endswith("\ufffd"):
            return ""
        return self._show(piece)

    def flush(self) -> str:
        """What is still held back, at the end of a text."""
        return self._show(self._piece())

    def _piece(self) -> str:
        before = self._tokenizer.decode(self._shown, skip_special=self._skip)
        both = self._tokenizer.decode(self._shown + self._held, skip_special=self._skip)
        return both[len(before) :]

    def _show(self, piece: str) -> str:
        self._shown, self._held = self._held, []
        return piece


def read_backend(path: Path) -> tokenizers.Tokenizer:
    """The `tokenizers` tokenizer in a tokenizer.json."""
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises bare Exception on bad JSON
        raise ModelError(f"{path}: not a readable tokenizer.json: {error}") from error
