"""A sample of the architectures of `transformers`; all of them: `python benchmarks/zoo.py`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

ZOO = Path(__file__).parents[2] / "benchmarks" / "zoo.py"
SAMPLE = (
    "llama", "gpt2", "mixtral", "gemma2", "mamba", "qwen3_next", "bert", "deberta", "resnet",
    "vit", "mobilenet_v2", "whisper", "wav2vec2",
)  # fmt: skip


def test_a_sample_of_architectures_matches(tmp_path):
    report = tmp_path / "zoo.json"
    command = [sys.executable, str(ZOO), "--jobs", "1", "--output", str(report), "--only", *SAMPLE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1200)
    reports = json.loads(report.read_text())["reports"]
    assert {r["key"][1] for r in reports} == set(SAMPLE)
    assert {r["outcome"] for r in reports} == {"matches"}, done.stdout
