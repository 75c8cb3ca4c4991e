"""Every architecture that `transformers` builds from a small random configuration, on the chip.

For each task, each architecture is built with its configuration made small, compiled with
`torch.compile(model, backend="tapeout")`, run on `sim` and compared with PyTorch on the host. The
report is benchmarks/results/zoo.json.

    python benchmarks/zoo.py [--task causal-lm ...] [--only NAME ...] [--sample N] [--jobs 2]
"""

import argparse
import contextlib
import itertools
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from reports import run_all

TASKS = {
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked-lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "sequence-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "speech": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "speech-ctc": "MODEL_FOR_CTC_MAPPING_NAMES",
}
TOKENS, VOCABULARY = 12, 128
LARGEST = 30_000_000  # parameters
LIMIT_S = 300  # to compile and run one

# Largest relative error of the outputs, of their largest magnitude. Products run in six passes of
# bf16, which give float32's products; sums are in another order, and a network passes errors on.
TOLERANCE = 2e-4

WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "hidden_dim",
          "word_embed_proj_dim", "model_dim", "embedding_dim", "encoder_hidden_size",
          "decoder_hidden_size", "d_embed")  # fmt: skip
INNER = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim",
         "moe_intermediate_size", "d_inner", "ffn_hidden_size", "shared_expert_intermediate_size",
         "mlp_dim", "block_ff_dim", "expert_ffn_hidden_size", "feed_forward_dim",
         "intermediate_dim")  # fmt: skip
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers",
          "decoder_layers", "num_encoder_layers", "num_decoder_layers", "depth")  # fmt: skip
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
         "decoder_attention_heads", "num_encoder_attention_heads")  # fmt: skip
SMALL = {
    **dict.fromkeys(WIDTHS, 64), **dict.fromkeys(INNER, 128), **dict.fromkeys(LAYERS, 2),
    **dict.fromkeys(HEADS, 4), "vocab_size": VOCABULARY, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "image_size": 32,
    "patch_size": 8, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_num_experts": 4, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1, "max_source_positions": 32,
    "max_target_positions": 32, "kv_lora_rank": 16, "q_lora_rank": 32, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 16, "n_group": 1, "topk_group": 1, "sliding_window": 8,
    "num_mel_bins": 16, "state_size": 8, "attention_window": 8, "rotary_dim": 8,
    "image_token_id": 100, "video_token_id": 101, "audio_token_id": 102,
    "vision_start_token_id": 103, "vision_end_token_id": 104, "max_window_layers": 2,
    "num_codebooks": 2, "input_feat_per_channel": 16,
    "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 16, "zero_expert_num": 2, "hub_dim": 64,
}  # fmt: skip


# What some architectures want beside sizes.
SPECIAL = {
    "reformer": {"axial_pos_embds": False},
    "mamba2": {
        "head_dim": 32,
        "num_heads": 4,
    },  # heads times their width: twice the width of the model
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "moe_intermediate_size": 128,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    },
}


def _small(key: str, old: object) -> object:
    value = SMALL.get(key)
    if value is None or not isinstance(old, int) or isinstance(old, bool):
        return old
    if key == "num_key_value_heads" and old == 1:
        return old
    return min(old, value) if key in LAYERS else value


def shrunk(config: dict) -> dict:
    """A configuration, as a dictionary, with small sizes; what follows from them is left out."""
    layers = next((config[n] for n in LAYERS if isinstance(config.get(n), int)), 0)
    out = {}
    for key, old in config.items():
        if key == "head_dim" and "qk_rope_head_dim" in config:
            continue
        if isinstance(old, dict) and key.endswith("config"):
            out[key] = shrunk(old)
        elif isinstance(old, list) and layers > 2 and len(old) == layers:
            kinds = list(dict.fromkeys(map(str, old)))
            firsts = [old[list(map(str, old)).index(kind)] for kind in kinds]
            out[key] = (firsts * 2)[:2]
        else:
            out[key] = _small(key, old)
    heads = next((n for n in HEADS if isinstance(config.get(n), int)), "")
    if heads and config.get("num_key_value_heads", 0) in (None, config[heads]):
        out["num_key_value_heads"] = out[heads]
    if heads and config.get("head_dim", 0) is None:
        out["head_dim"] = SMALL["head_dim"]
    return out


def shrink(config) -> None:
    """Makes the sizes of a configuration, and of those inside it, small."""
    from transformers import PretrainedConfig

    layers = [getattr(config, n) for n in LAYERS if isinstance(getattr(config, n, None), int)]
    for name in SMALL:
        with contextlib.suppress(Exception):  # properties without setters, values that vary
            setattr(config, name, _small(name, getattr(config, name)))
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            shrink(value)
        elif isinstance(value, list) and layers and len(value) == layers[0] > 2:
            setattr(config, name, value[:2])
    if getattr(config, "layer_types", None):
        with contextlib.suppress(AttributeError):
            config.layer_types = (list(dict.fromkeys(config.layer_types)) * 2)[:2]


def configurations(kind, special: dict) -> Iterator:
    """Small configurations of a class, of which one builds."""
    with contextlib.suppress(Exception):
        config = kind()
        shrink(config)
        for key, value in special.items():
            setattr(config, key, value)
        yield config
    old = kind().to_dict()
    new = {key: value for key, value in shrunk(old).items() if value != old.get(key)}
    for lists, heads in itertools.product((True, False), repeat=2):
        # What is not made small follows from what is, as the class works it out.
        chosen = {
            key: value for key, value in new.items()
            if (lists or not isinstance(value, list)) and (heads or "head_dim" not in key)
        }  # fmt: skip
        with contextlib.suppress(Exception):
            yield kind(**{**chosen, **special})
    few = {key: min(old[key], 2) for key in LAYERS if isinstance(old.get(key), int)}
    with contextlib.suppress(Exception):
        yield kind(**few, vocab_size=VOCABULARY)  # widths as they are


def build(task: str, name: str):
    """(model, inputs) of an architecture, and what PyTorch gives for them."""
    import torch
    import transformers
    from transformers.models.auto import modeling_auto

    classes = getattr(modeling_auto, TASKS[task])[name]
    cls = getattr(transformers, classes if isinstance(classes, str) else classes[0])
    first: Exception | None = None
    for config in configurations(cls.config_class, SPECIAL.get(name, {})):
        torch.manual_seed(0)
        try:
            model, inputs = built(task, name, cls, config)
            with torch.no_grad():
                return model, inputs, tensors(model(**inputs))
        except Exception as error:
            first = first or error
    raise first or ValueError("no configuration of it can be made small")


def built(task: str, name: str, cls, config):
    """(model, inputs) of a configuration."""
    import torch

    if getattr(config, "is_encoder_decoder", False) and task == "causal-lm":
        config.is_decoder, config.is_encoder_decoder = True, False
    elif task == "causal-lm" and hasattr(config, "is_decoder"):
        config.is_decoder = True
    config.use_cache = False
    for part in (config, getattr(config, "text_config", None)):  # where rows end, in a batch
        if part is not None and getattr(part, "pad_token_id", 0) is None:
            part.pad_token_id = SMALL["pad_token_id"]
    if getattr(config, "vocab_size", 0) is None:
        config.vocab_size = VOCABULARY
    with torch.device("meta"):
        count = sum(p.numel() for p in cls(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{count} parameters: not small")
    model = cls(config).eval()
    if hasattr(model, "set_default_language"):
        model.set_default_language(config.languages[0])
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():  # routers that begin at zero: which experts they choose is open
        if p.ndim > 1 and p.is_floating_point() and p.numel() > 1 and p.std() == 0:
            p.data.normal_(0.0, 0.05, generator=generator)

    def tokens(n=TOKENS):
        return torch.randint(3, 100, (2, n), generator=generator)

    if task in ("causal-lm", "masked-lm", "sequence-classification"):
        ids = tokens()
        if task == "sequence-classification":
            ids[:, -1] = SMALL["eos_token_id"]
        return model, {"input_ids": ids}
    main = model.main_input_name
    if main == "input_ids" and task == "image-classification":  # pixels as tokens
        return model, {"input_ids": tokens()}
    if main == "pixel_values":
        size = getattr(config, "image_size", 32)
        size = size if isinstance(size, int) else size[0]
        channels = getattr(config, "num_channels", 3)
        return model, {"pixel_values": torch.randn(1, channels, size, size, generator=generator)}
    if main == "input_values":
        inputs = {"input_values": torch.randn(1, 1600, generator=generator)}
    else:
        names = ("feature_projection_input_dim", "input_feat_per_channel", "num_mel_bins")
        bins = next((getattr(config, n) for n in names if hasattr(config, n)), 16)
        length = 2 * getattr(config, "max_source_positions", 32)
        shape = (1, bins, length) if "whisper" in name or "moonshine" in name else (1, length, bins)
        inputs = {"input_features": torch.randn(*shape, generator=generator)}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = tokens(6)[:1]
    return model, inputs


def tensors(output) -> list:
    """Floating-point tensors of a model's result."""
    import torch
    from torch.utils._pytree import tree_flatten

    items = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [
        t for t in tree_flatten(items)[0] if isinstance(t, torch.Tensor) and t.is_floating_point()
    ]


def check(task: str, name: str, chip: str) -> dict:
    """What came of one architecture."""
    import torch

    from tapeout.compiler.backend import backend, device

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    report: dict = {"outcome": "", "reason": ""}
    start = time.perf_counter()
    try:
        model, inputs, expected = build(task, name)
    except Exception as error:
        report |= {"outcome": "not built", "reason": _first(error)}
        return report
    report["parameters"] = sum(p.numel() for p in model.parameters())
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, options={"chip": chip}, fullgraph=False)
    try:
        with torch.no_grad():
            got = tensors(compiled(**inputs))
        worst = 0.0
        for e, g in zip(expected, got, strict=True):
            scale = e[e.isfinite()].abs().max().item() if e.isfinite().any() else 1.0
            both = (e - g)[e.isfinite()].abs()
            bad = not torch.equal(e.isfinite(), g.isfinite())
            worst = max(worst, float("inf") if bad else both.max().item() / max(scale, 1e-6))
        ran = device(chip).last is not None
        fits = worst <= TOLERANCE and ran
        report |= {"outcome": "matches" if fits else "differs", "error": worst}
    except Exception as error:
        report |= {"outcome": "stopped", "reason": _first(error)}
    report["seconds"] = round(time.perf_counter() - start, 1)
    return report


def _first(error: Exception) -> str:
    lines = [x.strip() for x in str(error).splitlines() if x.strip()] or [""]
    useful = [x for x in lines if "cannot take" not in x and "raised:" not in x]
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    return f"{type(error).__name__}: {' '.join(useful[:2])} ({where})"[:500]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", default="solo")
    parser.add_argument("--task", nargs="*", default=list(TASKS))
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--sample", type=int, default=0, help="every Nth architecture")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--resume", action="store_true", help="go on from --output")
    options = parser.parse_args()
    from transformers.models.auto import modeling_auto

    work = {
        (task, name): (task, name)
        for task in options.task for name in getattr(modeling_auto, TASKS[task])
        if not options.only or name in options.only
    }  # fmt: skip
    if options.sample:
        work = {key: work[key] for key in list(work)[:: options.sample]}
    counts = {task: Counter() for task in options.task}
    for (task, name), report in run_all(
        check, work, jobs=options.jobs, chip=options.chip, path=options.output,
        resume=options.resume, limit_s=LIMIT_S,
    ):  # fmt: skip
        counts[task][report["outcome"]] += 1
        facts = (report.get(k, "") for k in ("error", "reason", "seconds"))
        print(task, name, report["outcome"], *facts, flush=True)
    for task, count in counts.items():
        built = count.total() - count["not built"]
        print(f"{task}: {count['matches']} of {built} match ({dict(count)})")


if __name__ == "__main__":
    sys.exit(main())
