"""The exported step: same logits as Hugging Face, whatever the chunks and positions."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from conftest import make_model  # noqa: E402

from tapeout.models import Decoder, Logits, ModelError, export  # noqa: E402

pytestmark = pytest.mark.torch

# One float32 accumulation order differs between cached and uncached attention; logits are about 10.
ATOL = 2e-4


def targets(program: Any) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def run_chunks(model: Any, tokens: Any, sizes: list[int], max_context: int = 48) -> Any:
    """Logits of `tokens` [B, T] by exported programs of `sizes`, the cache carried between them."""
    batch, position, logits = tokens.shape[0], 0, []
    programs = {
        size: export(model, batch=batch, tokens=size, max_context=max_context).module()
        for size in set(sizes)
    }
    cache: dict[str, Any] = {}
    for size in sizes:
        step = programs[size]
        for name, value in step.named_buffers():
            if name in cache:
                value.copy_(cache[name])
        where = torch.full((batch,), position)
        with torch.no_grad():
            logits.append(step(tokens[:, position : position + size], where))
        cache = {n: v.clone() for n, v in step.named_buffers() if "_cache_" in n}
        position += size
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        pytest.param(
            "llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}, marks=pytest.mark.slow
        ),
        pytest.param("llama", {"head_dim": 32, "attention_bias": True}, marks=pytest.mark.slow),
        pytest.param("qwen2", {}, marks=pytest.mark.slow),
        pytest.param("qwen3", {"head_dim": 32}, marks=pytest.mark.slow),
        pytest.param("mistral", {"sliding_window": 48}, marks=pytest.mark.slow),
        pytest.param("phi3", {}, marks=pytest.mark.slow),
        pytest.param("gemma3_text", {"head_dim": 16, "sliding_window": 48}, marks=pytest.mark.slow),
    ],
)
def test_chunks_then_decode_equal_the_model(family: str, changes: dict[str, Any]) -> None:
    model = make_model(family, **changes)
    tokens = torch.randint(3, 160, (2, 19), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        reference = model(tokens, use_cache=False).logits
    ours = run_chunks(model, tokens, [8, 8, 1, 1, 1])
    torch.testing.assert_close(ours, reference, atol=ATOL, rtol=0)


def test_rows_have_their_own_positions() -> None:
    model = make_model()
    tokens = torch.randint(3, 160, (3, 20), generator=torch.Generator().manual_seed(2))
    lengths = [3, 11, 7]
    decoder = Decoder(model, batch=3, max_context=32)
    with torch.no_grad():
        decoder(tokens[:, :16], torch.zeros(3, dtype=torch.int64))  # too long on purpose: stale
        cache = {n: v.clone() for n, v in decoder.named_buffers(recurse=False)}
    step = export(model, batch=3, tokens=1, max_context=32).module()
    for name, value in step.named_buffers():
        if name in cache:
            value.copy_(cache[name])
    position = torch.tensor(lengths)
    fresh = torch.tensor([[40], [50], [60]])
    with torch.no_grad():
        ours = step(fresh, position)
        for row, length in enumerate(lengths):
            text = torch.cat([tokens[row, :length], fresh[row]])[None]
            reference = model(text, use_cache=False).logits[:, -1:]
            torch.testing.assert_close(ours[row : row + 1], reference, atol=ATOL, rtol=0)


def test_a_wrong_position_is_seen() -> None:
    """The comparison above can fail: one position off changes the logits by far more than ATOL."""
    model = make_model()
    tokens = torch.randint(3, 160, (1, 9), generator=torch.Generator().manual_seed(3))
    decoder = Decoder(model, batch=1, max_context=32)
    with torch.no_grad():
        reference = model(tokens, use_cache=False).logits[:, -1]
        decoder(tokens[:, :8], torch.tensor([0]))
        off = decoder(tokens[:, 8:], torch.tensor([9]))[:, -1]
    assert (off - reference).abs().max() > 100 * ATOL


def test_last_and_selected_logits() -> None:
    model = make_model()
    tokens = torch.randint(3, 160, (2, 8), generator=torch.Generator().manual_seed(4))
    start, select = torch.zeros(2, dtype=torch.int64), torch.tensor([2, 6])
    with torch.no_grad():
        reference = model(tokens, use_cache=False).logits
        options: dict[str, Any] = {"batch": 2, "tokens": 8, "max_context": 16}
        last = export(model, **options, logits=Logits.LAST).module()(tokens, start)
        some = export(model, **options, logits=Logits.SELECT).module()(tokens, start, select)
        after = model(tokens, use_cache=False).logits
    torch.testing.assert_close(last, reference[:, -1:], atol=ATOL, rtol=0)
    torch.testing.assert_close(some, reference[[0, 1], select][:, None], atol=ATOL, rtol=0)
    assert torch.equal(after, reference), "export left a hook on the model"
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 4), (3, 1)])
def test_graph_is_whole_and_functional(batch: int, tokens: int) -> None:
    program = export(make_model(), batch=batch, tokens=tokens, max_context=16)
    names = targets(program)
    assert names.count("aten.scaled_dot_product_attention.default") == 2
    assert names.count("aten.linear.default") == 2 * 7 + 1
    assert names.count("aten.silu.default") == 2
    assert names.count("aten.index_put.default") == 4
    assert not [n for n in names if "_assert" in n or n.endswith("_.default") or "clone" in n]
    attention = next(n for n in program.graph.nodes if "scaled_dot" in str(n.target))
    assert attention.kwargs["enable_gqa"] is True
    assert attention.args[1].meta["val"].shape == (batch, 2, 16, 16)
    assert attention.args[3].meta["val"].dtype == torch.bool
    assert set(program.graph_signature.buffers_to_mutate.values()) == {
        f"{kind}_cache_{layer}" for kind, layer in itertools.product(("key", "value"), (0, 1))
    }
    assert program.graph_signature.user_inputs == ("tokens", "position")


def test_what_cannot_be_exported_says_why() -> None:
    with pytest.raises(ModelError, match="positions allow 1 to 64"):
        export(make_model(), batch=1, tokens=1, max_context=65)
    windowed = make_model("mistral", sliding_window=32)
    with pytest.raises(ModelError, match="a context of 32 tokens or fewer needs no sliding"):
        export(windowed, batch=1, tokens=1, max_context=33)
    with pytest.raises(ModelError, match="'softcap' is not supported"):
        export(make_model("gemma2", sliding_window=64), batch=1, tokens=1, max_context=16)
    own = make_model(
        "gpt_neo",
        num_layers=2,
        num_heads=4,
        num_key_value_heads=4,
        attention_types=[[["global"], 2]],
    )
    with pytest.raises(ModelError, match="gpt_neo models do their own attention"):
        export(own, batch=1, tokens=1, max_context=16)


def test_reset_empties_the_cache() -> None:
    decoder = Decoder(make_model(), batch=1, max_context=16)
    with torch.no_grad():
        decoder(torch.tensor([[5, 6]]), torch.tensor([0]))
    assert decoder.key_cache_1[:, :, :2].abs().min() > 0
    assert decoder.value_cache_0[:, :, 2:].abs().max() == 0
    decoder.reset()
    assert decoder.key_cache_1.abs().max() == 0


@pytest.mark.slow
@pytest.mark.model
def test_smollm2_in_chunks(smollm2: Any, smollm2_tokenizer: Any, english: str) -> None:
    tokens = torch.tensor([smollm2_tokenizer.encode(english)[:38]])
    with torch.no_grad():
        reference = smollm2.module(tokens, use_cache=False).logits
    ours = run_chunks(smollm2.module, tokens, [16, 16, 1, 1, 1, 1, 1, 1], max_context=64)
    torch.testing.assert_close(ours, reference, atol=1e-3, rtol=0)
    assert torch.equal(ours.argmax(-1), reference.argmax(-1))
