"""`torch.compile` with this backend: forward and backward against PyTorch, and what is refused."""

import pytest

torch = pytest.importorskip("torch")

from compiling import compiled  # noqa: E402
from torch import nn  # noqa: E402

from tapeout.chip import load  # noqa: E402
from tapeout.compiler.backend import Device, backend, device  # noqa: E402
from tapeout.compiler.executable import RangeError  # noqa: E402

pytestmark = pytest.mark.torch
F = nn.functional


def assert_same(f, *args, chip="lab16", rtol=1e-5, atol=1e-5):
    expected = f(*args)
    got = compiled(f, chip=chip)(*args)
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(20, 40), nn.Linear(40, 10)
        self.norm = nn.LayerNorm(40)

    def forward(self, x):
        return self.b(F.gelu(self.norm(self.a(x))))


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.n = nn.BatchNorm2d(8)
        self.d = nn.Conv2d(8, 4, 3, groups=2)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.n(self.c(x))), 2)
        return F.log_softmax(self.d(x).flatten(1), -1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 50)

    def forward(self, tokens):
        x = self.embed(tokens)
        q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


MODELS = {
    "mlp": (Mlp, lambda: torch.randn(6, 20)),
    "convolutional": (Convolutional, lambda: torch.randn(2, 3, 14, 14)),
    "attention": (Attention, lambda: torch.randint(0, 50, (2, 9))),
}


@pytest.mark.parametrize("chip", ["tiny", "lab16", "solo"])
@pytest.mark.parametrize("name", MODELS)
def test_forward_and_gradients_of_a_model(name, chip):
    make, inputs = MODELS[name]
    model, x = make(), inputs()
    expected = model(x)
    (expected**2).mean().backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    if name == "convolutional":
        model.n.reset_running_stats()
    got = compiled(model, chip=chip)(x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    (got**2).mean().backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[n], rtol=1e-4, atol=1e-5, msg=n)


def test_the_same_bits_on_interp_and_sim():
    model, x = Mlp(), torch.randn(4, 20)
    with torch.no_grad():
        a, b = (compiled(model, chip="tiny", target=target)(x) for target in ("interp", "sim"))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x.softmax(0),
        lambda x: x.permute(2, 0, 1).contiguous(),
        lambda x: x.flip(0, 2),
        lambda x: torch.cat([x, x[:, :2]], 1).cumsum(1),
        lambda x: x.sort(1, descending=True).values,
        lambda x: x.amax((0, 2)) + x.var(1).sum(),
        lambda x: torch.where(x > 0, x, x.exp())[..., 1::2],
        lambda x: F.pad(x, (1, 2, 0, 1), value=3.0).unfold(2, 3, 2).sum(-1),
        lambda x: x.reshape(-1)[torch.tensor([3, 0, -1, 3])],
        lambda x: torch.zeros(6).scatter_add(0, torch.tensor([1, 1, 5]), x[0, 0, :3]),
    ],
)
def test_functions_of_a_tensor(f):
    assert_same(f, torch.randn(3, 5, 7))


@pytest.mark.parametrize(
    ("precision", "error"), [("highest", 1e-6), ("high", 1e-4), ("medium", 1e-1)]
)
def test_products_have_the_precision_that_pytorch_is_set_to(precision, error):
    a, b = torch.randn(40, 70), torch.randn(70, 30)
    torch.set_float32_matmul_precision(precision)
    try:
        got = compiled(lambda x, y: x @ y)(a, b)
    finally:
        torch.set_float32_matmul_precision("highest")
    worst = (got - a @ b).abs().max() / (a.abs() @ b.abs()).max()
    assert worst < error
    assert precision == "highest" or worst > error / 1000


def test_integers_and_booleans_go_through():
    x = torch.randint(-50, 50, (4, 6))
    assert_same(lambda x: (x // 7, x % 7, x > 3, (x & 12) | 1, x.argmax(1)), x, rtol=0, atol=0)


def test_an_integer_that_the_chip_does_not_hold_is_refused():
    with pytest.raises(RangeError, match="16777216"):
        compiled(lambda x: x + 1)(torch.tensor([1 << 25]))


def _message(f, *args) -> str:
    with pytest.raises(Exception) as caught:
        compiled(f)(*args)
    return str(caught.value)


def test_what_the_compiler_has_not_is_named_with_the_users_line():
    text = _message(lambda x: torch.linalg.qr(x)[0], torch.randn(3, 3))
    assert "aten.linalg_qr.default" in text
    assert "test_backend.py" in text


def test_a_type_that_the_chip_has_not_is_named():
    assert "float64 tensors" in _message(lambda x: x * 2, torch.randn(3, dtype=torch.float64))


def test_an_unknown_option_or_target_is_refused():
    with pytest.raises(Exception, match="there are chip, target, buckets"):
        torch.compile(lambda x: x + 1, backend=backend, options={"chips": 1})(torch.ones(2))
    with pytest.raises(ValueError, match="sim"):
        Device(load("tiny"), "silicon")


def test_it_is_found_by_its_name():
    assert "tapeout" in torch._dynamo.list_backends()


def test_the_device_tells_what_the_last_graph_took():
    compiled(lambda x: x + 1, chip="tiny")(torch.ones(5))
    last = device("tiny").last
    assert last is not None
    assert last.last.cycles > 0
