"""A small random Llama; without PyTorch there is nothing to collect here."""

from importlib.util import find_spec
from typing import Any

import pytest

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """The same random numbers in every test, and nothing that PyTorch has compiled before."""
    import torch

    torch.manual_seed(0)
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def llama() -> Any:
    """Two layers, matrices that bf16 holds exactly."""
    from random_llama import make_llama, rounded_to_bf16

    return rounded_to_bf16(make_llama())
