"""Layers of networks, forward and backward, against PyTorch; what becomes one step."""

import copy

import pytest

torch = pytest.importorskip("torch")

from compiling import compiled  # noqa: E402
from torch import nn  # noqa: E402

from tapeout.compiler.backend import device  # noqa: E402

pytestmark = pytest.mark.torch


def made_of(chip="lab16") -> set[tuple[str, str]]:
    """Steps of the last program with their kernels."""
    table = device(chip).last.program.source_table
    return {(s.layer, s.kernel) for s in table if s.layer and s.kernel != "graph"}


CONVOLUTIONS = {
    "three by three": (nn.Conv2d(24, 40, 3, padding=1), (2, 24, 7, 6)),
    "few channels, together": (nn.Conv2d(3, 8, 5, 2, padding=2), (2, 3, 15, 16)),
    "few channels, apart": (nn.Conv2d(3, 8, 3, dilation=2), (1, 3, 9, 9)),
    "pointwise, every second pixel": (nn.Conv2d(24, 8, 1, 2), (2, 24, 7, 6)),
    "depthwise": (nn.Conv2d(20, 20, 3, 2, padding=1, groups=20), (2, 20, 7, 6)),
    "depthwise, two outputs each": (nn.Conv2d(6, 12, 3, padding=1, groups=6), (1, 6, 5, 6)),
    "groups": (nn.Conv2d(32, 48, 3, padding=1, groups=2), (1, 32, 5, 4)),
    "small groups": (nn.Conv2d(16, 32, 3, padding=1, groups=4), (1, 16, 5, 4)),
    "a line": (nn.Conv1d(20, 24, 5, 2, padding=1), (2, 20, 19)),
    "a volume": (nn.Conv3d(3, 6, 3, 2, padding=1), (1, 3, 5, 5, 5)),
    "transposed": (nn.ConvTranspose2d(20, 8, 3, 2, padding=1, output_padding=1), (1, 20, 4, 5)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_their_gradients(name):
    layer, shape = CONVOLUTIONS[name]
    x = torch.randn(shape)
    results = []
    for f, make in ((copy.deepcopy(layer), lambda f: f), (copy.deepcopy(layer), compiled)):
        given = x.clone().requires_grad_()
        y = make(f)(given)
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        results.append([y, given.grad, f.weight.grad, f.bias.grad])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_images_are_taken_as_they_lie(order):
    layer = nn.Conv2d(20, 24, 3, padding=1)
    x = torch.randn(2, 20, 5, 6).contiguous(memory_format=order)
    with torch.no_grad():
        torch.testing.assert_close(compiled(layer)(x), layer(x), rtol=1e-5, atol=1e-5)
    ports = {port.order for port in device("lab16").last.inputs if len(port.shape) == 4}
    assert ((0, 2, 3, 1) in ports) == (order is torch.channels_last)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + x)


def test_what_follows_a_convolution_is_computed_where_it_lies():
    model = Residual().eval().bfloat16()
    x = torch.randn(1, 16, 6, 5).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(x), model(x), rtol=3e-2, atol=3e-2)
    # Statistics and scale are vectors of channels; nothing passes over the image again.
    assert [kernel for _, kernel in made_of()] == ["convolution"]


def test_what_follows_a_product_is_computed_where_it_lies():
    model = nn.Sequential(nn.Linear(40, 24), nn.GELU())
    x = torch.randn(2, 9, 40)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.no_grad():
            got, expected = compiled(model)(x.bfloat16().float()), model(x)
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(got, expected, rtol=3e-2, atol=3e-2)
    assert sorted(kernel for _, kernel in made_of()) == ["gemm", "rowwise"]  # a cast, and all else


def test_parameters_are_packed_once_and_again_when_they_change():
    layer = nn.Linear(20, 12)
    f, x = compiled(layer), torch.randn(3, 20)
    with torch.no_grad():
        f(x)
        executable = device("lab16").last
        assert executable.packed
        written = []
        target = executable._target
        write = target.write
        target.write = lambda address, data: (written.append(len(data)), write(address, data))
        try:
            f(x)
            assert len(written) == 1  # x
            layer.weight.data.mul_(2)  # which no version counter tells
            torch.testing.assert_close(f(x), layer(x), rtol=1e-5, atol=1e-5)
        finally:
            del target.write


@pytest.mark.parametrize("n", [1, 5, 8, 20])
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("unit", [False, True])
def test_triangular_systems(n, upper, left, unit):
    a = torch.randn(2, n, n) * 0.3 + 2 * torch.eye(n)
    b = torch.randn(2, n, 3) if left else torch.randn(2, 3, n)

    def solve(a, b):
        return torch.linalg.solve_triangular(a, b, upper=upper, left=left, unitriangular=unit)

    torch.testing.assert_close(compiled(solve)(a, b), solve(a, b), rtol=1e-4, atol=1e-5)


def test_memory_is_addressed_as_pytorch_has_it():
    def f(x):
        padded = nn.functional.pad(x.transpose(1, 2), (1, 1))  # new, row-major in PyTorch
        return padded.as_strided((2, 3, 4), (12, 2, 1), 1)

    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(compiled(f)(x), f(x))


@pytest.mark.parametrize("rows", [5, 100])
def test_rows_that_are_looked_up_twice_add_their_gradients(rows):
    sides = [nn.Embedding(rows, 6), nn.Embedding(rows, 6)]
    sides[1].load_state_dict(sides[0].state_dict())
    index, weight = torch.tensor([[3, 1, 3], [0, 3, 1]]), torch.randn(2, 3, 6)
    for f, table in zip((sides[0], compiled(sides[1])), sides, strict=True):
        (f(index) * weight).sum().backward()
        assert table.weight.grad is not None
    torch.testing.assert_close(sides[1].weight.grad, sides[0].weight.grad, rtol=1e-5, atol=1e-6)


def test_memory_is_used_again(monkeypatch):
    from tapeout.compiler import executable

    model = nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(24, 24), nn.LayerNorm(24))])
    x = torch.randn(9, 24)
    sizes = []
    for least in (1 << 20, 0):
        monkeypatch.setattr(executable, "REUSED_BYTES", least)
        monkeypatch.setenv("XDG_CACHE_HOME", f"/nonexistent/{least}")
        torch._dynamo.reset()
        given = x.clone().requires_grad_()
        y = compiled(model)(given)
        y.square().sum().backward()
        sizes.append(device("lab16").last.heap_bytes)
        expected = x.clone().requires_grad_()
        model(expected).square().sum().backward()
        torch.testing.assert_close(y, model(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(given.grad, expected.grad, rtol=1e-4, atol=1e-4)
    assert sizes[1] < 0.9 * sizes[0]


def test_an_epilogue_reads_an_operand_twice():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(20, 24)

        def forward(self, x, y):
            product = self.a(x)
            return product * product + y * y

    model, x, y = Net(), torch.randn(9, 20), torch.randn(9, 24)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(x, y), model(x, y), rtol=1e-5, atol=1e-5)
