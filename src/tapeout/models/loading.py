"""Loading a model: an unmodified Hugging Face module in float32 plus its packed weights.

Contract: `load` gives exactly the values the file holds (GGUF blocks unpacked to float32 as ggml
does; safetensors converted to float32).  For GGUF, `LoadedModel.packed` has the original blocks of
every weight stored as Q4_1 or Q8_0, rows in Hugging Face order, so that
``dequantise(packed[name]) == module.get_parameter(name)`` bit for bit.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapeout.models import gguf_file
from tapeout.models.errors import ModelError
from tapeout.models.gguf_file import GgufFile
from tapeout.models.source import ModelSource, SourceKind, resolve

PACKED_KINDS = {"Q4_1": 20, "Q8_0": 34}
"""Block types the chip's DMA unpacks, with the bytes of a block of 32 elements."""

DIRECT_ARCHITECTURES = frozenset({"llama", "qwen2", "qwen3"})
"""GGUF families built from metadata alone; others go through transformers' own, slower, reader."""

_PERMUTED = frozenset({"llama"})


@dataclass(frozen=True, kw_only=True)
class PackedWeight:
    """A weight [n, k] as blocks of 32 along k: `blocks` is uint8 [n, k / 32, block bytes].

    Q4_1 block: fp16 d, fp16 m, 16 bytes q (byte j: element j low nibble, element j + 16 high);
    value = d * q + m.  Q8_0 block: fp16 d, 32 int8 q; value = d * q.
    """

    kind: str
    blocks: NDArray[np.uint8]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k) of the unpacked weight."""
        return self.blocks.shape[0], self.blocks.shape[1] * 32

    def dequantised(self) -> NDArray[np.float32]:
        """float32 [n, k], bit-equal to the module's parameter."""
        return gguf_file.dequantise(self.blocks.reshape(self.blocks.shape[0], -1), self.kind)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to be exported.

    `config`: the Hugging Face configuration.  `module`: the Hugging Face causal LM, float32, eval,
    unmodified.  `packed`: parameter name to blocks (tied names share one object; empty where
    nothing is stored in a packed type the chip knows).
    """

    source: ModelSource
    config: Any
    module: Any
    packed: Mapping[str, PackedWeight]

    @property
    def name(self) -> str:
        """The model's short name."""
        return self.source.name


def load(model: str | Path | ModelSource) -> LoadedModel:
    """Load `model` (see `source.resolve`).  Errors: `ModelError`, one line."""
    source = model if isinstance(model, ModelSource) else resolve(model)
    if source.kind is SourceKind.HUGGING_FACE:
        module = _from_pretrained(source.path)
        packed: dict[str, PackedWeight] = {}
    else:
        file = gguf_file.read(source.path)
        if file.architecture in DIRECT_ARCHITECTURES:
            module, packed = _build_direct(file)
        else:
            module, packed = _build_by_transformers(file)
    module.eval().requires_grad_(False)
    for names in _tied_names(module):
        known = next((packed[name] for name in names if name in packed), None)
        packed |= dict.fromkeys(names, known) if known else {}
    return LoadedModel(source=source, config=module.config, module=module, packed=packed)


def _build_direct(file: GgufFile) -> tuple[Any, dict[str, PackedWeight]]:
    """Module and blocks from GGUF metadata and tensors, each weight unpacked once."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = _config(file)
    with no_init_weights():
        module = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa"
        )
    names = _direct_names(module, file.architecture, config.num_hidden_layers)
    state: dict[str, torch.Tensor] = {}
    packed: dict[str, PackedWeight] = {}
    for tensor in file.tensors.values():
        if tensor.name not in names:
            raise ModelError(
                f"{file.path}: tensor {tensor.name!r} has no place in a {config.model_type} model; "
                "the file uses a variant that is not supported from GGUF"
            )
        name, data = names[tensor.name], tensor.data
        if file.architecture in _PERMUTED and ".attn_q." in tensor.name:
            data = unpermute(data, config.num_attention_heads)
        if file.architecture in _PERMUTED and ".attn_k." in tensor.name:
            data = unpermute(data, config.num_key_value_heads)
        state[name] = torch.from_numpy(gguf_file.dequantise(data, tensor.kind).copy())
        if tensor.kind in PACKED_KINDS:
            packed[name] = _packed(data, tensor.kind)
    try:
        missing = module.load_state_dict(state, strict=False, assign=True).missing_keys
    except RuntimeError as error:
        raise ModelError(
            f"{file.path}: the weights do not fit the metadata: " + " ".join(str(error).split())
        ) from error
    module.tie_weights()
    tied = {name for names in _tied_names(module) if set(names) & set(state) for name in names}
    if lacking := sorted(set(missing) - tied):
        raise ModelError(
            f"{file.path}: {len(lacking)} weights are missing, the first is {lacking[0]!r}; "
            "the file is damaged or uses a variant that is not supported from GGUF"
        )
    return module, packed


def unpermute(data: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of q or k from GGUF's rotary order (pairs adjacent) to Hugging Face's (halves).

    `data` is [n, ...] of numbers or blocks; row order is all that changes.
    """
    return data.reshape(heads, -1, 2, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)


def _config(file: GgufFile) -> Any:
    """The Hugging Face configuration, by transformers' own table of metadata names."""
    from transformers import CONFIG_MAPPING
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    architecture = file.architecture
    values: dict[str, Any] = {}
    for prefix in (architecture, "tokenizer"):
        for key, name in GGUF_CONFIG_MAPPING[prefix].items():
            if name is not None and f"{prefix}.{key}" in file.fields:
                values[name] = file.fields[f"{prefix}.{key}"]
    values.setdefault("vocab_size", len(file.fields.get("tokenizer.ggml.tokens", ())))
    if head_dim := file.fields.get(f"{architecture}.attention.key_length"):
        values["head_dim"] = head_dim
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    _refuse_variants(file, values)
    return CONFIG_MAPPING[architecture](**values)


def _refuse_variants(file: GgufFile, values: Mapping[str, Any]) -> None:
    """Metadata that would change the arithmetic and that no field of the configuration carries."""
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    if lacking := [name for name in needed if name not in values]:
        raise ModelError(
            f"{file.path}: metadata lack {', '.join(lacking)}: damaged, or not a model"
        )
    scaling = file.fields.get(f"{file.architecture}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in file.tensors:
        raise ModelError(
            f"{file.path}: scaled rotary frequencies are not supported from GGUF; "
            "use the model's Hugging Face directory"
        )
    if file.fields.get(f"{file.architecture}.expert_count", 0):
        raise ModelError(f"{file.path}: mixture-of-experts models are not supported from GGUF")


def _build_by_transformers(file: GgufFile) -> tuple[Any, dict[str, PackedWeight]]:
    """Module by transformers' GGUF reader; a packed weight only where it proves bit-equal."""
    import torch
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    module = _from_pretrained(file.path.parent, gguf_file=file.path.name)
    names = get_gguf_hf_weights_map(module, TensorProcessor())
    parameters = dict(module.named_parameters(remove_duplicate=False))
    packed = {}
    for tensor in file.tensors.values():
        name = names.get(tensor.name)
        if tensor.kind not in PACKED_KINDS or name not in parameters or len(tensor.shape) != 2:
            continue
        weight = _packed(tensor.data, tensor.kind)
        if torch.equal(torch.from_numpy(weight.dequantised()), parameters[name]):
            packed[name] = weight
    return module, packed


def _from_pretrained(directory: Path, **options: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            return AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=torch.float32,
                attn_implementation="sdpa",
                local_files_only=True,
                trust_remote_code=False,
                **options,
            )
    except Exception as error:  # transformers raises whatever its parts raise
        what = directory / str(options.get("gguf_file", ""))
        text = " ".join(str(error).split())
        raise ModelError(f"{what}: transformers cannot load it: {text[:300]}") from error


def _packed(data: NDArray[np.uint8], kind: str) -> PackedWeight:
    blocks = data.reshape(data.shape[0], -1, PACKED_KINDS[kind])
    return PackedWeight(kind=kind, blocks=np.ascontiguousarray(blocks))


def _direct_names(module: Any, architecture: str, layers: int) -> dict[str, str]:
    """GGUF tensor name to Hugging Face parameter name, by the gguf package's table."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    family = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    table = get_tensor_name_map(family, layers)
    names = {}
    for name in module.state_dict():
        stem, _, suffix = name.rpartition(".")
        if (gguf_name := table.get_name(stem)) is not None:
            names[f"{gguf_name}.{suffix}"] = name
    return names


def _tied_names(module: Any) -> list[list[str]]:
    """Groups of parameter names that are one tensor."""
    groups: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and notes off the user's terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
