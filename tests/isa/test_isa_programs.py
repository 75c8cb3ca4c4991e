"""Random sound programs: one meaning under every schedule, an error once a token is gone."""

import dataclasses
import random
from collections import Counter

import numpy as np
import pytest

from tapeout.chip import load
from tapeout.isa import errors, seq
from tapeout.isa.assembler import assemble, disassemble
from tapeout.isa.instruction import REGISTRY
from tapeout.isa.interp import Interp
from tapeout.isa.program import Program, channel_bit, channel_peer
from tapeout.rtl.verification.programs import Case, random_program


def run(case: Case, **options) -> dict:
    return case.run(Interp(case.chip, hbm_bytes=1 << 20), **options)


@pytest.mark.parametrize("seed", range(8))
def test_one_meaning_under_every_schedule(seed: int) -> None:
    case = random_program(seed)
    expected = run(case)
    assert expected["acc"].any()
    for schedule in range(3):
        got = run(case, schedule="random", seed=schedule)
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value)
    text = disassemble(case.program, case.chip)
    assert assemble(text, case.chip) == case.program


def test_programs_are_reproducible_and_use_the_whole_isa() -> None:
    assert random_program(3).program == random_program(3).program
    assert random_program(3).program != random_program(4).program
    seen: Counter[str] = Counter()
    for seed in range(8):
        for stream in random_program(seed).program.streams.values():
            seen.update(i.mnemonic for i in stream)
            seen.update("drain" for i in stream if i.drain)
            seen.update("token" for i in stream if i.waits)
    missing = {cls.mnemonic for cls in REGISTRY.values()} - set(seen) - {"seq.trap"}
    assert not missing
    assert seen["drain"] > 20
    assert seen["token"] > 40


def test_another_chip() -> None:
    wide = ["lanes=16", "mxu.cols=16", "dma.queues=3", "dma.bytes_per_cycle=64"]
    case = random_program(0, load("tiny", wide), blocks=8)
    np.testing.assert_array_equal(run(case)["spm"], run(case, schedule="random")["spm"])


def without_one_token(case: Case, choose: random.Random) -> Case | None:
    """The program without one wait and its post, both outside loops; None if it has none."""
    names, per_pair = case.chip.queue_names, case.chip.tokens.channels_per_pair
    streams = {q: list(s) for q, s in case.program.streams.items()}
    for queue, at in choose.sample(
        [(q, k) for q, s in streams.items() for k, i in enumerate(s) if i.waits],
        k=sum(bool(i.waits) for s in streams.values() for i in s),
    ):
        number = names.index(queue)
        bit = streams[queue][at].waits.bit_length() - 1
        peer, channel = channel_peer(number, bit, per_pair)
        back = channel_bit(peer, number, channel, per_pair)
        waits = [k for k, i in enumerate(streams[queue]) if i.waits >> bit & 1]
        other = streams[names[peer]]
        posts = [k for k, i in enumerate(other) if i.posts >> back & 1]
        looped = any(isinstance(i, seq.Loop) for s in (streams[queue], other) for i in s)
        if looped or len(waits) != len(posts):
            continue
        post = posts[waits.index(at)]
        wait = streams[queue][at]
        streams[queue][at] = dataclasses.replace(wait, waits=wait.waits & ~(1 << bit))
        other[post] = dataclasses.replace(other[post], posts=other[post].posts & ~(1 << back))
        program = Program(case.program.chip, streams, case.program.segments)
        return dataclasses.replace(case, program=program)
    return None


def test_a_missing_token_is_found() -> None:
    """Tokens are placed only where the checker asked; a later one may cover an earlier one.

    In some orders of execution a read comes before what it reads is written; where a bank conflict
    then ends the run before the race, the read is what is told.
    """
    found = tried = 0
    for seed in range(80):
        program = random_program(seed, blocks=6, spare_tokens=False)
        broken = without_one_token(program, random.Random(seed))
        if broken is None:
            continue
        tried += 1
        try:
            run(broken, schedule="random", seed=seed)
        except (errors.RaceError, errors.BankError, errors.UninitializedError):
            found += 1
    assert tried >= 10
    assert found >= 0.8 * tried
