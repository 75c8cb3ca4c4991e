"""ATen operators, by what they do; importing this package registers them (`registry`)."""

from . import (
    constants,
    convolution,
    distances,
    elementwise,
    experts,
    indexing,
    parts,
    pooling,
    products,
    random,
    reductions,
    rounding,
    softmax,
    solving,
    sorting,
    views,
)  # fmt: skip
from .registry import LOWERINGS, Meta, Unsupported, decompositions

__all__ = [
    "LOWERINGS", "Meta", "Unsupported", "constants", "convolution", "decompositions", "distances",
    "elementwise", "experts", "indexing", "parts", "pooling", "products", "random", "reductions",
    "rounding", "softmax", "solving", "sorting", "views",
]  # fmt: skip
