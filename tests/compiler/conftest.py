"""Random Llamas, small enough for the slow target."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

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


@pytest.fixture(scope="session")
def llama() -> Any:
    return rounded_to_bf16(make_llama())
