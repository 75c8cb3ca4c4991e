"""What is not stored: regrouped copies, the same twice, what is cheaper to compute again."""

import math

import pytest

torch = pytest.importorskip("torch")

from compiling import compiled  # noqa: E402

from tapeout.compiler import values as v  # noqa: E402
from tapeout.compiler.operators import arithmetic as ar  # noqa: E402
from tapeout.compiler.operators.products import matmul  # noqa: E402
from tapeout.compiler.operators.reductions import reduce  # noqa: E402
from tapeout.compiler.recompute import recomputed  # noqa: E402
from tapeout.compiler.schedule import Group, plan  # noqa: E402
from tapeout.compiler.simplify import regrouped, simplified  # noqa: E402

pytestmark = pytest.mark.torch

F32 = torch.float32


def buffer(name: str, *shape: int) -> v.Buffer:
    return v.Buffer(shape, F32, name)


def made(ends: list[v.Value]):
    """The schedule of values, each with a buffer of its own."""
    return plan([(x, v.Buffer(x.shape, x.dtype, f"out{i}")) for i, x in enumerate(ends)])


def test_the_same_twice_is_computed_once():
    x = buffer("x", 8, 16)
    one, two = ar.mul(ar.add(x, 1.0), x), ar.mul(ar.add(x, 1.0), x)
    first, second = simplified([one, two])
    assert first is second
    third, fourth = simplified([ar.add(x, 0.0), ar.add(x, -0.0)])
    assert third is not fourth


def test_what_is_cut_and_regrouped_is_read_where_it_lies():
    """Logits of all but the last token, as rows: nothing of their size is stored."""
    logits = buffer("logits", 4, 32, 100)
    rows = v.reshape(v.narrow(logits, 1, 0, 31), (4 * 31, 100))
    most = reduce("max", rows, (1,), keep=True)
    total = reduce("sum", ar.exp(ar.sub(rows, v.expand(most, rows.shape))), (1,), keep=True)
    schedule = made(simplified([total]))
    (step,) = schedule.steps
    assert isinstance(step, Group)
    assert step.domain == (4, 31, 100)
    assert all(b.numel == 4 * 31 for b in schedule.stored.values())


def backward_of_an_activation() -> list[v.Value]:
    """tanh of an input with a bias, and its gradient behind a product, as training has them."""
    h = ar.add(buffer("x", 256, 512), buffer("bias", 512))
    t = ar.apply("tanh", h)
    weights = matmul(v.unsqueeze(v.retyped(t, torch.bfloat16), 0), weights_of(512), F32)
    back = matmul(v.retyped(weights, torch.bfloat16), weights_of(512), F32)
    slope = ar.sub(1.0, ar.mul(t, t))
    return [ar.mul(v.squeeze(back, (0,)), slope), ar.mul(h, 2.0)]


def weights_of(n: int) -> v.Value:
    return v.Buffer((1, n, n), torch.bfloat16, "w")


def test_what_is_cheap_is_computed_again():
    ends = simplified(backward_of_an_activation())
    before = made(ends)
    again = recomputed(before)
    assert again is not None
    after = made(regrouped(again))

    def stored(schedule):
        return [x for x in schedule.stored if isinstance(x, v.Map) and x.op == "tanh"]

    assert len(stored(before)) == 1
    assert not stored(after)


def test_a_product_that_is_read_turned_is_computed_turned():
    a, b = v.Buffer((3, 64, 40), torch.bfloat16, "a"), v.Buffer((3, 40, 96), torch.bfloat16, "b")
    turned = v.permute(matmul(a, b, F32), (0, 2, 1))
    (end,) = simplified([v.Map(turned.shape, F32, "add", (buffer("y", 3, 96, 64), turned))])
    seen = v.as_view(end.args[1])
    assert seen.source.shape == (3, 96, 64)
    assert seen.strides[-1] == 1


@pytest.mark.parametrize("shape", [(3, 40, 70), (5, 8, 300), (1, 300, 16)])
def test_turned_tensors_and_products(shape):
    x, y = torch.randn(shape), torch.randn(shape[0], shape[2], shape[1])
    w = torch.randn(shape[0], shape[2], 24)

    def f(x, y, w):
        turned = x.transpose(1, 2)
        flat = [t.reshape(len(t), -1) for t in (turned, y)]
        return turned + y, torch.cat(flat, 1), ((x @ w).transpose(1, 2) * 2).contiguous()

    one, two, three = compiled(f)(x, y, w)
    expected = f(x, y, w)
    assert torch.equal(one, expected[0])
    assert torch.equal(two, expected[1])
    torch.testing.assert_close(three, expected[2], rtol=1e-5, atol=1e-4)  # sums of up to 300


@pytest.mark.parametrize(
    ("shape", "dims"), [((700, 768), (0,)), ((4, 512, 300), (0, 1)), ((90, 40, 16), (0,))]
)
def test_large_folds(shape, dims):
    x, w = torch.randn(shape), torch.randn(shape[-1])

    def f(x, w):
        return (x * w + x.exp()).sum(dims), x.amax(dims)

    for got, expected in zip(compiled(f, chip="solo")(x, w), f(x, w), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-4)


def extremes() -> torch.Tensor:
    x = torch.randn(6, 300) * 20
    x[0], x[1, :5], x[2, 3] = -math.inf, math.inf, math.nan
    x[3, :200], x[4, 0], x[5] = -math.inf, 1e30, 7.0
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_of_extremes(dtype):
    x = extremes().to(dtype)

    def f(x):
        return torch.softmax(x, -1), torch.log_softmax(x, -1)

    error = 1e-6 if dtype == torch.float32 else 1e-2
    for got, expected in zip(compiled(f)(x), f(x), strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True, rtol=error, atol=error)


def test_attention_of_a_query_that_may_see_nothing():
    q = torch.randn(2, 3, 17, 8)
    mask = torch.ones(17, 17, dtype=torch.bool).tril()
    mask[3] = False

    def f(q, k, x):
        return torch.nn.functional.scaled_dot_product_attention(q, k, x, attn_mask=mask)

    torch.testing.assert_close(
        compiled(f)(q, q + 1, q - 1), f(q, q + 1, q - 1), rtol=1e-5, atol=1e-5
    )


def test_one_element_of_each_line_of_an_expression():
    """Cross entropy reads its logits twice: for the maximum and the chosen one, and for the sum."""
    x, target = torch.randn(40, 96), torch.randint(0, 96, (40,))
    target[3] = -100

    def f(x, target):
        return torch.nn.functional.cross_entropy(x, target, reduction="none")

    torch.testing.assert_close(compiled(f)(x, target), f(x, target), rtol=1e-5, atol=1e-5)
