"""Properties of token channels."""

from amaranth.hdl import Cat, Module, Signal

from tapeout.rtl.tokens import TokenChannel

from .property import COMPONENT, Property


class Tokens(Property):
    """A reference keeps the tokens under way by age and counts those held:

    Consumers take only what is there. Posts are free, also beyond the capacity: up to the first
    overflow the channel equals the reference; the overflow is told, in its cycle, and never else.
    """

    title = "a token channel loses, invents and delays no token, and tells an overflow"
    component = TokenChannel

    def state(self, m: Module) -> None:
        tokens = self.chip.tokens
        m.submodules[COMPONENT] = channel = self.make(self.chip)
        post, take = self.free(m, 1, "post"), self.free(m, 1, "take")
        m.d.comb += [channel.post.eq(post), channel.take.eq(take)]
        self.assume(m, ~take | channel.has_token)

        # Tokens that were posted and not taken; those posted in the last cycles are under way.
        owed = Signal(range(tokens.capacity + tokens.latency_cycles + 1))
        under_way = Signal(tokens.latency_cycles - 1)
        has_overflowed = Signal()
        held = Signal.like(owed)
        ones = sum(under_way[k] for k in range(len(under_way)))
        m.d.comb += held.eq(owed - ones)
        comes = Cat(post, under_way)[-1]
        overflows = comes & ~take & (held == tokens.capacity)
        m.d.sync += [
            owed.eq(owed + post - take),
            under_way.eq(Cat(post, under_way)),
            has_overflowed.eq(has_overflowed | overflows),
        ]
        sound = ~has_overflowed
        self.claim(m, "has_token", ~sound | (channel.has_token == (held != 0)))
        self.claim(m, "under_way", ~sound | (channel.under_way == (post | under_way.any())))
        self.claim(m, "is_empty", ~sound | (channel.is_empty == ((owed == 0) & ~post)))
        self.claim(m, "overflows", ~sound | (channel.overflows == overflows))
        self.reach(m, "token_arrives", channel.has_token)
        self.reach(m, "all_taken", channel.is_empty & (take | (owed == 0)))


RING = 3  # queues


class Delivery(Property):
    """Queues in a ring hand tokens on: each takes, when it likes, and posts to the next then.

    Some tokens, no more than a channel holds, are put in first.
    """

    title = "a ring of channels keeps its tokens, and never stands still for longer than a latency"
    component = TokenChannel

    def state(self, m: Module) -> None:
        tokens = self.chip.tokens
        channels = [self.make(self.chip) for _ in range(RING)]
        most = min(tokens.capacity, 3)
        put, puts = Signal(range(most + 1), name="put"), self.free(m, 1, "puts")
        self.assume(m, ~puts | (put != most))
        m.d.sync += put.eq(put + puts)
        takes = [self.free(m, 1, f"take_{k}") for k in range(RING)]
        self.assume(m, ~(takes[-1] & puts))
        held = []
        for k, channel in enumerate(channels):
            m.submodules[f"{COMPONENT}_{k}"] = channel
            self.assume(m, ~takes[k] | channel.has_token)
            posted = takes[k - 1] | (puts if k == 0 else 0)
            count = Signal(range(most + 2), name=f"owed_{k}")
            m.d.comb += [channel.post.eq(posted), channel.take.eq(takes[k])]
            m.d.sync += count.eq(count + posted - takes[k])
            held.append(count)
            self.claim(m, f"no_overflow_{k}", ~channel.overflows)
            self.claim(m, f"is_empty_{k}", channel.is_empty == ((count == 0) & ~posted))
        self.claim(m, "keeps_tokens", sum(held) == put)
        still = Signal(range(tokens.latency_cycles + 1), name="still")
        stands = Signal(name="stands")
        m.d.comb += stands.eq((put != 0) & ~Cat(c.has_token for c in channels).any())
        with m.If(~stands):
            m.d.sync += still.eq(0)
        with m.Elif(still != tokens.latency_cycles):
            m.d.sync += still.eq(still + 1)
        self.claim(m, "moves_on", ~stands | (still < max(1, tokens.latency_cycles - 1)))
        self.reach(m, "goes_round", takes[RING - 1])
        self.reach(m, "all_put", put == most)
