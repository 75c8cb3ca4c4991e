"""What cannot be done is one clear line on stderr and exit code 1; wrong usage is exit code 2."""

import json
import shutil

import pytest
from small_llama import write_model

pytestmark = pytest.mark.torch


def refused(said, *words: str) -> None:
    assert said.code == 1
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    for each in words:
        assert each in said.err


@pytest.fixture
def run(tapeout):
    return lambda model, *more: tapeout("run", model, "--prompt", "x", "--chip", "tiny", *more)


def test_a_missing_model(run):
    refused(run("smollm2-135n"), "no model 'smollm2-135n'", "did you mean 'smollm2-135m'?")


def test_a_foreign_file(run, tmp_path):
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"%PDF-1.7 and so on")
    refused(run(path), "not a model file")


def test_truncated_files(run, model, tmp_path):
    path = tmp_path / "short.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00\x01")
    refused(run(path), "truncated")
    folder = tmp_path / "short"
    shutil.copytree(model, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(run(folder), "truncated safetensors file")


def test_an_unsupported_operator(run, tmp_path):
    folder = write_model(tmp_path / "swish", hidden_act="mish")
    refused(run(folder), "the compiler cannot lower", "aten.exp", "layers.0.mlp")


def test_a_chip_too_small_for_a_tile(run, model):
    refused(run(model, "--set", "acc.rows_per_stripe=1"), "the chip is too small", "acc")


def test_an_array_lower_than_a_row_is_wide(run, model):
    said = run(model, "--set", "mxu.rows=4", "--set", "mxu.cols=8")
    refused(said, "mxu.rows = 4", "lanes = 8", "set mxu.rows, mxu.cols and lanes alike")


def test_weights_that_do_not_fit_hbm(run, model):
    small = ("--set", "hbm.capacity_gib_per_stack=0.00002")
    refused(run(model, *small), "the chip is too small", "hbm.capacity_gib_per_stack")


def test_a_prompt_longer_than_the_cache_is_refused_before_compiling(tapeout, model, monkeypatch):
    monkeypatch.setattr("tapeout.runtime.cache._compile", None)
    refused(
        tapeout("run", model, "--prompt", "x" * 50, "--chip", "tiny", "--context", 40),
        "the prompt has 50 tokens, the KV cache 40 positions",
        "--context 50",
    )


def test_a_prompt_longer_than_the_models_cache(run, tapeout, model):
    said = tapeout("run", model, "--prompt", "x" * 200, "--chip", "tiny")
    refused(said, "200", "KV cache", "128 positions")


def test_an_empty_prompt(tapeout, model):
    refused(tapeout("run", model, "--prompt", "", "--chip", "tiny"), "the prompt has no tokens")


def test_an_unknown_chip_key(run, model):
    refused(run(model, "--set", "mxu.row=4"), "unknown chip key 'mxu.row'")


def test_a_model_without_template_cannot_chat(tapeout, model, tmp_path):
    folder = tmp_path / "plain"
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    refused(tapeout("chat", folder, "--chip", "tiny"), "no chat template")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--weights", "fp3"),
        ("--target", "gpu"),
        ("--target", "rtl", "--timing-only"),
        ("--target", "rtl", "--trace", "t.json"),
        ("--tokens", 0),
        ("--target", "interp", "--timing-only"),
        ("--target", "interp", "--trace", "t.json"),
        ("--trace", "t.vcd"),
    ],
)
def test_wrong_usage(run, model, arguments):
    said = run(model, *arguments)
    assert said.code == 2
    assert arguments[0] in said.err
