"""One step of GPT-2 small (AdamW, bf16 products, float32 masters) on the chip: share of the array.

The step is compiled by `TrainingStep` and timed by `sim` without values; dropout is off. What a
step needs is counted by PyTorch's FlopCounterMode on the model itself, forward and backward: what
the compiler adds (sums by products, what it computes again) does not count. Report:
benchmarks/results/train_step.json.

    python benchmarks/train_step.py [--batch 4] [--tokens 512] [--layers 12] [--chip solo]
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import describe
from torch.utils.flop_counter import FlopCounterMode

from tapeout.compiler.training import TrainingStep


def loss(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(tokens).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1)
    )


def needed_macs(model: torch.nn.Module, text: torch.Tensor) -> int:
    """Multiplications of a step's products, of the model as it is written; they grow with the
    batch, so one text is enough to count them."""
    math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with math, FlopCounterMode(display=False) as counter:
        loss(model, text[:1]).backward()
    model.zero_grad()
    return counter.get_total_flops() // 2 * len(text)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("medium")
    config = transformers.GPT2Config(
        use_cache=False, n_layer=args.layers, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    model = transformers.GPT2LMHeadModel(config)
    text = torch.randint(0, config.vocab_size, (args.batch, args.tokens))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    start = time.monotonic()
    step = TrainingStep(model, loss, (text,), optimizer, chip=args.chip)
    compiled = time.monotonic() - start
    result = step.timing()
    macs = needed_macs(model, text)
    return {
        "chip": args.chip, "layers": args.layers, "batch": args.batch, "tokens": args.tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        "cycles": result.cycles, "macs_needed": macs, "macs_done": result.macs,
        "share_of_array": macs / step.device.chip.macs_per_cycle / result.cycles,
        "array_busy": result.macs / step.device.chip.macs_per_cycle / result.cycles,
        "instructions": result.instructions, "heap_bytes": step.executable.heap_bytes,
        "bytes": dict(result.bytes), "compile_s": round(compiled, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--chip", default="solo")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "train_step.json"
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    figures = measure(args)
    report = {"machine": describe(), "figures": figures}
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(
        f"{figures['cycles']:,} cycles, {figures['share_of_array']:.1%} of the array for what a "
        f"step needs ({figures['array_busy']:.1%} with what the compiler adds), compiled in "
        f"{figures['compile_s']} s"
    )


if __name__ == "__main__":
    main()
