"""`tapeout chat`: turns from piped input; the KV cache is extended, never fed twice."""

import io

import pytest

pytestmark = pytest.mark.torch


def test_turns_from_a_pipe(tapeout, model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n\nAnd you?\n/exit\nnever said\n"))
    said = tapeout("chat", model, "--chip", "tiny", "--tokens", 5)
    assert (said.code, said.err) == (0, "")
    figures = [line for line in said.out.splitlines() if " in, " in line]
    assert len(figures) == 2  # an empty line is no turn, /exit ends
    assert "never" not in said.out


def test_the_end_of_the_input_ends(tapeout, model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello"))
    said = tapeout("chat", model, "--chip", "tiny", "--tokens", 2)
    assert said.code == 0
    assert "/128" in said.out


def test_a_conversation_that_does_not_fit_is_an_error(tapeout, model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("x" * 300 + "\n"))
    said = tapeout("chat", model, "--chip", "tiny")
    assert said.code == 1
    assert "do not fit a KV cache of 128 positions" in said.err


class Recorder:
    """Stands for a session: notes what is fed, replies with given tokens."""

    def __init__(self, artifact, replies):
        self.artifact, self.replies = artifact, iter(replies)
        self.position, self.fed = 0, []

    def _step(self, kind, tokens):
        import numpy as np

        from tapeout.isa.interp import RunResult
        from tapeout.runtime.session import Launch, Step

        launch = Launch(kind, tokens, {"position": self.position})
        self.fed += tokens
        self.position += len(tokens)
        return Step(np.array([next(self.replies)]), RunResult(0, {}), launch)

    def prefill(self, tokens, **options):
        return [self._step("prefill", tokens)]

    def decode(self, tokens, **options):
        return self._step("decode", tokens)


@pytest.mark.parametrize("ended", [True, False])
def test_what_is_fed_is_the_conversation_as_the_template_writes_it(model, ended):
    """A reply that ends by itself, and one that the limit of tokens cuts off."""
    from types import SimpleNamespace

    from tapeout.models import load_tokenizer
    from tapeout.runtime.chat import Conversation

    tokenizer = load_tokenizer(str(model))
    entry = SimpleNamespace(weight_bytes=1, kv_bytes_per_position=1)
    artifact = SimpleNamespace(batch=1, context=1000, programs={"prefill": entry, "decode": entry})
    replies = tokenizer.encode(" hi <|end|>" if ended else " hi ")
    session = Recorder(artifact, replies + tokenizer.encode("ok!"))
    talk = Conversation(session, tokenizer, system="Be brief.")
    out = talk.turn("Hello", len(replies))
    assert str(out.finish) == ("end" if ended else "tokens")
    assert talk.messages[-1] == {"role": "assistant", "content": " hi "}
    talk.turn("And?", 1)
    # The template trims replies; what the model said stays as it said it.
    assert tokenizer.decode(session.fed, skip_special=False) == (
        "<|system|>Be brief.<|end|><|user|>Hello<|end|><|assistant|> hi <|end|>"
        "<|user|>And?<|end|><|assistant|>"
    )
