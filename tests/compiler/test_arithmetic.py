"""Functions that are made of others are as accurate as they say (`operators/arithmetic.py`)."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tapeout.compiler.backend import backend  # noqa: E402

pytestmark = pytest.mark.torch
COUNT = 40_000


def largest_error(f, *inputs) -> float:
    """In ulp of the exact result, which NumPy gives in double precision."""
    torch._dynamo.reset()
    compiled = torch.compile(getattr(torch, f), backend=backend, options={"chip": "lab16"})
    got = compiled(*(torch.from_numpy(x) for x in inputs)).numpy()
    exact = getattr(np, f)(*(x.astype(np.float64) for x in inputs))
    return float((np.abs(got - exact) / np.spacing(np.abs(exact).astype(np.float32))).max())


def test_exp_over_all_its_normal_results():
    x = np.random.default_rng(0).uniform(-87, 88, COUNT).astype(np.float32)
    assert largest_error("exp", x) <= 1.7


def test_divide():
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(COUNT).astype(np.float32) for _ in range(2))
    assert largest_error("divide", a, b) <= 1.6
