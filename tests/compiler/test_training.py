"""Training steps on the chip against PyTorch's own optimisers."""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tapeout.compiler.training import TrainingStep, UnsupportedOptimizer  # noqa: E402

pytestmark = pytest.mark.torch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = (
            nn.Linear(12, 24, bias=False),
            nn.BatchNorm1d(24),
        )  # a bias would not matter
        self.b = nn.Linear(24, 5)

    def forward(self, x):
        return self.b(torch.relu(self.n(self.a(x))))


def loss(model, x, y):
    return nn.functional.cross_entropy(model(x), y)


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(9, 12, generator=generator),
            torch.randint(0, 5, (9,), generator=generator),
        )
        for _ in range(count)
    ]


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_steps_follow_pytorch(model, name, clip):
    other = copy.deepcopy(model)
    mine, theirs = (OPTIMIZERS[name](m.parameters()) for m in (model, other))
    data = batches(5)
    step = TrainingStep(model, loss, data[0], mine, clip_norm=clip, chip="lab16")
    schedules = [torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in (mine, theirs)]
    for x, y in data:
        got = step(x, y)
        theirs.zero_grad()
        expected = loss(other, x, y)
        expected.backward()
        if clip:
            nn.utils.clip_grad_norm_(other.parameters(), clip)
        theirs.step()
        torch.testing.assert_close(got, expected.detach(), rtol=1e-5, atol=1e-5)
        for schedule in schedules:
            schedule.step()
    step.pull()
    for (n, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=n)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for slot, expected in theirs.state[q].items():
            if expected is not None:
                torch.testing.assert_close(mine.state[p][slot], expected, rtol=1e-4, atol=1e-4)
        assert set(mine.state.get(p, {})) <= set(theirs.state.get(q, {}))


def test_training_goes_on_where_pytorch_stopped(model):
    other = copy.deepcopy(model)
    mine, theirs = (OPTIMIZERS["adamw"](m.parameters()) for m in (model, other))
    data = batches(4)
    for m, o in ((model, mine), (other, theirs)):
        for x, y in data[:2]:
            o.zero_grad()
            loss(m, x, y).backward()
            o.step()
    step = TrainingStep(model, loss, data[0], mine, chip="lab16")
    for x, y in data[2:]:
        step(x, y)
        theirs.zero_grad()
        loss(other, x, y).backward()
        theirs.step()
    step.pull()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_small_steps_of_bf16_weights_add_up_when_rounded_stochastically():
    """Each changes a weight by a twentieth of the distance to its neighbour."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(64, 32, dtype=torch.bfloat16))

        def forward(self, x):
            return (self.w * x).sum()

    def trained(**options):
        model = Sum()
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-7 / 20)
        x = torch.full((), -1.0, dtype=torch.bfloat16)
        step = TrainingStep(model, lambda m, x: m(x), [x], optimizer, chip="lab16", **options)
        torch.manual_seed(0)
        for _ in range(40):
            step(x)
        step.pull()
        return model.w.detach().float()

    assert torch.equal(trained(), torch.ones(64, 32))
    w = trained(stochastic_rounding=True)
    moved = (w.double() - 1) * 2**7  # binomial: 40 times a twentieth, a variance of 1.9
    assert abs(moved.mean() - 2) < 5 * (1.9 / w.numel()) ** 0.5
    assert abs(moved.var() - 1.9) < 0.4
    assert torch.equal(w, trained(stochastic_rounding=True))


def test_bf16_weights_learn(model):
    """AdamW, whose averages are bf16, too."""
    model.bfloat16()
    data = [(x.bfloat16(), y) for x, y in batches(1)] * 30
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step = TrainingStep(model, loss, data[0], optimizer, chip="lab16", stochastic_rounding=True)
    losses = [step(*batch).item() for batch in data]
    assert losses[-1] < 0.3 * losses[0]
    step.pull()
    state = optimizer.state[model.a.weight]
    assert state["exp_avg_sq"].dtype == model.a.weight.dtype == torch.bfloat16


def test_stochastic_rounding_needs_something_to_round(model):
    with pytest.raises(ValueError, match=r"take model\.bfloat16\(\), or leave the option out"):
        TrainingStep(
            model, loss, batches(1)[0], OPTIMIZERS["sgd"](model.parameters()),
            stochastic_rounding=True,
        )  # fmt: skip


def test_a_checkpoint_is_safetensors_that_pytorch_reads(model, tmp_path):
    load_file = pytest.importorskip("safetensors.torch").load_file
    (x, y), *_ = batches(1)
    step = TrainingStep(model, loss, (x, y), OPTIMIZERS["sgd"](model.parameters()), chip="lab16")
    step(x, y)
    step.save(tmp_path / "model.safetensors")
    fresh = Net()
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for a, b in zip(fresh.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_what_has_no_form_on_the_chip_is_refused(model):
    (batch,) = batches(1)
    with pytest.raises(UnsupportedOptimizer, match="take AdamW, Adam or SGD"):
        TrainingStep(model, loss, batch, torch.optim.Rprop(model.parameters()))
    with pytest.raises(UnsupportedOptimizer, match="leave amsgrad out"):
        TrainingStep(model, loss, batch, torch.optim.AdamW(model.parameters(), amsgrad=True))
