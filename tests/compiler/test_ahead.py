"""Models compiled ahead of time, saved and loaded."""

import zipfile

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tapeout import Model, compile  # noqa: E402
from tapeout.compiler.artifact import ArtifactError  # noqa: E402
from tapeout.compiler.operators import Unsupported  # noqa: E402

pytestmark = pytest.mark.torch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.n = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, x, shift=0.5):
        y = torch.relu(self.n(self.c(x))).mean((2, 3))
        return {"scores": self.head(y) * self.scale + shift, "pooled": y}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5)


def test_a_saved_model_gives_the_same_bits(net, tmp_path):
    x = torch.randn(2, 3, 9, 9)
    model = compile(net, (x,), chip="lab16")
    got = model(x)
    with torch.no_grad():
        assert_same(got, net(x))
    model.save(tmp_path / "net.tapeout")
    assert [p.name for p in tmp_path.iterdir()] == ["net.tapeout"]
    again = Model.load(tmp_path / "net.tapeout")(x)
    assert all(torch.equal(again[n], t) for n, t in got.items())


def test_an_exported_program_is_taken(net):
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert_same(compile(torch.export.export(net, (x,)), chip="lab16")(x), net(x))


def test_a_module_that_changes_its_buffers_is_refused(net):
    with pytest.raises(Unsupported, match="eval mode"):
        compile(net.train(), (torch.randn(2, 3, 9, 9),), chip="lab16")


def test_other_shapes_and_counts_are_refused(net):
    x = torch.randn(1, 3, 8, 8)
    model = compile(net, (x,), chip="lab16")
    with pytest.raises(ValueError, match="takes 1 tensors, not 2"):
        model(x, x)
    with pytest.raises(ValueError, match="float32"):
        model(torch.randn(1, 3, 9, 9))


def test_what_is_no_model_is_refused(tmp_path):
    text = tmp_path / "x"
    text.write_text("no model")
    with pytest.raises(ArtifactError, match="not a compiled model"):
        Model.load(text)
    with zipfile.ZipFile(tmp_path / "y", "w") as archive:
        archive.writestr("model.json", '{"version": 99}')
    with pytest.raises(ArtifactError, match="format version 99"):
        Model.load(tmp_path / "y")
