"""`tapeout run`: text, figures, the cache, errors; on a small random model and the real one."""

import json
import subprocess
import sys

import pytest

from tapeout.chip import load as load_chip
from tapeout.runtime import cache

pytestmark = pytest.mark.torch

FIELDS = {
    "text": str,
    "token_ids": list,
    "weights": str,
    "required_hbm_bytes_per_token": float,
    "prefill_cycles": int,
    "decode_cycles_per_token": float,
    "chip_tokens_per_s": float,
    "mxu_utilization": float,
    "hbm_utilization": float,
    "host_tokens_per_s": float,
    "compile_s": float,
}
PROMPT = "Once upon"


@pytest.fixture
def run_json(tapeout, model):
    def run(*arguments):
        said = tapeout("run", model, "--prompt", PROMPT, "--chip", "tiny", "--json", *arguments)
        assert (said.code, said.err) == (0, ""), said.err
        return json.loads(said.out)

    return run


def expected_ids(model, prompt: str, count: int) -> list[int]:
    """Greedy tokens of the same weights in plain float32, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    from tapeout.models import load_tokenizer

    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.tensor([load_tokenizer(str(model)).encode(prompt)])
    out = reference.generate(ids, max_new_tokens=count, do_sample=False)
    return out[0, ids.shape[1] :].tolist()


def test_json_has_the_figures_and_they_agree(run_json, model):
    found = run_json("--tokens", 6)
    for name, kind in FIELDS.items():
        assert isinstance(found[name], kind), name
    chip = load_chip("tiny")
    cycles = found["decode_cycles_per_token"]
    assert found["chip_tokens_per_s"] == pytest.approx(chip.clock_ghz * 1e9 / cycles)
    assert found["hbm_utilization"] == pytest.approx(
        found["required_hbm_bytes_per_token"] / (cycles * chip.hbm_bytes_per_cycle)
    )
    assert 0 < found["hbm_utilization"] < 1
    assert 0 < found["mxu_utilization"] < 1
    decode = found["decode"]
    assert decode["launches"] == 5  # the first token comes from the prefill
    for name, queue in decode["queues"].items():
        spent = queue["issue_cycles"] + queue["idle_cycles"] + sum(queue["stall_cycles"].values())
        assert spent == decode["cycles"], name


def test_required_bytes_are_weights_and_cache_once(run_json):
    found = run_json("--tokens", 2)  # one decode step, at the position behind the prompt
    hidden, inner, kv, vocab, layers = 32, 48, 16, 260, 2
    matrices = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner)
    cache = layers * 2 * kv * (len(PROMPT) + 1)
    assert found["required_hbm_bytes_per_token"] == 2 * (matrices + hidden * vocab + cache)


def test_the_tokens_are_those_of_the_model(run_json, model):
    # The first tokens: bf16 against float32 may part ways at a near tie, later on.
    assert run_json("--tokens", 4)["token_ids"] == expected_ids(model, PROMPT, 4)


def test_a_batch_shares_the_weights(run_json):
    one, two = run_json("--tokens", 3), run_json("--tokens", 3, "--batch", 2)
    assert [s["token_ids"] for s in two["sequences"]] == [one["token_ids"]] * 2
    assert two["required_hbm_bytes_per_token"] < 0.6 * one["required_hbm_bytes_per_token"]
    assert two["decode"]["tokens"] == 2 * two["decode"]["launches"] == 4


def test_sampling_follows_the_seed(run_json):
    hot = ("--tokens", 6, "--temperature", 5)
    first = run_json(*hot, "--seed", 1)["token_ids"]
    assert run_json(*hot, "--seed", 1)["token_ids"] == first
    assert run_json(*hot, "--seed", 2)["token_ids"] != first
    greedy = run_json("--tokens", 6)["token_ids"]
    assert run_json(*hot, "--seed", 1, "--top-k", 1)["token_ids"] == greedy


def test_timing_only_counts_the_same_cycles_and_has_no_text(run_json):
    full, timed = run_json("--tokens", 4), run_json("--tokens", 4, "--timing-only")
    assert timed["text"] is None
    assert timed["token_ids"] is None
    assert timed["prefill_cycles"] == full["prefill_cycles"]
    # Other tokens are fed, so other rows of the embedding are read: a few cycles of HBM.
    assert timed["decode"]["cycles"] == pytest.approx(full["decode"]["cycles"], rel=0.02)


def test_interp_says_the_same_and_has_no_clock(run_json):
    found = run_json("--tokens", 2, "--target", "interp")
    assert found["token_ids"] == run_json("--tokens", 2)["token_ids"]
    assert found["decode_cycles_per_token"] is None
    assert found["decode"]["instructions"] > 0


def test_a_slower_memory_slows_the_chip(run_json):
    slow = run_json("--tokens", 2, "--set", "hbm.pin_rate_gbps=0.5")
    assert slow["chip_tokens_per_s"] < run_json("--tokens", 2)["chip_tokens_per_s"]


def test_a_full_cache_ends_the_text(run_json):
    found = run_json("--tokens", 100, "--context", 16, "--temperature", 9)
    assert found["finish"] in ("context", "end")
    assert len(found["token_ids"]) <= 16 - len(PROMPT) + 1


def test_text_and_tables_for_people(tapeout, model):
    said = tapeout("run", model, "--prompt", PROMPT, "--tokens", 3, "--chip", "tiny")
    assert said.code == 0
    assert said.out.startswith(PROMPT)
    for words in ("prefill", "decode", "chip time per token", "MXU utilisation", "HBM utilisation",
                  "host tokens/s", "mxu", "dma0"):  # fmt: skip
        assert words in said.out, words


def test_timing_only_says_that_there_is_no_text(tapeout, model):
    said = tapeout("run", model, "--prompt", PROMPT, "--chip", "tiny", "--timing-only")
    assert "timing only" in said.out
    assert PROMPT not in said.out


def test_a_trace_holds_both_launches(tapeout, model, tmp_path):
    import gzip

    path = tmp_path / "chip.json.gz"
    said = tapeout(
        "run", model, "--prompt", PROMPT, "--tokens", 2, "--chip", "tiny", "--trace", path
    )
    assert said.code == 0, said.err
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    launches = [e for e in events if e.get("cat") == "launch"]
    assert [e["name"].split(":")[0] for e in launches] == ["prefill", "decode"]
    slices = [e for e in events if e["ph"] == "X" and e.get("cat") != "launch"]
    assert {e["args"].get("source", "").split(":")[0] for e in slices} != {""}
    assert max(e["ts"] for e in slices) > launches[1]["ts"] > launches[0]["dur"]
    starts, ends = ({e["id"] for e in events if e["ph"] == p} for p in "sf")
    assert starts == ends
    tracks = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {"launches", *load_chip("tiny").queue_names} <= tracks


def test_a_hit_needs_no_torch_and_no_time(run_json, model, cache_home):
    cache.sources.cache_clear()  # this process may have started before the last edit
    run_json("--tokens", 2)
    code = (
        "import sys; from tapeout.cli.main import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", model, "--prompt", PROMPT, "--tokens", "2",
         "--chip", "tiny", "--json"],
        capture_output=True, text=True, check=True,
        env={"XDG_CACHE_HOME": str(cache_home), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["from_cache"] is True
    assert found["compile_s"] < 3
    assert not {"torch", "transformers", "gguf"} & set(done.stderr.split())


@pytest.mark.slow
@pytest.mark.model
def test_the_real_model_knows_paris(tapeout):
    said = tapeout("run", "smollm2-135m", "--prompt", "The capital of France is", "--tokens", 32,
                   "--json")  # fmt: skip
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert "Paris" in found["text"]
    assert found["chip"] == "solo"
    again = tapeout("run", "smollm2-135m", "--prompt", "The capital of France is", "--tokens", 2,
                    "--json")  # fmt: skip
    assert json.loads(again.out)["compile_s"] < 3
