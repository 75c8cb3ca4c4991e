"""Sizes that change from call to call, and what stays on the chip between calls."""

import logging

import pytest

torch = pytest.importorskip("torch")

from compiling import compiled  # noqa: E402
from torch import nn  # noqa: E402

from tapeout.compiler.backend import backend, device  # noqa: E402
from tapeout.compiler.shapes import NoBucket  # noqa: E402

pytestmark = pytest.mark.torch


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.norm, self.narrow = nn.Linear(12, 20), nn.LayerNorm(20), nn.Linear(20, 5)

    def forward(self, x):
        hidden = self.wide(x)
        return self.narrow(nn.functional.gelu(self.norm(hidden)))


def test_every_size_is_compiled_when_it_comes(caplog):
    model = Network()
    fast = compiled(model)
    with caplog.at_level(logging.INFO, "tapeout"):
        for batch in (4, 7, 9, 7):
            grads = []
            x = torch.randn(batch, 12)
            for f in (model, fast):
                given = x.clone().requires_grad_()
                y = f(given)
                y.sum().backward()
                grads.append([y.detach(), given.grad])
            torch.testing.assert_close(grads[1], grads[0], rtol=1e-5, atol=1e-5)
    said = [r.getMessage() for r in caplog.records if "compiling for" in r.getMessage()]
    assert [line.split("= ")[1] for line in said] == ["7", "7", "9", "9"]  # forward and backward


def test_buckets_round_sizes_up(caplog):
    model = Network()
    fast = compiled(model, dynamic=True, buckets=[8, 16])
    with torch.no_grad(), caplog.at_level(logging.INFO, "tapeout"):
        for batch in (4, 7, 8, 9):
            x = torch.randn(batch, 12)
            torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-5)
        with pytest.raises(
            NoBucket,
            match=r"17, dimension 0 of the tensor that is read at .*self.wide\(x\), is .*, 16",
        ):
            fast(torch.randn(17, 12))
    said = [r.getMessage() for r in caplog.records if r.name == "tapeout"]
    assert sum("compiling" in line for line in said) == 2
    assert "[4] filled up to [8]" in said


def test_buckets_are_for_inference():
    with pytest.raises(Exception, match="buckets are for inference"):
        compiled(Network(), dynamic=True, buckets=[8])(torch.randn(4, 12, requires_grad=True))


class Counter(nn.Module):
    """Writes into what it was given and into its own buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x, table):
        table[:, 1:3] = x[:, :2] * 2
        self.seen += x.sum(0)
        return table.sum() + self.seen.max()


def test_inputs_that_change_are_current_on_both_sides():
    sides = [Counter(), Counter()]
    tables = [torch.zeros(4, 5), torch.zeros(4, 5)]
    fast = compiled(sides[1])
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(4, 6)
            expected, got = sides[0](x, tables[0]), fast(x, tables[1])
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(tables[1], tables[0])
            torch.testing.assert_close(sides[1].seen, sides[0].seen, rtol=1e-5, atol=1e-5)
        tables[0][0] = tables[1][0] = 7.0  # by the host, in between
        torch.testing.assert_close(fast(x, tables[1]), sides[0](x, tables[0]), rtol=1e-5, atol=1e-5)


def test_hugging_face_generates_with_a_static_cache():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    options = {
        "max_new_tokens": 5, "do_sample": False, "cache_implementation": "static",
        "pad_token_id": 0, "disable_compile": True,
    }  # fmt: skip
    prompts = [torch.randint(3, 60, (2, 7)) for _ in range(2)]
    expected = [model.generate(p, **options) for p in prompts]
    graphs = []

    def counted(gm, inputs, **kwargs):
        graphs.append(gm)
        return backend(gm, inputs, **kwargs)

    model.forward = torch.compile(model.forward, backend=counted, options={"chip": "lab16"})
    assert torch.equal(model.generate(prompts[0], **options), expected[0])
    assert len(graphs) == 2  # prompt and token
    target, sizes = device("lab16").target, []
    write = target.write
    target.write = lambda address, data: (sizes.append(data.nbytes), write(address, data))
    try:
        assert torch.equal(model.generate(prompts[1], **options), expected[1])
    finally:
        del target.write
    assert len(graphs) == 2
    cache = 2 * 2 * 12 * 8 * 4  # keys or values of a layer, in bytes
    # Each graph takes the cache once, when the other has written it (and generate has cleared it);
    # five tokens do not carry it back and forth.
    assert sum(size == cache for size in sizes) <= 2 * 4
