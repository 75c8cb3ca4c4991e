"""torch.export graphs of decoders to the compiler's operations, and what is refused by name."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from random_llama import make_llama

from tapeout.compiler import ir
from tapeout.compiler.graph import UnsupportedModel, raise_graph
from tapeout.models.decoder import Logits, export

pytestmark = pytest.mark.torch
CONTEXT = 32


def exported(model: Any, batch: int = 1, tokens: int = 1) -> torch.export.ExportedProgram:
    logits = Logits.ALL if tokens == 1 else Logits.SELECT
    return export(model, batch=batch, tokens=tokens, max_context=CONTEXT, logits=logits)


def raised(model: Any, batch: int = 1, tokens: int = 1) -> ir.Graph:
    return raise_graph(exported(model, batch, tokens), CONTEXT)


@pytest.fixture(scope="module")
def programs(llama) -> dict[tuple[int, int], torch.export.ExportedProgram]:
    """By batch and tokens: decode, batched decode, a chunk of a prompt."""
    return {shape: exported(llama, *shape) for shape in ((1, 1), (3, 1), (1, 8))}


@pytest.fixture(scope="module")
def graphs(programs) -> dict[tuple[int, int], ir.Graph]:
    return {shape: raise_graph(program, CONTEXT) for shape, program in programs.items()}


LAYER = [
    "RmsNorm", "Linear", "Linear", "Linear", "Attention", "Linear", "Binary",
    "RmsNorm", "Linear", "Unary", "Linear", "Binary", "Linear", "Binary",
]  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "tokens", "end"),
    [
        (1, 1, ["RmsNorm", "Linear"]),
        (3, 1, ["RmsNorm", "Linear"]),
        (1, 8, ["RmsNorm", "Select", "Linear"]),
    ],
)
def test_operations_of_a_llama(graphs, batch, tokens, end):
    graph = graphs[batch, tokens]
    assert [type(op).__name__ for op in graph.ops] == ["Embed", *LAYER, *LAYER, *end]
    assert graph.logits is graph.ops[-1].out
    assert (graph.logits.rows, graph.logits.width) == (batch, 50)
    assert graph.ops[0].out.rows == batch * tokens


def test_fields_of_the_operations(llama, graphs):
    graph = graphs[3, 1]
    attention = next(op for op in graph.ops if isinstance(op, ir.Attention))
    shape = (attention.heads, attention.kv_heads, attention.head_dim)
    assert shape == (4, 2, 8)
    assert attention.scale == pytest.approx(8**-0.5)
    assert attention.layer == "layers.0.self_attn"
    assert graph.caches == dict.fromkeys(
        ["key_cache_0", "value_cache_0", "key_cache_1", "value_cache_1"], (3, 2, CONTEXT, 8)
    )
    assert {op.function for op in graph.ops if isinstance(op, ir.Unary)} == {"SILU"}
    norm = next(op for op in graph.ops if isinstance(op, ir.RmsNorm))
    assert norm.eps == pytest.approx(llama.config.rms_norm_eps)


def test_rotary_tables_hold_every_position(graphs):
    graph = graphs[1, 8]
    tables = {op.rope for op in graph.ops if isinstance(op, ir.Attention)}
    assert len(tables) == 1  # all layers share one pair
    ((cos, sin),) = tables
    angle = np.arange(CONTEXT)[:, None] * 10000.0 ** (-np.arange(4) / 4)
    # torch multiplies angles in fp32: below 32, so 32 * 2^-24, twice for the rounded frequency
    bound = 32 * 2**-22
    np.testing.assert_allclose(graph.tables[cos], np.tile(np.cos(angle), 2), atol=bound)
    signed = np.concatenate([-np.sin(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(graph.tables[sin], signed, atol=bound)


class _Odd(torch.nn.Module):
    """A norm with operators the compiler has not: a cosine and a cumulative sum."""

    def forward(self, x: Any) -> Any:
        y = torch.cos(x)
        return torch.cumsum(y, -1)


def test_unsupported_operators_are_listed_with_their_places():
    model = make_llama()
    model.model.layers[0].input_layernorm = _Odd()
    model.model.layers[1].post_attention_layernorm = _Odd()
    with pytest.raises(UnsupportedModel) as caught:
        raised(model)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the compiler cannot lower 4 operator(s) of this model:"
    # What only takes the result of an operator that is missing is not blamed.
    places = ("layers.0.input_layernorm", "layers.1.post_attention_layernorm")
    sources = {"cos": "in forward", "cumsum": "in forward"}
    wanted = [(layer, op) for layer in places for op in sources]
    for line, (layer, op) in zip(lines[1:], wanted, strict=True):
        assert re.search(
            rf"aten\.{op}\.default is not an operator the compiler has at {layer}", line
        )
        assert re.search(r'File ".*test_graph\.py", line \d+, in forward', line)


def test_a_bias_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match=r"no bias at layers\.0\.self_attn\.q_proj"):
        raised(make_llama(attention_bias=True, num_hidden_layers=1))


def test_a_mask_that_is_not_causal_is_refused(programs, monkeypatch):
    program = programs[1, 1]
    masks = [n for n in program.graph.nodes if n.target is torch.ops.aten.le.Tensor]
    assert len(masks) == 1
    # a token would not see itself
    monkeypatch.setattr(masks[0], "target", torch.ops.aten.lt.Tensor)
    with pytest.raises(UnsupportedModel, match="needs a causal mask at the launch's position") as e:
        raise_graph(program, CONTEXT)
    assert "layers.0.self_attn" in str(e.value)


@pytest.mark.parametrize(
    ("tokens", "change"),
    [
        (8, torch.ops.aten.sub.Tensor),  # position - s
        (1, torch.ops.aten.mul.Tensor),  # position * 0: right at position 0 alone
    ],
)
def test_an_append_elsewhere_is_refused(programs, tokens, change, monkeypatch):
    program = programs[1, tokens]
    adds = [
        n
        for n in program.graph.nodes
        if n.target is torch.ops.aten.add.Tensor and n.meta["val"].dtype == torch.int64
    ]
    assert len(adds) == 1  # position + arange
    monkeypatch.setattr(adds[0], "target", change)
    with pytest.raises(UnsupportedModel, match="does not append at the launch's position"):
        raise_graph(program, CONTEXT)
