"""Random programs of DMA transfers and scalar instructions, sound by construction."""

import random

from tapeout.chip import Chip
from tapeout.isa import dma, seq
from tapeout.rtl.verification.blocks import Maker, prologue
from tapeout.rtl.verification.instructions import DMA0, Block
from tapeout.rtl.verification.programs import Case, Grower


def transfer_program(seed: int, chip: Chip, blocks: int = 30) -> Case:
    """`blocks` transfers, loops of transfers and scalar instructions on DMA queues."""
    grower = Grower(chip, random.Random(seed))
    for block in prologue(grower.rng, chip):
        if _is_for_dma(block):
            grower.add(block)
    left = blocks
    for _ in range(20 * blocks):
        block = _propose(Maker(grower.rng, chip, grower.run))
        left -= _is_for_dma(block) and grower.add(block)
        if left <= 0:
            break
    return grower.finish()


def _is_for_dma(block: Block) -> bool:
    return all(number >= DMA0 for number in block.streams)


def _propose(maker: Maker) -> Block:
    kinds = [
        maker.one_load,
        maker.one_store,
        maker.indices_load,
        maker.scalar,
        lambda: _loop(maker),
    ]
    return maker.rng.choices(kinds, [5, 4, 1, 2, 2])[0]()


def _loop(maker: Maker) -> Block:
    """A loop of one transfer whose register moves."""
    rng, queue = maker.rng, maker.dma_queue()
    cls = rng.choice([dma.Load, dma.Store])
    formats = list(dma.HbmFormat) if cls is dma.Load else [dma.HbmFormat.BF16, dma.HbmFormat.FP32]
    stream = [
        seq.Set(dst=1, value=4 * rng.randrange(3)),
        seq.Loop(count=dma.Count(rng.choice([1, 2, 3])), length=2),
        maker.transfer(queue, cls, rng.choice(formats)),
        seq.AluOp(dst=1, a=1, imm=rng.choice([0, 2, 4, 16])),
    ]
    return Block({queue: stream})
