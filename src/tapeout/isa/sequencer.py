"""Sequencers of `interp`: streams, registers, loops, token channels, the decoder's checks."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from tapeout.chip import Chip

from .fields import EncodingError
from .instruction import Fault, HardwareError, Instruction, When, decode, register_numbers


@dataclass
class Channel:
    """Tokens from one queue to another: the clocks of posts not yet taken, who took the others."""

    clocks: deque[np.ndarray] = field(default_factory=deque)
    taken_by: list[int] = field(default_factory=list)  # consumer's instruction of each taken token
    posted: int = 0


@dataclass
class LoopFrame:
    start: int
    end: int
    count: int
    iteration: int = 0


class Queue:
    """One sequencer: its stream, registers and loops."""

    def __init__(self, number: int, name: str, words: list[bytes], registers: int) -> None:
        self.number, self.name, self.words = number, name, words
        self.registers = [0] * registers
        self.loops: list[LoopFrame] = []
        self.pc = 0
        self.issued = 0
        self.halted = not words

    def happens(self, when: When) -> bool:
        """Whether a predicate holds in the innermost loop; outside loops all but NOT_FIRST do."""
        if when == When.ALWAYS:
            return True
        if not self.loops:
            return when != When.NOT_FIRST
        top = self.loops[-1]
        if when == When.LAST:
            return top.iteration == top.count - 1
        return (top.iteration == 0) == (when == When.FIRST)

    def advance(self, to: int) -> None:
        """Moves the pc, back to the start of every loop whose body has ended and has runs left."""
        self.pc = to
        while self.loops and self.pc == self.loops[-1].end:
            top = self.loops[-1]
            top.iteration += 1
            if top.iteration < top.count:
                self.pc = top.start
                return
            self.loops.pop()


def decode_for(chip: Chip, queue: int, word: bytes) -> Instruction | HardwareError:
    """The instruction in a word, or the error of one that this queue of this chip cannot run."""
    name = chip.queue_names[queue]
    try:
        instruction = decode(word)
    except EncodingError as error:
        return HardwareError(Fault.ILLEGAL_INSTRUCTION, str(error))
    if instruction.engine not in ("seq", name.rstrip("0123456789")):
        return HardwareError(
            Fault.ILLEGAL_INSTRUCTION, f"{instruction.mnemonic} cannot run on queue {name}"
        )
    channels = (chip.queue_count - 1) * chip.tokens.channels_per_pair
    if (instruction.waits | instruction.posts) >> channels:
        return HardwareError(
            Fault.ILLEGAL_OPERAND,
            f"wait and post masks have {channels} channels on {chip.name}, not bit "
            f"{(instruction.waits | instruction.posts).bit_length() - 1}",
        )
    highest = max(register_numbers(instruction), default=0)
    if highest >= chip.seq.registers:
        return HardwareError(
            Fault.ILLEGAL_OPERAND,
            f"r{highest} is not one of the registers r0..r{chip.seq.registers - 1} of {chip.name}",
        )
    if getattr(instruction, "dst", None) == 0 and instruction.engine == "seq":
        return HardwareError(
            Fault.ILLEGAL_OPERAND, f"{instruction.mnemonic} cannot write r0: it is always zero"
        )
    return instruction
