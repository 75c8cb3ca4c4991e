"""A causal language model as one step over a static KV cache, ready for ``torch.export``.

Contract: `Decoder` wraps an unmodified Hugging Face causal LM.  A call takes ``tokens`` int64
[B, S] and ``position`` int64 [B] (the sequence index of ``tokens[b, 0]``), writes keys and values
of the S tokens into buffers at ``position[b] .. position[b] + S - 1``, lets each token attend to
every cached index up to its own, and returns logits float32 [B, S, V] (or of one token a row, see
`Logits`).
Rows of a batch are independent sequences with their own positions.  Positions must satisfy
``0 <= position[b]`` and ``position[b] + S <= max_context``; the caller checks this.
"""

from __future__ import annotations

import math
import warnings
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from tapeout.models.errors import ModelError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

ATTENTION = "tapeout_sdpa"

WHOLE_OPERATORS = (
    "linear",
    "scaled_dot_product_attention",
    "silu",
    "gelu",
    "relu",
    "layer_norm",
    "rms_norm",
    "softmax",
    "log_softmax",
    "embedding",
    "conv2d",
    "matmul",
)
"""ATen composites that `export` keeps in one piece: the compiler has a kernel for each."""


class Logits(StrEnum):
    """Which tokens of a step get logits."""

    ALL = "all"  # [B, S, V]
    LAST = "last"  # [B, 1, V]: of tokens[:, -1]
    SELECT = "select"  # [B, 1, V]: of tokens[b, select[b]], with a third input select int64 [B]


def whole_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as one ``scaled_dot_product_attention`` with grouped heads left grouped.

    Hugging Face's own ``sdpa`` repeats K and V per query head (``expand`` + ``reshape``, a copy of
    the whole cache) or folds the group into the query axis, depending on how it is traced.  Here
    the operator itself carries the grouping (``enable_gqa``), whatever the tracer.

    Shapes: query [B, Hq, S, D]; key, value [B, Hkv, C, D]; mask bool [B, 1, S, C]; the result is
    [B, S, Hq, D].
    """
    for name in ("softcap", "position_bias", "s_aux"):
        if kwargs.get(name) is not None:
            raise ModelError(
                f"attention argument {name!r} is not supported by the whole-operator attention; "
                "models that need it cannot be exported yet"
            )
    out = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, whole_attention)


class _StaticLayer(CacheLayerMixin):
    """One layer's view of the decoder's buffers during one step."""

    is_compileable = True
    is_sliding = False

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor
    ) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self._index = [rows, None, positions]
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the buffers exist."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [B, Hkv, S, D] states at the step's positions; return the whole static buffers."""
        # Two index tensors with a slice between them put the indexed axes first: [B, S, Hkv, D].
        put = torch.ops.aten.index_put_
        put(self.keys, self._index, key_states.transpose(1, 2))
        put(self.values, self._index, value_states.transpose(1, 2))
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])


class Decoder(nn.Module):
    """``forward(tokens, position[, select]) -> logits`` with the KV cache as mutable buffers.

    Buffers ``key_cache_<layer>`` and ``value_cache_<layer>`` have shape [B, Hkv, max_context, D]
    and the model's dtype; parameters keep their Hugging Face names behind the prefix ``model.``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batch: int,
        max_context: int,
        logits: Logits = Logits.ALL,
    ) -> None:
        super().__init__()
        config: Any = model.config
        check_exportable(config, max_context)
        self.model = model
        self.logits = logits
        self.max_context = max_context
        self.layers = int(config.num_hidden_layers)
        heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        width = int(
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        parameter = next(model.parameters())
        shape = (batch, heads, max_context, width)
        for layer in range(self.layers):
            for name in (f"key_cache_{layer}", f"value_cache_{layer}"):
                self.register_buffer(
                    name, _untouched_zeros(shape, parameter.dtype), persistent=False
                )
        self._select: torch.Tensor | None = None
        self._hook: Any = None
        if logits is Logits.SELECT:
            head: Any = model.get_output_embeddings()
            self._hook = head.register_forward_pre_hook(self._keep_selected)

    def forward(
        self,
        tokens: torch.Tensor,
        position: torch.Tensor,
        select: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One step; see the module's contract."""
        positions = position[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        key_index = torch.arange(self.max_context, device=tokens.device)
        mask = key_index <= positions[:, None, :, None]
        rows = torch.arange(tokens.shape[0], device=tokens.device)[:, None]
        cache = Cache(
            layers=[
                _StaticLayer(
                    getattr(self, f"key_cache_{layer}"),
                    getattr(self, f"value_cache_{layer}"),
                    rows,
                    positions,
                )
                for layer in range(self.layers)
            ]
        )
        self._select = select
        attention = self.model.config._attn_implementation
        self.model.config._attn_implementation = ATTENTION
        try:
            result = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1 if self.logits is Logits.LAST else 0,
            )
        finally:
            self._select = None
            self.model.config._attn_implementation = attention
        return result.logits.float()

    def reset(self) -> None:
        """Zero the cache (not needed between sequences: positions hide what is stale)."""
        for name, buffer in self.named_buffers(recurse=False):
            if "_cache_" in name:
                buffer.zero_()

    def close(self) -> None:
        """Take the wrapper's hook off the model (there is one only for `Logits.SELECT`)."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _keep_selected(
        self, _module: nn.Module, inputs: tuple[torch.Tensor]
    ) -> torch.Tensor | None:
        """Before the LM head: hidden [B, S, H] to [B, 1, H], the selected token of each row."""
        if self._select is None:
            return None
        rows = torch.arange(inputs[0].shape[0], device=inputs[0].device)
        return inputs[0][rows, self._select][:, None]


def _untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take no memory until written: 6 GB of cache (64 x 2048 tokens) stay virtual."""
    raw = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)


def check_exportable(config: Any, max_context: int) -> None:
    """`ModelError` for a model whose step `Decoder` cannot express."""
    longest = getattr(config, "max_position_embeddings", None)
    if max_context < 1 or (longest and max_context > longest):
        raise ModelError(
            f"a context of {max_context} tokens: the model's positions allow 1 to {longest}"
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(config, "sliding_window", None)
    if window and window >= max_context:
        kinds -= {"sliding_attention"}
    elif window:
        kinds |= {"sliding_attention"}
    if kinds:
        raise ModelError(
            f"{config.model_type} model with {', '.join(sorted(kinds))} in a context of "
            f"{max_context} tokens: only full causal attention can be exported"
            + (f"; a context of {window} tokens or fewer needs no sliding" if window else "")
        )


def export(
    loaded: Any,
    *,
    batch: int,
    tokens: int,
    max_context: int,
    logits: Logits = Logits.ALL,
) -> ExportedProgram:
    """One step of `loaded` (a `LoadedModel` or a causal LM) as a functional ATen graph.

    `tokens` is S, the tokens of each row in one step: 1 for decode, the bucket for prefill.  The
    graph keeps `WHOLE_OPERATORS` in one piece and lists each cache buffer's new value as a
    ``BUFFER_MUTATION`` output.  Shapes are static; position is a value, so one program serves all.
    """
    module = getattr(loaded, "module", loaded)
    decoder = Decoder(module, batch=batch, max_context=max_context, logits=logits).eval()
    inputs = [
        torch.zeros(batch, tokens, dtype=torch.int64),
        torch.zeros(batch, dtype=torch.int64),
    ]
    if logits is Logits.SELECT:
        inputs.append(torch.zeros(batch, dtype=torch.int64))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(decoder, tuple(inputs), strict=False)
            program = program.run_decompositions(decompositions())
    finally:
        decoder.close()
    _drop_notes(program)
    _check_attention(program, module.config)
    return program


def decompositions() -> dict[Any, Any]:
    """torch.export's default table without `WHOLE_OPERATORS`."""
    table = torch.export.default_decompositions()
    for operator in list(table):
        if operator._schema.name.removeprefix("aten::") in WHOLE_OPERATORS:
            table.pop(operator)
    return table


def _check_attention(program: ExportedProgram, config: Any) -> None:
    """Every layer must have taken our attention: a model with its own code may misread the mask."""
    whole = torch.ops.aten.scaled_dot_product_attention.default
    found = sum(node.target is whole for node in program.graph.nodes)
    if found != config.num_hidden_layers:
        raise ModelError(
            f"{config.model_type} models do their own attention ({found} of "
            f"{config.num_hidden_layers} layers use Hugging Face's attention interface); "
            "such a model cannot be exported"
        )


def _drop_notes(program: ExportedProgram) -> None:
    """Remove nodes without meaning: the tracer's dtype assertions and plain aliases."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.lint()
    program.graph_module.recompile()
