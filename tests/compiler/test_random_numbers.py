"""Random numbers: distribution, and the same bits for the same seed on every target."""

import pytest

torch = pytest.importorskip("torch")

from tapeout.compiler.backend import backend  # noqa: E402

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
