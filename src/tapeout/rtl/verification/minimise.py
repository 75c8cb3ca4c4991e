"""A failing program made small: fewer blocks, then single instructions replaced by nothing."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from tapeout.isa import seq
from tapeout.isa.instruction import HEADER, Instruction
from tapeout.isa.program import Program, channel_bit

from .programs import Case


def fewest_blocks(fails: Callable[[int], bool], blocks: int) -> int:
    """The least number of blocks whose program fails.

    A program begins like a longer one of the same seed.
    """
    low, high = 0, blocks  # none of `low` fails, `high` does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle, high)
    return high


def minimised(case: Case, fails: Callable[[Case], bool]) -> Case:
    """The case with as many instructions as possible replaced by `seq.nop` or left out.

    A replaced instruction keeps its waits and posts, so order among queues stays, until whole token
    channels turn out to make no difference.
    """
    streams = {queue: list(stream) for queue, stream in case.program.streams.items()}
    size = max(map(len, streams.values()), default=0)
    while size:
        for queue, stream in streams.items():
            for start in range(0, len(stream), size):
                trial = _without(stream, start, start + size)
                if trial != stream and fails(_with(case, {**streams, queue: trial})):
                    streams[queue] = stream = trial
        size //= 2
    streams = _untied(case, streams, fails)
    for queue in list(streams):
        at = 0
        while at < len(streams[queue]):
            trial = streams[queue][:at] + streams[queue][at + 1 :]
            if _is_idle(streams[queue][at]) and fails(_with(case, {**streams, queue: trial})):
                streams[queue] = trial
            else:
                at += 1
    return _with(case, streams)


def _untied(
    case: Case, streams: dict[str, list[Instruction]], fails: Callable[[Case], bool]
) -> dict[str, list[Instruction]]:
    """The streams without the token channels, single tokens, drains and loops that make no
    difference."""
    chip = case.chip
    names, per_pair = chip.queue_names, chip.tokens.channels_per_pair
    for producer, consumer in itertools.permutations(range(len(names)), 2):
        for channel in range(per_pair):
            ends = {
                names[producer]: ("posts", 1 << channel_bit(producer, consumer, channel, per_pair)),
                names[consumer]: ("waits", 1 << channel_bit(consumer, producer, channel, per_pair)),
            }
            most = max(len(_tied(streams.get(q, []), *end)) for q, end in ends.items())
            for token in (None, *reversed(range(most))):
                trial = {
                    queue: _without_token(stream, *ends[queue], token) if queue in ends else stream
                    for queue, stream in streams.items()
                }
                if trial != streams and fails(_with(case, trial)):
                    streams = trial
    for queue, stream in streams.items():
        for at, instruction in enumerate(stream):
            plain = dataclasses.replace(instruction, drain=False)
            for simpler in (_nop(plain) if isinstance(plain, seq.Loop) else plain, plain):
                trial = {**streams, queue: [*stream[:at], simpler, *stream[at + 1 :]]}
                if simpler != instruction and fails(_with(case, trial)):
                    streams = trial
                    stream = trial[queue]
                    break
    return streams


def _tied(stream: Sequence[Instruction], mask: str, bit: int) -> list[int]:
    """Where the stream's field `mask` has the bit."""
    return [at for at, i in enumerate(stream) if getattr(i, mask) & bit]


def _without_token(
    stream: Sequence[Instruction], mask: str, bit: int, token: int | None
) -> list[Instruction]:
    """The stream without the bit where it has it for the `token`th time; None: everywhere."""
    tied = _tied(stream, mask, bit)
    cleared = set(tied if token is None else tied[token : token + 1])
    return [
        dataclasses.replace(i, **{mask: getattr(i, mask) & ~bit}) if at in cleared else i
        for at, i in enumerate(stream)
    ]


def _without(stream: Sequence[Instruction], start: int, end: int) -> list[Instruction]:
    return [
        _nop(i) if start <= at < end and not isinstance(i, seq.Halt | seq.Loop | seq.Nop) else i
        for at, i in enumerate(stream)
    ]


def _nop(instruction: Instruction) -> Instruction:
    return seq.Nop(**{name: getattr(instruction, name) for name in HEADER})


def _is_idle(instruction: Instruction) -> bool:
    return isinstance(instruction, seq.Nop) and not instruction.waits and not instruction.posts


def _with(case: Case, streams: dict[str, list[Instruction]]) -> Case:
    program = Program(case.program.chip, streams, case.program.segments)
    return dataclasses.replace(case, program=program)
