"""Random Llamas, small enough for the slow target, and how near the chip must come to them."""

from typing import Any

import numpy as np
import torch

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 40,  # of five tiles of eight lanes
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,  # the last tile of logits is narrower
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def make_llama(**changes: Any) -> Any:
    """A random Llama in float32; weights large enough for logits of a few units."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**(SMALL | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
            else:
                parameter.uniform_(0.5, 1.5)
    return model


def rounded_to_bf16(model: Any) -> Any:
    """The model with matrices that bf16 holds exactly, as the chip stores them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.bfloat16().float())
    return model


def torch_logits(model: Any, tokens: list[int]) -> np.ndarray:
    """float32 [len(tokens), vocab]."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def rounded_logits(model: Any, tokens: list[int]) -> np.ndarray:
    """As `torch_logits` where what enters a matrix product is rounded to bf16 first."""

    def round_input(module: Any, inputs: tuple) -> tuple:
        return tuple(x.bfloat16().float() for x in inputs)

    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    hooks = [m.register_forward_pre_hook(round_input) for m in linears]
    try:
        return torch_logits(model, tokens)
    finally:
        for hook in hooks:
            hook.remove()


def assert_logits(got: dict[int, np.ndarray], model: Any, tokens: list[int]) -> None:
    """Logits by position are torch's in float32, as near as bf16 allows.

    Weights are exact in bf16. The chip rounds what enters a product, as `rounded_logits` does, and
    queries, keys, values and softmax weights besides: about twice the roundings, so the root mean
    square of its error may be 2.5 times that run's, and 5 times at a single position, whose error
    is no average. An operation left out or misplaced moves logits by their own size, fifty times
    that run's error.
    """
    exact = torch_logits(model, tokens)
    noise = np.sqrt(np.mean((rounded_logits(model, tokens) - exact) ** 2))
    assert 0 < noise < exact.std() / 50
    squares = {at: np.mean((logits - exact[at]) ** 2) for at, logits in got.items()}
    ratios = {at: float(np.sqrt(s) / noise) for at, s in squares.items()}
    assert np.sqrt(np.mean([*squares.values()])) < 2.5 * noise, ratios
    assert max(ratios.values()) < 5, ratios
