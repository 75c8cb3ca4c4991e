"""What a second process finds without tracing again, and when it must not."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from compiling import compiled  # noqa: E402
from torch import nn  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402

from tapeout.chip import load  # noqa: E402
from tapeout.compiler import captured  # noqa: E402

pytestmark = pytest.mark.torch
F = nn.functional


@pytest.fixture(autouse=True)
def _empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def traced(f, *args):
    """(the result of `f` compiled as if by a new process, how often AOTAutograd traced)."""
    torch._dynamo.reset()
    counters.clear()
    got = compiled(f)(*args)
    return got, counters["aot_autograd"]["total"]


def twice(f, *args):
    """How often the second of two processes traced; both get what PyTorch gets."""
    expected = f(*args)
    for _ in range(2):
        got, count = traced(f, *args)
        torch.testing.assert_close(got, expected)
    return count


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(9, 16), nn.BatchNorm1d(5)
        self.out = nn.Linear(16, 4)

    def forward(self, ids):
        x = self.norm(self.embed(ids))
        x = F.scaled_dot_product_attention(x, x, x, is_causal=True)
        return F.gelu(self.out(x)).transpose(0, 1), ids.shape[0], x.sum()


def test_a_graph_is_traced_once():
    model = Model().eval()
    with torch.no_grad():
        assert twice(model, torch.arange(10).view(2, 5) % 9) == 0


def test_what_was_found_reads_the_weights_of_now():
    model, x = nn.Linear(8, 4), torch.randn(3, 8)
    with torch.no_grad():
        traced(model, x)
        model.weight.mul_(2.0)
        got, count = traced(model, x)
        assert count == 0
        torch.testing.assert_close(got, model(x))


def test_strides_are_those_of_pytorch():
    def f(x):
        return (x + 1).transpose(0, 1), F.relu(x)

    x = torch.randn(3, 4)
    for _ in range(2):
        got, count = traced(f, x)
    assert [t.stride() for t in got] == [t.stride() for t in f(x)]
    assert count == 0


@pytest.mark.parametrize("f", [
    lambda x: x.add_(1.0),
    lambda x: x.view(-1),
], ids=["changes an input", "shows an input"])  # fmt: skip
def test_what_does_more_than_compute_is_traced_again(f):
    assert twice(f, torch.zeros(2, 3)) > 0


def test_training_is_traced_again():
    model = nn.Linear(8, 4)
    assert twice(model, torch.randn(3, 8)) > 0


@torch.library.custom_op("tapeout_test::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@doubled.register_fake
def _(x):
    return torch.empty_like(x)


def test_the_key_is_of_all_that_decides():
    graphs = []

    def capture(gm, inputs):
        graphs.append((gm, inputs))
        return gm.forward

    def key(f, *args, chip="lab16"):
        torch._dynamo.reset()
        torch.compile(f, backend=capture)(*args)
        return captured.key(*graphs[-1], load(chip))

    x = torch.randn(2, 3)
    with torch.no_grad():
        base = key(lambda x: x + 1, x)
        assert base is not None
        assert base == key(lambda x: x + 1, torch.zeros(2, 3))
        others = [
            key(lambda x: x + 2, x), key(lambda x: x - 1, x), key(lambda x: x + 1, x[:1]),
            key(lambda x: x + 1, x.bfloat16()), key(lambda x: x + 1, torch.randn(3, 2).T),
            key(lambda x: x + 1, x, chip="solo"), key(lambda x: x + 1.0, x),
        ]  # fmt: skip
        with torch.autocast("cpu"):
            others.append(key(lambda x: x + 1, x))
        others.append(key(lambda x: (x + 1) @ x.T, x))
        with torch.autocast("cpu"):
            others.append(key(lambda x: (x + 1) @ x.T, x))
        assert None not in others
        assert len({base, *others}) == len(others) + 1
        assert key(lambda x: doubled(x), x) is None
        torch.compile(lambda x: x[:, :2] + 1, backend=capture, dynamic=True)(x)
        assert captured.key(*graphs[-1], load("lab16")) is None
    assert key(lambda x: x + 1, x.requires_grad_()) is None
