"""Random numbers: distribution, and the same bits for the same seed on every target."""

import math

import pytest

torch = pytest.importorskip("torch")

from tapeout.compiler.backend import backend  # noqa: E402
from tapeout.compiler.operators import random  # noqa: E402
from tapeout.compiler.operators.rounding import round_stochastically  # noqa: E402

pytestmark = pytest.mark.torch


def draw(f, seed, chip="lab16", target="sim"):
    torch._dynamo.reset()
    torch.manual_seed(seed)
    return torch.compile(f, backend=backend, options={"chip": chip, "target": target})()


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1].abs().item()


def test_the_seed_decides_on_every_chip_and_target():
    def f():
        return torch.rand(40), torch.randn(5, 9)

    first = draw(f, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(f, 3), strict=True))
    for chip, target in (("tiny", "sim"), ("tiny", "interp"), ("solo", "sim")):
        other = draw(f, 3, chip, target)
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True)), (chip, target)
    assert not torch.equal(first[0], draw(f, 4)[0])


def test_uniform_numbers_are_even_and_neighbours_independent():
    """Bounds are five standard deviations of 60,000 independent numbers."""
    u = draw(lambda: torch.rand(60_000), 0, "solo")
    other = draw(lambda: torch.rand(60_000), 1, "solo")
    counts = torch.histc(u, 100, 0, 1)
    assert ((counts - 600) ** 2 / 600).sum() < 99 + 5 * (2 * 99) ** 0.5
    limit = 5 / 60_000**0.5
    for distance in (1, 2, 64, 128, 4096):
        assert correlation(u[:-distance], u[distance:]) < limit, distance
    assert correlation(u, other) < limit
    whole = (u.double() * 2**24).long()
    for bit in range(24):
        b = (whole >> bit & 1).double()
        assert abs(b.mean() - 0.5) < limit, bit
        assert correlation(b[:-1], b[1:]) < limit, bit


def test_normal_numbers_have_their_moments():
    x = draw(lambda: torch.randn(50_000), 2, "solo").double()
    assert abs(x.mean()) < 0.025
    assert abs(x.var() - 1) < 0.035
    assert abs((x**4).mean() - 3) < 0.25


def test_a_permutation_and_a_dropout():
    order = draw(lambda: torch.randperm(77), 0)
    assert sorted(order.tolist()) == list(range(77))
    assert order.tolist() != list(range(77))
    y = draw(lambda: torch.nn.functional.dropout(torch.ones(300, 40), 0.25), 1)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs((y == 0).double().mean() - 0.25) < 5 * (0.25 * 0.75 / 12_000) ** 0.5


# --- stochastic rounding --------------------------------------------------------------------------


def rounded(x, seed=0, chip="lab16", target="sim"):
    xs = [x, -x, 2 * x]
    return draw(lambda: round_stochastically(xs), seed, chip, target)


def neighbours(x):
    """What of bf16 lies next to float32 x, toward zero and away from it."""
    down = (x.view(torch.int32) & ~0xFFFF).view(torch.float32)
    up = ((down.view(torch.int32)) + 0x10000).view(torch.float32)
    return down, torch.where(down == x, x, up)


def test_rounding_goes_to_a_neighbour_and_is_right_on_average():
    """Bounds are five standard deviations; numbers just above and below powers of two, too."""
    some = torch.tensor([1.0, 1.001, 1.003, 1.9999, 2.0001, -3.3, 0.4999, 1e-20, -7e30])
    for chosen in some:
        x = chosen.expand(4096).contiguous()
        for factor, got in zip((1.0, -1.0, 2.0), rounded(x, chip="solo"), strict=True):
            down, up = neighbours(x * factor)
            assert ((got == down) | (got == up)).all(), chosen
            share = (got.double() - down.double()).abs() / (up.double() - down.double()).abs()
            p = ((x * factor).double() - down.double())[0] / (up.double() - down.double())[0]
            if chosen == 1.0:
                assert torch.equal(got.float(), x * factor)
            else:
                limit = 5 * (p * (1 - p) / 4096).sqrt() + 2.0**-12
                assert (share.mean() - p).abs() < limit, (chosen, factor)


def test_tensors_that_are_rounded_together_are_rounded_independently():
    x = torch.full((60_000,), 1.0 + 2.0**-8)
    up = [(t.double() - t.double().mean()).sign() for t in rounded(x, chip="solo")]
    limit = 5 / 60_000**0.5
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert correlation(up[a], up[b]) < limit, (a, b)
    for distance in (1, 2, 64, 128, 4096):
        assert correlation(up[0][:-distance], up[0][distance:]) < limit, distance


def test_rounding_keeps_what_bf16_has_and_goes_no_farther_than_to_nearest():
    largest = torch.finfo(torch.bfloat16).max
    x = torch.tensor([0.0, 1.5, -2.0, math.inf, -math.inf, math.nan, 2.0**-126, largest, 3.392e38])
    for seed in range(4):
        torch.manual_seed(seed)
        for got in (rounded(x, seed)[0].float(), round_stochastically([x])[0].float()):
            torch.testing.assert_close(got, x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)
    for a, b in zip(rounded(x, chip="tiny", target="interp"), rounded(x, chip="solo"), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_the_definition_for_pytorch_is_right_on_average():
    torch.manual_seed(0)
    x = torch.full((60_000,), 1.001)
    (got,) = round_stochastically([x])
    assert set(got.tolist()) == {1.0, 1.0078125}
    assert (got.double().mean() - x.double().mean()).abs() < 5 * 0.0078 * 0.34 / 60_000**0.5


def test_more_numbers_than_a_counter_has(monkeypatch):
    """As beyond 2^24, at a size that runs: rows have their seeds."""
    monkeypatch.setattr(random, "INT_MAX", 4096)
    u = draw(lambda: torch.rand(60, 50, 20), 0, "solo")
    flat = u.reshape(60, -1)
    limit = 5 / flat.numel() ** 0.5
    assert abs(u.mean() - 0.5) < limit * 12**-0.5
    assert correlation(flat[:-1].flatten(), flat[1:].flatten()) < limit
    assert len(set(flat.flatten().tolist())) > 59_000
    with pytest.raises(Exception, match="at most 4096 along a dimension"):
        draw(lambda: torch.rand(5000), 0, "solo")
