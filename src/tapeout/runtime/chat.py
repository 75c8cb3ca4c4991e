"""A conversation in one session: each turn extends the KV cache by its new tokens only.

The chat template writes whole conversations, while the cache holds what was fed: prompts, and
replies as the model chose their tokens. So a turn renders the conversation with a mark in place of
the last reply, and feeds what follows the mark (the end of that reply's turn, the new message, the
opening of the next reply). What a template would change further back, as some do with the thoughts
in older replies, stays as it was said.
"""

from collections.abc import Callable

from tapeout.models import Tokenizer

from .generate import Finish, Generation, Sampling, generate
from .session import Session

_MARK = "\ue000reply\ue000"  # private use: no template or text has it


class Conversation:
    """Messages and the session that holds them; `session` has batch 1 and is at position 0."""

    def __init__(
        self, session: Session, tokenizer: Tokenizer, *, system: str | None = None
    ) -> None:
        self.session, self.tokenizer = session, tokenizer
        self.messages: list[dict[str, str]] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self._unfed: list[int] = []  # of the last reply, not in the cache yet

    def next_tokens(self, text: str) -> list[int]:
        """The tokens that the user's `text` adds to what the session holds."""
        messages = [*self.messages, {"role": "user", "content": text}]
        if len(messages) < 3 or messages[-2]["role"] != "assistant":
            return self._unfed + self.tokenizer.chat(messages)
        messages[-2] = {"role": "assistant", "content": _MARK}
        tail = self.tokenizer.chat_text(messages).rpartition(_MARK)[2]
        return self._unfed + self.tokenizer.encode(tail, special=False)

    def turn(
        self,
        text: str,
        count: int,
        *,
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] = lambda text: None,
    ) -> Generation:
        """The reply to `text`, `count` tokens at most; `on_text` gets it piece by piece.

        Raises: SessionError where the turn does not fit what is left of the KV cache.
        """
        stream = self.tokenizer.stream()
        ends = self.tokenizer.generation.end_ids
        tokens = self.next_tokens(text)
        pieces: list[str] = []

        def say(piece: str) -> None:
            pieces.append(piece)
            on_text(piece)

        out = generate(
            self.session, tokens, count, end_ids=ends, sampling=sampling,
            on_token=lambda token: say(stream.push(token)),
        )  # fmt: skip
        say(stream.flush())
        self.messages += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": "".join(pieces)},
        ]
        # The template's own text ends the reply's turn: an end id is fed as part of that.
        self._unfed = out.unfed[:-1] if out.finish is Finish.END else out.unfed
        return out
