"""The cases every simulator is given, as matrix products and convolutions.

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


@dataclass(frozen=True)
class Convolution:
    """`count` convolutions of a square image with square windows, one image at a time."""

    name: str
    size: int
    channels: int
    filters: int
    window: int
    stride: int = 1
    count: int = 1

    @property
    def out(self) -> int:
        """Pixels along a side of the result: the image is padded by half a window."""
        return -(-self.size // self.stride)

    @property
    def padded(self) -> int:
        """Pixels along a side of what the windows cover."""
        return (self.out - 1) * self.stride + self.window

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all `count`, those with padding included."""
        return self.out**2 * self.channels * self.filters * self.window**2 * self.count

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"out": self.out, "padded": self.padded}


Layer = Product | Convolution


def resnet50() -> list[Layer]:
    """ResNet-50 (He et al. 2015) with strides in the 3 x 3 convolutions, as PyTorch has it."""
    layers: list[Layer] = [Convolution("stem", 224, 3, 64, 7, 2)]
    size, channels = 56, 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        stride = 1 if stage == 1 else 2
        small, wide = size // stride, 4 * width
        layers += [
            Convolution(f"{stage} first in", size, channels, width, 1),
            Convolution(f"{stage} first", size, width, width, 3, stride),
            Convolution(f"{stage} shortcut", size, channels, wide, 1, stride),
            Convolution(f"{stage} out", small, width, wide, 1, count=blocks),
            Convolution(f"{stage} in", small, wide, width, 1, count=blocks - 1),
            Convolution(f"{stage} middle", small, width, width, 3, count=blocks - 1),
        ]
        size, channels = small, wide
    return [*layers, Product("classes", 1, channels, 1000)]


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

    def products(self, rows: int, positions: int) -> list[Layer]:
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

CASES: dict[str, list[Layer]] = {
    "gemm": [Product("gemm", 512, 768, 3072)],
    "prefill": SMOLLM2_135M.products(PROMPT_TOKENS, PROMPT_TOKENS),
    "decode": SMOLLM2_135M.products(1, PROMPT_TOKENS),
    "resnet50": resnet50(),
}

TITLES = {
    "gemm": "GEMM, M 512, K 768, N 3072, bf16",
    "prefill": f"SmolLM2-135M, prefill of {PROMPT_TOKENS} tokens, LM head on every token",
    "decode": f"SmolLM2-135M, one token of decode over {PROMPT_TOKENS} positions, batch 1",
    "resnet50": "ResNet-50, one image of 224 x 224, bf16",
}
