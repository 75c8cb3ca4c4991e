"""Token channels: a producer's posts become a consumer's tokens `tokens.latency_cycles` later."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tapeout.chip import Chip


class TokenChannel(wiring.Component):
    """One channel from one queue to another:

    A post in cycle r can be taken from cycle r + latency on. `overflows` says that a token came to
    a full channel; programs that the simulator accepts never do that.
    """

    post: In(1)
    take: In(1)
    has_token: Out(1)
    under_way: Out(1)
    is_empty: Out(1)  # nothing is here or on its way
    overflows: Out(1)

    def __init__(self, chip: Chip) -> None:
        self.capacity = chip.tokens.capacity
        self.latency_cycles = chip.tokens.latency_cycles
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        stages = Signal(self.latency_cycles - 1)
        comes = Signal()
        m.d.comb += [
            comes.eq(Cat(self.post, stages)[-1]),
            self.under_way.eq(self.post | stages.any()),
        ]
        m.d.sync += stages.eq(Cat(self.post, stages))
        count = Signal(range(self.capacity + 1))
        m.d.sync += count.eq(count + comes - self.take)
        m.d.comb += [
            self.has_token.eq(count != 0),
            self.is_empty.eq(~(self.has_token | self.under_way)),
            self.overflows.eq(comes & ~self.take & (count == self.capacity)),
        ]
        return m


class RetireQueue(wiring.Component):
    """The posts of instructions that have not retired, in order:

    An entry holds the cycle at which its instruction retires. Cycles of entries ascend, as a queue
    retires one instruction a cycle.
    """

    STAMP_BITS = 32

    def __init__(self, chip: Chip, channels: int) -> None:
        self.entries = chip.seq.retire_entries
        super().__init__(
            {
                "now": In(self.STAMP_BITS),
                "push": In(1),
                "push_retire": In(self.STAMP_BITS),
                "push_posts": In(channels),
                "has_room": Out(1),
                "is_empty": Out(1),
                "posts": Out(channels),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        n = self.entries
        retires = [Signal(self.STAMP_BITS, name=f"retire_{k}") for k in range(n)]
        posts = [Signal(len(self.posts), name=f"posts_{k}") for k in range(n)]
        count = Signal(range(n + 1))
        pop = Signal()
        m.d.comb += [
            pop.eq((count != 0) & (retires[0] == self.now)),
            self.has_room.eq(count != n),
            self.is_empty.eq(count == 0),
        ]
        with m.If(pop):
            m.d.comb += self.posts.eq(posts[0])
            for k in range(n - 1):
                m.d.sync += [retires[k].eq(retires[k + 1]), posts[k].eq(posts[k + 1])]
        with m.If(self.push):
            for k in range(n):
                with m.If(count - pop == k):
                    m.d.sync += [retires[k].eq(self.push_retire), posts[k].eq(self.push_posts)]
        m.d.sync += count.eq(count + self.push - pop)
        return m
