"""A small random Llama."""

from typing import Any

import pytest

pytest.importorskip("torch")


@pytest.fixture(scope="session")
def llama() -> Any:
    """Two layers, matrices that bf16 holds exactly."""
    from random_llama import make_llama, rounded_to_bf16

    return rounded_to_bf16(make_llama())
