"""The cases every simulator is given, as matrix products.

A product is [m, k] @ [k, n]; `count` says how often it occurs in the case. Attention is counted
over all positions (full, not causal), the query heads of a group stacked as rows against their one
K or V.
"""

from dataclasses import asdict, dataclass
from typing import Any

PROMPT_TOKENS = 128  # of the prefill; the token of decode attends to as many, itself the last


@dataclass(frozen=True)
class Product:
    """`count` products [m, k] @ [k, n]."""

    name: str
    m: int
    k: int
    n: int
    count: int = 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all `count`."""
        return self.m * self.k * self.n * self.count

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Llama:
    """The sizes of a Llama that decide its products."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    layers: int
    vocab: int

    def products(self, rows: int, positions: int) -> list[Product]:
        """`rows` new tokens of one sequence, attending to `positions` each; logits of all."""
        h, d, group = self.hidden, self.head_dim, self.heads // self.kv_heads
        kv = self.layers * self.kv_heads
        return [
            Product("qkv", rows, h, (self.heads + 2 * self.kv_heads) * d, self.layers),
            Product("scores", group * rows, d, positions, kv),
            Product("values", group * rows, positions, d, kv),
            Product("output", rows, self.heads * d, h, self.layers),
            Product("gate_up", rows, h, 2 * self.intermediate, self.layers),
            Product("down", rows, self.intermediate, h, self.layers),
            Product("lm_head", rows, h, self.vocab),
        ]

    @property
    def matrix_parameters(self) -> int:
        """Weights of all matrices that multiply, LM head included."""
        return sum(p.macs for p in self.products(1, 0))

    def attention_macs(self, tokens: int, *, causal: bool) -> int:
        """Of a prefill of `tokens`, scores and values."""
        pairs = tokens * (tokens + 1) // 2 if causal else tokens * tokens
        return 2 * self.layers * self.heads * self.head_dim * pairs


SMOLLM2_135M = Llama(
    hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536, layers=30, vocab=49152
)

CASES: dict[str, list[Product]] = {
    "gemm": [Product("gemm", 512, 768, 3072)],
    "prefill": SMOLLM2_135M.products(PROMPT_TOKENS, PROMPT_TOKENS),
    "decode": SMOLLM2_135M.products(1, PROMPT_TOKENS),
}

TITLES = {
    "gemm": "GEMM, M 512, K 768, N 3072, bf16",
    "prefill": f"SmolLM2-135M, prefill of {PROMPT_TOKENS} tokens, LM head on every token",
    "decode": f"SmolLM2-135M, one token of decode over {PROMPT_TOKENS} positions, batch 1",
}
