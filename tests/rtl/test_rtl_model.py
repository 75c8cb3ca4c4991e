"""A compiled language model runs on the hardware as on the simulator."""

import numpy as np
import pytest

from tapeout.chip import load
from tapeout.rtl.target import Rtl
from tapeout.runtime.session import Session
from tapeout.sim import Sim

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sessions() -> tuple[Session, Session]:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    from tapeout.models import compile_decoder

    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=50, max_position_embeddings=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    module = LlamaForCausalLM(config).eval()
    chip = load("tiny")
    artifact = compile_decoder(module, chip, context=24)
    return Session(artifact, Sim(chip)), Session(artifact, Rtl(chip))


def test_prefill_and_decode_give_the_simulators_bits_cycles_and_counters(
    sessions: tuple[Session, Session],
) -> None:
    sim, rtl = sessions
    for run in (
        lambda session: session.prefill([3, 1, 4, 1, 5, 9, 2])[-1],
        lambda session: session.decode([6]),
        lambda session: session.decode([5]),
    ):
        expected, got = run(sim), run(rtl)
        kind = expected.launch.kind
        assert np.array_equal(sim.logits(kind).view(np.uint32), rtl.logits(kind).view(np.uint32))
        assert np.array_equal(expected.tokens, got.tokens)
        assert expected.stats.cycles == got.stats.cycles
        assert expected.stats.queues == got.stats.queues
        assert expected.stats.hbm == got.stats.hbm
