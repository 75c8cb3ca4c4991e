"""Compiled decoders on both targets, against torch and against each other."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from random_llama import assert_logits, make_llama, rounded_to_bf16

from tapeout.chip import Chip, load
from tapeout.compiler.artifact import Artifact, ArtifactError
from tapeout.isa.interp import Interp
from tapeout.lang import ChipTooSmall
from tapeout.models.compiling import compile_decoder
from tapeout.runtime.session import Session, SessionError
from tapeout.sim import Sim

pytestmark = pytest.mark.torch
TINY = load("tiny")
HBM_BYTES = 8 << 20
PROMPT = [int(t) for t in np.random.default_rng(5).integers(0, 50, 13)]  # 8 lanes a tile: two tiles
NEXT = [3, 41, 0, 17]  # positions 13..16: the last lies in the third tile


def compiled(model: Any, chip: Chip = TINY, **options: Any) -> Artifact:
    return compile_decoder(model, chip, **{"batch": 1, "context": 32, **options})


class Trace:
    """All that a session leaves: logits of every launch, tokens, and the KV cache."""

    def __init__(self, artifact: Artifact, target: Interp | Sim, prompt: list[int], then: Any):
        session = Session(artifact, target)
        session.prefill(prompt)
        self.prefill = session.logits("prefill")
        self.logits: list[np.ndarray] = []
        self.tokens: list[np.ndarray] = []
        for tokens in then:
            step = session.decode(list(tokens))
            self.logits.append(session.logits("decode"))
            self.tokens.append(step.tokens)
        self.kv = target.read(session.memory["kv"], artifact.kv_bytes)

    def by_position(self, prompt: int, sequence: int = 0) -> dict[int, np.ndarray]:
        """A sequence's logits after the prompt's last token and after each token that follows."""
        rows = [self.prefill[0], *(logits[sequence] for logits in self.logits)]
        return {prompt - 1 + at: row for at, row in enumerate(rows)}

    def assert_equals(self, other: "Trace") -> None:
        """Bit by bit."""
        for a, b in zip([self.prefill, *self.logits], [other.prefill, *other.logits], strict=True):
            np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))
        np.testing.assert_array_equal(self.tokens, other.tokens)
        np.testing.assert_array_equal(self.kv, other.kv)
        assert self.kv.any()


@pytest.fixture(scope="module")
def artifact(llama) -> Artifact:
    return compiled(llama)


@pytest.fixture(scope="module")
def traces(artifact) -> tuple[Trace, Trace]:
    """The prompt and four tokens on interp and on sim."""
    then = [[t] for t in NEXT]
    targets = Interp(TINY, hbm_bytes=HBM_BYTES), Sim(TINY, hbm_bytes=HBM_BYTES)
    return tuple(Trace(artifact, target, PROMPT, then) for target in targets)


def test_logits_are_those_of_torch(llama, traces):
    trace = traces[1]
    assert_logits(trace.by_position(len(PROMPT)), llama, PROMPT + NEXT)
    for logits, tokens in zip(trace.logits, trace.tokens, strict=True):
        assert tokens == logits[0].argmax()


def test_interp_and_sim_leave_the_same_bits(traces):
    interp, sim = traces
    interp.assert_equals(sim)


def test_logits_of_every_token(llama):
    artifact = compiled(llama, all_logits=True)
    session = Session(artifact, Sim(TINY, hbm_bytes=HBM_BYTES))
    session.prefill(PROMPT[:6])
    got = session.logits("prefill")
    assert_logits({row: got[row] for row in range(6)}, llama, PROMPT[:6])


def test_sequences_of_a_batch_go_their_own_ways(llama):
    """Three sequences of one prompt, then of different tokens: each as torch has it alone."""
    artifact = compiled(llama, batch=3)
    then = np.random.default_rng(6).integers(0, 50, (3, 3)).tolist()
    prompt = PROMPT[:7]
    traces = [
        Trace(artifact, target, prompt, then)
        for target in (Interp(TINY, hbm_bytes=HBM_BYTES), Sim(TINY, hbm_bytes=HBM_BYTES))
    ]
    traces[0].assert_equals(traces[1])
    for sequence in range(3):
        own = [tokens[sequence] for tokens in then]
        assert_logits(traces[1].by_position(len(prompt), sequence), llama, prompt + own)


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1},  # two tiles a head
        {"head_dim": 4, "num_key_value_heads": 4},  # two heads a tile
        {"tie_word_embeddings": False, "hidden_act": "gelu"},
    ],
    ids=lambda c: "-".join(map(str, c.values())),
)
def test_other_shapes(changes):
    model = rounded_to_bf16(make_llama(num_hidden_layers=1, **changes))
    trace = Trace(compiled(model), Sim(TINY, hbm_bytes=HBM_BYTES), PROMPT, [[NEXT[0]]])
    assert_logits(trace.by_position(len(PROMPT)), model, [*PROMPT, NEXT[0]])


def quantised(model: Any) -> dict[str, SimpleNamespace]:
    """Rounds the model's matrices to Q8_0 in place; the blocks as GGUF stores them, by name."""
    blocks = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or parameter.shape[1] % 32:
            continue
        scale = np.float16(2**-7)  # a power of two: int8 times scale is exact in bf16
        values = parameter.detach().numpy().reshape(parameter.shape[0], -1, 32)
        q = np.clip(np.round(values / scale), -127, 127).astype(np.int8)
        values[...] = q * np.float32(scale)
        scales = np.broadcast_to(scale, (*q.shape[:2], 1)).copy()
        raw = np.concatenate([scales.view(np.uint8), q.view(np.uint8)], axis=2)
        blocks[name] = SimpleNamespace(kind="Q8_0", blocks=raw)
    return blocks | {"lm_head.weight": blocks["model.embed_tokens.weight"]}


def test_packed_weights_give_the_bits_of_unpacked_ones():
    """Blocks whose values bf16 holds; down_proj (K = 40, not a multiple of 32) stays bf16."""
    model = make_llama(num_hidden_layers=1)
    blocks = quantised(rounded_to_bf16(model))
    artifacts = compiled(model), compiled(model, packed=blocks, weights="packed")
    plain, packed = (
        Trace(a, Sim(TINY, hbm_bytes=HBM_BYTES), PROMPT, [[NEXT[0]]]) for a in artifacts
    )
    plain.assert_equals(packed)
    down = 40 * 32
    matrices = artifacts[0].programs["decode"].weight_bytes // 2 - down
    assert artifacts[1].programs["decode"].weight_bytes == 2 * down + matrices * 34 // 32


def test_bytes_that_a_launch_needs(artifact, llama):
    matrices = sum(
        p.numel() for n, p in llama.named_parameters() if p.ndim > 1 and "embed" not in n
    )
    entry = artifact.programs["decode"]
    tied = 50 * 32  # the head is the table of embeddings, which Llama names once
    assert entry.weight_bytes == 2 * (matrices + tied)
    assert entry.kv_bytes_per_position == 2 * 2 * 2 * 2 * 8  # layers, k and v, bf16, heads x dim
    assert artifact.kv_bytes == 32 * entry.kv_bytes_per_position


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"head_dim": 12}, {}, "a head_dim that is a power of two, not 12"),
        ({}, {"context": 20}, "context 20 must be a multiple of lanes = 8"),
        ({}, {"weights": "fp8"}, "weights must be one of bf16, packed, not 'fp8'"),
        ({"intermediate_size": 264}, {}, r"has 264 rows, a stripe of spm 256: raise spm"),
    ],
)
def test_limits_are_named(changes, options, message):
    with pytest.raises(ValueError, match=message):
        compiled(make_llama(num_hidden_layers=1, **changes), **options)


def test_a_full_cache_is_named(artifact):
    session = Session(artifact, Sim(TINY, hbm_bytes=HBM_BYTES))
    with pytest.raises(SessionError, match=r"0 \+ 33 tokens do not fit a KV cache of 32 positions"):
        session.prefill([1] * 33)


# --- artifacts ------------------------------------------------------------------------------------


def test_a_saved_artifact_runs_the_same(artifact, traces, tmp_path: Path):
    artifact.save(tmp_path / "model")
    again = Artifact.read(tmp_path / "model")
    assert again.chip == artifact.chip
    assert again.programs == artifact.programs
    assert again.meta == artifact.meta
    np.testing.assert_array_equal(again.image, artifact.image)
    sim = Trace(again, Sim(TINY, hbm_bytes=HBM_BYTES), PROMPT, [[t] for t in NEXT])
    sim.assert_equals(traces[1])


def test_saving_replaces_the_whole_directory(artifact, tmp_path: Path):
    place = tmp_path / "model"
    place.mkdir()
    (place / "stale").write_text("x")
    artifact.save(place)
    assert not (place / "stale").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_foreign_directory_is_refused(artifact, tmp_path: Path):
    with pytest.raises(ArtifactError, match="is not a compiled model"):
        Artifact.read(tmp_path)
    (tmp_path / "artifact.json").write_text("not json")
    with pytest.raises(ArtifactError, match="is not a compiled model"):
        Artifact.read(tmp_path)


def test_another_version_is_refused(artifact, tmp_path: Path):
    artifact.save(tmp_path / "model")
    place = tmp_path / "model" / "artifact.json"
    meta = json.loads(place.read_text())
    place.write_text(json.dumps(meta | {"version": 99}))
    with pytest.raises(ArtifactError, match=r"format version 99, .* compile the model again"):
        Artifact.read(tmp_path / "model")


@pytest.mark.parametrize("name", ["weights.bin", "decode.zip", "chip.toml"])
def test_a_damaged_artifact_is_refused(artifact, tmp_path: Path, name: str):
    artifact.save(tmp_path / "model")
    place = tmp_path / "model" / name
    place.write_bytes(place.read_bytes()[:-40])
    with pytest.raises(ArtifactError, match="damaged compiled model"):
        Artifact.read(tmp_path / "model")


def test_a_chunk_is_halved_until_its_scores_fit_acc():
    model = rounded_to_bf16(make_llama())
    small = load("tiny", ["acc.rows_per_stripe=12"])
    artifact = compiled(model, small)
    assert artifact.programs["prefill"].tokens == 4
    prompt = list(range(1, 12))  # chunks of several launches, over two tiles
    trace = Trace(artifact, Sim(small, hbm_bytes=HBM_BYTES), prompt, [[5]])
    assert_logits(trace.by_position(len(prompt)), model, [*prompt, 5])
    with pytest.raises(ChipTooSmall, match="acc has no room"):
        compiled(model, small, chunk=small.lanes)


# --- a layer of the real shape --------------------------------------------------------------------


@pytest.mark.slow
def test_a_decoder_layer_of_smollm2_gives_the_same_bits():
    model = make_llama(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=1, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, vocab_size=200, max_position_embeddings=512,
    )  # fmt: skip
    model = rounded_to_bf16(model)
    chip = load("solo")
    artifact = compiled(model, chip, context=256, chunk=128)
    prompt = np.random.default_rng(8).integers(0, 200, 130).tolist()  # into the second tile
    then = [[5], [77]]
    targets = Interp(chip, hbm_bytes=64 << 20), Sim(chip, hbm_bytes=64 << 20)
    interp, sim = (Trace(artifact, target, prompt, then) for target in targets)
    interp.assert_equals(sim)
    assert_logits(sim.by_position(len(prompt)), model, [*prompt, 5, 77])
