"""The tile language: kernels are Python functions that trace instructions.

`Builder` holds the program; `ops` are the operations; tokens, banks, registers and loops are
assigned by the builder. `Tensor` is an on-chip tensor, `HbmTensor` one in HBM.
"""

from .builder import ARGS_BASE, Builder
from .memory import ChipTooSmall
from .scalar import Arg, LoopVar, Scalar
from .tensor import HbmTensor, Tensor
from .weights import Matrix, WeightRing

__all__ = [
    "ARGS_BASE",
    "Arg",
    "Builder",
    "ChipTooSmall",
    "HbmTensor",
    "LoopVar",
    "Matrix",
    "Scalar",
    "Tensor",
    "WeightRing",
]
